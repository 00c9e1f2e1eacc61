//! What the kernel has open, here and from the process that served the mount before.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::client::OpenFile;
use crate::client::readahead::Readahead;

use super::directory::Directory;
use super::saved::{Open, Saved};

/// An open file: one version, for as long as it is open.
#[derive(Debug)]
pub(super) struct FileHandle {
    pub(super) inode: u64,
    pub(super) file: Arc<OpenFile>,
    pub(super) readahead: Mutex<Readahead>,
    /// The same content under the path it has now, where that is known to be another.
    moved: Mutex<Option<Arc<OpenFile>>>,
    /// Cannot have written anything.
    only_reads: AtomicBool,
}

impl FileHandle {
    fn new(inode: u64, file: Arc<OpenFile>) -> Arc<FileHandle> {
        Arc::new(FileHandle {
            inode,
            file,
            readahead: Mutex::default(),
            moved: Mutex::default(),
            only_reads: AtomicBool::new(false),
        })
    }

    /// Notes that nothing is written through it: its close stores nothing that others have written.
    pub(super) fn reads_only(&self) {
        self.only_reads.store(true, Ordering::Relaxed);
    }

    /// True if it may have something to store when it is closed.
    pub(super) fn may_write(&self) -> bool {
        !self.only_reads.load(Ordering::Relaxed)
    }

    /// What to read from where nothing is at hand.
    pub(super) fn current(&self) -> Arc<OpenFile> {
        lock(&self.moved).as_ref().unwrap_or(&self.file).clone()
    }

    /// The file has another path since it was opened.
    pub(super) fn has_moved(&self, to: Arc<OpenFile>) {
        *lock(&self.moved) = Some(to);
    }

    fn open(&self) -> Open {
        Open::File { inode: self.inode, version: self.file.source.version }
    }
}

/// Numbers given to the kernel, and what they stand for.
#[derive(Debug)]
pub(super) struct Handles {
    next: AtomicU64,
    files: Mutex<HashMap<u64, Arc<FileHandle>>>,
    directories: Mutex<HashMap<u64, Arc<Directory>>>,
    /// Where it is noted for the next process, if one may take over.
    saved: OnceLock<Arc<Saved>>,
    /// What the process before had open and nobody has used since.
    inherited: Mutex<HashMap<u64, Open>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Handles {
    pub(super) fn new() -> Handles {
        Handles {
            next: AtomicU64::new(1),
            files: Mutex::default(),
            directories: Mutex::default(),
            saved: OnceLock::new(),
            inherited: Mutex::default(),
        }
    }

    /// From now on everything is noted in `saved`; `inherited` is what is open already. To be called before the kernel asks.
    pub(super) fn save_in(&self, saved: Arc<Saved>, inherited: HashMap<u64, Open>) {
        self.next.store(saved.first_handle(), Ordering::Relaxed);
        *lock(&self.inherited) = inherited;
        if self.saved.set(saved).is_err() {
            tracing::error!("open handles are noted in one place only");
        }
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn note(&self, number: u64, open: Open) -> io::Result<()> {
        self.saved.get().map_or(Ok(()), |saved| saved.put(number, open))
    }

    fn forget(&self, number: u64) -> Option<Open> {
        if let Some(saved) = self.saved.get() {
            saved.remove(number);
        }
        lock(&self.inherited).remove(&number)
    }

    /// What the process before had open under this number.
    pub(super) fn inherited(&self, number: u64) -> Option<Open> {
        lock(&self.inherited).get(&number).copied()
    }

    /// *Errors*: when it cannot be noted for the next process.
    pub(super) fn add_file(&self, inode: u64, file: Arc<OpenFile>) -> io::Result<u64> {
        let number = self.number();
        let handle = FileHandle::new(inode, file);
        self.note(number, handle.open())?;
        lock(&self.files).insert(number, handle);
        Ok(number)
    }

    /// A file that the process before had open is open here too.
    pub(super) fn adopt_file(&self, number: u64, inode: u64, file: Arc<OpenFile>) -> Arc<FileHandle> {
        lock(&self.files).entry(number).or_insert_with(|| FileHandle::new(inode, file)).clone()
    }

    pub(super) fn file(&self, number: u64) -> Option<Arc<FileHandle>> {
        lock(&self.files).get(&number).cloned()
    }

    /// Closes a file: which one it was.
    pub(super) fn take_file(&self, number: u64) -> Option<Open> {
        let here = lock(&self.files).remove(&number).map(|handle| handle.open());
        let before = self.forget(number);
        here.or(before)
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
