//! `jindofs dev --detach`.

use std::io::Read;
use std::process::Stdio;
use std::sync::mpsc;

use super::{errors, program, run};
use crate::support::cluster::PATIENCE;

#[test]
fn a_cluster_in_the_background_keeps_no_descriptor_of_its_caller_also_below_a_long_path() {
    let temp = tempfile::tempdir().expect("tempdir");
    let dir = temp.path().join("d".repeat(120));
    let data = dir.to_str().expect("a path");
    let jindofs = program("jindofs", &[""; 0]).get_program().to_owned();
    // As `... --detach 2>&1 | cat` does, with one more descriptor.
    let script = r#"exec "$0" dev --masters 1 --workers 1 --fast-elections --data-dir "$1" --detach 2>&1 3>&1"#;
    let mut shell = std::process::Command::new("sh");
    let started = shell.args(["-c", script]).arg(jindofs).arg(&dir).stdout(Stdio::piped()).spawn();
    let mut started = started.expect("runs");
    let mut output = started.stdout.take().expect("piped");
    let (sender, read) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut text = String::new();
        let read = output.read_to_string(&mut text).map(|_| text);
        // Nobody waits any more if it took too long.
        let _ = sender.send(read);
    });
    let said = read.recv_timeout(PATIENCE);
    let ended = started.wait().expect("ended");
    let stopped = run("jindofs", &["dev", "stop", "--data-dir", data]);
    let said = said.expect("the output ends with the command").expect("text");
    assert!(ended.success() && said.contains("\nready\n"), "{ended}: {said}");
    assert!(stopped.status.success(), "{}", errors(&stopped));
    assert!(dir.join("worker-0/worker.sock").symlink_metadata().is_ok(), "the worker has its socket where it belongs");
}

#[test]
fn a_cluster_that_does_not_start_in_the_background_says_why_with_its_exit_code() {
    let temp = tempfile::tempdir().expect("tempdir");
    let data = temp.path().join("data");
    let data = data.to_str().expect("a path");
    let arguments = ["dev", "--masters", "1", "--data-dir", data, "--set", "namespace.nonsense=1", "--detach"];
    let output = run("jindofs", &arguments);
    let said = errors(&output);
    assert!(!output.status.success() && said.contains("namespace.nonsense"), "{said}");
    assert_eq!(run("jindofs", &["dev", "stop", "--data-dir", data]).status.code(), Some(3), "nothing runs");
}
