//! What an intent asks of the under-storage: worked out from the state alone, so that every leader comes to the same.

use bytes::Bytes;
use jindofs_proto::store::v1::command::Command as Body;
use jindofs_proto::store::v1::intent_row::Intent;
use jindofs_proto::store::v1::{Command, IntentRow};
use jindofs_proto::v1::{MkdirRequest, Mount, OpId, RenameRequest, SetAttrRequest, SymlinkRequest, Target};

use super::fault::{Fault, Step, refuse};
use super::resolve::{self, Place, Reach};
use super::{Refusal, View, content, intent, keys, query, rows};
use crate::config::meta_policy::is_read_once;
use crate::error::ErrorKind;

/// Work in the under-storage of one mount.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The mount.
    pub mount: Mount,
    /// What is to be done; paths are below the mount's uri.
    pub work: Work,
    /// What loses a name by it.
    pub leaves: Option<Leaves>,
}

/// A directory below the root of a mount that loses a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaves {
    /// Its inode.
    pub directory: u64,
    /// Where it is.
    pub path: Vec<u8>,
    /// The name is among the entries that are known, until its removal is recorded.
    is_counted: bool,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// A directory comes.
    MakeDirectory {
        /// Where.
        path: Vec<u8>,
        /// With which owner and mode.
        request: MkdirRequest,
    },
    /// A symbolic link comes.
    MakeSymlink {
        /// Where.
        path: Vec<u8>,
        /// Where it leads, and its owner.
        request: SymlinkRequest,
    },
    /// A file or link goes.
    Remove {
        /// Which.
        path: Vec<u8>,
        /// Its version; empty for a link.
        token: Bytes,
    },
    /// An empty directory goes.
    RemoveDirectory {
        /// Which.
        path: Vec<u8>,
    },
    /// Something moves.
    Rename {
        /// From here.
        from: Vec<u8>,
        /// Its version; empty for what is no file.
        token: Bytes,
        /// To there.
        to: Vec<u8>,
        /// Version of what is there; `None` for nothing.
        replaced: Option<Bytes>,
        /// Key of the entry that it had.
        from_key: Vec<u8>,
    },
    /// Attributes change.
    SetAttr {
        /// Of what.
        path: Vec<u8>,
        /// Which.
        request: SetAttrRequest,
    },
    /// A client was storing content, and nobody knows how it ended.
    Look {
        /// Where.
        path: Vec<u8>,
    },
}

/// Who has an intent, and what has to happen with it.
#[derive(Debug, Clone, PartialEq)]
pub enum Due {
    /// There is no such intent any more.
    Ended,
    /// Its client is at work.
    Client,
    /// It is to be forgotten: what it is about is gone, or was never stored.
    Forgotten,
    /// The leader has to do it.
    Leader(Box<Plan>),
}

/// What is to be done about an intent.
///
/// *Errors*: `Internal` when the state is damaged.
pub fn due(view: &dyn View, id: u64) -> Step<Due> {
    let Some(row) = intent::get(view, id)? else { return Ok(Due::Ended) };
    let lives = match &row.op {
        Some(op) => query::session_exists(view, &op.client_id)?,
        None => false,
    };
    let planned = match &row.intent {
        Some(Intent::Change(change)) => of_change(view, change),
        Some(Intent::Made(_)) if lives || content::has_other_maker(view, &row)? => return Ok(Due::Client),
        Some(Intent::Write(_)) if lives && !given_up(&row) => return Ok(Due::Client),
        Some(Intent::Made(_)) | None => return Ok(Due::Forgotten),
        Some(Intent::Write(write)) => of_path(view, write.inode, |path| Work::Look { path }),
        Some(Intent::Leftover(leftover)) => {
            let path = leftover.ufs_path.to_vec();
            // Below the root of a mount entries are kept by the inode of their directory.
            let directory = leftover.dentry_key.get(..8).map_or(0, keys::id_of);
            let leaves = leaves(directory, &path, false);
            let work = Work::Remove { path, token: leftover.version_token.clone() };
            let mount = rows::mount(view, leftover.mount_id)?;
            mount.map(|mount| Plan { mount, work, leaves }).ok_or(Refusal::MountRemoved.into())
        }
    };
    match planned {
        Ok(plan) => Ok(Due::Leader(Box::new(plan))),
        // The mount or the tree was removed with everything in it.
        Err(Fault::Refused(why)) if matches!(why.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(Due::Forgotten)
        }
        Err(fault) => Err(fault),
    }
}

/// The directory that loses the name at `path`; none for the root of a mount, which is there by itself.
fn leaves(directory: u64, path: &[u8], is_counted: bool) -> Option<Leaves> {
    let end = path.iter().rposition(|byte| *byte == b'/')?;
    Some(Leaves { directory, path: path.get(..end)?.to_vec(), is_counted })
}

