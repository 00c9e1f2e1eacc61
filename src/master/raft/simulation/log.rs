//! The log alone on a simulated disk whose power fails right after an answer. The masters of a whole run sync so often that what
//! one answer has not synced is hardly ever lost there.

use std::process::ExitCode;

use openraft::RaftLogReader;
use openraft::entry::RaftEntry;
use openraft::impls::leader_id_adv::LeaderId;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use tokio::runtime::{Builder, Runtime};

use super::super::disk_space::DiskSpace;
use super::super::identity::Owner;
use super::super::types::{CommandBytes, Entry, LogId, Payload, TypeConfig, Vote};
use super::super::wal::{LogStamp, LogStore, recover};
use super::disk;
use super::machine::ROOM;
use super::net::Net;
use super::seeds::{run_apart, run_here};
use super::trace::Trace;
use crate::runtime::planted::PlantedFault;
use crate::runtime::simulated;

/// Power cuts after each answer; each of them leaves other sectors of what was not synced.
const CUTS: u64 = 16;
const ONE_LOG: &str = "master::raft::simulation::log::one_log";

/// The disk of the only machine, after so many power cuts.
struct Disk {
    runtime: Runtime,
    cuts: u64,
}

impl Disk {
    fn new(seed: u64) -> Disk {
        simulated::enter(seed);
        disk::install(seed, false);
        Net::install(seed, 1, Trace::new());
        simulated::set_machine(0, None, ROOM);
        let runtime = Builder::new_current_thread().enable_all().build().expect("runtime");
        let disk = Disk { runtime, cuts: 0 };
        std::fs::create_dir_all(disk::dir(0, 0).join("wal")).expect("mkdir");
        disk::settle(&disk::dir(0, 0));
        disk
    }

    /// Runs a task to its end, and nothing after it.
    fn run<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> T {
        let task = self.runtime.spawn(task);
        while !task.is_finished() {
            match simulated::run_until_idle(&self.runtime) {
                Some(next) => simulated::set_now(next.max(simulated::now())),
                None => assert!(task.is_finished(), "nothing happens any more"),
            }
        }
        self.runtime.block_on(task).expect("no panic")
    }

    fn open(&self, generation: u64) -> LogStore {
        let dir = disk::dir(0, generation).join("wal");
        let owner = Owner { cluster: [1; 16], member_id: 4, incarnation: [2; 16] };
        self.run(async move {
            let recovered = recover(&dir).expect("read");
            let boot = recovered.stamp.map_or(1, |stamp| stamp.boot + 1);
            LogStore::start(&dir, recovered, LogStamp { owner, boot }, DiskSpace::unlimited(&dir)).expect("opened")
        })
    }

    /// The logs of disks whose power failed at this moment.
    fn cut_power(&mut self) -> Vec<LogStore> {
        let logs = (1..=CUTS).map(|cut| {
            disk::keep_durable(&disk::dir(0, 0), &disk::dir(0, self.cuts + cut), self.cuts + cut);
            self.open(self.cuts + cut)
        });
        let logs = logs.collect();
        self.cuts += CUTS;
        logs
    }
}

fn id(term: u64, index: u64) -> LogId {
    LogId { leader_id: LeaderId { term, node_id: 1 }, index }
}

fn answers_survive_power_cuts(seed: u64) -> String {
    let mut disk = Disk::new(seed);
    let log = disk.open(0);
    let (vote, mut voter) = (Vote::new(7, 2), log.clone());
    disk.run(async move { voter.save_vote(&vote).await.expect("saved") });
    for mut after in disk.cut_power() {
        let saved = disk.run(async move { after.read_vote().await.expect("read") });
        assert_eq!(saved, Some(vote), "a vote that was given is given once");
    }
    let mut appended = log.clone();
    disk.run(async move {
        let (done, flushed) = TypeConfig::oneshot();
        let entry = |index| Entry::new(id(7, index), Payload::Normal(CommandBytes(vec![1; 2000].into())));
        appended.append((1..=3).map(entry), IOFlushed::signal(done)).await.expect("appended");
        flushed.await.expect("the writer lives").expect("flushed");
    });
    let mut truncated = log.clone();
    disk.run(async move { truncated.truncate_after(Some(id(7, 1))).await.expect("truncated") });
    for mut after in disk.cut_power() {
        let state = disk.run(async move { after.get_log_state().await.expect("read") });
        assert_eq!(state.last_log_id, Some(id(7, 1)), "what a leader has truncated does not come back");
    }
    format!("{} power cuts", disk.cuts)
}

#[test]
fn a_vote_or_a_truncation_that_was_answered_survives_a_power_cut() {
    run_apart(ONE_LOG, 1, None).unwrap_or_else(|why| panic!("{why}"));
    // The test sees it if one of them is not synced.
    for (fault, says) in [(PlantedFault::VoteNotSynced, "given once"), (PlantedFault::TruncationNotSynced, "come back")]
    {
        let why = run_apart(ONE_LOG, 1, Some(fault)).expect_err("it is not synced");
        assert!(why.contains(says), "{fault:?}: {why}");
    }
}

#[test]
#[ignore = "the run of the test above"]
fn one_log() -> ExitCode {
    run_here(answers_survive_power_cuts)
}
