//! Workers as they report themselves, to every master: who lives, and what each holds.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Mutex;
use std::time::Duration;

use jindofs_proto::store::v1::WorkerRow;
use jindofs_proto::v1::{CachedFile, Drain, DrainState, HeartbeatRequest, ReportRequest, WorkerInfo, WorkerState};

use crate::rpc::remote::takes_new;
use crate::runtime::attended::{AttendedClock, Moment};
use crate::runtime::lock;

/// Bytes and file versions cached of one mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes, copies on several workers included.
    pub bytes: u64,
    /// File versions, copies included.
    pub files: u64,
}

/// A file version of which a worker holds something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Inode.
    pub file_id: u64,
    /// Version.
    pub version: u64,
    /// Bytes held.
    pub bytes: u64,
}

/// The soft state of all workers.
#[derive(Debug)]
pub struct Workers {
    timeout: Duration,
    clock: AttendedClock,
    started: Moment,
    known: Mutex<HashMap<String, Known>>,
}

#[derive(Debug)]
struct Known {
    info: WorkerInfo,
    epoch: u64,
    heard: Moment,
    /// Sequence of the next report; `None` until a full one begins.
    next: Option<u64>,
    /// A full report has come to its end.
    whole: bool,
    /// Ids of the workers that it knows to be drained.
    knows: HashSet<String>,
    /// Every other worker has learned that this one is drained.
    left_out: bool,
    /// (file, version) to what is held of it.
    files: HashMap<(u64, u64), (u32, u64)>,
}

impl Workers {
    /// Workers count as lost after `timeout` without a heartbeat, while this master runs.
    pub fn new(timeout: Duration, clock: AttendedClock) -> Workers {
        Workers { timeout, started: clock.now(), clock, known: Mutex::default() }
    }

    /// True if nothing was heard for too long. Time in which this master stood still does not count: what was sent
    /// meanwhile is still to be read.
    fn is_silent(&self, heard: Moment) -> bool {
        self.clock.silence_since(heard) > self.timeout
    }

    /// A worker lives. True if it must send a full report.
    pub fn heartbeat(&self, request: &HeartbeatRequest) -> bool {
        let Some(info) = &request.worker else { return false };
        let mut known = lock(&self.known);
        let fresh = || Known {
            info: info.clone(),
            epoch: request.epoch,
            heard: self.clock.now(),
            next: None,
            whole: false,
            knows: HashSet::new(),
            left_out: false,
            files: HashMap::new(),
        };
        let worker = known.entry(info.id.clone()).or_insert_with(fresh);
        if request.epoch < worker.epoch {
            // A process that lingers after its successor has begun.
            return false;
        }
        if request.epoch > worker.epoch {
            *worker = fresh();
        }
        worker.info = info.clone();
        worker.heard = self.clock.now();
        worker.knows = request.draining.iter().cloned().collect();
        worker.next.is_none()
    }

    /// Takes a report in. True if a full one must follow: this one does not continue what is known.
    pub fn report(&self, request: &ReportRequest) -> bool {
        let mut known = lock(&self.known);
        let Some(worker) = known.get_mut(&request.worker_id).filter(|worker| worker.epoch == request.epoch) else {
            return true;
        };
        let continues = worker.next == Some(request.seq);
        if !continues && !request.full {
            worker.next = None;
            return true;
        }
        // The first page of a full report; further pages of it continue in sequence.
        if request.full && !continues {
            worker.files.clear();
            worker.whole = false;
        }
        worker.next = Some(request.seq.saturating_add(1));
        worker.whole |= request.full && !request.more;
        for file in &request.files {
            worker.take(file);
        }
        false
    }

