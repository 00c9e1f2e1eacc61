//! Symbolic links: stored, never followed.

use jindofs_proto::store::v1::command::Command as Body;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::v1::{FileType, SymlinkRequest};

use super::{insert, new_row, place};
use crate::error::ErrorKind;
use crate::master::state::context::Ctx;
use crate::master::state::fault::{Step, refuse, show};
use crate::master::state::intent::{self, Hold};
use crate::master::state::resolve::is_root;
use crate::master::state::rows;
use crate::types::PATH_MAX;

/// Makes a symlink.
pub(crate) fn symlink(ctx: &mut Ctx<'_>, request: &SymlinkRequest) -> Step<Answer> {
    let to = &request.link_target;
    if to.is_empty() || to.contains(&0) {
        return refuse(ErrorKind::InvalidArgument, "a symlink's target is not empty and holds no NUL");
    }
    if to.len() >= PATH_MAX {
        let message = format!("symlink target of {} bytes: at most {} are allowed", to.len(), PATH_MAX - 1);
        return refuse(ErrorKind::NameTooLong, message);
    }
    if is_root(request.target.as_ref()) {
        return refuse(ErrorKind::AlreadyExists, "the root directory exists");
    }
    let place = place(ctx, request.target.as_ref())?;
    if place.entry.is_some() {
        return refuse(ErrorKind::AlreadyExists, format!("{:?} exists", show(&place.name)));
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
