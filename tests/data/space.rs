//! What `df` says of a mount: the room of the under-storage, not that of the cache.

use std::os::unix::fs::MetadataExt;

use rustix::fs::StatVfs;

use super::writes::{names, off, writable};
use crate::support::cluster::PATIENCE;
use crate::support::small_disk::SmallDisk;
use crate::support::{fuse_works, wait_for};

/// More than any disk of a test has.
const LARGE: u64 = 1 << 49;

/// Bytes in all, and free ones.
fn space(figures: &StatVfs) -> (u64, u64) {
    (figures.f_blocks * figures.f_frsize, figures.f_bavail * figures.f_frsize)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_shows_the_room_of_its_under_storage_and_no_limit_of_inodes_with_workers_and_without() {
    if !fuse_works("a_mount_shows_the_room_of_its_under_storage_and_no_limit_of_inodes_with_workers_and_without") {
        return;
    }
    for workers in [1, 0] {
        let site = writable(1, |dev| dev.workers = workers).await;
        let (mnt, local) = (site.mnt.clone(), site.local.clone());
        off(move || {
            std::fs::create_dir(local.join("d")).expect("made");
            std::fs::write(local.join("d/f"), b"content").expect("written");
            let disk = space(&rustix::fs::statvfs(&local).expect("statvfs"));
            let near = |a: u64, b: u64| a.abs_diff(b) < 1 << 30;
            for path in ["", "local", "local/d", "local/d/f", "s3"] {
                let figures = rustix::fs::statvfs(mnt.join(path)).expect("statvfs");
                let (all, free) = space(&figures);
                match path.starts_with("local") {
                    true => assert!(
                        all == disk.0 && near(free, disk.1),
                        "{path}: {all} bytes, {free} of them free, not {disk:?}"
                    ),
                    false => assert!(all >= LARGE && free >= LARGE, "{path}: {all} bytes, {free} of them free"),
                }
                assert_eq!((figures.f_files, figures.f_ffree), (0, 0), "{path}: nothing limits inodes");
            }
            let inodes = std::process::Command::new("df").args(["--output=ipcent"]).arg(&mnt).output();
            let inodes = String::from_utf8(inodes.expect("df runs").stdout).expect("text");
            assert_eq!(inodes.lines().last().map(str::trim), Some("-"), "{inodes}");
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_top_of_the_only_mount_shows_the_room_of_its_under_storage_also_while_masters_and_workers_are_gone() {
    let test = "the_top_of_the_only_mount_shows_the_room_of_its_under_storage_also_while_masters_and_workers_are_gone";
    if !fuse_works(test) {
        return;
    }
    let site = writable(1, |dev| dev.ufs.truncate(1)).await;
    let (mnt, local) = (site.mnt.clone(), site.local.clone());
    let shown = move || {
        let disk = space(&rustix::fs::statvfs(&local).expect("statvfs"));
        ["", "local"].map(|path| (space(&rustix::fs::statvfs(mnt.join(path)).expect("statvfs")), disk))
    };
    let is_shown = |figures: &((u64, u64), (u64, u64))| {
        let ((all, free), disk) = figures;
        *all == disk.0 && free.abs_diff(disk.1) < 1 << 30
    };
    // The client reads the table of mounts beside all else.
    let before = shown.clone();
    off(move || {
        wait_for("the room is shown", PATIENCE, || before().iter().all(is_shown).then_some(()));
    })
    .await;
    for process in site.cluster.dev.file().processes.iter().filter(|process| process.role != "fuse") {
        site.cluster.dev.kill(&process.name).expect("killed");
    }
    let figures = off(shown).await;
    assert!(figures.iter().all(is_shown), "shown, and on the disk: {figures:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_through_a_mount_takes_the_room_that_df_shows_and_its_removal_gives_it_back() {
    if !fuse_works("what_is_written_through_a_mount_takes_the_room_that_df_shows_and_its_removal_gives_it_back") {
        return;
    }
    const SIZE: u64 = 64 << 20;
    const WRITTEN: u64 = 16 << 20;
    let site = writable(1, |_| {}).await;
    let disk = SmallDisk::at(&site.dir.path().join("small"), "64m");
    site.ctl_ok(&["mount", "add", "/small", &format!("local://{}", disk.0.display())]);
    let mnt = site.mnt.join("small");
    off(move || {
        let figures = || space(&rustix::fs::statvfs(&mnt).expect("statvfs"));
        // Of a mount that was just added the client may not know yet.
        let free = wait_for("the disk is shown", PATIENCE, || Some(figures()).filter(|(all, _)| *all == SIZE)).1;
        std::fs::write(mnt.join("f"), vec![7; usize::try_from(WRITTEN).expect("a length")]).expect("written");
        wait_for("what is written takes room", PATIENCE, || (figures().1 + WRITTEN <= free).then_some(()));
        std::fs::remove_file(mnt.join("f")).expect("removed");
        wait_for("what was removed gives it back", PATIENCE, || (figures().1 + WRITTEN > free).then_some(()));
        let output = std::process::Command::new("df").args(["-B1", "--output=size,ipcent"]).arg(&mnt).output();
        let output = String::from_utf8(output.expect("df runs").stdout).expect("text");
        let line: Vec<&str> = output.lines().last().expect("a line").split_whitespace().collect();
        assert_eq!(line, [SIZE.to_string().as_str(), "-"], "{output}");
    })
    .await;
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn pipes_sockets_and_devices_of_a_local_directory_are_left_out_and_nothing_takes_their_names() {
    if !fuse_works("pipes_sockets_and_devices_of_a_local_directory_are_left_out_and_nothing_takes_their_names") {
        return;
    }
    let site = writable(1, |_| {}).await;
    let (mnt, local) = (site.mnt.clone(), site.local.clone());
    off(move || {
        let made = std::process::Command::new("mkfifo").arg(local.join("pipe")).status();
        assert!(made.expect("mkfifo runs").success());
        let socket = std::os::unix::net::UnixListener::bind(local.join("socket")).expect("bound");
        let made = std::process::Command::new("mknod").arg(local.join("null")).args(["c", "1", "3"]).status();
        assert!(made.expect("mknod runs").success());
        std::fs::write(local.join("file"), b"content").expect("written");
        let at = mnt.join("local");
        assert_eq!(names(&at), ["file"]);
        for name in ["pipe", "socket", "null"] {
            let inode = std::fs::symlink_metadata(local.join(name)).expect("stat").ino();
            let absent = std::fs::symlink_metadata(at.join(name)).expect_err("left out");
            assert_eq!(absent.kind(), std::io::ErrorKind::NotFound, "{name}");
            std::fs::read(at.join(name)).expect_err("left out");
            let written = std::fs::write(at.join(name), b"x");
            let kept = std::fs::symlink_metadata(local.join(name)).expect("it stays");
            assert_eq!(kept.ino(), inode, "{name} is not replaced: {written:?}");
        }
        drop(socket);
    })
    .await;
}
