//! The sending side: files are verified while they are read, within a bound of bytes per second.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jindofs_proto::raft::v1 as wire;
use tokio::sync::{Semaphore, mpsc};

use crate::runtime::{Fail, failpoint, failpoint_io};

use super::{CHUNK_BYTES, SnapshotDir, read_full};

/// How long the log is kept for the target of a transfer that has ended: it may continue, or catch up from the log.
const TRANSFER_GRACE: Duration = Duration::from_secs(30);

/// Most members that a snapshot is lent to at once.
const LENDING_MAX: usize = 2;

/// Spreads work over time: so many bytes per second over all users, 0 for no bound.
#[derive(Debug)]
pub(crate) struct Pace {
    bytes_per_second: u64,
    next: Mutex<Instant>,
}

impl Pace {
    pub(crate) fn new(bytes_per_second: u64) -> Pace {
        Pace { bytes_per_second, next: Mutex::new(Instant::now()) }
    }

    /// Reserves `bytes`; how long to wait before they are due.
    pub(crate) fn reserve(&self, bytes: u64) -> Duration {
        if self.bytes_per_second == 0 {
            return Duration::ZERO;
        }
        let now = Instant::now();
        let at = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let at = (*next).max(now);
            *next = at + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
            at
        };
        at.saturating_duration_since(now)
    }
}

/// The transfers of one member, and what they have moved since its start.
#[derive(Debug)]
pub(crate) struct Transfers {
    pace: Pace,
    targets: Mutex<HashMap<u64, Transfer>>,
    /// Permits to lend a snapshot to a member that asks for it.
    pub(crate) lending: Arc<Semaphore>,
    /// Held while a snapshot is being received.
    pub(crate) receiving: tokio::sync::Mutex<()>,
    /// Bytes of snapshots sent.
    pub(crate) sent: AtomicU64,
    /// Bytes of snapshots received.
    pub(crate) received: AtomicU64,
    /// Bytes of received snapshots that were on this disk already.
    pub(crate) reused: AtomicU64,
    /// Bytes of log that are kept only for members that lag.
    pub(crate) held: AtomicU64,
}

#[derive(Debug)]
struct Transfer {
    index: u64,
    running: bool,
    at: Instant,
}

impl Transfers {
    /// `bytes_per_second` bounds all transfers together, 0 for no bound.
    pub(crate) fn new(bytes_per_second: u64) -> Transfers {
        Transfers {
            pace: Pace::new(bytes_per_second),
            targets: Mutex::default(),
            lending: Arc::new(Semaphore::new(LENDING_MAX)),
            receiving: tokio::sync::Mutex::new(()),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            reused: AtomicU64::new(0),
            held: AtomicU64::new(0),
        }
    }

    /// Notes that the snapshot at `index` is being sent to `target`, until the guard is dropped.
    pub(crate) fn begin(&self, target: u64, index: u64) -> TransferGuard<'_> {
        self.note(target, |transfer| *transfer = Transfer { index, running: true, at: Instant::now() });
        TransferGuard { transfers: self, target }
    }

    fn note(&self, target: u64, change: impl FnOnce(&mut Transfer)) {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        targets.retain(|_, transfer| transfer.is_active());
        change(targets.entry(target).or_insert(Transfer { index: 0, running: false, at: Instant::now() }));
    }

    /// The lowest index of a snapshot that is being sent, or was until a moment ago: the log behind it is needed.
    pub(crate) fn lowest_index(&self) -> Option<u64> {
        let targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        targets.values().filter(|transfer| transfer.is_active()).map(|transfer| transfer.index).min()
    }
}

impl Transfer {
    fn is_active(&self) -> bool {
        self.running || self.at.elapsed() < TRANSFER_GRACE
    }
}

/// See [`Transfers::begin`].
#[derive(Debug)]
pub(crate) struct TransferGuard<'t> {
    transfers: &'t Transfers,
    target: u64,
}

impl Drop for TransferGuard<'_> {
    fn drop(&mut self) {
        self.transfers.note(self.target, |transfer| {
            transfer.running = false;
            transfer.at = Instant::now();
        });
    }
}

/// Why a snapshot was not sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error("the receiver is gone")]
    ReceiverGone,
    #[error("the snapshot is damaged on this disk: {0}")]
    Damaged(String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Sends the files that the receiver lacks, each compared with the manifest, then the end. Blocks the thread; stops when
/// the receiver is gone. A file that does not match its checksum ends the transfer: the receiver never gets the end.
pub(crate) fn send(
    snapshot: &SnapshotDir,
    wanted: &[wire::WantedFile],
    transfers: &Transfers,
    out: &mpsc::Sender<wire::SnapshotChunk>,
) -> Result<(), SendError> {
    for file in wanted {
        send_file(snapshot, file, transfers, out)?;
    }
    let end = wire::snapshot_chunk::Chunk::End(wire::SnapshotEnd {});
    push(out, wire::SnapshotChunk { chunk: Some(end) })
}

/// Waits for room in the queue of a transfer.
///
/// *Errors*: the receiver is gone.
pub(crate) fn push(out: &mpsc::Sender<wire::SnapshotChunk>, chunk: wire::SnapshotChunk) -> Result<(), SendError> {
    #[cfg(test)]
    if crate::runtime::simulated::is_active() {
        return out.try_send(chunk).map_err(|_| SendError::ReceiverGone);
    }
    out.blocking_send(chunk).map_err(|_| SendError::ReceiverGone)
}

fn send_file(
    snapshot: &SnapshotDir,
    wanted: &wire::WantedFile,
    transfers: &Transfers,
    out: &mpsc::Sender<wire::SnapshotChunk>,
) -> Result<(), SendError> {
    let name = &wanted.file;
    let Some(expected) = snapshot.manifest.files.get(name) else {
        return Err(SendError::Io(io::Error::new(io::ErrorKind::InvalidInput, "the receiver asks for a foreign file")));
    };
    let mut file = File::open(snapshot.path.join(name))?;
    let (mut offset, mut crc) = (0, 0);
    loop {
        let mut data = vec![0; CHUNK_BYTES];
        let count = read_full(&mut file, &mut data)?;
        data.truncate(count);
        crc = crc32c::crc32c_append(crc, &data);
        let end = offset + count as u64;
        // What the receiver has is only read, for the checksum of the whole file. An empty file still needs a message.
        let skip = wanted.offset.saturating_sub(offset).min(count as u64);
        data.drain(..usize::try_from(skip).unwrap_or(count));
        if !data.is_empty() || (expected.length == 0 && count == 0) {
            failpoint_io("snapshot.send")?;
            if failpoint("snapshot.wire") == Fail::Error
                && let Some(byte) = data.first_mut()
            {
                *byte ^= 0x40;
            }
            std::thread::sleep(transfers.pace.reserve(data.len() as u64));
            transfers.sent.fetch_add(data.len() as u64, Ordering::Relaxed);
            let chunk = wire::SnapshotData { file: name.clone(), offset: offset + skip, data: data.into() };
            let chunk = wire::SnapshotChunk { chunk: Some(wire::snapshot_chunk::Chunk::Data(chunk)) };
            push(out, chunk)?;
        }
        offset = end;
        if count < CHUNK_BYTES {
            break;
        }
    }
    if (offset, crc) != (expected.length, expected.crc32c) {
        let why = format!("{} does not match its checksum", snapshot.path.join(name).display());
        return Err(SendError::Damaged(why));
    }
    Ok(())
}
