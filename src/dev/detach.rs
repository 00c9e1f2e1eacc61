//! `jindofs dev --detach`: the same command in the background, in a process group of its own, without any descriptor of the
//! caller. Otherwise `... --detach 2>&1 | cat` would wait for the end of the cluster, and a lock that the caller holds by a
//! descriptor would stay taken.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::fd::BorrowedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::io::{FdFlags, fcntl_setfd};

use super::command::{READY, on_signal, say};
use super::{DevOptions, at, launch};
use crate::error::{Error, ErrorKind, Result};

/// Most bytes that are read of what a failed start says.
const REASON_MAX: u64 = 64 << 10;

/// Starts the cluster in the background, and returns once it is ready.
///
/// *Errors*: what the cluster did not start for.
pub(super) fn run(options: &DevOptions) -> Result<()> {
    options.check()?;
    std::fs::create_dir_all(&options.dir).map_err(at(&options.dir))?;
    let log = Log::open(&options.dir)?;
    let mut child = spawn(&log)?;
    let pid = rustix::process::Pid::from_child(&child);
    // Interrupted while it starts, the cluster is taken down before this process ends.
    on_signal(move || {
        if let Err(error) = rustix::process::kill_process(pid, rustix::process::Signal::TERM) {
            tracing::debug!(%error, "the cluster has ended already");
        }
    })?;
    if follow(&mut child)? {
        return Ok(());
    }
    let status = child.wait()?;
    Err(log.reason(status))
}

fn spawn(log: &Log) -> Result<Child> {
    let arguments: Vec<_> = std::env::args_os().skip(1).filter(|argument| argument != "--detach").collect();
    let mut command = Command::new(std::env::current_exe()?);
    launch::end_with_this_process(&mut command, "TERM");
    let errors = log.file.try_clone().map_err(at(&log.path))?;
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors).process_group(0);
    keep_descriptors()?;
    Ok(command.spawn()?)
}

/// Prints what the cluster says while it starts; true once it is ready.
fn follow(child: &mut Child) -> Result<bool> {
    let Some(output) = child.stdout.take() else { return Err(Error::internal("no output of the background process")) };
    for line in BufReader::new(output).lines() {
        let line = line?;
        // Where nobody reads on, the cluster starts all the same.
        say(&line)?;
        if line == READY {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Makes the descriptors that this process has been given by its caller end with it: standard library and dependencies open
/// theirs so, those of a shell (`3>&1`, `flock`) are not.
fn keep_descriptors() -> Result<()> {
    let dir = Path::new("/proc/self/fd");
    for item in std::fs::read_dir(dir).map_err(at(dir))? {
        let name = item.map_err(at(dir))?.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse().ok()).filter(|number: &i32| *number > 2) else {
            continue;
        };
        // SAFETY: it is not used beyond this call, which fails for a number that is not open any more.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        match fcntl_setfd(descriptor, FdFlags::CLOEXEC) {
            Ok(()) | Err(rustix::io::Errno::BADF) => {}
            Err(error) => return Err(Error::from(std::io::Error::from(error)).context(format!("descriptor {number}"))),
        }
    }
    Ok(())
}

/// What the process in the background says on standard error.
struct Log {
    path: PathBuf,
    file: File,
    /// Bytes of earlier starts.
    earlier: u64,
}

impl Log {
    fn open(dir: &Path) -> Result<Log> {
        let path = dir.join("dev.log");
        let file = File::options().create(true).read(true).append(true).open(&path).map_err(at(&path))?;
        let earlier = file.metadata().map_err(at(&path))?.len();
        Ok(Log { path, file, earlier })
    }

    /// Why the start has failed, by its last words and its exit code.
    fn reason(mut self, status: ExitStatus) -> Error {
        let mut said = Vec::new();
        let read = self.file.seek(SeekFrom::Start(self.earlier));
        let read = read.and_then(|_| (&mut self.file).take(REASON_MAX).read_to_end(&mut said));
        let said = String::from_utf8_lossy(&said);
        let kind = match status.code() {
            Some(2) => ErrorKind::InvalidArgument,
            Some(3) => ErrorKind::NotFound,
            Some(4) => ErrorKind::Unavailable,
            _ => ErrorKind::FailedPrecondition,
        };
        let last = said.lines().rev().find_map(|line| line.strip_prefix("error: "));
        let reason = match last {
            Some(reason) if read.is_ok() => reason.to_owned(),
            _ => format!("the cluster did not start ({status}); its log is {}", self.path.display()),
        };
        Error::new(kind, reason)
    }
}
