use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Timespec, Timestamps};

use super::*;

/// A directory and what serves it.
fn storage() -> (tempfile::TempDir, Local) {
    let dir = tempfile::tempdir().expect("tempdir");
    let ufs = Local::new(dir.path().to_owned());
    (dir, ufs)
}

/// Owner and group of who runs the tests.
fn attr() -> NewAttr {
    NewAttr { mode: 0o750, uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
}

fn content(bytes: &[u8]) -> Content {
    let file = tempfile::tempfile().expect("tempfile");
    file.write_all_at(bytes, 0).expect("write");
    Content::in_file(Arc::new(file), bytes.len() as u64)
}

/// From a file if there are many, as a client does.
fn put(ufs: &Local, path: &[u8], bytes: &[u8], expected: Expected<'_>) -> Result<Entry> {
    let content = if bytes.len() > 3 { content(bytes) } else { Content::in_memory(Bytes::copy_from_slice(bytes)) };
    ufs.put_now(path, &content, expected, attr(), 7)
}

fn names(path: &Path) -> Vec<String> {
    let items = std::fs::read_dir(path).expect("read_dir");
    let mut names: Vec<_> = items.map(|item| item.expect("item").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn kind_of<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.expect_err("refused").kind
}

#[test]
fn a_replaced_file_is_stale_and_links_never_lead_outside() {
    let (dir, ufs) = storage();
    std::fs::create_dir(dir.path().join("d")).expect("mkdir");
    std::fs::write(dir.path().join("d/f"), b"hello").expect("write");
    symlink("/etc", dir.path().join("out")).expect("symlink");
    let entry = ufs.stat_now(b"d/f").expect("stat").expect("there");
    assert_eq!(&ufs.read_now(b"d/f", &entry.token, 1, 10).expect("read")[..], b"ello");
    std::fs::write(dir.path().join("d/f2"), b"other").expect("write");
    std::fs::rename(dir.path().join("d/f2"), dir.path().join("d/f")).expect("rename");
    assert_eq!(ufs.read_now(b"d/f", &entry.token, 0, 5).expect_err("replaced").kind, ErrorKind::Stale);
    assert_eq!(ufs.stat_now(b"out/passwd").expect("stat"), None);
    assert_eq!(ufs.read_now(b"out/passwd", b"", 0, 1).expect_err("outside").kind, ErrorKind::Stale);
    assert_eq!(ufs.stat_now(b"out").expect("stat").expect("there").symlink_target, b"/etc");
    let listed = ufs.list_now(b"").expect("list").entries;
    let names: Vec<_> = listed.into_iter().map(|one| (one.name, one.kind, one.symlink_target)).collect();
    let link = (b"out".to_vec(), Kind::Symlink, b"/etc".to_vec());
    assert_eq!(names, [(b"d".to_vec(), Kind::Directory, Vec::new()), link]);
    assert_eq!(ufs.list_now(b"nothing").expect("empty").entries.len(), 0);
    drop(dir);
    for path in [&b""[..], b"d"] {
        assert_eq!(kind_of(ufs.list_now(path)), ErrorKind::UnderStorage, "the root is gone");
    }
    assert_eq!(kind_of(ufs.stat_now(b"d")), ErrorKind::UnderStorage);
    assert_eq!(kind_of(ufs.read_now(b"d/f", &entry.token, 0, 5)), ErrorKind::UnderStorage);
    assert_eq!(kind_of(ufs.remove_now(b"d/f", &entry.token)), ErrorKind::UnderStorage);
    assert_eq!(kind_of(ufs.holds_something()), ErrorKind::NotFound, "nothing is to be mounted there");
}

#[test]
fn content_is_stored_whole_and_only_in_the_place_of_what_was_expected() {
    let (dir, ufs) = storage();
    let one = put(&ufs, b"f", b"one", Expected::Absent).expect("new");
    assert_eq!(Some(&one), ufs.stat_now(b"f").expect("stat").as_ref());
    assert_eq!((one.size, one.mode, &one.name[..]), (3, 0o750, &b"f"[..]));
    assert_eq!(kind_of(put(&ufs, b"f", b"two", Expected::Absent)), ErrorKind::Stale);
    assert_eq!(kind_of(put(&ufs, b"f", b"two", Expected::Token(b"another"))), ErrorKind::Stale);
    assert_eq!(std::fs::read(dir.path().join("f")).expect("read"), b"one");
    // More than is copied at once.
    let long = vec![b'2'; 3 << 20];
    let two = put(&ufs, b"f", &long, Expected::Token(&one.token)).expect("replaced");
    assert_ne!(one.token, two.token);
    assert_eq!(kind_of(put(&ufs, b"f", b"three", Expected::Token(&one.token))), ErrorKind::Stale);
    assert_eq!(std::fs::read(dir.path().join("f")).expect("read"), long);
    std::fs::remove_file(dir.path().join("f")).expect("remove");
    assert_eq!(kind_of(put(&ufs, b"f", b"three", Expected::Token(&two.token))), ErrorKind::Stale);
    assert_eq!(kind_of(put(&ufs, b"no/f", b"four", Expected::Absent)), ErrorKind::NotFound);
    assert_eq!(kind_of(put(&ufs, b"no/f", b"four", Expected::Token(&two.token))), ErrorKind::Stale);
    assert_eq!(names(dir.path()), [""; 0]);
}

/// Content of a new file `f` that is on disk before it is put.
async fn prepared(ufs: &Local, bytes: &[u8]) -> Content {
    let content = Content::in_memory(Bytes::copy_from_slice(bytes));
    let prepared = ufs.prepare(b"f", content.clone(), attr()).await;
    Content { prepared, ..content }
}

#[test]
fn extended_attributes_outlive_a_change_of_the_content_and_capabilities_and_hard_links_do_not() {
    use rustix::fs::{XattrFlags, getxattr, setxattr};
    let (dir, ufs) = storage();
    let path = dir.path().join("f");
    let first = put(&ufs, b"f", b"first", Expected::Absent).expect("stored");
    setxattr(&path, "user.empty", b"", XattrFlags::empty()).expect("set");
    setxattr(&path, "user.origin", b"elsewhere", XattrFlags::empty()).expect("set");
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        let chown = [1, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        setxattr(&path, "security.capability", &chown, XattrFlags::empty()).expect("set");
    }
    std::fs::hard_link(&path, dir.path().join("other")).expect("linked");
    put(&ufs, b"f", b"second", Expected::Token(&first.token)).expect("stored");
    let mut value = [0; 64];
    assert_eq!(getxattr(&path, "user.origin", &mut value[..]), Ok(9));
    assert_eq!(&value[..9], b"elsewhere");
    assert_eq!(getxattr(&path, "user.empty", &mut value[..]), Ok(0));
    let lost = getxattr(&path, "security.capability", &mut value[..]);
    assert_eq!(lost, Err(rustix::io::Errno::NODATA), "as when a file is written in place");
    assert_eq!(std::fs::metadata(&path).expect("stat").mode() & 0o7777, 0o750);
    assert_eq!(std::fs::read(&path).expect("read"), b"second");
    assert_eq!(std::fs::read(dir.path().join("other")).expect("read"), b"first");
}

#[tokio::test]
async fn what_was_prepared_has_no_name_before_it_is_put_and_takes_the_place_of_nothing() {
    let (dir, ufs) = storage();
    let content = prepared(&ufs, b"one").await;
    assert_eq!(names(dir.path()), [""; 0]);
    let one = ufs.put_now(b"f", &content, Expected::Absent, attr(), 7).expect("put");
    assert_eq!(Some(&one), ufs.stat_now(b"f").expect("stat").as_ref());
    assert_eq!((one.size, one.mode), (3, 0o750));
    let content = prepared(&ufs, b"two").await;
    assert_eq!(kind_of(ufs.put_now(b"f", &content, Expected::Absent, attr(), 7)), ErrorKind::Stale);
    let content = prepared(&ufs, b"three").await;
    ufs.put_now(b"f", &content, Expected::Token(&one.token), attr(), 7).expect("replaced, by another way");
    assert_eq!(std::fs::read(dir.path().join("f")).expect("read"), b"three");
    std::fs::remove_file(dir.path().join("f")).expect("removed");
    let content = prepared(&ufs, b"four").await;
    let other = NewAttr { mode: 0o600, ..attr() };
    let four = ufs.put_now(b"f", &content, Expected::Absent, other, 7).expect("with other attributes");
    assert_eq!((four.size, four.mode), (4, 0o600));
    assert!(ufs.prepare(b"no/f", content, attr()).await.take().is_none(), "there is no such directory");
    assert_eq!(names(dir.path()), ["f"]);
}

#[test]
fn a_refused_put_leaves_nothing_behind() {
    let (dir, ufs) = storage();
    let short = Content { length: 9, ..content(b"short") };
    let refused = ufs.put_now(b"f", &short, Expected::Absent, attr(), 7);
    assert_eq!(kind_of(refused), ErrorKind::UnderStorage);
    assert_eq!(names(dir.path()), [""; 0]);
    let long = [b'n'; 256];
    assert_eq!(kind_of(put(&ufs, &long, b"x", Expected::Absent)), ErrorKind::NameTooLong);
    assert_eq!(kind_of(put(&ufs, b"", b"x", Expected::Absent)), ErrorKind::InvalidArgument);
    assert_eq!(kind_of(put(&ufs, b"..", b"x", Expected::Absent)), ErrorKind::InvalidArgument);
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn what_a_put_that_was_cut_off_has_left_is_hidden_replaced_by_the_next_and_cleaned() {
    let (dir, ufs) = storage();
    let left = |intent: u64| dir.path().join(format!(".jindofs-put-{intent}"));
    std::fs::write(left(7), b"half of").expect("write");
    std::fs::write(left(8), b"half of").expect("write");
    assert_eq!(ufs.list_now(b"").expect("list"), Listing::default());
    assert_eq!(ufs.stat_now(b".jindofs-put-8").expect("stat"), None);
    assert_eq!(kind_of(ufs.read_now(b".jindofs-put-8", b"", 0, 1)), ErrorKind::Stale);
    assert_eq!(kind_of(put(&ufs, b".jindofs-put-9", b"x", Expected::Absent)), ErrorKind::InvalidArgument);
    put(&ufs, b"f", b"whole", Expected::Absent).expect("the same intent again");
    assert_eq!(names(dir.path()), [".jindofs-put-8", "f"]);
    for _ in 0..2 {
        ufs.clean_now(b"f", 8).expect("clean");
        ufs.clean_now(b"no/f", 8).expect("there is no such directory");
    }
    assert_eq!(names(dir.path()), ["f"]);
}

#[test]
fn no_change_is_made_behind_a_symbolic_link() {
    let (dir, ufs) = storage();
    let outside = tempfile::tempdir().expect("tempdir");
    std::fs::write(outside.path().join("f"), b"theirs").expect("write");
    std::fs::create_dir(outside.path().join("d")).expect("mkdir");
    symlink(outside.path(), dir.path().join("out")).expect("symlink");
    put(&ufs, b"mine", b"mine", Expected::Absent).expect("put");
    let theirs = token_of(&std::fs::metadata(outside.path().join("f")).expect("metadata"));
    let mine = ufs.stat_now(b"mine").expect("stat").expect("there").token;
    assert_eq!(kind_of(put(&ufs, b"out/new", b"x", Expected::Absent)), ErrorKind::NotFound);
    assert_eq!(kind_of(put(&ufs, b"out/f", b"x", Expected::Token(&theirs))), ErrorKind::Stale);
    ufs.clean_now(b"out/f", 7).expect("nothing is there");
    assert_eq!(kind_of(ufs.make_directory_now(b"out/n", attr())), ErrorKind::NotFound);
    assert_eq!(kind_of(ufs.make_symlink_now(b"out/n", b"f", attr())), ErrorKind::NotFound);
    ufs.remove_now(b"out/f", &theirs).expect("nothing is there");
    ufs.remove_directory_now(b"out/d").expect("nothing is there");
    assert_eq!(kind_of(ufs.rename_now(b"out/f", &theirs, b"f", Expected::Absent)), ErrorKind::Stale);
    assert_eq!(kind_of(ufs.rename_now(b"mine", &mine, b"out/mine", Expected::Absent)), ErrorKind::NotFound);
    let change = AttrChange { mode: Some(0), ..AttrChange::default() };
    assert_eq!(kind_of(ufs.set_attr_now(b"out/f", change)), ErrorKind::NotFound);
    assert_eq!(kind_of(ufs.make_directory_now(b"out", attr())), ErrorKind::AlreadyExists);
    assert_eq!(kind_of(put(&ufs, b"out", b"x", Expected::Absent)), ErrorKind::Stale);
    assert_eq!(names(outside.path()), ["d", "f"]);
    assert_eq!(std::fs::read(outside.path().join("f")).expect("read"), b"theirs");
    // The link itself is one of ours.
    let change = AttrChange { mode: Some(0), mtime_ns: Some(5_000_000_001), ..AttrChange::default() };
    let link = ufs.set_attr_now(b"out", change).expect("set_attr");
    assert_eq!((link.kind, link.mtime_ns), (Kind::Symlink, 5_000_000_001));
    assert_ne!(std::fs::metadata(outside.path()).expect("metadata").mtime(), 5);
    ufs.remove_now(b"out", b"").expect("remove");
    assert_eq!(names(dir.path()), ["mine"]);
}

#[test]
fn a_change_that_is_repeated_is_done() {
    let (dir, ufs) = storage();
    let made = ufs.make_directory_now(b"d", attr()).expect("mkdir");
    assert_eq!((made.kind, made.mode), (Kind::Directory, 0o750));
    let other = NewAttr { mode: 0o700, ..attr() };
    assert_eq!(ufs.make_directory_now(b"d", other).expect("again"), made);
    let link = ufs.make_symlink_now(b"l", b"d/f", attr()).expect("symlink");
    assert_eq!(ufs.make_symlink_now(b"l", b"d/f", attr()).expect("again"), link);
    assert_eq!(kind_of(ufs.make_symlink_now(b"l", b"elsewhere", attr())), ErrorKind::AlreadyExists);
    assert_eq!(kind_of(ufs.make_directory_now(b"l", attr())), ErrorKind::AlreadyExists);

    let token = put(&ufs, b"f", b"moves", Expected::Absent).expect("put").token;
    for _ in 0..2 {
        let moved = ufs.rename_now(b"f", &token, b"d/f", Expected::Absent).expect("rename");
        assert_eq!((&moved.name[..], &moved.token), (&b"f"[..], &token));
        ufs.rename_now(b"l", b"", b"m", Expected::Absent).expect("rename of a link");
    }
    assert_eq!(kind_of(ufs.remove_directory_now(b"d")), ErrorKind::NotEmpty);
    for _ in 0..2 {
        ufs.remove_now(b"d/f", &token).expect("remove");
        ufs.remove_now(b"m", b"").expect("remove of a link");
    }
    for _ in 0..2 {
        ufs.rename_now(b"d", b"", b"e", Expected::Absent).expect("rename of a directory");
    }
    for _ in 0..2 {
        ufs.remove_directory_now(b"e").expect("rmdir");
        ufs.remove_directory_now(b"e/deeper").expect("rmdir");
    }
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn nothing_is_removed_or_moved_that_is_not_what_was_meant() {
    let (dir, ufs) = storage();
    let file = put(&ufs, b"f", b"file", Expected::Absent).expect("put");
    let other = put(&ufs, b"g", b"other", Expected::Absent).expect("put");
    ufs.make_directory_now(b"d", attr()).expect("mkdir");
    ufs.make_directory_now(b"d/full", attr()).expect("mkdir");
    ufs.make_directory_now(b"empty", attr()).expect("mkdir");
    assert_eq!(kind_of(ufs.remove_now(b"f", &other.token)), ErrorKind::Stale);
    assert_eq!(kind_of(ufs.remove_now(b"f", b"")), ErrorKind::Stale);
    assert_eq!(kind_of(ufs.remove_now(b"d", b"")), ErrorKind::IsADirectory);
    assert_eq!(kind_of(ufs.remove_directory_now(b"f")), ErrorKind::NotADirectory);
    let rename =
        |from: &[u8], token: &[u8], to: &[u8], expected: Expected<'_>| ufs.rename_now(from, token, to, expected);
    assert_eq!(kind_of(rename(b"f", &other.token, b"h", Expected::Absent)), ErrorKind::Stale);
    assert_eq!(kind_of(rename(b"f", b"", b"h", Expected::Absent)), ErrorKind::Stale);
    assert_eq!(kind_of(rename(b"d", &file.token, b"h", Expected::Absent)), ErrorKind::Stale);
    assert_eq!(kind_of(rename(b"f", &file.token, b"g", Expected::Absent)), ErrorKind::Stale);
    assert_eq!(kind_of(rename(b"f", &file.token, b"g", Expected::Token(&file.token))), ErrorKind::Stale);
    assert_eq!(kind_of(rename(b"f", &file.token, b"h", Expected::Token(&other.token))), ErrorKind::Stale);
    assert_eq!(kind_of(rename(b"no", &file.token, b"g", Expected::Absent)), ErrorKind::Stale);
    assert_eq!(kind_of(rename(b"empty", b"", b"d", Expected::Token(b""))), ErrorKind::NotEmpty);
    assert_eq!(kind_of(rename(b"d", b"", b"d/full/d", Expected::Absent)), ErrorKind::InvalidArgument);
    assert_eq!(names(dir.path()), ["d", "empty", "f", "g"]);
    rename(b"f", &file.token, b"g", Expected::Token(&other.token)).expect("replaced");
    rename(b"d", b"", b"empty", Expected::Token(b"")).expect("in place of an empty directory");
    assert_eq!(names(dir.path()), ["empty", "g"]);
    assert_eq!(names(&dir.path().join("empty")), ["full"]);
}

#[test]
fn attributes_that_are_not_named_stay() {
    let (_dir, ufs) = storage();
    let made = put(&ufs, b"f", b"x", Expected::Absent).expect("put");
    let set = |change: AttrChange| ufs.set_attr_now(b"f", change).expect("set_attr");
    let owner = AttrChange { uid: Some(attr().uid), gid: Some(attr().gid), ..AttrChange::default() };
    for _ in 0..2 {
        let mode = set(AttrChange { mode: Some(0o4711), ..owner });
        assert_eq!((mode.mode, mode.mtime_ns, &mode.token), (0o4711, made.mtime_ns, &made.token));
    }
    let before_the_epoch = set(AttrChange { mtime_ns: Some(-1), ..AttrChange::default() });
    assert_eq!((before_the_epoch.mode, before_the_epoch.mtime_ns), (0o4711, -1));
    assert_eq!(ufs.stat_now(b"f").expect("stat"), Some(before_the_epoch));
    assert_eq!(kind_of(ufs.set_attr_now(b"no", owner)), ErrorKind::NotFound);
    let root = ufs.set_attr_now(b"", AttrChange { mode: Some(0o710), ..AttrChange::default() }).expect("the root");
    assert_eq!((root.kind, root.mode), (Kind::Directory, 0o710));
}

#[test]
fn times_that_no_nanoseconds_count_are_told_as_far_as_they_reach_and_versions_differ_by_them() {
    let (dir, ufs) = storage();
    let file = std::fs::File::create(dir.path().join("f")).expect("made");
    let entry_at = |seconds: i64| {
        let time = Timespec { tv_sec: seconds, tv_nsec: 5 };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::futimens(&file, &times).expect("set");
        ufs.stat_now(b"f").expect("stat").expect("there")
    };
    let (past, far, farther) = (entry_at(-315_619_200), entry_at(10_413_792_000), entry_at(10_413_792_001));
    assert_eq!(past.mtime_ns, -315_619_199_999_999_995);
    assert_eq!((far.mtime_ns, farther.mtime_ns), (i64::MAX, i64::MAX));
    assert_ne!(far.token, farther.token);
    assert_eq!(ufs.list_now(b"").expect("listed").entries, [farther]);
}
