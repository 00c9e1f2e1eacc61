//! `jindofs.v1.Admin`: for operators; most of it needs no quorum.

use super::{Parts, answer, propose};
use jindofs_proto::store::v1::command::Command as Kind;
use jindofs_proto::store::v1::{DrainWorkers, RemoveWorkers};
use jindofs_proto::v1::admin_server::Admin;
use jindofs_proto::v1::{
    AddMembersRequest, AddMembersResponse, CanRestartRequest, CanRestartResponse, DigestRequest, DigestResponse,
    DrainWorkersRequest, DrainWorkersResponse, PromoteMemberRequest, PromoteMemberResponse, ProvisionRequest,
    ProvisionResponse, RemoveMembersRequest, RemoveMembersResponse, RemoveWorkersRequest, RemoveWorkersResponse,
    SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse, TableDigest, TransferLeaderRequest,
    TransferLeaderResponse, WorkerState,
};
use tonic::{Request, Response, Status};

use crate::error::{Error, ErrorKind, Result};
use crate::master::state::query;
use crate::rpc::status::to_status;

/// The service.
#[derive(Debug, Clone)]
pub(super) struct AdminService(pub(super) Parts);

impl AdminService {
    async fn provision(&self, request: ProvisionRequest) -> Result<ProvisionResponse> {
        let bytes = request.cluster_uuid;
        let uuid: [u8; 16] = bytes.as_ref().try_into().map_err(|_| {
            Error::invalid(format!("cluster_uuid has {} bytes: 16 are needed, stored by you beforehand", bytes.len()))
        })?;
        let handle = self.0.handle.clone();
        // The caller may hang up; a founding that began goes on.
        let founded = tokio::spawn(async move { handle.provision(uuid).await });
        let voters = founded.await.map_err(|error| Error::internal(format!("provision: {error}")))??;
        Ok(ProvisionResponse { cluster_uuid: bytes, voters })
    }

    /// Checksums at the newest index, once `index` is applied. Apply may go on meanwhile: the digest is of one snapshot,
    /// and the index it is for is read from that same snapshot.
    async fn digest(&self, request: DigestRequest) -> Result<DigestResponse> {
        if request.index > 0 {
            self.0.handle.wait_applied(request.index).await?;
        }
        let (index, tables) = self.0.handle.digest().await?;
        let tables = tables
            .into_iter()
            .map(|table| TableDigest { table: table.table.to_owned(), rows: table.rows, checksum: table.checksum })
            .collect();
        Ok(DigestResponse { member_id: self.0.handle.member_id(), index, tables })
    }

    async fn drain_workers(&self, request: DrainWorkersRequest) -> Result<DrainWorkersResponse> {
        let DrainWorkersRequest { worker_ids, cancel, reason } = request;
        some(&worker_ids)?;
        propose(&self.0.handle, None, Kind::DrainWorkers(DrainWorkers { worker_ids, cancel, reason })).await?;
        Ok(DrainWorkersResponse {})
    }

    /// A worker that lives would register again: it has to be stopped first.
    async fn remove_workers(&self, request: RemoveWorkersRequest) -> Result<RemoveWorkersResponse> {
        let worker_ids = request.worker_ids;
        some(&worker_ids)?;
        let store = self.0.handle.read().await?;
        if !self.0.handle.is_leader() {
            return Err(self.0.handle.not_leader());
        }
        let workers = self.0.workers.list(&query::workers(&store.view())?);
        let lives = |worker: &&jindofs_proto::v1::WorkerInfo| worker.state() == WorkerState::Live;
        if let Some(worker) = workers.iter().filter(lives).find(|worker| worker_ids.contains(&worker.id)) {
            let message = format!(
                "worker {} at {} is heard: stop it first, and wait until it is lost",
                worker.id, worker.address
            );
            return Err(Error::new(ErrorKind::FailedPrecondition, message));
        }
        propose(&self.0.handle, None, Kind::RemoveWorkers(RemoveWorkers { worker_ids })).await?;
        Ok(RemoveWorkersResponse {})
    }
}

fn some(worker_ids: &[String]) -> Result<()> {
    if worker_ids.is_empty() {
        return Err(Error::invalid("no worker is named: give worker ids"));
    }
    Ok(())
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn provision(&self, request: Request<ProvisionRequest>) -> Result<Response<ProvisionResponse>, Status> {
        answer(AdminService::provision(self, request.into_inner()).await)
    }

    async fn status(&self, _request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let mut status = self.0.handle.status();
        if let Some(store) = self.0.handle.store() {
            let recorded = query::workers(&store.view()).map_err(|fault| to_status(&fault.into()))?;
            status.workers = self.0.workers.list(&recorded);
        }
        Ok(Response::new(status))
    }

    async fn digest(&self, request: Request<DigestRequest>) -> Result<Response<DigestResponse>, Status> {
        answer(AdminService::digest(self, request.into_inner()).await)
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        let moved = self.0.handle.transfer_leader(request.into_inner().target).await;
        answer(moved.map(|leader_id| TransferLeaderResponse { leader_id }))
    }

    async fn add_members(&self, request: Request<AddMembersRequest>) -> Result<Response<AddMembersResponse>, Status> {
        let request = request.into_inner();
        let added = self.0.handle.add_members(request.raft_addresses, request.learners).await;
        answer(added.map(|expected| AddMembersResponse { expected }))
    }

    async fn remove_members(
        &self,
        request: Request<RemoveMembersRequest>,
    ) -> Result<Response<RemoveMembersResponse>, Status> {
        let request = request.into_inner();
        let removed = self.0.handle.remove_members(request.member_ids, request.raft_addresses).await;
        answer(removed.map(|expected| RemoveMembersResponse { expected }))
    }

    async fn promote_member(
        &self,
        request: Request<PromoteMemberRequest>,
    ) -> Result<Response<PromoteMemberResponse>, Status> {
        let promoted = self.0.handle.promote_member(request.into_inner().member_id).await;
        answer(promoted.map(|()| PromoteMemberResponse {}))
    }

    async fn can_restart(&self, request: Request<CanRestartRequest>) -> Result<Response<CanRestartResponse>, Status> {
        let reason = self.0.handle.must_not_restart(request.into_inner().member_id).await;
        answer(reason.map(|why| CanRestartResponse { yes: why.is_none(), reason: why.unwrap_or_default() }))
    }

    async fn drain_workers(
        &self,
        request: Request<DrainWorkersRequest>,
    ) -> Result<Response<DrainWorkersResponse>, Status> {
        answer(AdminService::drain_workers(self, request.into_inner()).await)
    }

    async fn remove_workers(
        &self,
        request: Request<RemoveWorkersRequest>,
    ) -> Result<Response<RemoveWorkersResponse>, Status> {
        answer(AdminService::remove_workers(self, request.into_inner()).await)
    }

    async fn snapshot(&self, request: Request<SnapshotRequest>) -> Result<Response<SnapshotResponse>, Status> {
        let built = self.0.handle.snapshot(request.into_inner().purge).await;
        answer(built.map(|(index, purged)| SnapshotResponse { index, purged }))
    }
}
