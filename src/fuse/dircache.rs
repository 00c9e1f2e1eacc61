//! Listings remembered for a moment, so that looking up many names of one directory asks a master once per thousand.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jindofs_proto::v1::{Attr, Entry};
use lru::LruCache;

use super::inodes::Known;

/// Most entries remembered over all directories, about 50 MiB.
const ENTRIES_MAX: usize = 200_000;
const DIRECTORIES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);
/// Names asked for one by one before the whole directory is listed.
const STREAK: u32 = 4;
/// As many before all names are learnt of one in which we make files; twice as many each time that was in vain.
const STREAK_OF_MAKERS: u32 = 64;
const DOUBLINGS: u32 = 10;

/// What is to be found out of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Nothing,
    /// Everything that is in it.
    Entries,
    /// All its names, and its version.
    Names,
}

/// What a remembered listing says of a name.
#[derive(Debug)]
pub(super) enum Seen {
    /// It is there.
    Entry(Box<Known>),
    /// The listing, which was begun then, is complete and has no such name.
    Absent(Instant),
    /// Nothing is known.
    Unknown,
}

#[derive(Debug)]
struct Directory {
    since: Instant,
    /// Names, and what is known of them.
    entries: HashMap<Box<[u8]>, Option<Attr>>,
    complete: bool,
    misses: u32,
    /// A listing is under way, which was begun then.
    listing: Option<Instant>,
    /// We have changed it: whoever makes many files looks each of their names up, and would have all of them listed each time.
    changed: bool,
    /// Its version, with all changes of names that we know of: all names that it has are known, or being learnt.
    own: Option<u64>,
    /// When that was found out of one that was not made here.
    learnt: Option<Instant>,
    /// How often its names were learnt.
    lessons: u32,
}

impl Directory {
    fn new() -> Directory {
        Directory {
            since: Instant::now(),
            entries: HashMap::new(),
            complete: false,
            misses: 0,
            listing: None,
            changed: false,
            own: None,
            learnt: None,
            lessons: 0,
        }
    }
}

/// Remembered listings.
#[derive(Debug)]
pub(super) struct DirCache {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    directories: LruCache<u64, Directory>,
    entries: usize,
    /// Changes of our own so far.
    changes: u64,
}

impl DirCache {
    pub(super) fn new() -> DirCache {
        DirCache { inner: Mutex::new(Inner { directories: LruCache::sparse(DIRECTORIES), entries: 0, changes: 0 }) }
    }

