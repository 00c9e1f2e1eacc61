//! `jindofs.v1.Namespace`: mutations through the log, linearizable reads on every master, sessions.

use std::time::{Duration, Instant};

use jindofs_proto::store::v1 as stored;
use jindofs_proto::store::v1::command::Command as Kind;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::v1::namespace_server::Namespace;
use jindofs_proto::v1::{
    AddMountRequest, BatchRequest, BatchResponse, BeginWriteRequest, BeginWriteResponse, ChangeMountRequest,
    CheckMountsRequest, CheckMountsResponse, CloseSessionRequest, CloseSessionResponse, CreateRequest, EndWriteRequest,
    GetLockRequest, GetLockResponse, ListMountsRequest, ListMountsResponse, ListRequest, ListResponse, Lock,
    LookupRequest, LookupResponse, MkdirRequest, MountResponse, MutationResponse, OpId, OpenSessionRequest,
    OpenSessionResponse, RefreshRequest, RefreshResponse, RemoveMountRequest, RenameRequest, RenewSessionRequest,
    RenewSessionResponse, ReserveInodesRequest, ReserveInodesResponse, RmdirRequest, SetAttrRequest, SetLockRequest,
    SetLockResponse, SymlinkRequest, Target, UnlinkRequest,
};
use tonic::{Request, Response, Status};

use super::{Parts, answer, check_client, check_op, delivered, mounts, propose};
use crate::error::{Error, ErrorKind, Result};
use crate::master::state::query;
use crate::rpc::status::to_status;
use crate::types::{BATCH_MAX, LIST_PAGE_MAX, NsPath};
use crate::ufs;

/// The service.
#[derive(Debug, Clone)]
pub(super) struct NamespaceService(pub(super) Parts);

fn refused(error: Error) -> Status {
    to_status(&error)
}

fn target(target: Option<Target>) -> Result<Target> {
    target.ok_or_else(|| Error::invalid("target is missing: give a path, an inode, or a directory and a name"))
}

impl NamespaceService {
    async fn mutate(&self, op: Option<OpId>, kind: Kind) -> Result<Response<MutationResponse>, Status> {
        self.numbered(op.as_ref()).map_err(refused)?;
        let attr = match delivered(self.0.intents.execute(op, kind).await).map_err(refused)? {
            Answer::Attr(attr) => Some(attr),
            _ => None,
        };
        Ok(Response::new(MutationResponse { attr, ..MutationResponse::default() }))
    }

    async fn begin_write(&self, request: BeginWriteRequest) -> Result<BeginWriteResponse> {
        self.numbered(request.op.as_ref())?;
        let inode = request.inode;
        let intent = match self.0.intents.execute(request.op.clone(), Kind::BeginWrite(request)).await? {
            Answer::Pending(pending) => pending.intent,
            other => return Err(Error::internal(format!("the begin of a write was answered with {other:?}"))),
        };
        let store = self.0.handle.read().await?;
        let (mount, ufs_path) = query::ufs_path(&store.view(), inode)?;
        let attr = query::attr(&store.view(), inode)?;
        Ok(BeginWriteResponse { intent, mount_id: mount.id, ufs_path: ufs_path.into(), attr: Some(attr) })
    }

    async fn end_write(&self, request: EndWriteRequest) -> Result<MutationResponse> {
        self.numbered(request.op.as_ref())?;
        let attr = match self.0.intents.settle(request.op.clone(), Kind::EndWrite(request)).await? {
            Answer::Attr(attr) => Some(attr),
            _ => None,
        };
        Ok(MutationResponse { attr, ..MutationResponse::default() })
    }

    async fn set_lock(&self, request: SetLockRequest) -> Result<SetLockResponse> {
        self.numbered(request.op.as_ref())?;
        if !self.0.handle.is_leader() {
            return Err(self.0.handle.not_leader());
        }
        // Those who wait ask again and again: what they cannot have yet costs no entry of the log.
        let client_id = request.op.as_ref().map(|op| op.client_id.clone()).unwrap_or_default();
        let holder = self.holder(request.inode, &client_id, request.lock.as_ref()).await?;
        if holder.is_some() {
            return Ok(SetLockResponse { holder });
        }
        match propose(&self.0.handle, request.op.clone(), Kind::SetLock(request)).await? {
            Answer::Holder(holder) => Ok(SetLockResponse { holder: Some(holder) }),
            _ => Ok(SetLockResponse { holder: None }),
        }
    }

