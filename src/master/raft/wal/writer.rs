//! The one thread that writes: it takes everything that waits, writes it with one call, syncs once, and only then
//! reports, in order. A disk that fails ends the process: after a failed fsync nobody knows what is on it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::storage::IOFlushed;
use prost::Message;
use tokio::sync::{oneshot, watch};

use crate::master::raft::disk_space::DiskSpace;
use crate::master::raft::queue::QueueRoom;
use crate::master::raft::types::{self, Entry, LogId, TypeConfig, Vote};
use crate::runtime::planted::{PlantedFault, is_planted};
use crate::runtime::{Fail, die, failpoint_io};

use super::frame::{self, Kind};
use super::index::{LogIndex, Place};
use super::lock;
use super::recovery::{LogStamp, Segment, Tail, create_segment, segment_bytes, segment_path};

/// Bytes taken into one write before it is synced.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// How often other threads may run before a batch is closed: what they are about to append shares its sync.
const GATHER: u32 = 2;
/// How long the log must be idle before it notes, unsynced, that everything is durable.
pub(super) const IDLE: Duration = Duration::from_millis(20);

/// What the writer is asked to do.
pub(super) enum Op {
    Append(Vec<Entry>, IOFlushed<TypeConfig>, QueueRoom),
    Vote(Vote, oneshot::Sender<()>),
    Truncate(Option<LogId>, oneshot::Sender<()>),
    Purge(LogId, oneshot::Sender<()>),
    /// Not synced: it only shortens the next start.
    Committed(LogId),
    Close(oneshot::Sender<()>),
}

enum Done {
    Flushed(IOFlushed<TypeConfig>, QueueRoom),
    Told(oneshot::Sender<()>),
}

pub(super) struct Writer {
    dir: PathBuf,
    space: Arc<DiskSpace>,
    /// Until the stamp of this start is written.
    starting: bool,
    index: Arc<Mutex<LogIndex>>,
    segments: Vec<Segment>,
    file: Arc<File>,
    /// Where the next write goes.
    offset: usize,
    next_seq: u64,
    durable_seq: u64,
    marked_seq: u64,
    buffer: Vec<u8>,
    placed: Vec<(LogId, Place)>,
    /// The newest entry of the batch, which is durable once the batch is synced.
    newest: Option<LogId>,
    /// Tells of the index up to which the log is durable. Sent under the lock of `index`, so that it never lags behind a truncation.
    flushed: watch::Sender<u64>,
    stamp: LogStamp,
    done: Vec<Done>,
    dirty: bool,
    /// The writer writes nothing after it has acknowledged the close.
    pub(super) closed: bool,
    vote: Option<Vote>,
    purged: Option<LogId>,
    committed: Option<LogId>,
}

impl Writer {
    /// Goes on behind `tail`, which is durable, for the start that `stamp` names.
    ///
    /// *Errors*: what the file system says, the lack of room included: a start has a ballast to spend.
    ///
    /// *Durability*: the stamp is on disk on return.
    pub(super) fn open(
        dir: PathBuf,
        index: Arc<Mutex<LogIndex>>,
        tail: Tail,
        stamp: LogStamp,
        flushed: watch::Sender<u64>,
        space: Arc<DiskSpace>,
    ) -> io::Result<Writer> {
        let (vote, purged, committed) = {
            let index = lock(&index);
            (index.vote, index.purged, index.committed)
        };
        let fresh = tail.segments.is_empty();
        let file = if fresh {
            Arc::new(create_segment(&dir, 0)?)
        } else {
            let number = tail.segments.last().map_or(0, |segment| segment.number);
            let known = lock(&index).files.get(&number).cloned();
            known.ok_or_else(|| io::Error::other("the last segment is not open"))?
        };
        let segments = if fresh { vec![Segment { number: 0, last_index: None }] } else { tail.segments };
        let mut writer = Writer {
            dir,
            space,
            starting: true,
            index,
            segments,
            file,
            offset: tail.offset,
            next_seq: tail.next_seq,
            durable_seq: tail.next_seq.saturating_sub(1),
            marked_seq: 0,
            buffer: Vec::new(),
            placed: Vec::new(),
            newest: None,
            flushed,
            stamp,
            done: Vec::new(),
            dirty: false,
            closed: false,
            vote,
            purged,
            committed,
        };
        if writer.offset == 0 {
            writer.begin_segment()?;
        } else {
            writer.put(Kind::Boot, &stamp.boot.to_be_bytes())?;
            writer.write()?;
            writer.sync()?;
        }
        writer.starting = false;
        Ok(writer)
    }

