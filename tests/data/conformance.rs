//! What others ask of a POSIX file system: pjdfstest, and fsx while parts of the cluster are killed.
//!
//! SEMANTICS.md gives the reason for everything that is expected to fail here.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};

use super::writes::{off, writable};
use crate::support::{fuse_works, left_out, wait_for};

/// One pass of fsx takes longer than anything else here.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(180);

/// Operations of one fsx.
const OPERATIONS: &str = "600";

/// Kinds of files that no under-storage of ours can hold.
const NO_FILES: [&str; 4] = ["fifo", "block", "char", "socket"];

/// Cases that need such a file or a hard link and do not say so in their last part, and two others.
const EXPECTED: [&str; 17] = [
    // Closes its file, which is stored only then: that is when it changes.
    "ftruncate::unchanged_ctime_failed",
    "link::changed_ctime_success::regular",
    "link::remove_link::regular",
    "link::share_metadata::regular",
    "mkfifo::changed_time_fields_success",
    "mkfifo::permission_bits_from_mode",
    "mkfifo::uid_gid_eq_euid_egid",
    "mknod::changed_time_fields_success",
    "mknod::permission_bits_from_mode",
    "mknod::uid_gid_eq_euid_egid",
    // Is told EINVAL for O_RDONLY | O_TRUNC, or the program might die of it.
    "open::etxtbsy",
    "open::fifo_nonblock_wronly",
    "open::socket_error",
    "rename::preserve_metadata::regular",
    "rename::to_multiply_linked::regular",
    "unlink::unchanged_ctime_failed::regular",
    "unlink::update_ctime_success::regular",
];

/// Where `make test` puts what is installed for tests.
pub(super) fn tools() -> PathBuf {
    let cache = std::env::var_os("JINDOFS_CACHE").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/jindofs");
    cache.unwrap_or_else(home).join("tools")
}

fn tool(name: &str) -> PathBuf {
    tools().join("bin").join(name)
}

fn can_run(test: &str, name: &str) -> bool {
    let missing = format!("{name}, which `make test` installs");
    fuse_works(test) && left_out(test, (!tool(name).exists()).then_some(&missing))
}

fn is_expected(case: &str) -> bool {
    EXPECTED.contains(&case) || case.rsplit("::").next().is_some_and(|last| NO_FILES.contains(&last))
}

fn run_pjdfstest(dir: &Path, config: &Path) -> Output {
    let mut command = Command::new(tool("pjdfstest"));
    command.arg("-c").arg(config).arg("-p").arg(dir).env("RUST_BACKTRACE", "0").output().expect("it runs")
}

/// Names of cases with how they ended.
fn cases(output: &str) -> Vec<(&str, &str)> {
    let words = output.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let case = words.filter_map(|words| match words[..] {
        [name, how] if name.contains("::") => Some((name, how)),
        _ => None,
    });
    case.map(|(name, how)| (name, how.trim_matches(|c: char| !c.is_ascii_alphabetic()))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pjdfstest_finds_nothing_that_is_not_named_in_the_semantics() {
    if !can_run("pjdfstest_finds_nothing_that_is_not_named_in_the_semantics", "pjdfstest") {
        return;
    }
    let site = writable(1, |_| {}).await;
    let (root, dir, config) =
        (site.dir.path().to_owned(), site.mnt.join("local/pjd"), site.dir.path().join("pjd.toml"));
    let output = off(move || {
        // It acts as other users, who have to get there.
        std::fs::set_permissions(&root, Permissions::from_mode(0o755)).expect("chmod");
        std::fs::create_dir(&dir).expect("mkdir");
        std::fs::set_permissions(&dir, Permissions::from_mode(0o777)).expect("chmod");
        let users = r#"entries = [["nobody", "nogroup"], ["daemon", "daemon"], ["bin", "bin"]]"#;
        std::fs::write(&config, format!("[features]\n[dummy_auth]\n{users}\n")).expect("written");
        run_pjdfstest(&dir, &config)
    })
    .await;
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let cases = cases(&output);
    let ended = |how: &str| cases.iter().filter(|(_, ended)| ended.contains(how)).count();
    println!("pjdfstest: {} ok, {} skipped, {} failed", ended("ok"), ended("skipped"), ended("FAILED"));
    assert!(ended("ok") > 150, "it has run: {output}");
    let failed = cases.iter().filter(|(name, how)| how.contains("FAILED") && !is_expected(name));
    assert_eq!(failed.collect::<Vec<_>>(), Vec::<&(&str, &str)>::new());
    for name in EXPECTED {
        let works = cases.iter().any(|(case, how)| *case == name && how.contains("ok"));
        assert!(!works, "{name} works: take it off the list");
    }
    site.cluster.assert_no_panic();
}

/// Starts fsx with a seed; a file of `path` is what it works at.
fn start_fsx(path: &Path, seed: u32, artifacts: &Path) -> (Child, PathBuf) {
    let log = artifacts.join(format!("fsx{seed}.log"));
    let said = File::create(&log).expect("made");
    let mut command = Command::new(tool("fsx"));
    command.args(["-N", OPERATIONS, "-S", &seed.to_string(), "-P"]).args([artifacts, path]);
    let child = command.stdout(said.try_clone().expect("cloned")).stderr(said).spawn();
    (child.expect("it starts"), log)
}

#[tokio::test(flavor = "multi_thread")]
async fn fsx_reads_what_it_has_written_though_leader_and_worker_are_killed() {
    if !can_run("fsx_reads_what_it_has_written_though_leader_and_worker_are_killed", "fsx") {
        return;
    }
    let site = writable(3, |_| {}).await;
    let artifacts = site.dir.path().to_owned();
    let running: Vec<_> = [("local", 1), ("s3", 2), ("local", 3)]
        .map(|(storage, seed)| (storage, seed, site.mnt.join(storage).join(format!("fsx{seed}"))))
        .map(|(storage, seed, path)| (storage, seed, start_fsx(&path, seed, &artifacts)))
        .into();
    let (leader, _) = site.cluster.wait_leader();
    site.cluster.dev.kill(&leader).expect("killed");
    site.cluster.dev.kill("worker-0").expect("killed");
    site.cluster.wait_leader();
    site.cluster.dev.launch(&leader).expect("launched");
    site.cluster.dev.launch("worker-0").expect("launched");
    for (storage, seed, (mut child, log)) in running {
        let ended = off(move || wait_for("fsx ends", PATIENCE, || child.try_wait().expect("waited for"))).await;
        let said = std::fs::read_to_string(&log).expect("its log");
        assert!(ended.success(), "fsx -S {seed} below {storage}: {said}");
    }
    site.cluster.assert_no_panic();
}
