//! Registration, heartbeats and reports: a worker registers with the leader, then sends its state and its cached files
//! to every master, and receives the mount table, the members and the drains.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use jindofs_proto::v1::{
    CachedFile, HeartbeatRequest, HeartbeatResponse, RegisterWorkerRequest, ReportRequest, WorkerInfo,
};

use super::draining_peers::DrainingPeers;
use super::identity::Identity;
use super::mounts::Mounts;
use super::store::Store;
use crate::config::WorkerConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::rpc::channel::{MasterChannel, block};
use crate::runtime::{Shutdown, lock};

/// Timeout of a call to one master.
const BUDGET: Duration = Duration::from_secs(2);
/// Files per report.
const PAGE: usize = 2000;

/// Registers the worker and sends heartbeats.
pub(super) struct HeartbeatTask {
    info: WorkerInfo,
    configured: Vec<String>,
    interval: Duration,
    identity: Arc<Identity>,
    store: Arc<Store>,
    mounts: Arc<Mounts>,
    draining: Arc<DrainingPeers>,
    channel: MasterChannel,
    registered: AtomicBool,
    learned: Mutex<BTreeSet<String>>,
    /// What was reported to each master.
    reports: Mutex<HashMap<String, ReportState>>,
}

#[derive(Debug, Default)]
struct ReportState {
    /// Sequence number of the last report.
    seq: u64,
    /// Files whose totals changed since, by file version.
    pending: HashMap<(u64, u64), CachedFile>,
    full: bool,
}

impl HeartbeatTask {
    pub(super) fn new(
        config: &WorkerConfig,
        info: WorkerInfo,
        identity: Arc<Identity>,
        store: Arc<Store>,
        mounts: Arc<Mounts>,
        draining: Arc<DrainingPeers>,
        channel: MasterChannel,
    ) -> Arc<HeartbeatTask> {
        Arc::new(HeartbeatTask {
            info,
            configured: config.masters.clone(),
            interval: config.heartbeat,
            identity,
            store,
            mounts,
            draining,
            channel,
            registered: AtomicBool::new(false),
            learned: Mutex::default(),
            reports: Mutex::default(),
        })
    }

    pub(super) fn is_registered(&self) -> bool {
        self.registered.load(Ordering::Relaxed)
    }

