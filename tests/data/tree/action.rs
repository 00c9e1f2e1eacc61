//! What a client of a mount can do, what can happen to a mount or a store meanwhile, and how an agent is told.

use std::fmt;

use serde_json::{Value, json};

use super::locks::LockRequest;
use super::model::{Area, Id, Model};
use crate::data::content;
use crate::support::agent::encode;

/// Handles that a client holds, and one for calls that open and close by themselves.
pub(super) const SLOTS: usize = 2;
pub(super) const OWN: usize = SLOTS;

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

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bytes {
    /// Bytes that tell who wrote them.
    Fresh { length: usize, salt: u32 },
    /// The content that a file had in one of its versions.
    Version(Id, usize),
}

impl Bytes {
    pub(super) fn get(self, model: &Model) -> Vec<u8> {
        match self {
            Bytes::Fresh { length, salt } => content(length, salt),
            Bytes::Version(node, version) => model.nodes[node].versions[version].clone(),
        }
    }
}

/// How a file gets an earlier content of the same length again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Another file with that content is moved over it.
    Rename,
    /// Somebody else stores that content in the under-storage.
    Behind,
}

/// Why a store does not take what a client gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StoreFault {
    /// It refuses the client until it is told otherwise: a bucket with 403, a directory with a full disk.
    Refuses,
    /// It answers the next requests with 503.
    IsBusy,
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
    /// Maps the file of a handle to be read, shared.
    Map(usize),
    ReadMap(usize),
    Unmap(usize),
    /// Changes the file of a handle by a shared mapping, which is synced before it ends.
    WriteMap(usize, usize, Bytes),
    Lock(usize, LockRequest),
    Rollback(Path, Way),
    /// The client of the mount is killed, and started again.
    Kill,
    /// The client of the mount is killed while it carries something out.
    KillDuring(Box<Action>),
    /// Something is done while the store has a fault.
    WithFault(StoreFault, Box<Action>),
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
    /// The handle that it is done through.
    pub(super) fn slot(&self) -> Option<usize> {
        match self {
            Action::Open(slot, ..)
            | Action::Close(slot)
            | Action::Write(slot, ..)
            | Action::Read(slot)
            | Action::Fstat(slot)
            | Action::Fsync(slot)
            | Action::Ftruncate(slot, _)
            | Action::Map(slot)
            | Action::ReadMap(slot)
            | Action::Unmap(slot)
            | Action::WriteMap(slot, ..)
            | Action::Lock(slot, _) => Some(*slot),
            Action::KillDuring(inner) | Action::WithFault(_, inner) => inner.slot(),
            _ => None,
        }
    }

    /// As an agent is told; `at` is where a path lies. `None` for what no agent does.
    pub(super) fn command(&self, model: &Model, at: impl Fn(&[&str]) -> String) -> Option<Value> {
        let bytes = |bytes: &Bytes| encode(&bytes.get(model));
        Some(match self {
            Action::Open(slot, path, how) => json!(["open", slot, at(path), how.flags(), 0o644]),
            Action::Close(slot) => json!(["close", slot]),
            Action::Write(slot, place, what) => json!(["write", slot, place, bytes(what)]),
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
            Action::Map(slot) => json!(["map", slot]),
            Action::ReadMap(slot) => json!(["read_map", slot]),
            Action::Unmap(slot) => json!(["unmap", slot]),
            Action::WriteMap(slot, place, what) => json!(["write_map", slot, place, bytes(what)]),
            Action::Lock(slot, request) => request.command(*slot),
            Action::Rollback(..) | Action::Kill | Action::KillDuring(_) | Action::WithFault(..) => return None,
        })
    }
}
