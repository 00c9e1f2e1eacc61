//! From an empty disk to a serving member: found, join, come back, or step aside.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;

use crate::error::{Error, Result};
use crate::runtime::{Shutdown, die, spawn_blocking};

use super::admission;
use super::announce::Welcome;
use super::compaction;
use super::disk_space::is_out_of_space;
use super::handle::Handle;
use super::identity::{Identity, Stage};
use super::membership;
use super::node::Running;
use super::slow_disk;
use super::snapshot;
use super::types::Node;
use super::wall_clock;

/// Pause between two looks at peers or at the membership.
pub(super) const BEAT: Duration = Duration::from_millis(200);
/// Longest wait for a peer's answer before it counts as silent.
pub(super) const PROBE: Duration = Duration::from_secs(3);
/// Bytes of log after which the state is flushed: a start after a crash replays no more than about this much.
const REPLAY_BYTES_MAX: u64 = 8 << 20;
/// Pause after a flush that found no room. RocksDB looks for room every five seconds, and goes on only in a moment without
/// flushes: those that are asked for more often keep it from it for ever.
const FLUSH_RETRY_DELAY: Duration = Duration::from_secs(15);
/// Age after which what an interrupted transfer has left is deleted.
const ABANDONED_TRANSFER: Duration = Duration::from_secs(3600);
/// Longest wait for the log to be closed.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(10);

