//! Which actions are left out: those that cannot be asked for, and those whose outcome is not certain.

use super::action::{Action, Path, StoreFault};
use super::model::{Area, Id, Kind, Model};

impl Model {
    /// True for what cannot be asked, or has no certain answer: it is left out.
    pub(super) fn skips(&self, client: usize, action: &Action) -> bool {
        let handle = |slot: &usize| self.handles.get(&(client, *slot));
        let outside = |node: Id, length: usize| length > 0 && self.nodes[node].area == Area::Outside;
        let mut touched = Vec::new();
        let found = |path: &Path, follow, touched: &mut Vec<Id>| self.walk(path, follow, touched).ok()?.node;
        let skipped = match action {
            Action::Open(slot, path, how) => {
                let node = found(path, !how.exclusive, &mut touched);
                handle(slot).is_some() || (!how.writes && node.is_some_and(|node| self.nodes[node].is_dir()))
            }
            Action::Close(slot) | Action::Fstat(slot) | Action::Fsync(slot) => handle(slot).is_none(),
            Action::Read(slot) => !handle(slot).is_some_and(|handle| handle.reads),
            Action::Write(slot, ..) => !handle(slot).is_some_and(|handle| handle.writes),
            Action::Ftruncate(slot, length) => {
                !handle(slot).is_some_and(|handle| handle.writes && !outside(handle.node, *length))
            }
            Action::Truncate(path, length) => {
                found(path, true, &mut touched).is_some_and(|node| outside(node, *length))
            }
            Action::Chmod(path, _) | Action::List(path) => {
                found(path, true, &mut touched);
                false
            }
            Action::Stat(path)
            | Action::Mkdir(path)
            | Action::Unlink(path)
            | Action::Readlink(path)
            | Action::Symlink(_, path) => {
                found(path, false, &mut touched);
                false
            }
            Action::Rmdir(path) | Action::Rename(path, _) => {
                touched.extend(found(path, false, &mut Vec::new()).map_or(Vec::new(), |node| self.below(node)));
                found(path, false, &mut touched);
                if let Action::Rename(_, to) = action {
                    touched.extend(found(to, false, &mut Vec::new()).map_or(Vec::new(), |node| self.below(node)));
                    found(to, false, &mut touched);
                }
                false
            }
            Action::Map(slot) => self.skips_map((client, *slot)),
            Action::ReadMap(slot) | Action::Unmap(slot) => !self.maps.contains_key(&(client, *slot)),
            Action::WriteMap(slot, ..) => self.skips_write_map((client, *slot)),
            Action::Lock(slot, request) => self.skips_lock((client, *slot), *request),
            Action::Rollback(path, _) => found(path, false, &mut touched).is_none_or(|node| !self.can_roll_back(node)),
            Action::Kill => self.skips_kill(client),
            Action::KillDuring(inner) => {
                self.skips_kill(client) || self.skips(client, inner) || !self.would_store(client, inner)
            }
            Action::WithFault(fault, inner) => self.skips(client, inner) || self.skips_fault(client, *fault, inner),
        };
        skipped || touched.iter().any(|node| self.is_hidden(self.mounts[client], *node))
    }

    /// Only a file that is stored can be stored again behind the back of everybody.
    fn can_roll_back(&self, node: Id) -> bool {
        let node = &self.nodes[node];
        node.kind == Kind::File && node.area != Area::Outside && node.maker.is_none() && !node.newest().is_empty()
    }

    /// A file that goes with the session of its maker leaves whoever else has it open or locked with an outcome of its own.
    fn skips_kill(&self, client: usize) -> bool {
        let mount = self.mounts[client];
        let clients = self.clients_of(mount);
        (0..self.nodes.len()).filter(|node| self.nodes[*node].maker == Some(mount)).any(|node| {
            let is_open = self.handles.iter().any(|(slot, handle)| {
                handle.node == node && (self.nodes[node].area == Area::Outside || !clients.contains(&slot.0))
            });
            is_open || self.locks.concern_others(node, &clients)
        })
    }

    /// True if a close or a sync has content to store that is made from the newest version.
    fn would_store(&self, client: usize, action: &Action) -> bool {
        let Some(handle) = action.slot().and_then(|slot| self.handles.get(&(client, slot))) else { return false };
        let key = (self.mounts[client], handle.node);
        let is_written = self.staged.get(&key).is_some_and(|staged| staged.is_due() && !staged.is_unwritten());
        let is_told = handle.writes || matches!(action, Action::Fsync(_));
        is_written
            && is_told
            && !self.lost.contains(&key)
            && self.nodes[key.1].named
            && !self.is_stale(key.0, key.1)
            && !self.has_same_base(key.0, key.1)
    }

    /// A new file that cannot be stored is gone after its last close; what becomes of it before is not certain.
    fn skips_fault(&self, client: usize, fault: StoreFault, action: &Action) -> bool {
        if !self.would_store(client, action) {
            return true;
        }
        let mount = self.mounts[client];
        let slot = (client, action.slot().expect("it stores"));
        let node = self.handles[&slot].node;
        if fault == StoreFault::IsBusy {
            return self.nodes[node].area != Area::S3;
        }
        let is_shared = self.handles.iter().any(|(other, handle)| *other != slot && handle.node == node)
            || self.locks.concern_others(node, &self.clients_of(mount));
        self.nodes[node].maker.is_some() && is_shared && matches!(action, Action::Close(_))
    }
}
