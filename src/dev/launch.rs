//! One process: its settings, its command line, its end with its parent.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use super::at;
use super::ports::Port;
use crate::config::keys::{self, Role};
use crate::error::{Error, Result};

/// Names the parent and the signal a process wants when that dies.
const PARENT: &str = "JINDOFS_DIE_WITH_PARENT";

/// What a process is started with.
#[derive(Debug)]
pub(super) struct Spec {
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) grpc: Option<Port>,
    pub(super) raft: Option<Port>,
    pub(super) http: Port,
    /// Metadata directory of a master, working directory of a worker.
    pub(super) data: PathBuf,
    pub(super) mount: Option<PathBuf>,
    pub(super) socket: Option<PathBuf>,
    pub(super) log: PathBuf,
    pub(super) config: PathBuf,
    pub(super) settings: BTreeMap<String, String>,
    pub(super) env: BTreeMap<String, String>,
}

impl Spec {
    /// Writes the config file and starts the process. Must be called on a thread that lives as long as the cluster: the
    /// kernel takes the end of the thread that started a process for the death of its parent.
    pub(super) fn spawn(&self, binary: &Path) -> Result<Child> {
        self.write_config()?;
        let log = File::options().create(true).append(true).open(&self.log).map_err(at(&self.log))?;
        let errors = log.try_clone().map_err(at(&self.log))?;
        let mut command = Command::new(binary);
        command.arg(self.role.name()).arg("--config").arg(&self.config);
        // The config file is all that counts: settings in the caller's environment are meant for something else.
        for key in keys::KEYS {
            command.env_remove(key.env());
            for name in key.env_aliases {
                command.env_remove(name);
            }
        }
        command.env_remove("JINDOFS_CONFIG").envs(&self.env);
        let signal = if self.role == Role::Fuse { "TERM" } else { "KILL" };
        end_with_this_process(&mut command, signal);
        // Its own process group: Ctrl-C at the terminal is for us, and we end them in the right order.
        command.stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0);
        command.spawn().map_err(at(binary))
    }

    fn write_config(&self) -> Result<()> {
        let mut text = format!("# {}, written by `jindofs dev`; replaced at each start\n", self.name);
        for (key, value) in &self.settings {
            text.push_str(&format!("{} = {}\n", quoted(key), quoted(value)));
        }
        std::fs::write(&self.config, text).map_err(at(&self.config))
    }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// The process started by `command` gets `signal` when this one dies, until it calls [`outlive_parent`].
pub(super) fn end_with_this_process(command: &mut Command, signal: &str) {
    command.env(PARENT, format!("{}:{signal}", std::process::id()));
}

/// From now on this process lives on when its parent dies.
///
/// *Errors*: when the kernel refuses.
pub(super) fn outlive_parent() -> Result<()> {
    set_parent_process_death_signal(None).map_err(|error| Error::from(std::io::Error::from(error)))
}

/// Asks the kernel to end this process when the `jindofs dev` that started it dies. Does nothing elsewhere.
///
/// *Errors*: when the parent is dead already, or the kernel refuses.
pub fn die_with_parent() -> Result<()> {
    let Ok(wanted) = std::env::var(PARENT) else { return Ok(()) };
    let parsed = wanted.split_once(':').and_then(|(pid, signal)| Some((pid.parse::<i32>().ok()?, signal)));
    let Some((pid, signal)) = parsed else {
        return Err(Error::invalid(format!("{PARENT}={wanted}: write PID:TERM or PID:KILL")));
    };
    let signal = if signal == "TERM" { Signal::TERM } else { Signal::KILL };
    set_parent_process_death_signal(Some(signal)).map_err(|error| Error::from(std::io::Error::from(error)))?;
    // It may have died before the line above.
    if getppid().map(Pid::as_raw_nonzero).is_none_or(|parent| parent.get() != pid) {
        return Err(Error::unavailable("the process that started this one is gone"));
    }
    Ok(())
}
