//! The Raft log: our own segmented file log.
//!
//! One thread writes everything (entries, votes, truncations, purges) into one stream of frames and syncs once for all
//! that waits, so the order of votes and entries on disk is the order openraft asked for. What is in memory: where each
//! entry stands, and the newest entries up to a bound. See the decision on the file log for why it is not RocksDB.

mod frame;
mod index;
mod recovery;
mod thread;
mod writer;

use std::collections::VecDeque;
use std::fmt::Debug;
use std::fs;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use futures::Stream;
use jindofs_proto::raft::v1 as wire;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use prost::Message;
use tokio::sync::{oneshot, watch};

use crate::runtime::planted::{PlantedFault, is_planted};

use super::disk_space::DiskSpace;
use super::types::{self, Entry, LogId, TypeConfig, Vote};
use crate::master::raft::queue::QueueBound;
use index::{LogIndex, Place};
pub(crate) use recovery::{LogStamp, Recovered, recover};
use thread::WriterThread;
use writer::{Op, Writer};

/// Most bytes of entries handed to replication at once.
const READ_BYTES_MAX: u64 = 1 << 20;

/// A cheap handle on the log.
#[derive(Debug, Clone)]
pub(crate) struct LogStore {
    index: Arc<Mutex<LogIndex>>,
    // Unbounded by itself: `queue` bounds the entries in it, and everything else is small and awaited.
    ops: Sender<Op>,
    thread: WriterThread,
    flushed: watch::Sender<u64>,
    /// Index of the last entry the state machine has applied; a truncation below it is refused.
    applied: Arc<OnceLock<watch::Receiver<u64>>>,
    queue: QueueBound,
}

fn lock(index: &Mutex<LogIndex>) -> MutexGuard<'_, LogIndex> {
    index.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LogStore {
    /// Goes on with a log that was read, or begins it in `dir`, for the start that `stamp` names. Whether the log belongs
    /// to that start must have been decided before.
    ///
    /// *Durability*: everything that was read, and the stamp, are on disk on return.
    pub(crate) fn start(
        dir: &Path,
        recovered: Recovered,
        stamp: LogStamp,
        space: Arc<DiskSpace>,
    ) -> io::Result<LogStore> {
        fs::create_dir_all(dir)?;
        if let Some(parent) = dir.parent() {
            crate::runtime::sync_dir(parent)?;
        }
        recovered.settle()?;
        let flushed = watch::Sender::new(recovered.index.flushed);
        let index = Arc::new(Mutex::new(recovered.index));
        let writer = Writer::open(dir.to_path_buf(), index.clone(), recovered.tail, stamp, flushed.clone(), space)?;
        let (ops, inbox) = channel();
        let thread = WriterThread::start(writer, inbox)?;
        Ok(LogStore { index, ops, thread, flushed, applied: Arc::default(), queue: QueueBound::new() })
    }

    /// Index up to which the log is on this disk.
    pub(crate) fn flushed_index(&self) -> u64 {
        *self.flushed.borrow()
    }

    /// Follows [`LogStore::flushed_index`].
    pub(crate) fn flushed(&self) -> watch::Receiver<u64> {
        self.flushed.subscribe()
    }

    /// Lets truncations below what is applied be refused.
    pub(crate) fn guard_applied(&self, applied: watch::Receiver<u64>) {
        // A second call names the same state machine.
        let _ = self.applied.set(applied);
    }

    /// The newest log id on this disk.
    pub(crate) fn last_log_id(&self) -> Option<LogId> {
        lock(&self.index).last()
    }

    /// The newest log id this disk knows to be committed.
    pub(crate) fn committed(&self) -> Option<LogId> {
        lock(&self.index).committed
    }

    /// The newest log id that was purged: the log begins behind it.
    pub(crate) fn purged(&self) -> Option<LogId> {
        lock(&self.index).purged
    }

    /// Bytes of entries after `index`.
    pub(crate) fn bytes_after(&self, index: u64) -> u64 {
        lock(&self.index).bytes_after(index)
    }

    /// The highest index whose purge leaves at least `keep` bytes of log.
    pub(crate) fn purge_point(&self, keep: u64) -> Option<u64> {
        lock(&self.index).purge_point(keep)
    }

    /// The newest membership in the log that is not yet purged.
    pub(crate) fn newest_membership(&self) -> io::Result<Option<types::Membership>> {
        let Some(index) = lock(&self.index).newest_membership() else { return Ok(None) };
        let entry = self.read(index, index + 1, u64::MAX)?.pop();
        Ok(entry.and_then(|entry| match entry.payload {
            openraft::EntryPayload::Membership(membership) => Some(membership),
            _ => None,
        }))
    }

    /// Writes out and syncs everything that waits.
    pub(crate) async fn close(&self) {
        // The writer is gone only if the process is ending anyway.
        let _ = self.ask(Op::Close).await;
    }

    fn send(&self, op: Op) -> io::Result<()> {
        self.ops.send(op).map_err(|_| io::Error::other("the log writer has stopped"))?;
        self.thread.wake();
        Ok(())
    }

    async fn ask(&self, op: impl FnOnce(oneshot::Sender<()>) -> Op) -> io::Result<()> {
        let (done, wait) = oneshot::channel();
        self.send(op(done))?;
        wait.await.map_err(|_| io::Error::other("the log writer has stopped"))
    }

    /// Entries from `start` on, as far as they are there, until `end` or until `bytes_max` are reached.
    pub(crate) fn read(&self, start: u64, end: u64, bytes_max: u64) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        for index in start..end {
            let found = {
                let log = lock(&self.index);
                match log.slot(index) {
                    None => None,
                    Some(slot) => match (&slot.cached, slot.place) {
                        (Some(entry), _) => Some(Found::Entry(entry.clone(), entry_bytes(entry))),
                        (None, Some(place)) => {
                            let file = log.files.get(&place.segment).cloned();
                            Some(Found::Place(file.ok_or_else(|| io::Error::other("segment is gone"))?, place))
                        }
                        (None, None) => return Err(io::Error::other("entry is neither cached nor written")),
                    },
                }
            };
            let entry = match found {
                None => break,
                Some(Found::Entry(entry, length)) => {
                    bytes += length;
                    entry
                }
                Some(Found::Place(file, place)) => {
                    bytes += u64::from(place.length);
                    read_entry(&file, place, index)?
                }
            };
            entries.push(entry);
            if bytes >= bytes_max {
                break;
            }
        }
        Ok(entries)
    }
}

