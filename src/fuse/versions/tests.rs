use std::time::Instant;

use futures::FutureExt;
use jindofs_proto::v1::FileType;
use tokio::runtime::Handle;

use super::super::nodes::{Joined, Opening};
use super::super::staging::WritePosition;
use super::super::write::Write;
use super::*;
use crate::client::mounts::Mounts;
use crate::client::reader::Reader;
use crate::config::source::FlagValue;
use crate::config::{FuseConfig, Role, Settings};
use crate::rpc::channel::MasterChannel;
use crate::rpc::source::source_of;

/// A mount that no kernel asks, and whose masters do not answer.
struct Bench {
    fs: Arc<Fs>,
    number: u64,
    _dir: tempfile::TempDir,
}

/// Attributes of a file of which everything tells the version.
fn attr(version: u64) -> Attr {
    let token = format!("version {version}").into_bytes().into();
    let mtime_ns = i64::try_from(version).expect("small");
    let mut attr = Attr {
        inode: 5,
        mode: 0o644,
        version,
        version_token: token,
        size: version * 1000,
        mtime_ns,
        ..Attr::default()
    };
    attr.set_type(FileType::File);
    attr
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().expect("tempdir");
        let [mount, staging] = ["mnt", "staging"].map(|name| dir.path().join(name));
        let given = [
            "fs.jindocache.namespace.rpc.address=127.0.0.1:1".to_owned(),
            "fs.jindocache.rpc.timeout=1s".to_owned(),
            "fuse.attr-ttl=60s".to_owned(),
            "fuse.writable=true".to_owned(),
            format!("fuse.mount={}", mount.display()),
            format!("fuse.staging.dir={}", staging.display()),
        ];
        let flags: Vec<_> = given.iter().map(|text| FlagValue::from_set(text).expect("KEY=VALUE")).collect();
        let settings = Settings::load(Role::Fuse, None, &|_| None, &flags).expect("loads");
        let config = FuseConfig::from_settings(&settings).expect("valid");
        let channel = MasterChannel::new(&config.client);
        let mounts = Arc::new(Mounts::new(channel.clone()));
        let reader = Reader::new(channel.clone(), mounts.clone(), None);
        let fs = Fs::new(&config, channel, mounts, reader);
        fs.staging.prepare().expect("a directory");
        Bench { fs, number: 0, _dir: dir }
    }

    /// Opens a handle of a node for a version.
    fn open(&mut self, node: u64, attr: &Attr, writes: bool) {
        self.number += 1;
        let (number, file) = (self.number, self.fs.reader.open(source_of(attr, Vec::new())));
        self.fs.handles.add_file(number, node, file.source.version, writes).expect("noted");
        let joined = self.fs.nodes.join(node, Opening { number, file, attr: attr.clone(), writes, direct: false });
        assert!(matches!(joined, Joined::Here(_)));
    }

    /// The turn of a node whose content is staged, and is that of the version `base`.
    async fn staged(&self, node: u64, base: &Attr) -> WriteGuard {
        let content = self.fs.staging.blank();
        let bytes = vec![u8::try_from(base.version).expect("small"); usize::try_from(base.size).expect("small")];
        content.write(WritePosition::End, &bytes).expect("written");
        let mut guard = self.fs.staging.lock(node).await;
        guard.begin(base.clone(), content);
        guard
    }

    /// What a node reads: its version, if all of that is there, staged or stored.
    fn read(&self, node: u64) -> u64 {
        match self.fs.staging.ready_for(node) {
            Some(staged) => u64::from(staged.read(0, 1).expect("read")[0]),
            None => self.fs.nodes.file(node).expect("open").source.length / 1000,
        }
    }
}

