//! Files that a store does not take: what is told when, and that nothing of them is left for anybody.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use s3s::S3ErrorCode;
use serde_json::json;

use super::writes::{errno, names, off, stored, wait_stored, writable, writable_twice};
use super::{Site, content};
use crate::support::agent::{Agent, Refusal, decode, encode};
use crate::support::cluster::PATIENCE;
use crate::support::s3::trouble::Kind;
use crate::support::small_disk::SmallDisk;
use crate::support::{fuse_works, wait_for, wait_until};

/// Makes a file, writes to it unless there is nothing to write, and closes it.
fn put(path: &Path, bytes: &[u8], flags: i32) -> Result<(), Refusal> {
    let mut agent = Agent::start();
    agent.call(&json!(["open", "f", path, libc::O_WRONLY | libc::O_CREAT | flags, 0o644]))?;
    if !bytes.is_empty() {
        agent.call(&json!(["write", "f", 0, encode(bytes)])).expect("staged");
    }
    agent.call(&json!(["close", "f"])).map(drop)
}

/// Waits until nobody sees a file, and its name is free: on its own mount, on another and in the under-storage.
async fn assert_gone(site: &Site, second: &Path, path: &str) {
    let places: [PathBuf; 2] = [site.mnt.join(path), second.join(path)];
    off(move || {
        for place in places {
            let (dir, name) = (place.parent().expect("a directory").to_owned(), place.file_name().expect("a name"));
            wait_for(&format!("{} is gone", place.display()), PATIENCE, || {
                let gone =
                    fs::symlink_metadata(&place).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
                (gone && !names(&dir).iter().any(|seen| OsStr::new(seen) == name)).then_some(())
            });
        }
    })
    .await;
    assert_eq!(stored(site, path).await, None, "{path}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_a_store_cannot_hold_is_refused_when_the_file_is_opened() {
    if !fuse_works("a_name_that_a_store_cannot_hold_is_refused_when_the_file_is_opened") {
        return;
    }
    let site = writable(1, |_| {}).await;
    let oss = super::oss::mount_oss(&site).await;
    let mnt = site.mnt.clone();
    off(move || {
        let long = vec!["x".repeat(250); 5].join("/");
        for storage in ["s3", "oss"] {
            fs::create_dir_all(mnt.join(storage).join(&long[..4 * 251 - 1])).expect("short enough");
        }
        let bucket: [(&[u8], i32); 4] = [
            (b"\xff\xfe", libc::EINVAL),
            (b" f", libc::EINVAL),
            (b"f ", libc::EINVAL),
            (long.as_bytes(), libc::ENAMETOOLONG),
        ];
        let local: [(&[u8], i32); 1] = [(b".jindofs-put-7", libc::EINVAL)];
        for (storage, refused) in [("s3", &bucket[..]), ("oss", &bucket[..]), ("local", &local[..])] {
            for (name, expected) in refused {
                let path = mnt.join(storage).join(OsStr::from_bytes(name));
                for flags in [0, libc::O_EXCL] {
                    let open =
                        fs::OpenOptions::new().write(true).create(true).truncate(false).custom_flags(flags).open(&path);
                    assert_eq!(errno(open), *expected, "{}, {flags}", path.display());
                }
                assert!(fs::symlink_metadata(&path).is_err(), "{}", path.display());
            }
        }
        assert!(names(&mnt.join("local")).is_empty());
        assert_eq!(names(&mnt.join("s3")).len(), 1);
    })
    .await;
    drop(oss);
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_whose_first_store_is_denied_is_told_by_its_close_and_leaves_nothing() {
    if !fuse_works("a_file_whose_first_store_is_denied_is_told_by_its_close_and_leaves_nothing") {
        return;
    }
    let (site, second) = writable_twice(1, |_| {}).await;
    let troubles = site.s3.control.troubles.clone();
    for (name, bytes, flags) in [
        ("written", &b"content"[..], 0),
        ("exclusive", b"content", libc::O_EXCL),
        ("empty", b"", 0),
        ("touched", b"", libc::O_EXCL),
    ] {
        let path = format!("s3/{name}");
        troubles.deny(Kind::Put, name, true);
        let at = site.mnt.join(&path);
        let closed = off(move || put(&at, bytes, flags)).await;
        // What was never written is stored after the last close, which nobody is told of.
        let told = closed.err().map(|refusal| refusal.errno);
        assert_eq!(told, (!bytes.is_empty()).then_some(libc::EACCES), "{path}");
        assert_gone(&site, &second, &path).await;
        // The kernel may still know the name.
        let at = site.mnt.join(&path);
        let again = off(move || (put(&at, b"again", 0), put(&at, b"and again", 0))).await;
        assert_eq!([again.0, again.1].map(|closed| closed.err().map(|refusal| refusal.errno)), [Some(libc::EACCES); 2]);
        assert_gone(&site, &second, &path).await;
        troubles.deny(Kind::Put, name, false);
        let at = site.mnt.join(&path);
        off(move || put(&at, b"now", 0)).await.expect("the name is free, and the store takes it");
        assert_eq!(stored(&site, &path).await.as_deref(), Some(&b"now"[..]));
    }
    let at = site.mnt.join("s3/node");
    troubles.deny(Kind::Put, "node", true);
    let refused = off(move || Agent::start().call(&json!(["mknod", at, libc::S_IFREG | 0o644]))).await;
    assert_eq!(refused.expect_err("it is not stored").errno, libc::EACCES);
    assert_gone(&site, &second, "s3/node").await;
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_that_a_store_does_not_take_changes_nothing_for_who_has_the_file_open() {
    if !fuse_works("a_length_that_a_store_does_not_take_changes_nothing_for_who_has_the_file_open") {
        return;
    }
    let site = writable(1, |_| {}).await;
    let (at, troubles) = (site.mnt.join("s3/f"), site.s3.control.troubles.clone());
    off(move || {
        fs::write(&at, b"content").expect("written");
        troubles.deny(Kind::Put, "f", true);
        for flags in [libc::O_RDONLY, libc::O_RDWR] {
            let mut agent = Agent::start();
            agent.call(&json!(["open", "f", at, flags, 0])).expect("open");
            let refused = Agent::start().call(&json!(["truncate", at, 3]));
            assert_eq!(refused.expect_err("it is not stored").errno, libc::EACCES);
            assert_eq!(agent.call(&json!(["fstat", "f"])).expect("stat")["size"], 7, "{flags}");
            let read = agent.call(&json!(["read", "f"])).expect("read");
            assert_eq!(decode(&read), b"content", "{flags}");
        }
    })
    .await;
    assert_eq!(stored(&site, "s3/f").await.as_deref(), Some(&b"content"[..]));
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_file_whose_close_fails_in_an_outage_of_its_store_is_gone_when_that_answers_again() {
    if !fuse_works("a_new_file_whose_close_fails_in_an_outage_of_its_store_is_gone_when_that_answers_again") {
        return;
    }
    let short = ("fs.jindocache.rpc.timeout".into(), "3s".into());
    let (site, second) = writable_twice(1, |dev| dev.settings.push(short)).await;
    assert!(site.names("s3").await.is_empty(), "it is known what is there");
    site.s3.control.fail_next(u64::MAX);
    let at = site.mnt.join("s3/f");
    let closed = off(move || put(&at, b"content", 0)).await;
    assert_eq!(closed.expect_err("the store does not answer").errno, libc::EIO);
    wait_until("it is given up after its last close", PATIENCE, || site.cluster.log_of("fuse-0").contains("is lost"))
        .await;
    site.s3.control.fail_next(0);
    // Its session lives.
    assert_gone(&site, &second, "s3/f").await;
    let at = site.mnt.join("s3/f");
    off(move || put(&at, b"again", 0)).await.expect("the name is free, and the store takes it");
    assert_eq!(stored(&site, "s3/f").await.as_deref(), Some(&b"again"[..]));
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_file_that_a_full_store_does_not_take_leaves_nothing() {
    if !fuse_works("a_new_file_that_a_full_store_does_not_take_leaves_nothing") {
        return;
    }
    let site = writable(1, |_| {}).await;
    let disk = SmallDisk::at(&site.dir.path().join("small"), "16m");
    let root = disk.0.join("data");
    fs::create_dir(&root).expect("made");
    site.ctl_ok(&["mount", "add", "/small", &format!("local://{}", root.display())]);
    disk.fill_but(100_000);
    let at = site.mnt.join("small/new");
    let closed = off(move || put(&at, &content(1 << 20, 3), 0)).await;
    assert_eq!(closed.expect_err("there is no room").errno, libc::ENOSPC);
    wait_for("others do not see it", PATIENCE, || {
        (!site.ctl(&["fs", "stat", "/small/new"]).status.success()).then_some(())
    });
    let dir = site.mnt.join("small");
    off(move || wait_for("its mount does not see it", PATIENCE, || names(&dir).is_empty().then_some(()))).await;
    assert!(names(&root).is_empty());
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_another_mount_has_made_as_well_stays_though_one_cannot_store_it() {
    if !fuse_works("a_file_that_another_mount_has_made_as_well_stays_though_one_cannot_store_it") {
        return;
    }
    let late = |dev: &mut jindofs::dev::DevOptions| {
        dev.env.insert("fuse-1".into(), [("JINDOFS_FAILPOINTS".into(), "batch.send=sleep(300)".into())].into());
    };
    let (site, second) = writable_twice(1, late).await;
    let (control, one, two) = (site.s3.control.clone(), site.mnt.join("s3/f"), second.join("s3/f"));
    let troubles = control.troubles.clone();
    off(move || {
        let open = |path: &Path| {
            let mut agent = Agent::start();
            agent.call(&json!(["open", "f", path, libc::O_WRONLY | libc::O_CREAT, 0o644])).expect("made");
            agent
        };
        // The second does not know yet that there is one when it makes it.
        let (mut other, mut first) = (open(&two), open(&one));
        other.call(&json!(["close_copy", "f"])).expect("both have made it");
        troubles.deny(Kind::Put, "f", true);
        first.call(&json!(["write", "f", 0, encode(b"first")])).expect("staged");
        assert_eq!(first.call(&json!(["close", "f"])).expect_err("denied").errno, libc::EACCES);
        // Its last close tries once more.
        wait_for("it has given up", PATIENCE, || (control.requests().get("PUT") == Some(&2)).then_some(()));
        troubles.deny(Kind::Put, "f", false);
        other.call(&json!(["write", "f", 0, encode(b"second")])).expect("staged");
        other.call(&json!(["close", "f"])).expect("stored");
    })
    .await;
    assert_eq!(stored(&site, "s3/f").await.as_deref(), Some(&b"second"[..]));
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_made_again_while_its_store_still_fails_is_there_when_that_answers() {
    if !fuse_works("a_file_that_is_made_again_while_its_store_still_fails_is_there_when_that_answers") {
        return;
    }
    let short = ("fs.jindocache.rpc.timeout".into(), "3s".into());
    let site = writable(1, |dev| dev.settings.push(short)).await;
    assert!(site.names("s3").await.is_empty(), "it is known what is there");
    site.s3.control.fail_next(u64::MAX);
    for name in ["empty", "written"] {
        let at = site.mnt.join("s3").join(name);
        let closed = off(move || put(&at, b"content", 0)).await;
        assert_eq!(closed.expect_err("the store does not answer").errno, libc::EIO);
    }
    let given_up = || site.cluster.log_of("fuse-0").matches("is lost").count() == 2;
    wait_until("both are given up after their last closes", PATIENCE, given_up).await;
    let (empty, written) = (site.mnt.join("s3/empty"), site.mnt.join("s3/written"));
    let mut agent = off(move || {
        put(&empty, b"", libc::O_TRUNC).expect("it is stored behind its close");
        let mut agent = Agent::start();
        agent
            .call(&json!(["open", "f", written, libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC, 0o644]))
            .expect("open");
        agent.call(&json!(["write", "f", 0, encode(b"again")])).expect("staged");
        agent
    })
    .await;
    site.s3.control.fail_next(0);
    wait_stored(&site, "s3/empty", b"").await;
    off(move || agent.call(&json!(["close", "f"])).map(drop)).await.expect("the store answers");
    wait_stored(&site, "s3/written", b"again").await;
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_could_not_be_cut_off_is_the_old_one_again_though_a_reader_has_it_open() {
    if !fuse_works("a_file_that_could_not_be_cut_off_is_the_old_one_again_though_a_reader_has_it_open") {
        return;
    }
    let site = writable(1, |_| {}).await;
    let (at, troubles) = (site.mnt.join("s3/log"), site.s3.control.troubles.clone());
    let denied = troubles.clone();
    let reader = off(move || {
        fs::write(&at, b"old").expect("written");
        let mut reader = Agent::start();
        reader.call(&json!(["open", "r", at, libc::O_RDONLY, 0])).expect("open");
        denied.deny(Kind::Put, "log", true);
        put(&at, b"", libc::O_TRUNC).expect("nobody waits for what is stored behind a close");
        reader
    })
    .await;
    wait_until("it is given up", PATIENCE, || site.cluster.log_of("fuse-0").contains("is lost")).await;
    troubles.deny(Kind::Put, "log", false);
    let at = site.mnt.join("s3/log");
    off(move || {
        let mut reader = reader;
        assert_eq!(decode(&reader.call(&json!(["read", "r"])).expect("read")), b"old");
        put(&at, b" and more", libc::O_APPEND).expect("appended to what is there");
    })
    .await;
    wait_stored(&site, "s3/log", b"old and more").await;
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_new_file_does_not_come_back_when_its_last_reader_closes_it() {
    if !fuse_works("a_refused_new_file_does_not_come_back_when_its_last_reader_closes_it") {
        return;
    }
    let (site, second) = writable_twice(1, |_| {}).await;
    let (at, troubles) = (site.mnt.join("s3/f"), site.s3.control.troubles.clone());
    let reader = off(move || {
        troubles.deny(Kind::Put, "f", true);
        let (mut writer, mut reader) = (Agent::start(), Agent::start());
        writer.call(&json!(["open", "f", at, libc::O_WRONLY | libc::O_CREAT, 0o644])).expect("made");
        writer.call(&json!(["write", "f", 0, encode(b"content")])).expect("staged");
        reader.call(&json!(["open", "r", at, libc::O_RDONLY, 0])).expect("open");
        assert_eq!(writer.call(&json!(["close", "f"])).expect_err("denied").errno, libc::EACCES);
        reader
    })
    .await;
    assert_gone(&site, &second, "s3/f").await;
    site.s3.control.troubles.deny(Kind::Put, "f", false);
    off(move || {
        let mut reader = reader;
        assert_eq!(decode(&reader.call(&json!(["read", "r"])).expect("read")), b"content", "its own handles have it");
        reader.call(&json!(["close", "r"])).expect("closed");
    })
    .await;
    let at = site.mnt.join("s3/other");
    off(move || put(&at, b"later", 0)).await.expect("the store takes what comes after it");
    assert_gone(&site, &second, "s3/f").await;
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_to_the_name_of_a_refused_file_is_stored_though_a_reader_keeps_that() {
    if !fuse_works("what_is_written_to_the_name_of_a_refused_file_is_stored_though_a_reader_keeps_that") {
        return;
    }
    let site = writable(1, |dev| dev.settings.push(("fuse.attr-ttl".into(), "60s".into()))).await;
    let (at, troubles) = (site.mnt.join("s3/f"), site.s3.control.troubles.clone());
    troubles.deny(Kind::Put, "f", true);
    let reader = off(move || {
        let (mut writer, mut reader) = (Agent::start(), Agent::start());
        writer.call(&json!(["open", "f", at, libc::O_WRONLY | libc::O_CREAT, 0o644])).expect("made");
        reader.call(&json!(["open", "r", at, libc::O_RDONLY, 0])).expect("open");
        writer.call(&json!(["write", "f", 0, encode(b"refused")])).expect("staged");
        assert_eq!(writer.call(&json!(["close", "f"])).expect_err("denied").errno, libc::EACCES);
        reader
    })
    .await;
    wait_for("others do not see it", PATIENCE, || (!site.ctl(&["fs", "stat", "/s3/f"]).status.success()).then_some(()));
    troubles.deny(Kind::Put, "f", false);
    let at = site.mnt.join("s3/f");
    off(move || put(&at, b"stored", libc::O_TRUNC)).await.expect("the kernel still knows the name");
    assert_eq!(stored(&site, "s3/f").await.as_deref(), Some(&b"stored"[..]));
    let mut reader = reader;
    let read = off(move || decode(&reader.call(&json!(["read", "r"])).expect("read"))).await;
    assert_eq!(read, b"refused", "its own handles have it");
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_file_that_is_locked_is_tried_again_only_when_a_handle_of_it_is_closed() {
    if !fuse_works("a_refused_file_that_is_locked_is_tried_again_only_when_a_handle_of_it_is_closed") {
        return;
    }
    let site = writable(1, |_| {}).await;
    let (at, control) = (site.mnt.join("s3/f"), site.s3.control.clone());
    off(move || {
        control.troubles.deny(Kind::Put, "f", true);
        let (mut writer, mut reader) = (Agent::start(), Agent::start());
        writer.call(&json!(["open", "f", at, libc::O_WRONLY | libc::O_CREAT, 0o644])).expect("made");
        writer.call(&json!(["write", "f", 0, encode(b"content")])).expect("staged");
        reader.call(&json!(["open", "r", at, libc::O_RDONLY, 0])).expect("open");
        reader.call(&json!(["flock", "r"])).expect("locked");
        assert_eq!(writer.call(&json!(["close", "f"])).expect_err("denied").errno, libc::EACCES);
        let puts = || control.requests().get("PUT").copied().unwrap_or_default();
        wait_for("it is tried behind the close", PATIENCE, || (puts() == 2).then_some(()));
        control.troubles.deny(Kind::Put, "f", false);
        // What comes later through the same mount is stored, and nothing of the refused one meanwhile.
        let dir = at.parent().expect("a directory");
        for number in 0..20 {
            put(&dir.join(format!("later-{number}")), b"later", 0).expect("stored");
        }
        assert_eq!(puts(), 22, "the refused one is not tried all the time");
        reader.call(&json!(["close", "r"])).expect("closed");
    })
    .await;
    wait_stored(&site, "s3/f", b"content").await;
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_stored_though_any_two_requests_in_a_row_fail_for_a_moment() {
    if !fuse_works("a_file_is_stored_though_any_two_requests_in_a_row_fail_for_a_moment") {
        return;
    }
    let site = writable(1, |_| {}).await;
    assert!(site.names("s3").await.is_empty(), "it is known what is there");
    // One request, and two parts.
    for (length, requests) in [(7, 1), (9 << 20, 5)] {
        for code in [S3ErrorCode::SlowDown, S3ErrorCode::InternalError, S3ErrorCode::ServiceUnavailable] {
            for passed in 0..requests {
                let (at, bytes) = (site.mnt.join("s3/f"), content(length, passed));
                let (refused, control) = (site.s3.control.refused(), site.s3.control.clone());
                let mut agent = Agent::start();
                let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
                agent.call(&json!(["open", "f", at, flags, 0o644])).expect("open");
                control.fail_later(passed.into(), 2, code.clone());
                let told = format!("{length} bytes, {code:?} after {passed} requests");
                let wrote = bytes.clone();
                let done = off(move || {
                    agent
                        .call(&json!(["write", "f", 0, encode(&wrote)]))
                        .and_then(|_| agent.call(&json!(["close", "f"])))
                })
                .await;
                control.fail_later(0, 0, code.clone());
                done.unwrap_or_else(|refusal| panic!("{told}: {refusal:?}"));
                assert_eq!(control.refused() - refused, 2, "{told}");
                assert!(stored(&site, "s3/f").await.as_deref() == Some(&bytes[..]), "{told}");
            }
        }
    }
    site.cluster.assert_no_panic();
}
