use super::*;

const TTL: Duration = Duration::from_secs(60);

fn page(names: &[&str]) -> Vec<Entry> {
    let entry = |(at, name): (usize, &&str)| Entry {
        name: name.as_bytes().to_vec().into(),
        attr: Some(Attr { inode: at as u64 + 10, ..Default::default() }),
    };
    names.iter().enumerate().map(entry).collect()
}

/// How many listings that many misses ask for.
fn listings(cache: &DirCache, directory: u64, misses: usize) -> usize {
    (0..misses).filter(|_| cache.missed(directory, TTL) == Wanted::Entries).count()
}

#[test]
fn a_name_is_absent_only_when_the_listing_is_complete() {
    let cache = DirCache::new();
    let since = cache.begin(1);
    cache.add(1, since, &page(&["a", "b"]), false);
    assert!(matches!(cache.get(1, b"a", TTL), Seen::Entry(_)));
    assert!(matches!(cache.get(1, b"z", TTL), Seen::Unknown));
    cache.add(1, since, &page(&["c"]), true);
    assert!(matches!(cache.get(1, b"z", TTL), Seen::Absent(_)));
    assert!(matches!(cache.get(1, b"a", Duration::ZERO), Seen::Unknown), "too old");
}

#[test]
fn a_streak_of_misses_asks_for_one_listing() {
    let cache = DirCache::new();
    assert_eq!(listings(&cache, 1, 20), 1);
    assert_eq!(cache.missed(2, TTL), Wanted::Nothing, "another directory has its own streak");
}

#[test]
fn a_directory_that_we_change_ourselves_is_not_listed_for_every_streak_of_misses() {
    let cache = DirCache::new();
    for _ in 0..10 {
        cache.changed(1);
        assert_eq!(listings(&cache, 1, 20), 0);
    }
    assert_eq!(cache.missed(1, Duration::ZERO), Wanted::Nothing, "what is old is forgotten");
    assert_eq!(listings(&cache, 1, 20), 1);
}

#[test]
fn after_the_first_page_of_a_reader_a_streak_of_misses_still_asks_for_a_listing() {
    let cache = DirCache::new();
    cache.first_page(1, (cache.changes(), Instant::now()), &page(&["a"]), false);
    assert!(matches!(cache.get(1, b"a", TTL), Seen::Entry(_)));
    assert_eq!(listings(&cache, 1, 20), 1);
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
    cache.first_page(1, (before, Instant::now()), &page(&["b"]), true);
    assert!(matches!(cache.get(1, b"a", TTL), Seen::Unknown), "not absent");
    assert!(matches!(cache.get(1, b"b", TTL), Seen::Unknown));
    cache.first_page(1, (cache.changes(), Instant::now()), &page(&["b"]), true);
    assert!(matches!(cache.get(1, b"b", TTL), Seen::Entry(_)));
    assert_eq!(cache.inner.lock().expect("lock").entries, 1);
}

#[test]
fn a_directory_made_here_stays_known_over_all_changes_of_ours_and_is_forgotten_by_one_of_others() {
    let (cache, asked) = (DirCache::new(), Instant::now());
    cache.born(&version(5), asked);
    cache.changed_name(1, b"dir", true, Instant::now());
    assert!(matches!(cache.get(1, b"dir", TTL), Seen::Unknown), "there, and to be asked for");
    cache.changed_name(1, b"dir", false, Instant::now());
    assert!(matches!(cache.get(1, b"dir", TTL), Seen::Absent(_)));
    cache.came(1, b"file");
    cache.grew(&version(8), 1, asked, true);
    assert!(cache.is_own(1) && cache.missed(1, Duration::ZERO) == Wanted::Nothing);
    let later = asked + Duration::from_millis(1);
    cache.confirm(&version(9), later);
    assert!(cache.is_own(1) && cache.inner.lock().expect("lock").directories.peek(&1).expect("known").since == asked);
    cache.confirm(&version(8), later);
    assert_eq!(cache.inner.lock().expect("lock").directories.peek(&1).expect("known").since, later);
    cache.grew(&version(10), 1, asked, true);
    assert!(!cache.is_own(1), "somebody else has changed it too");
    cache.changed_name(1, b"dir", true, Instant::now());
    assert!(matches!(cache.get(1, b"other", TTL), Seen::Unknown));
    assert_eq!(cache.inner.lock().expect("lock").entries, 0);
}

/// A directory in which we make files, whose names are being learnt; it is of version 7.
fn learning() -> (DirCache, Instant) {
    let cache = DirCache::new();
    cache.changed(1);
    let wanted: Vec<_> = (0..STREAK_OF_MAKERS).map(|_| cache.missed(1, TTL)).collect();
    assert_eq!(wanted.iter().filter(|wanted| **wanted == Wanted::Names).count(), 1, "{wanted:?}");
    let begun = cache.begin_names(1);
    assert!(cache.learns(&version(7), begun, Instant::now()));
    (cache, begun)
}

fn version(version: u64) -> Attr {
    Attr { inode: 1, version, ..Default::default() }
}

#[test]
fn names_are_learnt_of_a_directory_in_which_we_make_many_and_what_comes_by_us_meanwhile_counts() {
    let (cache, begun) = learning();
    let asked = Instant::now();
    cache.came(1, b"ours");
    assert!(cache.add_names(1, begun, &page(&["a"]), false));
    assert!(matches!(cache.get(1, b"z", TTL), Seen::Unknown), "not all are known yet");
    cache.grew(&version(8), 1, asked, true);
    cache.grew(&version(7), 3, asked, true);
    assert!(cache.add_names(1, begun, &page(&["b"]), true));
    assert!(matches!(cache.get(1, b"z", TTL), Seen::Absent(_)));
    for there in [b"a", b"b", &b"ours"[..]] {
        assert!(matches!(cache.get(1, there, TTL), Seen::Unknown), "there, and to be asked for");
    }
    cache.changed_name(1, b"a", false, Instant::now());
    assert!(cache.is_own(1) && matches!(cache.get(1, b"a", TTL), Seen::Absent(_)));
    cache.grew(&version(11), 1, asked, true);
    assert!(!cache.is_own(1), "9, and one of ours, and one of others");
    let misses = (0..4 * STREAK_OF_MAKERS).take_while(|_| cache.missed(1, TTL) == Wanted::Nothing).count();
    assert_eq!(misses, 2 * STREAK_OF_MAKERS as usize - 1, "later the next time");
}

#[test]
fn names_are_learnt_in_vain_while_something_else_of_ours_or_of_others_changes_them() {
    let (cache, begun) = learning();
    cache.grew(&version(9), 1, begun, true);
    assert!(!cache.add_names(1, begun, &page(&["a"]), true) && !cache.is_own(1));
    let (cache, begun) = learning();
    cache.changed_name(1, b"dir", true, begun);
    assert!(!cache.add_names(1, begun, &page(&["a"]), true) && !cache.is_own(1), "it was under way before");
    let (cache, begun) = learning();
    cache.ended(1, begun);
    assert!(!cache.is_own(1), "not all were listed");
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
