//! From a disk that has chosen a cluster to a member of it; or back, as long as it has no member id.
//!
//! Until it is admitted a disk has neither log nor state, so it may still leave: the cluster may have lost its quorum for
//! good, or refuse this disk, or a configured master may turn out to belong to another cluster. It then is empty again and
//! looks anew, with a new incarnation. An admission may arrive late, or its answer get lost: the record that then stands in
//! the cluster is of an incarnation that nobody has any more. It is silent, and replaced by whoever is admitted next at the
//! address.

use std::collections::BTreeSet;
use std::time::Duration;

use jindofs_proto::raft::v1 as wire;

use crate::error::{Error, ErrorKind, Result};
use crate::master::state::query;
use crate::runtime::failpoint_io;

use super::handle::Handle;
use super::identity::{Identity, Stage};
use super::life::{BEAT, PROBE};
use super::wire::check_address;

/// Most redirects to a leader that one attempt to be admitted follows. One is enough where leadership rests; each master
/// that is asked may know another leader while it changes.
const REDIRECTS_MAX: usize = 3;
/// Longest text of another master in the phase, in characters: the phase becomes part of error messages.
const REASON_CHARS_MAX: usize = 500;

/// Whom a disk asks to be admitted: each master once, and as many leaders as redirects are allowed.
#[derive(Debug)]
struct Route {
    own: String,
    /// The last one is asked next.
    waiting: Vec<String>,
    asked: BTreeSet<String>,
    redirects_left: usize,
}

impl Route {
    fn new(own: String, waiting: Vec<String>) -> Route {
        Route { own, waiting, asked: BTreeSet::new(), redirects_left: REDIRECTS_MAX }
    }

    fn next(&mut self) -> Option<String> {
        while let Some(address) = self.waiting.pop() {
            if address != self.own && self.asked.insert(address.clone()) {
                return Some(address);
            }
        }
        None
    }

    /// Asks the leader that a master has named next.
    ///
    /// *Errors*: why it is not asked.
    fn follow(&mut self, leader: String) -> Result<()> {
        check_address("Raft address of a leader", &leader)?;
        if leader == self.own {
            return Err(Error::unavailable("a master names this disk as the leader"));
        }
        if self.redirects_left == 0 {
            return Err(Error::unavailable(format!("more than {REDIRECTS_MAX} leaders were named")));
        }
        self.redirects_left -= 1;
        self.waiting.push(leader);
        Ok(())
    }
}

/// Refuses the answer of a master of another cluster, which knows nothing of this disk.
fn check_answer(answer: wire::AdmitResponse, cluster: [u8; 16], address: &str) -> Result<wire::AdmitResponse> {
    if answer.cluster_uuid == cluster[..] {
        return Ok(answer);
    }
    Err(Error::unavailable(format!("master {address} belongs to another cluster")))
}

fn shorten(text: &str) -> String {
    text.chars().take(REASON_CHARS_MAX).collect()
}

/// What a cluster has decided about a disk that asked to join.
#[derive(Debug)]
enum Admission {
    /// With this member id.
    Admitted(u64),
    /// The cluster never admits this incarnation again, for the reason given.
    IncarnationUsed(String),
}

impl Handle {
    /// Asks to be admitted, catches up as a learner, and becomes a member once the state itself says so.
    pub(super) async fn join(&self, mut identity: Identity) -> Result<()> {
        if identity.is_unadmitted()
            && let Some(why) = self.reason_to_leave(&identity).await
        {
            return self.stop_joining(&identity, &why).await;
        }
        self.set_phase("joining: asking to be admitted");
        // The masters that are asked may take long not to answer. The next request finds an admission that was not
        // waited for, unless the disk has taken another incarnation since.
        let asked = tokio::select! {
            asked = self.ask_admission(&identity) => asked,
            why = self.wait_for_reason_to_leave(&identity), if identity.is_unadmitted() => {
                return self.stop_joining(&identity, &why).await;
            }
        };
        match asked {
            Ok(Admission::IncarnationUsed(why)) if identity.member_id == 0 => {
                return self.stop_joining(&identity, &why).await;
            }
            Ok(Admission::IncarnationUsed(why)) => {
                tracing::warn!(why, "this disk was replaced before it became a member");
                return self.retire(identity).await;
            }
            Ok(Admission::Admitted(id)) if identity.member_id == 0 => {
                identity.member_id = id;
                failpoint_io("join.admitted")?;
                self.set_identity(identity.clone())?;
                failpoint_io("join.numbered")?;
                self.end_promise()?;
            }
            Ok(Admission::Admitted(id)) if id != identity.member_id => {
                return Err(Error::internal(format!("admitted as {id} after {}", identity.member_id)));
            }
            Ok(Admission::Admitted(_)) => {}
            Err(error) if error.kind == ErrorKind::FailedPrecondition && identity.member_id != 0 => {
                tracing::warn!(%error, "this disk was replaced before it became a member");
                return self.retire(identity).await;
            }
            Err(error) => {
                self.set_phase(format!("joining: {}", shorten(&error.to_string())));
                tokio::time::sleep(BEAT * 2).await;
                return Ok(());
            }
        }
        let running = self.start_raft(&identity).await?;
        self.set_phase("joining: catching up");
        running.wait_applied(identity.member_id).await.or_else(|error| match error.kind {
            ErrorKind::Unavailable => Ok(()),
            _ => Err(error),
        })?;
        let known = query::members(&running.machine.store().view())?;
        if known.iter().any(|member| member.id == identity.member_id) {
            failpoint_io("join.caught-up")?;
            self.change_identity(|identity| identity.stage = Stage::Member)?;
            failpoint_io("join.member")?;
        }
        Ok(())
    }