    /// Runs until the log is closed or every sender is gone.
    pub(super) fn run(mut self, ops: &Receiver<Op>) {
        loop {
            let op = match ops.recv_timeout(IDLE) {
                Ok(op) => op,
                Err(RecvTimeoutError::Timeout) => {
                    self.attempt(Writer::mark);
                    match ops.recv() {
                        Ok(op) => op,
                        Err(_) => return,
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            self.attempt(|writer| writer.take_batch(op, ops));
            if self.closed {
                return;
            }
        }
    }

    pub(super) fn attempt(&mut self, step: impl FnOnce(&mut Writer) -> io::Result<()>) {
        if let Err(error) = step(self) {
            die(&format!("the raft log in {} cannot be written: {error}", self.dir.display()));
        }
    }

    pub(super) fn take_batch(&mut self, first: Op, ops: &Receiver<Op>) -> io::Result<()> {
        self.put_mark();
        let mut next = Some(first);
        let mut gather = GATHER;
        while let Some(op) = next {
            self.take(op)?;
            if self.closed {
                break;
            }
            next = if self.buffer.len() < BATCH_BYTES_MAX { ops.try_recv().ok() } else { None };
            if next.is_none() && gather > 0 {
                gather -= 1;
                std::thread::yield_now();
                next = ops.try_recv().ok();
            }
        }
        self.flush()
    }

    fn take(&mut self, op: Op) -> io::Result<()> {
        match op {
            Op::Append(entries, callback, room) => {
                for entry in &entries {
                    self.put_entry(entry)?;
                }
                self.finish(Done::Flushed(callback, room));
            }
            Op::Vote(vote, done) => {
                self.vote = Some(vote);
                self.put(Kind::Vote, &types::vote_to_wire(&vote).encode_to_vec())?;
                self.finish_unless(PlantedFault::VoteNotSynced, done);
            }
            Op::Truncate(last, done) => {
                let payload = last.map(|id| types::log_id_to_wire(&id).encode_to_vec()).unwrap_or_default();
                self.put(Kind::Truncate, &payload)?;
                self.finish_unless(PlantedFault::TruncationNotSynced, done);
            }
            Op::Purge(upto, done) => {
                self.purged = Some(upto);
                self.put(Kind::Purge, &types::log_id_to_wire(&upto).encode_to_vec())?;
                self.finish(Done::Told(done));
            }
            Op::Committed(id) => {
                self.committed = Some(id);
                self.put(Kind::Committed, &types::log_id_to_wire(&id).encode_to_vec())?;
            }
            Op::Close(done) => {
                self.closed = true;
                self.finish(Done::Told(done));
            }
        }
        Ok(())
    }

    fn finish(&mut self, done: Done) {
        self.dirty = true;
        self.done.push(done);
    }

    /// Tells once it is synced; at once if tests have put that fault back.
    fn finish_unless(&mut self, fault: PlantedFault, done: oneshot::Sender<()>) {
        match is_planted(fault) {
            true => drop(done.send(())),
            false => self.finish(Done::Told(done)),
        }
    }

    fn put_entry(&mut self, entry: &Entry) -> io::Result<()> {
        let payload = types::entry_to_wire(entry).encode_to_vec();
        self.put(Kind::Entry, &payload)?;
        let log_id = entry.log_id;
        if let Some(segment) = self.segments.last_mut() {
            segment.last_index = segment.last_index.max(Some(log_id.index));
            let end = self.offset + self.buffer.len();
            let offset = end - frame::frame_bytes(payload.len()) + frame::HEADER;
            let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
            self.placed.push((log_id, Place { segment: segment.number, offset: offset as u64, length }));
        }
        self.newest = Some(log_id);
        Ok(())
    }

    fn put(&mut self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        if self.offset + self.buffer.len() + frame::frame_bytes(payload.len()) > segment_bytes() {
            self.roll()?;
        }
        let number = self.segments.last().map_or(0, |segment| segment.number);
        frame::encode(&mut self.buffer, number, self.next_seq, kind, payload);
        self.next_seq += 1;
        Ok(())
    }

    /// Notes in the log what is durable by now, so that recovery can tell a torn tail from a damaged log.
    fn put_mark(&mut self) {
        let room = segment_bytes().saturating_sub(self.offset + self.buffer.len());
        if self.marked_seq < self.durable_seq && room >= frame::frame_bytes(8) {
            self.marked_seq = self.durable_seq;
            let number = self.segments.last().map_or(0, |segment| segment.number);
            let payload = self.durable_seq.to_be_bytes();
            frame::encode(&mut self.buffer, number, self.next_seq, Kind::Durable, &payload);
            self.next_seq += 1;
        }
    }

    pub(super) fn mark(&mut self) -> io::Result<()> {
        self.put_mark();
        self.write()
    }

    fn write(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        failpoint_io("wal.write")?;
        // Only a segment that was made on a full disk grows: the others have all their bytes.
        let write = || self.file.write_all_at(&self.buffer, self.offset as u64);
        self.with_room(write)?;
        self.offset += self.buffer.len();
        self.buffer.clear();
        let mut index = lock(&self.index);
        for (log_id, place) in self.placed.drain(..) {
            index.placed(log_id, place);
        }
        Ok(())
    }

    /// Repeats a step until it finds room. During a start it fails at once instead: the start spends the ballast and retries.
    fn with_room<T>(&self, mut step: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        match self.starting {
            true => step(),
            false => self.space.wait_for_room("the raft log", step),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        if failpoint_io("wal.sync")? != Fail::Skip {
            self.file.sync_data()?;
        }
        self.durable_seq = self.next_seq - 1;
        Ok(())
    }

    /// Writes and, if anyone waits for it, syncs; then tells them.
    fn flush(&mut self) -> io::Result<()> {
        self.write()?;
        if !self.dirty {
            return Ok(());
        }
        self.dirty = false;
        if !is_planted(PlantedFault::AckBeforeSync) {
            self.sync()?;
        }
        failpoint_io("wal.synced")?;
        self.tell_flushed();
        let mut purging = false;
        for done in self.done.drain(..) {
            match done {
                Done::Flushed(callback, room) => {
                    drop(room);
                    callback.io_completed(Ok(()));
                }
                Done::Told(sender) => {
                    purging = true;
                    // The caller may have given up waiting; the work is done all the same.
                    let _ = sender.send(());
                }
            }
        }
        if purging { self.delete_purged() } else { Ok(()) }
    }

    /// Before the callbacks of the batch run: what they set in motion may wait for this.
    fn tell_flushed(&mut self) {
        let newest = self.newest.take();
        let mut index = lock(&self.index);
        if let Some(log_id) = newest {
            index.note_flushed(log_id);
        }
        if let Some(purged) = self.purged {
            index.note_flushed(purged);
        }
        self.flushed.send_replace(index.flushed);
    }

    fn roll(&mut self) -> io::Result<()> {
        self.write()?;
        self.sync()?;
        let number = self.segments.last().map_or(0, |segment| segment.number + 1);
        let create = || create_segment(&self.dir, number);
        self.file = Arc::new(self.with_room(create)?);
        self.segments.push(Segment { number, last_index: None });
        self.offset = 0;
        self.begin_segment()
    }

    /// Every segment begins with all state that is not entries, so that those before it can be deleted.
    fn begin_segment(&mut self) -> io::Result<()> {
        let number = self.segments.last().map_or(0, |segment| segment.number);
        lock(&self.index).files.insert(number, self.file.clone());
        let mut head = Vec::new();
        let mut put = |kind, payload: &[u8]| {
            frame::encode(&mut head, number, self.next_seq, kind, payload);
            self.next_seq += 1;
        };
        put(Kind::Header, &self.stamp.encode());
        if let Some(vote) = &self.vote {
            put(Kind::Vote, &types::vote_to_wire(vote).encode_to_vec());
        }
        for (kind, id) in [(Kind::Purge, self.purged), (Kind::Committed, self.committed)] {
            if let Some(id) = id {
                put(kind, &types::log_id_to_wire(&id).encode_to_vec());
            }
        }
        let write = || self.file.write_all_at(&head, self.offset as u64);
        self.with_room(write)?;
        self.offset += head.len();
        self.sync()
    }

    /// Deletes segments that hold nothing but purged entries, oldest first.
    fn delete_purged(&mut self) -> io::Result<()> {
        let Some(purged) = self.purged else { return Ok(()) };
        while self.segments.len() > 1
            && self.segments.first().is_some_and(|s| s.last_index.is_none_or(|last| last <= purged.index))
        {
            let segment = self.segments.remove(0);
            lock(&self.index).files.remove(&segment.number);
            std::fs::remove_file(segment_path(&self.dir, segment.number))?;
        }
        Ok(())
    }
}
