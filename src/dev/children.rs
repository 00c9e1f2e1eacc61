//! The processes of a local cluster: started by one long-lived thread, reaped as soon as they end.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, ExitStatus};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::file::{DevFile, DevProcess};
use super::launch::Spec;
use crate::error::{Error, ErrorKind, Result};
use crate::runtime::lock;

/// How often ended processes are looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Shortest time between two starts of a supervised process.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Slot {
    spec: Spec,
    child: Option<Child>,
    /// How it ended last.
    ended: Option<ExitStatus>,
    started: Instant,
    /// Ended because we were told so: supervision leaves it alone.
    wanted_down: bool,
}

impl Slot {
    fn new(spec: Spec) -> Slot {
        Slot { spec, child: None, ended: None, started: Instant::now(), wanted_down: true }
    }
}

/// What all threads share.
#[derive(Debug)]
pub(super) struct Table {
    dir: PathBuf,
    binary: PathBuf,
    supervise: bool,
    cluster: Mutex<String>,
    slots: Mutex<BTreeMap<usize, Slot>>,
}

/// The processes.
#[derive(Debug)]
pub(super) struct Children {
    table: Arc<Table>,
    requests: Option<SyncSender<Request>>,
    thread: Option<JoinHandle<()>>,
}

struct Request {
    index: usize,
    reply: SyncSender<Result<()>>,
}

