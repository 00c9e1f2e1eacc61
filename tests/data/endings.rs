//! Small new files, whose writers are answered before the masters have recorded what is stored: nobody sees a difference.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use jindofs::client::at_path;
use jindofs::error::ErrorKind;
use jindofs_proto::v1::SetAttrRequest;

use super::Site;
use super::crashes::wait_down;
use super::writes::{names, off, stored, writable_twice};
use crate::support::cluster::PATIENCE;
use crate::support::{fuse_works, wait_for, wait_until};

/// The client of the first mount.
const WRITER: &str = "fuse-0";
/// The only master, or one of them.
const MASTER: &str = "master-0";
/// Far longer than anybody waits for a record, and shorter than a session.
const LATE: &str = "batch.send=1+sleep(400)";

/// Starts a process anew, with these failpoints.
fn arm(site: &Site, process: &str, points: Option<&str>) {
    if site.cluster.dev.process(process).expect("a process").pid.is_some() {
        site.cluster.dev.kill(process).expect("killed");
    }
    site.cluster.dev.set_env(process, "JINDOFS_FAILPOINTS", points).expect("set");
    site.cluster.dev.restart(process).expect("started");
}

/// A new file. Dropped, a file does not tell what its close says; a sync is answered as that is.
fn write_and_sync(path: &Path) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(b"answered")?;
    file.sync_all()
}

