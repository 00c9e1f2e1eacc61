//! What keeps a member's data sound: the scrub that looks for rot, and the repair of what is damaged.
//!
//! A damaged member keeps its votes and its log, which have checksums of their own: they are what the others rely on.
//! What it replaces is the state and the snapshot: by its own snapshot and the log behind it, if that verifies; by the
//! snapshot of another member that verifies, otherwise. A sole master without a sound snapshot keeps answering reads of
//! intact ranges, seals nothing, and says so until a person takes action.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::join_all;

use crate::config::MasterConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::runtime::{die, spawn_blocking};

use super::handle::{Handle, Opened};
use super::identity::Stage;
use super::install::{blames_disk, check_image};
use super::life::PROBE;
use super::node::Running;
use super::snapshot::{self, Pace, SnapshotDir};
use super::state_machine::StateMachine;
use super::transfer;
use super::types::{Membership, Node};
use super::wal::LogStore;
use super::wire::Net;

/// How often damage that reads have met is noticed.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Pause between two attempts to repair.
const RETRY_DELAY: Duration = Duration::from_secs(2);
/// The pause doubles up to this one: an attempt may read all data of the disk.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(60);

/// How long a repair waits until this member has applied what a snapshot of another one includes.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(10);

/// What a repair works on; all of it is there before Raft runs.
struct Repair<'a> {
    net: &'a Arc<Net>,
    log: &'a LogStore,
    machine: &'a StateMachine,
    snapshots: &'a Path,
    /// The last entry to apply, where no Raft runs.
    goal: Option<u64>,
}

async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}

impl Repair<'_> {
    /// Replaces what is damaged.
    ///
    /// *Errors*: no source verifies, or none can be reached; nothing has changed, the caller tries again.
    async fn run(&self, others: &[(u64, Node)]) -> Result<()> {
        if self.goal.is_none() && !self.is_state_damaged().await? {
            self.replace_snapshot().await?;
        } else {
            self.replace_state(others).await?;
        }
        self.net.integrity.clear();
        Ok(())
    }

    /// *Errors*: the state could not be read, for a reason that says nothing of it.
    async fn is_state_damaged(&self) -> Result<bool> {
        let store = self.machine.store();
        if store.damage().is_some() {
            return Ok(true);
        }
        let snapshot = self.machine.current_snapshot();
        let verified = on_disk(move || {
            if let (Err(error), None) = (store.verify(), store.damage()) {
                return Err(io::Error::other(error.to_string()));
            }
            // Not every byte of a table lies in a block. What differs from the sealed file must not be sealed again.
            match snapshot.map_or(Ok(()), |snapshot| snapshot::verify_shared_tables(store.dir(), &snapshot)) {
                Err(error) if blames_disk(&error) => store.mark_damaged(error.to_string()),
                compared => compared?,
            }
            Ok(store.damage().is_some())
        });
        Ok(verified.await?)
    }

    /// The state is sound: if the snapshot is not, another one is sealed.
    async fn replace_snapshot(&self) -> Result<()> {
        let Some(snapshot) = self.machine.current_snapshot() else { return Ok(()) };
        let verified = on_disk(move || snapshot.verify().and_then(|()| check_image(&snapshot)));
        if let Err(error) = verified.await {
            if !blames_disk(&error) {
                return Err(error.into());
            }
            tracing::warn!(%error, "the snapshot is damaged, the state is not: another one is sealed");
            let machine = self.machine.clone();
            on_disk(move || machine.build()).await?;
        }
        Ok(())
    }

    async fn replace_state(&self, others: &[(u64, Node)]) -> Result<()> {
        match self.rebuild_from_own().await {
            Ok(()) => return Ok(()),
            Err(error) => tracing::warn!(%error, "the state cannot be rebuilt from this disk's own snapshot"),
        }
        let purged = self.log.purged().map_or(0, |id| id.index);
        let mut last = Error::new(ErrorKind::Unavailable, "there is no other member to fetch a snapshot from");
        for (id, node) in others {
            let node = self.net.book.get(*id).unwrap_or_else(|| node.clone());
            let source = (*id, node.raft_address.as_str());
            let fetched = transfer::fetch(self.net, self.machine, source, purged, self.snapshots).await;
            let rebuilt = match fetched {
                Ok(image) => self.rebuild(image).await.map_err(Error::from),
                Err(error) => Err(error),
            };
            match rebuilt {
                Ok(()) => {
                    tracing::warn!(from = id, "the damaged state was replaced by that of another member");
                    return Ok(());
                }
                Err(error) => last = error.context(format!("member {id}")),
            }
        }
        Err(last)
    }

    async fn rebuild_from_own(&self) -> io::Result<()> {
        let own = self.machine.current_snapshot();
        let own = own.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no snapshot"))?;
        let (machine, log, goal) = (self.machine.clone(), self.log.clone(), self.goal);
        on_disk(move || {
            own.verify()?;
            check_image(&own)?;
            machine.rebuild(&own, &log, goal)
        })
        .await?;
        tracing::warn!("the damaged state was replaced by this disk's own snapshot and log");
        Ok(())
    }

    async fn rebuild(&self, image: SnapshotDir) -> io::Result<()> {
        let (machine, log, goal) = (self.machine.clone(), self.log.clone(), self.goal);
        if goal.is_none() {
            // Another member may be a little ahead.
            let mut applied = machine.applied();
            let caught_up = tokio::time::timeout(CATCH_UP_TIMEOUT, applied.wait_for(|now| *now >= image.index())).await;
            if caught_up.is_err() && is_apply_waiting(&log, &machine) && machine.store().damage().is_some() {
                // Entries wait for rows that are damaged. Before Raft runs, a snapshot may be ahead of the state.
                die(
                    "the state is damaged where entries are applied, and the snapshots of others are ahead of it: the \
                     next start replaces it",
                );
            }
        }
        on_disk(move || machine.rebuild(&image, &log, goal)).await
    }
}