    /// A worker with its live state, for everyone on record.
    pub fn list(&self, recorded: &[WorkerRow]) -> Vec<WorkerInfo> {
        let mut known = lock(&self.known);
        self.leave_out(&mut known, recorded);
        recorded
            .iter()
            .map(|row| {
                let soft = known.get(&row.id).filter(|worker| worker.epoch >= row.epoch);
                let mut info = soft.map_or_else(|| recorded_info(row), |worker| worker.info.clone());
                // A master that just started has heard of nobody: that is no reason to give anybody up.
                let heard = soft.map_or(self.started, |worker| worker.heard);
                let lost = self.is_silent(heard);
                info.set_state(if lost { WorkerState::Lost } else { WorkerState::Live });
                let left_out = soft.is_none_or(|worker| worker.left_out);
                let state = if left_out { DrainState::Moving } else { DrainState::Announced };
                let drain = || Drain { state: state.into(), reason: row.drain_reason.clone(), ..Drain::default() };
                info.drain = row.draining.then(drain);
                info
            })
            .collect()
    }

    /// Notes who is drained with the knowledge of everyone that is heard. Once so it stays so: a worker that starts later
    /// learns it at once.
    fn leave_out(&self, known: &mut HashMap<String, Known>, recorded: &[WorkerRow]) {
        for row in recorded {
            let heard = |other: &WorkerRow| known.get(&other.id).filter(|one| !self.is_silent(one.heard));
            let told = row.draining && recorded.iter().filter_map(heard).all(|other| other.knows.contains(&row.id));
            if let Some(worker) = known.get_mut(&row.id) {
                worker.left_out = row.draining && (worker.left_out || told);
            }
        }
    }

    /// The workers that new blocks may be placed on.
    pub fn staying(&self, recorded: &[WorkerRow]) -> Vec<WorkerInfo> {
        self.list(recorded).into_iter().filter(takes_new).collect()
    }

    /// Everything a worker has reported; none until a full report has come.
    pub fn held_by(&self, id: &str) -> Option<Vec<Held>> {
        let known = lock(&self.known);
        let worker = known.get(id).filter(|worker| worker.whole && worker.next.is_some())?;
        let held = worker.files.iter().map(|((file_id, version), (_, bytes))| Held {
            file_id: *file_id,
            version: *version,
            bytes: *bytes,
        });
        Some(held.collect())
    }

    /// What live workers that stay hold, by mount.
    pub fn usage(&self, recorded: &[WorkerRow]) -> BTreeMap<u32, Usage> {
        let leaving: HashSet<&str> = recorded.iter().filter(|row| row.draining).map(|row| row.id.as_str()).collect();
        let known = lock(&self.known);
        let mut usage: BTreeMap<u32, Usage> = BTreeMap::new();
        let stays = |worker: &&Known| !leaving.contains(worker.info.id.as_str());
        for worker in known.values().filter(stays).filter(|worker| !self.is_silent(worker.heard)) {
            for (mount, bytes) in worker.files.values() {
                let sum = usage.entry(*mount).or_default();
                sum.bytes = sum.bytes.saturating_add(*bytes);
                sum.files += 1;
            }
        }
        usage
    }
}

impl Known {
    fn take(&mut self, file: &CachedFile) {
        let key = (file.file_id, file.version);
        if file.cached_bytes == 0 {
            self.files.remove(&key);
        } else {
            self.files.insert(key, (file.mount_id, file.cached_bytes));
        }
    }
}

