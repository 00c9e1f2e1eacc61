//! Closes, and what comes behind the last one.

use super::judge::{DONE, allow};
use super::model::{Errno, Handle, Id, Model, Slot};

/// What comes behind a close, before anything else is asked.
#[derive(Debug, Clone)]
pub(super) enum Behind {
    /// The mount is to show the file as everybody sees it: what it had staged is given up.
    GivenUp(Id),
    /// A file that was never stored is gone for everybody. It was there.
    Gone(Vec<String>),
    /// The newest content is stored.
    Stored(Id),
    /// This content may be stored, or be given up: the file is the old one then.
    MayBeStored(Id, Vec<u8>),
    /// The handles of a mount may have moved to the newest version before a change, which makes this of it.
    MayHaveMoved(Slot, Vec<u8>),
}

impl Model {
    pub(super) fn close(&mut self, slot: Slot, code: Option<Errno>) -> Result<Option<Behind>, String> {
        let (mount, Handle { node, writes, .. }) = (self.mounts[slot.0], self.handles[&slot].clone());
        let key = (mount, node);
        let ended = self.locks.close(slot, mount, node);
        let is_lost = self.lost.contains(&key);
        let due = self.staged.get(&key).filter(|staged| !is_lost && staged.is_due());
        let unwritten = due.is_some_and(|staged| staged.is_unwritten());
        let cut_off = due.is_some_and(|staged| staged.is_unwritten() && !staged.new);
        let stores = match ended.of_process {
            true => !unwritten || cut_off,
            false => writes && !unwritten,
        };
        if stores {
            self.sync(slot, code)?;
        } else {
            allow(code, &DONE)?;
            self.nodes[node].hidden &= !writes;
        }
        self.maps.remove(&slot);
        self.handles.remove(&slot);
        let with_lock = if ended.of_open_file { self.store_behind_lock(mount, node) } else { None };
        if self.is_staged_open(mount, node) {
            // What was not written is stored all the same. If it cannot be, whoever has the file open goes on with it.
            let is_due = with_lock.is_none() && writes && unwritten;
            let behind = if is_due { self.last_close(mount, node) } else { with_lock };
            return Ok(behind.filter(|behind| !matches!(behind, Behind::GivenUp(_))));
        }
        if self.handles_of(mount, node).next().is_none() {
            self.lost.remove(&key);
        }
        let behind = with_lock.or_else(|| self.last_close(mount, node));
        self.staged.remove(&key);
        Ok(behind)
    }

    /// What becomes of what is staged when nobody has the file open any more, or nobody has written to it.
    fn last_close(&mut self, mount: usize, node: Id) -> Option<Behind> {
        let staged = self.staged.get(&(mount, node)).filter(|staged| staged.is_due() && self.nodes[node].named)?;
        let (unwritten, content) = (staged.is_unwritten(), staged.content.clone());
        if unwritten && self.is_left_to_others(mount, node) {
            return None;
        }
        if self.is_stale(mount, node) {
            return Some(Behind::GivenUp(node));
        }
        // Its store has refused it before, or others have stored the same content as another version.
        if !unwritten || self.has_same_base(mount, node) && !self.nodes[node].newest().is_empty() {
            return Some(Behind::MayBeStored(node, content));
        }
        self.stored(mount, node);
        Some(Behind::Stored(node))
    }

    /// A change that was made to `content`, as the mount shows, was maybe made from the newest version. False if that is neither
    /// what it makes of that, `from_newest`, nor what it makes of the version before.
    pub(super) fn found_changed(&mut self, slot: Slot, content: &[u8], from_newest: &[u8]) -> bool {
        let (mount, handle) = (self.mounts[slot.0], self.handles[&slot].clone());
        let newest = self.nodes[handle.node].version();
        let has_moved = content == from_newest;
        let staged = self.staged.get_mut(&(mount, handle.node)).expect("it was changed");
        if content == staged.content {
            staged.maybe_from = has_moved.then_some(newest);
            return true;
        }
        if has_moved {
            (staged.content, staged.base, staged.from) = (content.to_vec(), newest, newest);
            self.move_handles(mount, &handle);
        }
        has_moved
    }

    /// A close, or a sync, that the store of the file refuses with `errno`.
    pub(super) fn refused(
        &mut self,
        slot: Slot,
        closes: bool,
        errno: Errno,
        code: Option<Errno>,
    ) -> Result<Option<Behind>, String> {
        let (mount, node) = (self.mounts[slot.0], self.handles[&slot].node);
        let is_superseded = self.is_stale(mount, node) || self.has_same_base(mount, node);
        allow(code, &[Some(errno), Some(libc::ESTALE)][..if is_superseded { 2 } else { 1 }])?;
        if !closes {
            return Ok(None);
        }
        self.locks.close(slot, mount, node);
        self.maps.remove(&slot);
        self.handles.remove(&slot);
        // The client stores the content once more behind the last close of a writer. If the store refuses that too, the client
        // drops the content, although readers still have the file open.
        if self.handles_of(mount, node).any(|handle| handle.writes) {
            return Ok(None);
        }
        self.staged.remove(&(mount, node));
        if self.nodes[node].maker.is_none() {
            return Ok(Some(Behind::GivenUp(node)));
        }
        Ok(self.forget(node).map(Behind::Gone))
    }
}
