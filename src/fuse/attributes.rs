//! Changes of attributes: mode, owner, length and mtime.

use std::sync::Arc;

use jindofs_proto::v1::{Attr, SetAttrRequest};

use crate::client::namespace::at_inode;
use crate::error::Result;
use crate::runtime::failpoint;

use super::fs::Fs;
use super::inodes::Known;
use super::nodes::inode_of;
use super::staging::WriteGuard;

/// The attributes to change; `None` keeps the value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Change {
    /// Permission bits.
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) length: Option<u64>,
    /// Nanoseconds since the epoch.
    pub(super) mtime_ns: Option<i64>,
}

impl Change {
    /// True if more than the length changes.
    fn is_of_attributes(&self) -> bool {
        *self != Change { length: self.length, ..Change::default() }
    }

    fn request(&self, inode: u64) -> SetAttrRequest {
        let Change { mode, uid, gid, mtime_ns, .. } = *self;
        SetAttrRequest { target: Some(at_inode(inode)), mode, uid, gid, mtime_ns, ..SetAttrRequest::default() }
    }

    fn apply(&self, attr: &mut Attr) {
        attr.mode = self.mode.unwrap_or(attr.mode);
        attr.uid = self.uid.unwrap_or(attr.uid);
        attr.gid = self.gid.unwrap_or(attr.gid);
        attr.mtime_ns = self.mtime_ns.unwrap_or(attr.mtime_ns);
    }
}

impl Fs {
    /// Changes attributes, the length first. `number` is the handle that the change comes through.
    ///
    /// *Errors*: those of the masters, and of storing.
    pub(super) async fn set_attr(self: &Arc<Self>, node: u64, number: Option<u64>, change: Change) -> Result<Known> {
        self.check_writable()?;
        let inode = inode_of(node);
        let known_as = self.resolve_inode(inode).await?;
        self.await_commit(inode).await;
        if let Some(length) = change.length {
            self.truncate(node, length, number).await?;
        }
        match change.is_of_attributes() {
            true if known_as == inode => self.change_attributes(inode, &change).await?,
            true => self.change_elsewhere(inode, known_as, &change).await?,
            false => {}
        }
        failpoint("fuse.setattr.changed");
        self.attr_of_changed_node(node).await
    }

    /// Another client created the file at the same time, as `known_as`, and that file stays: it is changed.
    async fn change_elsewhere(&self, inode: u64, known_as: u64, change: &Change) -> Result<()> {
        self.apply_attr_update(self.client.set_attr(change.request(known_as)).await?);
        self.change_here(inode, change);
        Ok(())
    }

    /// Changes the cached attributes only: no other client can see the file.
    fn change_here(&self, inode: u64, change: &Change) {
        if let Some(mut known) = self.inodes.get(inode) {
            change.apply(&mut known.attr);
            self.apply_attr_update(known.attr);
        }
    }

    async fn change_attributes(self: &Arc<Self>, inode: u64, change: &Change) -> Result<()> {
        let Some(mut guard) = self.staging.lock_if_staged(inode).await else {
            let attr = self.client.set_attr(change.request(inode)).await?;
            self.apply_attr_update(attr);
            return Ok(());
        };
        if guard.is_unlinked() {
            self.change_here(inode, change);
            return Ok(());
        }
        if change.mtime_ns.is_some() {
            // Storing sets a time as well; the requested time is set last.
            self.store(&mut guard).await?;
        }
        let attr = self.client.set_attr(change.request(inode)).await?;
        self.rebase(&mut guard, attr, 1);
        Ok(())
    }

    /// Applies attributes after a change of this client that left the content as it is, but may have given the version
    /// another token. The change itself raises the version by `steps`; after a larger step the content may be that of
    /// another client.
    pub(super) fn rebase(&self, guard: &mut WriteGuard, attr: Attr, steps: u64) {
        let base = guard.base();
        if attr.inode != base.inode {
            // The name belongs to another file by now, which was changed instead.
            return self.apply_attr_update(attr);
        }
        let alone = attr.version_token == base.version_token || attr.version <= base.version + steps;
        if alone && attr.size == base.size {
            self.renewed(guard, attr.clone());
            guard.rebase(attr);
        } else {
            self.apply_attr_update(attr);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_length_alone_changes_no_attributes() {
        let length = Change { length: Some(3), ..Change::default() };
        assert!(!length.is_of_attributes() && !Change::default().is_of_attributes());
        let mode = Change { mode: Some(0o600), ..length };
        assert!(mode.is_of_attributes());
        let request = mode.request(7);
        assert_eq!((request.mode, request.size, request.mtime_ns), (Some(0o600), None, None));
        let mut attr = Attr { mode: 0o644, uid: 5, size: 9, ..Attr::default() };
        mode.apply(&mut attr);
        assert_eq!((attr.mode, attr.uid, attr.size), (0o600, 5, 9));
    }
}
