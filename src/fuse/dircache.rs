//! A short-lived cache of directory listings, so that lookups of many names in one directory need one request per
//! thousand names.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use jindofs_proto::v1::{Attr, Entry};
use lru::LruCache;

use crate::runtime::lock;

use super::inodes::Known;

/// Most cached entries of all directories, about 50 MiB.
const ENTRIES_MAX: usize = 200_000;
const DIRECTORIES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);
/// Number of lookups in a directory before the whole directory is listed.
const STREAK: u32 = 4;

/// What the cache says of a name.
#[derive(Debug)]
pub(super) enum CachedName {
    /// The name exists.
    Entry(Box<Known>),
    /// The name does not exist: the listing, begun at this time, is complete.
    Absent(Instant),
    /// The cache does not know.
    Unknown,
}

#[derive(Debug)]
struct Listing {
    since: Instant,
    /// Names, with their attributes if they are known.
    entries: HashMap<Box<[u8]>, Option<Attr>>,
    complete: bool,
    misses: u32,
    /// A listing in progress, and when it began.
    listing: Option<Instant>,
    /// This mount has changed the directory. A program that creates many files looks up each name, and must not cause a
    /// listing each time.
    changed: bool,
}

impl Listing {
    fn new() -> Listing {
        Listing {
            since: Instant::now(),
            entries: HashMap::new(),
            complete: false,
            misses: 0,
            listing: None,
            changed: false,
        }
    }
}

/// The cache.
#[derive(Debug)]
pub(super) struct DirCache {
    inner: Mutex<Listings>,
}

#[derive(Debug)]
struct Listings {
    directories: LruCache<u64, Listing>,
    entries: usize,
    /// Number of changes by this mount.
    changes: u64,
}

impl DirCache {
    pub(super) fn new() -> DirCache {
        DirCache { inner: Mutex::new(Listings { directories: LruCache::sparse(DIRECTORIES), entries: 0, changes: 0 }) }
    }

    /// Number of changes by this mount: a page may be cached if the number has not changed since the page was
    /// requested.
    pub(super) fn changes(&self) -> u64 {
        lock(&self.inner).changes
    }

    /// Invalidates a directory that this mount has changed, including listings in progress.
    pub(super) fn changed(&self, directory: u64) {
        let mut inner = lock(&self.inner);
        inner.changes += 1;
        inner.renew(directory, Listing { changed: true, ..Listing::new() });
    }

    /// Drops the cache of a directory. A listing in progress is ignored.
    pub(super) fn forget(&self, directory: u64) {
        let mut inner = lock(&self.inner);
        if let Some(dropped) = inner.directories.pop(&directory) {
            inner.entries -= dropped.entries.len();
        }
    }

    /// As [`DirCache::forget`], for all directories.
    pub(super) fn clear(&self) {
        let mut inner = lock(&self.inner);
        inner.directories.clear();
        inner.entries = 0;
    }

    /// Inserts a name that this mount has created or changed, without attributes.
    pub(super) fn insert(&self, directory: u64, name: &[u8]) {
        let mut inner = lock(&self.inner);
        inner.changes += 1;
        inner.change(directory, |known| {
            known.entries.insert(name.into(), None);
            known.changed = true;
            true
        });
    }

    /// What is cached of a name, at most `ttl` old.
    pub(super) fn get(&self, directory: u64, name: &[u8], ttl: Duration) -> CachedName {
        let mut inner = lock(&self.inner);
        let Some(known) = inner.directories.get(&directory) else { return CachedName::Unknown };
        if known.since.elapsed() >= ttl {
            return CachedName::Unknown;
        }
        match known.entries.get(name) {
            Some(Some(attr)) => CachedName::Entry(Box::new(Known::new(attr.clone(), known.since))),
            Some(None) => CachedName::Unknown,
            None if known.complete => CachedName::Absent(known.since),
            None => CachedName::Unknown,
        }
    }

