//! One intent in the under-storage. Every step may be repeated: found done, it is done.

use jindofs_proto::store::v1::{FinishIntent, Leftover};
use jindofs_proto::v1::Mount;

use crate::error::{Error, ErrorKind, Result};
use crate::master::metadata::convert;
use crate::master::state::plan::{Plan, Work};
use crate::master::state::refusal::said;
use crate::ufs::{AttrChange, Entry, Expected, NewAttr, Ufs};

/// Does what a plan says. A definite refusal is part of the result.
///
/// *Errors*: trouble that passes: to be tried again.
pub(super) async fn carry_out(storage: &dyn Ufs, id: u64, plan: &Plan) -> Result<FinishIntent> {
    let blank = FinishIntent { id, own_attr: !plan.mount.ufs_uri.starts_with("local://"), ..FinishIntent::default() };
    match work(storage, id, plan).await {
        Ok(Done { entry, leftover }) => Ok(FinishIntent { entry: entry.map(convert), leftover, ..blank }),
        Err(error) if error.is_retryable() => Err(error),
        Err(error) => {
            tracing::info!(intent = id, %error, "a change is refused by the under-storage");
            Ok(FinishIntent { refused: Some(said(error.kind, &error.message)), ..blank })
        }
    }
}

#[derive(Default)]
struct Done {
    entry: Option<Entry>,
    leftover: Option<Leftover>,
}

impl From<Option<Entry>> for Done {
    fn from(entry: Option<Entry>) -> Done {
        Done { entry, leftover: None }
    }
}

async fn work(storage: &dyn Ufs, id: u64, plan: &Plan) -> Result<Done> {
    match &plan.work {
        Work::MakeDirectory { path, request } => {
            let attr = NewAttr { mode: request.mode & 0o7777, uid: request.uid, gid: request.gid };
            Ok(Some(storage.make_directory(path, attr).await?).into())
        }
        Work::MakeSymlink { path, request } => {
            let attr = NewAttr { mode: 0o777, uid: request.uid, gid: request.gid };
            Ok(Some(storage.make_symlink(path, &request.link_target, attr).await?).into())
        }
        Work::Remove { path, token } => storage.remove(path, token).await.map(|()| Done::default()),
        Work::RemoveDirectory { path } => storage.remove_directory(path).await.map(|()| Done::default()),
        Work::Rename { .. } => rename(storage, &plan.mount, &plan.work).await,
        Work::SetAttr { path, .. } if path.is_empty() => {
            Err(Error::new(ErrorKind::Busy, "a mount point: its attributes are those of the under-storage"))
        }
        Work::SetAttr { path, request } => {
            let change =
                AttrChange { mode: request.mode, uid: request.uid, gid: request.gid, mtime_ns: request.mtime_ns };
            Ok(storage.set_attr(path, change).await?.into())
        }
        Work::Look { path } => {
            storage.clean(path, id).await?;
            Ok(storage.stat(path).await?.into())
        }
    }
}

/// In one step, or where there is none as a copy whose source goes afterwards.
async fn rename(storage: &dyn Ufs, mount: &Mount, work: &Work) -> Result<Done> {
    let Work::Rename { from, token, to, replaced, from_key } = work else { return Ok(Done::default()) };
    let expected = replaced.as_ref().map_or(Expected::Absent, |token| Expected::Token(token));
    match storage.rename(from, token, to, expected).await {
        Err(error) if error.kind == ErrorKind::Unsupported => {}
        moved => return Ok(Some(moved?).into()),
    }
    if token.is_empty() {
        let message = "a directory of an object store cannot be renamed: move what is in it";
        return Err(Error::new(ErrorKind::CrossMount, message));
    }
    let copy = storage.copy(from, token, to, expected).await?;
    let leftover = Leftover {
        mount_id: mount.id,
        ufs_path: from.clone().into(),
        version_token: token.clone(),
        dentry_key: from_key.clone().into(),
    };
    Ok(Done { entry: Some(copy), leftover: Some(leftover) })
}
