//! Admissions and removals of masters: what the log decides, whatever its leaders had seen.

use jindofs::master::state::{self, lineage, query};
use jindofs::master::store::{Store, StoreOptions};
use jindofs_proto::store::v1::command::Command as Body;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::store::v1::{AdmitMember, Command, Found, Member, RemoveMembers, RetireMember};
use jindofs_proto::v1::ErrorKind;

/// Addresses at which masters are expected; member ids are the log indexes of their admissions.
const EXPECTED: [&str; 3] = ["a:1", "b:1", "c:1"];

struct Group {
    store: Store,
    index: u64,
    disks: u8,
    _dir: tempfile::TempDir,
}

impl Group {
    /// Three members: 1 at a, 2 at b, 3 at c.
    fn new() -> Group {
        let dir = tempfile::tempdir().expect("tempdir");
        let options = StoreOptions { block_cache_bytes: 1 << 20, write_buffer_bytes: 1 << 20 };
        let store = Store::open(dir.path(), &options).expect("opened");
        let mut group = Group { store, index: 0, disks: 1, _dir: dir };
        let founder =
            Member { id: 1, incarnation: vec![1; 16].into(), raft_address: "a:1".into(), ..Member::default() };
        let found = Found {
            cluster_uuid: vec![9; 16].into(),
            expected: EXPECTED.map(str::to_owned).to_vec(),
            founder: Some(founder),
        };
        group.apply(Body::Found(found)).expect("founded");
        assert_eq!((group.admit("b:1", 0), group.admit("c:1", 0)), (Ok(2), Ok(3)));
        group
    }

    fn apply(&mut self, body: Body) -> Result<Answer, ErrorKind> {
        self.index += 1;
        let mut txn = self.store.begin();
        let command = Command { command: Some(body), ..Command::default() };
        let outcome = state::apply(&mut txn, self.index, &command).expect("applied");
        self.store.commit(txn).expect("committed");
        match outcome.outcome.expect("an outcome") {
            Answer::Refused(refusal) => Err(refusal.kind()),
            answer => Ok(answer),
        }
    }

    /// A new disk at `address`, in the place of what its leader saw there.
    fn admit(&mut self, address: &str, replaces: u64) -> Result<u64, ErrorKind> {
        self.disks += 1;
        self.admit_disk(self.disks, address, replaces)
    }

    fn admit_disk(&mut self, disk: u8, address: &str, replaces: u64) -> Result<u64, ErrorKind> {
        let admit = AdmitMember {
            incarnation: vec![disk; 16].into(),
            raft_address: address.into(),
            grpc_address: address.into(),
            replaces,
        };
        self.apply(Body::AdmitMember(admit)).map(|answer| match answer {
            Answer::MemberId(id) => id,
            other => panic!("answered with {other:?}"),
        })
    }

    fn remove(&mut self, ids: &[u64], addresses: &[&str], checked: &[u64]) -> Result<(), ErrorKind> {
        self.apply(Body::RemoveMembers(removal(ids, addresses, checked))).map(|_| ())
    }

    fn retire(&mut self, member_id: u64) {
        self.apply(Body::RetireMember(RetireMember { member_id })).expect("retired");
    }

    fn members(&self) -> Vec<Member> {
        query::members(&self.store.view()).expect("read")
    }

    fn leaving(&self) -> Vec<u64> {
        self.members().iter().filter(|member| member.leaving && !member.retired).map(|member| member.id).collect()
    }

    fn expected(&self) -> Vec<String> {
        query::cluster(&self.store.view()).expect("read").expect("founded").expected
    }

    fn planned(&self, ids: &[u64], addresses: &[&str]) -> Vec<u64> {
        let plan = lineage::plan_removal(&self.members(), &self.expected(), &removal(ids, addresses, &[]));
        plan.expect("a plan").leaving.into_iter().collect()
    }
}

fn removal(ids: &[u64], addresses: &[&str], checked: &[u64]) -> RemoveMembers {
    RemoveMembers {
        member_ids: ids.to_vec(),
        raft_addresses: addresses.iter().map(|&address| address.to_owned()).collect(),
        checked_ids: checked.to_vec(),
    }
}