    /// Counts a lookup that a master had to answer. Returns true if the whole directory should be listed now.
    pub(super) fn note_miss(&self, directory: u64, ttl: Duration) -> bool {
        let mut inner = lock(&self.inner);
        let known = inner.entry(directory);
        if known.listing.is_some() {
            return false;
        }
        if known.since.elapsed() >= ttl {
            inner.renew(directory, Listing::new());
            return false;
        }
        known.misses += 1;
        let wanted = !known.changed && !known.complete && known.misses >= STREAK;
        if wanted {
            known.listing = Some(Instant::now());
        }
        wanted
    }

    /// Begins a listing. Pages are added with the returned time.
    pub(super) fn begin(&self, directory: u64) -> Instant {
        lock(&self.inner).begin(directory)
    }

    /// Adds a page to the listing begun at `since`; ignored if another listing was begun after it.
    pub(super) fn add(&self, directory: u64, since: Instant, page: &[Entry], end: bool) {
        let mut inner = lock(&self.inner);
        inner.change(directory, |known| {
            if known.listing != Some(since) {
                return false;
            }
            for entry in page {
                if let Some(attr) = &entry.attr {
                    known.entries.insert(entry.name.as_ref().into(), Some(attr.clone()));
                }
            }
            known.complete = end;
            if end {
                known.listing = None;
            }
            true
        });
    }

    /// Inserts the first page of a listing that another caller continues, if this mount has changed nothing since the
    /// page was requested; `asked` are [`DirCache::changes`] and the time of the request.
    pub(super) fn insert_first_page(&self, directory: u64, asked: (u64, Instant), page: &[Entry], end: bool) {
        let since = {
            let mut inner = lock(&self.inner);
            if inner.changes != asked.0 {
                return;
            }
            // As old as the request: invalidations since then apply.
            inner.begin_at(directory, asked.1)
        };
        self.add(directory, since, page, end);
        self.end(directory, since);
    }

    /// Ends a listing that failed or was given up.
    pub(super) fn end(&self, directory: u64, since: Instant) {
        let mut inner = lock(&self.inner);
        if let Some(known) = inner.directories.get_mut(&directory).filter(|known| known.listing == Some(since)) {
            (known.listing, known.misses) = (None, 0);
        }
    }

    /// True if a directory is too large to be cached as a whole.
    pub(super) fn is_full(&self, directory: u64) -> bool {
        let inner = lock(&self.inner);
        inner.directories.peek(&directory).is_none_or(|known| known.entries.len() >= ENTRIES_MAX / 2)
    }
}

impl Listings {
    fn entry(&mut self, directory: u64) -> &mut Listing {
        if !self.directories.contains(&directory)
            && let Some((_, dropped)) = self.directories.push(directory, Listing::new())
        {
            self.entries -= dropped.entries.len();
        }
        self.directories.get_or_insert_mut(directory, Listing::new)
    }

    fn begin(&mut self, directory: u64) -> Instant {
        self.begin_at(directory, Instant::now())
    }

    fn begin_at(&mut self, directory: u64, since: Instant) -> Instant {
        self.renew(directory, Listing { since, listing: Some(since), ..Listing::new() });
        since
    }

    /// Changes the cached listing of a directory. Returns false if there is none or nothing was changed.
    fn change(&mut self, directory: u64, change: impl FnOnce(&mut Listing) -> bool) -> bool {
        let Some(known) = self.directories.get_mut(&directory) else { return false };
        let before = known.entries.len();
        let changed = change(known);
        self.entries = self.entries + known.entries.len() - before;
        self.shrink();
        changed
    }

    /// Replaces the cached listing of a directory.
    fn renew(&mut self, directory: u64, fresh: Listing) {
        let known = self.entry(directory);
        let dropped = std::mem::replace(known, fresh);
        self.entries -= dropped.entries.len();
    }

    fn shrink(&mut self) {
        while self.entries > ENTRIES_MAX {
            let Some((_, dropped)) = self.directories.pop_lru() else { return };
            self.entries -= dropped.entries.len();
        }
    }
}
