//! Names that one mount makes, removes and makes again, seen through another one that has looked at their directory before.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::json;

use super::writes::{names, off, writable_twice};
use crate::support::agent::{Agent, encode};
use crate::support::fuse_works;

const STORAGES: [&str; 2] = ["local", "s3"];

/// No listing and no name of it runs out by itself in a test.
fn long_ttl(dev: &mut jindofs::dev::DevOptions) {
    dev.settings.push(("fuse.attr-ttl".into(), "60s".into()));
}

fn is_absent(path: &Path) -> bool {
    fs::metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_another_mount_has_made_is_found_at_once_though_its_directory_was_listed_or_made_here() {
    let test = "a_name_that_another_mount_has_made_is_found_at_once_though_its_directory_was_listed_or_made_here";
    if !fuse_works(test) {
        return;
    }
    let (site, second) = writable_twice(1, long_ttl).await;
    for storage in STORAGES {
        let (here, there) = (site.mnt.join(storage), second.join(storage));
        off(move || {
            fs::create_dir(here.join("made-here")).expect("mkdir");
            fs::create_dir(there.join("listed")).expect("mkdir");
            for directory in ["made-here", "listed"] {
                let [here, there] = [&here, &there].map(|mount| mount.join(directory));
                fs::write(there.join("first"), "text").expect("stored");
                assert_eq!(names(&here), ["first"], "{storage} {directory}");
                assert!(is_absent(&here.join("second")));
                fs::write(there.join("second"), "text").expect("stored");
                assert_eq!(fs::read(here.join("second")).expect("found"), b"text", "{storage} {directory}");
                assert_eq!(names(&here), ["first", "second"], "{storage} {directory}");
                fs::remove_file(there.join("first")).expect("removed");
                assert_eq!(names(&here), ["second"], "{storage} {directory}");
            }
        })
        .await;
    }
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_another_mount_has_removed_and_made_again_is_the_new_one_at_once() {
    if !fuse_works("a_directory_that_another_mount_has_removed_and_made_again_is_the_new_one_at_once") {
        return;
    }
    let (site, second) = writable_twice(1, long_ttl).await;
    for storage in STORAGES {
        let (here, there) = (site.mnt.join(storage).join("d"), second.join(storage).join("d"));
        off(move || {
            let remake = |round: &str| {
                fs::remove_dir_all(&there).expect("removed");
                fs::create_dir_all(there.join("below")).expect("made again");
                fs::write(there.join("f"), round).expect("stored");
            };
            fs::create_dir_all(here.join("below")).expect("mkdir");
            fs::write(here.join("f"), "old").expect("stored");
            remake("read");
            assert_eq!(fs::read_to_string(here.join("f")).expect("the new one"), "read", "{storage}");
            remake("listed");
            assert_eq!(names(&here), ["below", "f"], "{storage}");
            remake("changed");
            fs::write(here.join("g"), "here").expect("made in the new one");
            assert_eq!(fs::read_to_string(there.join("g")).expect("stored"), "here", "{storage}");
            remake("renamed");
            fs::rename(here.join("f"), here.join("below/f")).expect("in the new one");
            assert_eq!(fs::read_to_string(there.join("below/f")).expect("moved"), "renamed", "{storage}");
            remake("attributes");
            fs::set_permissions(here.join("f"), fs::Permissions::from_mode(0o600)).expect("of the new one");
            assert_eq!(fs::metadata(there.join("f")).expect("stat").permissions().mode() & 0o777, 0o600, "{storage}");
            remake("removed");
            fs::remove_file(here.join("f")).expect("in the new one");
            assert!(is_absent(&there.join("f")), "{storage}");
        })
        .await;
    }
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_another_mount_has_removed_for_good_is_absent_and_not_stale_for_who_has_it_open() {
    let test = "a_directory_that_another_mount_has_removed_for_good_is_absent_and_not_stale_for_who_has_it_open";
    if !fuse_works(test) {
        return;
    }
    let (site, second) = writable_twice(1, long_ttl).await;
    for storage in STORAGES {
        let (here, there) = (site.mnt.join(storage).join("d"), second.join(storage).join("d"));
        off(move || {
            fs::create_dir(&here).expect("mkdir");
            fs::write(here.join("f"), "text").expect("stored");
            // By a descriptor of the directory: there is no path to be looked up again.
            let open = fs::File::open(&here).expect("open");
            let below = |name: &str| Path::new("/proc/self/fd").join(open.as_raw_fd().to_string()).join(name);
            assert!(fs::metadata(below("f")).is_ok());
            fs::remove_dir_all(&there).expect("removed");
            for done in [fs::remove_file(below("f")), fs::create_dir(below("g")), fs::metadata(below("x")).map(drop)] {
                assert_eq!(done.expect_err("it is gone").kind(), ErrorKind::NotFound, "{storage}");
            }
        })
        .await;
    }
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_to_an_open_file_stays_its_own_though_another_mount_has_given_its_name_to_another_one() {
    let test = "what_is_written_to_an_open_file_stays_its_own_though_another_mount_has_given_its_name_to_another_one";
    if !fuse_works(test) {
        return;
    }
    let (site, second) = writable_twice(1, long_ttl).await;
    // S3 moves a file as a copy: its handles are of the old one.
    let (here, there) = (site.mnt.join("local"), second.join("local"));
    off(move || {
        let open = |name: &str| {
            fs::write(here.join(name), "old").expect("stored");
            let mut agent = Agent::start();
            agent.call(&json!(["open", "f", here.join(name), libc::O_RDWR, 0])).expect("open");
            agent.call(&json!(["write", "f", 0, encode(b"own")])).expect("staged");
            agent
        };
        // Rotated by the other mount, and removed by the name here.
        let mut log = open("log");
        fs::rename(there.join("log"), there.join("log.1")).expect("moved");
        fs::write(there.join("log"), "new").expect("stored");
        fs::remove_file(here.join("log")).expect("the new one is removed");
        log.call(&json!(["close", "f"])).expect("stored");
        assert_eq!(fs::read_to_string(there.join("log.1")).expect("read"), "own");
        assert!(is_absent(&there.join("log")));
        // Removed and made again by the other mount, and moved by the name here.
        let mut file = open("file");
        file.call(&json!(["fsync", "f"])).expect("stored");
        fs::remove_file(there.join("file")).expect("removed");
        fs::write(there.join("file"), "new").expect("stored");
        fs::rename(here.join("file"), here.join("moved")).expect("the new one is moved");
        file.call(&json!(["write", "f", 0, encode(b"bad")])).ok();
        file.call(&json!(["close", "f"])).expect_err("the file is gone");
        assert_eq!(fs::read_to_string(there.join("moved")).expect("read"), "new");
    })
    .await;
    site.cluster.assert_no_panic();
}
