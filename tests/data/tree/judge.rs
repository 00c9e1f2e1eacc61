//! Whether an answer is one that may be given, and what it leaves behind.

use std::collections::BTreeSet;

use serde_json::Value;

use super::action::{Action, Bytes, How, Path};
use super::closes::Behind;
use super::model::{Area, Errno, Found, Handle, Id, Kind, Model, Slot, Staged};
use crate::support::agent::decode;

pub(super) type Verdict = Result<(), String>;

/// What was answered.
pub(super) type Answer = Result<Value, Errno>;

/// What handles of a file that went elsewhere may be told.
pub(super) const LOST: [Option<Errno>; 3] = [None, Some(libc::ESTALE), Some(libc::ENOENT)];

pub(super) const DONE: [Option<Errno>; 1] = [None];
const STALE: [Option<Errno>; 1] = [Some(libc::ESTALE)];
const EITHER: [Option<Errno>; 2] = [None, Some(libc::ESTALE)];

pub(super) fn allow(code: Option<Errno>, allowed: &[Option<Errno>]) -> Verdict {
    if allowed.contains(&code) {
        return Ok(());
    }
    let told = |code: &Option<Errno>| {
        code.map_or("success".into(), |code| rustix::io::Errno::from_raw_os_error(code).to_string())
    };
    Err(format!("expected {}", allowed.iter().map(told).collect::<Vec<String>>().join(" or ")))
}

fn refuse(code: Option<Errno>, errno: Errno) -> Verdict {
    allow(code, &[Some(errno)])
}

fn same<T: PartialEq + std::fmt::Debug>(found: &T, expected: &T) -> Verdict {
    if found == expected { Ok(()) } else { Err(format!("expected {expected:?}, found {found:?}")) }
}

/// Passes a path that leads nowhere on as the errno it must have been answered with.
macro_rules! reach {
    ($code:expr, $found:expr) => {
        match $found {
            Ok(found) => found,
            Err(errno) => return refuse($code, errno),
        }
    };
}

impl Model {
    /// Judges an answer, and says what comes behind it.
    pub(super) fn judge(&mut self, client: usize, action: &Action, answer: &Answer) -> Result<Option<Behind>, String> {
        let (mount, code) = (self.mounts[client], answer.as_ref().err().copied());
        let slot = |slot: &usize| (client, *slot);
        match action {
            Action::Open(number, path, how) => self.open(slot(number), path, *how, code),
            Action::Close(number) => return self.close(slot(number), code),
            Action::Write(number, at, bytes) => self.write(slot(number), *at, *bytes, code),
            Action::Read(number) => self.read(slot(number), answer),
            Action::Fstat(number) => self.fstat(slot(number), answer),
            Action::Fsync(number) => self.sync(slot(number), code),
            Action::Ftruncate(number, length) => self.ftruncate(slot(number), *length, code),
            Action::Truncate(path, length) => self.truncate(mount, path, *length, code),
            Action::Stat(path) => self.stat(mount, path, answer),
            Action::Mkdir(path) => self.add(path, Kind::Dir(Default::default()), 0o755, code),
            Action::Rmdir(path) => self.rmdir(path, code),
            Action::Unlink(path) => self.unlink(mount, path, code),
            Action::Rename(from, to) => self.rename(mount, from, to, code),
            Action::Symlink(to, path) => self.symlink(to, path, code),
            Action::Readlink(path) => self.readlink(path, answer),
            Action::Chmod(path, mode) => self.chmod(path, *mode, code),
            Action::List(path) => self.list(mount, path, answer),
            Action::Map(number) => self.map(slot(number), answer),
            Action::ReadMap(number) => self.read_map(slot(number), answer),
            Action::Unmap(number) => self.unmap(slot(number), code),
            Action::WriteMap(number, at, bytes) => self.write_map(slot(number), *at, *bytes, answer),
            Action::Lock(number, request) => self.lock(slot(number), *request, code),
            // What these consist of is judged.
            Action::Rollback(..) | Action::Kill | Action::KillDuring(_) | Action::WithFault(..) => Ok(()),
        }
        .map(|()| self.may_have_moved.take().map(|(slot, content)| Behind::MayHaveMoved(slot, content)))
    }