    async fn get_lock(&self, request: GetLockRequest) -> Result<GetLockResponse> {
        let client_id = request.lock.as_ref().map(|lock| lock.client_id.clone()).unwrap_or_default();
        let holder = self.holder(request.inode, &client_id, request.lock.as_ref()).await?;
        Ok(GetLockResponse { holder })
    }

    async fn holder(&self, inode: u64, client_id: &[u8], lock: Option<&Lock>) -> Result<Option<Lock>> {
        let store = self.0.handle.read().await?;
        Ok(query::lock_holder(&store.view(), inode, client_id, lock)?)
    }

    async fn lookup(&self, request: LookupRequest) -> Result<LookupResponse> {
        let attr = self.0.metadata.lookup(&target(request.target)?).await?;
        Ok(LookupResponse { attr: Some(attr) })
    }

    async fn list(&self, request: ListRequest) -> Result<ListResponse> {
        let limit = usize::try_from(request.limit).unwrap_or(LIST_PAGE_MAX);
        let page = self.0.metadata.list(&target(request.target)?, &request.after, limit).await?;
        Ok(ListResponse { entries: page.entries, end: page.end, directory: Some(page.directory) })
    }

    async fn batch(&self, request: BatchRequest) -> Result<BatchResponse> {
        self.numbered(request.op.as_ref())?;
        if request.ops.len() > BATCH_MAX {
            let message = format!("a batch of {} operations: at most {BATCH_MAX} are allowed", request.ops.len());
            return Err(Error::new(ErrorKind::ResourceExhausted, message));
        }
        self.0.intents.batch(request).await
    }

    async fn reserve(&self, request: ReserveInodesRequest) -> Result<ReserveInodesResponse> {
        let ReserveInodesRequest { client_id, count } = request;
        check_client(&client_id)?;
        self.0.sessions.renew(&client_id);
        match propose(&self.0.handle, None, Kind::ReserveInodes(stored::ReserveInodes { client_id, count })).await? {
            Answer::Reserved(range) => Ok(ReserveInodesResponse { first: range.first }),
            other => Err(Error::internal(format!("a reservation was answered with {other:?}"))),
        }
    }

    /// A mutation is as good as a renewal.
    fn numbered(&self, op: Option<&OpId>) -> Result<()> {
        check_op(op)?;
        if let Some(op) = op {
            self.0.sessions.renew(&op.client_id);
        }
        Ok(())
    }

    /// A mount that could never be read is refused before it is recorded.
    /// True if the under-storage holds something.
    async fn check_storage(&self, uri: &str, options: &ufs::Options) -> Result<bool> {
        if !self.0.handle.is_leader() {
            return Err(self.0.handle.not_leader());
        }
        ufs::validate(uri, options)?;
        self.0.storage.open(uri, options)?.check().await.map_err(|mut error| {
            // That the storage cannot be reached now is an answer: a client must not ask for it again and again.
            if error.is_retryable() {
                error.kind = ErrorKind::UnderStorage;
            }
            error.context("not mounted")
        })
    }

    async fn refresh(&self, request: RefreshRequest) -> Result<RefreshResponse> {
        let now = Instant::now();
        let since = now.checked_sub(Duration::from_millis(request.asked_ms_ago)).unwrap_or(now);
        let attr = self.0.metadata.refresh(&target(request.target)?, since).await?;
        Ok(RefreshResponse { attr: Some(attr) })
    }

