//! The typed API of the masters: one method per call, errors as data, mutations exactly once.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::{self, Stream};
use jindofs_proto::v1::{
    AddMountRequest, Attr, BatchOp, BatchRequest, BeginWriteRequest, BeginWriteResponse, CancelJobRequest,
    ChangeMountRequest, CheckMountsRequest, CreateRequest, DirEntry, EndWriteRequest, Entry, GetJobRequest, JobInfo,
    JobState, LayoutRequest, LayoutResponse, ListJobsRequest, ListMountsRequest, ListMountsResponse, ListRequest,
    ListResponse, LookupRequest, MkdirRequest, Mount, MountResponse, MountState, MutationResponse, OpId,
    RefreshRequest, RemoveMountRequest, RenameRequest, ReserveInodesRequest, RmdirRequest, SetAttrRequest,
    StoredContent, SubmitLoadRequest, SymlinkRequest, Target, UnlinkRequest, WorkersRequest, WorkersResponse,
    batch_result, target,
};
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::config::ClientConfig;
use crate::error::{Error, Result};
use crate::rpc::channel::{MasterChannel, block, job, namespace};
use crate::rpc::status::from_detail;
use crate::runtime::host_name;
use crate::types::{BATCH_MAX, LIST_PAGE_MAX};

use super::session::{OpGuard, Session};

/// An absolute path as the target of an operation.
pub fn at_path(path: impl AsRef<[u8]>) -> Target {
    Target { target: Some(target::Target::Path(Bytes::copy_from_slice(path.as_ref()))) }
}

/// An inode as the target of an operation.
pub fn at_inode(inode: u64) -> Target {
    Target { target: Some(target::Target::Inode(inode)) }
}

/// A name in a directory as the target of an operation.
pub fn at_entry(parent: u64, name: impl AsRef<[u8]>) -> Target {
    let entry = DirEntry { parent, name: Bytes::copy_from_slice(name.as_ref()) };
    Target { target: Some(target::Target::Entry(entry)) }
}

/// The file system tree, mounts, jobs and layouts, as one client sees them.
///
/// The `op` field of a request is filled in here, whatever it holds.
#[derive(Debug)]
pub struct Namespace {
    channel: MasterChannel,
    session: Session,
}

impl Namespace {
    /// A client with a channel and a session of its own.
    pub fn new(config: &ClientConfig) -> Namespace {
        Namespace::with_channel(MasterChannel::new(config))
    }

    /// A client with a session of its own on a shared channel.
    pub fn with_channel(channel: MasterChannel) -> Namespace {
        let host = host_name();
        let session = Session::new(channel.clone(), format!("{host} process {}", std::process::id()));
        Namespace { channel, session }
    }

    /// The channel under it.
    pub fn channel(&self) -> &MasterChannel {
        &self.channel
    }

    /// The sessions of its mutations.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Attributes of `target`, linearizable.
    ///
    /// *Errors*: `NotFound`; those of the channel.
    pub async fn lookup(&self, target: Target) -> Result<Attr> {
        lookup(&self.channel, target).await
    }

    /// One page of a directory, after the name `after`; `limit` 0 asks for the largest page.
    ///
    /// *Errors*: `NotFound`, `NotADirectory`; those of the channel.
    pub async fn list_page(&self, target: Target, after: Bytes, limit: u32) -> Result<ListResponse> {
        list_page(&self.channel, target, after, limit).await
    }

    /// All entries of a directory in name order, fetched page by page as the stream is read.
    pub fn list(&self, target: Target) -> impl Stream<Item = Result<Entry>> + Send + use<> {
        let state =
            Listing { channel: self.channel.clone(), target, page: VecDeque::new(), after: Bytes::new(), end: false };
        stream::try_unfold(state, |mut state| async move {
            loop {
                if let Some(entry) = state.page.pop_front() {
                    return Ok(Some((entry, state)));
                }
                if state.end {
                    return Ok(None);
                }
                let answer = list_page(&state.channel, state.target.clone(), state.after.clone(), 0).await?;
                state.end = answer.end || answer.entries.is_empty();
                state.after = answer.entries.last().map(|last| last.name.clone()).unwrap_or_default();
                state.page = answer.entries.into();
            }
        })
    }