impl Handle {
    /// Lives until `stop`, or until the disk must not be used.
    ///
    /// *Errors*: refusals of this disk, with the way out; the process should end with them.
    pub async fn live(&self, stop: &Shutdown) -> Result<()> {
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => {}
                step = self.step(stop) => step?,
            }
        }
        self.leave().await;
        Ok(())
    }

    async fn step(&self, stop: &Shutdown) -> Result<()> {
        let Some(identity) = self.identity() else { return self.look_for_a_cluster().await };
        match identity.stage {
            Stage::Founding => {
                let _alone = self.0.life.lock().await;
                self.found().await.map(|_| ())
            }
            Stage::Joining => self.join(identity).await,
            Stage::Member => match self.come_back(&identity).await? {
                Welcome::Given => self.serve(stop).await,
                Welcome::Replaced => self.retire(identity).await,
            },
            Stage::Retired => {
                self.set_phase("setting a retired disk aside");
                self.0.dir.set_aside(&identity)?;
                self.clear().await
            }
        }
    }

    pub(super) fn other_peers(&self) -> Vec<String> {
        let own = self.raft_address();
        self.0.config.peers.iter().filter(|peer| **peer != own).cloned().collect()
    }

    pub(super) fn own_node(&self, identity: &Identity) -> Node {
        Node {
            raft_address: self.raft_address(),
            grpc_address: self.grpc_address(),
            incarnation: identity.incarnation_bytes().to_vec(),
        }
    }

    pub(super) async fn start_raft(&self, identity: &Identity) -> Result<Arc<Running>> {
        if let Some(running) = self.running() {
            return Ok(running);
        }
        let opened = self.open_stores(identity)?;
        let (log, machine) = (opened.log.clone(), opened.machine.clone());
        let started = Running::start(&self.0.config, opened.net.clone(), log, machine, self.0.dir.snapshots()).await;
        let running = Arc::new(started?);
        running.net.book.set(identity.member_id, &self.own_node(identity));
        self.set_running(running.clone());
        Ok(running)
    }

    /// Before a member's Raft starts, a majority of each set of voters must confirm that its disk is the one they know, and
    /// no other process may run with it. Without a majority there would be no leader to serve anyway, so this costs no
    /// availability.
    async fn come_back(&self, identity: &Identity) -> Result<Welcome> {
        if self.running().is_some() {
            return Ok(Welcome::Given);
        }
        self.set_phase("recovering: opening the log and the state");
        let opened = self.open_stores(identity)?;
        self.repair_before_start(&opened).await?;
        let membership = opened.voters_in_log()?;
        let applied = *opened.machine.applied().borrow();
        let last = opened.log.last_log_id().map_or(0, |id| id.index).max(applied);
        let mut addresses: BTreeSet<String> = self.other_peers().into_iter().collect();
        let nodes = membership.nodes().filter(|(id, _)| **id != identity.member_id);
        addresses.extend(nodes.map(|(_, node)| node.raft_address.clone()));
        addresses.remove(&self.raft_address());
        let asked = self.ask_peers(identity, membership.get_joint_config(), &addresses, last);
        let (welcome, ()) = tokio::try_join!(asked, self.refuse_copy(identity, &opened))?;
        if matches!(welcome, Welcome::Given) {
            self.set_phase("recovering: starting raft");
        }
        Ok(welcome)
    }

    /// A member's everyday life: lead if elected, keep the membership and the snapshots, say where it is.
    async fn serve(&self, stop: &Shutdown) -> Result<()> {
        let Some(identity) = self.identity() else { return Ok(()) };
        let running = self.start_raft(&identity).await?;
        self.set_phase("serving");
        let retired = tokio::select! {
            () = self.watch_leadership(&running) => return Err(Error::internal("raft has stopped here")),
            () = self.tend(&running) => false,
            () = running.keep_history() => false,
            () = self.keep_snapshots(&running) => false,
            () = keep_flushed(&running) => false,
            () = compaction::compact_when_low(&running, &self.0.space) => false,
            () = self.keep_sound(&running) => false,
            () = self.keep_scrubbing(&running) => false,
            () = wall_clock::keep_clock(&running) => false,
            () = slow_disk::hand_over_when_slow(&running) => false,
            ended = self.keep_announcing(&identity, &running) => ended.map(|()| true)?,
            () = stop.cancelled() => false,
        };
        if retired { self.retire(identity).await } else { Ok(()) }
    }

    async fn watch_leadership(&self, running: &Running) {
        // Raft's other metrics change with every entry: nobody may be woken by them.
        let mut server = running.raft.server_metrics();
        loop {
            let (leading, nodes) = {
                let seen = server.borrow_and_update();
                let nodes: Vec<(u64, Node)> =
                    seen.membership_config.nodes().map(|(id, node)| (*id, node.clone())).collect();
                (running.leading_in(&seen), nodes)
            };
            for (id, node) in nodes {
                if running.net.book.get(id).is_none_or(|known| known.incarnation != node.incarnation) {
                    running.net.book.set(id, &node);
                }
            }
            self.0.leadership.send_if_modified(|old| {
                let changed = *old != leading;
                if changed {
                    tracing::info!(term = leading, "leadership changed");
                    *old = leading;
                }
                changed
            });
            // That raft has stopped is told by its other metrics only.
            let changed = tokio::time::timeout(BEAT, server.changed()).await;
            if matches!(changed, Ok(Err(_))) || running.look(|m| m.running_state.is_err()) {
                return;
            }
        }
    }

    async fn tend(&self, running: &Arc<Running>) {
        loop {
            tokio::time::sleep(BEAT).await;
            admission::hand_over_if_full(running, self.0.space.usage().full).await;
            if running.leading().is_some()
                && let Err(error) = membership::reconcile(running).await
            {
                tracing::info!(%error, "membership step put off");
            }
        }
    }

    async fn keep_snapshots(&self, running: &Running) {
        // Members do not all stop to build at the same moment.
        let jitter = Duration::from_millis(u64::from(self.0.nonce[0]) * 4);
        loop {
            tokio::time::sleep(Duration::from_secs(1) + jitter).await;
            if let Ok(_receiving) = running.net.transfers.receiving.try_lock()
                && let Err(error) = snapshot::expire_transfers(&running.snapshots, ABANDONED_TRANSFER)
            {
                tracing::warn!(%error, "an abandoned transfer is not deleted");
            }
            let config = &self.0.config;
            // While a snapshot is being sent the log behind it stays anyway: a newer one would only be sent from its
            // beginning if the transfer is interrupted.
            let due = match running.net.transfers.lowest_index() {
                Some(_) => config.snapshot_log_bytes.max(config.keep_log_for_learners_bytes / 2),
                None => config.snapshot_log_bytes,
            };
            let snapshot = running.machine.snapshot_id().map_or(0, |id| id.index);
            if running.log.bytes_after(snapshot) < due || running.net.integrity.damage().is_some() {
                continue;
            }
            match running.snapshot(Some(config.keep_log_bytes)).await {
                Ok((index, purged)) => tracing::info!(index, purged, "snapshot built"),
                Err(error) => {
                    tracing::warn!(%error, "snapshot not built");
                    tokio::time::sleep(compaction::RETRY_DELAY).await;
                }
            }
        }
    }

    pub(super) async fn retire(&self, identity: Identity) -> Result<()> {
        tracing::warn!(member = identity.member_id, "this disk was replaced: it is set aside");
        if let Some(running) = self.running() {
            running.machine.close();
            // A raft that is already down is what is wanted.
            let _ = running.raft.shutdown().await;
        }
        self.change_identity(|identity| identity.stage = Stage::Retired)
    }

    /// Hands leadership over, stops, and makes the log durable.
    async fn leave(&self) {
        let Some(running) = self.running() else { return };
        running.machine.close();
        if running.leading().is_some() && running.look(|m| m.membership_config.voter_ids().count()) > 1 {
            match running.transfer_leader(0).await {
                Ok(id) => tracing::info!(leader = id, "leadership handed over"),
                Err(error) => tracing::warn!(%error, "leadership not handed over"),
            }
        }
        // With a disk that hangs or has no room for the log, neither of them ends. What is acknowledged is durable anyway.
        let stopped = async {
            if let Err(error) = running.raft.shutdown().await {
                tracing::warn!(%error, "raft did not stop cleanly");
            }
            running.log.close().await;
        };
        if tokio::time::timeout(LEAVE_TIMEOUT, stopped).await.is_err() {
            tracing::warn!("the log is not closed in time; the next start reads what is durable");
            return;
        }
        let store = running.machine.store();
        match spawn_blocking(move || store.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "state not flushed; the next start replays the log"),
            Err(error) => tracing::warn!(%error, "state not flushed; the next start replays the log"),
        }
    }
}

/// Bounds what a start after a crash has to replay.
async fn keep_flushed(running: &Running) {
    let mut flushed = *running.applied_index().borrow();
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let bytes = running.log.bytes_after(flushed);
        // A flush that finds no room stops all writes to the state until it does: the log holds the same meanwhile.
        if bytes < REPLAY_BYTES_MAX || running.machine.check_room_for_snapshot(bytes).is_err() {
            continue;
        }
        let applied = *running.applied_index().borrow();
        let store = running.machine.store();
        let flushing = store.clone();
        match spawn_blocking(move || flushing.flush()).await {
            Ok(Err(error)) if is_out_of_space(&error) => {
                tracing::warn!(%error, "the state is flushed later");
                tokio::time::sleep(FLUSH_RETRY_DELAY).await;
                continue;
            }
            // A damaged state is replaced, not given up.
            Ok(Err(error)) if store.damage().is_some() => running.net.integrity.report(error.to_string()),
            Ok(Err(error)) => die(&format!("the state cannot be flushed: {error}")),
            Ok(Ok(())) | Err(_) => {}
        }
        flushed = applied;
    }
}
