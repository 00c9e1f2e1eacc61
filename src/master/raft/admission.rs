//! What a full disk refuses, and which full disks matter.
//!
//! The cluster goes on with a full follower while a quorum has room without it. A leader whose disk is full hands
//! leadership to a voter that has room. Only when no quorum has room are commands that grow the state refused; reads,
//! removals, and whatever ends or forgets something go on.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jindofs_proto::store::v1::command::Command as Kind;
use jindofs_proto::store::v1::{Command, Outcome};
use jindofs_proto::v1::batch_op::Op;
use metrics::counter;

use super::disk_space::size;
use super::handle::Handle;
use super::node::Running;
use crate::error::{Error, ErrorKind, Result};
use crate::master::state::query;

/// How long a member's word about its disk counts. Members repeat it with every announcement.
const REPORT_TTL: Duration = Duration::from_secs(10);
/// How long clients are told to retry while a leader without room looks for a successor.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause between two attempts to hand leadership over.
const HANDOVER_DELAY: Duration = Duration::from_secs(1);

/// What a member said of its disk.
#[derive(Debug, Clone, Copy)]
struct Report {
    full: bool,
    free: u64,
    at: Instant,
}

/// What every member said of its disk, and since when this member has been looking for a leader with more room.
#[derive(Debug, Default)]
pub(crate) struct DiskReports {
    reports: Mutex<HashMap<u64, Report>>,
    handover: Mutex<Option<Handover>>,
}

#[derive(Debug, Clone, Copy)]
struct Handover {
    since: Instant,
    tried: Instant,
}

impl DiskReports {
    /// Takes over what a member announced. Its identity was checked by the caller.
    pub(crate) fn note(&self, id: u64, full: bool, free: u64) {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        reports.insert(id, Report { full, free, at: Instant::now() });
    }

    fn is_any_full(&self) -> bool {
        let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        reports.values().any(|report| report.full)
    }

    fn of(&self, id: u64) -> Option<Report> {
        let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        reports.get(&id).copied().filter(|report| report.at.elapsed() < REPORT_TTL)
    }
}

/// Which disks have room, from the leader's point of view.
#[derive(Debug, PartialEq, Eq)]
enum Room {
    /// A quorum has room, and so has the leader, or no disk is known to be full.
    Enough,
    /// A quorum has room, without the leader.
    ElsewhereOnly,
    /// No quorum has room.
    Nowhere,
}

/// Decides from the voters of each configuration (two while it changes), which of them are full, and which answer.
fn judge(configs: &[BTreeSet<u64>], me: u64, full: &BTreeSet<u64>, silent: &BTreeSet<u64>) -> Room {
    if full.is_empty() {
        // Without a quorum that answers, the proposal itself finds that out.
        return Room::Enough;
    }
    let has_quorum = |config: &BTreeSet<u64>| {
        let roomy = config.iter().filter(|id| !full.contains(id) && !silent.contains(id)).count();
        roomy > config.len() / 2
    };
    match (configs.iter().all(has_quorum), full.contains(&me)) {
        (true, false) => Room::Enough,
        (true, true) => Room::ElsewhereOnly,
        (false, _) => Room::Nowhere,
    }
}

/// As the leader of `term` sees it. One that leads since a moment has not heard the others yet: that is no silence.
fn room(running: &Running, term: u64, own_full: bool) -> (Room, BTreeSet<u64>, BTreeSet<u64>) {
    let me = running.net.me.id;
    let configs = running.look(|m| m.membership_config.membership().get_joint_config().clone());
    let voters: BTreeSet<u64> = configs.iter().flatten().copied().collect();
    let is_full = |id: &u64| if *id == me { own_full } else { running.net.disks.of(*id).is_some_and(|one| one.full) };
    let full: BTreeSet<u64> = voters.iter().copied().filter(is_full).collect();
    let is_silent = |id: &u64| *id != me && running.net.peers.silence(*id, term) >= REPORT_TTL;
    let silent: BTreeSet<u64> = voters.iter().copied().filter(is_silent).collect();
    (judge(&configs, me, &full, &silent), full, silent)
}