fn recorded_info(row: &WorkerRow) -> WorkerInfo {
    WorkerInfo {
        id: row.id.clone(),
        address: row.address.clone(),
        host: row.host.clone(),
        socket: row.socket.clone(),
        capacity_bytes: row.capacity_bytes,
        ..WorkerInfo::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(epoch: u64) -> HeartbeatRequest {
        let worker = WorkerInfo { id: "w".into(), ..WorkerInfo::default() };
        HeartbeatRequest { worker: Some(worker), epoch, ..HeartbeatRequest::default() }
    }

    fn report(epoch: u64, seq: u64, full: bool, files: &[(u64, u64)]) -> ReportRequest {
        let file = |(file_id, cached_bytes): &(u64, u64)| CachedFile {
            file_id: *file_id,
            cached_bytes: *cached_bytes,
            mount_id: 1,
            ..CachedFile::default()
        };
        let files = files.iter().map(file).collect();
        ReportRequest { worker_id: "w".into(), epoch, seq, full, files, ..ReportRequest::default() }
    }

    #[test]
    fn a_gap_asks_for_a_full_report_and_totals_are_absolute() {
        let workers = Workers::new(Duration::from_secs(9), AttendedClock::of_process());
        assert!(workers.report(&report(1, 1, true, &[])), "never heard of");
        assert!(workers.heartbeat(&beat(1)));
        assert!(!workers.report(&report(1, 4, true, &[(7, 10), (8, 5)])));
        assert!(!workers.heartbeat(&beat(1)));
        assert!(!workers.report(&report(1, 5, false, &[(7, 30), (8, 0)])));
        assert_eq!(workers.usage(&[])[&1], Usage { bytes: 30, files: 1 });
        assert!(workers.report(&report(1, 7, false, &[(9, 1)])), "6 is missing");
        assert!(workers.heartbeat(&beat(1)));
        assert!(!workers.report(&report(1, 8, true, &[(9, 1)])));
        assert_eq!(workers.usage(&[])[&1], Usage { bytes: 1, files: 1 });
    }

    #[test]
    fn an_older_process_of_the_same_worker_is_ignored() {
        let workers = Workers::new(Duration::from_secs(9), AttendedClock::of_process());
        workers.heartbeat(&beat(2));
        assert!(!workers.report(&report(2, 1, true, &[(7, 10)])));
        assert!(!workers.heartbeat(&beat(1)));
        assert!(workers.report(&report(1, 2, false, &[(7, 99)])));
        assert_eq!(workers.usage(&[])[&1].bytes, 10);
    }

    #[test]
    fn a_drain_is_announced_until_every_worker_knows_of_it_and_never_again() {
        let workers = Workers::new(Duration::from_secs(9), AttendedClock::of_process());
        let row = |id: &str| WorkerRow { id: id.into(), epoch: 1, draining: id == "w", ..WorkerRow::default() };
        let rows = [row("w"), row("v")];
        let tell = |id: &str, draining: &[&str]| {
            let worker = Some(WorkerInfo { id: id.into(), ..WorkerInfo::default() });
            let draining = draining.iter().map(|id| (*id).to_owned()).collect();
            workers.heartbeat(&HeartbeatRequest { worker, epoch: 1, draining, ..HeartbeatRequest::default() });
        };
        let state = || workers.list(&rows)[0].drain.as_ref().map(|drain| drain.state());
        tell("w", &["w"]);
        tell("v", &[]);
        assert_eq!(state(), Some(DrainState::Announced));
        assert_eq!(workers.staying(&rows).len(), 2);
        tell("v", &["w"]);
        assert_eq!(state(), Some(DrainState::Moving));
        tell("v", &[]);
        assert_eq!(state(), Some(DrainState::Moving), "a worker that has just started");
        assert_eq!(workers.staying(&rows).len(), 1);
        let stays = [WorkerRow { draining: false, ..rows[0].clone() }, rows[1].clone()];
        assert_eq!(workers.staying(&stays).len(), 2);
        assert_eq!(state(), Some(DrainState::Announced), "another drain is told anew");
    }
    #[test]
    fn a_master_that_stood_still_takes_no_worker_for_lost_and_one_that_ran_does() {
        use std::sync::Arc;
        use std::sync::atomic::{AtomicU64, Ordering};
        let elapsed = Arc::new(AtomicU64::new(0));
        let source = elapsed.clone();
        let clock = AttendedClock::over(move || Duration::from_millis(source.load(Ordering::SeqCst)));
        let workers = Workers::new(Duration::from_secs(9), clock.clone());
        let rows = ["w", "never-heard"].map(|id| WorkerRow { id: id.into(), epoch: 1, ..WorkerRow::default() });
        let states = || workers.list(&rows).iter().map(WorkerInfo::state).collect::<Vec<_>>();
        workers.heartbeat(&beat(1));
        elapsed.fetch_add(3_600_000, Ordering::SeqCst);
        assert_eq!(states(), [WorkerState::Live, WorkerState::Live], "an hour that was not watched");
        for _ in 0..19 {
            elapsed.fetch_add(500, Ordering::SeqCst);
            clock.now();
        }
        assert_eq!(states(), [WorkerState::Lost, WorkerState::Lost]);
        workers.heartbeat(&beat(1));
        assert_eq!(states(), [WorkerState::Live, WorkerState::Lost]);
    }
}