    fn at(&self, path: &Path, follow: bool) -> Result<Found, Errno> {
        self.walk(path, follow, &mut Vec::new())
    }

    fn existing(&self, path: &Path, follow: bool) -> Result<(Found, Id), Errno> {
        let found = self.at(path, follow)?;
        let node = found.node.ok_or(libc::ENOENT)?;
        Ok((found, node))
    }

    fn open(&mut self, slot: Slot, path: &Path, how: How, code: Option<Errno>) -> Verdict {
        let mount = self.mounts[slot.0];
        let found = reach!(code, self.at(path, !how.exclusive));
        let node = match found.node {
            None if !how.create => return refuse(code, libc::ENOENT),
            None => {
                allow(code, &DONE)?;
                let area = self.nodes[found.parent].area;
                let node = self.make(Kind::File, 0o644, area);
                self.children(found.parent).insert(found.name, node);
                (self.nodes[node].maker, self.nodes[node].hidden) = (Some(mount), !how.exclusive);
                if area != Area::Outside {
                    let staged = Staged {
                        content: Vec::new(),
                        base: 0,
                        from: 0,
                        dirty: true,
                        new: true,
                        appended: true,
                        unlinked: false,
                        maybe_from: None,
                    };
                    self.staged.insert((mount, node), staged);
                }
                node
            }
            Some(_) if how.exclusive => return refuse(code, libc::EEXIST),
            Some(node) if self.nodes[node].is_dir() => return refuse(code, libc::EISDIR),
            Some(node) => {
                self.note_open(mount, node);
                let doomed = how.truncate && self.is_stale(mount, node);
                allow(code, if doomed { &EITHER } else { &DONE })?;
                if code.is_some() {
                    return Ok(());
                }
                node
            }
        };
        let opened = self.nodes[node].version();
        let How { reads, writes, append, .. } = how;
        self.handles.insert(slot, Handle { node, reads, writes, append, opened });
        if how.truncate && found.node.is_some() && self.nodes[node].area != Area::Outside {
            // Whatever was staged of an older version is cut off, and what comes is made from this one.
            if let Some(staged) =
                self.staged.get_mut(&(mount, node)).filter(|staged| staged.base > 0 && !staged.unlinked)
            {
                staged.base = opened;
            }
            self.change(mount, node, opened, false, |content| content.clear());
        }
        Ok(())
    }

    /// The first change of a version that is gone goes on from the newest one, or is refused. What was changed already stays
    /// what it was made from: the storing of it is refused.
    pub(super) fn change_by(
        &mut self,
        slot: Slot,
        code: Option<Errno>,
        appends: bool,
        how: impl Fn(&Handle, &mut Vec<u8>),
    ) -> Verdict {
        let (mount, handle) = (self.mounts[slot.0], self.handles[&slot].clone());
        let key = (mount, handle.node);
        if self.lost.contains(&key) {
            return allow(code, &LOST);
        }
        let newest = self.nodes[handle.node].version();
        let moves = !self.staged.contains_key(&key) && newest != handle.opened;
        allow(code, if moves || self.is_stale(mount, handle.node) { &EITHER } else { &DONE })?;
        if code.is_none() {
            // A mount that knows of the newest version by then goes on from that.
            let superseded = |staged: &&Staged| !staged.is_apart() && staged.base != newest;
            self.may_have_moved = self.staged.get(&key).filter(superseded).map(|_| {
                let mut content = self.nodes[handle.node].newest().clone();
                how(&handle, &mut content);
                (slot, content)
            });
            let version = if moves { self.move_handles(mount, &handle) } else { handle.opened };
            self.change(mount, handle.node, version, appends, |content| how(&handle, content));
        }
        Ok(())
    }

    /// All handles of a mount that have the version of `handle` have the newest one from now on, which is returned.
    pub(super) fn move_handles(&mut self, mount: usize, handle: &Handle) -> usize {
        let newest = self.nodes[handle.node].version();
        for (slot, other) in &mut self.handles {
            if self.mounts[slot.0] == mount && (other.node, other.opened) == (handle.node, handle.opened) {
                other.opened = newest;
            }
        }
        newest
    }

