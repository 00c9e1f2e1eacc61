//! The disk that forgets, checked by itself: first the tree, then through the kernel, then under RocksDB.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::SystemTime;

use super::content::PAGE;
use super::tree::{Attr, ROOT, Tree};
use super::{Dropped, PowerCutFs};
use crate::support::fuse_works;

const ATTR: Attr = Attr { mode: 0o644, uid: 0, gid: 0, mtime: SystemTime::UNIX_EPOCH };

fn name(text: &str) -> &OsStr {
    OsStr::new(text)
}

fn cut(tree: &mut Tree) -> Dropped {
    tree.power_cut(|| false)
}

fn content(tree: &Tree, dir: u64, file: &str) -> Option<Vec<u8>> {
    tree.lookup(dir, name(file)).ok().map(|ino| tree.read(ino, 0, 1 << 20).expect("read"))
}

fn tree_with(file: &str, bytes: &[u8]) -> (Tree, u64) {
    let mut tree = Tree::new(ATTR);
    let ino = tree.create(ROOT, name(file), ATTR).expect("create");
    tree.write(ino, 0, bytes).expect("write");
    (tree, ino)
}

#[test]
fn fsynced_bytes_survive_and_later_ones_are_lost() {
    let (mut tree, ino) = tree_with("f", b"durable");
    tree.fsync(ino).expect("fsync");
    tree.write(ino, 3, b"XXXX and more").expect("write");
    assert_eq!(content(&tree, ROOT, "f").as_deref(), Some(&b"durXXXX and more"[..]));
    let dropped = cut(&mut tree);
    assert_eq!(content(&tree, ROOT, "f").as_deref(), Some(&b"durable"[..]));
    assert_eq!((dropped.files, dropped.names), (1, 0));
}

#[test]
fn a_file_never_fsynced_is_gone_unless_its_directory_was() {
    let (mut tree, _) = tree_with("lost", b"x");
    assert_eq!(cut(&mut tree).names, 1);
    assert_eq!(content(&tree, ROOT, "lost"), None);

    let (mut tree, _) = tree_with("empty", b"x");
    tree.fsync_dir(ROOT).expect("fsync");
    cut(&mut tree);
    assert_eq!(content(&tree, ROOT, "empty").as_deref(), Some(&b""[..]));
}

#[test]
fn fsync_of_a_new_file_keeps_the_new_directories_above_it() {
    let mut tree = Tree::new(ATTR);
    let a = tree.mkdir(ROOT, name("a"), ATTR).expect("mkdir");
    let b = tree.mkdir(a, name("b"), ATTR).expect("mkdir");
    let file = tree.create(b, name("f"), ATTR).expect("create");
    tree.fsync(file).expect("fsync");
    cut(&mut tree);
    let a = tree.lookup(ROOT, name("a")).expect("a");
    let b = tree.lookup(a, name("b")).expect("b");
    tree.lookup(b, name("f")).expect("f");
}

#[test]
fn a_rename_reverts_without_fsync_of_the_directory() {
    let (mut tree, ino) = tree_with("new", b"new");
    tree.fsync(ino).expect("fsync");
    let old = tree.create(ROOT, name("name"), ATTR).expect("create");
    tree.write(old, 0, b"old").expect("write");
    tree.fsync(old).expect("fsync");
    tree.rename((ROOT, name("new")), (ROOT, name("name")), false).expect("rename");
    tree.fsync(ino).expect("fsync of the file does not make the rename durable");
    cut(&mut tree);
    assert_eq!(content(&tree, ROOT, "name").as_deref(), Some(&b"old"[..]));
    assert_eq!(content(&tree, ROOT, "new").as_deref(), Some(&b"new"[..]));

    tree.rename((ROOT, name("new")), (ROOT, name("name")), false).expect("rename");
    tree.fsync_dir(ROOT).expect("fsync");
    cut(&mut tree);
    assert_eq!(content(&tree, ROOT, "name").as_deref(), Some(&b"new"[..]));
    assert_eq!(content(&tree, ROOT, "new"), None);
}

