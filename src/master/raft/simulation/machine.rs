//! One simulated machine: a disk, power, and at times the process of a master on it, in a runtime of its own.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jindofs_proto::raft::v1::raft_server::RaftServer;
use tokio::runtime::{Builder, Runtime};
use tonic::transport::Server;

use super::super::handle::Handle;
use super::super::server::RaftService;
use super::disk;
use super::net::{Event, MS, Power, US, address, incoming, net};
use crate::config::MasterConfig;
use crate::runtime::attended::AttendedClock;
use crate::runtime::{Shutdown, simulated};
use crate::types::MESSAGE_BYTES_MAX;

/// Bytes of every disk, and of its free room.
pub(super) const ROOM: (u64, u64) = (100 << 30, 50 << 30);

/// A process of a master.
struct Process {
    runtime: Runtime,
    shared: Arc<Shared>,
    stop: Shutdown,
    clock: AttendedClock,
}

/// What a process tells the simulation.
#[derive(Debug, Default)]
struct Shared {
    handle: Mutex<Option<Handle>>,
    ended: Mutex<Option<Result<(), String>>>,
}

/// How the process of a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// It was told to stop.
    Stopped,
    /// It refused its disk, or gave up for another reason.
    Refused(String),
    /// It ended itself because its disk failed.
    Died(String),
    /// The power failed at a sync of its disk.
    PowerCut,
}

pub(super) struct Machine {
    pub(super) host: usize,
    /// The machines whose masters it is configured with; the first one founds.
    pub(super) peers: Vec<usize>,
    /// Number of the directory that is the disk now.
    generation: u64,
    process: Option<Process>,
    /// Nothing runs before: it has slept until then, so its clock was there already.
    busy_until: u64,
    /// Nothing runs before, as it is paused.
    pub(super) paused_until: u64,
    pub(super) skew_ns: i64,
    timer: u64,
    pub(super) starts: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The settings of the master on a machine, with the masters on the machines `peers`.
pub(in crate::master::raft) fn config(meta_dir: PathBuf, host: usize, peers: &[usize]) -> MasterConfig {
    MasterConfig {
        meta_dir,
        peers: peers.iter().map(|host| format!("{}:8103", address(*host))).collect(),
        host: address(host),
        bind: address(host),
        grpc_port: 8101,
        raft_port: 8103,
        http_port: 8104,
        heartbeat: Duration::from_millis(200),
        election_min: Duration::from_millis(600),
        election_max: Duration::from_millis(1200),
        auto_replace: true,
        listen_before_founding: true,
        snapshot_log_bytes: 96 << 10,
        keep_log_bytes: 16 << 10,
        keep_log_for_learners_bytes: 64 << 10,
        snapshot_send_bytes_per_second: 0,
        scrub_bytes_per_second: 0,
        scrub_interval: Duration::from_secs(3600),
        inflight_bytes: 64 << 20,
        clock_skew_max: Duration::from_secs(5),
        disk_reserve_bytes: 64 << 20,
        ballast_bytes: 0,
        block_cache_bytes: 1 << 20,
        write_buffer_bytes: 4 << 20,
        session_ttl: Duration::from_secs(3600),
        worker_timeout: Duration::from_secs(3600),
    }
}

impl Machine {
    pub(super) fn new(host: usize, peers: Vec<usize>) -> Machine {
        Machine {
            host,
            peers,
            generation: 0,
            process: None,
            busy_until: 0,
            paused_until: 0,
            skew_ns: 0,
            timer: 0,
            starts: 0,
        }
    }

    /// Its address as the other masters know it.
    pub(super) fn raft_address(&self) -> String {
        format!("{}:8103", address(self.host))
    }

    pub(super) fn dir(&self) -> PathBuf {
        disk::dir(self.host, self.generation)
    }

    fn config(&self) -> MasterConfig {
        config(self.dir(), self.host, &self.peers)
    }

    pub(super) fn is_running(&self) -> bool {
        self.process.is_some()
    }

    pub(super) fn handle(&self) -> Option<Handle> {
        self.process.as_ref().and_then(|process| lock(&process.shared.handle).clone())
    }

    /// Starts the process.
    pub(super) fn start(&mut self) {
        self.starts += 1;
        let config = self.config();
        let host = self.host;
        let runtime = Builder::new_current_thread().enable_all().build().expect("runtime");
        let (stop, shared) = (Shutdown::new(), Arc::<Shared>::default());
        let begun = Instant::now();
        let clock = AttendedClock::over(move || begun.elapsed());
        net(|net| {
            net.power[host] = Power::Listening;
            net.muted[host] = false;
            net.trace.note(format_args!("start {host}"));
        });
        let (told, ticking, stopping) = (shared.clone(), clock.clone(), stop.clone());
        runtime.spawn(async move {
            let lived = live(host, config, &told, ticking, stopping).await;
            *lock(&told.ended) = Some(lived);
        });
        self.process = Some(Process { runtime, shared, stop, clock });
        self.timer += 1;
        net(|net| net.runnable.insert(host));
    }