    fn write(&mut self, slot: Slot, at: usize, bytes: Bytes, code: Option<Errno>) -> Verdict {
        let handle = &self.handles[&slot];
        if self.nodes[handle.node].area == Area::Outside {
            let mut allowed = vec![Some(libc::EOPNOTSUPP)];
            allowed.extend(&LOST[1..]);
            return allow(code, &allowed[..if self.nodes[handle.node].named { 1 } else { 3 }]);
        }
        let (appends, bytes) = (handle.append, bytes.get(self));
        self.change_by(slot, code, appends, |handle, content| {
            let at = if handle.append { content.len() } else { at };
            content.resize(content.len().max(at + bytes.len()), 0);
            content[at..at + bytes.len()].copy_from_slice(&bytes);
        })
    }

    fn ftruncate(&mut self, slot: Slot, length: usize, code: Option<Errno>) -> Verdict {
        let node = self.handles[&slot].node;
        if self.nodes[node].area == Area::Outside {
            return allow(code, if self.nodes[node].named { &DONE } else { &LOST });
        }
        self.change_by(slot, code, false, |_, content| content.resize(length, 0))
    }

    /// What a handle may show: what it has, and after that whatever may take the place of that at any time.
    pub(super) fn shown(&self, slot: Slot) -> Vec<&Vec<u8>> {
        let (mount, handle) = (self.mounts[slot.0], &self.handles[&slot]);
        let node = &self.nodes[handle.node];
        let opened = &node.versions[handle.opened];
        match self.staged.get(&(mount, handle.node)) {
            Some(staged) if handle.opened < staged.from => vec![opened, node.newest(), &staged.content],
            // Also when its name went after that.
            Some(staged) if !staged.is_changed() && staged.base != node.version() => {
                vec![&staged.content, node.newest()]
            }
            Some(staged) => vec![&staged.content],
            None if handle.opened != node.version() => vec![opened, node.newest()],
            None => vec![opened],
        }
    }

    fn read(&self, slot: Slot, answer: &Answer) -> Verdict {
        if self.lost.contains(&(self.mounts[slot.0], self.handles[&slot].node)) {
            return allow(answer.as_ref().err().copied(), &LOST);
        }
        let shown = self.shown(slot);
        match answer {
            Ok(bytes) => {
                let bytes = decode(bytes);
                if shown.contains(&&bytes) {
                    return Ok(());
                }
                let apart = bytes.iter().zip(shown[0]).position(|(one, other)| one != other);
                Err(format!("{} bytes instead of {}, the first other one at {apart:?}", bytes.len(), shown[0].len()))
            }
            Err(errno) => allow(Some(*errno), if shown.len() > 1 { &EITHER } else { &DONE }),
        }
    }

    /// A version that others have replaced is shown with its length and mode.
    fn fstat(&self, slot: Slot, answer: &Answer) -> Verdict {
        let (mount, node) = (self.mounts[slot.0], self.handles[&slot].node);
        if self.lost.contains(&(mount, node)) {
            return allow(answer.as_ref().err().copied(), &LOST);
        }
        let shown = self.shown(slot);
        if shown.len() == 1 {
            return self.is_shown(mount, node, answer);
        }
        let size = answer.as_ref().map_err(|_| "expected success".to_owned())?["size"].as_u64();
        match shown.iter().any(|content| size == Some(content.len() as u64)) {
            true => Ok(()),
            false => Err(format!(
                "expected one of {:?} bytes",
                shown.iter().map(|content| content.len()).collect::<Vec<_>>()
            )),
        }
    }

    fn is_shown(&self, mount: usize, node: Id, answer: &Answer) -> Verdict {
        let shown = answer.as_ref().map_err(|_| "expected success".to_owned())?;
        let one = &self.nodes[node];
        let (kind, mode) = match &one.kind {
            Kind::Dir(_) => ("dir", one.mode),
            Kind::File => ("file", one.mode),
            Kind::Link(_) => ("link", 0o777),
        };
        same(&shown["kind"].as_str(), &Some(kind))?;
        same(&shown["mode"].as_u64(), &Some(mode.into()))?;
        if one.kind == Kind::File {
            same(&shown["size"].as_u64(), &Some(self.size(mount, node) as u64))?;
        }
        Ok(())
    }

