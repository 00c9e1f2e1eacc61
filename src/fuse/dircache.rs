//! Listings remembered for a moment, so that looking up many names of one directory asks a master once per thousand.

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

/// Most entries remembered over all directories, about 50 MiB.
const ENTRIES_MAX: usize = 200_000;
const DIRECTORIES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);
/// Names asked for one by one before the whole directory is listed.
const STREAK: u32 = 4;

/// What a remembered listing says of a name.
#[derive(Debug)]
pub(super) enum CachedName {
    /// It is there.
    Entry(Box<Known>),
    /// The listing, which was begun then, is complete and has no such name.
    Absent(Instant),
    /// Nothing is known.
    Unknown,
}

#[derive(Debug)]
struct Listing {
    since: Instant,
    /// Names, and what is known of them.
    entries: HashMap<Box<[u8]>, Option<Attr>>,
    complete: bool,
    misses: u32,
    /// A listing is under way, which was begun then.
    listing: Option<Instant>,
    /// We have changed it: whoever makes many files looks each of their names up, and would have all of them listed each time.
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

/// Remembered listings.
#[derive(Debug)]
pub(super) struct DirCache {
    inner: Mutex<Listings>,
}

#[derive(Debug)]
struct Listings {
    directories: LruCache<u64, Listing>,
    entries: usize,
    /// Changes of our own so far.
    changes: u64,
}

impl DirCache {
    pub(super) fn new() -> DirCache {
        DirCache { inner: Mutex::new(Listings { directories: LruCache::sparse(DIRECTORIES), entries: 0, changes: 0 }) }
    }

    /// Number of changes of our own so far: a page that is asked for now is worth remembering if there were none since.
    pub(super) fn changes(&self) -> u64 {
        lock(&self.inner).changes
    }

    /// We have changed a directory, or something in it. Listings of it that are under way are forgotten too.
    pub(super) fn changed(&self, directory: u64) {
        let mut inner = lock(&self.inner);
        inner.changes += 1;
        inner.renew(directory, Listing { changed: true, ..Listing::new() });
    }

    /// Forgets what is remembered of a directory. A listing that is under way is ignored.
    pub(super) fn forget(&self, directory: u64) {
        let mut inner = lock(&self.inner);
        if let Some(dropped) = inner.directories.pop(&directory) {
            inner.entries -= dropped.entries.len();
        }
    }

    /// As [`DirCache::forget`], of all directories.
    pub(super) fn clear(&self) {
        let mut inner = lock(&self.inner);
        inner.directories.clear();
        inner.entries = 0;
    }

    /// A name came, or is of something that has changed, by us: there is one, and nothing else is known of it.
    pub(super) fn insert(&self, directory: u64, name: &[u8]) {
        let mut inner = lock(&self.inner);
        inner.changes += 1;
        inner.change(directory, |known| {
            known.entries.insert(name.into(), None);
            known.changed = true;
            true
        });
    }

    /// What is remembered of a name, at most `ttl` old.
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

    /// Notes that a master had to be asked for a name. True if the whole directory is to be listed now.
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

    /// Begins a listing; pages are added with the returned time.
    pub(super) fn begin(&self, directory: u64) -> Instant {
        lock(&self.inner).begin(directory)
    }

    /// Adds a page of the listing begun at `since`; ignored if another one was begun after it.
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

    /// Remembers the first page of a listing that somebody else goes on with, if nothing was changed by us since it was `asked`
    /// for: then [`DirCache::changes`] was `asked.0`, and the time `asked.1`.
    pub(super) fn insert_first_page(&self, directory: u64, asked: (u64, Instant), page: &[Entry], end: bool) {
        let since = {
            let mut inner = lock(&self.inner);
            if inner.changes != asked.0 {
                return;
            }
            // As old as the question: changes that were told since then invalidate it.
            inner.begin_at(directory, asked.1)
        };
        self.add(directory, since, page, end);
        self.end(directory, since);
    }

    /// A listing failed or was given up: the next streak may begin another.
    pub(super) fn end(&self, directory: u64, since: Instant) {
        let mut inner = lock(&self.inner);
        if let Some(known) = inner.directories.get_mut(&directory).filter(|known| known.listing == Some(since)) {
            (known.listing, known.misses) = (None, 0);
        }
    }

    /// True when a directory is too large to be remembered as a whole.
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

    /// Changes what is remembered of a directory, and says whether it did; false for one that is not.
    fn change(&mut self, directory: u64, change: impl FnOnce(&mut Listing) -> bool) -> bool {
        let Some(known) = self.directories.get_mut(&directory) else { return false };
        let before = known.entries.len();
        let changed = change(known);
        self.entries = self.entries + known.entries.len() - before;
        self.shrink();
        changed
    }

    /// Forgets what is remembered of a directory.
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
