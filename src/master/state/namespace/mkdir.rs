//! Directories.

use jindofs_proto::store::v1::command::Command as Body;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::v1::{Attr, FileType, MkdirRequest, target};

use super::{insert, new_row, place};
use crate::master::state::context::Ctx;
use crate::master::state::fault::{Step, refuse};
use crate::master::state::intent::{self, Hold};
use crate::master::state::resolve::{self, Place, Reach, is_root};
use crate::master::state::{Refusal, rows};
use crate::types::{NsPath, ROOT_INODE};

/// Makes a directory; with `parents` also those above it, and one that exists is no error.
pub(crate) fn mkdir(ctx: &mut Ctx<'_>, request: &MkdirRequest) -> Step<Answer> {
    if request.parents {
        return make_all(ctx, request).map(Answer::Attr);
    }
    if is_root(request.target.as_ref()) {
        return refuse(Refusal::RootExists);
    }
    let place = place(ctx, request.target.as_ref())?;
    if place.entry.is_some() {
        return refuse(Refusal::NameExists { name: place.name });
    }
    if intent::is_due(ctx, place.row.mount_id) {
        return intent::begin(ctx, Body::Mkdir(request.clone()), &[Hold::Name(&place)]);
    }
    Ok(Answer::Attr(make(ctx, place, request)))
}

fn make(ctx: &mut Ctx<'_>, place: Place, request: &MkdirRequest) -> Attr {
    let mut row = new_row(ctx, &place, FileType::Directory, request.mode, request.uid, request.gid);
    intent::adopt(ctx, &mut row);
    // Nothing is in it yet, and whatever comes is known.
    row.complete = row.mount_id != 0;
    let (id, row) = insert(ctx, place, row);
    rows::attr(id, &row)
}

fn make_all(ctx: &mut Ctx<'_>, request: &MkdirRequest) -> Step<Attr> {
    let id = match resolve::reach(ctx.view(), request.target.as_ref())? {
        Reach::Inode(id) => id,
        Reach::Missing { last: true, .. } => {
            let place = place(ctx, request.target.as_ref())?;
            outside_mounts(place.row.mount_id)?;
            return Ok(make(ctx, place, request));
        }
        Reach::Missing { directory, .. } => return make_path(ctx, directory, request),
    };
    match rows::inode(ctx.view(), id)? {
        Some(row) if rows::is_dir(&row) => Ok(rows::attr(id, &row)),
        _ => refuse(Refusal::PathIsNoDirectory),
    }
}

/// Makes everything that a path has below `deepest`, the last directory on it that exists. Only the first step can be
/// refused: below a new directory nothing exists.
fn make_path(ctx: &mut Ctx<'_>, deepest: u64, request: &MkdirRequest) -> Step<Attr> {
    let path = match request.target.as_ref().and_then(|target| target.target.as_ref()) {
        Some(target::Target::Path(path)) => NsPath::parse(path)?,
        _ => return refuse(Refusal::ParentsWithoutPath),
    };
    let mut parent = deepest;
    let mut row = resolve::directory(ctx.view(), deepest)?;
    outside_mounts(row.mount_id)?;
    let present = depth_of(ctx, deepest, &path)?;
    let mut made = rows::attr(parent, &row);
    for name in path.names().skip(present) {
        let place = Place { parent, row, name: bytes::Bytes::copy_from_slice(name), entry: None };
        made = make(ctx, place, request);
        parent = made.inode;
        row = resolve::directory(ctx.view(), parent)?;
    }
    Ok(made)
}

/// Each directory below a mount is one change of the under-storage.
fn outside_mounts(mount_id: u32) -> Step {
    match mount_id {
        0 => Ok(()),
        _ => refuse(Refusal::ParentsBelowMount),
    }
}

/// How many names of `path` lead to `directory`, which lies on it.
fn depth_of(ctx: &Ctx<'_>, directory: u64, path: &NsPath) -> Step<usize> {
    let mut at = ROOT_INODE;
    for (depth, name) in path.names().enumerate() {
        if at == directory {
            return Ok(depth);
        }
        let content = rows::content(ctx.view(), at)?;
        at = rows::entry(ctx.view(), content, name)?.map_or(0, |entry| entry.inode);
    }
    Ok(path.names().count())
}

/// As `mkdir -p`, for mount points: the directory's inode.
pub(crate) fn make_mount_point(ctx: &mut Ctx<'_>, path: &NsPath) -> Step<u64> {
    let target = target::Target::Path(bytes::Bytes::copy_from_slice(path.as_bytes()));
    let request = MkdirRequest {
        target: Some(jindofs_proto::v1::Target { target: Some(target) }),
        mode: 0o755,
        parents: true,
        ..MkdirRequest::default()
    };
    Ok(make_all(ctx, &request)?.inode)
}
