//! Installing what tests run: as root on Debian, once. Elsewhere, and where that fails, the test is left out.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use crate::data::conformance::tools;

/// A program, and the package of Debian that has it.
pub(super) type Program = (&'static str, &'static str);

pub(super) const GIT: Program = ("git", "git");
pub(super) const SQLITE: Program = ("sqlite3", "sqlite3");
pub(super) const RSYNC: Program = ("rsync", "rsync");
pub(super) const VIM: Program = ("vim", "vim");
pub(super) const NPM: Program = ("npm", "npm");

/// Tests that run at the same time do not install at the same time.
static INSTALLING: Mutex<()> = Mutex::new(());

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new("timeout");
    command.args(["600", program]).args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    command.stdin(Stdio::null()).stdout(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Installs what is not there; what is missing then, and how it is had.
pub(super) fn missing(programs: &[Program]) -> Option<String> {
    let _alone = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    let lacking = || programs.iter().filter(|(program, _)| !is_there(program)).map(|(_, package)| *package);
    let packages: Vec<&str> = lacking().collect();
    if packages.is_empty() {
        return None;
    }
    if rustix::process::geteuid().is_root() && is_there("apt-get") {
        // Another process may be installing something too.
        let wait = ["-qq", "-o", "DPkg::Lock::Timeout=300"];
        let install = [&wait[..], &["install", "-y", "--no-install-recommends"], &packages].concat();
        if !succeeds("apt-get", &install) {
            succeeds("apt-get", &[&wait[..], &["update"]].concat());
            succeeds("apt-get", &install);
        }
    }
    let packages: Vec<&str> = lacking().collect();
    (!packages.is_empty()).then(|| format!("as root: apt-get install --no-install-recommends {}", packages.join(" ")))
}

/// A Python with these packages, in an environment beside the other tools of tests. Without one, what is missing.
pub(super) fn python_with(name: &str, packages: &[&str]) -> Result<PathBuf, String> {
    let _alone = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tools().join(name);
    let (python, ready) = (dir.join("bin/python"), dir.join("ready"));
    if !ready.exists() {
        let at = dir.display().to_string();
        let install = [&["-m", "pip", "install", "--quiet", "--disable-pip-version-check"], packages].concat();
        if !succeeds("python3", &["-m", "venv", "--clear", &at])
            || !succeeds(&python.display().to_string(), &install)
            || std::fs::write(&ready, "").is_err()
        {
            return Err(format!("{} in {at}: python3 -m venv and pip could not install them", packages.join(", ")));
        }
    }
    Ok(python)
}
