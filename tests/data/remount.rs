//! A mount point between two clients: what is written there meanwhile, what covers the directory below, and what is left.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::mount::UnmountFlags;

use super::writes::{errno, names, off, writable};
use super::{Site, start};
use crate::support::cluster::PATIENCE;
use crate::support::{fuse_works, wait_for};

/// The cover of a mount point, and the mount of a client on it.
const GUARDED: [&str; 2] = ["tmpfs", "fuse.jindofs"];
/// The client acts as on a kernel that cannot mount beneath another mount.
const NO_BENEATH: &str = "fuse.mount.beneath=error";

/// Kinds of the file systems that are mounted at `path`.
fn mounted_at(path: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("a mount table");
    let at = path.to_str().expect("a path without blanks");
    let of_path = table.lines().filter(|line| line.split(' ').nth(4) == Some(at));
    of_path.map(|line| line.split(' ').skip_while(|field| *field != "-").nth(1).expect("a kind").to_owned()).collect()
}

/// Names in a directory that was opened before anything was mounted there.
fn below(directory: &File) -> Vec<String> {
    names(&std::path::PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())))
}

/// What tells a writer that a file is stored.
#[derive(Debug, Clone, Copy)]
enum Acknowledged {
    ByFsync,
    ByClose,
}

/// Makes a file, and waits until it is stored.
fn store(path: &Path, content: &[u8], by: Acknowledged) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    std::io::Write::write_all(&mut file, content)?;
    match by {
        Acknowledged::ByFsync => file.sync_all(),
        Acknowledged::ByClose => {
            // SAFETY: the descriptor belongs to nobody else, and is not used again whatever close returns.
            let closed = unsafe { libc::close(file.into_raw_fd()) };
            if closed == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        }
    }
}

/// Writes small files into `dir` until told to end, and returns the names of those that were acknowledged. A writer with an odd
/// number relies on `close` alone.
fn write_until(end: &AtomicBool, dir: &Path, writer: usize) -> Vec<String> {
    let mut acknowledged = Vec::new();
    for number in 0.. {
        if end.load(Ordering::Acquire) {
            break;
        }
        let name = format!("w{writer}-{number}");
        let by = if writer.is_multiple_of(2) { Acknowledged::ByFsync } else { Acknowledged::ByClose };
        if store(&dir.join(&name), name.as_bytes(), by).is_ok() {
            acknowledged.push(name);
        }
    }
    acknowledged
}

/// Kills the client and starts it again `rounds` times while files are written; the acknowledged ones must be stored.
async fn assert_nothing_is_lost(site: &Site, directory_below: &File, rounds: usize) {
    let end = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..2)
        .map(|writer| {
            let (end, mnt) = (end.clone(), site.mnt.clone());
            tokio::task::spawn_blocking(move || write_until(&end, &mnt, writer))
        })
        .collect();
    for _ in 0..rounds {
        site.cluster.dev.kill("fuse-0").expect("killed");
        site.cluster.dev.restart("fuse-0").expect("mounted again");
        let before = names(&site.local).len();
        wait_for("files are stored again", PATIENCE, || (names(&site.local).len() > before).then_some(()));
    }
    end.store(true, Ordering::Release);
    let mut acknowledged = Vec::new();
    for writer in writers {
        acknowledged.extend(writer.await.expect("no panic"));
    }
    // Each holds its name.
    let is_stored = |name: &String| std::fs::read(site.local.join(name)).is_ok_and(|stored| stored == name.as_bytes());
    let lost: Vec<_> = acknowledged.iter().filter(|name| !is_stored(name)).collect();
    assert!(lost.is_empty(), "{} of {} acknowledged files are lost: {lost:?}", lost.len(), acknowledged.len());
    // What the dead client had not recorded at the masters is found by them.
    let mnt = site.mnt.clone();
    let shown: BTreeSet<String> = off(move || names(&mnt)).await.into_iter().collect();
    let hidden: Vec<_> = acknowledged.iter().filter(|name| !shown.contains(*name)).collect();
    assert!(
        hidden.is_empty(),
        "{} of {} acknowledged files are not shown: {hidden:?}",
        hidden.len(),
        acknowledged.len()
    );
    assert_eq!(below(directory_below), [""; 0], "nothing was written into the directory below");
}

