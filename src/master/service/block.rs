//! `jindofs.v1.Block`: workers and what is cached where.

use bytes::Bytes;
use jindofs_proto::store::v1::command::Command as Kind;
use jindofs_proto::store::v1::{RegisterWorker, WorkerRow};
use jindofs_proto::v1::block_server::Block;
use jindofs_proto::v1::{
    HeartbeatRequest, HeartbeatResponse, LayoutRequest, LayoutResponse, MountUsage, RegisterWorkerRequest,
    RegisterWorkerResponse, ReportRequest, ReportResponse, WorkerState, WorkersRequest, WorkersResponse,
};
use tonic::{Request, Response, Status};

use super::{Parts, answer, propose};
use crate::error::{Error, ErrorKind, Result};
use crate::master::state::query;
use crate::master::store::Store;
use crate::types::address::host_port;

/// The service.
#[derive(Debug, Clone)]
pub(super) struct BlockService(pub(super) Parts);

impl BlockService {
    async fn layout(&self, request: LayoutRequest) -> Result<LayoutResponse> {
        if !request.missing_token.is_empty() {
            self.0.metadata.look_for_missing(request.inode, &request.missing_token).await?;
        }
        let (attr, source) = self.0.metadata.layout(request.inode).await?;
        let workers = match self.0.handle.store() {
            Some(store) => self.0.workers.list(&query::workers(&store.view())?),
            None => Vec::new(),
        };
        Ok(LayoutResponse { attr: Some(attr), source, workers })
    }

    /// From the local store: a list that is a moment old is as good, and there is one without a quorum.
    fn workers(&self, request: WorkersRequest) -> Result<WorkersResponse> {
        if request.drain_progress && !self.0.handle.is_leader() {
            return Err(self.0.handle.not_leader());
        }
        if request.count_under_storage {
            self.0.sizes.want();
        }
        let store = self.local_store()?;
        let view = store.view();
        let recorded = query::workers(&view)?;
        let mut workers = self.0.workers.list(&recorded);
        if request.drain_progress {
            self.0.drains.tell(&mut workers);
        }
        let mut cached = self.0.workers.usage(&recorded);
        let mut mounts = Vec::new();
        for mount in query::mounts(&view)?.0 {
            let counted = self.0.sizes.of(mount.id).unwrap_or_default();
            let (held, known) = (cached.remove(&mount.id).unwrap_or_default(), query::stat(&view, mount.id)?);
            mounts.push(MountUsage {
                mount_id: mount.id,
                cached_bytes: held.bytes,
                cached_files: held.files,
                files: u64::try_from(known.files).unwrap_or(0),
                bytes: u64::try_from(known.bytes).unwrap_or(0),
                ufs_files: counted.files,
                ufs_bytes: counted.bytes,
                ufs_counted_ns: counted.counted_ns,
                skipped: u64::try_from(known.skipped).unwrap_or(0),
            });
        }
        Ok(WorkersResponse { workers, mounts })
    }

    fn local_store(&self) -> Result<std::sync::Arc<Store>> {
        self.0.handle.store().ok_or_else(|| Error::unavailable("this master belongs to no cluster yet"))
    }

    /// A cache filled for another cluster holds other files under the same numbers.
    fn check_cluster(&self, theirs: &[u8]) -> Result<Bytes> {
        let own =
            self.0.handle.cluster_uuid().ok_or_else(|| Error::unavailable("this master belongs to no cluster yet"))?;
        if theirs.is_empty() || theirs == own {
            return Ok(Bytes::copy_from_slice(&own));
        }
        let show = |uuid: &[u8]| uuid::Uuid::from_slice(uuid).unwrap_or_default().to_string();
        let message = format!(
            "the worker's cache belongs to cluster {}, this is {}: give the worker empty directories, or its own masters",
            show(theirs),
            show(&own)
        );
        Err(Error::new(ErrorKind::Foreign, message))
    }

    async fn register(&self, request: RegisterWorkerRequest) -> Result<RegisterWorkerResponse> {
        let cluster_uuid = self.check_cluster(&request.cluster_uuid)?;
        let info = request.worker.ok_or_else(|| Error::invalid("worker is missing"))?;
        let address = host_port(&info.address).map_err(|why| {
            Error::invalid(format!("the address of the worker (storage.address, storage.rpc.port): {why}"))
        })?;
        let row = WorkerRow {
            id: info.id,
            address,
            host: info.host,
            socket: info.socket,
            epoch: request.epoch,
            capacity_bytes: info.capacity_bytes,
            // What is on record of this stays.
            draining: false,
            drain_reason: String::new(),
        };
        propose(&self.0.handle, None, Kind::RegisterWorker(RegisterWorker { worker: Some(row) })).await?;
        let (mounts, mounts_version) = query::mounts(&self.local_store()?.view())?;
        Ok(RegisterWorkerResponse { cluster_uuid, mounts_version, mounts })
    }

    fn heartbeat(&self, request: &HeartbeatRequest) -> Result<HeartbeatResponse> {
        let cluster_uuid = self.check_cluster(&request.cluster_uuid)?;
        let info = request.worker.as_ref().ok_or_else(|| Error::invalid("worker is missing"))?;
        let store = self.local_store()?;
        let view = store.view();
        let recorded = query::workers(&view)?;
        let unknown = !recorded.iter().any(|row| row.id == info.id && row.epoch == request.epoch);
        let (mounts, mounts_version) = query::mounts(&view)?;
        let mounts = if mounts_version == request.mounts_version { Vec::new() } else { mounts };
        let want_full_report = self.0.workers.heartbeat(request);
        let masters = self.0.handle.member_grpc_addresses();
        let mut draining = self.0.workers.list(&recorded);
        draining.retain(|worker| worker.drain.is_some() && worker.state() == WorkerState::Live);
        Ok(HeartbeatResponse {
            mounts_version,
            mounts,
            masters,
            want_full_report,
            unknown,
            cluster_uuid,
            draining,
            drains_version: query::drains_version(&view)?,
        })
    }
}

#[tonic::async_trait]
impl Block for BlockService {
    async fn layout(&self, request: Request<LayoutRequest>) -> Result<Response<LayoutResponse>, Status> {
        answer(BlockService::layout(self, request.into_inner()).await)
    }

    async fn workers(&self, request: Request<WorkersRequest>) -> Result<Response<WorkersResponse>, Status> {
        answer(BlockService::workers(self, request.into_inner()))
    }

    async fn register_worker(
        &self,
        request: Request<RegisterWorkerRequest>,
    ) -> Result<Response<RegisterWorkerResponse>, Status> {
        answer(self.register(request.into_inner()).await)
    }

    async fn heartbeat(&self, request: Request<HeartbeatRequest>) -> Result<Response<HeartbeatResponse>, Status> {
        answer(BlockService::heartbeat(self, &request.into_inner()))
    }

    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportResponse>, Status> {
        let want_full_report = self.0.workers.report(&request.into_inner());
        Ok(Response::new(ReportResponse { want_full_report }))
    }
}
