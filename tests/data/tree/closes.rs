//! Closes, and what comes behind the last one.

use super::judge::{DONE, allow};
use super::model::{Errno, Handle, Id, Model, Slot, Staged};

/// What comes behind a last close, before anything else is asked.
#[derive(Debug, Clone, Copy)]
pub(super) enum Behind {
    /// The mount is to show the file as everybody sees it: what it had staged is given up.
    GivenUp(Id),
    /// The file is stored, empty.
    Stored(Id),
    /// So it may be: it is given up where others have stored the same content, unless the store names versions by that.
    MayBeStored(Id),
}

impl Model {
    pub(super) fn close(&mut self, slot: Slot, code: Option<Errno>) -> Result<Option<Behind>, String> {
        let (mount, Handle { node, writes, .. }) = (self.mounts[slot.0], self.handles[&slot].clone());
        let key = (mount, node);
        let unwritten = !self.lost.contains(&key) && self.staged.get(&key).is_some_and(Staged::is_unwritten);
        if writes && !unwritten {
            self.sync(slot, code)?;
        } else {
            allow(code, &DONE)?;
            self.nodes[node].hidden &= !writes;
        }
        self.handles.remove(&slot);
        if self.handles_of(mount, node).next().is_some() {
            // What was not written is stored all the same. If it cannot be, whoever has the file open goes on with it.
            let behind = (writes && unwritten).then(|| self.last_close(mount, node)).flatten();
            return Ok(behind.filter(|behind| !matches!(behind, Behind::GivenUp(_))));
        }
        self.lost.remove(&key);
        let behind = self.last_close(mount, node);
        self.staged.remove(&key);
        Ok(behind)
    }

    /// What becomes of what is staged when nobody has the file open any more, or nobody has written to it.
    fn last_close(&mut self, mount: usize, node: Id) -> Option<Behind> {
        let staged = self.staged.get(&(mount, node)).filter(|staged| staged.is_due() && self.nodes[node].named)?;
        let (unwritten, same) = (staged.is_unwritten(), staged.base != self.nodes[node].version());
        if !unwritten {
            return Some(Behind::GivenUp(node));
        }
        if self.is_left_to_others(mount, node) {
            return None;
        }
        if self.is_stale(mount, node) {
            return Some(Behind::GivenUp(node));
        }
        if same && !self.nodes[node].newest().is_empty() {
            return Some(Behind::MayBeStored(node));
        }
        self.stored(mount, node);
        Some(Behind::Stored(node))
    }
}
