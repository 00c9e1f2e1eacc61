//! Runs of which each event is planned, for what seeds reach once in hundreds of runs.

use std::process::ExitCode;

use super::actions::{Plan, Step};
use super::net::S;
use super::run;
use super::seeds::{run_apart, run_here};
use crate::runtime::planted::PlantedFault;

const LAST_FOUNDER: &str = "master::raft::simulation::planned::last_founder";
const LONE_MEMBER: &str = "master::raft::simulation::planned::lone_member";
const HASTY_FOUNDER: &str = "master::raft::simulation::planned::hasty_founder";
const UNNUMBERED_COPY: &str = "master::raft::simulation::planned::unnumbered_copy";
const LOST_CLUSTER: &str = "master::raft::simulation::planned::lost_cluster";

/// How long a run of the plan took, and what was done in it.
fn run_plan(seed: u64, plan: Plan) -> String {
    let report = run::run(seed, Some(plan));
    format!("{} ms; {}", report.simulated_ns / 1_000_000, report.actions)
}

/// All masters are configured with the founders. Two of those leave for two others, and the third one loses its disk: none of the
/// masters that it is configured with is a member.
fn the_last_founder_loses_its_disk(seed: u64) -> String {
    let plan = vec![(6 * S, Step::Add), (12 * S, Step::Remove([0, 1])), (18 * S, Step::LoseDisk(2))];
    run_plan(seed, plan)
}

#[test]
fn a_lost_disk_is_replaced_also_when_no_configured_peer_is_a_member_any_more() {
    // The plan adds the masters once: with this seed no change of leaders loses that proposal.
    let run = run_apart(LAST_FOUNDER, 2, None).unwrap_or_else(|why| panic!("{why}"));
    assert!(run.contains("lose the disk of 2"), "{run}");
    let why = run_apart(LAST_FOUNDER, 2, Some(PlantedFault::AnnouncersIgnored)).expect_err("it finds no member");
    assert!(why.contains("does not recover: machine 2: empty"), "{why}");
}

#[test]
#[ignore = "the run of the test above"]
fn last_founder() -> ExitCode {
    run_here(the_last_founder_loses_its_disk)
}

/// Machines 0 and 1 are set up for a new cluster together with machine 3, while the third master of the old cluster still runs
/// on machine 2 and announces itself to them. It expects masters at both addresses, and has no leader.
fn a_cluster_is_founded_beside_a_lone_member(seed: u64) -> String {
    let hosts = [0, 1, 3];
    let plan = vec![(10 * S, Step::SetUp(hosts)), (20 * S, Step::FoundAnew(hosts))];
    run_plan(seed, plan)
}

#[test]
fn a_member_without_a_leader_draws_no_empty_disk_away_from_the_founding_of_another_cluster() {
    let run = run_apart(LONE_MEMBER, 1, None).unwrap_or_else(|why| panic!("{why}"));
    assert!(run.contains("set up [0, 1, 3] anew"), "{run}");
    let why = run_apart(LONE_MEMBER, 1, Some(PlantedFault::PlaceWithoutLeader)).expect_err("the old cluster has them");
    assert!(why.contains("does not recover: nobody leads"), "{why}");
}

#[test]
#[ignore = "the run of the test above"]
fn lone_member() -> ExitCode {
    run_here(a_cluster_is_founded_beside_a_lone_member)
}

/// Two of three masters lose their disks and ask the third one, which has no quorum, to be admitted. Then that one loses its
/// disk too, and another cluster is founded on the same machines.
fn a_cluster_is_founded_where_one_was_lost(seed: u64) -> String {
    let plan = vec![
        (8 * S, Step::LoseDisk(1)),
        (8 * S, Step::LoseDisk(2)),
        (18 * S, Step::LoseDisk(0)),
        (25 * S, Step::FoundAnew([0, 1, 2])),
    ];
    run_plan(seed, plan)
}

#[test]
fn disks_that_a_lost_cluster_never_admits_are_empty_again_and_another_one_is_founded_with_them() {
    let run = run_apart(LOST_CLUSTER, 1, None).unwrap_or_else(|why| panic!("{why}"));
    assert!(run.contains("lose the disk of 0"), "{run}");
    // Without the founder they would ask the lost cluster for a minute.
    let founded = run.split("; ").find_map(|action| action.strip_suffix(" ms founded anew on 0"));
    let founded: u64 = founded.and_then(|ms| ms.parse().ok()).unwrap_or_else(|| panic!("{run}"));
    assert!(founded < 45_000, "the disks leave the lost cluster for the founder: {run}");
    let why = run_apart(LOST_CLUSTER, 1, Some(PlantedFault::JoiningForGood)).expect_err("they wait for it for ever");
    assert!(why.contains("does not recover: nobody leads"), "{why}");
}

#[test]
#[ignore = "the run of the test above"]
fn lost_cluster() -> ExitCode {
    run_here(a_cluster_is_founded_where_one_was_lost)
}

/// Two of the founders leave for two others. Then the third one loses its disk, and all three machines start with empty disks:
/// it is asked at once to found a cluster, before the living one has announced itself to it.
fn a_founder_that_has_just_lost_its_disk_is_told_to_found(seed: u64) -> String {
    let plan = vec![(6 * S, Step::Add), (12 * S, Step::Remove([1, 2])), (18 * S, Step::StartAndFound([0, 1, 2]))];
    run_plan(seed, plan)
}

#[test]
fn a_first_master_that_has_just_lost_its_disk_listens_to_the_living_cluster_before_it_founds_another() {
    let run = run_apart(HASTY_FOUNDER, 1, None).unwrap_or_else(|why| panic!("{why}"));
    assert!(run.contains("start [0, 1, 2] anew") && !run.contains("founded anew"), "{run}");
    let run = run_apart(HASTY_FOUNDER, 1, Some(PlantedFault::FoundedUnheard)).unwrap_or_else(|why| panic!("{why}"));
    assert!(run.contains("founded anew on 0"), "{run}");
}

#[test]
#[ignore = "the run of the test above"]
fn hasty_founder() -> ExitCode {
    run_here(a_founder_that_has_just_lost_its_disk_is_told_to_found)
}

/// The disk of machine 1 is lost. Its successor is copied before the cluster has admitted it; that one becomes a member and
/// starts once more, and then the copy is put back.
fn a_copy_from_before_the_admission_is_put_back(seed: u64) -> String {
    let plan = vec![
        (6 * S, Step::LoseDisk(1)),
        (6 * S, Step::CopyUnadmitted(1)),
        (22 * S, Step::Kill(1)),
        (29 * S, Step::PutCopyBack),
    ];
    run_plan(seed, plan)
}

#[test]
fn a_copy_of_a_disk_from_before_its_admission_joins_as_another_disk() {
    let run = run_apart(UNNUMBERED_COPY, 1, None).unwrap_or_else(|why| panic!("{why}"));
    assert!(run.contains("put an older copy of the disk of 1 back"), "{run}");
    let why =
        run_apart(UNNUMBERED_COPY, 1, Some(PlantedFault::UnnumberedCopyAdmitted)).expect_err("an older copy for ever");
    assert!(why.contains("does not recover: machine 1"), "{why}");
}

#[test]
#[ignore = "the run of the test above"]
fn unnumbered_copy() -> ExitCode {
    run_here(a_copy_from_before_the_admission_is_put_back)
}
