//! One run of entries: bounded in length and bytes, applied in one transaction that also notes the last of them.

use std::io;
use std::sync::Arc;

use futures::{FutureExt, Stream, StreamExt};
use jindofs_proto::raft::v1 as wire;
use jindofs_proto::store::v1::command::Command as Kind;
use jindofs_proto::store::v1::{Command, Outcome};
use openraft::EntryPayload;
use openraft::storage::EntryResponder;
use prost::Message;

use crate::master::invalidations::Invalidations;
use crate::master::state::changes::Changes;
use crate::master::state::{self, StoreError, Table, Txn, View};
use crate::master::store::Store;
use crate::runtime::failpoint_io;

use super::disk_space::{DiskSpace, is_out_of_space};
use super::handle::Handle;
use super::state_machine::{blocking, broken};
use super::types::{self, Entry, LogId, StoredMembership, TypeConfig};

/// Row of the last applied log id.
const APPLIED: &[u8] = b"applied";
/// Row of the last applied membership.
const MEMBERSHIP: &[u8] = b"membership";
/// Most entries applied in one transaction.
const CHUNK_ENTRIES: usize = 512;
/// Bytes of commands applied in one transaction; an entry that is larger has one of its own.
const CHUNK_BYTES: usize = 4 << 20;

/// An entry to apply, and where its outcome goes.
pub(super) type ChunkItem = Result<EntryResponder<TypeConfig>, io::Error>;

/// What applying a run of entries came to.
pub(super) struct Run {
    /// Of each entry; none for those that are no commands.
    pub(super) outcomes: Vec<Option<Outcome>>,
    pub(super) members_changed: bool,
    /// True if a command may have changed what clients see. Purges free rows that no client can reach.
    is_visible: bool,
}

/// Applies a run of entries in one transaction. If that finds no room on the disk, it waits until `space` has some. The
/// changes that clients can see are published to `invalidations` once the transaction is committed.
///
/// *Errors*: nothing of the run is applied. Without `space`, one of them is the lack of room.
pub(super) fn apply_entries(
    store: &Store,
    entries: &[Entry],
    space: Option<&DiskSpace>,
    invalidations: Option<&Invalidations>,
) -> io::Result<Run> {
    let mut run = Run { outcomes: Vec::with_capacity(entries.len()), members_changed: false, is_visible: false };
    let Some(last) = entries.last() else { return Ok(run) };
    let mut txn = store.begin();
    for entry in entries {
        let outcome = match &entry.payload {
            EntryPayload::Blank => None,
            EntryPayload::Normal(command) => {
                let command = Command::decode(command.0.clone()).map_err(io::Error::other)?;
                run.members_changed |= changes_members(&command);
                run.is_visible |= !matches!(command.command, Some(Kind::Purge(_)));
                Some(state::apply(&mut txn, entry.log_id.index, &command).map_err(broken)?)
            }
            EntryPayload::Membership(membership) => {
                if membership.get_joint_config().len() > 1 {
                    failpoint_io("members.joint")?;
                }
                let stored = StoredMembership::new(Some(entry.log_id), membership.clone());
                txn.put(Table::Meta, MEMBERSHIP, types::stored_membership_to_wire(&stored).encode_to_vec());
                None
            }
        };
        run.outcomes.push(outcome);
    }
    txn.put(Table::Meta, APPLIED, types::log_id_to_wire(&last.log_id).encode_to_vec());
    failpoint_io("state.commit")?;
    let commit = |step: &mut dyn FnMut() -> Result<(), StoreError>| match (step(), space) {
        // Nothing was written: RocksDB refuses everything until a flush that found no room has succeeded.
        (Err(error), Some(space)) if is_out_of_space(&error) => blocking(|| space.wait_for_room("the state", step)),
        (done, _) => done,
    };
    let listened = invalidations.filter(|invalidations| run.is_visible && invalidations.has_subscribers());
    // A row that cannot be read is no reason to fail: replicas without subscribers do not read it, and commit.
    let published = listened.map(|to| (to, txn.visible_changes(entries.len() == 1).unwrap_or(Changes::All)));
    store.commit_by(txn, commit).map_err(broken)?;
    if let Some((to, changes)) = published {
        to.publish(changes);
    }
    Ok(run)
}

impl Handle {
    /// Where clients subscribe to the changes that are applied here; `None` while the disk belongs to no cluster.
    pub fn invalidations(&self) -> Option<Arc<Invalidations>> {
        self.opened().map(|opened| opened.machine.0.invalidations.clone())
    }
}

/// `first` and what is ready behind it, bounded in entries and bytes.
pub(super) fn ready_chunk<S: Stream<Item = ChunkItem> + Unpin>(first: ChunkItem, entries: &mut S) -> Vec<ChunkItem> {
    let mut bytes = payload_bytes(&first);
    let mut chunk = vec![first];
    while chunk.len() < CHUNK_ENTRIES
        && bytes < CHUNK_BYTES
        && let Some(Some(item)) = entries.next().now_or_never()
    {
        bytes += payload_bytes(&item);
        chunk.push(item);
    }
    chunk
}

fn payload_bytes(item: &ChunkItem) -> usize {
    match item {
        Ok((entry, _)) => match &entry.payload {
            EntryPayload::Normal(command) => command.0.len(),
            _ => 0,
        },
        Err(_) => 0,
    }
}

fn changes_members(command: &Command) -> bool {
    matches!(
        command.command,
        Some(
            Kind::Found(_)
                | Kind::AdmitMember(_)
                | Kind::RecordBoot(_)
                | Kind::RetireMember(_)
                | Kind::ExpectMembers(_)
                | Kind::RemoveMembers(_)
                | Kind::PromoteMember(_)
        )
    )
}

/// The log id and the membership that `store` has applied last.
pub(super) fn read_applied(store: &Store) -> io::Result<(Option<LogId>, StoredMembership)> {
    let view = store.view();
    let applied = match view.get(Table::Meta, APPLIED).map_err(broken)? {
        Some(row) => Some(types::log_id_from_wire(&wire::LogId::decode(row).map_err(io::Error::other)?)),
        None => None,
    };
    let membership = match view.get(Table::Meta, MEMBERSHIP).map_err(broken)? {
        Some(row) => {
            let stored = wire::StoredMembership::decode(row).map_err(io::Error::other)?;
            types::stored_membership_from_wire(&stored).map_err(io::Error::other)?
        }
        None => StoredMembership::default(),
    };
    Ok((applied, membership))
}