#[test]
fn a_disk_that_replaces_a_replacement_stands_in_for_the_whole_chain() {
    let mut group = Group::new();
    assert_eq!(group.admit("c:1", 3), Ok(4));
    assert_eq!(group.admit("c:1", 4), Ok(5));
    group.retire(4);
    // The id is the index of the entry: the retirement before it has one as well.
    assert_eq!(group.admit("c:1", 5), Ok(7));
    let members = group.members();
    assert_eq!(lineage::predecessors(&members, 7).into_iter().collect::<Vec<_>>(), [3, 4, 5]);
    let occupants: Vec<u64> = lineage::occupants(&members, "c:1").map(|member| member.id).collect();
    assert_eq!(occupants, [7], "the next disk there can only replace the newest one");
}

#[test]
fn of_two_disks_that_two_leaders_admit_in_the_same_place_the_second_has_to_ask_again() {
    let mut group = Group::new();
    assert_eq!(group.admit_disk(40, "c:1", 3), Ok(4));
    assert_eq!(group.admit_disk(41, "c:1", 3), Err(ErrorKind::Unavailable), "its leader had not seen member 4");
    assert_eq!(group.admit_disk(41, "c:1", 0), Err(ErrorKind::Unavailable));
    assert_eq!(group.admit_disk(41, "b:1", 3), Err(ErrorKind::Unavailable), "member 3 is not there");
    assert_eq!(group.admit_disk(40, "c:1", 3), Ok(4), "repeated, it gets its first id");
    assert_eq!(group.admit_disk(41, "c:1", 4), Ok(9));
    group.remove(&[9, 3, 4], &[], &[9, 3, 4]).expect("removed");
    assert_eq!(group.admit("c:1", 9), Err(ErrorKind::FailedPrecondition), "no master is expected there any more");
}

#[test]
fn a_removal_takes_the_replacement_on_its_way_and_never_the_voter_that_is_to_be_replaced() {
    let mut group = Group::new();
    assert_eq!(group.admit("c:1", 3), Ok(4));
    assert_eq!(group.planned(&[3], &[]), [3, 4]);
    assert_eq!(group.planned(&[], &["c:1"]), [3, 4]);
    assert_eq!(group.planned(&[4], &[]), [4]);
    group.remove(&[4], &[], &[4]).expect("the replacement is called off");
    assert_eq!(group.leaving(), [4]);
    assert_eq!(group.expected(), EXPECTED, "member 3 is still there, and its next disk is awaited");
    group.retire(4);
    group.remove(&[4], &[], &[]).expect("repeated, it changes nothing");
    assert_eq!(group.admit("c:1", 3), Ok(8), "the next disk takes the place");
}

#[test]
fn a_removal_that_would_take_more_than_was_checked_is_refused_and_changes_nothing() {
    let mut group = Group::new();
    assert_eq!(group.admit("c:1", 3), Ok(4));
    assert_eq!(group.remove(&[3], &[], &[3]), Err(ErrorKind::Unavailable), "member 4 came after the check");
    assert_eq!((group.leaving(), group.expected()), (vec![], EXPECTED.map(str::to_owned).to_vec()));
    group.remove(&[3], &[], &[3, 4]).expect("removed");
    assert_eq!(group.leaving(), [3, 4]);
    assert_eq!(group.expected(), EXPECTED[..2]);
    group.remove(&[3], &[], &[3, 4]).expect("repeated, it changes nothing");
    assert_eq!(group.remove(&[2], &[], &[2]), Err(ErrorKind::Unavailable), "its check did not know of the other one");
    assert_eq!(group.leaving(), [3, 4]);
    group.retire(4);
    group.retire(3);
    group.remove(&[3], &["c:1"], &[]).expect("also when it is done");
    assert_eq!(group.remove(&[77], &[], &[77]), Err(ErrorKind::NotFound));
    assert_eq!(group.remove(&[], &["x:1"], &[]), Err(ErrorKind::NotFound));
}
