//! Slow and failing fsyncs of the disk that forgets, checked by themselves: first in the tree, then through the kernel.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant, SystemTime};

use super::content::SECTOR;
use super::tree::{Attr, Ino, ROOT, Tree};
use super::{PowerCutFs, Which};
use crate::support::{fuse_works, wait_for};

const ATTR: Attr = Attr { mode: 0o644, uid: 0, gid: 0, mtime: SystemTime::UNIX_EPOCH };

fn name(text: &str) -> &OsStr {
    OsStr::new(text)
}

/// A tree with a durable file of four sectors of ones.
fn tree_with_file() -> (Tree, Ino) {
    let mut tree = Tree::new(ATTR);
    let ino = tree.create(ROOT, name("f"), ATTR).expect("create");
    tree.write(ino, 0, &[1; 4 * SECTOR]).expect("write");
    tree.fsync(ino).expect("fsync");
    (tree, ino)
}

/// The first byte of each sector of the file.
fn sectors(tree: &Tree) -> Vec<u8> {
    let ino = tree.lookup(ROOT, name("f")).expect("f");
    tree.read(ino, 0, 1 << 20).expect("read").chunks(SECTOR).map(|sector| sector[0]).collect()
}

fn cut(tree: &mut Tree) -> u64 {
    tree.power_cut(|| false).bytes
}

#[test]
fn what_a_failed_fsync_should_have_written_is_readable_and_no_later_fsync_writes_it() {
    let (mut tree, ino) = tree_with_file();
    tree.write(ino, SECTOR as u64, &[2; 2 * SECTOR]).expect("write");
    tree.fail_fsync(ino).expect("fail");
    assert_eq!(sectors(&tree), [1, 2, 2, 1]);
    tree.fsync(ino).expect("it succeeds, as every page is clean");
    assert_eq!(sectors(&tree), [1, 2, 2, 1]);
    assert_eq!(cut(&mut tree), 2 * SECTOR as u64);
    assert_eq!(sectors(&tree), [1, 1, 1, 1]);
}

#[test]
fn sectors_written_again_after_a_failed_fsync_are_durable_with_the_next_one() {
    let (mut tree, ino) = tree_with_file();
    tree.write(ino, SECTOR as u64, &[2; 2 * SECTOR]).expect("write");
    tree.fail_fsync(ino).expect("fail");
    // One byte takes its sector with it, and leaves the other lost.
    tree.write(ino, SECTOR as u64 + 7, &[2]).expect("write again");
    tree.write(ino, 4 * SECTOR as u64, &[3; SECTOR]).expect("write more");
    tree.fsync(ino).expect("fsync");
    assert_eq!(sectors(&tree), [1, 2, 2, 1, 3]);
    assert_eq!(cut(&mut tree), SECTOR as u64);
    assert_eq!(sectors(&tree), [1, 2, 1, 1, 3]);
}

#[test]
fn dropped_caches_show_what_the_disk_has_and_keep_what_is_dirty() {
    let (mut tree, ino) = tree_with_file();
    tree.write(ino, 0, &[2; 2 * SECTOR]).expect("write");
    tree.fail_fsync(ino).expect("fail");
    tree.write(ino, 0, &[3; SECTOR]).expect("write");
    assert_eq!(tree.drop_caches(), SECTOR as u64);
    assert_eq!(sectors(&tree), [3, 1, 1, 1]);
    tree.fsync(ino).expect("fsync");
    assert_eq!(cut(&mut tree), 0);
    assert_eq!(sectors(&tree), [3, 1, 1, 1]);
}

#[test]
fn a_new_file_whose_fsync_failed_has_its_name_and_length_and_holes_after_a_later_one() {
    let mut tree = Tree::new(ATTR);
    let ino = tree.create(ROOT, name("new"), ATTR).expect("create");
    tree.write(ino, 0, &[2; SECTOR]).expect("write");
    tree.fail_fsync(ino).expect("fail");
    tree.rename((ROOT, name("new")), (ROOT, name("f")), false).expect("rename");
    tree.fsync(ino).expect("fsync");
    tree.fsync_dir(ROOT).expect("fsync");
    cut(&mut tree);
    assert_eq!(sectors(&tree), [0]);
}

#[test]
fn a_file_cut_short_and_grown_again_reads_zeros_after_a_failed_fsync_in_between() {
    let (mut tree, ino) = tree_with_file();
    tree.truncate(ino, SECTOR as u64).expect("truncate");
    tree.fail_fsync(ino).expect("fail");
    tree.fsync(ino).expect("fsync");
    tree.truncate(ino, 3 * SECTOR as u64).expect("grow");
    tree.fsync(ino).expect("fsync");
    cut(&mut tree);
    assert_eq!(sectors(&tree), [1, 0, 0]);
}

