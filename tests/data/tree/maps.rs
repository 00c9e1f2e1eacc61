//! Mappings: one shows what its handle shows, as a whole, and one that is synced has stored what was changed by it.

use super::action::Bytes;
use super::judge::{Answer, DONE, LOST, Verdict, allow};
use super::model::{Area, Errno, Model, Slot};
use crate::support::agent::decode;

/// What a page that cannot be had is told by.
const NO_PAGE: Errno = libc::EFAULT;

impl Model {
    pub(super) fn skips_map(&self, slot: Slot) -> bool {
        let handle = self.handles.get(&slot);
        let is_mappable = handle.is_some_and(|handle| handle.reads && self.nodes[handle.node].area != Area::Outside);
        !is_mappable || self.maps.contains_key(&slot)
    }

    /// What was changed by a mapping of a version that is gone is told by the next sync of anybody who has the file open: such
    /// changes are left out.
    pub(super) fn skips_write_map(&self, slot: Slot) -> bool {
        let Some(handle) = self.handles.get(&slot).filter(|handle| handle.reads && handle.writes) else { return true };
        let (mount, node) = (self.mounts[slot.0], handle.node);
        let is_behind = match self.staged.get(&(mount, node)) {
            // What the handle shows, of a version that is older than what is staged here, is not certain.
            Some(staged) => {
                handle.opened < staged.from || !staged.unlinked && staged.base != self.nodes[node].version()
            }
            None => handle.opened != self.nodes[node].version(),
        };
        self.nodes[node].area == Area::Outside || self.lost.contains(&(mount, node)) || is_behind
    }

    pub(super) fn map(&mut self, slot: Slot, answer: &Answer) -> Verdict {
        let lengths: Vec<usize> = self.shown(slot).iter().map(|content| content.len()).collect();
        let key = (self.mounts[slot.0], self.handles[&slot].node);
        match answer {
            Ok(length) => {
                let length =
                    length.as_u64().and_then(|length| usize::try_from(length).ok()).ok_or("expected a length")?;
                self.maps.insert(slot, length);
                if self.lost.contains(&key) || lengths.contains(&length) {
                    return Ok(());
                }
                Err(format!("{length} bytes are mapped instead of {lengths:?}"))
            }
            Err(errno) if self.lost.contains(&key) => allow(Some(*errno), &[&LOST[..], &[Some(libc::EINVAL)]].concat()),
            Err(errno) if lengths.contains(&0) => allow(Some(*errno), &[Some(libc::EINVAL)]),
            Err(errno) => allow(Some(*errno), &[None, Some(libc::ESTALE)][..if lengths.len() > 1 { 2 } else { 1 }]),
        }
    }

    pub(super) fn read_map(&self, slot: Slot, answer: &Answer) -> Verdict {
        let key = (self.mounts[slot.0], self.handles[&slot].node);
        let shown = self.shown(slot);
        match answer {
            _ if self.lost.contains(&key) => {
                allow(answer.as_ref().err().copied(), &[&LOST[..], &[Some(NO_PAGE)]].concat())
            }
            Ok(bytes) => {
                let (bytes, mapped) = (decode(bytes), self.maps[&slot]);
                if shown.iter().any(|content| bytes == content[..content.len().min(mapped)]) {
                    return Ok(());
                }
                let apart = bytes.iter().zip(shown[0]).position(|(one, other)| one != other);
                Err(format!("{} of {} mapped bytes, the first other one at {apart:?}", bytes.len(), mapped))
            }
            Err(errno) => {
                let allowed = [None, Some(libc::ESTALE), Some(NO_PAGE)];
                allow(Some(*errno), &allowed[..if shown.len() > 1 { 3 } else { 1 }])
            }
        }
    }

    pub(super) fn unmap(&mut self, slot: Slot, code: Option<Errno>) -> Verdict {
        self.maps.remove(&slot);
        allow(code, &DONE)
    }

    /// A mapping does not make a file longer; the sync of it stores the file, as `fsync` does.
    pub(super) fn write_map(&mut self, slot: Slot, at: usize, bytes: Bytes, answer: &Answer) -> Verdict {
        let code = answer.as_ref().err().copied();
        let bytes = bytes.get(self);
        let count = bytes.len().min(self.shown(slot)[0].len().saturating_sub(at));
        allow(code, &DONE)?;
        if answer.as_ref().ok().and_then(serde_json::Value::as_u64) != Some(count as u64) {
            return Err(format!("expected that {count} bytes are within the file"));
        }
        if count == 0 {
            return Ok(());
        }
        self.change_by(slot, code, false, |_, content| content[at..at + count].copy_from_slice(&bytes[..count]))?;
        self.sync(slot, code)
    }
}