    async fn wait_for_reason_to_leave(&self, identity: &Identity) -> String {
        loop {
            tokio::time::sleep(BEAT * 5).await;
            if let Some(why) = self.reason_to_leave(identity).await {
                return why;
            }
        }
    }

    /// Makes a disk that was not admitted an empty one, which looks for a cluster anew.
    async fn stop_joining(&self, identity: &Identity, why: &str) -> Result<()> {
        let _alone = self.0.life.lock().await;
        failpoint_io("join.leave")?;
        self.forget_joining(identity)?;
        failpoint_io("join.left")?;
        tracing::warn!(cluster = %identity.cluster.simple(), why, "not admitted: this disk is empty again");
        self.set_phase(format!("empty: {why}; looks for a cluster anew"));
        Ok(())
    }

    async fn ask_admission(&self, identity: &Identity) -> Result<Admission> {
        let cluster = identity.cluster_bytes();
        let request = wire::AdmitRequest {
            cluster_uuid: cluster.to_vec().into(),
            incarnation: identity.incarnation_bytes().to_vec().into(),
            raft_address: self.raft_address(),
            grpc_address: self.grpc_address(),
            member_id: identity.member_id,
        };
        // Configured peers before those that have announced themselves.
        let mut waiting = self.confirmed_announcers(cluster).await;
        waiting.extend(self.other_peers());
        let mut route = Route::new(self.raft_address(), waiting);
        let mut last = Error::unavailable("no peer answers");
        while let Some(address) = route.next() {
            let answer = self.admit_at(&address, &request).await;
            match answer.and_then(|answer| check_answer(answer, cluster, &address)) {
                Ok(answer) if answer.incarnation_is_used => {
                    return Ok(Admission::IncarnationUsed(shorten(&answer.message)));
                }
                Ok(answer) if answer.member_id != 0 => return Ok(Admission::Admitted(answer.member_id)),
                Ok(answer) if !answer.leader_raft_address.is_empty() => {
                    if let Err(error) = route.follow(answer.leader_raft_address) {
                        last = error;
                    }
                }
                Ok(answer) => last = Error::unavailable(shorten(&answer.message)),
                // Only a member of this very cluster refuses so: another one answers that it is another.
                Err(error) if error.kind == ErrorKind::FailedPrecondition => return Err(error),
                Err(error) => {
                    self.0.discovery.announcers.forget(&address);
                    last = error;
                }
            }
        }
        Err(last)
    }

    /// The masters that have announced themselves, and have said when they were asked that they are members of `cluster` with
    /// a place for this disk. After a restart all of them have to be asked first.
    async fn confirmed_announcers(&self, cluster: [u8; 16]) -> Vec<String> {
        let announcers = &self.0.discovery.announcers;
        if announcers.confirmed_of(cluster).is_empty() {
            self.ask_announcers().await;
        }
        announcers.confirmed_of(cluster)
    }

    async fn admit_at(&self, address: &str, request: &wire::AdmitRequest) -> Result<wire::AdmitResponse> {
        let call = async {
            let mut client = self.0.resolver.connect(address, Duration::from_secs(1)).await?;
            let answer = client.admit(request.clone()).await;
            answer.map(tonic::Response::into_inner).map_err(|status| crate::rpc::status::from_status(&status))
        };
        let limit = self.0.config.election_max * 4 + PROBE;
        tokio::time::timeout(limit, call)
            .await
            .unwrap_or_else(|_| Err(Error::unavailable(format!("master {address} does not answer"))))
    }
}

#[cfg(test)]
mod tests {
    use super::super::promise::Promise;
    use super::super::simulation::master_config;
    use super::*;

    #[test]
    fn each_master_is_asked_once_and_leaders_are_followed_a_few_times_and_never_to_oneself() {
        let addresses = ["z:1", "a:1", "b:1", "own:1", "b:1"].map(str::to_owned);
        let mut route = Route::new("own:1".to_owned(), addresses.to_vec());
        assert_eq!((route.next().as_deref(), route.next().as_deref()), (Some("b:1"), Some("a:1")));
        route.follow("own:1".to_owned()).expect_err("this disk leads nothing");
        route.follow("no address".to_owned()).expect_err("nonsense");
        route.follow("h".repeat(1 << 20)).expect_err("an address of 1 MiB");
        route.follow("leader:1".to_owned()).expect("followed");
        assert_eq!(route.next().as_deref(), Some("leader:1"), "before those that wait");
        // Two masters that name each other, and then a chain without end.
        route.follow("a:1".to_owned()).expect("noted");
        let mut followed = 0;
        for number in 0..100 {
            match route.follow(format!("next-{number}:1")) {
                Ok(()) => followed += usize::from(route.next().is_some()),
                Err(_) => break,
            }
        }
        assert_eq!(followed, REDIRECTS_MAX - 2);
        assert_eq!((route.next().as_deref(), route.next()), (Some("z:1"), None));
    }