    async fn add_mount(&self, request: AddMountRequest) -> Result<MountResponse> {
        self.numbered(request.op.as_ref())?;
        let mount = request.mount.as_ref().ok_or_else(|| Error::invalid("mount is missing"))?;
        let holds_something = self.check_storage(&mount.ufs_uri, &mount.options).await?;
        let uri = mount.ufs_uri.clone();
        let answer = mount_of(propose(&self.0.handle, request.op.clone(), Kind::AddMount(request)).await?)?;
        let warning = if holds_something { String::new() } else { format!("{uri} holds nothing: is the path right?") };
        Ok(MountResponse { warning, ..answer })
    }

    async fn change_mount(&self, request: ChangeMountRequest) -> Result<MountResponse> {
        self.numbered(request.op.as_ref())?;
        let store = self.0.handle.read().await?;
        let path = NsPath::parse(&request.path)?;
        let known = query::mounts(&store.view())?.0.into_iter().find(|mount| mount.path == path.as_bytes());
        if let Some(mount) = known {
            self.check_storage(&mount.ufs_uri, &request.options).await?;
        }
        mount_of(propose(&self.0.handle, request.op.clone(), Kind::ChangeMount(request)).await?)
    }

    async fn remove_mount(&self, request: RemoveMountRequest) -> Result<MountResponse> {
        self.numbered(request.op.as_ref())?;
        mount_of(propose(&self.0.handle, request.op.clone(), Kind::RemoveMount(request)).await?)
    }

    async fn renew(&self, client: &[u8]) -> Result<RenewSessionResponse> {
        check_client(client)?;
        if !self.0.handle.is_leader() {
            return Err(self.0.handle.not_leader());
        }
        // Before the quorum is asked: a client is heard of also while this leader cannot serve it.
        self.0.sessions.renew(client);
        let store = self.0.handle.read().await?;
        if !query::session_exists(&store.view(), client)? {
            return Err(Error::new(ErrorKind::SessionExpired, "no such session: open a new one"));
        }
        Ok(RenewSessionResponse {})
    }

    async fn mounts(&self) -> Result<ListMountsResponse> {
        let store = self.0.handle.read().await?;
        let (mounts, version) = query::mounts(&store.view())?;
        Ok(ListMountsResponse { mounts, version })
    }

    async fn open_session(&self, request: OpenSessionRequest) -> Result<OpenSessionResponse> {
        check_client(&request.client_id)?;
        let open = stored::OpenSession { client_id: request.client_id, description: request.description };
        self.0.sessions.renew(&open.client_id);
        propose(&self.0.handle, None, Kind::OpenSession(open)).await?;
        let ttl_ms = u64::try_from(self.0.sessions.ttl().as_millis()).unwrap_or(u64::MAX);
        Ok(OpenSessionResponse { ttl_ms })
    }
}

fn mount_of(outcome: Answer) -> Result<MountResponse> {
    match outcome {
        Answer::Mount(mount) => Ok(MountResponse { mount: Some(mount), ..MountResponse::default() }),
        other => Err(Error::internal(format!("a mount was answered with {other:?}"))),
    }
}

#[tonic::async_trait]
impl Namespace for NamespaceService {
    async fn lookup(&self, request: Request<LookupRequest>) -> Result<Response<LookupResponse>, Status> {
        NamespaceService::lookup(self, request.into_inner()).await.map(Response::new).map_err(refused)
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        NamespaceService::list(self, request.into_inner()).await.map(Response::new).map_err(refused)
    }

    async fn refresh(&self, request: Request<RefreshRequest>) -> Result<Response<RefreshResponse>, Status> {
        answer(NamespaceService::refresh(self, request.into_inner()).await)
    }

    async fn create(&self, request: Request<CreateRequest>) -> Result<Response<MutationResponse>, Status> {
        let request = request.into_inner();
        self.mutate(request.op.clone(), Kind::Create(request)).await
    }

    async fn mkdir(&self, request: Request<MkdirRequest>) -> Result<Response<MutationResponse>, Status> {
        let request = request.into_inner();
        self.mutate(request.op.clone(), Kind::Mkdir(request)).await
    }

    async fn symlink(&self, request: Request<SymlinkRequest>) -> Result<Response<MutationResponse>, Status> {
        let request = request.into_inner();
        self.mutate(request.op.clone(), Kind::Symlink(request)).await
    }

