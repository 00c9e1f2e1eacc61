//! What the kernel has open.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::client::OpenFile;
use crate::client::readahead::Readahead;

use super::directory::Directory;

/// An open file: one version, for as long as it is open.
#[derive(Debug)]
pub(super) struct FileHandle {
    pub(super) inode: u64,
    pub(super) file: Arc<OpenFile>,
    pub(super) readahead: Mutex<Readahead>,
}

/// Numbers given to the kernel, and what they stand for.
#[derive(Debug)]
pub(super) struct Handles {
    next: AtomicU64,
    files: Mutex<HashMap<u64, Arc<FileHandle>>>,
    directories: Mutex<HashMap<u64, Arc<Directory>>>,
}

impl Handles {
    pub(super) fn new() -> Handles {
        Handles { next: AtomicU64::new(1), files: Mutex::default(), directories: Mutex::default() }
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn add_file(&self, inode: u64, file: Arc<OpenFile>) -> u64 {
        let number = self.number();
        let handle = Arc::new(FileHandle { inode, file, readahead: Mutex::default() });
        self.files.lock().unwrap_or_else(PoisonError::into_inner).insert(number, handle);
        number
    }

    pub(super) fn file(&self, number: u64) -> Option<Arc<FileHandle>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }

    pub(super) fn take_file(&self, number: u64) -> Option<Arc<FileHandle>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).remove(&number)
    }

    pub(super) fn add_directory(&self, directory: Directory) -> u64 {
        let number = self.number();
        self.directories.lock().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::new(directory));
        number
    }

    pub(super) fn directory(&self, number: u64) -> Option<Arc<Directory>> {
        self.directories.lock().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }

    pub(super) fn take_directory(&self, number: u64) -> Option<Arc<Directory>> {
        self.directories.lock().unwrap_or_else(PoisonError::into_inner).remove(&number)
    }
}
