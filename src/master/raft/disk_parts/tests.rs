//! Every combination of parts is decided as a short rule says that knows nothing of how the decision is made.

use openraft::impls::leader_id_adv::LeaderId;

use super::*;

/// How a part was left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Whole,
    Missing,
    Empty,
    Older,
    OtherMember,
    OtherCluster,
}

const FAULTS: [Fault; 6] =
    [Fault::Whole, Fault::Missing, Fault::Empty, Fault::Older, Fault::OtherMember, Fault::OtherCluster];

impl Fault {
    fn is_gone(self) -> bool {
        matches!(self, Fault::Missing | Fault::Empty)
    }

    fn owner(self) -> Owner {
        match self {
            Fault::OtherMember => Owner { cluster: [1; 16], member_id: 5, incarnation: [5; 16] },
            Fault::OtherCluster => Owner { cluster: [2; 16], member_id: 4, incarnation: [6; 16] },
            _ => Owner { cluster: [1; 16], member_id: 4, incarnation: [4; 16] },
        }
    }

    /// Boot counter, purged, sealed, applied and last index of the disk at the time its part was taken.
    fn progress(self) -> [u64; 5] {
        match self {
            Fault::Older => [5, 10, 30, 45, 50],
            _ => [9, 40, 60, 95, 100],
        }
    }
}

fn id(index: u64) -> Option<LogId> {
    Some(LogId { leader_id: LeaderId { term: 3, node_id: 1 }, index })
}

fn identity(fault: Fault) -> Part<Identity> {
    match fault {
        Fault::Missing => Part::Missing,
        // A file of no bytes is there: it was cut.
        Fault::Empty => Part::Damaged("it is cut short".to_owned()),
        _ => {
            let (owner, boot) = (fault.owner(), fault.progress()[0]);
            let mut identity = Identity::new(Stage::Member, owner.cluster, owner.member_id);
            identity.incarnation = uuid::Uuid::from_bytes(owner.incarnation);
            identity.boot = boot;
            identity.log_boot = boot;
            Part::Present(identity)
        }
    }
}

fn parts([log, state, snapshot, identity_fault]: [Fault; 4]) -> DiskParts {
    let [boot, purged, _, _, last] = log.progress();
    let [_, _, _, applied, _] = state.progress();
    let [_, _, sealed, _, _] = snapshot.progress();
    let held = |index: u64| id(index).filter(|_| (purged + 1..=last).contains(&index));
    let log_part = LogPart {
        owner: log.owner(),
        boot,
        purged: id(purged),
        last: id(last),
        at_applied: held(applied),
        at_sealed: held(sealed),
    };
    let state_part = StatePart { owner: state.owner(), applied: id(applied), installed: None };
    let snapshot_part = SnapshotPart { owner: snapshot.owner(), last: id(sealed) };
    DiskParts {
        identity: identity(identity_fault),
        log: if log.is_gone() { Part::Missing } else { Part::Present(log_part) },
        state: if state.is_gone() { Part::Missing } else { Part::Present(state_part) },
        snapshot: if snapshot.is_gone() { Part::Missing } else { Part::Present(snapshot_part) },
    }
}

/// The rule: identity and log are of one disk and one time, and state and snapshot are of that disk and not newer, or
/// gone, and one of them reaches what the log has purged.
fn may_serve([log, state, snapshot, identity]: [Fault; 4]) -> bool {
    if log != identity || log.is_gone() {
        return false;
    }
    let fits = |part: Fault| part == log || part.is_gone() || (log == Fault::Whole && part == Fault::Older);
    let reach = |part: Fault, at: usize| if part.is_gone() { 0 } else { part.progress()[at] };
    let purged = log.progress()[1];
    fits(state) && fits(snapshot) && reach(state, 3).max(reach(snapshot, 2)) >= purged
}

