//! What was read from an under-storage becomes part of the tree.
//!
//! A listing is older than the entry that brings it. It carries the log index that was applied when it began, and
//! whatever is younger than that is left alone: a name made since is not removed or changed, and a name that vanished
//! since, which left a tombstone, is not brought back.

use std::collections::VecDeque;

use bytes::Bytes;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::store::v1::{DentryRow, InodeRow, LoadEntries, Loaded, UfsEntry};
use jindofs_proto::v1::FileType;

use super::context::Ctx;
use super::fault::{Step, refuse};
use super::{Refusal, StoreError, Table, keys, namespace, resolve, rows};
use crate::types::{LIST_PAGE_MAX, PATH_MAX, check_name};

/// Most names one command removes; with more, it says so and is proposed again.
pub(super) const REMOVALS_MAX: usize = 4096;
/// Rows read at a time.
const CHUNK: usize = 1000;

/// Takes in a page of a listing, or the results of single stats.
///
/// *Errors*: `NotFound` when the directory or the mount is gone; `InvalidArgument` for entries no directory can hold.
pub(super) fn load_entries(ctx: &mut Ctx<'_>, request: &LoadEntries) -> Step<Answer> {
    check(request)?;
    let row = resolve::directory(ctx.view(), request.directory)?;
    if row.mount_id == 0 || row.mount_id != request.mount_id || rows::mount(ctx.view(), row.mount_id)?.is_none() {
        return refuse(Refusal::NotOfMount { directory: request.directory, mount: request.mount_id.into() });
    }
    namespace::still_there(ctx, request.directory, &row)?;
    let mut load = Load {
        directory: request.directory,
        content: rows::content_of(request.directory, &row),
        before: row.clone(),
        row,
        start: request.sync_start_index,
        loaded: Loaded::default(),
    };
    if request.point {
        load.point(ctx, request)?;
    } else {
        load.page(ctx, request)?;
    }
    if load.row != load.before {
        rows::put_inode(ctx.txn, load.directory, &load.row);
    }
    Ok(Answer::Loaded(load.loaded))
}

fn check(request: &LoadEntries) -> Step {
    if request.entries.len() + request.absent.len() > LIST_PAGE_MAX {
        return refuse(Refusal::PageTooLong { most: LIST_PAGE_MAX as u64 });
    }
    for name in request.entries.iter().map(|entry| &entry.name).chain(&request.absent) {
        check_name(name)?;
    }
    if request.entries.iter().any(|entry| {
        entry.r#type() == FileType::Unspecified
            || entry.size > i64::MAX as u64
            || entry.symlink_target.len() >= PATH_MAX
    }) {
        return refuse(Refusal::BadEntry);
    }
    let sorted = request.entries.is_sorted_by(|a, b| a.name < b.name);
    let after = request.point || request.entries.first().is_none_or(|first| first.name > request.after);
    if !sorted || !after {
        return refuse(Refusal::EntriesOutOfOrder);
    }
    Ok(())
}

struct Load {
    directory: u64,
    content: u64,
    before: InodeRow,
    row: InodeRow,
    start: u64,
    loaded: Loaded,
}

impl Load {
    /// The results of single stats: only the names given are judged.
    fn point(&mut self, ctx: &mut Ctx<'_>, request: &LoadEntries) -> Step {
        for entry in &request.entries {
            let there = rows::dentry(ctx.view(), self.content, &entry.name)?;
            self.take(ctx, entry, there)?;
        }
        for name in &request.absent {
            if let Some(there) = rows::entry(ctx.view(), self.content, name)? {
                self.vanish(ctx, name, &there)?;
            }
        }
        Ok(())
    }

