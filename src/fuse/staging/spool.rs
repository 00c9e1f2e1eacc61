//! The staged content of one inode, accounted in bytes: small content in memory, larger content in an unnamed file.
//!
//! Most files are small and are stored right after they were created: to create and remove a second file for each would
//! cost more than to store it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::error::{Error, ErrorKind, Result};
use crate::runtime::{read_lock, write_lock};
use crate::ufs::Content;

/// Most bytes in memory, of one inode and in total.
const FILE_MEMORY_MAX: usize = 128 << 10;
const TOTAL_MEMORY_MAX: u64 = 32 << 20;

/// The staging directory, its limit, and the bytes in use.
#[derive(Debug)]
pub(super) struct StagingQuota {
    pub(super) dir: PathBuf,
    limit: u64,
    used: AtomicU64,
    /// Bytes in use that are in memory.
    memory: AtomicU64,
}

impl StagingQuota {
    pub(super) fn new(dir: PathBuf, limit: u64) -> StagingQuota {
        StagingQuota { dir, limit, used: AtomicU64::new(0), memory: AtomicU64::new(0) }
    }

    fn take(&self, bytes: u64) -> Result<()> {
        let more = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        match self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, more) {
            Ok(_) => Ok(()),
            Err(used) => {
                let limit = self.limit;
                let message =
                    format!("{bytes} bytes more than the {used} that are staged: fuse.staging.size is {limit}");
                Err(Error::new(ErrorKind::NoSpace, message))
            }
        }
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// Accounts for content that grows from `before` to `after` bytes in memory. Returns false if it has to move to a
    /// file.
    fn may_stay(&self, before: usize, after: usize) -> bool {
        if after <= before {
            self.leave_memory(before - after);
            return true;
        }
        let more = |used: u64| Some(used + (after - before) as u64).filter(|sum| *sum <= TOTAL_MEMORY_MAX);
        after <= FILE_MEMORY_MAX && self.memory.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    fn leave_memory(&self, bytes: usize) {
        self.memory.fetch_sub(bytes as u64, Ordering::AcqRel);
    }
}

/// Position of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WritePosition {
    /// This offset.
    At(u64),
    /// The end of the file at the time of the write (`O_APPEND`).
    End,
}

#[derive(Debug)]
enum SpoolData {
    Memory(Vec<u8>),
    File(Arc<File>),
}

/// The content. Writers are serialised by the guard; readers need no guard.
#[derive(Debug)]
pub(crate) struct Spool {
    data: RwLock<SpoolData>,
    length: AtomicU64,
    /// Length of the prefix that is unchanged since [`Spool::watch`].
    unchanged_prefix: AtomicU64,
    growth_notify: Notify,
    quota: Arc<StagingQuota>,
}

impl Spool {
    pub(super) fn new(quota: Arc<StagingQuota>) -> Spool {
        Spool {
            data: RwLock::new(SpoolData::Memory(Vec::new())),
            length: AtomicU64::new(0),
            unchanged_prefix: AtomicU64::new(0),
            growth_notify: Notify::new(),
            quota,
        }
    }

    /// Starts to track the unchanged prefix.
    pub(super) fn watch(&self) {
        self.unchanged_prefix.store(u64::MAX, Ordering::Release);
    }

    /// Length of the prefix that is unchanged since the call of [`Spool::watch`], as far as the content reached then.
    pub(super) fn unchanged_prefix(&self) -> u64 {
        self.unchanged_prefix.load(Ordering::Acquire)
    }

    /// Waits until the content has `length` bytes. For a single waiter; cancel-safe.
    pub(super) async fn reaches(&self, length: u64) {
        while self.length() < length {
            self.growth_notify.notified().await;
        }
    }

    /// Publishes a new length and wakes the waiter.
    fn set_length(&self, length: u64) {
        self.length.store(length, Ordering::Release);
        self.growth_notify.notify_one();
    }

