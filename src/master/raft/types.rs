//! The types openraft works with here, and their stored and wire forms.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use jindofs_proto::raft::v1 as wire;
use jindofs_proto::store::v1::Outcome;
use openraft::entry::RaftEntry;
use openraft::impls::leader_id_adv::LeaderId;

/// What openraft is configured with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TypeConfig;

impl openraft::RaftTypeConfig for TypeConfig {
    type D = CommandBytes;
    type R = Applied;
    type NodeId = u64;
    type Node = Node;
    type Term = u64;
    type LeaderId = LeaderId<u64, u64>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = openraft::EntryPayload<CommandBytes, u64, Node>;
    type Entry = openraft::impls::Entry<LeaderId<u64, u64>, Self::Payload>;
    type AsyncRuntime = openraft::impls::TokioRuntime;
    type Responder<T>
        = openraft::impls::OneshotResponder<Self, T>
    where
        T: openraft::OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: openraft::OptionalSend + 'static;
    type ErrorSource = openraft::AnyError;
}

pub(crate) type LogId = openraft::LogId<LeaderId<u64, u64>>;
pub(crate) type Vote = openraft::impls::Vote<LeaderId<u64, u64>>;
pub(crate) type Entry = <TypeConfig as openraft::RaftTypeConfig>::Entry;
pub(crate) type Payload = openraft::EntryPayload<CommandBytes, u64, Node>;
pub(crate) type Membership = openraft::Membership<u64, Node>;
pub(crate) type StoredMembership = openraft::StoredMembership<LeaderId<u64, u64>, u64, Node>;
pub(crate) type SnapshotMeta = openraft::storage::SnapshotMeta<LeaderId<u64, u64>, u64, Node>;

/// An encoded command; decoded when it is applied.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct CommandBytes(pub(crate) Bytes);

impl fmt::Debug for CommandBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command of {} bytes", self.0.len())
    }
}

impl fmt::Display for CommandBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What applying an entry returned; `None` for entries that are no commands.
#[derive(Debug, Clone, Default)]
pub(crate) struct Applied(pub(crate) Option<Outcome>);

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "outcome" } else { "no outcome" })
    }
}

/// Where a member is, and which disk it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Node {
    /// Raft host:port.
    pub(crate) raft_address: String,
    /// Client gRPC host:port.
    pub(crate) grpc_address: String,
    /// Incarnation of the disk.
    pub(crate) incarnation: Vec<u8>,
}

/// A stored or received message that cannot be what it claims.
#[derive(Debug, thiserror::Error)]
#[error("malformed raft message: {0}")]
pub(crate) struct Malformed(pub(crate) &'static str);

pub(crate) fn log_id_to_wire(id: &LogId) -> wire::LogId {
    wire::LogId { term: id.leader_id.term, node_id: id.leader_id.node_id, index: id.index }
}

pub(crate) fn log_id_from_wire(id: &wire::LogId) -> LogId {
    LogId { leader_id: LeaderId { term: id.term, node_id: id.node_id }, index: id.index }
}

pub(crate) fn vote_to_wire(vote: &Vote) -> wire::Vote {
    wire::Vote { term: vote.leader_id.term, node_id: vote.leader_id.node_id, committed: vote.committed }
}

pub(crate) fn vote_from_wire(vote: &wire::Vote) -> Vote {
    Vote { leader_id: LeaderId { term: vote.term, node_id: vote.node_id }, committed: vote.committed }
}

pub(crate) fn node_to_wire(node: &Node) -> wire::Node {
    wire::Node {
        raft_address: node.raft_address.clone(),
        grpc_address: node.grpc_address.clone(),
        incarnation: node.incarnation.clone().into(),
    }
}

pub(crate) fn node_from_wire(node: &wire::Node) -> Node {
    Node {
        raft_address: node.raft_address.clone(),
        grpc_address: node.grpc_address.clone(),
        incarnation: node.incarnation.to_vec(),
    }
}

pub(crate) fn membership_to_wire(membership: &Membership) -> wire::Membership {
    let configs = membership.get_joint_config().iter();
    wire::Membership {
        configs: configs.map(|ids| wire::VoterSet { ids: ids.iter().copied().collect() }).collect(),
        nodes: membership.nodes().map(|(id, node)| (*id, node_to_wire(node))).collect(),
    }
}

pub(crate) fn membership_from_wire(membership: &wire::Membership) -> Result<Membership, Malformed> {
    let configs: Vec<BTreeSet<u64>> = membership.configs.iter().map(|set| set.ids.iter().copied().collect()).collect();
    let nodes: BTreeMap<u64, Node> = membership.nodes.iter().map(|(id, node)| (*id, node_from_wire(node))).collect();
    // An empty membership is what a learner starts with; `new` refuses it.
    if configs.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(|_| Malformed("membership"))
}

pub(crate) fn stored_membership_to_wire(stored: &StoredMembership) -> wire::StoredMembership {
    wire::StoredMembership {
        log_id: stored.log_id().as_ref().map(log_id_to_wire),
        membership: Some(membership_to_wire(stored.membership())),
    }
}

pub(crate) fn stored_membership_from_wire(stored: &wire::StoredMembership) -> Result<StoredMembership, Malformed> {
    let membership = stored.membership.as_ref().ok_or(Malformed("stored membership"))?;
    Ok(StoredMembership::new(stored.log_id.as_ref().map(log_id_from_wire), membership_from_wire(membership)?))
}

pub(crate) fn entry_to_wire(entry: &Entry) -> wire::Entry {
    let payload = match &entry.payload {
        openraft::EntryPayload::Blank => wire::entry::Payload::Blank(wire::Blank {}),
        openraft::EntryPayload::Normal(command) => wire::entry::Payload::Command(command.0.clone()),
        openraft::EntryPayload::Membership(membership) => {
            wire::entry::Payload::Membership(membership_to_wire(membership))
        }
    };
    wire::Entry { log_id: Some(log_id_to_wire(&entry.log_id)), payload: Some(payload) }
}

pub(crate) fn entry_from_wire(entry: wire::Entry) -> Result<Entry, Malformed> {
    let log_id = log_id_from_wire(entry.log_id.as_ref().ok_or(Malformed("entry without log id"))?);
    let payload = match entry.payload.ok_or(Malformed("entry without payload"))? {
        wire::entry::Payload::Blank(_) => Payload::Blank,
        wire::entry::Payload::Command(bytes) => Payload::Normal(CommandBytes(bytes)),
        wire::entry::Payload::Membership(membership) => Payload::Membership(membership_from_wire(&membership)?),
    };
    Ok(<Entry as RaftEntry>::new(log_id, payload))
}