#[tokio::test]
async fn an_answer_that_was_overtaken_moves_no_node_and_takes_nothing_away_that_was_stored_since() {
    let mut bench = Bench::new();
    bench.open(5, &attr(2), true);
    let fs = bench.fs.clone();
    assert!(!fs.is_behind(5, &attr(1)) && !fs.may_move(5, &attr(1)), "read before the version was stored");
    assert!(!fs.may_stand_for(5, &attr(1)), "and no change is made from it");
    assert!(!fs.is_behind(5, &attr(2)) && fs.may_stand_for(5, &attr(2)));
    assert!(fs.is_behind(5, &attr(3)) && fs.may_move(5, &attr(3)));
    drop(bench.staged(5, &attr(2)).await);
    fs.give_way(&attr(1), true).await.expect("nothing to do");
    assert_eq!(bench.read(5), 2);
    assert!(fs.staging.ready_for(5).is_some());
    fs.give_way(&attr(3), true).await.expect("gone");
    assert!(fs.staging.ready_for(5).is_none());
    assert_eq!(bench.read(5), 3);
}

#[tokio::test]
async fn a_file_that_another_task_changes_is_shown_as_one_version_as_a_whole_and_moves_after_that() {
    let mut bench = Bench::new();
    bench.open(5, &attr(2), true);
    let fs = bench.fs.clone();
    let guard = bench.staged(5, &attr(2)).await;
    fs.inodes.entered(1, b"f", Known::new(attr(3), Instant::now()));
    let shown = fs.attr_of_node(5).await.expect("known").attr;
    assert_eq!((shown.size, shown.mtime_ns, bench.read(5)), (2000, 2, 2));
    assert!(fs.attr_of_node_now(5).is_none(), "it moves as soon as it can");
    drop(guard);
    let before = fs.attr_of_node(5).await.expect("known");
    assert!(before.attr.size == 2000 && before.passing && fs.ttl_of(&before).is_zero(), "by the kernel's pages");
    assert_eq!(fs.attr_of_node(5).await.expect("known").attr.size, 3000);
    assert!(fs.staging.ready_for(5).is_none());
    assert_eq!(bench.read(5), 3);
}

#[tokio::test]
async fn what_is_staged_gives_way_when_another_task_is_done_with_it_and_not_before_its_node_has_moved() {
    let mut bench = Bench::new();
    bench.open(5, &attr(2), true);
    let fs = bench.fs.clone();
    let guard = bench.staged(5, &attr(2)).await;
    assert_eq!(fs.give_way(&attr(3), true).await.expect_err("held").kind, ErrorKind::Timeout);
    assert_eq!(bench.read(5), 2);
    drop(guard);
    let lies_below_a_mount = Attr { mount_id: 1, ..attr(3) };
    fs.give_way(&lies_below_a_mount, true).await.expect_err("no master tells where its content is");
    assert!(fs.staging.ready_for(5).is_some(), "readers go on with it");
    let guard = fs.staging.lock_if_staged(5).await.expect("staged");
    let newest = attr(3);
    let mut gives_way = std::pin::pin!(fs.give_way(&newest, true));
    assert!(futures::poll!(gives_way.as_mut()).is_pending());
    drop(guard);
    gives_way.await.expect("gone");
    assert!(fs.staging.ready_for(5).is_none());
    assert_eq!(bench.read(5), 3);
}

#[tokio::test]
async fn what_is_written_while_it_is_waited_for_does_not_give_way() {
    let mut bench = Bench::new();
    bench.open(5, &attr(2), true);
    let fs = bench.fs.clone();
    let mut guard = bench.staged(5, &attr(2)).await;
    let newest = attr(3);
    let mut gives_way = std::pin::pin!(fs.give_way(&newest, true));
    assert!(futures::poll!(gives_way.as_mut()).is_pending());
    guard.write(WritePosition::At(0), b"x").expect("written");
    drop(guard);
    gives_way.await.expect("nothing to do");
    assert_eq!(bench.read(5), u64::from(b'x'), "its close is told");
}

#[tokio::test]
async fn pages_that_a_mapping_has_changed_are_refused_until_the_kernel_has_dropped_those_of_the_version_before() {
    let mut bench = Bench::new();
    bench.open(5, &attr(2), true);
    let fs = bench.fs.clone();
    drop(bench.staged(5, &attr(3)).await);
    let page = Write { place: WritePosition::At(0), offset: 0, from_pages: true, data: b"x" };
    fs.nodes.move_to(5, &fs.reader.open(source_of(&attr(3), Vec::new())), &attr(3));
    assert!(fs.write_now(5, page, &Handle::current()).is_none());
    assert_eq!(fs.write(5, page).await.expect_err("of the version before").kind, ErrorKind::Stale);
    assert!(fs.write_now(5, Write { from_pages: false, ..page }, &Handle::current()).is_some(), "has all its bytes");
    let stale = fs.nodes.stale_pages(5).expect("no kernel has dropped them");
    fs.nodes.dropped(5, stale);
    fs.write_now(5, page, &Handle::current()).expect("read since").expect("written");
}

