//! Calls for operators. Those that take an address ask exactly that master, once: they must work without a quorum.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use jindofs_proto::v1::{
    AddMembersRequest, CanRestartRequest, DigestRequest, DigestResponse, DrainWorkersRequest, PromoteMemberRequest,
    ProvisionRequest, ProvisionResponse, RemoveMembersRequest, RemoveWorkersRequest, SnapshotRequest, SnapshotResponse,
    StatusRequest, StatusResponse, TransferLeaderRequest, WorkerInfo, WorkersRequest,
};

use crate::error::Result;
use crate::rpc::channel::{MasterChannel, admin, block};

/// What the master at `address` knows.
///
/// *Errors*: `Unavailable` or `Timeout` when it does not answer within `budget`.
pub async fn status(channel: &MasterChannel, address: &str, budget: Duration) -> Result<StatusResponse> {
    channel.call_one(address, budget, |to| async move { admin(to).status(StatusRequest {}).await }).await
}

/// Asks every master in `addresses` at the same time; each answers or fails within `budget`.
pub async fn status_of_all(
    channel: &MasterChannel,
    addresses: &[String],
    budget: Duration,
) -> Vec<(String, Result<StatusResponse>)> {
    let ask = |address: &String| {
        let address = address.clone();
        async move {
            let answer = status(channel, &address, budget).await;
            (address, answer)
        }
    };
    join_all(addresses.iter().map(ask)).await
}

/// Checksums of the state of the master at `address`, once it applied `index`; of its newest state when 0.
///
/// *Errors*: `Unavailable` or `Timeout` when it does not answer within `budget`.
pub async fn digest(channel: &MasterChannel, address: &str, index: u64, budget: Duration) -> Result<DigestResponse> {
    channel.call_one(address, budget, |to| async move { admin(to).digest(DigestRequest { index }).await }).await
}

/// Takes a snapshot on the master at `address`, and with `purge` drops the log behind it.
///
/// *Errors*: its answer; `Unavailable` or `Timeout` when it does not answer within `budget`.
pub async fn snapshot(
    channel: &MasterChannel,
    address: &str,
    purge: bool,
    budget: Duration,
) -> Result<SnapshotResponse> {
    channel.call_one(address, budget, |to| async move { admin(to).snapshot(SnapshotRequest { purge }).await }).await
}

/// Founds the cluster `uuid` on the master at `address`, the first of the configured list.
///
/// *Errors*: `FailedPrecondition` when a peer does not answer, holds another list or is not empty.
pub async fn provision(
    channel: &MasterChannel,
    address: &str,
    uuid: [u8; 16],
    budget: Duration,
) -> Result<ProvisionResponse> {
    let request = ProvisionRequest { cluster_uuid: Bytes::copy_from_slice(&uuid) };
    let send = |to| {
        let request = request.clone();
        async move { admin(to).provision(request).await }
    };
    channel.call_one(address, budget, send).await
}

/// Hands leadership to member `target`; to the most caught-up voter when 0. Returns the new leader's id.
///
/// *Errors*: `NotFound` for an unknown member; those of the channel.
pub async fn transfer_leader(channel: &MasterChannel, target: u64) -> Result<u64> {
    let send = |to| async move { admin(to).transfer_leader(TransferLeaderRequest { target }).await };
    Ok(channel.call_leader("transfer leadership", send).await?.leader_id)
}

/// Lets masters join at these Raft addresses, as learners that stay so or as voters. Repeated it changes nothing.
///
/// *Errors*: `InvalidArgument`, `FailedPrecondition`; those of the channel.
pub async fn add_members(channel: &MasterChannel, addresses: &[String], learners: bool) -> Result<Vec<String>> {
    let request = AddMembersRequest { raft_addresses: addresses.to_vec(), learners };
    let send = |to| {
        let request = request.clone();
        async move { admin(to).add_members(request).await }
    };
    Ok(channel.call_leader("add masters", send).await?.expected)
}

/// Removes members, by id or by Raft address. Recorded when this returns; whoever leads carries it out.
///
/// *Errors*: `NotFound`, `FailedPrecondition`; those of the channel.
pub async fn remove_members(channel: &MasterChannel, ids: &[u64], addresses: &[String]) -> Result<Vec<String>> {
    let request = RemoveMembersRequest { member_ids: ids.to_vec(), raft_addresses: addresses.to_vec() };
    let send = |to| {
        let request = request.clone();
        async move { admin(to).remove_members(request).await }
    };
    Ok(channel.call_leader("remove masters", send).await?.expected)
}

/// Lets a learner become a voter.
///
/// *Errors*: `NotFound`, `FailedPrecondition`; those of the channel.
pub async fn promote_member(channel: &MasterChannel, member_id: u64) -> Result<()> {
    let send = |to| async move { admin(to).promote_member(PromoteMemberRequest { member_id }).await };
    channel.call_leader("promote a learner", send).await.map(|_| ())
}

/// Why a member must not be restarted now; `None` if it may.
///
/// *Errors*: `NotFound`; those of the channel.
pub async fn must_not_restart(channel: &MasterChannel, member_id: u64) -> Result<Option<String>> {
    let send = |to| async move { admin(to).can_restart(CanRestartRequest { member_id }).await };
    let answer = channel.call_leader("ask whether a master may restart", send).await?;
    Ok((!answer.yes).then_some(answer.reason))
}

/// Every worker on record, with how far the drains are.
///
/// *Errors*: those of the channel.
pub async fn workers(channel: &MasterChannel) -> Result<Vec<WorkerInfo>> {
    let request = WorkersRequest { drain_progress: true, ..WorkersRequest::default() };
    let send = |to| async move { block(to).workers(request).await };
    Ok(channel.call_leader("ask for the workers", send).await?.workers)
}

/// Lets workers be drained; with `cancel` they may stay. Recorded when this returns; whoever leads carries it out.
///
/// *Errors*: `NotFound`; those of the channel.
pub async fn drain_workers(channel: &MasterChannel, ids: &[String], cancel: bool, reason: &str) -> Result<()> {
    let request = DrainWorkersRequest { worker_ids: ids.to_vec(), cancel, reason: reason.to_owned() };
    let send = |to| {
        let request = request.clone();
        async move { admin(to).drain_workers(request).await }
    };
    channel.call_leader("drain workers", send).await.map(|_| ())
}

/// Forgets workers that are gone.
///
/// *Errors*: `FailedPrecondition` while one of them is heard; those of the channel.
pub async fn remove_workers(channel: &MasterChannel, ids: &[String]) -> Result<()> {
    let request = RemoveWorkersRequest { worker_ids: ids.to_vec() };
    let send = |to| {
        let request = request.clone();
        async move { admin(to).remove_workers(request).await }
    };
    channel.call_leader("remove workers", send).await.map(|_| ())
}
