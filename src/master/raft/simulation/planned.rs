//! Runs of which each event is planned, for what seeds reach once in hundreds of runs.

use std::process::ExitCode;

use super::actions::Step;
use super::net::S;
use super::run;
use super::seeds::{run_apart, run_here};
use crate::runtime::planted::PlantedFault;

const LAST_FOUNDER: &str = "master::raft::simulation::planned::last_founder";

/// All masters are configured with the founders. Two of those leave for two others, and the third one loses its disk: none of the
/// masters that it is configured with is a member.
fn the_last_founder_loses_its_disk(seed: u64) -> String {
    let plan = vec![(6 * S, Step::Add), (12 * S, Step::Remove([0, 1])), (18 * S, Step::LoseDisk(2))];
    let report = run::run(seed, Some(plan));
    format!("{} ms; {}", report.simulated_ns / 1_000_000, report.actions)
}

#[test]
fn a_lost_disk_is_replaced_also_when_no_configured_peer_is_a_member_any_more() {
    let run = run_apart(LAST_FOUNDER, 1, None).unwrap_or_else(|why| panic!("{why}"));
    assert!(run.contains("lose the disk of 2"), "{run}");
    let why = run_apart(LAST_FOUNDER, 1, Some(PlantedFault::AnnouncersIgnored)).expect_err("it finds no member");
    assert!(why.contains("does not recover: machine 2: empty"), "{why}");
}

#[test]
#[ignore = "the run of the test above"]
fn last_founder() -> ExitCode {
    run_here(the_last_founder_loses_its_disk)
}
