//! Scaling of workers: a worker that has to leave is drained first, so that its blocks need not be fetched again.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use jindofs_proto::v1::{DrainState, WorkerInfo, WorkerState, WorkersResponse};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::masters::{Masters, Said};
use super::runtime_reconciler::RuntimeReconciler;
use super::status::NotReady;
use crate::desired::{self, Input, Role};
use crate::events::EventMessage;
use crate::sync::lock;

/// The reason of a drain for scale-in. Drains with another reason were started by people and are not cancelled here.
const REASON: &str = "scale-in";
/// How long a drain may make no progress before the workers leave with the blocks that they hold.
const DRAIN_STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// The smallest number of bytes left so far, and since when.
#[derive(Debug, Default)]
pub(super) struct DrainProgress(Mutex<Option<(u64, Instant)>>);

impl DrainProgress {
    fn forget(&self) {
        *lock(&self.0) = None;
    }

    /// How long the drain has made no progress.
    fn still(&self, left: u64, now: Instant) -> Duration {
        let mut seen = lock(&self.0);
        match *seen {
            Some((before, since)) if left >= before => now.duration_since(since),
            _ => {
                *seen = Some((left, now));
                Duration::ZERO
            }
        }
    }
}

/// The next step for workers that have to leave.
#[derive(Debug, PartialEq, Eq)]
enum DrainStep {
    /// Start to drain these workers.
    Mark(Vec<String>),
    /// Wait: bytes that are not moved yet, and what delays them.
    Wait(u64, String),
    /// The drain is finished: bytes that stay behind, and why.
    Done(u64, String),
}

/// Ordinals of pods, by address.
fn ordinals<'a>(pods: impl Iterator<Item = &'a Pod>) -> BTreeMap<String, i32> {
    let of = |pod: &Pod| {
        let ordinal = pod.name_any().rsplit_once('-')?.1.parse().ok()?;
        Some((pod.status.as_ref()?.pod_ip.clone()?, ordinal))
    };
    pods.filter_map(of).collect()
}

/// Ordinal of the pod of a worker, by the address with which it registered.
fn ordinal(worker: &WorkerInfo, pods: &BTreeMap<String, i32>) -> Option<i32> {
    let (host, _) = worker.address.rsplit_once(':')?;
    pods.get(host.trim_matches(['[', ']'])).copied()
}

/// The next step for the workers with ordinals from `wanted` on. A worker that is not live is not drained.
fn next_step(workers: &[WorkerInfo], pods: &BTreeMap<String, i32>, wanted: i32) -> DrainStep {
    let leaves = |worker: &&WorkerInfo| {
        worker.state() == WorkerState::Live && ordinal(worker, pods).is_some_and(|ordinal| ordinal >= wanted)
    };
    let leaving: Vec<&WorkerInfo> = workers.iter().filter(leaves).collect();
    let unmarked: Vec<String> = leaving.iter().filter(|one| one.drain.is_none()).map(|one| one.id.clone()).collect();
    if !unmarked.is_empty() {
        return DrainStep::Mark(unmarked);
    }
    let drains = || leaving.iter().filter_map(|worker| worker.drain.as_ref());
    let left = drains().map(|drain| drain.left_bytes).sum();
    let on = drains().find(|drain| drain.state() != DrainState::Done);
    let why = on.or_else(|| drains().find(|drain| drain.left_bytes > 0));
    let why = why.map(|drain| drain.message.clone()).unwrap_or_default();
    if on.is_some() { DrainStep::Wait(left, why) } else { DrainStep::Done(left, why) }
}

impl RuntimeReconciler {
    /// Current replicas of the workers' StatefulSet, and what it waits for while there are more than `wanted`.
    pub(super) async fn workers_size(&self, input: &Input<'_>, masters: &Masters) -> (i32, Option<NotReady>) {
        let wanted = desired::workers(input);
        let live = self.context.cache.get::<StatefulSet>(&self.namespace, &input.names.of(Role::Worker));
        let now = live.and_then(|set| set.spec.as_ref()?.replicas).unwrap_or(wanted);
        if now <= wanted {
            self.drains.forget();
            return (wanted, None);
        }
        match self.drain(input, masters, wanted).await {
            Ok(None) => (wanted, None),
            Ok(Some(why)) => (now, Some(NotReady::passing("WorkersDraining", why))),
            Err(why) => (now, Some(NotReady::passing("WorkersDraining", format!("not drained yet: {why}")))),
        }
    }

