//! An empty file.

use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::v1::{CreateRequest, FileType};

use super::{insert, new_row, place, row_of};
use crate::error::ErrorKind;
use crate::master::state::context::Ctx;
use crate::master::state::fault::{Step, refuse, show};
use crate::master::state::resolve::is_root;
use crate::master::state::{content, rows};

/// Creates a file; without `exclusive` an existing file is returned as it is. Below a mount it is here at once, and in the
/// under-storage when its client has stored it.
pub(crate) fn create(ctx: &mut Ctx<'_>, request: &CreateRequest) -> Step<Answer> {
    if is_root(request.target.as_ref()) {
        return refuse(ErrorKind::IsADirectory, "the root directory is not a file");
    }
    let place = place(ctx, request.target.as_ref())?;
    if let Some(entry) = place.entry {
        let name = show(&place.name);
        return match entry.r#type() {
            FileType::File if !request.exclusive => {
                Ok(Answer::Attr(rows::attr(entry.inode, &row_of(ctx.view(), &entry)?)))
            }
            FileType::Directory if !request.exclusive => {
                refuse(ErrorKind::IsADirectory, format!("{name:?} is a directory"))
            }
            _ => refuse(ErrorKind::AlreadyExists, format!("{name:?} exists")),
        };
    }
    let mut row = new_row(ctx, &place, FileType::File, request.mode, request.uid, request.gid);
    if place.row.mount_id != 0 {
        if ctx.batched {
            return refuse(
                ErrorKind::Unsupported,
                "a batch changes nothing below a mount: send its operations one by one",
            );
        }
        let inode = ctx.counters.next_inode;
        content::made(ctx, inode, &mut row)?;
    }
    let (id, row) = insert(ctx, place, row);
    Ok(Answer::Attr(rows::attr(id, &row)))
}