#[test]
fn names_that_a_failed_fsync_should_have_written_are_lost_unless_they_are_changed_again() {
    let mut tree = Tree::new(ATTR);
    let from = tree.mkdir(ROOT, name("from"), ATTR).expect("mkdir");
    tree.fsync_dir(ROOT).expect("fsync");
    for file in ["lost", "again", "moved"] {
        tree.create(from, name(file), ATTR).expect("create");
    }
    tree.rename((from, name("moved")), (ROOT, name("moved")), false).expect("rename");
    tree.fail_fsync(from).expect("fail");
    let lost = tree.lookup(from, name("lost")).expect("it is there until the power is cut");
    tree.rename((from, name("again")), (from, name("kept")), false).expect("rename");
    tree.rename((from, name("kept")), (from, name("again")), false).expect("rename");
    tree.create(from, name("later"), ATTR).expect("create");
    tree.fsync(lost).expect("fsync");
    tree.fsync_dir(from).expect("fsync");
    tree.fsync_dir(ROOT).expect("fsync");
    assert_eq!(tree.power_cut(|| false).names, 2);
    let from = tree.lookup(ROOT, name("from")).expect("from");
    let left: Vec<_> = tree.list(from).expect("list").into_iter().map(|(name, _)| name).collect();
    assert_eq!(left, ["again", "later"]);
    assert_eq!(tree.lookup(ROOT, name("moved")), Err(libc::ENOENT));
}

#[test]
fn a_path_is_known_as_long_as_there_is_a_name() {
    let mut tree = Tree::new(ATTR);
    let dir = tree.mkdir(ROOT, name("d"), ATTR).expect("mkdir");
    let file = tree.create(dir, name("f"), ATTR).expect("create");
    tree.open(file).expect("open");
    assert_eq!([ROOT, dir, file].map(|ino| tree.path_of(ino).expect("a name")), ["", "d", "d/f"]);
    tree.unlink(dir, name("f")).expect("unlink");
    assert_eq!(tree.path_of(file), None);
}

/// Writes a sector at the start of a file and fsyncs it.
fn write_synced(file: &File, byte: u8) -> io::Result<()> {
    file.write_all_at(&[byte; SECTOR], 0)?;
    file.sync_data()
}

#[test]
fn the_kernel_passes_on_failed_fsyncs_of_the_files_that_a_pattern_names() {
    if !fuse_works("the_kernel_passes_on_failed_fsyncs") {
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let disk = PowerCutFs::mount(dir.path()).expect("mount");
    let at = |file: &str| dir.path().join(file);
    let open = |file: &str| OpenOptions::new().create(true).truncate(false).write(true).open(at(file)).expect("open");
    let first = |file: &str| fs::read(at(file)).expect("read")[0];
    let (log, other) = (open("a.log"), open("other"));
    for file in [&log, &other] {
        write_synced(file, 1).expect("fsync");
    }

    let fault = disk.fail_syncs("*.log", Which::Nth(2));
    write_synced(&log, 2).expect("the first one is left alone");
    write_synced(&other, 2).expect("another file");
    let error = write_synced(&log, 3).expect_err("the second one");
    assert_eq!((error.raw_os_error(), fault.hits()), (Some(libc::EIO), 1));
    log.sync_data().expect("clean");
    drop(log);
    assert_eq!(first("a.log"), 3);
    assert_eq!(disk.drop_caches(), SECTOR as u64);
    assert_eq!(first("a.log"), 2);

    let log = open("a.log");
    let fault = disk.fail_syncs("a.*", Which::From(2));
    write_synced(&log, 4).expect("the first one is left alone");
    for _ in 0..2 {
        write_synced(&log, 5).expect_err("all that follow");
    }
    fault.set_on(false);
    log.sync_all().expect("healed");
    drop((log, other));
    disk.power_cut();
    assert_eq!((first("a.log"), first("other"), fault.hits()), (4, 2, 2));

    let fault = disk.fail_syncs("", Which::All);
    let sync = || File::open(dir.path()).and_then(|root| root.sync_all());
    fs::write(at("name"), b"x").expect("write");
    assert_eq!(sync().expect_err("the directory itself").raw_os_error(), Some(libc::EIO));
    fault.set_on(false);
    sync().expect("healed");
    disk.power_cut();
    assert!(!at("name").exists());
}

#[test]
fn a_delayed_fsync_holds_up_its_caller_alone_and_is_not_durable_before_it_ends() {
    if !fuse_works("a_delayed_fsync_holds_up_its_caller_alone") {
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let disk = PowerCutFs::mount(dir.path()).expect("mount");
    let delay = Duration::from_millis(700);
    let slow = disk.delay_syncs("slow-*", delay);
    let files: Vec<File> =
        (0..4).map(|number| File::create(dir.path().join(format!("slow-{number}"))).expect("create")).collect();
    let began = Instant::now();
    std::thread::scope(|scope| {
        for file in &files {
            scope.spawn(|| write_synced(file, 1).expect("fsync"));
        }
        wait_for("all fsyncs are under way", Duration::from_secs(10), || (slow.hits() == 4).then_some(()));
        let other = File::create(dir.path().join("other")).expect("create");
        write_synced(&other, 1).expect("fsync");
        assert!(began.elapsed() < delay, "another file waited: {:?}", began.elapsed());
        assert_eq!(disk.syncs(), 1, "an fsync that is delayed has not taken effect");
    });
    assert!(began.elapsed() >= delay, "{:?}", began.elapsed());
    drop(files);
    disk.power_cut();
    assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 5);
}
