//! Talking to the masters of one runtime, by the addresses of their pods: names may not resolve when help is needed most.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use jindofs_proto::v1::admin_client::AdminClient;
use jindofs_proto::v1::block_client::BlockClient;
use jindofs_proto::v1::job_client::JobClient;
use jindofs_proto::v1::namespace_client::NamespaceClient;
use jindofs_proto::v1::{
    AddMembersRequest, AddMountRequest, CanRestartRequest, ChangeMountRequest, CloseSessionRequest,
    DrainWorkersRequest, ErrorDetail, GetJobRequest, JobInfo, ListMountsRequest, Mount, OpId, OpenSessionRequest,
    ProvisionRequest, RemoveMembersRequest, RemoveMountRequest, RemoveWorkersRequest, Role, StatusRequest,
    StatusResponse, SubmitLoadRequest, TransferLeaderRequest, WorkersRequest, WorkersResponse,
};
use prost::Message;
use tonic::transport::{Channel, Endpoint};

use crate::desired::MASTER_RPC;

/// How long a master may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(1);
/// How long it may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Mounting asks the under-storage first.
const MOUNT: Duration = Duration::from_secs(30);

/// What went wrong with a master, in words.
pub(super) type Said<T> = Result<T, String>;

/// Masters by pod name, with what each said of itself a moment ago.
#[derive(Debug, Default)]
pub(super) struct Masters {
    pods: BTreeMap<String, Pod>,
}

#[derive(Debug)]
struct Pod {
    channel: Channel,
    status: Option<StatusResponse>,
}

/// A change of the mount table.
#[derive(Debug)]
pub(super) enum Change {
    Mount(Mount),
    Options(Mount),
    Unmount(Vec<u8>),
}

/// The text of a refusal. The message of a status is its beginning, the details hold more of it.
fn words(status: &tonic::Status) -> String {
    let detail = ErrorDetail::decode(status.details()).map(|detail| detail.message).unwrap_or_default();
    let texts = [detail.as_str(), status.message(), status.code().description()];
    texts.into_iter().find(|text| !text.is_empty()).unwrap_or_default().to_owned()
}

fn channel(address: &str) -> Option<Channel> {
    let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    let endpoint = Endpoint::from_shared(format!("http://{host}:{MASTER_RPC}")).ok()?;
    Some(endpoint.connect_timeout(CONNECT).timeout(MOUNT).connect_lazy())
}

impl Masters {
    /// Asks every pod, all at once, for what it knows. `addresses` are pod names with their IP addresses.
    pub(super) async fn ask(addresses: &BTreeMap<String, String>) -> Masters {
        let each = addresses.iter().map(|(pod, address)| async move {
            let channel = channel(address)?;
            let mut admin = AdminClient::new(channel.clone());
            let status = tokio::time::timeout(ANSWER, admin.status(StatusRequest {})).await.ok().and_then(Result::ok);
            Some((pod.clone(), Pod { channel, status: status.map(tonic::Response::into_inner) }))
        });
        Masters { pods: join_all(each).await.into_iter().flatten().collect() }
    }

    /// What a pod said.
    pub(super) fn status(&self, pod: &str) -> Option<&StatusResponse> {
        self.pods.get(pod)?.status.as_ref()
    }

    /// Everyone who answered.
    pub(super) fn answers(&self) -> impl Iterator<Item = (&str, &StatusResponse)> {
        self.pods.iter().filter_map(|(name, pod)| Some((name.as_str(), pod.status.as_ref()?)))
    }

    /// The pod that leads, with its status: the one of the highest term, if several think so.
    pub(super) fn leader(&self) -> Option<(&str, &StatusResponse)> {
        let leads = |status: &StatusResponse| {
            status.quorum && status.self_.as_ref().is_some_and(|own| own.role() == Role::Leader)
        };
        self.answers().filter(|(_, status)| leads(status)).max_by_key(|(_, status)| status.term)
    }

    fn lead(&self) -> Said<Channel> {
        let leader = self.leader().ok_or("no master leads")?.0;
        Ok(self.pods[leader].channel.clone())
    }

    /// Founds a cluster through one pod.
    pub(super) async fn provision(&self, pod: &str, uuid: uuid::Uuid) -> Said<()> {
        let channel = self.pods.get(pod).ok_or_else(|| format!("{pod} has no address"))?.channel.clone();
        let request = ProvisionRequest { cluster_uuid: uuid.as_bytes().to_vec().into() };
        AdminClient::new(channel).provision(request).await.map(drop).map_err(|status| words(&status))
    }

    /// Asks for more members.
    pub(super) async fn add(&self, raft_addresses: Vec<String>) -> Said<()> {
        let request = AddMembersRequest { raft_addresses, learners: false };
        AdminClient::new(self.lead()?).add_members(request).await.map(drop).map_err(|status| words(&status))
    }

    /// Asks for fewer members.
    pub(super) async fn remove(&self, raft_addresses: Vec<String>) -> Said<()> {
        let request = RemoveMembersRequest { member_ids: Vec::new(), raft_addresses };
        AdminClient::new(self.lead()?).remove_members(request).await.map(drop).map_err(|status| words(&status))
    }

    /// Why a member must not be restarted now; none if it may be.
    pub(super) async fn must_not_restart(&self, member_id: u64) -> Said<Option<String>> {
        let answer = AdminClient::new(self.lead()?).can_restart(CanRestartRequest { member_id }).await;
        let answer = answer.map_err(|status| words(&status))?.into_inner();
        Ok((!answer.yes).then_some(answer.reason))
    }