    /// Number of changes of our own so far: a page that is asked for now is worth remembering if there were none since.
    pub(super) fn changes(&self) -> u64 {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).changes
    }

    /// We have changed a directory, or something in it. Listings of it that are under way are forgotten too.
    pub(super) fn changed(&self, directory: u64) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.changes += 1;
        inner.renew(directory, Directory { changed: true, ..Directory::new() });
    }

    /// Forgets what is remembered of a directory. A listing that is under way is ignored.
    pub(super) fn forget(&self, directory: u64) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(dropped) = inner.directories.pop(&directory) {
            inner.entries -= dropped.entries.len();
        }
    }

    /// As [`DirCache::forget`], of all directories.
    pub(super) fn clear(&self) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.directories.clear();
        inner.entries = 0;
    }

    /// We have made a directory, and asked for it at `asked`: nothing is in it.
    pub(super) fn born(&self, directory: &Attr, asked: Instant) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let own = Some(directory.version);
        inner
            .renew(directory.inode, Directory { since: asked, changed: true, complete: true, own, ..Directory::new() });
    }

    /// By a change of ours that was begun at `asked`, and nothing else of it, `name` is in a directory now, or not any more.
    pub(super) fn changed_name(&self, directory: u64, name: &[u8], is_there: bool, asked: Instant) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.changes += 1;
        let counted = inner.change(directory, |known| {
            // Whether a version that was learnt meanwhile counts this change is not known.
            let counts = known.own.is_some() && known.learnt.is_none_or(|learnt| learnt < asked);
            if counts {
                known.own = known.own.map(|version| version + 1);
                match is_there {
                    true => drop(known.entries.insert(name.into(), None)),
                    false => drop(known.entries.remove(name)),
                }
            }
            counts
        });
        if !counted {
            inner.renew(directory, Directory { changed: true, ..Directory::new() });
        }
    }

    /// A master was asked at `asked` what a directory is like: of one that is ours, of the version that we know, all we know of
    /// its names was right then.
    pub(super) fn confirm(&self, directory: &Attr, asked: Instant) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = inner.directories.peek_mut(&directory.inode).filter(|known| known.own.is_some()) {
            // Of another version it may be because of what we have just told the masters ourselves.
            if known.own == Some(directory.version) {
                known.since = known.since.max(asked);
            }
        }
    }

    /// True for a directory of which all names are known, or being learnt, and in which nobody else has changed one since.
    pub(super) fn is_own(&self, directory: u64) -> bool {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.directories.peek(&directory).is_some_and(|known| known.own.is_some())
    }

    /// A name came, or is of something that has changed, by us: there is one, and nothing else is known of it.
    pub(super) fn came(&self, directory: u64, name: &[u8]) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.changes += 1;
        inner.change(directory, |known| {
            known.entries.insert(name.into(), None);
            known.changed = true;
            true
        });
    }

    /// `count` names that we have told of came into a directory, whose attributes afterwards are these; it was asked for at
    /// `asked`. As every change raises the version of a directory by one, we know whether anybody else has changed it; then
    /// everything is forgotten. Otherwise, and if all changes are `counted`, what is known was right at `asked`.
    pub(super) fn grew(&self, directory: &Attr, count: u64, asked: Instant, counted: bool) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = inner.directories.get_mut(&directory.inode) else { return };
        let Some(own) = known.own else { return };
        // An answer that was overtaken: its names came before the version was learnt.
        if directory.version <= own {
            return;
        }
        if own + count != directory.version {
            return inner.renew(directory.inode, Directory { changed: true, ..Directory::new() });
        }
        known.own = Some(directory.version);
        if counted {
            known.since = asked;
        }
    }

    /// What is remembered of a name, at most `ttl` old.
    pub(super) fn get(&self, directory: u64, name: &[u8], ttl: Duration) -> Seen {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = inner.directories.get(&directory) else { return Seen::Unknown };
        if known.since.elapsed() >= ttl {
            return Seen::Unknown;
        }
        match known.entries.get(name) {
            Some(Some(attr)) => Seen::Entry(Box::new(Known::new(attr.clone(), known.since))),
            Some(None) => Seen::Unknown,
            None if known.complete => Seen::Absent(known.since),
            None => Seen::Unknown,
        }
    }

    /// To be told that a name had to be asked for. What this caller should now find out.
    pub(super) fn missed(&self, directory: u64, ttl: Duration) -> Wanted {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let known = inner.entry(directory);
        if known.own.is_some() || known.listing.is_some() {
            return Wanted::Nothing;
        }
        if known.since.elapsed() >= ttl {
            inner.renew(directory, Directory::new());
            return Wanted::Nothing;
        }
        known.misses += 1;
        let wanted = match known.changed {
            true if known.misses >= STREAK_OF_MAKERS << known.lessons.min(DOUBLINGS) => Wanted::Names,
            false if known.misses >= STREAK && !known.complete => Wanted::Entries,
            _ => return Wanted::Nothing,
        };
        known.listing = Some(Instant::now());
        wanted
    }

    /// Begins to learn the names of a directory; what comes by us from now on is known. To be told what the masters say of it
    /// after everything that was on its way has come.
    pub(super) fn begin_names(&self, directory: u64) -> Instant {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = inner.begin(directory);
        let known = inner.entry(directory);
        (known.changed, known.lessons) = (true, known.lessons + 1);
        begun
    }

    /// Of this version a directory was at `asked`: whatever is listed from now on is all it has, as far as it is not changed by
    /// others. False if it was changed meanwhile so that all of it is in vain.
    pub(super) fn learns(&self, directory: &Attr, begun: Instant, asked: Instant) -> bool {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let known = inner.directories.peek_mut(&directory.inode).filter(|known| known.listing == Some(begun));
        let Some(known) = known else { return false };
        (known.own, known.learnt, known.since) = (Some(directory.version), Some(Instant::now()), asked);
        true
    }

    /// Adds names of the listing begun at `begun`; what is known already of one stays. False if the listing is in vain.
    pub(super) fn add_names(&self, directory: u64, begun: Instant, page: &[Entry], end: bool) -> bool {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.change(directory, |known| {
            if known.listing != Some(begun) || known.own.is_none() {
                return false;
            }
            for entry in page {
                known.entries.entry(entry.name.as_ref().into()).or_default();
            }
            if end {
                (known.complete, known.listing) = (true, None);
            }
            true
        })
    }

    /// Begins a listing; pages are added with the returned time.
    pub(super) fn begin(&self, directory: u64) -> Instant {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).begin(directory)
    }

    /// Adds a page of the listing begun at `since`; ignored if another one was begun after it.
    pub(super) fn add(&self, directory: u64, since: Instant, page: &[Entry], end: bool) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
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
    pub(super) fn first_page(&self, directory: u64, asked: (u64, Instant), page: &[Entry], end: bool) {
        let since = {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            let own = inner.directories.peek(&directory).is_some_and(|known| known.own.is_some());
            // To know all names is worth more than to know what some of them stand for.
            if inner.changes != asked.0 || own {
                return;
            }
            // As old as the question: changes that were told since then invalidate it.
            inner.begin_at(directory, asked.1)
        };
        self.add(directory, since, page, end);
        self.ended(directory, since);
    }

    /// A listing failed or was given up: the next streak may begin another.
    pub(super) fn ended(&self, directory: u64, since: Instant) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = inner.directories.get_mut(&directory).filter(|known| known.listing == Some(since)) {
            // Half of the names are of no use.
            (known.listing, known.misses, known.own) = (None, 0, None);
        }
    }

    /// True when a directory is too large to be remembered as a whole.
    pub(super) fn is_full(&self, directory: u64) -> bool {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.directories.peek(&directory).is_none_or(|known| known.entries.len() >= ENTRIES_MAX / 2)
    }
}

