//! A local cluster: started, founded, and its processes killed, paused and started again.

use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use jindofs_proto::v1::StatusResponse;
use rustix::process::Signal;

use super::children::Children;
use super::file::{DevFile, DevProcess, is_running};
use super::{DevOptions, at, rpc, specs};
use crate::error::{Error, ErrorKind, Result};
use crate::runtime::write_durably;

/// Pause between two looks at a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Runs until it is dropped or stopped; then nothing of it runs any more.
#[derive(Debug)]
pub struct DevCluster {
    options: DevOptions,
    children: Children,
}

impl DevCluster {
    /// Starts every process and waits until all serve. Data found in the directory is used again.
    ///
    /// *Errors*: what keeps it from starting; then nothing is left running.
    pub fn start(options: DevOptions) -> Result<DevCluster> {
        options.check()?;
        std::fs::create_dir_all(&options.dir).map_err(at(&options.dir))?;
        let mut options = options;
        options.dir = options.dir.canonicalize().map_err(at(&options.dir))?;
        refuse_running(&options.dir)?;
        for mount in &mut options.mounts {
            *mount = std::path::absolute(&*mount)?;
        }
        let binary = match &options.binary {
            Some(binary) => binary.clone(),
            None => std::env::current_exe()?,
        };
        let specs = specs::all(&options)?;
        let children = Children::new(options.dir.clone(), binary, options.supervise, specs)?;
        let cluster = DevCluster { options, children };
        cluster.start_role("master")?;
        if cluster.options.provision {
            cluster.found()?;
            cluster.add_mounts()?;
            cluster.start_role("worker")?;
            cluster.start_role("fuse")?;
        }
        Ok(cluster)
    }

    /// Starts every process of a role, and waits until all of them serve.
    fn start_role(&self, role: &str) -> Result<()> {
        let names = self.children.names(role);
        if !names.is_empty() {
            self.options.say(&format!("starting {}", names.join(", ")));
        }
        for name in &names {
            self.children.start(name)?;
        }
        names.iter().try_for_each(|name| self.wait_answering(name))
    }

    /// Mounts the under-storages that are not mounted yet.
    fn add_mounts(&self) -> Result<()> {
        let ufs = &self.options.ufs;
        if ufs.is_empty() {
            return Ok(());
        }
        self.options.say("mounting under-storage");
        rpc::add_mounts(self.masters(), ufs, &self.options.ufs_options, self.options.patience)
    }

    /// Starts one more master, empty: it joins once `jindoctl cluster add` has named its Raft address. Its name.
    pub fn add_master(&self) -> Result<String> {
        let masters: Vec<DevProcess> = self.file().processes.into_iter().filter(|one| one.role == "master").collect();
        let peers: Vec<String> = masters.iter().filter_map(|one| one.raft.clone()).collect();
        let spec = specs::one_more_master(&self.options, masters.len(), &peers)?;
        let name = spec.name.clone();
        self.children.add(spec);
        self.children.start(&name)?;
        self.wait_answering(&name)?;
        Ok(name)
    }

    /// What runs where.
    pub fn file(&self) -> DevFile {
        self.children.file()
    }

    /// One process.
    ///
    /// *Errors*: `NotFound`.
    pub fn process(&self, name: &str) -> Result<DevProcess> {
        let found = self.file().processes.into_iter().find(|one| one.name == name);
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no process {name} in this cluster")))
    }

    /// Client addresses of all masters, running or not.
    pub fn masters(&self) -> Vec<String> {
        self.file().processes.into_iter().filter(|one| one.role == "master").filter_map(|one| one.grpc).collect()
    }

    /// Directory of the cluster.
    pub fn dir(&self) -> &Path {
        &self.options.dir
    }

    /// What one master says, or why it does not.
    pub fn status(&self, name: &str) -> Result<StatusResponse> {
        rpc::status(self.process(name)?.grpc.as_deref().unwrap_or_default())
    }

    /// Ends a process with SIGKILL and waits until it is gone.
    pub fn kill(&self, name: &str) -> Result<()> {
        self.children.want_down(name)?;
        self.children.signal(name, Signal::KILL)?;
        self.children.wait(name, Duration::from_secs(10)).map(|_| ())
    }

    /// Ends a process with SIGTERM; how it ended.
    pub fn term(&self, name: &str) -> Result<ExitStatus> {
        self.children.want_down(name)?;
        self.children.signal(name, Signal::TERM)?;
        self.children.wait(name, Duration::from_secs(30))
    }

    /// Stops a process where it is (SIGSTOP).
    pub fn pause(&self, name: &str) -> Result<()> {
        self.children.signal(name, Signal::STOP)
    }

    /// Lets a paused process go on.
    pub fn resume(&self, name: &str) -> Result<()> {
        self.children.signal(name, Signal::CONT)
    }

    /// Starts a process that is down, and waits until it answers.
    pub fn restart(&self, name: &str) -> Result<()> {
        self.children.start(name)?;
        self.wait_answering(name)
    }

    /// Starts a process that is down, without waiting for anything.
    pub fn launch(&self, name: &str) -> Result<()> {
        self.children.start(name)
    }

    /// Waits until a process has ended by itself; how.
    pub fn wait_end(&self, name: &str, patience: Duration) -> Result<ExitStatus> {
        self.children.wait(name, patience)
    }

    /// Sets a variable of the environment a process is started with next time; removes it without a value.
    pub fn set_env(&self, name: &str, variable: &str, value: Option<&str>) -> Result<()> {
        self.children.with_spec(name, |spec| match value {
            Some(value) => drop(spec.env.insert(variable.to_owned(), value.to_owned())),
            None => drop(spec.env.remove(variable)),
        })
    }

