//! What the kernel has open, here and from the process that served the mount before.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use crate::client::readahead::Readahead;
use crate::runtime::lock;

use super::directory::Directory;
use super::handover_state::{HandoverState, OpenHandle};

/// An open file. What it reads is that of its node: see [`Nodes`](super::nodes::Nodes).
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

    /// True if it may have something to store when it is closed: what others have written is for their close.
    pub(super) fn may_write(&self) -> bool {
        self.writes
    }
}

/// Numbers given to the kernel, and what they stand for.
#[derive(Debug)]
pub(super) struct Handles {
    next: AtomicU64,
    files: Mutex<HashMap<u64, Arc<FileHandle>>>,
    directories: Mutex<HashMap<u64, Arc<Directory>>>,
    /// Where it is noted for the next process, if one may take over.
    handover_state: OnceLock<Arc<HandoverState>>,
    /// What the process before had open and nobody has used since.
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

    /// From now on everything is noted in `handover_state`; `restored` is what is open already. To be called before the kernel asks.
    pub(super) fn attach_state(&self, handover_state: Arc<HandoverState>, restored: HashMap<u64, OpenHandle>) {
        self.next.store(handover_state.first_handle(), Ordering::Relaxed);
        *lock(&self.restored) = restored;
        if self.handover_state.set(handover_state).is_err() {
            tracing::error!("open handles are noted in one place only");
        }
    }

    /// A number that no handle has had.
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

    /// What the process before had open under this number.
    pub(super) fn restored(&self, number: u64) -> Option<OpenHandle> {
        lock(&self.restored).get(&number).copied()
    }

    /// A file is open as `number`.
    ///
    /// *Errors*: when it cannot be noted for the next process.
    pub(super) fn add_file(&self, number: u64, node: u64, version: u64, writes: bool) -> io::Result<()> {
        self.note(number, OpenHandle::File { node, version, writes })?;
        lock(&self.files).insert(number, FileHandle::new(node, writes));
        Ok(())
    }

    /// Handles of a node stand for another version now.
    pub(super) fn note_version(&self, numbers: &[u64], node: u64, version: u64) {
        for number in numbers {
            let writes = self.file(*number).is_none_or(|handle| handle.may_write());
            if let Err(error) = self.note(*number, OpenHandle::File { node, version, writes }) {
                tracing::warn!(number, %error, "the next process will take an open file for one that was replaced");
            }
        }
    }

    /// A file that the process before had open is open here too.
    pub(super) fn adopt_file(&self, number: u64, node: u64, writes: bool) -> Arc<FileHandle> {
        lock(&self.files).entry(number).or_insert_with(|| FileHandle::new(node, writes)).clone()
    }

    pub(super) fn file(&self, number: u64) -> Option<Arc<FileHandle>> {
        lock(&self.files).get(&number).cloned()
    }

    /// Closes a file: the node that it was open through, and whether it may have written.
    pub(super) fn take_file(&self, number: u64) -> Option<(u64, bool)> {
        let here = lock(&self.files).remove(&number).map(|handle| (handle.node, handle.writes));
        let before = self.forget(number);
        here.or(match before {
            Some(OpenHandle::File { node, writes, .. }) => Some((node, writes)),
            _ => None,
        })
    }

    /// *Errors*: when it cannot be noted for the next process.
    pub(super) fn add_directory(&self, directory: Directory) -> io::Result<u64> {
        let number = self.number();
        self.note(number, directory.open())?;
        lock(&self.directories).insert(number, Arc::new(directory));
        Ok(number)
    }

    /// A directory that the process before had open is open here too.
    pub(super) fn adopt_directory(&self, number: u64, directory: Directory) -> Arc<Directory> {
        lock(&self.directories).entry(number).or_insert_with(|| Arc::new(directory)).clone()
    }

    /// More of a directory was read.
    ///
    /// *Errors*: when it cannot be noted for the next process; then the kernel must not be given it.
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
