//! Changes of the tree, one file per command. Every command first checks, then writes: a refused one has changed nothing.
//!
//! Below a mount a command that has passed its checks is recorded as an intent, and run again when the under-storage has
//! made the change (see `intent`).

mod batch;
mod create;
mod mkdir;
mod rename;
mod rmdir;
mod set_attr;
mod symlink;
mod unlink;

pub(super) use batch::batch;
pub(super) use create::create;
pub(super) use mkdir::{make_mount_point, mkdir};
pub(super) use rename::rename;
pub(super) use rmdir::rmdir;
pub(super) use set_attr::set_attr;
pub(super) use symlink::symlink;
pub(super) use unlink::unlink;

use bytes::Bytes;
use jindofs_proto::store::v1::{DentryRow, InodeRow};
use jindofs_proto::v1::{FileType, Target, target};

use super::context::Ctx;
use super::fault::{Step, refuse};
use super::resolve::{self, Place};
use super::{Refusal, Table, View, intent, rows};
use crate::types::NsPath;

/// Permission bits that are kept.
pub(super) const MODE_BITS: u32 = 0o7777;
/// Largest file, bytes: what a signed file offset can name.
const SIZE_MAX: u64 = i64::MAX as u64;

/// The slot of `target` in a directory that may be changed.
fn place(ctx: &Ctx<'_>, target: Option<&Target>) -> Step<Place> {
    let (mount_id, place) = resolve::slot(ctx.view(), target)?;
    resolve::writable(ctx.view(), mount_id)?;
    let place = place?;
    if names_directory_by_inode(target) {
        still_there(ctx, place.parent, &place.row)?;
    }
    Ok(place)
}

fn names_directory_by_inode(target: Option<&Target>) -> bool {
    !matches!(target.and_then(|target| target.target.as_ref()), Some(target::Target::Path(_)))
}

/// Refuses an inode in a tree that was removed and only waits for its purge. Free while no purge is pending.
pub(super) fn still_there(ctx: &Ctx<'_>, id: u64, row: &InodeRow) -> Step {
    if ctx.gc_pending() && resolve::ancestry(ctx.view(), id, row)?.is_none() {
        return refuse(Refusal::InodeRemoved { inode: id });
    }
    Ok(())
}

/// The row of an inode that an entry names: its absence is damage.
fn row_of(view: &dyn View, entry: &DentryRow) -> Step<InodeRow> {
    match rows::inode(view, entry.inode)? {
        Some(row) => Ok(row),
        None => Err(super::StoreError(format!("an entry names inode {}, which has no row", entry.inode)).into()),
    }
}

/// A row of a new inode in the directory of `place`.
fn new_row(ctx: &Ctx<'_>, place: &Place, kind: FileType, mode: u32, uid: u32, gid: u32) -> InodeRow {
    let mut row = InodeRow {
        mode: mode & MODE_BITS,
        uid,
        gid,
        mtime_ns: ctx.now,
        ctime_ns: ctx.now,
        nlink: if kind == FileType::Directory { 2 } else { 1 },
        mount_id: place.row.mount_id,
        version: 1,
        prefix_since: 1,
        born_index: ctx.index,
        ..InodeRow::default()
    };
    row.set_type(kind);
    row
}

/// Makes `row` a new inode at the empty `place`; returns its number and row.
pub(super) fn insert(ctx: &mut Ctx<'_>, place: Place, row: InodeRow) -> (u64, InodeRow) {
    let id = ctx.new_inode();
    (id, insert_as(ctx, id, place, row))
}

/// As [`insert`], with a number that was given already.
fn insert_as(ctx: &mut Ctx<'_>, id: u64, mut place: Place, mut row: InodeRow) -> InodeRow {
    row.parent = place.parent;
    row.name = place.name.clone();
    ctx.count(&row, 1);
    link(ctx, &place.key(), id, row.r#type());
    rows::put_inode(ctx.txn, id, &row);
    entered(ctx, &mut place.row, &row);
    rows::put_inode(ctx.txn, place.parent, &place.row);
    row
}

/// Writes the entry `key` for inode `id`.
pub(super) fn link(ctx: &mut Ctx<'_>, key: &[u8], id: u64, kind: FileType) {
    let entry = DentryRow { inode: id, r#type: kind.into(), born_index: ctx.index };
    rows::write(ctx.txn, Table::Dentry, key, &entry);
}

/// Notes in a directory's row that `child` came.
pub(super) fn entered(ctx: &Ctx<'_>, directory: &mut InodeRow, child: &InodeRow) {
    directory.entries += 1;
    if rows::is_dir(child) {
        directory.nlink = directory.nlink.saturating_add(1);
    }
    touched(ctx, directory);
}

/// Notes in a directory's row that `child` went.
pub(super) fn left(ctx: &Ctx<'_>, directory: &mut InodeRow, child: &InodeRow) {
    directory.entries = directory.entries.saturating_sub(1);
    if rows::is_dir(child) {
        directory.nlink = directory.nlink.saturating_sub(1);
    }
    touched(ctx, directory);
}

fn touched(ctx: &Ctx<'_>, row: &mut InodeRow) {
    row.mtime_ns = ctx.now;
    row.ctime_ns = ctx.now;
    row.version += 1;
}

/// Takes the entry at `place` out of its directory; its inode (`id`, `row`) is freed.
pub(super) fn remove(ctx: &mut Ctx<'_>, mut place: Place, id: u64, row: InodeRow) {
    unlink_name(ctx, &place);
    left(ctx, &mut place.row, &row);
    rows::put_inode(ctx.txn, place.parent, &place.row);
    free(ctx, id, row);
}

/// Takes a name away; below a mount no listing that began earlier may bring it back.
fn unlink_name(ctx: &mut Ctx<'_>, place: &Place) {
    match place.row.mount_id {
        0 => ctx.txn.delete(Table::Dentry, &place.key()),
        _ => intent::bury(ctx, &place.key()),
    }
}

/// Frees an inode that has no name any more. A directory of a mount may hold tombstones, which purges take away.
fn free(ctx: &mut Ctx<'_>, id: u64, row: InodeRow) {
    if rows::is_dir(&row) && row.mount_id != 0 {
        return detach(ctx, id, row);
    }
    ctx.drop_inode(id);
    ctx.count(&row, -1);
}

/// Cuts the tree at `id` loose: nothing in it leads to the root any more. Purges free it.
pub(super) fn detach(ctx: &mut Ctx<'_>, id: u64, mut row: InodeRow) {
    row.parent = 0;
    row.nlink = 0;
    rows::put_inode(ctx.txn, id, &row);
    ctx.discard(id);
}

/// Refuses a mount root: the directory belongs to the mount, its entry to the tree outside.
fn not_a_mount_root(place: &Place, row: &InodeRow) -> Step {
    if row.mount_id == place.row.mount_id {
        return Ok(());
    }
    refuse(Refusal::MountPoint { name: place.name.clone() })
}

/// Refuses to move or remove a directory that has a mount somewhere below.
fn no_mount_below(view: &dyn View, id: u64, row: &InodeRow) -> Step {
    let mounts = rows::mounts(view)?;
    if mounts.is_empty() {
        return Ok(());
    }
    let Some(chain) = resolve::ancestry(view, id, row)? else { return Ok(()) };
    let names: Vec<Bytes> = chain.into_iter().rev().map(|(_, name)| name).collect();
    for mount in mounts {
        let path = NsPath::parse(&mount.path)?;
        if path.names().take(names.len()).eq(names.iter().map(|name| &name[..])) {
            return refuse(Refusal::MountBelow { path: mount.path.clone() });
        }
    }
    Ok(())
}