    async fn set_attr(&self, request: Request<SetAttrRequest>) -> Result<Response<MutationResponse>, Status> {
        let request = request.into_inner();
        self.mutate(request.op.clone(), Kind::SetAttr(request)).await
    }

    async fn rename(&self, request: Request<RenameRequest>) -> Result<Response<MutationResponse>, Status> {
        let request = request.into_inner();
        self.mutate(request.op.clone(), Kind::Rename(request)).await
    }

    async fn unlink(&self, request: Request<UnlinkRequest>) -> Result<Response<MutationResponse>, Status> {
        let request = request.into_inner();
        self.mutate(request.op.clone(), Kind::Unlink(request)).await
    }

    async fn rmdir(&self, request: Request<RmdirRequest>) -> Result<Response<MutationResponse>, Status> {
        let request = request.into_inner();
        self.mutate(request.op.clone(), Kind::Rmdir(request)).await
    }

    async fn batch(&self, request: Request<BatchRequest>) -> Result<Response<BatchResponse>, Status> {
        answer(delivered(NamespaceService::batch(self, request.into_inner()).await))
    }

    async fn begin_write(&self, request: Request<BeginWriteRequest>) -> Result<Response<BeginWriteResponse>, Status> {
        answer(delivered(NamespaceService::begin_write(self, request.into_inner()).await))
    }

    async fn end_write(&self, request: Request<EndWriteRequest>) -> Result<Response<MutationResponse>, Status> {
        answer(delivered(NamespaceService::end_write(self, request.into_inner()).await))
    }

    async fn set_lock(&self, request: Request<SetLockRequest>) -> Result<Response<SetLockResponse>, Status> {
        answer(NamespaceService::set_lock(self, request.into_inner()).await)
    }

    async fn get_lock(&self, request: Request<GetLockRequest>) -> Result<Response<GetLockResponse>, Status> {
        answer(NamespaceService::get_lock(self, request.into_inner()).await)
    }

    async fn add_mount(&self, request: Request<AddMountRequest>) -> Result<Response<MountResponse>, Status> {
        answer(NamespaceService::add_mount(self, request.into_inner()).await)
    }

    async fn change_mount(&self, request: Request<ChangeMountRequest>) -> Result<Response<MountResponse>, Status> {
        answer(NamespaceService::change_mount(self, request.into_inner()).await)
    }

    async fn remove_mount(&self, request: Request<RemoveMountRequest>) -> Result<Response<MountResponse>, Status> {
        answer(NamespaceService::remove_mount(self, request.into_inner()).await)
    }

    async fn list_mounts(&self, _request: Request<ListMountsRequest>) -> Result<Response<ListMountsResponse>, Status> {
        self.mounts().await.map(Response::new).map_err(refused)
    }

    async fn check_mounts(
        &self,
        _request: Request<CheckMountsRequest>,
    ) -> Result<Response<CheckMountsResponse>, Status> {
        answer(mounts::check(&self.0).await)
    }

    async fn open_session(
        &self,
        request: Request<OpenSessionRequest>,
    ) -> Result<Response<OpenSessionResponse>, Status> {
        NamespaceService::open_session(self, request.into_inner()).await.map(Response::new).map_err(refused)
    }

    async fn renew_session(
        &self,
        request: Request<RenewSessionRequest>,
    ) -> Result<Response<RenewSessionResponse>, Status> {
        answer(self.renew(&request.into_inner().client_id).await)
    }

    async fn close_session(
        &self,
        request: Request<CloseSessionRequest>,
    ) -> Result<Response<CloseSessionResponse>, Status> {
        let client_id = request.into_inner().client_id;
        check_client(&client_id).map_err(refused)?;
        let close = stored::CloseSession { client_id };
        propose(&self.0.handle, None, Kind::CloseSession(close)).await.map_err(refused)?;
        Ok(Response::new(CloseSessionResponse {}))
    }

    async fn reserve_inodes(
        &self,
        request: Request<ReserveInodesRequest>,
    ) -> Result<Response<ReserveInodesResponse>, Status> {
        answer(self.reserve(request.into_inner()).await)
    }
}