    pub(super) fn sync(&mut self, slot: Slot, code: Option<Errno>) -> Verdict {
        let (mount, node) = (self.mounts[slot.0], self.handles[&slot].node);
        if self.lost.contains(&(mount, node)) {
            return allow(code, &LOST);
        }
        if self.nodes[node].area == Area::Outside {
            self.nodes[node].hidden &= code.is_some();
        }
        if self.is_left_to_others(mount, node) {
            return allow(code, &DONE);
        }
        let due = self.staged.get(&(mount, node)).filter(|staged| staged.dirty && !staged.unlinked);
        if due.is_none() {
            return allow(code, &DONE);
        }
        let stale = self.is_stale(mount, node);
        if stale && code.is_none() && self.append_again(mount, node) {
            self.stored(mount, node);
            return Ok(());
        }
        let staged = &self.staged[&(mount, node)];
        let same = !stale && staged.base != self.nodes[node].version();
        allow(
            code,
            if stale {
                &STALE
            } else if same {
                &EITHER
            } else {
                &DONE
            },
        )?;
        if code.is_none() {
            self.stored(mount, node);
        }
        Ok(())
    }

    fn truncate(&mut self, mount: usize, path: &Path, length: usize, code: Option<Errno>) -> Verdict {
        let (_, node) = reach!(code, self.existing(path, true));
        if self.nodes[node].is_dir() {
            return refuse(code, libc::EISDIR);
        }
        let key = (mount, node);
        let superseded = self.staged.get(&key).is_some_and(|staged| staged.base != self.nodes[node].version());
        allow(code, if superseded { &EITHER } else { &DONE })?;
        if self.nodes[node].area == Area::Outside {
            return Ok(());
        }
        if code.is_none() && superseded {
            self.staged.remove(&key);
        }
        self.change(mount, node, self.nodes[node].version(), false, |content| content.resize(length, 0));
        if code.is_none() {
            self.stored(mount, node);
        }
        if self.handles_of(mount, node).next().is_none() {
            self.staged.remove(&key);
        }
        Ok(())
    }

    fn stat(&self, mount: usize, path: &Path, answer: &Answer) -> Verdict {
        match self.existing(path, false) {
            Ok((_, node)) => self.is_shown(mount, node, answer),
            Err(errno) => refuse(answer.as_ref().err().copied(), errno),
        }
    }

    fn add(&mut self, path: &Path, kind: Kind, mode: u32, code: Option<Errno>) -> Verdict {
        let found = reach!(code, self.at(path, false));
        if found.node.is_some() {
            return refuse(code, libc::EEXIST);
        }
        allow(code, &DONE)?;
        let node = self.make(kind, mode, self.nodes[found.parent].area);
        self.children(found.parent).insert(found.name, node);
        Ok(())
    }

    fn symlink(&mut self, to: &str, path: &Path, code: Option<Errno>) -> Verdict {
        if let Ok(Found { node: None, parent, .. }) = self.at(path, false)
            && self.nodes[parent].area == Area::S3
        {
            return refuse(code, libc::EOPNOTSUPP);
        }
        self.add(path, Kind::Link(to.to_owned()), 0o777, code)
    }

    fn rmdir(&mut self, path: &Path, code: Option<Errno>) -> Verdict {
        let (found, node) = reach!(code, self.existing(path, false));
        match &self.nodes[node].kind {
            Kind::Dir(children) if children.is_empty() => allow(code, &DONE)?,
            Kind::Dir(_) => return refuse(code, libc::ENOTEMPTY),
            _ => return refuse(code, libc::ENOTDIR),
        }
        self.children(found.parent).remove(&found.name);
        Ok(())
    }

    fn unlink(&mut self, mount: usize, path: &Path, code: Option<Errno>) -> Verdict {
        let (found, node) = reach!(code, self.existing(path, false));
        if self.nodes[node].is_dir() {
            return refuse(code, libc::EISDIR);
        }
        allow(code, &DONE)?;
        self.children(found.parent).remove(&found.name);
        self.unname(mount, node);
        Ok(())
    }