/// A writable client whose mount shows the local directory at its root, and the directory below the mount.
async fn at_the_root() -> (Site, File) {
    let mut below = None;
    let site = writable(1, |dev| {
        below = Some(File::open(&dev.mounts[0]).expect("opened"));
        dev.ufs.truncate(1);
        dev.ufs[0].path = "/".into();
    })
    .await;
    (site, below.expect("opened"))
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_acknowledged_while_clients_are_killed_and_come_back_are_all_stored() {
    if !fuse_works("files_that_are_acknowledged_while_clients_are_killed_and_come_back_are_all_stored") {
        return;
    }
    let (site, below) = at_the_root().await;
    assert_nothing_is_lost(&site, &below, 5).await;
    assert_eq!(mounted_at(&site.mnt), GUARDED);
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_where_the_kernel_cannot_mount_beneath_another_mount() {
    if !fuse_works("nothing_acknowledged_is_lost_where_the_kernel_cannot_mount_beneath_another_mount") {
        return;
    }
    let (site, below) = at_the_root().await;
    // Without a guard a dead mount covers the directory, unless it is shared: then it may have copies, and goes first.
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("a mount table");
    let is_shared = table.lines().any(|line| line.contains(" - fuse") && line.contains(" shared:"));
    let stacked = (format!("{NO_BENEATH};fuse.guard=error"), ["fuse.jindofs"; 2]);
    let without_guard = Some(stacked).filter(|_| !is_shared);
    for (points, left) in std::iter::once((NO_BENEATH.to_owned(), GUARDED)).chain(without_guard) {
        assert!(site.cluster.dev.term("fuse-0").expect("ended").success());
        assert_eq!(mounted_at(&site.mnt), [""; 0], "{points}");
        site.cluster.dev.set_env("fuse-0", "JINDOFS_FAILPOINTS", Some(&points)).expect("set");
        site.cluster.dev.restart("fuse-0").expect("mounted");
        assert_nothing_is_lost(&site, &below, 3).await;
        assert_eq!(mounted_at(&site.mnt), left, "{points}: dead mounts do not pile up");
    }
    assert!(site.cluster.dev.term("fuse-0").expect("ended").success());
    assert_eq!(mounted_at(&site.mnt), [""; 0]);
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_point_is_covered_while_a_client_is_meant_to_run_and_free_after_its_orderly_end() {
    if !fuse_works("a_mount_point_is_covered_while_a_client_is_meant_to_run_and_free_after_its_orderly_end") {
        return;
    }
    let site = writable(1, |_| {}).await;
    assert_eq!(mounted_at(&site.mnt), GUARDED);
    site.cluster.dev.kill("fuse-0").expect("killed");
    rustix::mount::unmount(&site.mnt, UnmountFlags::DETACH).expect("the dead mount is taken away by hand");
    assert_eq!(mounted_at(&site.mnt), GUARDED[..1]);
    let file = site.mnt.join("f");
    assert_eq!(errno(std::fs::write(&file, b"lost")), libc::EROFS);
    assert_eq!(names(&site.mnt), [""; 0]);

    site.cluster.dev.restart("fuse-0").expect("mounted again");
    assert_eq!(mounted_at(&site.mnt), GUARDED);
    let stored = site.mnt.join("local/f");
    off(move || std::fs::write(stored, b"kept")).await.expect("written");
    assert!(site.cluster.dev.term("fuse-0").expect("ended").success());
    assert_eq!(mounted_at(&site.mnt), [""; 0]);
    std::fs::write(&file, b"a directory like any other").expect("written");
    std::fs::remove_file(&file).expect("removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_not_empty_is_mounted_over_only_when_that_is_asked_for() {
    if !fuse_works("a_directory_that_is_not_empty_is_mounted_over_only_when_that_is_asked_for") {
        return;
    }
    let site = start(1, |_| {}).await;
    std::fs::write(site.local.join("f"), b"content").expect("written");
    assert!(site.cluster.dev.term("fuse-0").expect("ended").success());
    let hidden = site.mnt.join("hidden");
    std::fs::write(&hidden, b"of somebody").expect("written");
    let refused = site.cluster.dev.restart("fuse-0").expect_err("it would be hidden");
    for word in [site.mnt.to_str().expect("text"), "not empty", "fuse.mount.nonempty"] {
        assert!(refused.message.contains(word), "{refused}");
    }
    assert_eq!(mounted_at(&site.mnt), [""; 0], "nothing is left of the attempt");

    site.cluster.dev.set("fuse-0", "fuse.mount.nonempty", "true").expect("set");
    site.cluster.dev.restart("fuse-0").expect("mounted");
    assert_eq!(site.read("local/f").await.expect("read"), b"content");
    assert!(site.cluster.dev.term("fuse-0").expect("ended").success());
    assert_eq!(std::fs::read(&hidden).expect("read"), b"of somebody");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_mount_behind_a_symbolic_link_is_taken_over_like_any_other() {
    if !fuse_works("a_dead_mount_behind_a_symbolic_link_is_taken_over_like_any_other") {
        return;
    }
    let site = start(1, |dev| {
        let real = dev.mounts[0].with_file_name("real");
        std::fs::rename(&dev.mounts[0], &real).expect("renamed");
        symlink("real", &dev.mounts[0]).expect("symlink");
    })
    .await;
    std::fs::write(site.local.join("f"), b"content").expect("written");
    for _ in 0..2 {
        assert_eq!(site.read("local/f").await.expect("read"), b"content");
        site.cluster.dev.kill("fuse-0").expect("killed");
        site.cluster.dev.restart("fuse-0").expect("mounted again");
    }
    assert_eq!(mounted_at(&site.mnt.with_file_name("real")), GUARDED);
    assert!(site.cluster.dev.term("fuse-0").expect("ended").success());
    assert_eq!(mounted_at(&site.mnt.with_file_name("real")), [""; 0]);
}
