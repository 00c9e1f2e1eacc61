use super::*;

pub(super) const MIB: usize = 1 << 20;

pub(super) struct Bench {
    pub(super) staging: Staging,
    _dir: tempfile::TempDir,
}

pub(super) fn bench(limit: u64) -> Bench {
    let dir = tempfile::tempdir().expect("tempdir");
    let staging = Staging::new(dir.path().join("a/staging"), limit);
    staging.prepare().expect("a directory");
    Bench { staging, _dir: dir }
}

fn attr(inode: u64, token: &'static [u8], size: u64) -> Attr {
    Attr { inode, version_token: token.into(), size, mtime_ns: 5, ctime_ns: 6, ..Attr::default() }
}

impl Bench {
    /// An inode that is staged with `content`, clean.
    pub(super) async fn staged(&self, inode: u64, content: &[u8]) -> WriteGuard {
        let spool = self.staging.blank();
        spool.write(WritePosition::End, content).expect("written");
        let mut guard = self.staging.lock(inode).await;
        guard.begin(attr(inode, b"v1", content.len() as u64), spool);
        guard
    }

    /// Others have stored the version `newest`.
    fn store_elsewhere(&self, newest: &Attr) {
        if let Some(guard) = self.staging.superseded(newest).and_then(|staged| staged.try_lock()) {
            self.staging.remove(guard);
        }
    }

    fn read(&self, inode: u64) -> Vec<u8> {
        self.staging.ready(inode).expect("staged").read(0, u32::MAX).expect("read")
    }
}

#[tokio::test]
async fn growth_beyond_the_bound_is_refused_and_what_is_staged_stays() {
    let bench = bench(2 * MIB as u64);
    let mut one = bench.staged(1, &vec![1; MIB]).await;
    let mut two = bench.staged(2, &vec![2; MIB - 1]).await;
    two.write(WritePosition::End, b"x").expect("the last byte there is room for");
    for refused in [
        one.write(WritePosition::End, b"x"),
        two.truncate(2 * MIB as u64).map(|()| 0),
        one.write(WritePosition::At(9 << 30), b"x"),
    ] {
        assert_eq!(refused.expect_err("refused").kind, ErrorKind::NoSpace);
    }
    one.write(WritePosition::At(7), b"over what is there").expect("no growth");
    assert_eq!(bench.read(1).len(), MIB);
    assert_eq!(&bench.read(1)[7..25], b"over what is there");
    two.truncate(0).expect("shorter");
    one.write(WritePosition::End, b"x").expect("there is room again");
    bench.staging.remove(one);
    two.truncate(2 * MIB as u64).expect("what was dropped has made room");
}

#[tokio::test]
async fn what_outgrows_its_place_in_memory_goes_on_in_a_file_and_has_the_same_bytes() {
    let bench = bench(1 << 30);
    let mut guard = bench.staged(1, &[7; 1000]).await;
    guard.write(WritePosition::End, &vec![8; MIB]).expect("to a file");
    guard.write(WritePosition::At(3), b"x").expect("in the file");
    let read = bench.read(1);
    assert_eq!((read.len(), &read[2..5], read[999], read[1000]), (1000 + MIB, &[7, b'x', 7][..], 7, 8));
    guard.truncate(4).expect("shorter");
    assert_eq!(bench.read(1), [7, 7, 7, b'x']);
    // Many that are small by themselves, and more than memory takes together.
    let mut guards = Vec::new();
    for inode in 2..400 {
        guards.push(bench.staged(inode, &vec![inode.to_le_bytes()[0]; 100 << 10]).await);
    }
    assert!((2..400).all(|inode| bench.read(inode) == vec![inode.to_le_bytes()[0]; 100 << 10]));
    guards[0].write(WritePosition::End, b"end").expect("in memory");
    guards[397].write(WritePosition::End, b"end").expect("in a file");
    assert!([2, 399].iter().all(|inode| bench.read(*inode).ends_with(b"end")));
}

#[tokio::test]
async fn gaps_and_what_was_cut_off_read_as_zeros_and_appends_go_to_the_end() {
    let bench = bench(1 << 30);
    let mut guard = bench.staged(1, b"0123456789").await;
    guard.truncate(4).expect("shorter");
    guard.truncate(6).expect("longer");
    guard.write(WritePosition::End, b"end").expect("appended");
    guard.write(WritePosition::At(12), b"far").expect("behind a gap");
    guard.write(WritePosition::End, b"!").expect("appended");
    assert_eq!(bench.read(1), b"0123\0\0end\0\0\0far!");
    let staged = bench.staging.ready(1).expect("staged");
    assert_eq!(staged.read(13, 2).expect("read"), b"ar");
    assert_eq!(staged.read(99, 2).expect("read"), b"");
    assert_eq!(guard.content().expect("content").length, 16);
}