    /// Tells the process to stop, as SIGTERM does.
    pub(super) fn stop(&self) {
        if let Some(process) = &self.process {
            process.stop.cancel();
            net(|net| net.runnable.insert(self.host));
        }
    }

    /// Runs a task in the process.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(process) = &self.process {
            process.runtime.spawn(task);
            net(|net| net.runnable.insert(self.host));
        }
    }

    /// Whether a timer of this number is still the one that is waited for.
    pub(super) fn is_due(&self, timer: u64) -> bool {
        self.timer == timer
    }

    /// Lets the process do what there is to do now. Returns how it ended, if it did.
    pub(super) fn step(&mut self) -> Option<End> {
        let host = self.host;
        let process = self.process.as_ref()?;
        let begun = simulated::now();
        self.timer += 1;
        let runs_at = self.busy_until.max(self.paused_until);
        if begun < runs_at {
            let (at, timer) = (runs_at, self.timer);
            net(|net| net.at(at, Event::Timer(host, timer)));
            return None;
        }
        simulated::set_machine(self.skew_ns, Some(process.clock.clone()), ROOM);
        net(|net| net.running = host);
        let next = simulated::run_until_idle(&process.runtime);
        // What slept has held the machine up.
        let now = simulated::now();
        if now > begun {
            self.busy_until = now;
        }
        simulated::set_now(begun);
        if let Some(next) = next {
            let timer = self.timer;
            net(|net| net.at(next.max(now).max(begun + 1), Event::Timer(host, timer)));
        }
        if disk::was_cut(host) {
            return Some(End::PowerCut);
        }
        if let Some(reason) = simulated::take_death() {
            return Some(End::Died(reason));
        }
        let ended = lock(&process.shared.ended).take();
        ended.map(|ended| ended.map_or_else(End::Refused, |()| End::Stopped))
    }

    /// Ends the process at once. What it has written stays in the page cache.
    pub(super) fn kill(&mut self) {
        // Under another name, so that what still ends in this process does not find the directory any more.
        let next = disk::dir(self.host, self.generation + 1);
        if self.dir().exists() {
            std::fs::rename(self.dir(), next).expect("rename");
        }
        self.end(Power::On);
    }

    /// Ends the process, and takes what was not synced from its disk, or some of it.
    pub(super) fn cut_power(&mut self, seed: u64) {
        let next = disk::dir(self.host, self.generation + 1);
        // If the power failed at a sync, the disk was kept as it was then.
        if !disk::was_cut(self.host) {
            disk::keep_durable(&self.dir(), &next, seed);
        }
        let old = self.dir();
        self.end(Power::Off);
        let _ = std::fs::remove_dir_all(old);
    }

    fn end(&mut self, power: Power) {
        let host = self.host;
        self.generation += 1;
        self.timer += 1;
        (self.busy_until, self.paused_until) = (0, 0);
        disk::repair(host);
        // A process that is killed closes its connections, a machine without power does not.
        net(|net| {
            net.power[host] = power;
            net.muted[host] = power == Power::Off;
            net.running = host;
        });
        if power == Power::Off {
            drop(net(|net| net.forget(host)));
        }
        simulated::set_machine(self.skew_ns, None, ROOM);
        drop(self.process.take());
        // Nothing that ends may count as a failure of the next process.
        let _ = simulated::take_death();
        drop(net(|net| net.forget(host)));
    }

    /// Power is there again, but no process runs yet.
    pub(super) fn power_on(&self) {
        net(|net| {
            net.power[self.host] = Power::On;
            net.muted[self.host] = false;
        });
    }

    /// Puts an empty disk in.
    pub(super) fn wipe(&mut self) {
        let _ = std::fs::remove_dir_all(self.dir());
        self.generation += 1;
    }
}

async fn live(
    host: usize,
    config: MasterConfig,
    told: &Shared,
    clock: AttendedClock,
    stop: Shutdown,
) -> Result<(), String> {
    let handle = Handle::open(config).map_err(|error| error.to_string())?;
    *lock(&told.handle) = Some(handle.clone());
    let service = RaftServer::new(RaftService(handle.clone()))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let server = Server::builder()
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .add_service(service)
        .serve_with_incoming(incoming(host));
    let ticking = clock.tick_until(stop.clone());
    let lived = async {
        tokio::select! {
            biased;
            lived = handle.live(&stop) => lived.map_err(|error| error.to_string()),
            served = server => Err(format!("the server has ended: {served:?}")),
        }
    };
    let (lived, ()) = tokio::join!(
        async {
            let lived = lived.await;
            stop.cancel();
            lived
        },
        ticking
    );
    lived
}

/// How long a write and a sync of the machine that runs now take.
pub(in crate::master::raft) fn sync_delay() -> Duration {
    net(|net| {
        let stall = net.sync_delay(net.running);
        Duration::from_nanos(stall.clamp(US * 50, 60_000 * MS))
    })
}