impl Inner {
    fn entry(&mut self, directory: u64) -> &mut Directory {
        if !self.directories.contains(&directory)
            && let Some((_, dropped)) = self.directories.push(directory, Directory::new())
        {
            self.entries -= dropped.entries.len();
        }
        self.directories.get_or_insert_mut(directory, Directory::new)
    }

    fn begin(&mut self, directory: u64) -> Instant {
        self.begin_at(directory, Instant::now())
    }

    fn begin_at(&mut self, directory: u64, since: Instant) -> Instant {
        self.renew(directory, Directory { since, listing: Some(since), ..Directory::new() });
        since
    }

    /// Changes what is remembered of a directory, and says whether it did; false for one that is not.
    fn change(&mut self, directory: u64, change: impl FnOnce(&mut Directory) -> bool) -> bool {
        let Some(known) = self.directories.get_mut(&directory) else { return false };
        let before = known.entries.len();
        let changed = change(known);
        self.entries = self.entries + known.entries.len() - before;
        self.shrink();
        changed
    }

    /// Forgets what is remembered of a directory.
    fn renew(&mut self, directory: u64, fresh: Directory) {
        let known = self.entry(directory);
        let dropped = known.entries.len();
        *known = Directory { lessons: known.lessons, ..fresh };
        self.entries -= dropped;
    }

    fn shrink(&mut self) {
        while self.entries > ENTRIES_MAX {
            let Some((_, dropped)) = self.directories.pop_lru() else { return };
            self.entries -= dropped.entries.len();
        }
    }
}
