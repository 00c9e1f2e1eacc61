use super::*;
use crate::config::Medium;
use crate::types::version_of;

const BLOCK: u64 = BLOCK_SIZE as u64;

fn config(dir: &std::path::Path, quota_blocks: u64) -> Vec<TierConfig> {
    let quota_bytes = quota_blocks * BLOCK;
    vec![TierConfig { medium: Medium::Ssd, path: dir.into(), quota_bytes, high_percent: 100, low_percent: 50 }]
}

fn source(file_id: u64, length: u64) -> FileSource {
    FileSource {
        file_id,
        version: version_of(b"v"),
        length,
        block_size: BLOCK_SIZE,
        mount_id: 1,
        version_token: bytes::Bytes::from_static(b"v"),
        ..FileSource::default()
    }
}

fn fill(store: &Store, file: &BlockFile, block: usize, byte: u8) -> Result<()> {
    let data = vec![byte; usize::try_from(file.block_length(block)).expect("small")];
    store.reserve(file, data.len() as u64)?;
    file.fill(block, &data).expect("filled");
    Ok(())
}

#[test]
fn what_was_filled_is_there_after_a_restart_and_verified_before_it_is_served() {
    let dir = tempfile::tempdir().expect("tempdir");
    {
        let store = Store::open(config(dir.path(), 10)).expect("open");
        assert_eq!(Store::open(config(dir.path(), 10)).expect_err("in use").kind, ErrorKind::Busy);
        let file = store.get_or_create(&source(7, 2 * BLOCK + 5)).expect("created");
        fill(&store, &file, 2, 0xab).expect("room");
        assert_eq!((file.presence(0), file.presence(2)), (Presence::Absent, Presence::Present));
    }
    let store = Store::open(config(dir.path(), 10)).expect("open");
    assert_eq!(store.used(), 5);
    let file = store.get_or_create(&source(7, 2 * BLOCK + 5)).expect("found");
    assert_eq!(file.presence(2), Presence::Found);
    assert_eq!(file.bitmap(8), [0]);
    assert_eq!(file.read_verified(2).expect("read").expect("good")[..], [0xab; 5]);
    assert_eq!((file.presence(2), file.bitmap(8)), (Presence::Present, vec![0b100]));
}

#[test]
fn a_block_damaged_on_disk_is_never_served() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = Store::open(config(dir.path(), 10)).expect("open");
    let file = store.get_or_create(&source(7, 100)).expect("created");
    fill(&store, &file, 0, 1).expect("room");
    let path = dir.path().join(format!("blocks-1/07/{:016x}-{:016x}", 7, version_of(b"v")));
    std::fs::write(&path, [2; 100]).expect("damaged");
    assert_eq!(file.read_verified(0).expect("read"), None);
    assert_eq!((file.presence(0), store.used()), (Presence::Absent, 0));
    drop((file, store));
    let store = Store::open(config(dir.path(), 10)).expect("open");
    assert_eq!(store.used(), 0, "the record knows it too");
}

#[test]
fn damaged_records_and_data_without_one_are_removed_at_start() {
    let dir = tempfile::tempdir().expect("tempdir");
    {
        let store = Store::open(config(dir.path(), 10)).expect("open");
        for id in [1, 2] {
            let file = store.get_or_create(&source(id, 10)).expect("created");
            fill(&store, &file, 0, 1).expect("room");
        }
    }
    let path = |id: u64| dir.path().join(format!("blocks-1/{id:02x}/{id:016x}-{:016x}", version_of(b"v")));
    std::fs::write(path(1).with_extension("idx"), b"rubbish").expect("damaged");
    std::fs::remove_file(path(2).with_extension("idx")).expect("removed");
    let store = Store::open(config(dir.path(), 10)).expect("open");
    assert_eq!((store.count(), store.used()), (0, 0));
    assert!(!path(1).exists() && !path(2).exists());
}

#[test]
fn the_least_recently_used_file_makes_room_and_held_files_stay() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = Store::open(config(dir.path(), 4)).expect("open");
    let held = store.get_or_create(&source(1, BLOCK)).expect("created");
    fill(&store, &held, 0, 1).expect("room");
    for id in 2..=4 {
        let file = store.get_or_create(&source(id, BLOCK)).expect("created");
        fill(&store, &file, 0, 1).expect("room");
    }
    drop(store.get_or_create(&source(2, BLOCK)).expect("used again"));
    let _ = store.take_changed();
    let file = store.get_or_create(&source(5, BLOCK)).expect("created");
    fill(&store, &file, 0, 1).expect("room was made");
    let ids: Vec<u64> = store.all().into_iter().map(|file| file.file_id).collect();
    assert!(ids.contains(&1) && ids.contains(&5) && !ids.contains(&3), "{ids:?}");
    assert!(store.used() <= 4 * BLOCK);
    assert!(store.take_changed().iter().any(|file| file.file_id == 3 && file.cached_bytes == 0));
}

#[test]
fn when_open_files_take_all_room_a_block_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = Store::open(config(dir.path(), 2)).expect("open");
    let held = store.get_or_create(&source(1, 3 * BLOCK)).expect("created");
    fill(&store, &held, 0, 1).expect("room");
    fill(&store, &held, 1, 1).expect("room");
    assert_eq!(fill(&store, &held, 2, 1).expect_err("full").kind, ErrorKind::NoSpace);
    assert_eq!(store.used(), 2 * BLOCK);
}

#[test]
fn a_source_that_cannot_be_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = Store::open(config(dir.path(), 2)).expect("open");
    let bad = [
        FileSource { length: 0, ..source(1, 1) },
        FileSource { length: u64::MAX, ..source(1, 1) },
        FileSource { block_size: 1, ..source(1, 1) },
        FileSource { version: 1, ..source(1, 1) },
    ];
    for source in bad {
        assert_eq!(store.get_or_create(&source).expect_err("refused").kind, ErrorKind::InvalidArgument);
    }
}