#[test]
fn a_rename_between_directories_is_durable_in_both_or_in_neither() {
    for fsynced in ["neither", "from", "to"] {
        let mut tree = Tree::new(ATTR);
        let from = tree.mkdir(ROOT, name("from"), ATTR).expect("mkdir");
        let to = tree.mkdir(ROOT, name("to"), ATTR).expect("mkdir");
        let file = tree.create(from, name("f"), ATTR).expect("create");
        tree.fsync(file).expect("fsync");
        tree.fsync_dir(ROOT).expect("fsync");
        tree.rename((from, name("f")), (to, name("g")), false).expect("rename");
        match fsynced {
            "from" => tree.fsync_dir(from).expect("fsync"),
            "to" => tree.fsync_dir(to).expect("fsync"),
            _ => {}
        }
        // Made after the move: it must not slip through with a late fsync of the other side.
        tree.create(from, name("f"), ATTR).expect("create");
        tree.fsync_dir(to).expect("fsync");
        cut(&mut tree);
        let (from, to) = (tree.lookup(ROOT, name("from")).expect("from"), tree.lookup(ROOT, name("to")).expect("to"));
        assert!(tree.lookup(to, name("g")).is_ok(), "{fsynced}");
        assert_eq!(tree.lookup(from, name("f")).is_ok(), fsynced == "neither", "{fsynced}");
    }
}

#[test]
fn an_unlinked_file_comes_back_until_its_directory_is_fsynced() {
    let (mut tree, ino) = tree_with("f", b"x");
    tree.fsync(ino).expect("fsync");
    tree.unlink(ROOT, name("f")).expect("unlink");
    cut(&mut tree);
    assert!(content(&tree, ROOT, "f").is_some());
    tree.unlink(ROOT, name("f")).expect("unlink");
    tree.fsync_dir(ROOT).expect("fsync");
    cut(&mut tree);
    assert_eq!(content(&tree, ROOT, "f"), None);
}

#[test]
fn hard_links_share_their_content_across_a_power_cut() {
    let (mut tree, ino) = tree_with("a", b"x");
    tree.fsync(ino).expect("fsync");
    tree.link(ino, ROOT, name("b")).expect("link");
    tree.fsync_dir(ROOT).expect("fsync");
    cut(&mut tree);
    let (a, b) = (tree.lookup(ROOT, name("a")).expect("a"), tree.lookup(ROOT, name("b")).expect("b"));
    assert_eq!((a, tree.stat(a).expect("stat").links), (b, 2));
}

#[test]
fn a_truncated_file_has_its_old_length_after_a_power_cut_and_zeros_where_it_grew_again() {
    let (mut tree, ino) = tree_with("f", &vec![7; 3 * PAGE]);
    tree.fsync(ino).expect("fsync");
    tree.truncate(ino, PAGE as u64 / 2).expect("truncate");
    tree.truncate(ino, 2 * PAGE as u64).expect("truncate");
    let mut expected = vec![7; PAGE / 2];
    expected.resize(2 * PAGE, 0);
    assert_eq!(content(&tree, ROOT, "f"), Some(expected));
    cut(&mut tree);
    assert_eq!(content(&tree, ROOT, "f"), Some(vec![7; 3 * PAGE]));
}

#[test]
fn an_open_file_without_a_name_lives_until_it_is_closed() {
    let (mut tree, ino) = tree_with("f", b"x");
    tree.open(ino).expect("open");
    tree.unlink(ROOT, name("f")).expect("unlink");
    assert_eq!(tree.read(ino, 0, 9).expect("read"), b"x");
    tree.release(ino);
    assert_eq!(tree.read(ino, 0, 9), Err(libc::ESTALE));
}

#[test]
fn a_torn_power_cut_keeps_whole_pages_and_all_that_was_durable() {
    let (mut tree, ino) = tree_with("f", &vec![1; 4 * PAGE]);
    tree.fsync(ino).expect("fsync");
    tree.write(ino, 0, &vec![2; 8 * PAGE]).expect("write");
    let mut turn = 0;
    tree.power_cut(|| {
        turn += 1;
        turn % 2 == 0
    });
    let bytes = content(&tree, ROOT, "f").expect("f");
    assert!(bytes.len() == 4 * PAGE || bytes.len() == 8 * PAGE);
    let first: Vec<u8> = bytes.chunks(PAGE).map(|page| page[0]).collect();
    assert!(bytes.chunks(PAGE).all(|page| page.iter().all(|byte| *byte == page[0])));
    assert_eq!(first[..4], [1, 2, 1, 2]);
}

