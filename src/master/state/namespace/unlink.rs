//! Removal of files and symlinks.

use jindofs_proto::store::v1::command::Command as Body;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::v1::UnlinkRequest;

use super::{place, remove, row_of};
use crate::master::state::apply::done;
use crate::master::state::context::Ctx;
use crate::master::state::fault::{Step, refuse};
use crate::master::state::intent::{self, Hold};
use crate::master::state::{Refusal, content, rows};

/// Removes a file or symlink.
pub(crate) fn unlink(ctx: &mut Ctx<'_>, request: &UnlinkRequest) -> Step<Answer> {
    let place = place(ctx, request.target.as_ref())?;
    let entry = place.existing()?;
    let row = row_of(ctx.view(), &entry)?;
    super::not_a_mount_root(&place, &row)?;
    if rows::is_dir(&row) {
        return refuse(Refusal::NameIsADirectory { name: place.name });
    }
    if row.unstored {
        content::unmade(ctx, &row)?;
    } else if intent::is_due(ctx, place.row.mount_id) {
        return intent::begin(ctx, Body::Unlink(request.clone()), &[Hold::Inode(entry.inode, &row)]);
    }
    remove(ctx, place, entry.inode, row);
    Ok(done())
}
