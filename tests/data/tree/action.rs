//! What a client of a mount can do, made at random. Names and handles are few, so that actions meet.

use std::fmt;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::model::Area;
use crate::data::content;
use crate::support::agent::encode;

/// Handles that a client holds, and one for calls that open and close by themselves.
const SLOTS: usize = 2;
const OWN: usize = SLOTS;

/// A path: the area, and names in it.
pub(super) type Path = Vec<&'static str>;

#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct How {
    pub(super) reads: bool,
    pub(super) writes: bool,
    pub(super) create: bool,
    pub(super) exclusive: bool,
    pub(super) truncate: bool,
    pub(super) append: bool,
}

/// Bytes that tell who wrote them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bytes {
    length: usize,
    salt: u32,
}

impl Bytes {
    pub(super) fn get(self) -> Vec<u8> {
        content(self.length, self.salt)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Open(usize, Path, How),
    Close(usize),
    Write(usize, usize, Bytes),
    Read(usize),
    Fstat(usize),
    Fsync(usize),
    Ftruncate(usize, usize),
    Truncate(Path, usize),
    Stat(Path),
    Mkdir(Path),
    Rmdir(Path),
    Unlink(Path),
    Rename(Path, Path),
    Symlink(&'static str, Path),
    Readlink(Path),
    Chmod(Path, u32),
    List(Path),
}

/// One or several actions of a client.
#[derive(Clone)]
pub(super) struct Step {
    pub(super) client: usize,
    pub(super) actions: Vec<Action>,
}

/// In one line, however it is asked for: a history is read as a whole.
impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {}: {:?}", self.client, self.actions)
    }
}

impl fmt::Debug for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let given = [
            (self.reads, "reads"),
            (self.writes, "writes"),
            (self.create, "create"),
            (self.exclusive, "exclusive"),
            (self.truncate, "truncate"),
            (self.append, "append"),
        ];
        let given: Vec<&str> = given.iter().filter(|(given, _)| *given).map(|(_, name)| *name).collect();
        write!(f, "{}", given.join("+"))
    }
}

fn bytes() -> impl Strategy<Value = Bytes> {
    let length = prop::sample::select(&[1_usize, 7, 100, 4096, 5000, 70_000][..]);
    (length, 1_u32..1_000_000).prop_map(|(length, salt)| Bytes { length, salt })
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

fn actions(area: Area) -> impl Strategy<Value = Vec<Action>> {
    let (slot, path) = (0..SLOTS, move || path(area));
    // Nothing moves from one area to another.
    let elsewhere = prop_oneof![9 => Just(area), 1 => prop::sample::select(&Area::ALL[..])];
    let rename = (path(), elsewhere, path()).prop_map(|(from, area, mut to)| {
        to[0] = area.name();
        Action::Rename(from, to)
    });
    let length = prop::sample::select(&[0_usize, 5, 4096, 6000][..]);
    let mode = prop::sample::select(&[0o600_u32, 0o644, 0o751][..]);
    let one = prop_oneof![
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
    ];
    prop_oneof![
        8 => one.prop_map(|one| vec![one]),
        2 => (path(), bytes()).prop_map(put),
        2 => path().prop_map(get),
    ]
}

/// A history in one area, by two clients in turn.
pub(super) fn history() -> impl Strategy<Value = Vec<Step>> {
    let area = prop::sample::select(&[Area::Local, Area::S3, Area::Local, Area::S3, Area::Outside][..]);
    let step = |area| (0..2_usize, actions(area)).prop_map(|(client, actions)| Step { client, actions });
    area.prop_flat_map(move |area| prop::collection::vec(step(area), 1..100))
}

impl Area {
    pub(super) fn name(self) -> &'static str {
        match self {
            Area::Local => "Local",
            Area::S3 => "S3",
            Area::Outside => "Outside",
        }
    }
}

impl How {
    fn flags(self) -> i32 {
        let access = match (self.reads, self.writes) {
            (true, true) => libc::O_RDWR,
            (false, true) => libc::O_WRONLY,
            _ => libc::O_RDONLY,
        };
        let given = [
            (self.create, libc::O_CREAT),
            (self.exclusive, libc::O_EXCL),
            (self.truncate, libc::O_TRUNC),
            (self.append, libc::O_APPEND),
        ];
        given.iter().filter(|(given, _)| *given).fold(access, |flags, (_, flag)| flags | flag)
    }
}

impl Action {
    /// As an agent is told; `at` is where a path lies.
    pub(super) fn command(&self, at: impl Fn(&[&str]) -> String) -> Value {
        match self {
            Action::Open(slot, path, how) => json!(["open", slot, at(path), how.flags(), 0o644]),
            Action::Close(slot) => json!(["close", slot]),
            Action::Write(slot, place, bytes) => json!(["write", slot, place, encode(&bytes.get())]),
            Action::Read(slot) => json!(["read", slot]),
            Action::Fstat(slot) => json!(["fstat", slot]),
            Action::Fsync(slot) => json!(["fsync", slot]),
            Action::Ftruncate(slot, length) => json!(["ftruncate", slot, length]),
            Action::Truncate(path, length) => json!(["truncate", at(path), length]),
            Action::Stat(path) => json!(["stat", at(path)]),
            Action::Mkdir(path) => json!(["mkdir", at(path), 0o755]),
            Action::Rmdir(path) => json!(["rmdir", at(path)]),
            Action::Unlink(path) => json!(["unlink", at(path)]),
            Action::Rename(from, to) => json!(["rename", at(from), at(to)]),
            Action::Symlink(to, path) => json!(["symlink", to, at(path)]),
            Action::Readlink(path) => json!(["readlink", at(path)]),
            Action::Chmod(path, mode) => json!(["chmod", at(path), mode]),
            Action::List(path) => json!(["list", at(path)]),
        }
    }
}
