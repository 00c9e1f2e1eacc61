//! Frees removed trees, a bounded number of rows at a time. What a purge frees follows from the state alone.
//!
//! A gc row stands for everything keyed by one directory. Files found there are freed; a directory found there gets a
//! gc row of its own; an empty one goes. So no walk goes deep, and nothing is remembered between purges.

use bytes::Bytes;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::store::v1::{DentryRow, GcRow, InodeRow, Purge, Purged};

use super::context::Ctx;
use super::fault::Step;
use super::{StoreError, Table, keys, rows};

/// Most rows one purge looks at.
pub(super) const PURGE_MAX: usize = 1000;

/// Frees up to `limit` inodes.
pub(super) fn purge(ctx: &mut Ctx<'_>, request: &Purge) -> Step<Answer> {
    let mut left = (request.limit as usize).clamp(1, PURGE_MAX);
    let mut freed = 0;
    while left > 0 && ctx.gc_pending() {
        let key = keys::id(ctx.counters.first_gc);
        let Some(row) = rows::read::<GcRow>(ctx.view(), Table::Gc, &key)? else {
            return Err(StoreError(format!("gc row {} is missing", ctx.counters.first_gc)).into());
        };
        left -= 1;
        let (count, children) = free_some(ctx, &row, left)?;
        freed += count;
        left -= left.min(children.len());
        match children.last() {
            Some(name) => {
                let row = GcRow { root_inode: row.root_inode, after: name.clone() };
                rows::write(ctx.txn, Table::Gc, &key, &row);
            }
            None if left == 0 => break,
            None => {
                freed += free(ctx, row.root_inode)?;
                ctx.txn.delete(Table::Gc, &key);
                ctx.counters.first_gc += 1;
            }
        }
    }
    Ok(Answer::Purged(Purged { freed, more: ctx.gc_pending() }))
}

/// Frees up to `limit` entries after the row's cursor. The cursor spares a walk over what was deleted before. Number of
/// inodes freed, and the names that were looked at.
fn free_some(ctx: &mut Ctx<'_>, row: &GcRow, limit: usize) -> Result<(u32, Vec<Bytes>), StoreError> {
    let prefix = keys::id(row.root_inode);
    let after = if row.after.is_empty() { Vec::new() } else { keys::dentry(row.root_inode, &row.after) };
    let children = ctx.view().scan(Table::Dentry, &prefix, &after, limit)?;
    let (mut freed, mut names) = (0, Vec::with_capacity(children.len()));
    for (key, value) in children {
        let entry: DentryRow = rows::decode(Table::Dentry, &key, value)?;
        ctx.txn.delete(Table::Dentry, &key);
        freed += release(ctx, entry.inode)?;
        names.push(key.slice(8..));
    }
    Ok((freed, names))
}

/// Frees one inode of a removed tree, or queues it when it is a directory with entries. Number of inodes freed.
fn release(ctx: &mut Ctx<'_>, id: u64) -> Result<u32, StoreError> {
    match rows::inode(ctx.view(), id)? {
        Some(row) if rows::is_dir(&row) => {
            // Also an empty directory may hold tombstones.
            ctx.discard(id);
            Ok(0)
        }
        Some(row) => drop_inode(ctx, id, &row),
        None => Ok(0),
    }
}

fn free(ctx: &mut Ctx<'_>, id: u64) -> Result<u32, StoreError> {
    match rows::read::<InodeRow>(ctx.view(), Table::Inode, &keys::id(id))? {
        Some(row) => drop_inode(ctx, id, &row),
        None => Ok(0),
    }
}

fn drop_inode(ctx: &mut Ctx<'_>, id: u64, row: &InodeRow) -> Result<u32, StoreError> {
    ctx.drop_inode(id);
    if row.mount_id == 0 || rows::mount(ctx.view(), row.mount_id)?.is_some() {
        ctx.count(row, -1);
    }
    Ok(1)
}
