//! A leader whose own disk does not keep up hands leadership over to a voter whose disk does.
//!
//! Entries are applied once they are in the log of the same disk, so a leader that waits for its disk would make every
//! client wait, although a majority of the voters has stored what they sent.

use std::time::{Duration, Instant};

use super::node::Running;

/// How often the position of the log on disk is compared with its end.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Time between two attempts. Where all disks are slow, a handover wins nothing, and leadership must not go round.
const RETRY_DELAY: Duration = Duration::from_secs(10);

/// Watches the log of a member that may lead; never returns.
pub(super) async fn hand_over_when_slow(running: &Running) {
    let (mut seen, mut since) = (0, Instant::now());
    let mut tried: Option<Instant> = None;
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        let flushed = running.log.flushed_index();
        let is_behind = running.log.last_log_id().is_some_and(|last| last.index > flushed);
        if !is_behind || flushed != seen {
            (seen, since) = (flushed, Instant::now());
            continue;
        }
        let waited = since.elapsed();
        if waited < running.lease || tried.is_some_and(|at| at.elapsed() < RETRY_DELAY) || running.leading().is_none() {
            continue;
        }
        let Some(target) = voter_ahead_of(running, flushed) else { continue };
        tried = Some(Instant::now());
        tracing::warn!(?waited, target, "the disk of this leader does not sync its log: leadership is handed over");
        if let Err(error) = running.transfer_leader(target).await {
            tracing::warn!(%error, "leadership not handed over");
        }
    }
}

/// The other voter that has stored most, if that is more than this disk has.
fn voter_ahead_of(running: &Running, flushed: u64) -> Option<u64> {
    let me = running.net.me.id;
    running.look(|m| {
        let matched = m.replication.as_ref()?;
        let others = m.membership_config.voter_ids().filter(|id| *id != me);
        let stored = others.filter_map(|id| Some((matched.get(&id).copied().flatten()?.index, id)));
        stored.filter(|(index, _)| *index > flushed).max().map(|(_, id)| id)
    })
}
