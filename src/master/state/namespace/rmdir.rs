//! Removal of directories. A tree vanishes with one entry; its inodes are freed by bounded purges.

use jindofs_proto::store::v1::command::Command as Body;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::v1::RmdirRequest;

use super::{no_mount_below, not_a_mount_root, place, remove, row_of};
use crate::master::state::apply::done;
use crate::master::state::context::Ctx;
use crate::master::state::fault::{Step, refuse};
use crate::master::state::intent::{self, Hold};
use crate::master::state::{Refusal, Table, rows};

/// Removes a directory; with `recursive` everything below it as well.
pub(crate) fn rmdir(ctx: &mut Ctx<'_>, request: &RmdirRequest) -> Step<Answer> {
    let place = place(ctx, request.target.as_ref())?;
    let entry = place.existing()?;
    let row = row_of(ctx.view(), &entry)?;
    if !rows::is_dir(&row) {
        return refuse(Refusal::NameNotADirectory { name: place.name });
    }
    not_a_mount_root(&place, &row)?;
    if row.entries == 0 {
        if intent::is_due(ctx, place.row.mount_id) {
            return intent::begin(ctx, Body::Rmdir(request.clone()), &[Hold::Inode(entry.inode, &row)]);
        }
        remove(ctx, place, entry.inode, row);
        return Ok(done());
    }
    if request.recursive && place.row.mount_id != 0 {
        return refuse(Refusal::TreeBelowMount);
    }
    if !request.recursive {
        return refuse(Refusal::NameNotEmpty { name: place.name });
    }
    no_mount_below(ctx.view(), entry.inode, &row)?;
    let mut parent = place.row.clone();
    super::left(ctx, &mut parent, &row);
    ctx.txn.delete(Table::Dentry, &place.key());
    super::detach(ctx, entry.inode, row);
    rows::put_inode(ctx.txn, place.parent, &parent);
    Ok(done())
}
