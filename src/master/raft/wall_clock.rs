//! The wall clock that a leader stamps commands with, checked against the clocks of the other voters.
//!
//! With three or more clocks known the median decides: stamps follow it while this machine's clock differs by more than
//! the allowed skew, and the leader hands over. With fewer clocks no comparison can tell: a step of this machine's clock is held
//! back for [`STEP_HOLD`], in which a mistake can be corrected, and followed afterwards, because a clock that was set
//! right makes the same step as one that was set wrong.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use jindofs_proto::raft::v1::ProbeRequest;
use jindofs_proto::raft::v1::raft_client::RaftClient;
use tonic::transport::Channel;

use crate::runtime::{now_ns, random_id};

use super::node::Running;

/// How often the other voters are asked for their clocks.
const ASK_INTERVAL: Duration = Duration::from_secs(2);
/// Longest wait for an answer. Half of it is how wrong a reading can be.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// After this time without news a reading, or what was concluded from readings, is not used any more.
const READING_KEPT: Duration = Duration::from_secs(30);
/// How long a step of the clock is held back while no other clocks are known.
const STEP_HOLD: Duration = Duration::from_secs(60);
/// A process that leads for the first time reports that the recorded time lies back further than this.
const GAP_TO_REPORT: Duration = Duration::from_secs(7 * 86_400);
/// Fewest clocks, the own one included, of which the others can outvote one.
const CLOCKS_MIN: usize = 3;

/// A wall clock as it was read at a monotonic time. Readings are compared by monotonic time, so that a step of the own wall
/// clock is not taken for one of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reading {
    at: Instant,
    wall_ns: i64,
}

impl Reading {
    /// What the clock must show at `now`.
    fn at(&self, now: Instant) -> i64 {
        self.wall_ns.saturating_add(nanos(now.saturating_duration_since(self.at)))
    }

    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) <= READING_KEPT
    }
}

/// Clocks of the voters, and the last stamp.
#[derive(Debug)]
pub(crate) struct WallClock {
    skew_max: Duration,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    others: HashMap<u64, Reading>,
    /// The median of the voters' clocks.
    median: Option<Reading>,
    last: Option<Reading>,
    /// Since when the wall clock has differed from the last stamp by more than the allowed skew.
    stepped: Option<Instant>,
    /// A deviation was reported, and has not ended.
    reported: bool,
    /// The clock was compared with the time that was recorded before this process led.
    compared: bool,
}