    /// Sends heartbeats until `stop`.
    ///
    /// *Errors*: `Foreign` if the masters belong to another cluster than the cache.
    pub(super) async fn run(self: Arc<Self>, stop: Shutdown) -> Result<()> {
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                sent = self.send_heartbeats() => sent?,
            }
            tokio::select! { () = stop.cancelled() => {}, () = tokio::time::sleep(self.interval) => {} }
        }
        Ok(())
    }

    async fn send_heartbeats(&self) -> Result<()> {
        if !self.is_registered()
            && let Err(error) = self.register().await
        {
            if matches!(error.kind, ErrorKind::Foreign | ErrorKind::Stale) {
                return Err(error);
            }
            tracing::info!(%error, "not registered yet");
            return Ok(());
        }
        self.queue_changes();
        let masters = self.masters();
        let answers = join_all(masters.iter().map(|master| self.send_heartbeat(master))).await;
        for (master, answer) in masters.iter().zip(answers) {
            match answer {
                Ok(answer) => self.learn(answer)?,
                Err(error) if error.kind == ErrorKind::Foreign => return Err(error),
                Err(error) => {
                    tracing::debug!(%error, master, "heartbeat failed");
                    self.with_report_state(master, |state| state.full = true);
                }
            }
        }
        Ok(())
    }

    fn masters(&self) -> Vec<String> {
        let learned = lock(&self.learned);
        if learned.is_empty() { self.configured.clone() } else { learned.iter().cloned().collect() }
    }

    async fn register(&self) -> Result<()> {
        let request = RegisterWorkerRequest {
            worker: Some(self.info.clone()),
            cluster_uuid: self.identity.cluster().into(),
            epoch: self.identity.epoch(),
        };
        let send = |to| {
            let request = request.clone();
            async move { block(to).register_worker(request).await }
        };
        let answer = self.channel.with_timeout(BUDGET * 2).call_leader("register", send).await?;
        self.identity.set_cluster(&answer.cluster_uuid)?;
        self.mounts.learn(answer.mounts_version, answer.mounts)?;
        self.registered.store(true, Ordering::Relaxed);
        tracing::info!(epoch = self.identity.epoch(), "registered");
        Ok(())
    }

    fn with_report_state<T>(&self, master: &str, change: impl FnOnce(&mut ReportState) -> T) -> T {
        let mut reports = lock(&self.reports);
        let fresh = || ReportState { full: true, ..ReportState::default() };
        change(reports.entry(master.to_owned()).or_insert_with(fresh))
    }

    /// Queues the changed files for the next report to each master.
    fn queue_changes(&self) {
        let changed = self.store.take_changed();
        let mut reports = lock(&self.reports);
        for state in reports.values_mut().filter(|state| !state.full) {
            state.pending.extend(changed.iter().map(|file| ((file.file_id, file.version), *file)));
        }
    }

    async fn send_heartbeat(&self, master: &str) -> Result<HeartbeatResponse> {
        let request = HeartbeatRequest {
            worker: Some(self.store.totals(&self.info)),
            epoch: self.identity.epoch(),
            mounts_version: self.mounts.version(),
            cluster_uuid: self.identity.cluster().into(),
            draining: self.draining.ids(),
        };
        let send = |to| {
            let request = request.clone();
            async move { block(to).heartbeat(request).await }
        };
        let answer = self.channel.call_one(master, BUDGET, send).await?;
        if answer.want_full_report {
            self.with_report_state(master, |state| state.full = true);
        }
        self.report(master).await?;
        Ok(answer)
    }

    /// Reports the changed files to a master, or all files if it needs a full report.
    async fn report(&self, master: &str) -> Result<()> {
        let (full, mut seq, files) = self.with_report_state(master, |state| {
            let full = std::mem::take(&mut state.full);
            let pending = std::mem::take(&mut state.pending);
            // A full report begins with a gap in the sequence: earlier reports are void.
            let seq = if full { state.seq + 2 } else { state.seq + 1 };
            let files: Vec<CachedFile> = if full { self.store.all() } else { pending.into_values().collect() };
            (full, seq, files)
        });
        if files.is_empty() && !full {
            return Ok(());
        }
        let pages: Vec<Vec<CachedFile>> = match files.is_empty() {
            true => vec![Vec::new()],
            false => files.chunks(PAGE).map(<[CachedFile]>::to_vec).collect(),
        };
        let last = pages.len() - 1;
        for (at, files) in pages.into_iter().enumerate() {
            let request = ReportRequest {
                worker_id: self.info.id.clone(),
                epoch: self.identity.epoch(),
                seq,
                full,
                more: at < last,
                files,
            };
            self.with_report_state(master, |state| state.seq = seq);
            seq += 1;
            let send = |to| {
                let request = request.clone();
                async move { block(to).report(request).await }
            };
            if self.channel.call_one(master, BUDGET, send).await?.want_full_report {
                return Err(Error::unavailable("the master wants a full report"));
            }
        }
        Ok(())
    }

    fn learn(&self, answer: HeartbeatResponse) -> Result<()> {
        if !answer.mounts.is_empty() || answer.mounts_version > self.mounts.version() {
            self.mounts.learn(answer.mounts_version, answer.mounts)?;
        }
        self.draining.learn(answer.drains_version, answer.draining);
        if !answer.masters.is_empty() {
            *lock(&self.learned) = answer.masters.into_iter().collect();
        }
        if answer.unknown {
            // A lagging master does not know this worker yet. If the leader does not know it either, the registration
            // says so.
            self.registered.store(false, Ordering::Relaxed);
        }
        Ok(())
    }
}