#[tokio::test]
async fn attributes_show_what_is_not_stored_yet_and_nothing_else() {
    let bench = bench(1 << 30);
    let known = attr(1, b"v1", 10);
    assert_eq!(*bench.staging.overlay(1, &known), known, "nothing is staged");
    let mut guard = bench.staged(1, b"0123456789").await;
    assert_eq!(*bench.staging.overlay(1, &known), known, "nothing has changed");
    guard.write(WritePosition::End, b"!").expect("written");
    let seen = bench.staging.overlay(1, &known).into_owned();
    assert_eq!((seen.size, seen.version_token.as_ref()), (11, &b"v1"[..]));
    assert!(seen.mtime_ns > known.mtime_ns && seen.ctime_ns >= seen.mtime_ns);
    assert_eq!(*bench.staging.overlay(2, &attr(2, b"v1", 3)), attr(2, b"v1", 3), "another file");
    guard.mark_stored(attr(1, b"v2", 11));
    assert_eq!(*bench.staging.overlay(1, &attr(1, b"v3", 7)), attr(1, b"v3", 7), "somebody else has stored it since");
    guard.mark_unlinked();
    assert_eq!(bench.staging.overlay(1, &known).size, 11, "its handles still see it");
}

#[tokio::test]
async fn what_was_written_waits_to_be_stored_and_what_has_no_name_any_more_never_does() {
    let bench = bench(1 << 30);
    let mut guard = bench.staged(1, b"content").await;
    assert!(!guard.is_due(), "it is stored");
    guard.write(WritePosition::At(0), b"C").expect("written");
    assert!(guard.is_due());
    guard.mark_unlinked();
    guard.write(WritePosition::End, b", more").expect("its handles go on");
    assert!(guard.is_dirty() && !guard.is_due());
    drop(guard);
    bench.store_elsewhere(&attr(1, b"v9", 3));
    assert_eq!(bench.read(1), b"Content, more");
}

#[tokio::test]
async fn what_is_stored_gives_way_to_a_newer_version_and_what_is_not_does_not() {
    let bench = bench(1 << 30);
    let mut guard = bench.staged(1, b"old").await;
    guard.touch(Unsaved::Written);
    drop(guard);
    bench.store_elsewhere(&attr(1, b"v9", 3));
    let mut guard = bench.staging.lock_if_staged(1).await.expect("still there");
    guard.mark_stored(attr(1, b"v2", 3));
    bench.store_elsewhere(&attr(1, b"v9", 3));
    assert!(bench.staging.ready(1).is_some(), "somebody has the turn");
    drop(guard);
    bench.store_elsewhere(&attr(1, b"v2", 3));
    assert!(bench.staging.ready(1).is_some(), "it is that version");
    bench.store_elsewhere(&attr(1, b"v9", 3));
    assert!(bench.staging.ready(1).is_none());
}

#[tokio::test]
async fn what_was_stored_stays_when_an_answer_comes_that_was_read_before() {
    let bench = bench(1 << 30);
    let at = |version, token, size| Attr { version, ..attr(1, token, size) };
    let mut guard = bench.staged(1, b"new").await;
    guard.mark_stored(at(2, b"v2", 3));
    drop(guard);
    bench.store_elsewhere(&at(1, b"v1", 9));
    assert_eq!(bench.read(1), b"new");
    bench.store_elsewhere(&at(3, b"v3", 9));
    assert!(bench.staging.ready(1).is_none());
}

#[tokio::test]
async fn a_new_file_waits_to_be_stored_and_gives_way_to_what_others_store_until_it_is_written() {
    let bench = bench(1 << 30);
    for written in [false, true] {
        bench.staging.begin_new(attr(1, b"", 0), None);
        let mut guard = bench.staging.lock_if_staged(1).await.expect("staged");
        assert!(guard.is_due() && guard.is_new() && !bench.staging.has_private_view(1), "everybody sees an empty file");
        if written {
            guard.write(WritePosition::End, b"x").expect("written");
            assert!(guard.is_due() && !guard.is_new() && bench.staging.has_private_view(1));
            guard.mark_new(None);
            assert!(!guard.is_new(), "something is written");
        }
        drop(guard);
        bench.store_elsewhere(&attr(1, b"", 0));
        assert!(bench.staging.ready(1).is_some(), "nobody has stored anything");
        bench.store_elsewhere(&attr(1, b"v9", 3));
        assert_eq!(bench.staging.ready(1).is_some(), written);
    }
}

#[tokio::test]
async fn a_new_file_is_forgotten_with_its_session_or_when_the_masters_are_told_so_until_it_is_stored() {
    let bench = bench(1 << 30);
    let [first, second] = [&b"first"[..], b"second"].map(Bytes::from_static);
    bench.staging.begin_new(attr(1, b"", 0), Some(first.clone()));
    let mut guard = bench.staging.lock_if_staged(1).await.expect("staged");
    assert!(!guard.is_forgotten(Some(&first)) && guard.is_forgotten(Some(&second)) && guard.is_forgotten(None));
    guard.mark_new(Some(second.clone()));
    assert!(guard.is_new() && !guard.is_forgotten(Some(&second)), "it was made again");
    guard.detach_from_session();
    assert!(guard.is_forgotten(Some(&second)));
    guard.mark_stored(attr(1, b"v1", 0));
    assert!(!guard.is_forgotten(Some(&first)), "it goes with no session any more");
    guard.detach_from_session();
    assert!(!guard.is_forgotten(Some(&first)));
}

