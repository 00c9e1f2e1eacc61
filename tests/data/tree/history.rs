//! Histories made at random. Names and handles are few, so that actions meet.

use proptest::prelude::*;

use super::action::{Action, Bytes, How, OWN, Path, SLOTS, Step, StoreFault, Way};
use super::locks::{LockKind, LockMode, LockRequest, RANGES};
use super::model::Area;

/// Of so many histories one has a client that is killed: the end of its session takes seconds.
const KILLS: u32 = 10;

fn bytes() -> impl Strategy<Value = Bytes> {
    let length = prop::sample::select(&[1_usize, 7, 100, 4096, 5000, 70_000][..]);
    (length, 1_u32..1_000_000).prop_map(|(length, salt)| Bytes::Fresh { length, salt })
}

fn place() -> impl Strategy<Value = usize> {
    prop::sample::select(&[0_usize, 3, 4096, 9000][..])
}

fn path(area: Area) -> impl Strategy<Value = Path> {
    let names = prop::collection::vec(prop::sample::select(&["a", "b", "c"][..]), 1..=3);
    // Most lie flat: so more of them exist.
    (names, 0..3_usize).prop_map(move |(mut names, deep)| {
        names.truncate(1 + deep);
        names.insert(0, area.name());
        names
    })
}

fn how() -> impl Strategy<Value = How> {
    let all = How { reads: true, writes: true, ..How::default() };
    prop::sample::select(vec![
        How { writes: false, ..all },
        all,
        How { reads: false, ..all },
        How { create: true, ..all },
        How { create: true, exclusive: true, ..all },
        How { create: true, truncate: true, ..all },
        How { truncate: true, reads: false, ..all },
        How { append: true, create: true, ..all },
    ])
}

fn put((path, bytes): (Path, Bytes)) -> Vec<Action> {
    let how = How { writes: true, create: true, truncate: true, ..How::default() };
    vec![Action::Open(OWN, path, how), Action::Write(OWN, 0, bytes), Action::Close(OWN)]
}

fn get(path: Path) -> Vec<Action> {
    vec![Action::Open(OWN, path, How { reads: true, ..How::default() }), Action::Read(OWN), Action::Close(OWN)]
}

/// Actions of names and of handles that store, read and show.
fn call(area: Area) -> impl Strategy<Value = Action> {
    let (slot, path) = (0..SLOTS, move || path(area));
    // Nothing moves from one area to another.
    let elsewhere = prop_oneof![9 => Just(area), 1 => prop::sample::select(&Area::ALL[..])];
    let rename = (path(), elsewhere, path()).prop_map(|(from, area, mut to)| {
        to[0] = area.name();
        Action::Rename(from, to)
    });
    let length = prop::sample::select(&[0_usize, 5, 4096, 6000][..]);
    let mode = prop::sample::select(&[0o600_u32, 0o644, 0o751][..]);
    prop_oneof![
        10 => (slot.clone(), path(), how()).prop_map(|(slot, path, how)| Action::Open(slot, path, how)),
        6 => slot.clone().prop_map(Action::Close),
        8 => (slot.clone(), place(), bytes()).prop_map(|(slot, at, bytes)| Action::Write(slot, at, bytes)),
        5 => slot.clone().prop_map(Action::Read),
        3 => slot.clone().prop_map(Action::Fstat),
        3 => slot.clone().prop_map(Action::Fsync),
        3 => (slot, length.clone()).prop_map(|(slot, length)| Action::Ftruncate(slot, length)),
        2 => (path(), length).prop_map(|(path, length)| Action::Truncate(path, length)),
        4 => path().prop_map(Action::Stat),
        5 => path().prop_map(Action::Mkdir),
        3 => path().prop_map(Action::Rmdir),
        4 => path().prop_map(Action::Unlink),
        8 => rename,
        2 => (prop::sample::select(&["a", "b", "c"][..]), path()).prop_map(|(to, path)| Action::Symlink(to, path)),
        1 => path().prop_map(Action::Readlink),
        2 => (path(), mode).prop_map(|(path, mode)| Action::Chmod(path, mode)),
        3 => path().prop_map(|path| Action::List(path[..path.len().saturating_sub(1).max(1)].to_vec())),
    ]
}

/// Actions of mappings: one that stays while others change the file, and one that changes it.
fn mapping() -> impl Strategy<Value = Action> {
    prop_oneof![
        2 => (0..SLOTS).prop_map(Action::Map),
        3 => (0..SLOTS).prop_map(Action::ReadMap),
        1 => (0..SLOTS).prop_map(Action::Unmap),
        2 => (0..SLOTS, place(), bytes()).prop_map(|(slot, at, bytes)| Action::WriteMap(slot, at, bytes)),
    ]
}