/// True while the log holds committed entries that are not applied.
fn is_apply_waiting(log: &LogStore, machine: &StateMachine) -> bool {
    log.committed().is_some_and(|committed| committed.index > *machine.applied().borrow())
}

fn others(membership: &Membership, me: u64) -> Vec<(u64, Node)> {
    membership.nodes().filter(|(id, _)| **id != me).map(|(id, node)| (*id, node.clone())).collect()
}

impl Handle {
    /// Before Raft runs: replaces a state that could not be brought up to the log because it is damaged.
    pub(super) async fn repair_before_start(&self, opened: &Opened) -> Result<()> {
        let of_snapshot = || {
            let snapshot = opened.machine.current_snapshot();
            snapshot.map(|snapshot| snapshot.meta().last_membership.membership().clone()).unwrap_or_default()
        };
        // A damaged state may have been begun anew: then neither it nor a log that was purged names anybody.
        let membership = match opened.voters_in_log() {
            Ok(membership) if membership.nodes().next().is_some() => membership,
            _ => of_snapshot(),
        };
        let goal = opened.log.committed().map_or(0, |id| id.index);
        let repair = Repair {
            net: &opened.net,
            log: &opened.log,
            machine: &opened.machine,
            snapshots: &self.0.dir.snapshots(),
            goal: Some(goal),
        };
        let mut delay = RETRY_DELAY;
        while let Some(damage) = opened.net.integrity.damage() {
            self.set_phase(format!("damaged: {damage}; waiting for a member with sound data"));
            let mut sources = others(&membership, opened.net.me.id);
            if sources.is_empty() {
                sources = self.members_among_peers(opened.net.me.cluster).await;
            }
            if let Err(error) = repair.run(&sources).await {
                tracing::error!(%error, "damaged data is not repaired yet");
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(RETRY_DELAY_MAX);
            }
        }
        Ok(())
    }