impl Children {
    /// Starts the thread; no process yet.
    pub(super) fn new(dir: PathBuf, binary: PathBuf, supervise: bool, specs: Vec<Spec>) -> Result<Children> {
        let slots = Mutex::new(specs.into_iter().map(Slot::new).enumerate().collect());
        let table = Arc::new(Table { dir, binary, supervise, cluster: Mutex::default(), slots });
        let (requests, inbox) = mpsc::sync_channel::<Request>(64);
        let shared = Arc::clone(&table);
        let thread = std::thread::Builder::new().name("children".into()).spawn(move || {
            loop {
                match inbox.recv_timeout(POLL_INTERVAL) {
                    Ok(request) => drop(request.reply.send(shared.spawn(request.index))),
                    Err(RecvTimeoutError::Timeout) => shared.look_after(),
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        })?;
        Ok(Children { table, requests: Some(requests), thread: Some(thread) })
    }

    /// Takes in one more process, which is down.
    pub(super) fn add(&self, spec: Spec) {
        let mut slots = self.table.slots();
        let index = slots.len();
        slots.insert(index, Slot::new(spec));
    }

    /// Starts a process that is down.
    pub(super) fn start(&self, name: &str) -> Result<()> {
        let index = self.table.index(name)?;
        let (reply, answer) = mpsc::sync_channel(1);
        let gone = || Error::internal("the thread that starts processes is gone");
        let requests = self.requests.as_ref().ok_or_else(gone)?;
        requests.send(Request { index, reply }).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }

    /// Sends a signal to a running process.
    pub(super) fn signal(&self, name: &str, signal: Signal) -> Result<()> {
        let index = self.table.index(name)?;
        let mut slots = self.table.slots();
        let slot = slots.get_mut(&index).ok_or_else(|| unknown(name))?;
        slot.wanted_down |= matches!(signal, Signal::KILL | Signal::TERM | Signal::INT) && !self.table.supervise;
        let child = slot.child.as_ref().ok_or_else(|| down(name))?;
        send(child, signal).map_err(|error| error.context(name))
    }

    /// Keeps supervision from starting it again.
    pub(super) fn want_down(&self, name: &str) -> Result<()> {
        let index = self.table.index(name)?;
        if let Some(slot) = self.table.slots().get_mut(&index) {
            slot.wanted_down = true;
        }
        Ok(())
    }

    /// Waits until a process is gone; how it ended.
    ///
    /// *Errors*: `Timeout`; `NotFound` when it never ran.
    pub(super) fn wait(&self, name: &str, patience: Duration) -> Result<ExitStatus> {
        let index = self.table.index(name)?;
        let deadline = Instant::now() + patience;
        loop {
            self.table.reap();
            let slots = self.table.slots();
            let slot = slots.get(&index).ok_or_else(|| unknown(name))?;
            if slot.child.is_none() {
                return slot.ended.ok_or_else(|| down(name));
            }
            drop(slots);
            if Instant::now() >= deadline {
                return Err(Error::new(ErrorKind::Timeout, format!("{name} still runs after {patience:?}")));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// How a process that is down ended last; `None` while it runs or if it never ran.
    pub(super) fn ended(&self, name: &str) -> Option<ExitStatus> {
        let index = self.table.index(name).ok()?;
        self.table.reap();
        let slots = self.table.slots();
        let slot = slots.get(&index)?;
        if slot.child.is_some() { None } else { slot.ended }
    }

    /// Looks at or changes what a process is started with next time.
    pub(super) fn with_spec<T>(&self, name: &str, change: impl FnOnce(&mut Spec) -> T) -> Result<T> {
        let index = self.table.index(name)?;
        let mut slots = self.table.slots();
        let slot = slots.get_mut(&index).ok_or_else(|| unknown(name))?;
        Ok(change(&mut slot.spec))
    }

    /// What `dev.json` says now.
    pub(super) fn file(&self) -> DevFile {
        self.table.reap();
        self.table.file()
    }

    /// Sets the uuid that `dev.json` shows, and writes it.
    pub(super) fn publish_cluster(&self, uuid: &str) -> Result<()> {
        uuid.clone_into(&mut lock(&self.table.cluster));
        self.table.publish()
    }

    /// Names by role, masters first.
    pub(super) fn names(&self, role: &str) -> Vec<String> {
        let slots = self.table.slots();
        slots.values().filter(|slot| slot.spec.role.name() == role).map(|slot| slot.spec.name.clone()).collect()
    }

    /// Ends the thread. Its processes must be gone by then: the kernel takes its end for our death.
    pub(super) fn finish(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Table {
    fn slots(&self) -> MutexGuard<'_, BTreeMap<usize, Slot>> {
        lock(&self.slots)
    }

    fn index(&self, name: &str) -> Result<usize> {
        let slots = self.slots();
        slots.iter().find(|(_, slot)| slot.spec.name == name).map(|(index, _)| *index).ok_or_else(|| unknown(name))
    }

    fn spawn(&self, index: usize) -> Result<()> {
        let mut slots = self.slots();
        let slot = slots.get_mut(&index).ok_or_else(|| Error::internal("no such process"))?;
        if slot.child.is_some() {
            return Err(Error::new(ErrorKind::Busy, format!("{} runs already", slot.spec.name)));
        }
        slot.child = Some(slot.spec.spawn(&self.binary)?);
        slot.started = Instant::now();
        slot.ended = None;
        slot.wanted_down = false;
        drop(slots);
        self.publish()
    }

    /// Notes the end of processes; true if one had ended.
    fn reap(&self) -> bool {
        let mut news = false;
        for slot in self.slots().values_mut() {
            let Some(child) = slot.child.as_mut() else { continue };
            // An error means that somebody else reaped it: it is gone either way.
            match child.try_wait() {
                Ok(None) => {}
                Ok(Some(status)) => {
                    slot.ended = Some(status);
                    slot.child = None;
                    news = true;
                }
                Err(_) => {
                    slot.child = None;
                    news = true;
                }
            }
        }
        if news && let Err(error) = self.publish() {
            tracing::warn!(%error, "dev.json could not be written");
        }
        news
    }

    fn look_after(&self) {
        self.reap();
        if !self.supervise {
            return;
        }
        let due = |slot: &Slot| slot.child.is_none() && !slot.wanted_down && slot.started.elapsed() >= RESTART_PAUSE;
        let due: Vec<usize> = self.slots().iter().filter(|(_, slot)| due(slot)).map(|(index, _)| *index).collect();
        for index in due {
            if let Err(error) = self.spawn(index) {
                tracing::warn!(%error, "a process could not be started again");
            }
        }
    }

    fn file(&self) -> DevFile {
        let slots = self.slots();
        let processes: Vec<DevProcess> = slots.values().map(|slot| describe(&slot.spec, slot.child.as_ref())).collect();
        let masters: Vec<&str> =
            processes.iter().filter(|one| one.role == "master").filter_map(|one| one.grpc.as_deref()).collect();
        let masters = masters.join(",");
        let cluster = lock(&self.cluster).clone();
        DevFile { cluster, masters, processes }
    }

    fn publish(&self) -> Result<()> {
        // One writer at a time, and each writes what is true at that moment.
        static WRITER: Mutex<()> = Mutex::new(());
        let _one = lock(&WRITER);
        self.file().write(&self.dir)
    }
}

fn describe(spec: &Spec, child: Option<&Child>) -> DevProcess {
    let is_master = spec.role == crate::config::Role::Master;
    DevProcess {
        name: spec.name.clone(),
        role: spec.role.name().to_owned(),
        pid: child.map(Child::id),
        mount: spec.mount.clone(),
        grpc: spec.grpc.as_ref().map(super::ports::Port::address),
        raft: spec.raft.as_ref().map(super::ports::Port::address),
        data: spec.socket.as_ref().map(|socket| socket.display().to_string()),
        http: spec.http.address(),
        meta_dir: is_master.then(|| spec.data.clone()),
        log: spec.log.clone(),
    }
}

fn send(child: &Child, signal: Signal) -> Result<()> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| Error::internal("a process without a number"))?;
    kill_process(pid, signal).map_err(|error| Error::from(std::io::Error::from(error)))
}

fn unknown(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no process {name} in this cluster"))
}

fn down(name: &str) -> Error {
    Error::new(ErrorKind::FailedPrecondition, format!("{name} is down"))
}
