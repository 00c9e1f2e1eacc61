//! Symbolic links: stored, never followed.

use jindofs_proto::store::v1::command::Command as Body;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::v1::{FileType, SymlinkRequest};

use super::{insert, new_row, place};
use crate::master::state::context::Ctx;
use crate::master::state::fault::{Step, refuse};
use crate::master::state::intent::{self, Hold};
use crate::master::state::resolve::is_root;
use crate::master::state::{Refusal, rows};
use crate::types::PATH_MAX;

/// Makes a symlink.
pub(crate) fn symlink(ctx: &mut Ctx<'_>, request: &SymlinkRequest) -> Step<Answer> {
    let to = &request.link_target;
    if to.is_empty() || to.contains(&0) {
        return refuse(Refusal::BadLinkTarget);
    }
    if to.len() >= PATH_MAX {
        return refuse(Refusal::LinkTargetTooLong { bytes: to.len() as u64, most: PATH_MAX as u64 - 1 });
    }
    if is_root(request.target.as_ref()) {
        return refuse(Refusal::RootExists);
    }
    let place = place(ctx, request.target.as_ref())?;
    if place.entry.is_some() {
        return refuse(Refusal::NameExists { name: place.name });
    }
    let mut row = new_row(ctx, &place, FileType::Symlink, 0o777, request.uid, request.gid);
    row.size = to.len() as u64;
    row.symlink_target = to.clone();
    if intent::is_due(ctx, place.row.mount_id) {
        return intent::begin(ctx, Body::Symlink(request.clone()), &[Hold::Name(&place)]);
    }
    intent::adopt(ctx, &mut row);
    let (id, row) = insert(ctx, place, row);
    Ok(Answer::Attr(rows::attr(id, &row)))
}