fn lock() -> impl Strategy<Value = Action> {
    let kind = prop_oneof![Just(LockKind::File), prop::sample::select(&RANGES[..]).prop_map(LockKind::Range),];
    let mode =
        prop::sample::select(&[Some(LockMode::Shared), Some(LockMode::Exclusive), Some(LockMode::Exclusive), None][..]);
    (0..SLOTS, kind, mode).prop_map(|(slot, kind, mode)| Action::Lock(slot, LockRequest { kind, mode }))
}

/// A lock of a handle under which its file is read or changed, and which is given up after that.
fn locked() -> impl Strategy<Value = Vec<Action>> {
    let mode = prop::sample::select(&[LockMode::Shared, LockMode::Exclusive][..]);
    let taken = (0..SLOTS, mode, place(), bytes());
    taken.prop_map(|(slot, mode, at, bytes)| {
        let lock = |mode| Action::Lock(slot, LockRequest { kind: LockKind::File, mode });
        let inner = if mode == LockMode::Shared { Action::Fstat(slot) } else { Action::Write(slot, at, bytes) };
        vec![lock(Some(mode)), Action::Read(slot), inner, lock(None)]
    })
}

/// A close or a sync of a handle.
fn storing(slot: impl Strategy<Value = usize> + Clone) -> impl Strategy<Value = Action> {
    prop_oneof![slot.clone().prop_map(Action::Close), slot.prop_map(Action::Fsync)]
}

fn with_fault() -> impl Strategy<Value = Vec<Action>> {
    prop_oneof![Just(StoreFault::Refuses), Just(StoreFault::Refuses), Just(StoreFault::IsBusy)].prop_flat_map(|fault| {
        storing(0..SLOTS).prop_map(move |action| vec![Action::WithFault(fault, Box::new(action))])
    })
}

/// A file that is written whole while its store refuses, or is busy.
fn put_with_fault((path, bytes, fault): (Path, Bytes, StoreFault)) -> Vec<Action> {
    let mut actions = put((path, bytes));
    let close = actions.pop().expect("its close");
    actions.push(Action::WithFault(fault, Box::new(close)));
    // Of one that was not to be made to fail.
    actions.push(Action::Close(OWN));
    actions
}

/// A client is killed, mostly while it stores something.
fn kill(area: Area) -> impl Strategy<Value = Vec<Action>> {
    let how = How { writes: true, create: true, ..How::default() };
    let stores = (path(area), place(), bytes(), storing(Just(OWN))).prop_map(move |(path, at, bytes, action)| {
        let kill = Action::KillDuring(Box::new(action));
        vec![Action::Open(OWN, path, how), Action::Write(OWN, at, bytes), kill, Action::Close(OWN)]
    });
    prop_oneof![1 => Just(vec![Action::Kill]), 2 => stores]
}

fn actions(area: Area) -> impl Strategy<Value = Vec<Action>> {
    let path = move || path(area);
    let way = prop::sample::select(&[Way::Rename, Way::Behind][..]);
    let fault = prop::sample::select(&[StoreFault::Refuses, StoreFault::IsBusy][..]);
    prop_oneof![
        56 => call(area).prop_map(|one| vec![one]),
        8 => mapping().prop_map(|one| vec![one]),
        8 => lock().prop_map(|one| vec![one]),
        3 => locked(),
        14 => (path(), bytes()).prop_map(put),
        14 => path().prop_map(get),
        3 => (path(), way).prop_map(|(path, way)| vec![Action::Rollback(path, way)]),
        2 => with_fault(),
        2 => (path(), bytes(), fault).prop_map(put_with_fault),
    ]
}

fn step(actions: impl Strategy<Value = Vec<Action>>) -> impl Strategy<Value = Step> {
    (0..2_usize, actions).prop_map(|(client, actions)| Step { client, actions })
}

/// A history in one area, by two clients in turn.
pub(super) fn history() -> impl Strategy<Value = Vec<Step>> {
    let area = prop::sample::select(&[Area::Local, Area::S3, Area::Local, Area::S3, Area::Outside][..]);
    area.prop_flat_map(|area| {
        let steps = || prop::collection::vec(step(actions(area)), 1..80);
        let killed = (steps(), step(kill(area)), any::<prop::sample::Index>()).prop_map(|(mut steps, kill, at)| {
            steps.insert(at.index(steps.len() + 1), kill);
            steps
        });
        prop_oneof![KILLS - 1 => steps(), 1 => killed]
    })
}