impl WallClock {
    /// A clock that trusts this machine's as long as it differs by at most `skew_max`.
    pub(crate) fn new(skew_max: Duration) -> WallClock {
        WallClock { skew_max, inner: Mutex::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time to stamp a command with, nanoseconds since the epoch. `recorded` is asked once for the time of the last
    /// command before, until it knows.
    pub(crate) fn stamp(&self, recorded: impl FnOnce() -> Option<i64>) -> i64 {
        let own = Reading { at: Instant::now(), wall_ns: now_ns() };
        let compared = self.inner().compared;
        if !compared && let Some(recorded) = recorded() {
            self.inner().compared = true;
            self.compare_with_recorded(own, recorded);
        }
        self.stamp_at(own)
    }

    /// Says what the clock of a process that leads for the first time has to do with the recorded time: a cluster that was
    /// off for a month and a clock that is wrong by a month look alike, so that only people can tell.
    fn compare_with_recorded(&self, own: Reading, recorded: i64) {
        let ahead_s = seconds(own.wall_ns.saturating_sub(recorded));
        if ahead_s < -self.skew_max.as_secs_f64() {
            tracing::warn!(
                ahead_s,
                "the clock of this machine lies behind the recorded time: one of them is or was wrong"
            );
        } else if ahead_s > GAP_TO_REPORT.as_secs_f64() {
            tracing::warn!(ahead_s, "nothing was recorded for long: the cluster was off, or a clock is wrong");
        }
    }

    fn stamp_at(&self, own: Reading) -> i64 {
        let mut inner = self.inner();
        let wall_ns = match inner.median.filter(|median| median.is_fresh(own.at)) {
            Some(median) => {
                inner.stepped = None;
                let expected = median.at(own.at);
                let is_off = own.wall_ns.abs_diff(expected) > self.skew_ns();
                if is_off && !inner.reported {
                    let offset_s = seconds(own.wall_ns.saturating_sub(expected));
                    tracing::warn!(offset_s, "the clock of this machine is wrong; the median of the voters is used");
                }
                inner.reported = is_off;
                if is_off { expected } else { own.wall_ns }
            }
            None => self.hold_step(&mut inner, own),
        };
        inner.last = Some(Reading { at: own.at, wall_ns });
        wall_ns
    }

    /// The time without other clocks to compare with.
    fn hold_step(&self, inner: &mut Inner, own: Reading) -> i64 {
        inner.reported = false;
        let Some(last) = inner.last else { return own.wall_ns };
        let expected = last.at(own.at);
        if own.wall_ns.abs_diff(expected) <= self.skew_ns() {
            inner.stepped = None;
            return own.wall_ns;
        }
        let step_s = seconds(own.wall_ns.saturating_sub(expected));
        let Some(since) = inner.stepped else {
            tracing::warn!(step_s, hold = ?STEP_HOLD, "the clock of this machine was stepped: stamps go on without the step");
            inner.stepped = Some(own.at);
            return expected;
        };
        if own.at.saturating_duration_since(since) < STEP_HOLD {
            return expected;
        }
        tracing::warn!(step_s, "the clock of this machine was stepped and stays so: stamps follow it");
        inner.stepped = None;
        own.wall_ns
    }

    fn skew_ns(&self) -> u64 {
        u64::try_from(self.skew_max.as_nanos()).unwrap_or(u64::MAX)
    }

    fn learn(&self, id: u64, reading: Reading) {
        self.inner().others.insert(id, reading);
    }

    /// Compares the clocks of the voters. How far each known one, `me` included, lies ahead of their median, nanoseconds;
    /// `None` while too few are known to outvote one.
    fn compare(&self, me: u64, own: Reading, voters: &BTreeSet<u64>) -> Option<HashMap<u64, i64>> {
        let mut inner = self.inner();
        inner.others.retain(|id, reading| voters.contains(id) && reading.is_fresh(own.at));
        let mut clocks: HashMap<u64, i64> = inner.others.iter().map(|(id, other)| (*id, other.at(own.at))).collect();
        clocks.insert(me, own.wall_ns);
        if clocks.len() < CLOCKS_MIN || !voters.contains(&me) {
            return None;
        }
        let mut walls: Vec<i64> = clocks.values().copied().collect();
        walls.sort_unstable();
        // Of an even number the one nearer to this machine's clock: half of the voters cannot outvote the other half.
        let middle = [walls[(walls.len() - 1) / 2], walls[walls.len() / 2]];
        let median =
            if own.wall_ns.abs_diff(middle[0]) <= own.wall_ns.abs_diff(middle[1]) { middle[0] } else { middle[1] };
        inner.median = Some(Reading { at: own.at, wall_ns: median });
        Some(clocks.into_iter().map(|(id, wall_ns)| (id, wall_ns.saturating_sub(median))).collect())
    }
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn seconds(ns: i64) -> f64 {
    ns as f64 / 1e9
}

/// Connections to the other voters, by id, with the address they were made to.
type Clients = HashMap<u64, (String, RaftClient<Channel>)>;

/// Asks the other voters for their clocks again and again, and hands leadership over while this machine's clock is wrong.
pub(super) async fn keep_clock(running: &Running) {
    let mut clients = Clients::new();
    loop {
        let me = running.net.me.id;
        let voters: BTreeSet<u64> = running.look(|m| m.membership_config.voter_ids().collect());
        clients.retain(|id, _| voters.contains(id));
        // Two clocks cannot be told apart, one even less.
        if voters.len() >= CLOCKS_MIN && voters.contains(&me) {
            let others = voters.iter().copied().filter(|id| *id != me).collect::<Vec<_>>();
            let asked = others.iter().map(|id| ask(running, *id, clients.remove(id)));
            let answers = join_all(asked).await;
            clients.extend(answers.into_iter().flatten());
            let own = Reading { at: Instant::now(), wall_ns: now_ns() };
            if let Some(offsets) = running.clock.compare(me, own, &voters) {
                act_on(running, me, &offsets).await;
            }
        }
        tokio::time::sleep(ASK_INTERVAL).await;
    }
}

/// Reads the clock of one voter; returns the connection if it is still good.
async fn ask(
    running: &Running,
    id: u64,
    known: Option<(String, RaftClient<Channel>)>,
) -> Option<(u64, (String, RaftClient<Channel>))> {
    let node = running.net.book.get(id)?;
    let ask = async {
        let mut client = match known {
            Some((address, client)) if address == node.raft_address => client,
            _ => running.net.resolver.connect(&node.raft_address, ASK_TIMEOUT).await.ok()?,
        };
        let asked = Instant::now();
        let request = ProbeRequest { nonce: random_id().to_vec().into(), ..ProbeRequest::default() };
        let answer = client.probe(request).await.ok()?.into_inner();
        let took = asked.elapsed();
        let is_this_disk = answer.member_id == id && answer.incarnation == node.incarnation;
        // A slow answer, also one that waited while this process stood still, says little about the time.
        if is_this_disk && answer.now_ns != 0 && took <= ASK_TIMEOUT.min(running.clock.skew_max / 2) {
            running.clock.learn(id, Reading { at: asked + took / 2, wall_ns: answer.now_ns });
        }
        Some((id, (node.raft_address.clone(), client)))
    };
    tokio::time::timeout(ASK_TIMEOUT, ask).await.ok().flatten()
}

async fn act_on(running: &Running, me: u64, offsets: &HashMap<u64, i64>) {
    let offset = offsets.get(&me).copied().unwrap_or(0);
    metrics::gauge!("jindofs_master_clock_offset_seconds").set(seconds(offset));
    let allowed = running.clock.skew_ns();
    if offset.unsigned_abs() <= allowed || running.leading().is_none() {
        return;
    }
    let offset_s = seconds(offset);
    let right = offsets.iter().filter(|(_, offset)| offset.unsigned_abs() <= allowed).map(|(id, _)| *id);
    let matched = running.look(|m| m.replication.clone().unwrap_or_default());
    let Some(next) = right.max_by_key(|id| matched.get(id).copied().flatten().map(|log_id| log_id.index)) else {
        tracing::warn!(offset_s, "the clock of this machine is wrong, and no voter with a right one could lead");
        return;
    };
    tracing::warn!(offset_s, allowed = ?running.clock.skew_max, next, "the clock of this machine is wrong: it hands leadership over");
    match running.transfer_leader(next).await {
        Ok(leader) => tracing::info!(leader, "leadership handed over, to a machine with a right clock"),
        Err(error) => tracing::warn!(%error, "leadership not handed over; it is tried again"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;
    const NOW: i64 = 1_800_000_000 * SECOND;
    const FAR: i64 = 4_100_000_000 * SECOND;

    fn clock() -> WallClock {
        WallClock::new(Duration::from_secs(10))
    }

    /// Machine time: `at` seconds after `start`, with a wall clock that is wrong by `offset` seconds.
    fn own(start: Instant, at: u64, offset: i64) -> Reading {
        let wall_ns = NOW + i64::try_from(at).expect("small") * SECOND + offset * SECOND;
        Reading { at: start + Duration::from_secs(at), wall_ns }
    }

    #[test]
    fn a_sole_clock_that_jumps_is_held_back_for_a_while_and_then_followed() {
        let (clock, start) = (clock(), Instant::now());
        let years = (FAR - NOW) / SECOND;
        for jump in [years, -1_000_000] {
            assert_eq!(clock.stamp_at(own(start, 0, 0)), NOW);
            assert_eq!(clock.stamp_at(own(start, 100, 9)), NOW + 109 * SECOND, "within what is allowed");
            assert_eq!(clock.stamp_at(own(start, 101, jump)), NOW + 110 * SECOND, "held back");
            assert_eq!(clock.stamp_at(own(start, 150, jump)), NOW + 159 * SECOND, "held back");
            assert_eq!(clock.stamp_at(own(start, 160, 0)), NOW + 160 * SECOND, "corrected");
            assert_eq!(clock.stamp_at(own(start, 170, jump)), NOW + 170 * SECOND, "another step");
            assert_eq!(clock.stamp_at(own(start, 229, jump)), NOW + 229 * SECOND, "held back");
            assert_eq!(clock.stamp_at(own(start, 230, jump)), NOW + (230 + jump) * SECOND, "it stays so");
            assert_eq!(clock.stamp_at(own(start, 231, jump)), NOW + (231 + jump) * SECOND);
            *clock.inner() = Inner::default();
        }
    }

    #[test]
    fn the_first_stamp_is_what_the_machine_says_also_after_a_month() {
        let (clock, start) = (clock(), Instant::now());
        assert_eq!(clock.stamp_at(own(start, 0, 30 * 86_400)), NOW + 30 * 86_400 * SECOND);
    }

    #[test]
    fn of_three_clocks_the_wrong_one_is_outvoted_at_once_and_no_step_of_it_is_followed() {
        let (clock, start) = (clock(), Instant::now());
        let voters = BTreeSet::from([1, 2, 3]);
        clock.learn(2, own(start, 0, 1));
        assert_eq!(clock.compare(1, own(start, 1, 0), &voters), None, "two clocks");
        clock.learn(3, own(start, 0, -2));
        let offsets = clock.compare(1, own(start, 1, 500), &voters).expect("three clocks");
        assert_eq!(offsets, HashMap::from([(1, 499 * SECOND), (2, 0), (3, -3 * SECOND)]));
        assert_eq!(clock.stamp_at(own(start, 2, 500)), NOW + 3 * SECOND);
        assert_eq!(clock.stamp_at(own(start, 3, 0)), NOW + 3 * SECOND, "set right");
        assert_eq!(clock.stamp_at(own(start, 29, -800)), NOW + 30 * SECOND, "a step between two comparisons");
        assert_eq!(clock.stamp_at(own(start, 32, -800)), NOW + 33 * SECOND, "the others are not heard: held back");
    }

    #[test]
    fn the_others_are_wrong_only_together_and_half_of_them_is_not_enough() {
        let (clock, start) = (clock(), Instant::now());
        let voters = BTreeSet::from([1, 2, 3, 4]);
        for id in [2, 3] {
            clock.learn(id, own(start, 0, 1_000));
        }
        clock.learn(4, own(start, 0, 0));
        clock.compare(1, own(start, 0, 0), &voters).expect("four clocks");
        assert_eq!(clock.stamp_at(own(start, 1, 0)), NOW + SECOND);
        // Not a voter any more, or silent for too long.
        assert_eq!(clock.compare(1, own(start, 0, 0), &BTreeSet::from([1, 2])), None);
        assert_eq!(clock.compare(1, own(start, 40, 0), &voters), None);
    }

    #[test]
    fn clocks_at_the_ends_of_time_do_no_harm() {
        let (clock, start) = (clock(), Instant::now());
        for (id, wall_ns) in [(2, i64::MAX), (3, i64::MIN)] {
            clock.learn(id, Reading { at: start, wall_ns });
        }
        let offsets = clock.compare(1, own(start, 10, 0), &BTreeSet::from([1, 2, 3])).expect("three clocks");
        assert_eq!(offsets[&1], 0);
        assert_eq!(clock.stamp_at(own(start, 10, 0)), NOW + 10 * SECOND);
        assert_eq!(clock.stamp_at(Reading { at: start, wall_ns: i64::MIN }), NOW + 10 * SECOND);
    }
}
