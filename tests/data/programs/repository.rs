//! git and sqlite: names, locks and bytes that have to be where they are when a call returns.

use super::install::{GIT, SQLITE};
use super::{Job, Mounts, STORAGES, can_run, everywhere, run};

/// Journals that two hosts can share: that of WAL lies in shared memory.
const MODES: [&str; 5] = ["delete", "truncate", "persist", "memory", "off"];
const WAL: &str = "wal";

fn git(storage: &'static str, mounts: Mounts) -> Job {
    let mut job = Job::shell("git", storage, mounts, include_str!("git.sh"));
    let settings = [
        ("GIT_CONFIG_NOSYSTEM", "1"),
        ("GIT_CONFIG_COUNT", "1"),
        ("GIT_CONFIG_KEY_0", "init.defaultBranch"),
        ("GIT_CONFIG_VALUE_0", "main"),
        ("GIT_AUTHOR_NAME", "author"),
        ("GIT_AUTHOR_EMAIL", "author@localhost"),
        ("GIT_COMMITTER_NAME", "committer"),
        ("GIT_COMMITTER_EMAIL", "committer@localhost"),
    ];
    job.command.envs(settings);
    job
}

fn sqlite(storage: &'static str, mounts: Mounts, mode: &'static str) -> Job {
    Job::shell("sqlite", storage, mounts, include_str!("sqlite.sh")).env("MODE", mode)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_git_repository_is_packed_shared_and_whole_and_directories_that_cannot_move_are_refused() {
    let test = "a_git_repository_is_packed_shared_and_whole_and_directories_that_cannot_move_are_refused";
    if can_run(test, &[GIT]) {
        run(everywhere(git)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_writers_of_a_sqlite_database_on_one_mount_lose_nothing_whatever_the_journal() {
    if can_run("two_writers_of_a_sqlite_database_on_one_mount_lose_nothing_whatever_the_journal", &[SQLITE]) {
        let modes = || MODES.into_iter().chain([WAL]);
        run(STORAGES.into_iter().flat_map(|on| modes().map(move |mode| sqlite(on, Mounts::One, mode))).collect()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_writers_of_a_sqlite_database_on_two_mounts_lose_nothing_whatever_the_journal_but_wal() {
    if can_run("two_writers_of_a_sqlite_database_on_two_mounts_lose_nothing_whatever_the_journal_but_wal", &[SQLITE]) {
        run(STORAGES.into_iter().flat_map(|on| MODES.map(|mode| sqlite(on, Mounts::Two, mode))).collect()).await;
    }
}