    /// Creates an empty file, or returns the existing one unless `exclusive`.
    ///
    /// *Errors*: those of the file system; those of the channel; `SessionExpired`.
    pub async fn create(&self, request: CreateRequest) -> Result<Attr> {
        let send = |to, op| {
            let request = CreateRequest { op, ..request.clone() };
            async move { namespace(to).create(request).await }
        };
        attr_of(self.mutate("create", send).await?)
    }

    /// Creates a directory.
    ///
    /// *Errors*: as [`Namespace::create`].
    pub async fn mkdir(&self, request: MkdirRequest) -> Result<Attr> {
        let send = |to, op| {
            let request = MkdirRequest { op, ..request.clone() };
            async move { namespace(to).mkdir(request).await }
        };
        attr_of(self.mutate_aside("mkdir", send).await?)
    }

    /// Creates a symbolic link.
    ///
    /// *Errors*: as [`Namespace::create`].
    pub async fn symlink(&self, request: SymlinkRequest) -> Result<Attr> {
        let send = |to, op| {
            let request = SymlinkRequest { op, ..request.clone() };
            async move { namespace(to).symlink(request).await }
        };
        attr_of(self.mutate_aside("symlink", send).await?)
    }

    /// Changes attributes.
    ///
    /// *Errors*: as [`Namespace::create`].
    pub async fn set_attr(&self, request: SetAttrRequest) -> Result<Attr> {
        let send = |to, op| {
            let request = SetAttrRequest { op, ..request.clone() };
            async move { namespace(to).set_attr(request).await }
        };
        attr_of(self.mutate_aside("set attributes", send).await?)
    }

    /// Renames, replacing what is there unless `no_replace`. Returns the attributes of what moved.
    ///
    /// *Errors*: as [`Namespace::create`].
    pub async fn rename(&self, from: Target, to: Target, no_replace: bool) -> Result<Attr> {
        let request = RenameRequest { op: None, from: Some(from), to: Some(to), no_replace };
        let send = |to, op| {
            let request = RenameRequest { op, ..request.clone() };
            async move { namespace(to).rename(request).await }
        };
        attr_of(self.mutate_aside("rename", send).await?)
    }

    /// Removes a file or symbolic link.
    ///
    /// *Errors*: as [`Namespace::create`].
    pub async fn unlink(&self, target: Target) -> Result<()> {
        let request = UnlinkRequest { op: None, target: Some(target) };
        let send = |to, op| {
            let request = UnlinkRequest { op, ..request.clone() };
            async move { namespace(to).unlink(request).await }
        };
        self.mutate_aside("unlink", send).await.map(drop)
    }

    /// Removes a directory; with `recursive` everything below it as well.
    ///
    /// *Errors*: as [`Namespace::create`].
    pub async fn rmdir(&self, target: Target, recursive: bool) -> Result<()> {
        let request = RmdirRequest { op: None, target: Some(target), recursive };
        let send = |to, op| {
            let request = RmdirRequest { op, ..request.clone() };
            async move { namespace(to).rmdir(request).await }
        };
        self.mutate_aside("rmdir", send).await.map(drop)
    }

    /// Announces that new content of a file below a mount is going to be stored, made from the version `base_token`; empty
    /// for a file that was never stored. It lasts until [`Namespace::end_write`], or until the session ends.
    ///
    /// *Errors*: `Stale` when the file is of another version by now, `Busy` while somebody else changes it, `ReadOnly`; as
    /// [`Namespace::create`].
    pub async fn begin_write(&self, inode: u64, base_token: Bytes) -> Result<BeginWriteResponse> {
        let request = BeginWriteRequest { op: None, inode, base_token, end_behind: false };
        let send = |to, op| {
            let request = BeginWriteRequest { op, ..request.clone() };
            async move { namespace(to).begin_write(request).await }
        };
        self.mutate("begin a write", send).await
    }

