//! Locks in the state: what is granted and refused, by a model that knows bytes only, and what ends them.

use std::collections::BTreeMap;

use jindofs::master::state::{self, Table, View, query};
use jindofs::master::store::{Store, StoreOptions};
use jindofs_proto::store::v1::command::Command as Body;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::store::v1::{CloseSession, Command, ExpireSessions, OpenSession};
use jindofs_proto::v1::{
    CreateRequest, ErrorKind, Lock, LockType, OpId, RenameRequest, SetLockRequest, Target, UnlinkRequest, target,
};
use proptest::prelude::*;

/// Last byte a lock can name.
const END: u64 = i64::MAX as u64;
/// Bytes of a file that the random locks are on.
const BYTES: u64 = 12;
/// Clients, files and owners of the random locks.
const MANY: u64 = 3;

/// A state with files at `/f0` and so on, and sessions of clients 0 and so on.
struct State {
    store: Store,
    index: u64,
    seqs: BTreeMap<u64, u64>,
    files: Vec<u64>,
    _dir: tempfile::TempDir,
}

fn at(path: &str) -> Option<Target> {
    Some(Target { target: Some(target::Target::Path(path.as_bytes().to_vec().into())) })
}

fn client_id(client: u64) -> bytes::Bytes {
    vec![u8::try_from(client + 1).expect("few"); 16].into()
}