    /// As the kernel checks it before it asks anybody; `None` if there is nothing to do.
    fn may_rename(&self, from: &Path, to: &Path) -> Result<Option<(Found, Id, Found)>, Errno> {
        let (source, target) = (self.at(from, false), self.at(to, false));
        let (source, target) = (source?, target?);
        let moved = source.node.ok_or(libc::ENOENT)?;
        let is_dir = self.nodes[moved].is_dir();
        let inside = |outer: Id, inner: Id| outer == inner || self.below(outer).contains(&inner);
        if is_dir && inside(moved, target.parent) {
            return Err(libc::EINVAL);
        }
        match target.node {
            Some(there) if self.nodes[there].is_dir() && inside(there, source.parent) => return Err(libc::ENOTEMPTY),
            Some(there) if there == moved => return Ok(None),
            Some(there) if is_dir && !self.nodes[there].is_dir() => return Err(libc::ENOTDIR),
            Some(there) if !is_dir && self.nodes[there].is_dir() => return Err(libc::EISDIR),
            _ => {}
        }
        Ok(Some((source, moved, target)))
    }

    fn rename(&mut self, mount: usize, from: &Path, to: &Path, code: Option<Errno>) -> Verdict {
        let Some((source, moved, target)) = reach!(code, self.may_rename(from, to)) else { return allow(code, &DONE) };
        // What is to be stored is stored under the old name first.
        if !self.is_left_to_others(mount, moved) && self.staged.get(&(mount, moved)).is_some_and(|staged| staged.dirty)
        {
            if self.is_stale(mount, moved) {
                return allow(code, &STALE);
            }
            // Others have stored the same: that is another version all the same, unless the store names versions by content.
            if self.staged[&(mount, moved)].base != self.nodes[moved].version() && code == STALE[0] {
                return Ok(());
            }
            self.stored(mount, moved);
        }
        let mut refusals = BTreeSet::new();
        let never_stored = |node: Id| self.nodes[node].maker.is_some() && self.nodes[node].area != Area::Outside;
        let is_dir = self.nodes[moved].is_dir();
        if self.nodes[source.parent].area != self.nodes[target.parent].area
            || is_dir && self.nodes[moved].area == Area::S3
        {
            refusals.insert(libc::EXDEV);
        }
        if let Some(there) = target.node
            && !self.below(there).is_empty()
        {
            refusals.insert(libc::ENOTEMPTY);
        }
        if never_stored(moved) {
            refusals.insert(libc::EBUSY);
        }
        if let Some(errno) = code {
            let busy = self.below(moved).into_iter().any(never_stored) && errno == libc::EBUSY;
            return if busy || refusals.contains(&errno) { Ok(()) } else { Err(format!("expected {refusals:?}")) };
        }
        same(&BTreeSet::new(), &refusals)?;
        self.children(source.parent).remove(&source.name);
        if let Some(replaced) = self.children(target.parent).insert(target.name, moved) {
            self.unname(mount, replaced);
        }
        Ok(())
    }

    fn readlink(&self, path: &Path, answer: &Answer) -> Verdict {
        let code = answer.as_ref().err().copied();
        let (_, node) = reach!(code, self.existing(path, false));
        match &self.nodes[node].kind {
            Kind::Link(to) => same(&answer.as_ref().ok().and_then(Value::as_str), &Some(to.as_str())),
            _ => refuse(code, libc::EINVAL),
        }
    }

    fn chmod(&mut self, path: &Path, mode: u32, code: Option<Errno>) -> Verdict {
        let (_, node) = reach!(code, self.existing(path, true));
        allow(code, &DONE)?;
        self.nodes[node].mode = mode;
        Ok(())
    }

    fn list(&self, mount: usize, path: &Path, answer: &Answer) -> Verdict {
        let code = answer.as_ref().err().copied();
        let (_, node) = reach!(code, self.existing(path, true));
        let Kind::Dir(children) = &self.nodes[node].kind else { return refuse(code, libc::ENOTDIR) };
        allow(code, &DONE)?;
        let sure = |name: &&String| !self.is_hidden(mount, children[*name]);
        let names = answer.as_ref().ok().and_then(Value::as_array).ok_or("expected names")?;
        let certain = |name: &str| children.get(name).is_none_or(|child| !self.is_hidden(mount, *child));
        let found: Vec<&str> = names.iter().filter_map(Value::as_str).filter(|name| certain(name)).collect();
        same(&found, &children.keys().filter(sure).map(String::as_str).collect())
    }
}