impl LogStore {
    /// Index behind the newest entry, purged ones included.
    fn end_index(&self) -> u64 {
        lock(&self.index).next_index().unwrap_or(0)
    }

    /// `range` as indexes; a side without a bound ends with the log.
    fn asked(&self, range: &impl RangeBounds<u64>) -> Range<u64> {
        let held = lock(&self.index).range();
        let start = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index.saturating_add(1),
            Bound::Unbounded => held.start,
        };
        let end = match range.end_bound() {
            Bound::Included(index) => index.saturating_add(1),
            Bound::Excluded(index) => *index,
            Bound::Unbounded => held.end,
        };
        start..end
    }
}

enum Found {
    Entry(Entry, u64),
    Place(Arc<fs::File>, Place),
}

fn entry_bytes(entry: &Entry) -> u64 {
    match &entry.payload {
        openraft::EntryPayload::Normal(command) => command.0.len() as u64 + 32,
        _ => 256,
    }
}

fn read_entry(file: &fs::File, place: Place, index: u64) -> io::Result<Entry> {
    let length = place.length as usize;
    let mut data = vec![0; frame::frame_bytes(length)];
    file.read_exact_at(&mut data, place.offset - frame::HEADER as u64)?;
    let frame::Parsed::Frame(found) = frame::parse(&data, 0, place.segment) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("log entry {index} no longer matches its checksum"),
        ));
    };
    let entry = wire::Entry::decode(found.payload).map_err(io::Error::other)?;
    types::entry_from_wire(entry).map_err(io::Error::other)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (asked, held) = (self.asked(&range), lock(&self.index).range());
        self.read(asked.start.max(held.start), asked.end.min(held.end), u64::MAX)
    }

    async fn entries_stream<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend {
        let (log, asked) = (self.clone(), self.asked(&range));
        // Apply asks for everything that is committed: what is read at once is bounded in bytes.
        futures::stream::unfold((asked.start, VecDeque::new()), move |(mut next, mut ready)| {
            let (log, end) = (log.clone(), asked.end);
            async move {
                if ready.is_empty() && next < end {
                    match log.read(next, end, READ_BYTES_MAX) {
                        // Behind the end of the log, as the contract of the stream wants it.
                        Ok(entries) if entries.is_empty() && next >= log.end_index() => return None,
                        // An entry that is left out would never be applied: the replicas would differ from here on.
                        Ok(entries) if entries.is_empty() => {
                            let error = io::Error::other(format!("entry {next} is not in the raft log"));
                            return Some((Err(error), (end, ready)));
                        }
                        Ok(entries) => ready.extend(entries),
                        Err(error) => return Some((Err(error), (end, ready))),
                    }
                    next += ready.len() as u64;
                }
                let entry: Entry = ready.pop_front()?;
                Some((Ok(entry), (next, ready)))
            }
        })
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(lock(&self.index).vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, READ_BYTES_MAX)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let index = lock(&self.index);
        Ok(LogState { last_purged_log_id: index.purged, last_log_id: index.last() })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let vote = *vote;
        self.ask(|done| Op::Vote(vote, done)).await?;
        lock(&self.index).vote = Some(vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let Some(id) = committed else { return Ok(()) };
        lock(&self.index).committed = Some(id);
        self.send(Op::Committed(id))
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(lock(&self.index).committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let room = self.queue.take(entries.iter().map(entry_bytes).sum()).await;
        {
            let mut index = lock(&self.index);
            for entry in &entries {
                index.push(entry.log_id, entry_bytes(entry), Some(entry.clone()), None);
                if matches!(entry.payload, openraft::EntryPayload::Membership(_)) {
                    index.note_membership(entry.log_id.index);
                }
            }
        }
        self.send(Op::Append(entries, callback, room))
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let last = last_log_id.map_or(0, |id| id.index);
        let applied = self.applied.get().map_or(0, |applied| *applied.borrow());
        if applied > last && !is_planted(PlantedFault::NoTruncationGuard) {
            // What is applied was committed. A leader that wants it gone leads another history than this replica holds:
            // the error stops Raft here, and the process ends.
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a leader asks to truncate the raft log to entry {last}, but entry {applied} is applied here"),
            ));
        }
        {
            let mut index = lock(&self.index);
            index.truncate_after(last_log_id);
            self.flushed.send_replace(index.flushed);
        }
        self.ask(|done| Op::Truncate(last_log_id, done)).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        lock(&self.index).purge(log_id);
        self.ask(|done| Op::Purge(log_id, done)).await
    }
}

#[cfg(test)]
mod tests;