#[tokio::test]
async fn what_is_stored_as_another_inode_is_seen_by_its_handles_as_they_have_written_it() {
    let bench = bench(1 << 30);
    bench.staging.begin_new(attr(1, b"", 0), None);
    let mut guard = bench.staging.lock_if_staged(1).await.expect("staged");
    guard.rebase(attr(2, b"", 0));
    guard.write(WritePosition::End, b"content").expect("written");
    guard.mark_stored(attr(2, b"v1", 7));
    drop(guard);
    bench.store_elsewhere(&attr(1, b"v9", 3));
    assert_eq!(bench.read(1), b"content");
    assert_eq!(bench.staging.overlay(1, &attr(1, b"", 0)).size, 7);
}

#[tokio::test]
async fn whoever_waited_for_a_turn_that_was_the_last_gets_one_of_a_new_entry() {
    let bench = bench(1 << 30);
    let guard = bench.staged(1, b"old").await;
    assert!(bench.staging.is_busy(|_| true));
    assert!(bench.staging.ready(1).expect("staged").try_lock().is_none(), "it is taken");
    let mut next = std::pin::pin!(bench.staging.lock(1));
    assert!(futures::poll!(next.as_mut()).is_pending());
    bench.staging.remove_unless(guard, || false);
    let next = next.await;
    assert!(!next.is_ready(), "nothing of the entry before");
    assert!(bench.staging.ready(1).is_none(), "readers do not see what is not here yet");
    bench.staging.remove_unless(next, || true);
    assert!(!bench.staging.is_busy(|_| true));
}

#[tokio::test]
async fn a_file_that_was_changed_and_not_stored_has_the_node_by_which_it_was_changed() {
    let bench = bench(1 << 30);
    let second = 1 << 56 | 1;
    let mut guard = bench.staging.lock(second).await;
    guard.begin(attr(1, b"v1", 3), bench.staging.blank());
    assert_eq!(bench.staging.changed_node(1), None, "nothing was changed");
    guard.truncate(0).expect("cut off");
    assert_eq!(bench.staging.changed_node(1), Some(second));
    guard.mark_stored(attr(1, b"v2", 0));
    assert_eq!(bench.staging.changed_node(1), None, "it is stored");
    bench.staging.begin_new(attr(2, b"", 0), None);
    assert_eq!(bench.staging.changed_node(2), None, "everybody sees the same new file");
}

#[test]
fn a_directory_of_somebody_else_or_no_directory_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let file = dir.path().join("file");
    fs::write(&file, b"").expect("written");
    assert!(Staging::new(file, 1).prepare().is_err());
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(dir.path(), &link).expect("link");
    assert_eq!(Staging::new(link, 1).prepare().expect_err("a link").kind, ErrorKind::NotADirectory);
    let staging = Staging::new(dir.path().join("d"), 4 << 20);
    staging.prepare().expect("made");
    staging.prepare().expect("as good");
    staging.blank().write(WritePosition::At(2 << 20), b"far").expect("in a file");
    assert_eq!(fs::read_dir(dir.path().join("d")).expect("listed").count(), 0, "its files have no names");
    staging.clear();
    assert!(!dir.path().join("d").exists());
}

#[tokio::test]
async fn only_what_was_written_since_a_file_was_made_or_cut_off_is_content() {
    let bench = bench(1 << 30);
    bench.staging.begin_new(attr(1, b"", 0), None);
    let mut cut = bench.staged(2, b"old").await;
    cut.truncate(0).expect("cut off");
    drop(cut);
    assert!(
        bench.staging.has_private_view(2) && !bench.staging.has_private_view(1),
        "others see the old content, and the new file"
    );
    let mut unwritten = bench.staging.unwritten();
    unwritten.sort_unstable();
    assert_eq!(unwritten, [1, 2]);
    assert!(bench.staging.is_busy(|_| false) && !bench.staging.is_busy(|_| true), "they wait, unless they are open");
    for inode in [1, 2] {
        let mut guard = bench.staging.lock_if_staged(inode).await.expect("staged");
        assert!(guard.is_due() && !guard.is_written());
        guard.write(WritePosition::End, b"x").expect("written");
        assert!(guard.is_written());
        guard.truncate(0).expect("cut off");
        assert!(guard.is_due() && !guard.is_written());
        guard.truncate(1).expect("longer");
        assert!(guard.is_written(), "zeros are content");
        guard.mark_stored(attr(inode, b"v2", 1));
        assert!(!guard.is_due() && !guard.is_written());
    }
    assert!(bench.staging.unwritten().is_empty());
}