    /// Hands leadership over to whoever has most of the log.
    pub(super) async fn transfer(&self) -> Said<()> {
        let request = TransferLeaderRequest::default();
        AdminClient::new(self.lead()?).transfer_leader(request).await.map(drop).map_err(|status| words(&status))
    }

    /// The mount table.
    pub(super) async fn mounts(&self) -> Said<Vec<Mount>> {
        let answer = NamespaceClient::new(self.lead()?).list_mounts(ListMountsRequest {}).await;
        Ok(answer.map_err(|status| words(&status))?.into_inner().mounts)
    }

    /// Workers and what is cached; the leader begins to count what lies in the under-storages.
    pub(super) async fn usage(&self) -> Said<WorkersResponse> {
        let request = WorkersRequest { count_under_storage: true, drain_progress: true };
        let answer = BlockClient::new(self.lead()?).workers(request).await;
        Ok(answer.map_err(|status| words(&status))?.into_inner())
    }

    /// Has workers drained before they leave; with `cancel` they may stay.
    pub(super) async fn drain(&self, worker_ids: Vec<String>, cancel: bool, reason: &str) -> Said<()> {
        let request = DrainWorkersRequest { worker_ids, cancel, reason: reason.to_owned() };
        AdminClient::new(self.lead()?).drain_workers(request).await.map(drop).map_err(|status| words(&status))
    }

    /// Forgets workers that are gone.
    pub(super) async fn forget(&self, worker_ids: Vec<String>) -> Said<()> {
        let request = RemoveWorkersRequest { worker_ids };
        AdminClient::new(self.lead()?).remove_workers(request).await.map(drop).map_err(|status| words(&status))
    }

    /// Changes the mount table. A change whose answer is lost is found done, or not, at the next look.
    pub(super) async fn change(&self, change: Change) -> Said<()> {
        self.in_session(async |op, channel| {
            let mut client = NamespaceClient::new(channel);
            match change {
                Change::Mount(mount) => client.add_mount(AddMountRequest { op, mount: Some(mount) }).await.map(drop),
                Change::Options(mount) => {
                    let (path, meta_policy, read_only) = (mount.path, mount.meta_policy, mount.read_only);
                    let options = mount.options;
                    client
                        .change_mount(ChangeMountRequest { op, path, options, meta_policy, read_only })
                        .await
                        .map(drop)
                }
                Change::Unmount(path) => {
                    client.remove_mount(RemoveMountRequest { op, path: path.into() }).await.map(drop)
                }
            }
        })
        .await
    }

    /// Starts to load a path into the cache. `client` is stored by the caller beforehand: asked again, the same job answers.
    pub(super) async fn load(&self, client: uuid::Uuid, path: &str) -> Said<JobInfo> {
        let channel = self.lead()?;
        let client_id: bytes::Bytes = client.as_bytes().to_vec().into();
        let request = OpenSessionRequest { client_id: client_id.clone(), description: "operator, load".to_owned() };
        NamespaceClient::new(channel.clone()).open_session(request).await.map_err(|status| words(&status))?;
        let op = Some(OpId { client_id, seq: 1, acked_below: 0 });
        let request = SubmitLoadRequest { op, path: path.as_bytes().to_vec().into() };
        let answer = JobClient::new(channel).submit_load(request).await.map_err(|status| words(&status))?;
        answer.into_inner().job.ok_or_else(|| "a load was answered with nothing".to_owned())
    }

    /// How far a job is.
    pub(super) async fn job(&self, id: u64) -> Said<JobInfo> {
        let answer =
            JobClient::new(self.lead()?).get_job(GetJobRequest { id }).await.map_err(|status| words(&status))?;
        answer.into_inner().job.ok_or_else(|| format!("job {id} was answered with nothing"))
    }

    async fn in_session(&self, work: impl AsyncFnOnce(Option<OpId>, Channel) -> Result<(), tonic::Status>) -> Said<()> {
        let channel = self.lead()?;
        let client_id: bytes::Bytes = uuid::Uuid::new_v4().as_bytes().to_vec().into();
        let mut sessions = NamespaceClient::new(channel.clone());
        let request = OpenSessionRequest { client_id: client_id.clone(), description: "operator".to_owned() };
        sessions.open_session(request).await.map_err(|status| words(&status))?;
        let op = Some(OpId { client_id: client_id.clone(), seq: 1, acked_below: 0 });
        let outcome = work(op, channel).await.map_err(|status| words(&status));
        // One that stays open expires.
        let _ = sessions.close_session(CloseSessionRequest { client_id }).await;
        outcome
    }
}

#[cfg(test)]
mod tests {
    use tonic::{Code, Status};

    use super::*;

    #[test]
    fn a_refusal_is_told_in_full_from_its_details_and_otherwise_from_what_there_is() {
        let detail = ErrorDetail { message: "the whole text".to_owned(), ..ErrorDetail::default() };
        let status = Status::with_details(Code::FailedPrecondition, "the who…", detail.encode_to_vec().into());
        assert_eq!(words(&status), "the whole text");
        assert_eq!(words(&Status::unavailable("no details")), "no details");
        assert_eq!(words(&Status::unavailable("")), Code::Unavailable.description());
    }
}