/// True if nothing that is known stays in a directory once `leaving` names are gone from it.
///
/// *Errors*: `Internal` when the state is damaged.
pub fn may_be_emptied(view: &dyn View, from: &Leaves, leaving: usize) -> Step<bool> {
    let Some(row) = rows::inode(view, from.directory)? else { return Ok(false) };
    let going = leaving.saturating_sub(usize::from(!from.is_counted));
    Ok(row.entries <= going as u64)
}

fn given_up(row: &IntentRow) -> bool {
    matches!(&row.intent, Some(Intent::Write(write)) if write.given_up)
}

/// Keys that stand for what an intent changes: nobody else may change the same at the same time.
pub fn locks(view: &dyn View, row: &IntentRow) -> Step<Vec<Bytes>> {
    let mut locks: Vec<Bytes> = row.names.iter().map(|name| name.dentry_key.clone()).collect();
    for inode in &row.inodes {
        locks.extend(locks_of(view, *inode)?);
    }
    if let Some(Intent::Leftover(leftover)) = &row.intent {
        locks.push(leftover.dentry_key.clone());
    }
    Ok(locks)
}

/// Keys of an inode and of its name.
fn locks_of(view: &dyn View, inode: u64) -> Step<Vec<Bytes>> {
    let mut locks = vec![inode_lock(inode)];
    if let Some(row) = rows::inode(view, inode)? {
        let content = rows::content(view, row.parent)?;
        locks.push(keys::dentry(content, &row.name).into());
    }
    Ok(locks)
}

fn inode_lock(inode: u64) -> Bytes {
    Bytes::copy_from_slice(&keys::id(inode))
}

/// A change below a mount, before it begins.
#[derive(Debug, Clone, PartialEq)]
pub struct Scope {
    /// The mount it is in.
    pub mount_id: u32,
    /// What it changes, as in [`locks`].
    pub locks: Vec<Bytes>,
    /// Inodes it changes.
    pub inodes: Vec<u64>,
    /// True if paths of other things change with it.
    pub moves_paths: bool,
}

/// True if a client's command may change something below a mount.
pub fn is_below_mount(view: &dyn View, body: &Body) -> bool {
    let slot =
        |target: &Option<Target>| matches!(resolve::slot(view, target.as_ref()), Ok((mount_id, _)) if mount_id != 0);
    let inode = |id: u64| rows::inode(view, id).is_ok_and(|row| row.is_some_and(|row| row.mount_id != 0));
    match body {
        Body::Create(request) => slot(&request.target),
        Body::Mkdir(request) => slot(&request.target),
        Body::Symlink(request) => slot(&request.target),
        Body::Unlink(request) => slot(&request.target),
        Body::Rmdir(request) => slot(&request.target),
        Body::Rename(request) => slot(&request.from) || slot(&request.to),
        Body::SetAttr(request) => match resolve::reach(view, request.target.as_ref()) {
            Ok(Reach::Inode(id)) => inode(id),
            Ok(Reach::Missing { directory, .. }) => inode(directory),
            Err(_) => false,
        },
        Body::BeginWrite(request) => inode(request.inode),
        _ => false,
    }
}

/// True if everything that the rules must know of a target is known here already, whatever its under-storage holds.
pub fn is_known(view: &dyn View, target: &Target) -> bool {
    let Ok((mount_id, Ok(place))) = resolve::slot(view, Some(target)) else { return false };
    let mount = rows::mount(view, mount_id).ok().flatten();
    place.row.complete && mount.is_some_and(|mount| is_read_once(&mount))
}

/// What a client's command changes below a mount that can be written; `None` for one that changes nothing there, or will
/// be refused.
///
/// *Errors*: `Internal` when the state is damaged.
pub fn scope(view: &dyn View, body: &Body) -> Step<Option<Scope>> {
    let targets: Vec<Option<&Target>> = match body {
        Body::Create(request) => vec![request.target.as_ref()],
        Body::Mkdir(request) => vec![request.target.as_ref()],
        Body::Symlink(request) => vec![request.target.as_ref()],
        Body::Unlink(request) => vec![request.target.as_ref()],
        Body::Rmdir(request) => vec![request.target.as_ref()],
        Body::Rename(request) => vec![request.from.as_ref(), request.to.as_ref()],
        Body::SetAttr(request) => return of_reach(view, request.target.as_ref()),
        Body::BeginWrite(request) => return of_inode(view, request.inode),
        _ => return Ok(None),
    };
    let mut scope = Scope { mount_id: 0, locks: Vec::new(), inodes: Vec::new(), moves_paths: false };
    for target in targets {
        let Ok((mount_id, Ok(place))) = resolve::slot(view, target) else { return Ok(None) };
        scope.mount_id = mount_id;
        scope.locks.push(place.key().into());
        if let Some(entry) = place.entry {
            scope.locks.push(inode_lock(entry.inode));
            scope.inodes.push(entry.inode);
            let directory = entry.r#type() == jindofs_proto::v1::FileType::Directory;
            scope.moves_paths |= directory && matches!(body, Body::Rename(_) | Body::Rmdir(_));
        }
    }
    Ok(writable(view, scope))
}