/// What a mount shows of a directory: every file with its length and its bytes.
fn shown(dir: &Path) -> Vec<(String, u64, Vec<u8>)> {
    let one = |name: String| {
        let length = fs::metadata(dir.join(&name)).expect("attributes").len();
        let bytes = fs::read(dir.join(&name)).expect("read");
        (name, length, bytes)
    };
    names(dir).into_iter().map(one).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_whose_record_is_late_is_there_for_whoever_asks() {
    if !fuse_works("a_file_whose_record_is_late_is_there_for_whoever_asks") {
        return;
    }
    let (site, second) = writable_twice(3, |dev| dev.settings.push(("fuse.attr-ttl".into(), "0s".into()))).await;
    arm(&site, WRITER, Some(LATE));
    for storage in ["local", "s3"] {
        let (one, two) = (site.mnt.join(storage), second.join(storage));
        off(move || {
            let expected = |name: &str, bytes: &[u8]| (name.to_owned(), bytes.len() as u64, bytes.to_vec());
            fs::write(one.join("a"), b"by name").expect("written");
            assert_eq!(fs::read(two.join("a")).expect("read"), b"by name");
            fs::write(one.join("b"), b"in a listing").expect("written");
            assert_eq!(shown(&two), [expected("a", b"by name"), expected("b", b"in a listing")]);
            assert_eq!(shown(&one), shown(&two));
        })
        .await;
        assert_eq!(stored(&site, &format!("{storage}/b")).await.as_deref(), Some(&b"in a listing"[..]));
    }
    site.cluster.assert_digests_equal().await;
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_whose_record_is_late_is_told_of_only_when_its_name_is_on_disk() {
    if !fuse_works("a_file_whose_record_is_late_is_told_of_only_when_its_name_is_on_disk") {
        return;
    }
    let (site, second) = writable_twice(1, |dev| dev.settings.push(("fuse.attr-ttl".into(), "0s".into()))).await;
    arm(&site, MASTER, Some("local.sync-name=1*error"));
    // The second batch holds the record.
    arm(&site, WRITER, Some("batch.send=2*sleep(2000)"));
    let (one, two) = (site.mnt.join("local/f"), second.join("local/f"));
    off(move || {
        fs::write(&one, b"answered").expect("written");
        fs::read(&two).expect_err("who records it in its writer's stead cannot say that it stays");
        assert_eq!(fs::read(&two).expect("read"), b"answered");
        assert_eq!(fs::read(&one).expect("read"), b"answered");
    })
    .await;
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_a_file_waits_for_a_record_that_is_late() {
    if !fuse_works("what_changes_a_file_waits_for_a_record_that_is_late") {
        return;
    }
    let (site, second) = writable_twice(1, |_| {}).await;
    arm(&site, WRITER, Some(LATE));
    for storage in ["local", "s3"] {
        let (one, two) = (site.mnt.join(storage), second.join(storage));
        off(move || {
            let write = |name: &str| {
                fs::write(one.join(name), name).expect("written");
                one.join(name)
            };
            fs::write(write("overwritten"), b"again").expect("overwritten");
            fs::set_permissions(write("changed"), Permissions::from_mode(0o600)).expect("chmod");
            fs::rename(write("moved"), one.join("moved-away")).expect("moved");
            fs::rename(write("above"), write("below")).expect("moved over");
            fs::remove_file(write("removed")).expect("removed");
            fs::create_dir(one.join("d")).expect("mkdir");
            fs::remove_file(write("d/f")).expect("removed");
            fs::remove_dir(one.join("d")).expect("removed");
            assert_eq!(names(&two), ["below", "changed", "moved-away", "overwritten"]);
            let seen = |name: &str| fs::read(two.join(name)).expect("read");
            assert_eq!(seen("overwritten"), b"again");
            assert_eq!(seen("below"), b"above");
            assert_eq!(seen("moved-away"), b"moved");
            assert_eq!(fs::metadata(two.join("changed")).expect("attributes").mode() & 0o777, 0o600);
        })
        .await;
    }
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_dies_when_a_close_is_answered_leaves_the_file_to_everybody_at_once() {
    if !fuse_works("a_client_that_dies_when_a_close_is_answered_leaves_the_file_to_everybody_at_once") {
        return;
    }
    let (site, second) = writable_twice(3, |_| {}).await;
    let mut answered = 0;
    for round in 0..4 {
        for storage in ["local", "s3"] {
            // The second batch holds the record.
            arm(&site, WRITER, Some("batch.send=2*kill"));
            let path = format!("{storage}/f-{round}");
            let (one, two) = (site.mnt.join(&path), second.join(&path));
            let closed = off(move || write_and_sync(&one).is_ok()).await;
            if closed {
                answered += 1;
                let seen = off(move || fs::read(two)).await;
                assert_eq!(seen.expect("it was closed"), b"answered", "{path}");
                assert_eq!(stored(&site, &path).await.as_deref(), Some(&b"answered"[..]));
            }
            wait_down(&site, WRITER);
        }
    }
    assert!(answered > 0, "no close was answered");
    arm(&site, WRITER, None);
    site.cluster.assert_no_panic();
}

/// Stops the writer while it stores `path`, until its session has ended and a master has looked; returns what its close says.
async fn stand_still(site: &Site, path: &str, points: &str) -> bool {
    arm(site, WRITER, Some(points));
    let (at, shown) = (site.mnt.join(path), format!("/{path}"));
    let writing = std::thread::spawn(move || write_and_sync(&at).is_ok());
    let client = site.cluster.client();
    wait_until("it is being stored", PATIENCE, || site.ctl(&["fs", "stat", &shown]).status.success()).await;
    site.cluster.dev.pause(WRITER).expect("paused");
    let change = SetAttrRequest { target: Some(at_path(&shown)), mode: Some(0o600), ..SetAttrRequest::default() };
    match client.set_attr(change).await {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind, ErrorKind::NotFound, "{path}: changed, or gone with its session: {error}"),
    }
    site.cluster.dev.resume(WRITER).expect("resumed");
    off(move || writing.join()).await.expect("no panic")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_session_ends_before_the_record_comes_has_its_file_found() {
    if !fuse_works("a_client_whose_session_ends_before_the_record_comes_has_its_file_found") {
        return;
    }
    let (site, second) = writable_twice(1, |_| {}).await;
    // The record comes when a master has looked; the content when a master has found nothing and forgotten the file.
    for (name, points) in [("stored", "batch.send=2*sleep(1500)"), ("late", "write.begun=sleep(6000);write.lease=skip")]
    {
        for storage in ["local", "s3"] {
            let path = format!("{storage}/{name}");
            assert!(stand_still(&site, &path, points).await, "{path}: its close is answered");
            let (one, two) = (site.mnt.join(&path), second.join(&path));
            arm(&site, WRITER, None);
            off(move || {
                let seen =
                    |bytes: &[u8]| wait_for("it is seen", PATIENCE, || (fs::read(&two).ok()? == bytes).then_some(()));
                seen(b"answered");
                fs::write(&one, b"again").expect("overwritten");
                seen(b"again");
            })
            .await;
            assert_eq!(stored(&site, &path).await.as_deref(), Some(&b"again"[..]));
        }
    }
    site.cluster.assert_no_panic();
}
