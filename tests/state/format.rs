//! The disk format of a release stays readable: a metadata directory of format 3 is kept here and opened by every later
//! release. `JINDOFS_WRITE_FIXTURE=format-N make test TEST=of_format_3` writes a new one for a new format. One of format 2
//! is kept to show that it is refused by number.

use std::path::{Path, PathBuf};
use std::process::Command;

use jindofs::client::namespace::at_path;
use jindofs_proto::v1::{FileType, SetAttrRequest, SymlinkRequest};

use crate::support::ROOT;
use crate::support::cluster::{Cluster, PATIENCE, tail};
use crate::support::writers::{create_request, make_dir, names};

fn fixture(name: &str) -> PathBuf {
    Path::new(ROOT).join("tests/fixtures").join(format!("{name}.tar.gz"))
}

fn tar(arguments: &[&str], archive: &Path, dir: &Path) {
    let mut command = Command::new("tar");
    command.args(arguments).arg("-f").arg(archive).arg("-C").arg(dir);
    if arguments.contains(&"-c") {
        command.arg(".");
    }
    assert!(command.status().expect("tar runs").success());
}

/// What the fixture holds: names, a rename, a link, attributes, a snapshot, and log entries behind it.
async fn write(cluster: &Cluster) {
    let client = cluster.client();
    make_dir(&client, "/dir/deep").await;
    for number in 0..100 {
        client.create(create_request(&format!("/dir/{number}"))).await.expect("created");
    }
    cluster.snapshot_and_purge().await;
    client.rename(at_path("/dir/99"), at_path("/dir/deep/moved"), true).await.expect("renamed");
    let link = SymlinkRequest {
        target: Some(at_path("/dir/link")),
        link_target: b"deep/moved".to_vec().into(),
        ..SymlinkRequest::default()
    };
    client.symlink(link).await.expect("linked");
    let attr = SetAttrRequest {
        target: Some(at_path("/dir/0")),
        mode: Some(0o600),
        mtime_ns: Some(1_700_000_000_123_456_789),
        ..SetAttrRequest::default()
    };
    client.set_attr(attr).await.expect("changed");
    client.unlink(at_path("/dir/1")).await.expect("unlinked");
    client.session().close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_metadata_directory_of_format_3_is_opened_and_holds_what_it_held() {
    let cluster = Cluster::start(1);
    let dir = cluster.meta_dir("master-0");
    if let Ok(name) = std::env::var("JINDOFS_WRITE_FIXTURE") {
        write(&cluster).await;
        cluster.dev.term("master-0").expect("stopped");
        tar(&["-c", "-z", "--exclude=LOCK"], &fixture(&name), &dir);
        return;
    }
    cluster.dev.kill("master-0").expect("killed");
    cluster.dev.wipe_meta("master-0").expect("wiped");
    tar(&["-x", "-z"], &fixture("format-3"), &dir);
    cluster.dev.launch("master-0").expect("launched");
    let client = cluster.client();
    let found = names(&client, "/dir").await;
    assert_eq!(found.len(), 100, "98 files, a directory and a link");
    assert!(!found.contains("/dir/1") && !found.contains("/dir/99"));
    let moved = client.lookup(at_path("/dir/deep/moved")).await.expect("the moved file");
    assert_eq!(moved.r#type(), FileType::File);
    let link = client.lookup(at_path("/dir/link")).await.expect("the link");
    assert_eq!((link.r#type(), &link.symlink_target[..]), (FileType::Symlink, &b"deep/moved"[..]));
    let changed = client.lookup(at_path("/dir/0")).await.expect("the changed file");
    assert_eq!((changed.mode & 0o7777, changed.mtime_ns), (0o600, 1_700_000_000_123_456_789));
    client.create(create_request("/dir/later")).await.expect("it also writes");
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_metadata_directory_of_format_2_is_refused_by_number_and_left_as_it_is() {
    let cluster = Cluster::start(1);
    let dir = cluster.meta_dir("master-0");
    cluster.dev.kill("master-0").expect("killed");
    cluster.dev.wipe_meta("master-0").expect("wiped");
    tar(&["-x", "-z"], &fixture("format-2"), &dir);
    let identity = std::fs::read(dir.join("IDENTITY")).expect("read");
    cluster.dev.launch("master-0").expect("launched");
    assert_eq!(cluster.dev.wait_end("master-0", PATIENCE).expect("it refuses to run").code(), Some(1));
    let log = cluster.log_of("master-0");
    assert!(log.contains("format is 2, this release reads 3") && log.contains("Way out"), "{}", tail(&log));
    assert_eq!(std::fs::read(dir.join("IDENTITY")).expect("read"), identity);
}