fn writable(view: &dyn View, scope: Scope) -> Option<Scope> {
    (scope.mount_id != 0 && resolve::writable(view, scope.mount_id).is_ok()).then_some(scope)
}

fn of_reach(view: &dyn View, target: Option<&Target>) -> Step<Option<Scope>> {
    match resolve::reach(view, target) {
        Ok(Reach::Inode(inode)) => of_inode(view, inode),
        _ => Ok(None),
    }
}

fn of_inode(view: &dyn View, inode: u64) -> Step<Option<Scope>> {
    let Some(row) = rows::inode(view, inode)? else { return Ok(None) };
    let locks = locks_of(view, inode)?;
    Ok(writable(view, Scope { mount_id: row.mount_id, locks, inodes: vec![inode], moves_paths: false }))
}

/// True if one of these inodes is being stored by a client: changes of it have to wait. `op` is asked for again if it has
/// begun that itself.
///
/// *Errors*: `Internal` when the state is damaged.
pub fn is_being_stored(view: &dyn View, inodes: &[u64], op: Option<&OpId>) -> Step<bool> {
    let of_op = |row: &IntentRow| match (&row.op, op) {
        (Some(began), Some(op)) => (&began.client_id, began.seq) == (&op.client_id, op.seq),
        _ => false,
    };
    for inode in inodes {
        let Some(row) = rows::inode(view, *inode)?.filter(|row| row.intent != 0) else { continue };
        let intent = intent::get(view, row.intent)?;
        if intent.is_some_and(|row| matches!(row.intent, Some(Intent::Write(_))) && !of_op(&row)) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn of_change(view: &dyn View, change: &Command) -> Step<Plan> {
    match &change.command {
        Some(Body::Mkdir(request)) => {
            of_slot(view, request.target.as_ref(), |_, path| Ok(Work::MakeDirectory { path, request: request.clone() }))
        }
        Some(Body::Symlink(request)) => {
            of_slot(view, request.target.as_ref(), |_, path| Ok(Work::MakeSymlink { path, request: request.clone() }))
        }
        Some(Body::Unlink(request)) => of_slot(view, request.target.as_ref(), |place, path| {
            Ok(Work::Remove { path, token: token_at(view, place)?.unwrap_or_default() })
        }),
        Some(Body::Rmdir(request)) => {
            of_slot(view, request.target.as_ref(), |_, path| Ok(Work::RemoveDirectory { path }))
        }
        Some(Body::Rename(request)) => of_rename(view, request),
        Some(Body::SetAttr(request)) => match resolve::reach(view, request.target.as_ref())? {
            Reach::Inode(inode) => of_path(view, inode, |path| Work::SetAttr { path, request: request.clone() }),
            Reach::Missing { name, .. } => Err(resolve::missing(&name).into()),
        },
        _ => refuse(Refusal::UnknownChange),
    }
}

fn of_path(view: &dyn View, inode: u64, work: impl FnOnce(Vec<u8>) -> Work) -> Step<Plan> {
    let (mount, path) = query::ufs_path(view, inode)?;
    Ok(Plan { mount, work: work(path), leaves: None })
}

fn of_slot(view: &dyn View, target: Option<&Target>, work: impl FnOnce(&Place, Vec<u8>) -> Step<Work>) -> Step<Plan> {
    let (_, place) = resolve::slot(view, target)?;
    let place = place?;
    let (mount, path) = path_of(view, &place)?;
    let mut plan = Plan { mount, work: work(&place, path)?, leaves: None };
    if let Work::Remove { path, .. } | Work::RemoveDirectory { path } = &plan.work {
        plan.leaves = leaves(place.parent, path, true);
    }
    Ok(plan)
}

fn of_rename(view: &dyn View, request: &RenameRequest) -> Step<Plan> {
    let to = resolve::slot(view, request.to.as_ref())?.1?;
    let (_, to_path) = path_of(view, &to)?;
    let replaced = token_at(view, &to)?;
    of_slot(view, request.from.as_ref(), |from, path| {
        let token = token_at(view, from)?.unwrap_or_default();
        Ok(Work::Rename { from: path, token, to: to_path, replaced, from_key: from.key() })
    })
}

/// Path of a name, whether or not there is something.
fn path_of(view: &dyn View, place: &Place) -> Step<(Mount, Vec<u8>)> {
    let (mount, mut path) = query::ufs_path(view, place.parent)?;
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(&place.name);
    Ok((mount, path))
}

/// Version of what has a name: empty for what is no file.
fn token_at(view: &dyn View, place: &Place) -> Step<Option<Bytes>> {
    let Some(entry) = &place.entry else { return Ok(None) };
    Ok(rows::inode(view, entry.inode)?.map(|row| row.version_token))
}