/// True for a command that leaves more behind than there was.
pub(crate) fn grows(kind: &Kind) -> bool {
    match kind {
        Kind::Create(_)
        | Kind::Mkdir(_)
        | Kind::Symlink(_)
        | Kind::SetAttr(_)
        | Kind::Rename(_)
        | Kind::BeginWrite(_)
        | Kind::ReserveInodes(_)
        | Kind::AddMount(_)
        | Kind::LoadEntries(_)
        | Kind::SubmitJob(_) => true,
        Kind::Batch(batch) => batch.ops.iter().filter_map(|op| op.op.as_ref()).any(op_grows),
        _ => false,
    }
}

fn op_grows(op: &Op) -> bool {
    match op {
        Op::Create(_) | Op::Mkdir(_) | Op::Symlink(_) | Op::SetAttr(_) | Op::Rename(_) | Op::BeginWrite(_) => true,
        Op::Unlink(_) | Op::Rmdir(_) | Op::EndWrite(_) => false,
    }
}

impl Handle {
    /// Why no command that grows the state can be taken now, for want of room on the masters' disks: `NoSpace`, or
    /// `Unavailable` while leadership is being handed to a master that has room. `None` on a master that does not lead.
    pub fn refusal_of_growth(&self) -> Option<Error> {
        let running = self.running()?;
        let usage = self.0.space.usage();
        // Nearly always: every proposal asks.
        if !(usage.full || running.net.disks.is_any_full()) {
            return None;
        }
        let (room, full, silent) = room(&running, running.leading()?, usage.full);
        let handover = *running.net.disks.handover.lock().unwrap_or_else(PoisonError::into_inner);
        match room {
            Room::Enough => None,
            Room::ElsewhereOnly if handover.is_none_or(|one| one.since.elapsed() < HANDOVER_TIMEOUT) => {
                Some(Error::unavailable("the disk of the leader is full: leadership is handed to a master with room"))
            }
            Room::ElsewhereOnly | Room::Nowhere => {
                counter!("jindofs_master_writes_refused_total").increment(1);
                Some(Error::new(ErrorKind::NoSpace, self.explain(&running, &full, &silent)))
            }
        }
    }

    /// Name, help and value of what is measured of the disk.
    pub fn disk_figures(&self) -> [(&'static str, &'static str, u64); 5] {
        let usage = self.0.space.usage();
        [
            ("jindofs_master_disk_free_bytes", "Bytes free on the disk of the metadata directory.", usage.free),
            ("jindofs_master_disk_reserve_bytes", "Free bytes below which that disk counts as full.", usage.reserve),
            ("jindofs_master_disk_full", "1 while that disk counts as full.", u64::from(usage.full)),
            (
                "jindofs_master_ballast_bytes",
                "Bytes kept to be given back to a full disk.",
                self.0.space.ballast_bytes(),
            ),
            ("jindofs_master_disk_waits", "Writes that wait for room on that disk now.", self.0.space.waiting()),
        ]
    }

    fn explain(&self, running: &Running, full: &BTreeSet<u64>, silent: &BTreeSet<u64>) -> String {
        let me = running.net.me.id;
        let usage = self.0.space.usage();
        let mut disks: Vec<String> = Vec::new();
        for id in full {
            let free = if *id == me { usage.free } else { running.net.disks.of(*id).map_or(0, |one| one.free) };
            let address = running.net.book.get(*id).map(|node| node.raft_address).unwrap_or_default();
            disks.push(format!("of master {id} at {address} ({} free)", size(free)));
        }
        let others = match silent.len() {
            0 => String::new(),
            count => format!(", {count} more do not answer"),
        };
        format!(
            "no quorum of the masters has room on its disk: full is the disk {}{others}. New writes are refused below a \
             reserve of {}; reads and removals go on. Free space on these disks, enlarge them, or remove files: writes \
             then go on by themselves",
            disks.join(" and "),
            size(usage.reserve)
        )
    }

    /// Ends a command that is refused. An earlier attempt of the same operation may have been executed, or may be about
    /// to be: then its outcome is the answer, as the client would take a refusal for the proof of the contrary.
    pub(super) async fn refuse(&self, running: &Arc<Running>, command: &Command, refusal: Error) -> Result<Outcome> {
        let Some(op) = command.op.as_ref().filter(|_| refusal.kind == ErrorKind::NoSpace) else { return Err(refusal) };
        let Some(term) = running.leading() else { return Err(running.not_leader()) };
        running.read_barrier().await?;
        // Raft takes its requests in order: once it has answered, every proposal made before is in the log.
        let stopped = |error| Error::unavailable(format!("raft has stopped here: {error}"));
        running.raft.with_raft_state(|_| ()).await.map_err(stopped)?;
        running.wait_applied(running.log.last_log_id().map_or(0, |id| id.index)).await?;
        if running.leading() != Some(term) {
            return Err(running.not_leader());
        }
        query::outcome(&running.machine.store().view(), op)?.ok_or(refusal)
    }
}