    /// Says what came of a write: what lies in the under-storage now, or `None` when nothing was stored or nobody knows. Then
    /// a master looks. Returns the attributes of the file; `None` when it is gone.
    ///
    /// *Errors*: `Stale` when the write was ended otherwise; as [`Namespace::create`].
    pub async fn end_write(&self, intent: u64, stored: Option<StoredContent>) -> Result<Option<Attr>> {
        self.end(EndWriteRequest { op: None, intent, stored, abandoned: false }).await
    }

    /// As [`Namespace::end_write`] of a write that nobody tries again: a file that is not stored by now is forgotten, unless
    /// another client has made or locked it as well.
    ///
    /// *Errors*: as [`Namespace::end_write`].
    pub async fn abandon_write(&self, intent: u64) -> Result<Option<Attr>> {
        self.end(EndWriteRequest { op: None, intent, stored: None, abandoned: true }).await
    }

    async fn end(&self, request: EndWriteRequest) -> Result<Option<Attr>> {
        let send = |to, op| {
            let request = EndWriteRequest { op, ..request.clone() };
            async move { namespace(to).end_write(request).await }
        };
        Ok(self.mutate("end a write", send).await?.attr)
    }

    /// Up to [`BATCH_MAX`] mutations as one log entry, each with an outcome of its own, in order.
    ///
    /// *Errors*: `InvalidArgument` for too many; otherwise as [`Namespace::create`], when none was done.
    pub async fn batch(&self, ops: Vec<BatchOp>) -> Result<Vec<Result<Option<Attr>>>> {
        let (results, _) = self.batch_in_full(ops).await?;
        Ok(results.into_iter().map(|result| result.map(|done| done.attr)).collect())
    }

    /// As [`Namespace::batch`], with everything that is answered: also the directories in which something was created, as they
    /// are after it.
    ///
    /// *Errors*: as [`Namespace::batch`].
    pub async fn batch_in_full(&self, ops: Vec<BatchOp>) -> Result<(Vec<Result<MutationResponse>>, Vec<Attr>)> {
        if ops.len() > BATCH_MAX {
            return Err(Error::invalid(format!("{} operations: a batch takes at most {BATCH_MAX}", ops.len())));
        }
        let asked = ops.len();
        let request = BatchRequest { op: None, ops };
        let send = |to, op| {
            let request = BatchRequest { op, ..request.clone() };
            async move { namespace(to).batch(request).await }
        };
        let answer = self.mutate("batch", send).await?;
        let outcome = |result: jindofs_proto::v1::BatchResult| match result.result {
            Some(batch_result::Result::Ok(done)) => Ok(done),
            Some(batch_result::Result::Error(detail)) => Err(from_detail(&detail)),
            None => Err(Error::internal("batch: an outcome is missing in the answer")),
        };
        if answer.results.len() != asked {
            return Err(Error::internal(format!("batch: {} outcomes for {asked} operations", answer.results.len())));
        }
        Ok((answer.results.into_iter().map(outcome).collect(), answer.directories))
    }

    /// Sets `count` inode numbers aside that this session alone gives to what it creates: the session's id and the first.
    ///
    /// *Errors*: as [`Namespace::create`].
    pub async fn reserve_inodes(&self, count: u32) -> Result<(Bytes, u64)> {
        let guard = self.session.begin().await?;
        let client_id = guard.op().client_id;
        let request = ReserveInodesRequest { client_id: client_id.clone(), count };
        let send = |to| {
            let request = request.clone();
            async move { namespace(to).reserve_inodes(request).await }
        };
        let reserved = self.channel.call_leader("reserve inodes", send).await;
        let reserved = reserved.inspect_err(|error| self.session.note(&guard, error))?;
        Ok((client_id, reserved.first))
    }

