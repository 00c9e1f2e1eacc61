//! Standard output that is full, or that nobody reads.

use std::fs::File;
use std::process::{Command, Stdio};

use super::{SoleMaster, program};
use crate::support::cluster::Cluster;
use crate::support::writers::make_dir;

/// Exit code of a program whose reader has gone, as shells show it.
const READER_GONE: i32 = 141;

/// A pipe that nobody reads.
fn unread() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").expect("/dev/full").into()
}

/// Exit code and what it says on standard error.
fn outcome(command: &mut Command, output: Stdio) -> (Option<i32>, String) {
    let ended = command.stdout(output).stderr(Stdio::piped()).spawn().and_then(|child| child.wait_with_output());
    let ended = ended.expect("runs");
    (ended.status.code(), String::from_utf8_lossy(&ended.stderr).into_owned())
}

fn assert_ends_well(name: &str, arguments: &[&str]) {
    let (code, said) = outcome(&mut program(name, arguments), full());
    assert_eq!(code, Some(1), "{name} {arguments:?} > /dev/full: {said}");
    assert!(said.contains("standard output cannot be written"), "{name} {arguments:?} > /dev/full: {said}");
    let (code, said) = outcome(&mut program(name, arguments), unread());
    assert_eq!((code, said.as_str()), (Some(READER_GONE), ""), "{name} {arguments:?} | true");
}

#[test]
fn every_program_ends_with_an_error_on_a_full_output_and_quietly_on_one_that_nobody_reads() {
    for (name, arguments) in [
        ("jindofs", &["version"][..]),
        ("jindofs", &["--version"]),
        ("jindofs", &["--help"]),
        ("jindofs", &["check-config", "--role", "master", "--set", "namespace.meta-dir=/m"]),
        ("jindoctl", &["version"]),
        ("jindoctl", &["fs", "--help"]),
        ("jindoctl", &["completions", "bash"]),
        ("jindofs-operator", &["crd"]),
        ("jindofs-operator", &["--help"]),
    ] {
        assert_ends_well(name, arguments);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_ask_a_cluster_end_well_on_an_output_that_cannot_be_written() {
    let cluster = Cluster::start(1);
    make_dir(&cluster.client(), "/d").await;
    let masters = cluster.dev.masters().join(",");
    for arguments in [
        &["cluster", "status"][..],
        &["cluster", "status", "-o", "json"],
        &["cluster", "digest"],
        &["cluster", "can-restart", "1"],
        &["mount", "list", "-o", "yaml"],
        &["worker", "list"],
        &["report"],
        &["fs", "ls", "/"],
        &["fs", "du", "/"],
        &["bench", "pauses", "--seconds", "1", "--tell", "0"],
    ] {
        assert_ends_well("jindoctl", &[&["--masters", &masters], arguments].concat());
    }
    let dir = cluster.dev.dir().display().to_string();
    assert_ends_well("jindofs", &["dev", "status", "--data-dir", &dir]);
}

#[test]
fn a_master_whose_log_cannot_be_written_serves_all_the_same() {
    for log in [full(), unread()] {
        SoleMaster::start("127.0.0.1", log).found();
    }
}

#[test]
fn an_error_that_cannot_be_written_changes_no_exit_code() {
    for errors in [full(), unread()] {
        let mut command = program("jindoctl", &["--masters", "127.0.0.1:1", "--timeout", "1", "fs", "ls", "/"]);
        let ended = command.stdout(Stdio::null()).stderr(errors).status().expect("runs");
        assert_eq!(ended.code(), Some(4));
    }
}