#[test]
fn each_of_the_1296_combinations_is_decided_as_the_rule_says() {
    let (mut served, mut refused, mut empty) = (0, 0, 0);
    for log in FAULTS {
        for state in FAULTS {
            for snapshot in FAULTS {
                for identity in FAULTS {
                    let faults = [log, state, snapshot, identity];
                    let all_gone = [log, state, snapshot].iter().all(|part| part.is_gone());
                    match judge(&parts(faults)) {
                        DiskVerdict::Usable => {
                            served += 1;
                            assert!(may_serve(faults), "{faults:?} must be refused");
                        }
                        DiskVerdict::Empty => {
                            empty += 1;
                            assert!(identity == Fault::Missing && all_gone, "{faults:?} is no empty disk");
                        }
                        DiskVerdict::Refused(why) => {
                            refused += 1;
                            assert!(!may_serve(faults), "{faults:?} was refused: {why}");
                            assert!(!(identity == Fault::Missing && all_gone), "{faults:?} is an empty disk: {why}");
                        }
                    }
                }
            }
        }
    }
    assert_eq!(served + refused + empty, 1296);
    assert_eq!(empty, 8);
    // The whole disk without a state or without a snapshot, or with an older one; older and foreign disks, each whole in
    // itself, which only the peers can refuse.
    println!("{served} serve, {refused} are refused, {empty} are empty");
    assert!(served >= 10);
}

#[test]
fn the_twenty_single_faults_are_decided_as_documented() {
    use Fault::{Empty, Missing, Older, OtherCluster, OtherMember, Whole};
    for fault in [Missing, Empty, Older, OtherMember, OtherCluster] {
        let verdict = |faults| judge(&parts(faults));
        assert!(matches!(verdict([fault, Whole, Whole, Whole]), DiskVerdict::Refused(_)), "wal {fault:?}");
        assert!(matches!(verdict([Whole, Whole, Whole, fault]), DiskVerdict::Refused(_)), "IDENTITY {fault:?}");
        let foreign = matches!(fault, OtherMember | OtherCluster);
        for faults in [[Whole, fault, Whole, Whole], [Whole, Whole, fault, Whole]] {
            assert_eq!(matches!(verdict(faults), DiskVerdict::Refused(_)), foreign, "{faults:?}");
        }
    }
}

#[test]
fn a_state_ahead_of_the_log_is_accepted_only_right_after_an_install() {
    let mut found = parts([Fault::Whole; 4]);
    let Part::Present(state) = &mut found.state else { panic!("a state") };
    state.applied = id(150);
    assert!(matches!(judge(&found), DiskVerdict::Refused(_)), "no install explains it");
    let Part::Present(state) = &mut found.state else { panic!("a state") };
    state.installed = id(150);
    assert_eq!(judge(&found), DiskVerdict::Usable);
    let Part::Present(state) = &mut found.state else { panic!("a state") };
    state.applied = id(151);
    assert!(matches!(judge(&found), DiskVerdict::Refused(_)), "an entry behind the install was in the log once");
}

#[test]
fn a_rotten_state_counts_as_missing_and_one_that_cannot_be_read_for_another_reason_is_refused() {
    let mut found = parts([Fault::Whole; 4]);
    found.state = Part::Damaged("read from the state store: Corruption: block checksum mismatch".to_owned());
    assert_eq!(judge(&found), DiskVerdict::Usable);
    found.snapshot = Part::Missing;
    assert!(matches!(judge(&found), DiskVerdict::Refused(why) if why.contains("cannot be rebuilt")));
    let mut found = parts([Fault::Whole; 4]);
    found.state = Part::Damaged("it does not name the member it belongs to".to_owned());
    assert!(matches!(judge(&found), DiskVerdict::Refused(why) if why.contains("its state is damaged")));
}

#[test]
fn a_state_of_another_history_is_refused() {
    let mut found = parts([Fault::Whole; 4]);
    let Part::Present(state) = &mut found.state else { panic!("a state") };
    state.applied = Some(LogId { leader_id: LeaderId { term: 2, node_id: 1 }, index: 95 });
    assert!(matches!(judge(&found), DiskVerdict::Refused(why) if why.contains("two histories")));
}

#[test]
fn a_disk_on_its_way_into_the_cluster_may_start_again_at_each_step() {
    let [none_log, none_state, none_snapshot] = [Fault::Missing; 3];
    for stage in [Stage::Founding, Stage::Joining] {
        let mut found = parts([none_log, none_state, none_snapshot, Fault::Whole]);
        let Part::Present(identity) = &mut found.identity else { panic!("an identity") };
        identity.stage = stage;
        identity.log_boot = 0;
        assert_eq!(judge(&found), DiskVerdict::Usable, "{stage:?} before the log was opened");
        let Part::Present(identity) = &mut found.identity else { panic!("an identity") };
        identity.log_boot = 1;
        assert!(matches!(judge(&found), DiskVerdict::Refused(_)), "{stage:?} whose log is gone");
    }
}
