//! What must be true whatever happens, and what must be true once everything works again.

use std::collections::{BTreeMap, BTreeSet};

use jindofs_proto::v1::{Target, target};
use prost::Message;

use super::super::handle::Handle;
use super::super::types;
use super::clients::Client;
use super::machine::Machine;
use super::net::net;
use crate::master::state::query;

type Cluster = [u8; 16];

/// What was seen so far.
#[derive(Debug, Default)]
pub(super) struct Checks {
    /// Disk of the member that led, by cluster, term and member.
    leaders: BTreeMap<(Cluster, u64, u64), [u8; 16]>,
    /// Term and checksum of every entry that some member has applied, by cluster and index.
    history: BTreeMap<(Cluster, u64), (u64, u32)>,
    /// By machine, start and cluster, the last entry that was compared.
    compared: BTreeMap<(usize, u64, Cluster), u64>,
}

impl Checks {
    /// One disk for each leader. Leaders are ordered by term and member (openraft's `leader_id_adv`): a quorum that has voted for a
    /// member may vote for one with a higher number in the same term, and the first one commits nothing after that. What each of them
    /// has committed is compared by [`Checks::check_history`].
    pub(super) fn check_leader(&mut self, machine: &Machine) {
        let Some(running) = machine.handle().and_then(|handle| handle.running()) else { return };
        let Some(term) = running.leading() else { return };
        let (member, disk) = (running.net.me.id, running.net.me.incarnation);
        let first = *self.leaders.entry((running.net.me.cluster, term, member)).or_insert_with(|| {
            net(|net| net.trace.note(format_args!("leader of {term} is {member}")));
            disk
        });
        assert_eq!(first, disk, "two disks of member {member} led in term {term}");
    }

    /// All members have applied the same entries.
    pub(super) fn check_history(&mut self, machines: &[Machine]) {
        for machine in machines {
            let Some(opened) = machine.handle().and_then(|handle| handle.opened()) else { continue };
            let applied = *opened.machine.applied().borrow();
            let cluster = opened.net.me.cluster;
            let from = self.compared.entry((machine.host, machine.starts, cluster)).or_insert(0);
            let begin = (*from + 1).max(opened.log.purged().map_or(0, |id| id.index) + 1);
            if begin > applied {
                continue;
            }
            let entries = opened.log.read(begin, applied + 1, u64::MAX).expect("the log is read");
            for entry in entries {
                let bytes = types::entry_to_wire(&entry).encode_to_vec();
                let seen = (entry.log_id.leader_id.term, crc32c::crc32c(&bytes));
                let known = *self.history.entry((cluster, entry.log_id.index)).or_insert(seen);
                assert_eq!(
                    known, seen,
                    "two histories: machine {} has applied another entry {} than one before it",
                    machine.host, entry.log_id.index
                );
            }
            *from = applied;
        }
    }

    pub(super) fn applied(&self) -> u64 {
        self.history.keys().map(|(_, index)| *index).max().unwrap_or(0)
    }
}

/// Why the cluster does not work yet; `None` once it does. With that, what it must hold is compared.
pub(super) fn check_settled(machines: &[Machine], clients: &[Client]) -> Option<String> {
    let Some(expected) = expected(machines) else { return Some("nobody leads".to_owned()) };
    let machines: Vec<&Machine> = machines.iter().filter(|m| expected.contains(&m.raft_address())).collect();
    let machines = &machines[..];
    let mut applied = BTreeSet::new();
    let mut ids = BTreeSet::new();
    let mut leader = None;
    for machine in machines {
        let Some(handle) = machine.handle() else { return Some(format!("machine {} does not run", machine.host)) };
        let Some(running) = handle.running() else {
            return Some(format!("machine {}: {}", machine.host, handle.phase()));
        };
        if let Err(why) = handle.readiness() {
            return Some(format!("machine {} is not ready: {why}", machine.host));
        }
        ids.insert(running.net.me.id);
        applied.insert(*running.applied_index().borrow());
        let last = running.look(|m| m.last_log_index);
        applied.insert(last.unwrap_or(0));
        if running.leading().is_some() && handle.has_quorum() {
            leader = Some(running);
        }
    }
    let Some(leader) = leader else { return Some("nobody leads".to_owned()) };
    let (sets, nodes) = leader.look(|m| {
        let sets = m.membership_config.membership().get_joint_config().clone();
        let nodes: BTreeSet<u64> = m.membership_config.nodes().map(|(id, _)| *id).collect();
        (sets, nodes)
    });
    if sets.len() != 1 || sets[0] != ids || nodes != ids {
        return Some(format!("the voters are {sets:?} among {nodes:?}, those that run are {ids:?}"));
    }
    if applied.len() != 1 {
        return Some(format!("not everything is applied everywhere: {applied:?}"));
    }
    compare(machines, clients);
    None
}

/// The addresses of the masters that the cluster wants, as its leader knows them.
pub(super) fn expected(machines: &[Machine]) -> Option<Vec<String>> {
    let handle = machines.iter().filter_map(Machine::handle).find(Handle::has_quorum)?;
    let store = handle.store()?;
    Some(query::cluster(&store.view()).ok()??.expected)
}

/// Every member holds what was acknowledged, and the same as the others.
fn compare(machines: &[&Machine], clients: &[Client]) {
    let mut first = None;
    for machine in machines {
        let opened = machine.handle().and_then(|handle| handle.opened()).expect("it runs");
        let store = opened.machine.store();
        for name in clients.iter().flat_map(|client| &client.acknowledged) {
            let target = Target { target: Some(target::Target::Path(name.as_bytes().to_vec().into())) };
            if let Err(fault) = query::lookup(&store.view(), &target) {
                panic!("machine {} has lost {name:?}, which was acknowledged: {fault:?}", machine.host);
            }
        }
        let (_, tables) = opened.machine.digest().expect("digest");
        let digest = format!("{tables:?}");
        let known = first.get_or_insert_with(|| digest.clone());
        assert_eq!(*known, digest, "the state of machine {} differs", machine.host);
    }
}