#[test]
fn the_kernel_sees_the_same_rules() {
    if !fuse_works("the_kernel_sees_the_same_rules") {
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let disk = PowerCutFs::mount(dir.path()).expect("mount");
    let at = |file: &str| dir.path().join(file);

    let mut log = OpenOptions::new().create(true).append(true).open(at("log")).expect("open");
    log.write_all(b"one").expect("write");
    log.sync_data().expect("fsync");
    log.write_all(b"two").expect("write");
    fs::write(at("unsynced"), b"x").expect("write");
    drop(log);
    assert_eq!(fs::read(at("log")).expect("read"), b"onetwo");
    let dropped = disk.power_cut();
    assert_eq!(fs::read(at("log")).expect("read"), b"one");
    assert!(!at("unsynced").exists());
    // A file whose name is lost counts as a name.
    assert_eq!((dropped.files, dropped.names), (1, 1));

    fs::create_dir(at("d")).expect("mkdir");
    jindofs::runtime::write_durably(&at("d/state"), b"first").expect("write");
    File::open(dir.path()).and_then(|dir| dir.sync_all()).expect("fsync");
    fs::hard_link(at("d/state"), at("d/link")).expect("link");
    File::open(at("d")).and_then(|dir| dir.sync_all()).expect("fsync");
    disk.power_cut();
    assert_eq!(fs::read(at("d/link")).expect("read"), b"first");
    assert_eq!(fs::metadata(at("d/state")).expect("stat").nlink(), 2);

    disk.set_lie_about_fsync(true);
    jindofs::runtime::write_durably(&at("d/state"), b"second").expect("write");
    disk.set_lie_about_fsync(false);
    disk.power_cut();
    assert_eq!(fs::read(at("d/state")).expect("read"), b"first");

    disk.set_failure(Some(libc::EIO));
    let error = fs::write(at("d/more"), b"x").expect_err("the disk is broken");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert_eq!(fs::read(at("d/state")).expect("reads go on"), b"first");
    disk.set_failure(None);

    for number in 0..2000 {
        fs::write(at(&format!("d/{number}")), b"").expect("write");
    }
    assert_eq!(fs::read_dir(at("d")).expect("list").count(), 2002);
    fs::remove_dir_all(at("d")).expect("remove");
}

#[test]
fn large_files_are_read_back_as_written_in_any_order() {
    if !fuse_works("large_files_are_read_back_as_written_in_any_order") {
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let disk = PowerCutFs::mount(dir.path()).expect("mount");
    let mut file = OpenOptions::new().create_new(true).read(true).write(true).open(dir.path().join("f")).expect("open");
    let bytes: Vec<u8> = (0..5_000_000_u32).map(|i| (i / 7) as u8).collect();
    for (index, chunk) in bytes.chunks(77_777).enumerate().collect::<Vec<_>>().into_iter().rev() {
        file.write_all_at(chunk, index as u64 * 77_777).expect("write");
    }
    file.sync_all().expect("fsync");
    file.set_len(0).expect("truncate");
    file.seek(SeekFrom::Start(0)).expect("seek");
    drop(file);
    disk.power_cut();
    let mut read = Vec::new();
    File::open(dir.path().join("f")).and_then(|mut file| file.read_to_end(&mut read)).expect("read");
    assert!(read == bytes);
}

#[test]
fn rocksdb_keeps_synced_writes_and_loses_unsynced_ones() {
    if !fuse_works("rocksdb_keeps_synced_writes_and_loses_unsynced_ones") {
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let disk = PowerCutFs::mount(dir.path()).expect("mount");
    let path = dir.path().join("db");
    let mut options = rocksdb::Options::default();
    options.create_if_missing(true);
    let mut synced = rocksdb::WriteOptions::default();
    synced.set_sync(true);

    let db = rocksdb::DB::open(&options, &path).expect("open");
    for number in 0..500_u32 {
        db.put_opt(number.to_be_bytes(), vec![1; 300], &synced).expect("put");
    }
    db.put(b"unsynced", b"x").expect("put");
    // As a SIGKILL would: nothing of it runs again, and it is not closed.
    disk.set_failure(Some(libc::EIO));
    drop(db);
    disk.set_failure(None);
    let dropped = disk.power_cut();
    assert!(dropped.bytes > 0, "{dropped:?}");

    let db = rocksdb::DB::open(&options, &path).expect("open after the power cut");
    for number in 0..500_u32 {
        assert!(db.get(number.to_be_bytes()).expect("get").is_some(), "{number} is lost");
    }
    assert_eq!(db.get(b"unsynced").expect("get"), None);
    rocksdb::checkpoint::Checkpoint::new(&db)
        .and_then(|checkpoint| checkpoint.create_checkpoint(dir.path().join("checkpoint")))
        .expect("checkpoint by hard links");
    println!("{} fsyncs", disk.syncs());
}
