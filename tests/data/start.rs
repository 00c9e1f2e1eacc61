//! A local cluster that is interrupted while it starts.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::cluster::{PATIENCE, binary};
use crate::support::{fuse_works, wait_for};

/// Processes that were started for a directory.
fn processes_of(dir: &Path) -> Vec<String> {
    let name = dir.to_string_lossy().into_owned();
    let all = std::fs::read_dir("/proc").expect("/proc").flatten();
    let commands = all.filter_map(|item| std::fs::read(item.path().join("cmdline")).ok());
    let commands = commands.map(|command| String::from_utf8_lossy(&command).replace('\0', " "));
    commands.filter(|command| command.contains(&name)).collect()
}

#[test]
fn a_start_that_is_interrupted_at_any_step_leaves_no_process_and_no_mount() {
    if !fuse_works("a_start_that_is_interrupted_at_any_step_leaves_no_process_and_no_mount") {
        return;
    }
    for step in ["starting master", "founding", "mounting", "starting worker", "starting fuse"] {
        let dir = tempfile::tempdir().expect("tempdir");
        let [data, files, mnt] = ["cluster", "files", "mnt"].map(|name| dir.path().join(name));
        for made in [&files, &mnt] {
            std::fs::create_dir(made).expect("mkdir");
        }
        let mut command = Command::new(binary("jindofs"));
        command.args(["dev", "--masters", "3", "--workers", "1", "--fast-elections", "--detach", "--data-dir"]);
        command.arg(&data).arg("--mount").arg(&mnt).arg("--ufs").arg(format!("local://{}", files.display()));
        let mut started = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("runs");
        let output = BufReader::new(started.stdout.take().expect("piped"));
        let reached = output.lines().map_while(Result::ok).find(|line| line.starts_with(step));
        assert!(reached.is_some(), "{step:?} was not reached");
        let pid = rustix::process::Pid::from_child(&started);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("interrupted");
        let ended = started.wait().expect("ended");
        assert!(!ended.success(), "{step}: {ended}");
        wait_for("nothing of it runs", PATIENCE, || processes_of(dir.path()).is_empty().then_some(()));
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
        assert!(!mounts.contains(&*mnt.to_string_lossy()), "after {step:?}: {mounts}");
    }
}