    /// Why the workers that have to leave must wait; `None` if they may leave.
    async fn drain(&self, input: &Input<'_>, masters: &Masters, wanted: i32) -> Said<Option<String>> {
        let pods = self.pods(Role::Worker);
        let pods = ordinals(pods.iter().map(|pod| &**pod));
        match next_step(&masters.usage().await?.workers, &pods, wanted) {
            DrainStep::Mark(ids) => {
                let count = ids.len();
                masters.drain(ids, false, REASON).await?;
                Ok(Some(format!("{count} of the workers leave: the others take what they hold")))
            }
            DrainStep::Wait(left, why) => {
                let still = self.drains.still(left, Instant::now());
                let left = super::report::size(left);
                if still < DRAIN_STALL_TIMEOUT {
                    return Ok(Some(format!("{left} are left on workers that leave: {why}")));
                }
                let note = format!("nothing has moved for {} s, {left} are left behind: {why}", still.as_secs());
                self.context.emit(input.dataset, EventMessage::new("WorkersNotDrained", note, true)).await;
                Ok(None)
            }
            DrainStep::Done(0, _) => {
                let note = "the others hold what the workers that leave have cached".to_owned();
                self.context.emit(input.dataset, EventMessage::new("WorkersDrained", note, false)).await;
                Ok(None)
            }
            DrainStep::Done(left, why) => {
                let note = format!("{} could not move and are left behind: {why}", super::report::size(left));
                self.context.emit(input.dataset, EventMessage::new("WorkersNotDrained", note, true)).await;
                Ok(None)
            }
        }
    }

    /// Cancels drains of workers that are wanted again, and removes workers that are gone for good.
    pub(super) async fn tend_workers(&self, input: &Input<'_>, masters: &Masters, usage: &WorkersResponse) -> Said<()> {
        let wanted = desired::workers(input);
        let pods = self.pods(Role::Worker);
        let pods = ordinals(pods.iter().map(|pod| &**pod));
        let ours = |worker: &&WorkerInfo| worker.drain.as_ref().is_some_and(|drain| drain.reason == REASON);
        let back = |worker: &&WorkerInfo| ordinal(worker, &pods).is_some_and(|ordinal| ordinal < wanted);
        let back: Vec<String> = usage.workers.iter().filter(ours).filter(back).map(|one| one.id.clone()).collect();
        if !back.is_empty() {
            masters.drain(back, true, "").await?;
        }
        // A pod that comes back with another address registers again.
        let gone = |worker: &&WorkerInfo| worker.state() == WorkerState::Lost && ordinal(worker, &pods).is_none();
        let gone: Vec<String> = usage.workers.iter().filter(gone).map(|one| one.id.clone()).collect();
        if gone.is_empty() { Ok(()) } else { masters.forget(gone).await }
    }
}

#[cfg(test)]
mod tests {
    use jindofs_proto::v1::Drain;

    use super::*;

    fn worker(id: &str, address: &str, drain: Option<(DrainState, u64)>) -> WorkerInfo {
        let drain = drain.map(|(state, left_bytes)| Drain {
            state: state.into(),
            left_bytes,
            message: format!("{id} says"),
            ..Drain::default()
        });
        let mut worker = WorkerInfo { id: id.into(), address: address.into(), drain, ..WorkerInfo::default() };
        worker.set_state(WorkerState::Live);
        worker
    }

    fn pods() -> BTreeMap<String, i32> {
        [("10.0.0.1".to_owned(), 0), ("10.0.0.2".to_owned(), 1), ("fd00::3".to_owned(), 2)].into()
    }

    #[test]
    fn workers_of_the_last_ordinals_are_drained_and_waited_for() {
        let stays = worker("a", "10.0.0.1:6101", None);
        let new = || worker("c", "[fd00::3]:6101", None);
        assert_eq!(next_step(&[stays.clone(), new()], &pods(), 2), DrainStep::Mark(vec!["c".into()]));
        let on = worker("b", "10.0.0.2:6101", Some((DrainState::Moving, 7)));
        let done = worker("c", "[fd00::3]:6101", Some((DrainState::Done, 0)));
        let all = [stays, on, done];
        assert_eq!(next_step(&all, &pods(), 1), DrainStep::Wait(7, "b says".into()));
        assert_eq!(next_step(&all, &pods(), 2), DrainStep::Done(0, String::new()));
    }

    #[test]
    fn a_worker_that_is_lost_or_never_came_holds_nobody_up_and_what_cannot_move_is_told() {
        let mut lost = worker("b", "10.0.0.2:6101", None);
        lost.set_state(WorkerState::Lost);
        let elsewhere = worker("x", "10.9.9.9:6101", None);
        assert_eq!(next_step(&[lost, elsewhere], &pods(), 1), DrainStep::Done(0, String::new()));
        let full = worker("b", "10.0.0.2:6101", Some((DrainState::Done, 5)));
        assert_eq!(next_step(&[full], &pods(), 1), DrainStep::Done(5, "b says".into()));
    }

    #[test]
    fn patience_begins_anew_with_every_byte_that_moves() {
        let (watch, start) = (DrainProgress::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(watch.still(100, at(0)), Duration::ZERO);
        assert_eq!(watch.still(100, at(50)), Duration::from_secs(50));
        assert_eq!(watch.still(90, at(59)), Duration::ZERO);
        assert_eq!(watch.still(90, at(100)), Duration::from_secs(41));
        watch.forget();
        assert_eq!(watch.still(90, at(200)), Duration::ZERO);
    }
}