    pub(super) fn length(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    /// Swaps the content with that of another spool.
    pub(super) fn replace_by(&self, other: &Spool) {
        {
            let mut data = write_lock(&self.data);
            let mut theirs = write_lock(&other.data);
            std::mem::swap(&mut *data, &mut *theirs);
        }
        let (length, theirs) = (self.length(), other.length());
        self.unchanged_prefix.store(0, Ordering::Release);
        other.set_length(length);
        self.set_length(theirs);
    }

    pub(super) fn is_in_memory(&self) -> bool {
        matches!(*read_lock(&self.data), SpoolData::Memory(_))
    }

    pub(crate) fn content(&self) -> Content {
        match &*read_lock(&self.data) {
            SpoolData::Memory(bytes) => Content::in_memory(Bytes::copy_from_slice(bytes)),
            SpoolData::File(file) => Content::in_file(file.clone(), self.length()),
        }
    }

    /// Up to `size` bytes; fewer at the end.
    ///
    /// *Errors*: the disk's.
    pub(super) fn read(&self, offset: u64, size: u32) -> Result<Vec<u8>> {
        let file = match &*read_lock(&self.data) {
            SpoolData::Memory(bytes) => {
                let begin = usize::try_from(offset).map_or(bytes.len(), |offset| offset.min(bytes.len()));
                let end = begin.saturating_add(usize::try_from(size).unwrap_or(usize::MAX)).min(bytes.len());
                return Ok(bytes[begin..end].to_vec());
            }
            SpoolData::File(file) => file.clone(),
        };
        let wanted = self.length().saturating_sub(offset).min(u64::from(size));
        let mut bytes = vec![0; usize::try_from(wanted).unwrap_or(0)];
        let mut filled = 0;
        while filled < bytes.len() {
            match file.read_at(&mut bytes[filled..], offset + filled as u64) {
                // The file was truncated concurrently.
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    /// Applies `change` to content in memory if it may stay there with `length` bytes, zero-filled. Otherwise moves it
    /// to a file, and returns the file, which the caller has to change.
    fn change(&self, length: u64, change: impl FnOnce(&mut [u8])) -> Result<Option<Arc<File>>> {
        let mut data = write_lock(&self.data);
        let bytes = match &mut *data {
            SpoolData::File(file) => return Ok(Some(file.clone())),
            SpoolData::Memory(bytes) => bytes,
        };
        let wanted = usize::try_from(length).unwrap_or(usize::MAX);
        if self.quota.may_stay(bytes.len(), wanted) {
            bytes.resize(wanted, 0);
            change(bytes);
            return Ok(None);
        }
        let dir = &self.quota.dir;
        let failed = |error: io::Error| Error::from(error).context(format!("fuse.staging.dir {}", dir.display()));
        let file = tempfile::tempfile_in(dir).map_err(failed)?;
        file.write_all_at(bytes, 0).map_err(failed)?;
        self.quota.leave_memory(bytes.len());
        let file = Arc::new(file);
        *data = SpoolData::File(file.clone());
        Ok(Some(file))
    }

    /// Writes; a gap before it reads as zeros.
    ///
    /// *Errors*: `NoSpace`, with nothing changed; those of the disk, after which only bytes that were to be overwritten
    /// may differ.
    pub(crate) fn write(&self, place: WritePosition, data: &[u8]) -> Result<()> {
        let before = self.length();
        let offset = match place {
            WritePosition::At(offset) => offset,
            WritePosition::End => before,
        };
        let end = offset.checked_add(data.len() as u64).filter(|end| i64::try_from(*end).is_ok());
        let end = end.ok_or_else(|| Error::invalid(format!("no file can have a byte at {offset}")))?;
        let growth = end.saturating_sub(before);
        self.quota.take(growth)?;
        if offset < before {
            self.unchanged_prefix.fetch_min(offset, Ordering::AcqRel);
        }
        if let Err(error) = self.write_at(offset, data, before) {
            self.quota.give_back(growth);
            return Err(error.context("staging"));
        }
        if growth > 0 {
            self.set_length(end);
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8], before: u64) -> Result<()> {
        let end = offset + data.len() as u64;
        let over = |bytes: &mut [u8]| {
            // The vector has the length of the content.
            let begin = usize::try_from(offset).unwrap_or(usize::MAX);
            bytes[begin..begin + data.len()].copy_from_slice(data);
        };
        let Some(file) = self.change(before.max(end), over)? else { return Ok(()) };
        let written = file.write_all_at(data, offset);
        // Bytes behind the end must read as zeros when the end moves over them.
        if written.is_err()
            && end > before
            && let Err(second) = file.set_len(before)
        {
            tracing::error!(error = %second, "a staged file is longer than it should be");
        }
        Ok(written?)
    }

    /// Sets the length; what is new reads as zeros.
    ///
    /// *Errors*: `NoSpace`; those of the disk, with nothing changed.
    pub(crate) fn resize(&self, length: u64) -> Result<()> {
        let before = self.length();
        let growth = length.saturating_sub(before);
        self.quota.take(growth)?;
        self.unchanged_prefix.fetch_min(length, Ordering::AcqRel);
        let resized = match self.change(length, |_| ()) {
            Ok(Some(file)) => file.set_len(length).map_err(Error::from),
            done => done.map(drop),
        };
        if let Err(error) = resized {
            self.quota.give_back(growth);
            return Err(error.context("staging"));
        }
        self.set_length(length);
        self.quota.give_back(before.saturating_sub(length));
        Ok(())
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.quota.give_back(self.length());
        if let SpoolData::Memory(bytes) = self.data.get_mut().unwrap_or_else(PoisonError::into_inner) {
            self.quota.leave_memory(bytes.len());
        }
    }
}
