//! What the room on the disk decides about the log and the state: the log is compacted earlier than its size asks for, or
//! later, and a small disk gets small buffers.

use std::io;
use std::time::Duration;

use metrics::counter;
use tokio::sync::watch;

use super::disk_space::{DiskSpace, is_out_of_space};
use super::node::Running;
use super::state_machine::StateMachine;
use crate::config::MasterConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::master::store::StoreOptions;
use crate::runtime::memory_bytes;

/// How often it is looked whether the log should be compacted.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Pause after a snapshot that could not be made.
pub(super) const RETRY_DELAY: Duration = Duration::from_secs(10);
/// Bytes of log that are not worth a snapshot: two segments.
const LOG_BYTES_MIN: u64 = 32 << 20;
/// Bytes of log kept for followers that lag, when there is little room. Others get the snapshot.
const KEEP_BYTES: u64 = 1 << 20;
/// Bytes a snapshot needs besides what is flushed for it: manifest and options.
const SNAPSHOT_ROOM: u64 = 2 << 20;
/// Bytes that must be left while a snapshot is received.
const RECEIVE_ROOM: u64 = 8 << 20;

/// Builds a snapshot and purges the log behind it while the disk has little room and the log takes much of it. The usual
/// settings let the log grow to hundreds of megabytes, which a small disk does not have.
pub(super) async fn compact_when_low(running: &Running, space: &DiskSpace) {
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        if !space.usage().is_low() || running.log.bytes_after(0) < LOG_BYTES_MIN {
            continue;
        }
        match running.snapshot(Some(KEEP_BYTES)).await {
            Ok((index, purged)) => tracing::info!(index, purged, "log compacted: the disk has little room"),
            Err(error) => tracing::warn!(%error, "log not compacted although the disk has little room"),
        }
        if running.log.bytes_after(0) >= LOG_BYTES_MIN {
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }
}

/// The memory of the state store: as configured, or what fits this machine and the ballast on its disk.
pub(super) fn store_options(config: &MasterConfig, space: &DiskSpace) -> StoreOptions {
    let fitting = StoreOptions::fitting(memory_bytes(), space.spare_bytes());
    let given = |bytes: u64, fitting: usize| match usize::try_from(bytes) {
        Ok(0) | Err(_) => fitting,
        Ok(bytes) => bytes,
    };
    StoreOptions {
        block_cache_bytes: given(config.block_cache_bytes, fitting.block_cache_bytes),
        write_buffer_bytes: given(config.write_buffer_bytes, fitting.write_buffer_bytes),
    }
}

impl StateMachine {
    /// Counts a snapshot that found no room; false for any other.
    pub(super) fn note_given_up<T>(&self, built: &io::Result<T>) -> bool {
        let is_full = built.as_ref().is_err_and(is_out_of_space);
        if is_full {
            self.0.given_up.send_modify(|count| *count += 1);
            counter!("jindofs_master_snapshots_given_up_total").increment(1);
        }
        is_full
    }

    /// Changes with every snapshot that was begun and found no room.
    pub(crate) fn snapshots_given_up(&self) -> watch::Receiver<u64> {
        self.0.given_up.subscribe()
    }

    /// Refuses a snapshot or a flush that would find no room, of a state that has changed by `bytes` of log.
    ///
    /// *Errors*: `NoSpace`.
    pub(crate) fn check_room_for_snapshot(&self, bytes: u64) -> Result<()> {
        // An entry changes several rows, each larger than it.
        let unflushed = bytes.saturating_mul(8).min(self.0.options.write_buffer_bytes as u64);
        self.0.space.check_room("a snapshot", unflushed + SNAPSHOT_ROOM)
    }

    /// True while the disk has so little room that the log should be short.
    pub(crate) fn is_room_low(&self) -> bool {
        self.0.space.usage().is_low()
    }

    /// True while the log or the state of this member waits for room on its disk.
    pub(crate) fn is_waiting_for_room(&self) -> bool {
        self.0.space.waiting() > 0
    }

    /// Refuses to receive more of a snapshot when little room is left, or while this member itself waits for room: it must
    /// not take what RocksDB needs to go on.
    ///
    /// *Errors*: `NoSpace`.
    pub(crate) fn check_room_to_receive(&self) -> Result<()> {
        if self.is_waiting_for_room() {
            return Err(Error::new(
                ErrorKind::NoSpace,
                "this member waits for room on its disk, and receives no snapshot",
            ));
        }
        let flush = self.0.options.write_buffer_bytes as u64;
        self.0.space.check_room("a snapshot that is received", RECEIVE_ROOM + flush)
    }
}
