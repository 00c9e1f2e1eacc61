//! rsync, tar and vim: trees that are copied, packed and edited; and a file that one mount has just made for another.

use std::fs;
use std::io::ErrorKind;

use super::install::{RSYNC, VIM};
use super::{Job, Mounts, STORAGES, can_run, fuse_works, off, run, writable_twice};

fn two(name: &'static str, script: &'static str) -> Vec<Job> {
    STORAGES.map(|storage| Job::shell(name, storage, Mounts::Two, script)).into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_rsync_transfers_nothing_and_links_that_cannot_be_are_refused_by_name() {
    if can_run("a_second_rsync_transfers_nothing_and_links_that_cannot_be_are_refused_by_name", &[RSYNC]) {
        run(two("rsync", include_str!("rsync.sh"))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_that_tar_has_packed_and_unpacked_is_the_same_and_links_that_cannot_be_are_refused_by_name() {
    let test = "a_tree_that_tar_has_packed_and_unpacked_is_the_same_and_links_that_cannot_be_are_refused_by_name";
    if can_run(test, &[]) {
        run(two("tar", include_str!("tar.sh"))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn vim_edits_a_file_with_backup_and_swap_and_recovers_it_after_it_was_killed() {
    if can_run("vim_edits_a_file_with_backup_and_swap_and_recovers_it_after_it_was_killed", &[VIM]) {
        run(two("vim", include_str!("vim.sh"))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a directory that a mount has made is taken as fully known for fuse.attr-ttl: open is told ENOENT until then"]
async fn a_name_that_one_mount_has_made_is_opened_at_once_through_the_mount_that_made_its_directory() {
    if !fuse_works("a_name_that_one_mount_has_made_is_opened_at_once_through_the_mount_that_made_its_directory") {
        return;
    }
    let (site, second) = writable_twice(1, |_| {}).await;
    for storage in STORAGES {
        let [here, there] = [&site.mnt, &second].map(|mount| mount.join(storage).join("made-here"));
        let opened = off(move || {
            fs::create_dir(&here).expect("mkdir");
            fs::write(there.join("made-there"), "text").expect("stored");
            fs::read(here.join("made-there"))
        })
        .await;
        assert_eq!(opened.map_err(|error| error.kind()), Ok::<_, ErrorKind>(b"text".to_vec()), "{storage}");
    }
}
