//! Listings remembered for a moment, so that looking up many names of one directory asks a master once per thousand.

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

/// What a remembered listing says of a name.
#[derive(Debug)]
pub(super) enum Seen {
    /// It is there.
    Entry(Box<Known>),
    /// The listing is complete and has no such name.
    Absent,
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
    listing: bool,
    /// We have changed it: whoever makes many files looks each of their names up, and would have all of them listed each time.
    changed: bool,
    /// Of one that was made here: its version, with which all names are known that it has.
    own: Option<u64>,
}

impl Directory {
    fn new() -> Directory {
        Directory {
            since: Instant::now(),
            entries: HashMap::new(),
            complete: false,
            misses: 0,
            listing: false,
            changed: false,
            own: None,
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

    /// We have made a directory, and asked for it at `asked`: nothing is in it.
    pub(super) fn born(&self, directory: &Attr, asked: Instant) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let own = Some(directory.version);
        inner
            .renew(directory.inode, Directory { since: asked, changed: true, complete: true, own, ..Directory::new() });
    }

    /// By a change of ours, and nothing else of it, `name` is in a directory now, or not any more.
    pub(super) fn changed_name(&self, directory: u64, name: &[u8], is_there: bool) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.changes += 1;
        let Some(known) = inner.directories.get_mut(&directory).filter(|known| known.own.is_some()) else {
            return inner.renew(directory, Directory { changed: true, ..Directory::new() });
        };
        known.own = known.own.map(|version| version + 1);
        let before = known.entries.len();
        match is_there {
            true => drop(known.entries.insert(name.into(), None)),
            false => drop(known.entries.remove(name)),
        }
        let after = known.entries.len();
        inner.entries = inner.entries + after - before;
        inner.shrink();
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

    /// True for a directory that was made here, and in which nobody else has changed a name since.
    pub(super) fn is_own(&self, directory: u64) -> bool {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.directories.peek(&directory).is_some_and(|known| known.own.is_some())
    }

    /// A name came, or is of something that has changed, by us: there is one, and nothing else is known of it.
    pub(super) fn came(&self, directory: u64, name: &[u8]) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.changes += 1;
        let Some(known) = inner.directories.get_mut(&directory) else { return };
        let more = usize::from(known.entries.insert(name.into(), None).is_none());
        known.changed = true;
        inner.entries += more;
        inner.shrink();
    }

