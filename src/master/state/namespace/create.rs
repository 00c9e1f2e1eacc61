//! An empty file.

use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::v1::{CreateRequest, FileType};

use super::{insert_as, new_row, place, row_of};
use crate::master::state::context::Ctx;
use crate::master::state::fault::{Step, refuse};
use crate::master::state::reserved::{NumberState, mark_used, state_of};
use crate::master::state::resolve::is_root;
use crate::master::state::{Refusal, content, rows};

/// Creates a file; without `exclusive` an existing file is returned as it is. Below a mount it is here at once, and in the
/// under-storage when its client has stored it.
pub(crate) fn create(ctx: &mut Ctx<'_>, request: &CreateRequest) -> Step<Answer> {
    if is_root(request.target.as_ref()) {
        return refuse(Refusal::RootIsNoFile);
    }
    let place = place(ctx, request.target.as_ref())?;
    if let Some(entry) = place.entry {
        let name = place.name;
        return match entry.r#type() {
            FileType::File if !request.exclusive => {
                let row = row_of(ctx.view(), &entry)?;
                content::made_too(ctx, &row)?;
                Ok(Answer::Attr(rows::attr(entry.inode, &row)))
            }
            FileType::Directory if !request.exclusive => refuse(Refusal::NameIsADirectory { name }),
            _ => refuse(Refusal::NameExists { name }),
        };
    }
    let mut row = new_row(ctx, &place, FileType::File, request.mode, request.uid, request.gid);
    let id = number(ctx, request.inode)?;
    if place.row.mount_id != 0 {
        content::made(ctx, id, &mut row, request)?;
    }
    if ctx.batched {
        ctx.grown.insert(place.parent);
    }
    // After everything that may refuse: a refused command has changed nothing.
    mark_used(&mut ctx.reserved, id);
    let row = insert_as(ctx, id, place, row);
    Ok(Answer::Attr(rows::attr(id, &row)))
}

/// The number of a new inode: the one that was asked for, or the next.
fn number(ctx: &mut Ctx<'_>, asked: u64) -> Step<u64> {
    if asked == 0 {
        return Ok(ctx.new_inode());
    }
    match state_of(&ctx.reserved, asked) {
        NumberState::Unused => {}
        NumberState::Used => return refuse(Refusal::InodeNumberUsed { number: asked }),
        // The session it was reserved for has ended, and what it has begun with it.
        NumberState::NotReserved => return refuse(Refusal::InodeNumberNotReserved { number: asked }),
    }
    if rows::inode(ctx.view(), asked)?.is_some() {
        return refuse(Refusal::InodeNumberInUse { number: asked });
    }
    Ok(asked)
}