    /// Changes a setting of a process for its next start.
    pub fn set(&self, name: &str, key: &str, value: &str) -> Result<()> {
        self.children.with_spec(name, |spec| drop(spec.settings.insert(key.to_owned(), value.to_owned())))
    }

    /// Deletes the metadata directory of a master that is down.
    ///
    /// *Errors*: `FailedPrecondition` while it runs.
    pub fn wipe_meta(&self, name: &str) -> Result<()> {
        let process = self.process(name)?;
        let Some(dir) = process.meta_dir.filter(|_| process.pid.is_none()) else {
            return Err(Error::new(ErrorKind::FailedPrecondition, format!("{name} is no master that is down")));
        };
        for item in std::fs::read_dir(&dir).map_err(at(&dir))? {
            let path = item?.path();
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.map_err(at(&path))?;
        }
        Ok(())
    }

    /// Founds the cluster, or finishes doing so.
    pub fn found(&self) -> Result<Vec<u64>> {
        let uuid = self.stored_uuid()?;
        let first = self.masters().into_iter().next().unwrap_or_default();
        self.options.say("founding the cluster");
        let voters = match rpc::status(&first).map(|status| status.cluster_uuid) {
            // Only the first master founds; a cluster that exists is waited for, whoever is up.
            Ok(known) if !known.is_empty() && known != uuid[..] => {
                return Err(Error::new(ErrorKind::Foreign, format!("{first} belongs to another cluster")));
            }
            _ => rpc::provision(&first, uuid, self.options.patience)?,
        };
        self.children.publish_cluster(&uuid::Uuid::from_bytes(uuid).to_string())?;
        Ok(voters)
    }

    /// The uuid of this cluster, stored before it is used, so that founding can be repeated.
    fn stored_uuid(&self) -> Result<[u8; 16]> {
        let path = self.options.dir.join("cluster-uuid");
        if let Ok(text) = std::fs::read_to_string(&path) {
            let parsed = uuid::Uuid::parse_str(text.trim());
            return parsed.map(uuid::Uuid::into_bytes).map_err(|error| {
                Error::new(ErrorKind::Corrupted, format!("{} holds no uuid: {error}", path.display()))
            });
        }
        let uuid = uuid::Uuid::from_bytes(crate::runtime::random_id());
        write_durably(&path, format!("{uuid}\n").as_bytes()).map_err(at(&path))?;
        Ok(uuid.into_bytes())
    }

    fn wait_answering(&self, name: &str) -> Result<()> {
        let deadline = Instant::now() + self.options.patience;
        loop {
            let process = self.process(name)?;
            let serves = match process.role.as_str() {
                "master" => self.status(name).is_ok(),
                _ => rpc::is_ready(&process.http),
            };
            // A process that took the port of one that died at once must not be mistaken for it.
            if serves && self.process(name)?.pid.is_some() {
                return Ok(());
            }
            if process.pid.is_none() {
                return Err(self.died(name, &process));
            }
            if self.options.is_interrupted() {
                return Err(Error::unavailable("interrupted"));
            }
            if Instant::now() > deadline {
                let log = process.log.display();
                return Err(Error::new(ErrorKind::Timeout, format!("{name} does not answer; its log is {log}")));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    fn died(&self, name: &str, process: &DevProcess) -> Error {
        let log = std::fs::read_to_string(&process.log).unwrap_or_default();
        let last = log.lines().rev().find(|line| line.starts_with("error: ") || line.starts_with("fatal: "));
        let how = self.children.ended(name).map_or_else(String::new, |status| format!(" ({status})"));
        let why = last.map_or_else(|| format!("its log is {}", process.log.display()), str::to_owned);
        Error::new(ErrorKind::FailedPrecondition, format!("{name} has ended{how}: {why}"))
    }

    /// Ends every process: FUSE clients unmount first, masters and workers are killed, as their disks must stand it.
    pub fn stop(&self) {
        let running = |fuse: bool| {
            let all = self.file().processes.into_iter();
            all.filter(move |one| one.pid.is_some() && (one.role == "fuse") == fuse)
        };
        for (fuse, signal, patience) in [(true, Signal::TERM, 5), (true, Signal::KILL, 5), (false, Signal::KILL, 10)] {
            for process in running(fuse) {
                // It may end at this very moment.
                let _ = self.children.want_down(&process.name);
                let _ = self.children.signal(&process.name, signal);
            }
            for process in running(fuse) {
                let _ = self.children.wait(&process.name, Duration::from_secs(patience));
            }
        }
        for mount in &self.options.mounts {
            if let Err(error) = crate::fuse::unmount(mount) {
                tracing::warn!(%error, mount = %mount.display(), "not unmounted");
            }
        }
        for number in 0..self.options.workers {
            // Memory, not disk: nothing that must outlive the cluster. It is not there when no worker has started.
            let _ = std::fs::remove_dir_all(specs::memory_dir(&self.options, number));
        }
    }
}

impl Drop for DevCluster {
    fn drop(&mut self) {
        self.stop();
        self.children.finish();
    }
}

/// Two clusters must not share a directory.
fn refuse_running(dir: &Path) -> Result<()> {
    let Ok(file) = DevFile::read(dir) else { return Ok(()) };
    let config = |name: &str| dir.join(format!("{name}.toml"));
    let alive = file.processes.iter().find(|one| one.pid.is_some_and(|pid| is_running(pid, &config(&one.name))));
    match alive {
        Some(one) => Err(Error::new(
            ErrorKind::Busy,
            format!("{} of the cluster in {} still runs: `jindofs dev stop` first", one.name, dir.display()),
        )),
        None => Ok(()),
    }
}