    /// A page: every name in its range is judged, those it does not hold included.
    fn page(&mut self, ctx: &mut Ctx<'_>, request: &LoadEntries) -> Step {
        let mut entries: VecDeque<&UfsEntry> = request.entries.iter().collect();
        let last = match request.entries.last() {
            Some(entry) if !request.complete => Some(entry.name.clone()),
            None if !request.complete => return Ok(()),
            _ => None,
        };
        let prefix = keys::id(self.content);
        let mut after = match request.after.is_empty() {
            true => Vec::new(),
            false => keys::dentry(self.content, &request.after),
        };
        'range: loop {
            let chunk = ctx.view().scan(Table::Dentry, &prefix, &after, CHUNK)?;
            let Some((end, _)) = chunk.last() else { break };
            after = end.to_vec();
            for (key, value) in chunk {
                let name = key.slice(8..);
                if last.as_ref().is_some_and(|last| name > *last) {
                    break 'range;
                }
                let there: DentryRow = rows::decode(Table::Dentry, &key, value)?;
                while let Some(entry) = entries.pop_front_if(|entry| entry.name < name) {
                    self.take(ctx, entry, None)?;
                }
                match entries.pop_front_if(|entry| entry.name == name) {
                    Some(entry) => self.take(ctx, entry, Some(there))?,
                    None => self.not_listed(ctx, &name, &there)?,
                }
                if self.loaded.removed as usize >= REMOVALS_MAX {
                    self.loaded.more = true;
                    break 'range;
                }
            }
        }
        for entry in entries {
            // After a cut the names behind it were not looked at.
            let there = if self.loaded.more { rows::dentry(ctx.view(), self.content, &entry.name)? } else { None };
            self.take(ctx, entry, there)?;
        }
        if request.complete && !self.loaded.more {
            self.row.complete = true;
            ctx.count_skipped(&mut self.row, request.skipped);
        }
        Ok(())
    }

    /// True if what was made at `born` is younger than the listing.
    fn younger(&self, born: u64) -> bool {
        born > self.start
    }

    /// Takes one entry in; `there` is what its name has now.
    fn take(&mut self, ctx: &mut Ctx<'_>, entry: &UfsEntry, there: Option<DentryRow>) -> Result<(), StoreError> {
        match there {
            Some(there) if self.younger(there.born_index) => Ok(()),
            Some(there) if there.inode != 0 => {
                let Some(row) = rows::inode(ctx.view(), there.inode)? else {
                    return Err(StoreError(format!("an entry names inode {}, which has no row", there.inode)));
                };
                // What is being changed, or not stored yet, is known better here.
                if self.younger(row.born_index) || row.intent != 0 {
                    return Ok(());
                }
                // Kernels keep the target of a link for as long as they know its inode: a link that leads elsewhere is another
                // one.
                if row.r#type() == entry.r#type() && row.symlink_target == entry.symlink_target {
                    self.refresh(ctx, there.inode, row, entry);
                } else {
                    self.drop_inode(ctx, &there, row);
                    self.add(ctx, entry);
                    self.loaded.changed += 1;
                }
                Ok(())
            }
            _ => {
                self.add(ctx, entry);
                self.loaded.added += 1;
                Ok(())
            }
        }
    }

    fn add(&mut self, ctx: &mut Ctx<'_>, entry: &UfsEntry) {
        let id = ctx.new_inode();
        let mut row = InodeRow {
            nlink: if entry.r#type() == FileType::Directory { 2 } else { 1 },
            parent: self.directory,
            mount_id: self.row.mount_id,
            name: entry.name.clone(),
            version: 1,
            prefix_since: 1,
            ctime_ns: ctx.now,
            born_index: ctx.index,
            ..InodeRow::default()
        };
        row.set_type(entry.r#type());
        fill(&mut row, entry);
        ctx.count(&row, 1);
        rows::put_inode(ctx.txn, id, &row);
        namespace::link(ctx, &keys::dentry(self.content, &entry.name), id, entry.r#type());
        self.row.entries += 1;
        self.row.version += 1;
        if rows::is_dir(&row) {
            self.row.nlink = self.row.nlink.saturating_add(1);
        }
    }

    /// Brings an inode up to date.
    fn refresh(&mut self, ctx: &mut Ctx<'_>, id: u64, row: InodeRow, entry: &UfsEntry) {
        let mut fresh = row.clone();
        fill(&mut fresh, entry);
        if fresh == row {
            return;
        }
        ctx.count(&row, -1);
        (fresh.ctime_ns, fresh.born_index) = (ctx.now, ctx.index);
        // That of a directory counts changes of names: whoever knows all of them must be able to tell that these are still all.
        fresh.version += u64::from(!rows::is_dir(&fresh));
        if fresh.version_token != row.version_token {
            fresh.prefix_since = fresh.version;
        }
        ctx.count(&fresh, 1);
        rows::put_inode(ctx.txn, id, &fresh);
        self.loaded.changed += 1;
    }

    /// A name in the range of a page that the under-storage does not have.
    fn not_listed(&mut self, ctx: &mut Ctx<'_>, name: &Bytes, there: &DentryRow) -> Result<(), StoreError> {
        if there.inode != 0 {
            return self.vanish(ctx, name, there);
        }
        // A tombstone has done its work once a younger listing agrees.
        if !self.younger(there.born_index) {
            ctx.txn.delete(Table::Dentry, &keys::dentry(self.content, name));
        }
        Ok(())
    }

    /// Removes a name that is gone in the under-storage; a tombstone keeps older listings from bringing it back.
    fn vanish(&mut self, ctx: &mut Ctx<'_>, name: &[u8], there: &DentryRow) -> Result<(), StoreError> {
        let Some(row) = rows::inode(ctx.view(), there.inode)? else {
            return Err(StoreError(format!("an entry names inode {}, which has no row", there.inode)));
        };
        if self.younger(there.born_index) || self.younger(row.born_index) || row.intent != 0 {
            return Ok(());
        }
        self.drop_inode(ctx, there, row);
        let tombstone = DentryRow { inode: 0, r#type: there.r#type, born_index: ctx.index };
        rows::write(ctx.txn, Table::Dentry, &keys::dentry(self.content, name), &tombstone);
        self.loaded.removed += 1;
        Ok(())
    }

    fn drop_inode(&mut self, ctx: &mut Ctx<'_>, there: &DentryRow, row: InodeRow) {
        self.row.entries = self.row.entries.saturating_sub(1);
        self.row.version += 1;
        if rows::is_dir(&row) {
            self.row.nlink = self.row.nlink.saturating_sub(1);
            namespace::detach(ctx, there.inode, row);
        } else {
            ctx.drop_inode(there.inode);
            ctx.count(&row, -1);
        }
    }
}

/// Copies what the under-storage says into a row.
fn fill(row: &mut InodeRow, entry: &UfsEntry) {
    if !row.own_attr {
        (row.mode, row.uid, row.gid) = (entry.mode & 0o7777, entry.uid, entry.gid);
    }
    // A time that was set here holds for the content it was set for.
    if !row.own_attr || row.version_token != entry.version_token {
        row.mtime_ns = entry.mtime_ns;
    }
    row.size = if entry.r#type() == FileType::Directory { 0 } else { entry.size };
    row.version_token = entry.version_token.clone();
    row.symlink_target = entry.symlink_target.clone();
}
