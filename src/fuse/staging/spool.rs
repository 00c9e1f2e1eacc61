//! One file without a name, whose bytes are counted.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, ErrorKind, Result};
use crate::ufs::Content;

/// Numbers files of this process for the moment in which they have a name.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Bytes of all files together, and how many they may be.
#[derive(Debug)]
pub(super) struct Budget {
    limit: u64,
    used: AtomicU64,
}

impl Budget {
    pub(super) fn new(limit: u64) -> Budget {
        Budget { limit, used: AtomicU64::new(0) }
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
}

/// A new file that has no name, or only for a moment where the file system cannot do without.
fn unnamed(dir: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    match options.clone().custom_flags(libc::O_TMPFILE).open(dir) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::ENOENT)) => {}
        opened => return opened,
    }
    let path = dir.join(format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    let file = options.create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// Where a write goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// To this offset.
    At(u64),
    /// To the end, wherever that is by then.
    End,
}

/// The file. Whoever changes it does so alone; readers need not care.
#[derive(Debug)]
pub(crate) struct Spool {
    file: Arc<File>,
    length: AtomicU64,
    budget: Arc<Budget>,
}

impl Spool {
    pub(super) fn new(dir: &Path, budget: Arc<Budget>) -> Result<Spool> {
        let failed = |error: io::Error| Error::from(error).context(format!("fuse.staging.dir {}", dir.display()));
        let file = unnamed(dir).map_err(failed)?;
        Ok(Spool { file: Arc::new(file), length: AtomicU64::new(0), budget })
    }

    pub(super) fn length(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    pub(crate) fn content(&self) -> Content {
        Content { file: self.file.clone(), length: self.length() }
    }

    /// Up to `size` bytes; fewer at the end.
    pub(super) fn read(&self, offset: u64, size: u32) -> Result<Vec<u8>> {
        let wanted = self.length().saturating_sub(offset).min(u64::from(size));
        let mut bytes = vec![0; usize::try_from(wanted).unwrap_or(0)];
        let mut filled = 0;
        while filled < bytes.len() {
            match self.file.read_at(&mut bytes[filled..], offset + filled as u64) {
                // Cut off at this very moment.
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    /// Writes; a gap before it reads as zeros.
    ///
    /// *Errors*: `NoSpace`: then nothing has changed but bytes that were to be written over; the disk's.
    pub(crate) fn write(&self, place: Place, data: &[u8]) -> Result<()> {
        let before = self.length();
        let offset = match place {
            Place::At(offset) => offset,
            Place::End => before,
        };
        let end = offset.checked_add(data.len() as u64).filter(|end| i64::try_from(*end).is_ok());
        let end = end.ok_or_else(|| Error::invalid(format!("no file can have a byte at {offset}")))?;
        let growth = end.saturating_sub(before);
        self.budget.take(growth)?;
        if let Err(error) = self.file.write_all_at(data, offset) {
            self.budget.give_back(growth);
            // What lies behind the end must read as zeros when the end moves over it.
            if growth > 0
                && let Err(second) = self.file.set_len(before)
            {
                tracing::error!(error = %second, "a staged file is longer than it should be");
            }
            return Err(Error::from(error).context("staging"));
        }
        if growth > 0 {
            self.length.store(end, Ordering::Release);
        }
        Ok(())
    }

    /// Sets the length; what is new reads as zeros.
    ///
    /// *Errors*: `NoSpace`; the disk's: then nothing has changed.
    pub(crate) fn resize(&self, length: u64) -> Result<()> {
        let before = self.length();
        let growth = length.saturating_sub(before);
        self.budget.take(growth)?;
        if let Err(error) = self.file.set_len(length) {
            self.budget.give_back(growth);
            return Err(Error::from(error).context("staging"));
        }
        self.length.store(length, Ordering::Release);
        self.budget.give_back(before.saturating_sub(length));
        Ok(())
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.budget.give_back(self.length());
    }
}