    /// Mounts an under-storage at `mount.path`. The answer may have a warning for people.
    ///
    /// *Errors*: `AlreadyExists`, `InvalidArgument`; as [`Namespace::create`].
    pub async fn add_mount(&self, mount: Mount) -> Result<MountResponse> {
        let request = AddMountRequest { op: None, mount: Some(mount) };
        let send = |to, op| {
            let request = AddMountRequest { op, ..request.clone() };
            async move { namespace(to).add_mount(request).await }
        };
        self.mutate("add mount", send).await
    }

    /// Changes options and policies of a mount.
    ///
    /// *Errors*: `NotFound`, `InvalidArgument`; as [`Namespace::create`].
    pub async fn change_mount(&self, request: ChangeMountRequest) -> Result<Mount> {
        let send = |to, op| {
            let request = ChangeMountRequest { op, ..request.clone() };
            async move { namespace(to).change_mount(request).await }
        };
        self.mutate("change mount", send).await?.mount.ok_or_else(|| missing("change mount"))
    }

    /// Removes a mount; the under-storage is not touched.
    ///
    /// *Errors*: `NotFound`; as [`Namespace::create`].
    pub async fn remove_mount(&self, path: &[u8]) -> Result<()> {
        let request = RemoveMountRequest { op: None, path: Bytes::copy_from_slice(path) };
        let send = |to, op| {
            let request = RemoveMountRequest { op, ..request.clone() };
            async move { namespace(to).remove_mount(request).await }
        };
        self.mutate("remove mount", send).await.map(drop)
    }

    /// Asks each mount's under-storage whether it answers, from a master that serves.
    ///
    /// *Errors*: those of the channel.
    pub async fn check_mounts(&self) -> Result<Vec<MountState>> {
        let send = |to| async move { namespace(to).check_mounts(CheckMountsRequest {}).await };
        Ok(self.channel.call_any("check mounts", send).await?.states)
    }

