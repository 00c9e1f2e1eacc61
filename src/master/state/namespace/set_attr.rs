//! Attributes.

use jindofs_proto::store::v1::InodeRow;
use jindofs_proto::store::v1::command::Command as Body;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::v1::{FileType, SetAttrRequest};

use super::{MODE_BITS, SIZE_MAX, still_there};
use crate::master::state::context::Ctx;
use crate::master::state::fault::{Step, refuse};
use crate::master::state::intent::{self, Hold};
use crate::master::state::resolve::{self, Reach};
use crate::master::state::{Refusal, rows};

/// Changes the attributes that are given.
pub(crate) fn set_attr(ctx: &mut Ctx<'_>, request: &SetAttrRequest) -> Step<Answer> {
    let id = match resolve::reach(ctx.view(), request.target.as_ref())? {
        Reach::Inode(id) => id,
        Reach::Missing { directory, name, .. } => {
            let mount_id = rows::inode(ctx.view(), directory)?.map_or(0, |row| row.mount_id);
            resolve::writable(ctx.view(), mount_id)?;
            return Err(resolve::missing(&name).into());
        }
    };
    let Some(mut row) = rows::inode(ctx.view(), id)? else { return resolve::no_inode(id) };
    resolve::writable(ctx.view(), row.mount_id)?;
    still_there(ctx, id, &row)?;
    if let Some(size) = request.size {
        check_size(&row, size)?;
    }
    if !row.unstored && intent::is_due(ctx, row.mount_id) {
        return intent::begin(ctx, Body::SetAttr(request.clone()), &[Hold::Inode(id, &row)]);
    }
    change(ctx, &mut row, request);
    intent::adopt(ctx, &mut row);
    rows::put_inode(ctx.txn, id, &row);
    Ok(Answer::Attr(rows::attr(id, &row)))
}

fn check_size(row: &InodeRow, size: u64) -> Step {
    match row.r#type() {
        _ if row.mount_id != 0 => refuse(Refusal::SizeBelowMount),
        FileType::Directory => refuse(Refusal::SizeOfDirectory),
        FileType::File if size <= SIZE_MAX => Ok(()),
        FileType::File => refuse(Refusal::SizeTooLarge { size, most: SIZE_MAX }),
        _ => refuse(Refusal::SizeOfNoFile),
    }
}

fn change(ctx: &mut Ctx<'_>, row: &mut InodeRow, request: &SetAttrRequest) {
    if let Some(size) = request.size {
        ctx.count(row, -1);
        row.size = size;
        row.mtime_ns = ctx.now;
        ctx.count(row, 1);
    }
    row.mode = request.mode.map_or(row.mode, |mode| mode & MODE_BITS);
    row.uid = request.uid.unwrap_or(row.uid);
    row.gid = request.gid.unwrap_or(row.gid);
    row.mtime_ns = request.mtime_ns.unwrap_or(row.mtime_ns);
    row.ctime_ns = ctx.now;
    row.version += 1;
}
