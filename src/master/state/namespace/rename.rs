//! Rename: one step, whatever it moves or replaces.

use jindofs_proto::store::v1::command::Command as Body;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::store::v1::{DentryRow, InodeRow};
use jindofs_proto::v1::RenameRequest;

use super::{entered, left, link, names_directory_by_inode, no_mount_below, not_a_mount_root, row_of, still_there};
use crate::master::state::context::Ctx;
use crate::master::state::fault::{Step, refuse};
use crate::master::state::intent::{self, Hold};
use crate::master::state::resolve::{self, Place};
use crate::master::state::{Refusal, content, rows};

/// Renames as POSIX says: replaces a file by a file and an empty directory by a directory.
pub(crate) fn rename(ctx: &mut Ctx<'_>, request: &RenameRequest) -> Step<Answer> {
    let (from, mut to) = places(ctx, request)?;
    let entry = from.existing()?;
    let row = row_of(ctx.view(), &entry)?;
    not_a_mount_root(&from, &row)?;
    if request.no_replace && to.entry.is_some() {
        return refuse(Refusal::NameExists { name: to.name });
    }
    if to.entry.is_some_and(|there| there.inode == entry.inode) {
        return Ok(Answer::Attr(rows::attr(entry.inode, &row)));
    }
    if rows::is_dir(&row) {
        not_into_itself(ctx, entry.inode, &to)?;
        no_mount_below(ctx.view(), entry.inode, &row)?;
    }
    let replaced = match to.entry {
        Some(there) => Some((there, replaceable(ctx, &row, &to, &there)?)),
        None => None,
    };
    if row.unstored {
        return refuse(Refusal::NotStoredYet);
    }
    if intent::is_due(ctx, from.row.mount_id) {
        let moved = Hold::Inode(entry.inode, &row);
        if let Some((there, old)) = replaced.as_ref().filter(|(_, old)| old.unstored) {
            // Nothing of it is in the under-storage: it goes as if it was removed, and leaves a name that is free.
            intent::check(ctx, &[moved])?;
            content::unmade(ctx, old)?;
            super::remove(ctx, to.clone(), there.inode, old.clone());
            to.entry = None;
            let holds = [Hold::Inode(entry.inode, &row), Hold::Name(&to)];
            return intent::begin(ctx, Body::Rename(request.clone()), &holds);
        }
        let target = match &replaced {
            Some((there, old)) => Hold::Inode(there.inode, old),
            None => Hold::Name(&to),
        };
        return intent::begin(ctx, Body::Rename(request.clone()), &[moved, target]);
    }
    Ok(Answer::Attr(rows::attr(entry.inode, &relink(ctx, from, to, entry, row, replaced))))
}

/// Both slots, in the same territory, in directories that may be changed.
fn places(ctx: &Ctx<'_>, request: &RenameRequest) -> Step<(Place, Place)> {
    let (from_mount, from) = resolve::slot(ctx.view(), request.from.as_ref())?;
    let (to_mount, to) = resolve::slot(ctx.view(), request.to.as_ref())?;
    if from_mount != to_mount {
        return refuse(Refusal::AcrossMounts);
    }
    resolve::writable(ctx.view(), from_mount)?;
    let (from, to) = (from?, to?);
    for (target, place) in [(&request.from, &from), (&request.to, &to)] {
        if names_directory_by_inode(target.as_ref()) {
            still_there(ctx, place.parent, &place.row)?;
        }
    }
    Ok((from, to))
}

fn not_into_itself(ctx: &Ctx<'_>, moved: u64, to: &Place) -> Step {
    let above = resolve::ancestry(ctx.view(), to.parent, &to.row)?.unwrap_or_default();
    if above.iter().any(|(id, _)| *id == moved) {
        return refuse(Refusal::IntoItself);
    }
    Ok(())
}

/// The row of what is at the new name, if it may be replaced by `row`.
fn replaceable(ctx: &Ctx<'_>, row: &InodeRow, to: &Place, there: &DentryRow) -> Step<InodeRow> {
    let old = row_of(ctx.view(), there)?;
    not_a_mount_root(to, &old)?;
    let name = to.name.clone();
    match (rows::is_dir(row), rows::is_dir(&old)) {
        (true, false) => refuse(Refusal::NameNotADirectory { name }),
        (false, true) => refuse(Refusal::NameIsADirectory { name }),
        (true, true) if old.entries > 0 => refuse(Refusal::NameNotEmpty { name }),
        _ => Ok(old),
    }
}

fn relink(
    ctx: &mut Ctx<'_>,
    mut from: Place,
    mut to: Place,
    entry: DentryRow,
    mut row: InodeRow,
    replaced: Option<(DentryRow, InodeRow)>,
) -> InodeRow {
    super::unlink_name(ctx, &from);
    link(ctx, &to.key(), entry.inode, row.r#type());
    left(ctx, &mut from.row, &row);
    let same_directory = from.parent == to.parent;
    if same_directory {
        to.row = from.row;
    } else {
        rows::put_inode(ctx.txn, from.parent, &from.row);
    }
    if let Some((there, old)) = replaced {
        left(ctx, &mut to.row, &old);
        super::free(ctx, there.inode, old);
    }
    entered(ctx, &mut to.row, &row);
    rows::put_inode(ctx.txn, to.parent, &to.row);
    row.parent = to.parent;
    row.name = to.name;
    row.ctime_ns = ctx.now;
    intent::adopt(ctx, &mut row);
    rows::put_inode(ctx.txn, entry.inode, &row);
    row
}