    /// The configured peers that are members of this cluster, for a disk that can name none.
    async fn members_among_peers(&self, cluster: [u8; 16]) -> Vec<(u64, Node)> {
        let probes = self.other_peers().into_iter().map(|peer| async move {
            let answer = self.0.resolver.probe(&peer, PROBE).await.ok()?;
            let is_member = answer.state == Stage::Member.name() && answer.cluster_uuid.as_ref() == cluster;
            let node = Node { raft_address: peer, grpc_address: String::new(), incarnation: Vec::new() };
            is_member.then_some((answer.member_id, node))
        });
        join_all(probes).await.into_iter().flatten().collect()
    }

    /// Notices damage, hands leadership over, and repairs. Ends only with the member.
    pub(super) async fn keep_sound(&self, running: &Arc<Running>) {
        tokio::join!(self.keep_repaired(running), keep_from_leading(running));
    }

    async fn keep_repaired(&self, running: &Arc<Running>) {
        let mut damaged = running.net.integrity.subscribe();
        let mut delay = RETRY_DELAY;
        let mut failures = Failures::default();
        loop {
            failures.look_for_damage(running).await;
            if let Some(damage) = running.machine.store().damage() {
                running.net.integrity.report(damage);
            }
            let Some(damage) = running.net.integrity.damage() else {
                delay = RETRY_DELAY;
                // A report wakes at once; what reads have met is polled.
                let _ = tokio::time::timeout(POLL_INTERVAL, damaged.changed()).await;
                continue;
            };
            self.set_phase(format!("damaged: {damage}"));
            if let Err(error) = repair_running(running).await {
                tracing::error!(%error, "damaged data is not repaired yet");
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(RETRY_DELAY_MAX);
                if self.refusal_while_damaged(running).is_some() && is_apply_waiting(&running.log, &running.machine) {
                    // Linearizable reads wait for such an entry too, in vain.
                    die("an entry waits for the damaged state of the only master: the next start tries to apply it");
                }
            } else {
                tracing::warn!("this disk's data is sound again");
                self.set_phase("serving");
            }
        }
    }

    /// Why a sole master takes no changes: its state is damaged. RocksDB may refuse to store them, and linearizable reads
    /// would wait for what is in the log and cannot be applied. Where there are other voters, one of them leads.
    pub(super) fn refusal_while_damaged(&self, running: &Running) -> Option<Error> {
        let store = running.machine.store();
        let damage = store.damage()?;
        let sole = running.look(|m| m.membership_config.voter_ids().count()) == 1;
        sole.then(|| {
            Error::new(
                ErrorKind::Corrupted,
                format!(
                    "the state of the only master is damaged, and there is no other one to take it from: {damage}. \
                     Changes are refused; what is intact can be read. Way out: put back a copy of namespace.meta-dir, or \
                     start with an empty one and mount again"
                ),
            )
        })
    }

    /// Name, help and value of the metrics on snapshots and the soundness of this disk's data.
    pub fn data_figures(&self) -> Vec<(&'static str, &'static str, u64)> {
        let Some(opened) = self.opened() else { return Vec::new() };
        let (integrity, transfers) = (&opened.net.integrity, &opened.net.transfers);
        let value = |of: &AtomicU64| of.load(Ordering::Relaxed);
        vec![
            ("jindofs_master_damaged", "1 while damaged data is not repaired.", integrity.damage().is_some().into()),
            ("jindofs_master_repairs", "Damaged states replaced since the start.", value(&integrity.repairs)),
            ("jindofs_master_scrubbed_bytes", "Bytes read in search of damage.", value(&integrity.scrubbed)),
            ("jindofs_master_snapshot_sent_bytes", "Bytes of snapshots sent.", value(&transfers.sent)),
            ("jindofs_master_snapshot_received_bytes", "Bytes of snapshots received.", value(&transfers.received)),
            ("jindofs_master_snapshot_reused_bytes", "Bytes not sent, as they were here.", value(&transfers.reused)),
            ("jindofs_master_log_held_bytes", "Bytes of log kept for members that lag.", value(&transfers.held)),
        ]
    }