/// Hands leadership over while this member leads without room and others could write. Called again and again.
pub(super) async fn hand_over_if_full(running: &Running, own_full: bool) {
    let disks = &running.net.disks;
    let judged = running.leading().map(|term| room(running, term, own_full));
    let Some((_, full, silent)) = judged.filter(|(room, ..)| *room == Room::ElsewhereOnly) else {
        *disks.handover.lock().unwrap_or_else(PoisonError::into_inner) = None;
        return;
    };
    let now = Instant::now();
    {
        let mut handover = disks.handover.lock().unwrap_or_else(PoisonError::into_inner);
        match handover.as_mut() {
            Some(one) if one.tried.elapsed() < HANDOVER_DELAY => return,
            Some(one) => one.tried = now,
            None => *handover = Some(Handover { since: now, tried: now }),
        }
    }
    let shape = super::membership::shape(running);
    let roomy = shape.voters.iter().filter(|id| !full.contains(id) && !silent.contains(id));
    let Some(target) = roomy.max_by_key(|id| shape.matched.get(id).copied().unwrap_or(0)) else { return };
    match running.transfer_leader(*target).await {
        Ok(leader) => tracing::warn!(leader, "the disk of this leader is full: leadership is handed over"),
        Err(error) => tracing::warn!(%error, "the disk of this leader is full, and leadership is not handed over yet"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[u64]) -> BTreeSet<u64> {
        ids.iter().copied().collect()
    }

    #[test]
    fn full_disks_matter_once_no_quorum_has_room() {
        type Ids = &'static [u64];
        let cases: [(Ids, Ids, Ids, Room); 11] = [
            (&[1], &[], &[], Room::Enough),
            (&[1], &[1], &[], Room::Nowhere),
            (&[1, 2, 3], &[2], &[], Room::Enough),
            (&[1, 2, 3], &[1], &[], Room::ElsewhereOnly),
            (&[1, 2, 3], &[1, 2], &[], Room::Nowhere),
            (&[1, 2, 3], &[2, 3], &[], Room::Nowhere),
            (&[1, 2, 3], &[2], &[3], Room::Nowhere),
            (&[1, 2, 3], &[], &[2, 3], Room::Enough),
            (&[1, 2], &[2], &[], Room::Nowhere),
            (&[1, 2, 3, 4, 5], &[1, 2], &[], Room::ElsewhereOnly),
            (&[1, 2, 3, 4, 5], &[3, 4], &[5], Room::Nowhere),
        ];
        for (voters, full, silent, expected) in cases {
            let judged = judge(&[set(voters)], 1, &set(full), &set(silent));
            assert_eq!(judged, expected, "voters {voters:?}, full {full:?}, silent {silent:?}");
        }
        // While voters change, each set needs a quorum with room.
        assert_eq!(judge(&[set(&[1, 2, 3]), set(&[1, 4, 5])], 1, &set(&[4, 5]), &set(&[])), Room::Nowhere);
        assert_eq!(judge(&[set(&[1, 2, 3]), set(&[1, 4, 5])], 1, &set(&[2, 5]), &set(&[])), Room::Enough);
    }

    #[test]
    fn removals_and_endings_never_grow() {
        use jindofs_proto::v1::{BatchOp, BatchRequest, CreateRequest, EndWriteRequest, UnlinkRequest};
        let batch = |ops: Vec<Op>| {
            let ops = ops.into_iter().map(|op| BatchOp { op: Some(op) }).collect();
            Kind::Batch(BatchRequest { op: None, ops })
        };
        let (unlink, end) = (Op::Unlink(UnlinkRequest::default()), Op::EndWrite(EndWriteRequest::default()));
        assert!(!grows(&batch(vec![unlink.clone(), end])));
        assert!(grows(&batch(vec![unlink, Op::Create(CreateRequest::default())])));
        assert!(!grows(&Kind::Unlink(UnlinkRequest::default())));
        assert!(grows(&Kind::Create(CreateRequest::default())));
    }
}
