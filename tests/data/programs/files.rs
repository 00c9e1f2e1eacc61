//! rsync, tar and vim: trees that are copied, packed and edited.

use super::install::{RSYNC, VIM};
use super::{Job, can_run, everywhere, run};

fn jobs(name: &str, script: &str) -> Vec<Job> {
    everywhere(|storage, mounts| Job::shell(name, storage, mounts, script))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_rsync_transfers_nothing_and_links_that_cannot_be_are_refused_by_name() {
    if can_run("a_second_rsync_transfers_nothing_and_links_that_cannot_be_are_refused_by_name", &[RSYNC]) {
        run(jobs("rsync", include_str!("rsync.sh"))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_that_tar_has_packed_and_unpacked_is_the_same_and_links_that_cannot_be_are_refused_by_name() {
    let test = "a_tree_that_tar_has_packed_and_unpacked_is_the_same_and_links_that_cannot_be_are_refused_by_name";
    if can_run(test, &[]) {
        run(jobs("tar", include_str!("tar.sh"))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn vim_edits_a_file_with_backup_and_swap_and_recovers_it_after_it_was_killed() {
    if can_run("vim_edits_a_file_with_backup_and_swap_and_recovers_it_after_it_was_killed", &[VIM]) {
        run(jobs("vim", include_str!("vim.sh"))).await;
    }
}