    #[test]
    fn the_answer_of_another_cluster_admits_nobody_and_leads_nowhere() {
        let answer = |cluster: &[u8]| wire::AdmitResponse {
            member_id: 5,
            leader_raft_address: "a:1".to_owned(),
            cluster_uuid: cluster.to_vec().into(),
            ..wire::AdmitResponse::default()
        };
        assert_eq!(check_answer(answer(&[7; 16]), [7; 16], "b:1").expect("the same").member_id, 5);
        for other in [&[8; 16][..], &[7; 15], &[]] {
            let error = check_answer(answer(other), [7; 16], "b:1").expect_err("another one");
            assert_ne!(error.kind, ErrorKind::FailedPrecondition, "no reason to give a member id up");
        }
    }

    #[tokio::test]
    async fn a_disk_that_its_cluster_has_not_admitted_is_bound_by_what_it_has_promised() {
        let temp = tempfile::tempdir().expect("tempdir");
        let open = || Handle::open(master_config(temp.path().to_path_buf(), 1, &[0, 1, 2])).expect("opened");
        let promised = |handle: &Handle| Promise::load(&handle.0.dir).expect("readable").is_some();
        let handle = open();
        handle.give_promise(Promise::new("founder:1", [7; 16], [1; 16])).expect("promised");
        handle.begin_joining([7; 16]).await.expect("begun");
        drop(handle);
        let handle = open();
        let joining = handle.identity().expect("joining");
        handle.stop_joining(&joining, "nobody answers").await.expect("stopped");
        assert!(promised(&handle), "the founder may have recorded the founding");
        handle.begin_joining([7; 16]).await.expect("begun");
        let mut admitted = handle.identity().expect("joining");
        admitted.member_id = 4;
        handle.set_identity(admitted).expect("admitted");
        handle.end_promise().expect("removed");
        assert!(!promised(&handle));
        // As if the process had died before that.
        Promise::new("founder:1", [7; 16], [1; 16]).store(&handle.0.dir).expect("stored");
        drop(handle);
        assert!(!promised(&open()), "the member id says where the disk belongs");
    }

    #[tokio::test]
    async fn a_disk_that_was_not_admitted_is_empty_for_good_and_joins_next_with_another_incarnation() {
        let temp = tempfile::tempdir().expect("tempdir");
        let open = || Handle::open(master_config(temp.path().to_path_buf(), 1, &[0, 1, 2])).expect("opened");
        let handle = open();
        handle.begin_joining([7; 16]).await.expect("begun");
        let first = handle.identity().expect("joining");
        assert!(first.is_unadmitted() && handle.store().is_none());
        assert!(handle.status().cluster_uuid.is_empty(), "nothing says that this cluster lives");
        handle.stop_joining(&first, "nobody answers").await.expect("stopped");
        assert!(handle.identity().is_none() && handle.phase().starts_with("empty"), "{}", handle.phase());
        drop(handle);
        let handle = open();
        assert!(handle.identity().is_none(), "on the disk too");
        handle.begin_joining([7; 16]).await.expect("begun");
        let second = handle.identity().expect("joining");
        assert_ne!(second.incarnation, first.incarnation, "what a cluster may have admitted is not used again");
        // With a member id it may have a log, and a vote in it.
        let mut admitted = second;
        admitted.member_id = 4;
        handle.set_identity(admitted.clone()).expect("admitted");
        handle.stop_joining(&admitted, "nobody answers").await.expect_err("too late");
        assert_eq!(handle.identity(), Some(admitted));
    }

    #[tokio::test]
    async fn a_disk_asks_no_address_to_admit_it_that_anybody_has_announced_and_no_member_answers_at() {
        let temp = tempfile::tempdir().expect("tempdir");
        let handle = Handle::open(master_config(temp.path().to_path_buf(), 1, &[0, 1, 2])).expect("opened");
        let announcers = &handle.0.discovery.announcers;
        let raft_address = "127.0.0.1:1".to_owned();
        let news = wire::AnnounceRequest { raft_address, cluster_uuid: vec![7; 16].into(), ..Default::default() };
        announcers.note(&news, None);
        assert_eq!(handle.confirmed_announcers([7; 16]).await, Vec::<String>::new());
        announcers.note(&news, None);
        announcers.confirm("127.0.0.1:1", [7; 16]);
        assert_eq!(handle.confirmed_announcers([7; 16]).await, ["127.0.0.1:1"], "it was asked before");
        assert_eq!(handle.confirmed_announcers([8; 16]).await, Vec::<String>::new());
    }
}