    /// `count` names that we have told of came into a directory, whose attributes afterwards are these; it was asked for at
    /// `asked`. As every change raises the version of a directory by one, we know whether anybody else has changed it; then
    /// everything is forgotten. Otherwise, and if all changes are `counted`, what is known was right at `asked`.
    pub(super) fn grew(&self, directory: &Attr, count: u64, asked: Instant, counted: bool) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = inner.directories.get_mut(&directory.inode) else { return };
        let Some(own) = known.own else { return };
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
            None if known.complete => Seen::Absent,
            None => Seen::Unknown,
        }
    }

    /// To be told that a name had to be asked for. True if the directory should now be listed, by this caller.
    pub(super) fn missed(&self, directory: u64, ttl: Duration) -> bool {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let known = inner.entry(directory);
        if known.own.is_some() {
            return false;
        }
        if known.since.elapsed() >= ttl && !known.listing {
            inner.renew(directory, Directory::new());
            return false;
        }
        known.misses += 1;
        let due = known.misses >= STREAK && !known.listing && !known.complete && !known.changed;
        known.listing |= due;
        due
    }

    /// Begins a listing; pages are added with the returned time.
    pub(super) fn begin(&self, directory: u64) -> Instant {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).begin(directory)
    }

    /// Adds a page of the listing begun at `since`; ignored if another one was begun after it.
    pub(super) fn add(&self, directory: u64, since: Instant, page: &[Entry], end: bool) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = inner.directories.get_mut(&directory).filter(|known| known.since == since) else { return };
        let before = known.entries.len();
        for entry in page {
            if let Some(attr) = &entry.attr {
                known.entries.insert(entry.name.as_ref().into(), Some(attr.clone()));
            }
        }
        known.complete = end;
        known.listing = !end;
        inner.entries += inner.directories.peek(&directory).map_or(0, |known| known.entries.len()) - before;
        inner.shrink();
    }

    /// Remembers the first page of a listing that somebody else goes on with, if nothing was changed by us since it was asked
    /// for, when [`DirCache::changes`] was `changes`.
    pub(super) fn first_page(&self, directory: u64, changes: u64, page: &[Entry], end: bool) {
        let since = {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            if inner.changes != changes {
                return;
            }
            inner.begin(directory)
        };
        self.add(directory, since, page, end);
        self.ended(directory, since);
    }

    /// A listing failed or was given up: the next streak may begin another.
    pub(super) fn ended(&self, directory: u64, since: Instant) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = inner.directories.get_mut(&directory).filter(|known| known.since == since) {
            known.listing = false;
            known.misses = 0;
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
        let since = Instant::now();
        self.renew(directory, Directory { since, listing: true, ..Directory::new() });
        since
    }

    /// Forgets what is remembered of a directory.
    fn renew(&mut self, directory: u64, fresh: Directory) {
        let known = self.entry(directory);
        let dropped = known.entries.len();
        *known = fresh;
        self.entries -= dropped;
    }

    fn shrink(&mut self) {
        while self.entries > ENTRIES_MAX {
            let Some((_, dropped)) = self.directories.pop_lru() else { return };
            self.entries -= dropped.entries.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(60);

    fn page(names: &[&str]) -> Vec<Entry> {
        let entry = |(at, name): (usize, &&str)| Entry {
            name: name.as_bytes().to_vec().into(),
            attr: Some(Attr { inode: at as u64 + 10, ..Default::default() }),
        };
        names.iter().enumerate().map(entry).collect()
    }

    #[test]
    fn a_name_is_absent_only_when_the_listing_is_complete() {
        let cache = DirCache::new();
        let since = cache.begin(1);
        cache.add(1, since, &page(&["a", "b"]), false);
        assert!(matches!(cache.get(1, b"a", TTL), Seen::Entry(_)));
        assert!(matches!(cache.get(1, b"z", TTL), Seen::Unknown));
        cache.add(1, since, &page(&["c"]), true);
        assert!(matches!(cache.get(1, b"z", TTL), Seen::Absent));
        assert!(matches!(cache.get(1, b"a", Duration::ZERO), Seen::Unknown), "too old");
    }

    #[test]
    fn a_streak_of_misses_asks_for_one_listing() {
        let cache = DirCache::new();
        let asked = (0..20).filter(|_| cache.missed(1, TTL)).count();
        assert_eq!(asked, 1);
        assert!(!cache.missed(2, TTL), "another directory has its own streak");
    }

    #[test]
    fn a_directory_that_we_change_ourselves_is_not_listed_for_every_streak_of_misses() {
        let cache = DirCache::new();
        for _ in 0..10 {
            cache.changed(1);
            assert_eq!((0..20).filter(|_| cache.missed(1, TTL)).count(), 0);
        }
        assert!(!cache.missed(1, Duration::ZERO), "what is old is forgotten");
        assert_eq!((0..20).filter(|_| cache.missed(1, TTL)).count(), 1);
    }

    #[test]
    fn after_the_first_page_of_a_reader_a_streak_of_misses_still_asks_for_a_listing() {
        let cache = DirCache::new();
        cache.first_page(1, cache.changes(), &page(&["a"]), false);
        assert!(matches!(cache.get(1, b"a", TTL), Seen::Entry(_)));
        assert_eq!((0..20).filter(|_| cache.missed(1, TTL)).count(), 1);
    }

    #[test]
    fn a_page_of_an_older_listing_is_ignored() {
        let cache = DirCache::new();
        let old = cache.begin(1);
        let new = cache.begin(1);
        assert_ne!(old, new);
        cache.add(1, old, &page(&["a"]), true);
        assert!(matches!(cache.get(1, b"a", TTL), Seen::Unknown));
    }

    #[test]
    fn nothing_that_was_asked_for_before_a_change_of_our_own_is_remembered() {
        let cache = DirCache::new();
        let before = cache.changes();
        let since = cache.begin(1);
        cache.add(1, since, &page(&["a"]), false);
        cache.changed(1);
        assert!(matches!(cache.get(1, b"a", TTL), Seen::Unknown));
        cache.add(1, since, &page(&["b"]), true);
        cache.first_page(1, before, &page(&["b"]), true);
        assert!(matches!(cache.get(1, b"a", TTL), Seen::Unknown), "not absent");
        assert!(matches!(cache.get(1, b"b", TTL), Seen::Unknown));
        cache.first_page(1, cache.changes(), &page(&["b"]), true);
        assert!(matches!(cache.get(1, b"b", TTL), Seen::Entry(_)));
        assert_eq!(cache.inner.lock().expect("lock").entries, 1);
    }

    #[test]
    fn a_directory_made_here_stays_known_over_all_changes_of_ours_and_is_forgotten_by_one_of_others() {
        let (cache, asked) = (DirCache::new(), Instant::now());
        let version = |version| Attr { inode: 1, version, ..Default::default() };
        cache.born(&version(5), asked);
        cache.changed_name(1, b"dir", true);
        assert!(matches!(cache.get(1, b"dir", TTL), Seen::Unknown), "there, and to be asked for");
        cache.changed_name(1, b"dir", false);
        assert!(matches!(cache.get(1, b"dir", TTL), Seen::Absent));
        cache.came(1, b"file");
        cache.grew(&version(8), 1, asked, true);
        assert!(cache.is_own(1) && !cache.missed(1, Duration::ZERO));
        let later = asked + Duration::from_millis(1);
        cache.confirm(&version(9), later);
        assert!(
            cache.is_own(1) && cache.inner.lock().expect("lock").directories.peek(&1).expect("known").since == asked
        );
        cache.confirm(&version(8), later);
        assert_eq!(cache.inner.lock().expect("lock").directories.peek(&1).expect("known").since, later);
        cache.grew(&version(10), 1, asked, true);
        assert!(!cache.is_own(1), "somebody else has changed it too");
        cache.changed_name(1, b"dir", true);
        assert!(matches!(cache.get(1, b"other", TTL), Seen::Unknown));
        assert_eq!(cache.inner.lock().expect("lock").entries, 0);
    }

    #[test]
    fn the_number_of_remembered_entries_is_bounded() {
        let cache = DirCache::new();
        let names: Vec<_> = (0..1000).map(|number| format!("{number}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let entries = page(&names);
        for directory in 0..400 {
            let since = cache.begin(directory);
            cache.add(directory, since, &entries, true);
        }
        let inner = cache.inner.lock().expect("lock");
        assert!(inner.entries <= ENTRIES_MAX);
        assert_eq!(inner.entries, inner.directories.iter().map(|(_, known)| known.entries.len()).sum::<usize>());
    }
}
