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
    (0..misses).filter(|_| cache.note_miss(directory, TTL)).count()
}

#[test]
fn a_name_is_absent_only_when_the_listing_is_complete() {
    let cache = DirCache::new();
    let since = cache.begin(1);
    cache.add(1, since, &page(&["a", "b"]), false);
    assert!(matches!(cache.get(1, b"a", TTL), CachedName::Entry(_)));
    assert!(matches!(cache.get(1, b"z", TTL), CachedName::Unknown));
    cache.add(1, since, &page(&["c"]), true);
    assert!(matches!(cache.get(1, b"z", TTL), CachedName::Absent(_)));
    assert!(matches!(cache.get(1, b"a", Duration::ZERO), CachedName::Unknown), "too old");
}

#[test]
fn a_streak_of_misses_asks_for_one_listing() {
    let cache = DirCache::new();
    assert_eq!(listings(&cache, 1, 20), 1);
    assert!(!cache.note_miss(2, TTL), "another directory has its own streak");
}

#[test]
fn a_directory_that_we_change_ourselves_is_not_listed_for_every_streak_of_misses() {
    let cache = DirCache::new();
    for _ in 0..10 {
        cache.changed(1);
        assert_eq!(listings(&cache, 1, 20), 0);
    }
    assert!(!cache.note_miss(1, Duration::ZERO), "what is old is forgotten");
    assert_eq!(listings(&cache, 1, 20), 1);
}

#[test]
fn after_the_first_page_of_a_reader_a_streak_of_misses_still_asks_for_a_listing() {
    let cache = DirCache::new();
    cache.insert_first_page(1, (cache.changes(), Instant::now()), &page(&["a"]), false);
    assert!(matches!(cache.get(1, b"a", TTL), CachedName::Entry(_)));
    assert_eq!(listings(&cache, 1, 20), 1);
}

#[test]
fn a_page_of_an_older_listing_is_ignored() {
    let cache = DirCache::new();
    let old = cache.begin(1);
    let new = cache.begin(1);
    assert_ne!(old, new);
    cache.add(1, old, &page(&["a"]), true);
    assert!(matches!(cache.get(1, b"a", TTL), CachedName::Unknown));
}

#[test]
fn nothing_that_was_asked_for_before_a_change_of_our_own_is_remembered() {
    let cache = DirCache::new();
    let before = cache.changes();
    let since = cache.begin(1);
    cache.add(1, since, &page(&["a"]), false);
    cache.changed(1);
    assert!(matches!(cache.get(1, b"a", TTL), CachedName::Unknown));
    cache.add(1, since, &page(&["b"]), true);
    cache.insert_first_page(1, (before, Instant::now()), &page(&["b"]), true);
    assert!(matches!(cache.get(1, b"a", TTL), CachedName::Unknown), "not absent");
    assert!(matches!(cache.get(1, b"b", TTL), CachedName::Unknown));
    cache.insert_first_page(1, (cache.changes(), Instant::now()), &page(&["b"]), true);
    assert!(matches!(cache.get(1, b"b", TTL), CachedName::Entry(_)));
    assert_eq!(cache.inner.lock().expect("lock").entries, 1);
}

#[test]
fn a_name_that_came_by_us_is_asked_for_and_the_others_stay_known() {
    let cache = DirCache::new();
    let since = cache.begin(1);
    cache.add(1, since, &page(&["a", "b"]), true);
    cache.insert(1, b"a");
    cache.insert(1, b"new");
    for name in [b"a", &b"new"[..]] {
        assert!(matches!(cache.get(1, name, TTL), CachedName::Unknown), "there, and to be asked for");
    }
    assert!(matches!(cache.get(1, b"b", TTL), CachedName::Entry(_)));
    assert!(matches!(cache.get(1, b"z", TTL), CachedName::Absent(_)));
    assert_eq!(listings(&cache, 1, 20), 0, "whoever makes many files does not have all of them listed");
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