    /// Looks for rot: reads the sealed snapshot, and the tables that are only in the state, at a low rate.
    pub(super) async fn keep_scrubbing(&self, running: &Arc<Running>) {
        let MasterConfig { scrub_bytes_per_second, scrub_interval, .. } = *self.config();
        if scrub_bytes_per_second == 0 {
            return std::future::pending().await;
        }
        let pace = Pace::new(scrub_bytes_per_second);
        loop {
            tokio::time::sleep(scrub_interval).await;
            if running.net.integrity.damage().is_some() {
                continue;
            }
            match scrub(running, &pace).await {
                Err(error) if blames_disk(&error) => {
                    running.net.integrity.report(error.to_string());
                }
                Err(error) => tracing::warn!(%error, "the scrub could not read; it is tried again"),
                Ok(()) => {}
            }
        }
    }
}

/// Failures of RocksDB's own work that have been looked into.
#[derive(Debug, Default)]
struct Failures {
    /// The state that they belong to, and how many.
    seen: (PathBuf, u64),
}

impl Failures {
    /// After a failed compaction RocksDB refuses writes without saying so before the next one. If that was for damage, it
    /// is found here, before an entry has to wait for the state.
    async fn look_for_damage(&mut self, running: &Running) {
        let store = running.machine.store();
        let now = (store.dir().to_path_buf(), store.background_errors());
        if now.1 == 0 || now == self.seen || running.machine.is_room_low() {
            return;
        }
        match on_disk(move || store.verify().map_err(io::Error::other)).await {
            Ok(()) => tracing::warn!("the state store has failed in the background, but its files are sound"),
            Err(error) => tracing::warn!(%error, "the state store has failed in the background"),
        }
        self.seen = now;
    }
}

async fn repair_running(running: &Running) -> Result<()> {
    let repair = Repair {
        net: &running.net,
        log: &running.log,
        machine: &running.machine,
        snapshots: &running.snapshots,
        goal: None,
    };
    let membership = running.look(|m| m.membership_config.membership().clone());
    repair.run(&others(&membership, running.net.me.id)).await
}

/// Hands leadership over as long as data is damaged: also when this member is elected while it is repaired.
async fn keep_from_leading(running: &Running) {
    let mut damaged = running.net.integrity.subscribe();
    loop {
        let others = running.look(|m| m.membership_config.voter_ids().count()) > 1;
        if running.net.integrity.damage().is_some() && running.leading().is_some() && others {
            match running.transfer_leader(0).await {
                Ok(leader) => tracing::warn!(leader, "leadership handed over: this member's data is damaged"),
                Err(error) => tracing::info!(%error, "leadership not handed over by a member with damaged data"),
            }
        }
        let _ = tokio::time::timeout(POLL_INTERVAL, damaged.changed()).await;
    }
}

/// One round. A snapshot that is replaced meanwhile stays readable as long as it is held here.
async fn scrub(running: &Running, pace: &Pace) -> io::Result<()> {
    if let Some(snapshot) = running.machine.current_snapshot() {
        let held = snapshot.clone();
        on_disk(move || held.verify_manifest()).await?;
        for (name, sum) in snapshot.manifest().files.clone() {
            tokio::time::sleep(pace.reserve(sum.length)).await;
            let path = snapshot.path().join(name);
            on_disk(move || sum.verify(&path)).await?;
            running.net.integrity.scrubbed.fetch_add(sum.length, Ordering::Relaxed);
        }
    }
    let machine = running.machine.clone();
    let (store, bytes) = on_disk(move || {
        let store = machine.store();
        let bytes = machine.unsealed_table_bytes(&store)?;
        Ok((store, bytes))
    })
    .await?;
    if bytes == 0 {
        return Ok(());
    }
    tokio::time::sleep(pace.reserve(bytes)).await;
    let verified = on_disk(move || store.verify().map_err(|error| io::Error::other(error.to_string()))).await;
    running.net.integrity.scrubbed.fetch_add(bytes, Ordering::Relaxed);
    verified
}
