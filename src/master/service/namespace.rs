//! `jindofs.v1.Namespace`: mutations through the log, linearizable reads on every master, sessions.

use std::time::Duration;

use jindofs_proto::store::v1 as stored;
use jindofs_proto::store::v1::command::Command as Kind;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::v1::namespace_server::Namespace;
use jindofs_proto::v1::{
    AddMountRequest, BatchRequest, BatchResponse, ChangeMountRequest, CloseSessionRequest, CloseSessionResponse,
    CreateRequest, ListMountsRequest, ListMountsResponse, ListRequest, ListResponse, LookupRequest, LookupResponse,
    MkdirRequest, MountResponse, MutationResponse, OpId, OpenSessionRequest, OpenSessionResponse, RemoveMountRequest,
    RenameRequest, RenewSessionRequest, RenewSessionResponse, RmdirRequest, SetAttrRequest, SymlinkRequest, Target,
    UnlinkRequest,
};
use tonic::{Request, Response, Status};

use super::{check_client, check_op, propose};
use crate::error::{Error, ErrorKind, Result};
use crate::master::raft::Handle;
use crate::master::state::query;
use crate::rpc::status::to_status;
use crate::types::{BATCH_MAX, LIST_PAGE_MAX};

/// The service.
#[derive(Debug, Clone)]
pub(super) struct NamespaceService {
    handle: Handle,
    session_ttl: Duration,
}

fn refused(error: Error) -> Status {
    to_status(&error)
}

fn target(target: Option<Target>) -> Result<Target> {
    target.ok_or_else(|| Error::invalid("target is missing: give a path, an inode, or a directory and a name"))
}

impl NamespaceService {
    pub(super) fn new(handle: Handle, session_ttl: Duration) -> NamespaceService {
        NamespaceService { handle, session_ttl }
    }

    async fn mutate(&self, op: Option<OpId>, kind: Kind) -> Result<Response<MutationResponse>, Status> {
        check_op(op.as_ref()).map_err(refused)?;
        let attr = match propose(&self.handle, op, kind).await.map_err(refused)? {
            Answer::Attr(attr) => Some(attr),
            _ => None,
        };
        Ok(Response::new(MutationResponse { attr }))
    }

    async fn lookup(&self, request: LookupRequest) -> Result<LookupResponse> {
        let target = target(request.target)?;
        let store = self.handle.read().await?;
        let attr = query::lookup(&store.view(), &target)?;
        Ok(LookupResponse { attr: Some(attr) })
    }

    async fn list(&self, request: ListRequest) -> Result<ListResponse> {
        let target = target(request.target)?;
        let limit = match usize::try_from(request.limit).unwrap_or(LIST_PAGE_MAX) {
            0 => LIST_PAGE_MAX,
            limit => limit.min(LIST_PAGE_MAX),
        };
        let store = self.handle.read().await?;
        let view = store.view();
        let directory = query::resolve(&view, &target)?;
        let (entries, end) = query::list(&view, directory, &request.after, limit)?;
        Ok(ListResponse { entries, end, directory: Some(query::attr(&view, directory)?) })
    }

    async fn batch(&self, request: BatchRequest) -> Result<BatchResponse> {
        check_op(request.op.as_ref())?;
        if request.ops.len() > BATCH_MAX {
            let message = format!("a batch of {} operations: at most {BATCH_MAX} are allowed", request.ops.len());
            return Err(Error::new(ErrorKind::ResourceExhausted, message));
        }
        match propose(&self.handle, request.op.clone(), Kind::Batch(request)).await? {
            Answer::Batch(batch) => Ok(batch),
            other => Err(Error::internal(format!("a batch was answered with {other:?}"))),
        }
    }

    async fn mounts(&self) -> Result<ListMountsResponse> {
        let store = self.handle.read().await?;
        let (mounts, version) = query::mounts(&store.view())?;
        Ok(ListMountsResponse { mounts, version })
    }

    async fn open_session(&self, request: OpenSessionRequest) -> Result<OpenSessionResponse> {
        check_client(&request.client_id)?;
        let open = stored::OpenSession { client_id: request.client_id, description: request.description };
        propose(&self.handle, None, Kind::OpenSession(open)).await?;
        let ttl_ms = u64::try_from(self.session_ttl.as_millis()).unwrap_or(u64::MAX);
        Ok(OpenSessionResponse { ttl_ms })
    }
}

/// Under-storage needs workers and a loader, which this release does not have: better no mount than one that lies.
fn no_mounts_yet() -> Status {
    refused(Error::new(ErrorKind::Unsupported, "mounts of under-storage are not part of this release yet"))
}

#[tonic::async_trait]
impl Namespace for NamespaceService {
    async fn lookup(&self, request: Request<LookupRequest>) -> Result<Response<LookupResponse>, Status> {
        NamespaceService::lookup(self, request.into_inner()).await.map(Response::new).map_err(refused)
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        NamespaceService::list(self, request.into_inner()).await.map(Response::new).map_err(refused)
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
        NamespaceService::batch(self, request.into_inner()).await.map(Response::new).map_err(refused)
    }

    async fn add_mount(&self, _request: Request<AddMountRequest>) -> Result<Response<MountResponse>, Status> {
        Err(no_mounts_yet())
    }

    async fn change_mount(&self, _request: Request<ChangeMountRequest>) -> Result<Response<MountResponse>, Status> {
        Err(no_mounts_yet())
    }

    async fn remove_mount(&self, _request: Request<RemoveMountRequest>) -> Result<Response<MountResponse>, Status> {
        Err(no_mounts_yet())
    }

    async fn list_mounts(&self, _request: Request<ListMountsRequest>) -> Result<Response<ListMountsResponse>, Status> {
        self.mounts().await.map(Response::new).map_err(refused)
    }

    async fn open_session(
        &self,
        request: Request<OpenSessionRequest>,
    ) -> Result<Response<OpenSessionResponse>, Status> {
        NamespaceService::open_session(self, request.into_inner()).await.map(Response::new).map_err(refused)
    }

    /// Nothing expires sessions yet, so a renewal only has to find the session and a leader.
    async fn renew_session(
        &self,
        request: Request<RenewSessionRequest>,
    ) -> Result<Response<RenewSessionResponse>, Status> {
        let id = request.into_inner().client_id;
        check_client(&id).map_err(refused)?;
        let store = self.handle.read().await.map_err(refused)?;
        if query::session_exists(&store.view(), &id).map_err(refused)? {
            return Ok(Response::new(RenewSessionResponse {}));
        }
        Err(refused(Error::new(ErrorKind::SessionExpired, "no such session: open a new one")))
    }

    async fn close_session(
        &self,
        request: Request<CloseSessionRequest>,
    ) -> Result<Response<CloseSessionResponse>, Status> {
        let client_id = request.into_inner().client_id;
        check_client(&client_id).map_err(refused)?;
        let close = stored::CloseSession { client_id };
        propose(&self.handle, None, Kind::CloseSession(close)).await.map_err(refused)?;
        Ok(Response::new(CloseSessionResponse {}))
    }
}