    /// Has the metadata of `target`, and that of its entries if it is a directory, read again from the under-storage.
    ///
    /// *Errors*: `NotFound`; the under-storage's; those of the channel.
    pub async fn refresh(&self, target: Target) -> Result<Attr> {
        let asked = Instant::now();
        let send = |to| {
            let asked_ms_ago = u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX);
            let request = RefreshRequest { target: Some(target.clone()), asked_ms_ago };
            async move { namespace(to).refresh(request).await }
        };
        self.channel.call_leader("refresh", send).await?.attr.ok_or_else(|| missing("refresh"))
    }

    /// The mount table and its version.
    ///
    /// *Errors*: those of the channel.
    pub async fn mounts(&self) -> Result<ListMountsResponse> {
        let send = |to| async move { namespace(to).list_mounts(ListMountsRequest {}).await };
        self.channel.call_any("list mounts", send).await
    }

    /// Starts caching everything below `path`.
    ///
    /// *Errors*: `NotFound`; as [`Namespace::create`].
    pub async fn submit_load(&self, path: &[u8]) -> Result<JobInfo> {
        let request = SubmitLoadRequest { op: None, path: Bytes::copy_from_slice(path) };
        let send = |to, op| {
            let request = SubmitLoadRequest { op, ..request.clone() };
            async move { job(to).submit_load(request).await }
        };
        self.mutate("load", send).await?.job.ok_or_else(|| missing("load"))
    }

    /// Progress of a job, from the leader, which counts.
    ///
    /// *Errors*: `NotFound`; those of the channel.
    pub async fn job(&self, id: u64) -> Result<JobInfo> {
        let send = |to| async move { job(to).get_job(GetJobRequest { id }).await };
        self.channel.call_leader("job", send).await?.job.ok_or_else(|| missing("job"))
    }

    /// Looks at a job until it has ended, with `pause` between two looks, and shows what each finds. Cancel-safe: the job
    /// itself goes on.
    ///
    /// *Errors*: as [`Namespace::job`]; those of `show`.
    pub async fn follow_job(
        &self,
        mut job: JobInfo,
        pause: Duration,
        show: impl Fn(&JobInfo) -> Result<()>,
    ) -> Result<JobInfo> {
        while job.state() == JobState::Running {
            tokio::time::sleep(pause).await;
            job = self.job(job.id).await?;
            show(&job)?;
        }
        Ok(job)
    }

    /// All jobs the cluster remembers.
    ///
    /// *Errors*: those of the channel.
    pub async fn jobs(&self) -> Result<Vec<JobInfo>> {
        let send = |to| async move { job(to).list_jobs(ListJobsRequest {}).await };
        Ok(self.channel.call_leader("jobs", send).await?.jobs)
    }

    /// Stops a job.
    ///
    /// *Errors*: `NotFound`; as [`Namespace::create`].
    pub async fn cancel_job(&self, id: u64) -> Result<JobInfo> {
        let request = CancelJobRequest { op: None, id };
        let send = |to, op| {
            let request = CancelJobRequest { op, ..request.clone() };
            async move { job(to).cancel_job(request).await }
        };
        self.mutate("cancel job", send).await?.job.ok_or_else(|| missing("cancel job"))
    }

    /// Attributes, source and workers of one file.
    ///
    /// *Errors*: `NotFound`, `IsADirectory`; those of the channel.
    pub async fn layout(&self, inode: u64) -> Result<LayoutResponse> {
        let send = |to| async move { block(to).layout(LayoutRequest { inode, ..LayoutRequest::default() }).await };
        self.channel.call_any("layout", send).await
    }

    /// The workers and their cache totals.
    ///
    /// *Errors*: those of the channel.
    pub async fn usage(&self) -> Result<WorkersResponse> {
        let send = |to| async move { block(to).workers(WorkersRequest::default()).await };
        self.channel.call_any("workers", send).await
    }

    /// Sends a mutation with an id of this client's session, the same in every repetition.
    pub(super) async fn mutate<T, F, Fut>(&self, what: &str, send: F) -> Result<T>
    where
        F: Fn(Channel, Option<OpId>) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        self.send(what, self.session.begin().await?, send).await
    }

    /// As [`Namespace::mutate`], for what may wait for an under-storage.
    async fn mutate_aside<T, F, Fut>(&self, what: &str, send: F) -> Result<T>
    where
        F: Fn(Channel, Option<OpId>) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        self.send(what, self.session.begin_blocking_op().await?, send).await
    }

    async fn send<T, F, Fut>(&self, what: &str, guard: OpGuard, send: F) -> Result<T>
    where
        F: Fn(Channel, Option<OpId>) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let result = self.channel.call_leader(what, |to| send(to, Some(guard.op()))).await;
        if let Err(error) = &result {
            self.session.note(&guard, error);
        }
        result
    }
}

struct Listing {
    channel: MasterChannel,
    target: Target,
    page: VecDeque<Entry>,
    after: Bytes,
    end: bool,
}

pub(crate) async fn lookup(channel: &MasterChannel, target: Target) -> Result<Attr> {
    let request = LookupRequest { target: Some(target) };
    let send = |to| {
        let request = request.clone();
        async move { namespace(to).lookup(request).await }
    };
    channel.call_any("lookup", send).await?.attr.ok_or_else(|| missing("lookup"))
}

pub(crate) async fn list_page(
    channel: &MasterChannel,
    target: Target,
    after: Bytes,
    limit: u32,
) -> Result<ListResponse> {
    let limit = if limit == 0 { u32::try_from(LIST_PAGE_MAX).unwrap_or(u32::MAX) } else { limit };
    let request = ListRequest { target: Some(target), after, limit };
    let send = |to| {
        let request = request.clone();
        async move { namespace(to).list(request).await }
    };
    channel.call_any("list", send).await
}

fn attr_of(response: MutationResponse) -> Result<Attr> {
    response.attr.ok_or_else(|| missing("the change"))
}

fn missing(what: &str) -> Error {
    Error::internal(format!("{what}: the master's answer lacks its subject"))
}
