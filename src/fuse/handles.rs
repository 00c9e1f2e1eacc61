//! The handles that the kernel has open: those of this process, and those restored from the previous process of the
//! mount.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use crate::client::readahead::Readahead;
use crate::runtime::lock;

use super::directory::Directory;
use super::handover_state::{HandoverState, OpenHandle};

/// An open file. A read returns the content of its node: see [`Nodes`](super::nodes::Nodes).
#[derive(Debug)]
pub(super) struct FileHandle {
    pub(super) node: u64,
    pub(super) readahead: Mutex<Readahead>,
    writes: bool,
}

impl FileHandle {
    fn new(node: u64, writes: bool) -> Arc<FileHandle> {
        Arc::new(FileHandle { node, readahead: Mutex::default(), writes })
    }

    /// True if a close of this handle may have content to store. Content that other handles wrote is stored by their
    /// close.
    pub(super) fn may_write(&self) -> bool {
        self.writes
    }
}

/// All handles, by the number that the kernel knows.
#[derive(Debug)]
pub(super) struct Handles {
    next: AtomicU64,
    files: Mutex<HashMap<u64, Arc<FileHandle>>>,
    directories: Mutex<HashMap<u64, Arc<Directory>>>,
    /// Where handles are saved for the next process, if the mount can be handed over.
    handover_state: OnceLock<Arc<HandoverState>>,
    /// Handles of the previous process that were not used since.
    restored: Mutex<HashMap<u64, OpenHandle>>,
}

impl Handles {
    pub(super) fn new() -> Handles {
        Handles {
            next: AtomicU64::new(1),
            files: Mutex::default(),
            directories: Mutex::default(),
            handover_state: OnceLock::new(),
            restored: Mutex::default(),
        }
    }

    /// Saves every handle in `handover_state` from now on; `restored` are the handles that are open already. To be
    /// called before the kernel sends requests.
    pub(super) fn attach_state(&self, handover_state: Arc<HandoverState>, restored: HashMap<u64, OpenHandle>) {
        self.next.store(handover_state.first_handle(), Ordering::Relaxed);
        *lock(&self.restored) = restored;
        if self.handover_state.set(handover_state).is_err() {
            tracing::error!("open handles are noted in one place only");
        }
    }

    /// Returns a handle number that was never used.
    pub(super) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn note(&self, number: u64, open: OpenHandle) -> io::Result<()> {
        self.handover_state.get().map_or(Ok(()), |handover_state| handover_state.put(number, open))
    }

    fn forget(&self, number: u64) -> Option<OpenHandle> {
        if let Some(handover_state) = self.handover_state.get() {
            handover_state.remove(number);
        }
        lock(&self.restored).remove(&number)
    }

    /// The handle that the previous process had open under this number.
    pub(super) fn restored(&self, number: u64) -> Option<OpenHandle> {
        lock(&self.restored).get(&number).copied()
    }

    /// Registers an open file as `number`.
    ///
    /// *Errors*: the handle cannot be saved for the next process.
    pub(super) fn add_file(&self, number: u64, node: u64, version: u64, writes: bool) -> io::Result<()> {
        self.note(number, OpenHandle::File { node, version, writes })?;
        lock(&self.files).insert(number, FileHandle::new(node, writes));
        Ok(())
    }

    /// Saves the new version that the handles of a node stand for.
    pub(super) fn note_version(&self, numbers: &[u64], node: u64, version: u64) {
        for number in numbers {
            let writes = self.file(*number).is_none_or(|handle| handle.may_write());
            if let Err(error) = self.note(*number, OpenHandle::File { node, version, writes }) {
                tracing::warn!(number, %error, "the next process will take an open file for one that was replaced");
            }
        }
    }

    /// Reopens a file that the previous process had open.
    pub(super) fn adopt_file(&self, number: u64, node: u64, writes: bool) -> Arc<FileHandle> {
        lock(&self.files).entry(number).or_insert_with(|| FileHandle::new(node, writes)).clone()
    }

    pub(super) fn file(&self, number: u64) -> Option<Arc<FileHandle>> {
        lock(&self.files).get(&number).cloned()
    }

    /// Closes a file. Returns the node that it was opened through, and whether it may have written.
    pub(super) fn take_file(&self, number: u64) -> Option<(u64, bool)> {
        let here = lock(&self.files).remove(&number).map(|handle| (handle.node, handle.writes));
        let before = self.forget(number);
        here.or(match before {
            Some(OpenHandle::File { node, writes, .. }) => Some((node, writes)),
            _ => None,
        })
    }

    /// Registers an open directory and returns its number.
    pub(super) fn add_directory(&self, directory: Directory) -> io::Result<u64> {
        let number = self.number();
        self.note(number, directory.open())?;
        lock(&self.directories).insert(number, Arc::new(directory));
        Ok(number)
    }

    /// Reopens a directory that the previous process had open.
    pub(super) fn adopt_directory(&self, number: u64, directory: Directory) -> Arc<Directory> {
        lock(&self.directories).entry(number).or_insert_with(|| Arc::new(directory)).clone()
    }

    /// Saves how far a directory was read.
    ///
    /// *Errors*: it cannot be saved for the next process; then the kernel must not get the entries.
    pub(super) fn note_directory(&self, number: u64, directory: &Directory) -> io::Result<()> {
        self.note(number, directory.open())
    }

    pub(super) fn directory(&self, number: u64) -> Option<Arc<Directory>> {
        lock(&self.directories).get(&number).cloned()
    }

    pub(super) fn take_directory(&self, number: u64) {
        lock(&self.directories).remove(&number);
        self.forget(number);
    }
}
