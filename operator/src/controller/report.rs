//! What people see: columns, phases and counts, from what masters and Kubernetes say.

use std::collections::BTreeMap;

use jindofs_proto::v1::{Role as MemberRole, StatusResponse, WorkerState, WorkersResponse};
use k8s_openapi::api::apps::v1::{DaemonSet, StatefulSet};

use super::masters::Masters;
use crate::crd::{CacheStates, ClusterStatus, DatasetStatus, MasterStatus, RuntimeStatus};

/// `531.89MiB`: two decimals, as Fluid writes sizes.
pub(super) fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.2}{}", units[unit])
}

/// Shown until the first count has ended.
const CALCULATING: &str = "[Calculating]";

/// The columns about data.
pub(super) fn data(usage: &WorkersResponse, status: &mut DatasetStatus) {
    let live = usage.workers.iter().filter(|worker| worker.state() == WorkerState::Live);
    let (mut capacity, mut read, mut missed) = (0, 0, 0);
    for worker in live {
        // One that is drained leaves, and what it holds is not counted either.
        capacity += if worker.drain.is_none() { worker.capacity_bytes } else { 0 };
        read += worker.read_bytes;
        missed += worker.missed_bytes;
    }
    let cached: u64 = usage.mounts.iter().map(|mount| mount.cached_bytes).sum();
    let counted = usage.mounts.iter().all(|mount| mount.ufs_counted_ns > 0);
    let (bytes, files) =
        usage.mounts.iter().fold((0, 0), |sum, mount| (sum.0 + mount.ufs_bytes, sum.1 + mount.ufs_files));
    let known = counted && !usage.mounts.is_empty();
    // What was known stays until it is known better: a new leader counts anew.
    if known {
        status.ufs_total = Some(size(bytes));
        status.file_num = Some(files.to_string());
    } else {
        status.ufs_total.get_or_insert_with(|| CALCULATING.to_owned());
        status.file_num.get_or_insert_with(|| CALCULATING.to_owned());
    }
    let states: &mut CacheStates = &mut status.cache_states;
    let mut put = |key: &str, value: String| states.insert(key.to_owned(), value);
    put("cached", size(cached));
    put("cacheCapacity", size(capacity));
    if read > 0 {
        put("cacheHitRatio", format!("{:.1}%", (1.0 - missed as f64 / read as f64) * 100.0));
    }
    if known {
        let part = if bytes == 0 { 0.0 } else { (cached as f64 / bytes as f64 * 100.0).min(100.0) };
        put("cachedPercentage", format!("{part:.1}%"));
    } else {
        states.entry("cachedPercentage".to_owned()).or_insert_with(|| "0.0%".to_owned());
    }
}

/// True if at least one worker lives.
pub(super) fn any_worker(usage: &WorkersResponse) -> bool {
    usage.workers.iter().any(|worker| worker.state() == WorkerState::Live)
}

fn pod_of(address: &str) -> String {
    address.split(['.', ':']).next().unwrap_or_default().to_owned()
}

/// Who leads and how far behind each is. The lag is rounded: a figure that moves with each write would be written with each.
pub(super) fn cluster(masters: &Masters, status: &mut ClusterStatus) {
    let Some((pod, leader)) = masters.leader() else {
        status.quorum = Some(false);
        status.leader = None;
        return;
    };
    status.quorum = Some(true);
    status.leader = Some(pod.to_owned());
    status.term = i64::try_from(leader.term).ok();
    status.members = members(masters, leader);
}

fn members(masters: &Masters, leader: &StatusResponse) -> Vec<MasterStatus> {
    let applied: BTreeMap<u64, u64> =
        masters.answers().filter_map(|(_, one)| one.self_.as_ref()).map(|own| (own.id, own.applied)).collect();
    let each = leader.members.iter().map(|member| {
        let role = match member.role() {
            MemberRole::Leader => "leader",
            MemberRole::Voter => "voter",
            MemberRole::Learner => "learner",
            MemberRole::Unspecified => "unknown",
        };
        let lag = applied.get(&member.id).map(|applied| leader.committed.saturating_sub(*applied));
        let lag = match lag {
            None => -1,
            Some(lag) if lag < 1000 => 0,
            Some(lag) => i64::try_from(lag / 1000 * 1000).unwrap_or(i64::MAX),
        };
        MasterStatus { id: member.id.to_string(), pod: pod_of(&member.raft_address), role: role.to_owned(), lag }
    });
    each.collect()
}

fn phase(ready: i32, wanted: i32) -> String {
    match ready {
        _ if ready >= wanted => "Ready",
        0 => "NotReady",
        _ => "PartialReady",
    }
    .to_owned()
}

/// Counts and phases of a runtime.
pub(super) fn counts(
    masters: (Option<&StatefulSet>, i32),
    workers: (Option<&StatefulSet>, i32),
    fuse: Option<&DaemonSet>,
    quorum: bool,
    status: &mut RuntimeStatus,
) {
    let of = |set: Option<&StatefulSet>| {
        let state = set.and_then(|set| set.status.as_ref());
        (state.map_or(0, |state| state.replicas), state.and_then(|state| state.ready_replicas).unwrap_or(0))
    };
    let (current, ready) = of(masters.0);
    status.desired_master_number_scheduled = masters.1;
    status.current_master_number_scheduled = current;
    status.master_number_ready = ready;
    status.master_phase = if quorum { phase(ready, masters.1) } else { "NotReady".to_owned() };
    let (current, ready) = of(workers.0);
    status.desired_worker_number_scheduled = workers.1;
    status.current_worker_number_scheduled = current;
    status.worker_number_ready = ready;
    status.worker_number_available = Some(ready);
    status.worker_number_unavailable = Some((workers.1 - ready).max(0));
    status.worker_phase = phase(ready, workers.1);
    let nodes = fuse.and_then(|set| set.status.clone()).unwrap_or_default();
    status.desired_fuse_number_scheduled = nodes.desired_number_scheduled;
    status.current_fuse_number_scheduled = nodes.current_number_scheduled;
    status.fuse_number_ready = nodes.number_ready;
    status.fuse_number_available = Some(nodes.number_available.unwrap_or(0));
    status.fuse_number_unavailable = Some(nodes.number_unavailable.unwrap_or(0));
    status.fuse_phase = phase(nodes.number_ready, nodes.desired_number_scheduled);
}

#[cfg(test)]
mod tests {
    use jindofs_proto::v1::WorkerInfo;

    use super::*;

    #[test]
    fn the_hit_ratio_is_that_of_all_live_workers_and_blank_before_anything_was_read() {
        let worker = |state: WorkerState, read_bytes, missed_bytes| WorkerInfo {
            state: state.into(),
            read_bytes,
            missed_bytes,
            ..WorkerInfo::default()
        };
        let shown = |workers| {
            let mut status = DatasetStatus::default();
            data(&WorkersResponse { workers, ..WorkersResponse::default() }, &mut status);
            status.cache_states.get("cacheHitRatio").cloned()
        };
        let live = WorkerState::Live;
        assert_eq!(shown(vec![worker(live, 0, 0)]), None);
        let all = vec![worker(live, 600, 100), worker(live, 200, 0), worker(WorkerState::Lost, 900, 900)];
        assert_eq!(shown(all).as_deref(), Some("87.5%"));
    }

    #[test]
    fn sizes_are_written_as_fluid_writes_them() {
        let shown = [0, 1023, 557_727_089, 24 << 30, 3 << 50].map(size);
        assert_eq!(shown, ["0.00B", "1023.00B", "531.89MiB", "24.00GiB", "3.00PiB"]);
    }
}