#[tokio::test]
async fn who_looks_at_attributes_waits_for_pages_to_be_dropped_and_who_changes_them_does_not() {
    let mut bench = Bench::new();
    bench.open(5, &attr(2), true);
    let fs = bench.fs.clone();
    fs.inodes.entered(1, b"f", Known::new(attr(3), Instant::now()));
    let changed = fs.attr_of_changed_node(5).now_or_never().expect("at once").expect("known");
    assert_eq!(changed.attr.size, 2000, "the kernel may still have its pages");
    let moved = async {
        while bench.read(5) != 3 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), moved).await.expect("it moves after that");
    fs.stale_pages_dropped(5, None).await.expect("dropped");
    fs.nodes.spoil(5, 0, true);
    let passing = fs.attr_of_changed_node(5).now_or_never().expect("at once").expect("known");
    assert!(fs.ttl_of(&passing).is_zero(), "the kernel keeps no attributes");
    assert!(fs.attr_of_node_now(5).is_none());
    let limit = Some(Duration::from_millis(1));
    assert_eq!(fs.stale_pages_dropped(5, limit).await.expect_err("nobody drops them").kind, ErrorKind::Timeout);
    fs.drop_stale_pages(5);
    fs.stale_pages_dropped(5, None).await.expect("dropped");
    let shown = fs.attr_of_node(5).await.expect("known");
    assert!(shown.attr.size == 3000 && !shown.passing);
}

#[tokio::test]
async fn a_read_of_a_version_that_is_gone_goes_on_with_what_its_node_was_moved_to_by_another_read() {
    let mut bench = Bench::new();
    bench.open(5, &attr(2), true);
    let fs = bench.fs.clone();
    let before = fs.nodes.file(5).expect("open");
    fs.nodes.move_to(5, &fs.reader.open(source_of(&attr(3), Vec::new())), &attr(3));
    let instead = fs.source_instead(5, &before).await.expect("it has moved");
    assert_eq!(instead.source.version, version_of(&attr(3).version_token));
}

#[tokio::test]
async fn the_length_of_a_version_is_shown_when_the_pages_of_the_one_before_are_dropped_and_not_earlier() {
    let mut bench = Bench::new();
    bench.open(5, &attr(2), false);
    let fs = bench.fs.clone();
    let newest = Attr { prefix_since: 1, ..attr(3) };
    fs.nodes.move_to(5, &fs.reader.open(source_of(&newest, Vec::new())), &newest);
    let shown = || fs.view_of(5, Known::new(newest.clone(), Instant::now())).attr.size;
    assert_eq!((shown(), bench.read(5)), (2000, 3), "what is read behind the old end is there before it is seen");
    assert!(fs.is_to_follow(5, &newest));
    fs.drop_stale_pages(5);
    fs.stale_pages_dropped(5, None).await.expect("dropped");
    assert_eq!(shown(), 3000);
}

#[tokio::test]
async fn a_node_that_stays_behind_shows_the_length_of_its_version_and_the_mode_of_the_file() {
    let mut bench = Bench::new();
    bench.open(5, &attr(2), false);
    let newest = Attr { mode: 0o600, uid: 7, gid: 8, nlink: 0, ctime_ns: 99, ..attr(3) };
    let shown = bench.fs.view_of(5, Known::new(newest, Instant::now())).attr;
    assert_eq!(shown, Attr { mode: 0o600, uid: 7, gid: 8, nlink: 0, ctime_ns: 99, ..attr(2) });
    drop(bench.staged(5, &attr(2)).await);
    let newest = Attr { mode: 0o640, ..attr(4) };
    let shown = bench.fs.view_of(5, Known::new(newest, Instant::now())).attr;
    assert_eq!(shown, Attr { mode: 0o640, ..attr(2) }, "what is staged is that version, too");
}