fn lock(kind: LockType, owner: u64, start: u64, end: u64) -> Lock {
    Lock { r#type: kind.into(), start, end, owner, pid: 7, ..Lock::default() }
}

impl State {
    fn new() -> State {
        let dir = tempfile::tempdir().expect("tempdir");
        let options = StoreOptions { block_cache_bytes: 1 << 20, write_buffer_bytes: 1 << 20 };
        let store = Store::open(dir.path(), &options).expect("opened");
        let mut state = State { store, index: 0, seqs: BTreeMap::new(), files: Vec::new(), _dir: dir };
        for number in 0..MANY {
            let open = OpenSession { client_id: client_id(number), ..OpenSession::default() };
            assert!(matches!(state.run(None, Body::OpenSession(open)), Answer::Done(_)));
            let create = CreateRequest { target: at(&format!("/f{number}")), ..CreateRequest::default() };
            let Answer::Attr(attr) = state.run(None, Body::Create(create)) else { panic!("not made") };
            state.files.push(attr.inode);
        }
        state
    }

    fn run(&mut self, op: Option<OpId>, body: Body) -> Answer {
        self.index += 1;
        let mut txn = self.store.begin();
        let command = Command { op, command: Some(body), time_ns: i64::try_from(self.index).expect("small") };
        let outcome = state::apply(&mut txn, self.index, &command).expect("applied");
        self.store.commit(txn).expect("committed");
        outcome.outcome.expect("an answer")
    }

    fn ask(&mut self, client: u64, inode: u64, lock: Lock) -> Answer {
        let seq = self.seqs.entry(client).or_default();
        *seq += 1;
        let op = OpId { client_id: client_id(client), seq: *seq, acked_below: *seq };
        self.run(Some(op), Body::SetLock(SetLockRequest { op: None, inode, lock: Some(lock) }))
    }

    /// True if it was granted, false if somebody was in the way.
    fn set(&mut self, client: u64, inode: u64, lock: Lock) -> bool {
        match self.ask(client, inode, lock) {
            Answer::Done(_) => true,
            Answer::Holder(_) => false,
            other => panic!("a lock is answered with {other:?}"),
        }
    }

    fn close(&mut self, client: u64) {
        let closed = self.run(None, Body::CloseSession(CloseSession { client_id: client_id(client) }));
        assert!(matches!(closed, Answer::Done(_)));
    }

    fn holder(&self, client: u64, inode: u64, lock: &Lock) -> Option<Lock> {
        query::lock_holder(&self.store.view(), inode, &client_id(client), Some(lock)).expect("read")
    }

    /// Rows of locks, and ranges the counters know.
    fn left(&self) -> (usize, u64) {
        let view = self.store.view();
        let rows = |table| view.scan(table, &[], &[], 100_000).expect("scanned").len();
        (rows(Table::Lock) + rows(Table::Locker), query::counters(&view).expect("read").locked_ranges)
    }
}

fn refusal(answer: Answer) -> ErrorKind {
    match answer {
        Answer::Refused(refusal) => refusal.kind(),
        other => panic!("not refused: {other:?}"),
    }
}

#[derive(Debug, Clone)]
enum Step {
    Lock { client: u64, file: usize, lock: Lock },
    End { client: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop::sample::select(vec![LockType::Shared, LockType::Exclusive, LockType::None]);
    let many = || 0..MANY;
    let locks =
        (many(), many(), kind, many(), 0..BYTES, 0..BYTES).prop_map(|(client, file, kind, owner, one, other)| {
            let lock = lock(kind, owner, one.min(other), one.max(other));
            Step::Lock { client, file: usize::try_from(file).expect("few"), lock }
        });
    prop_oneof![30 => locks, 1 => many().prop_map(|client| Step::End { client })]
}

/// Who has which byte of which file, exclusively or not.
type Model = BTreeMap<(usize, u64), BTreeMap<(u64, u64), bool>>;

/// True if it is granted.
fn apply(model: &mut Model, client: u64, file: usize, lock: &Lock) -> bool {
    let (who, exclusive) = ((client, lock.owner), lock.r#type() == LockType::Exclusive);
    let none = lock.r#type() == LockType::None;
    let free = (lock.start..=lock.end).all(|byte| {
        let holders = model.entry((file, byte)).or_default();
        holders.iter().all(|(other, theirs)| *other == who || !(exclusive || *theirs))
    });
    if !free && !none {
        return false;
    }
    for byte in lock.start..=lock.end {
        let holders = model.entry((file, byte)).or_default();
        holders.remove(&who);
        if !none {
            holders.insert(who, exclusive);
        }
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn what_is_granted_is_what_bytes_would_have_it_and_nothing_stays_behind(
        steps in prop::collection::vec(step(), 1..120)
    ) {
        let (mut state, mut model, mut ended) = (State::new(), Model::new(), Vec::new());
        for step in steps {
            match step {
                Step::Lock { client, .. } if ended.contains(&client) => {}
                Step::Lock { client, file, lock } => {
                    let inode = state.files[file];
                    let known = state.holder(client, inode, &lock);
                    let granted = apply(&mut model, client, file, &lock);
                    prop_assert_eq!(known.is_none(), granted, "{:?}", known);
                    prop_assert_eq!(state.set(client, inode, lock), granted);
                }
                Step::End { client } => {
                    state.close(client);
                    ended.push(client);
                    model.values_mut().for_each(|holders| holders.retain(|(of, _), _| *of != client));
                }
            }
        }
        for client in 0..MANY {
            state.close(client);
        }
        prop_assert_eq!(state.left(), (0, 0));
    }
}

#[test]
fn who_is_in_the_way_is_told_and_nobody_is_in_his_own() {
    let mut state = State::new();
    let file = state.files[0];
    assert!(state.set(0, file, lock(LockType::Exclusive, 1, 10, END)));
    let found = state.holder(1, file, &lock(LockType::Shared, 1, 0, 10)).expect("held");
    assert_eq!((found.start, found.end, found.r#type(), found.pid), (10, END, LockType::Exclusive, 7));
    assert_eq!(found.client_id, client_id(0));
    assert_eq!(state.holder(1, file, &lock(LockType::Exclusive, 1, 0, 9)), None);
    assert_eq!(state.holder(0, file, &lock(LockType::Exclusive, 1, 0, END)), None);
    assert!(state.holder(0, file, &lock(LockType::Shared, 2, 0, END)).is_some(), "another owner of the same client");
    assert!(state.set(0, file, lock(LockType::Shared, 1, 0, END)), "one's own lock can be changed");
    assert!(state.set(1, file, lock(LockType::Shared, 1, 0, END)));
    assert!(!state.set(0, file, lock(LockType::Exclusive, 1, 0, END)), "not while others share it");
}

#[test]
fn a_lock_ends_with_its_file_and_with_its_session_and_a_repeated_request_is_answered_as_before() {
    let mut state = State::new();
    let [one, two, three] = state.files[..] else { panic!("three files") };
    for file in [one, two, three] {
        assert!(state.set(0, file, lock(LockType::Exclusive, 1, 0, 9)));
    }
    let repeated = SetLockRequest { op: None, inode: three, lock: Some(lock(LockType::None, 1, 0, END)) };
    let op = OpId { client_id: client_id(0), seq: state.seqs[&0], acked_below: state.seqs[&0] };
    assert!(matches!(state.run(Some(op), Body::SetLock(repeated)), Answer::Done(_)));
    assert!(!state.set(1, three, lock(LockType::Shared, 1, 0, 0)), "it was not executed a second time");
    state.run(None, Body::Unlink(UnlinkRequest { target: at("/f0"), ..UnlinkRequest::default() }));
    let over = RenameRequest { from: at("/f2"), to: at("/f1"), ..RenameRequest::default() };
    state.run(None, Body::Rename(over));
    assert_eq!(state.left(), (3, 1), "only the lock on the file that moved is left");
    assert_eq!(refusal(state.ask(1, one, lock(LockType::Shared, 1, 0, 0))), ErrorKind::NotFound);
    assert!(state.set(0, one, lock(LockType::None, 1, 0, END)), "giving up is never refused");
    assert!(!state.set(1, three, lock(LockType::Shared, 1, 0, 0)), "it moved with its lock");
    state.run(None, Body::ExpireSessions(ExpireSessions { client_ids: vec![client_id(0)] }));
    assert_eq!(state.left(), (0, 0));
    assert!(state.set(1, three, lock(LockType::Exclusive, 1, 0, 0)));
    assert_eq!(refusal(state.ask(0, three, lock(LockType::Shared, 1, 0, 0))), ErrorKind::SessionExpired);
}

#[test]
fn locks_are_bounded_and_nonsense_is_refused() {
    let mut state = State::new();
    let file = state.files[0];
    for number in 0..1000 {
        assert!(state.set(number % 2, file, lock(LockType::Exclusive, 1, 2 * number, 2 * number)));
    }
    assert_eq!(refusal(state.ask(0, file, lock(LockType::Shared, 1, END, END))), ErrorKind::NoSpace);
    assert!(state.set(0, file, lock(LockType::None, 1, 0, 100)));
    assert!(state.set(0, file, lock(LockType::Shared, 1, END, END)), "there is room again");
    for bad in
        [lock(LockType::Shared, 1, 5, 4), lock(LockType::Shared, 1, 0, END + 1), lock(LockType::Unspecified, 1, 0, 1)]
    {
        assert_eq!(refusal(state.ask(0, file, bad)), ErrorKind::InvalidArgument);
    }
    assert_eq!(refusal(state.ask(0, 1, lock(LockType::Shared, 1, 0, 1))), ErrorKind::InvalidArgument, "a directory");
    let nobody = SetLockRequest { op: None, inode: file, lock: Some(lock(LockType::Shared, 1, 0, 1)) };
    assert_eq!(refusal(state.run(None, Body::SetLock(nobody))), ErrorKind::InvalidArgument);
}
