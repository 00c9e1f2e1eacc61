//! The mount table. A mount point is a directory whose entries come from an under-storage.
//!
//! The directory itself is counted where its entry is, outside the mount; what is below is counted for the mount.

use std::collections::BTreeMap;

use bytes::Bytes;
use jindofs_proto::store::v1::InodeRow;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::v1::{AddMountRequest, ChangeMountRequest, FileType, MetaPolicy, Mount, RemoveMountRequest};

use super::context::Ctx;
use super::fault::{Step, refuse};
use super::resolve::{self, Reach};
use super::{Refusal, Table, View, keys, namespace, rows};
use crate::types::{NsPath, ROOT_INODE};

/// Schemes that can be mounted.
const SCHEMES: [&str; 3] = ["local://", "s3://", "oss://"];
/// Longest uri, bytes.
const URI_MAX: usize = 4096;
/// Most bytes of all option names and values together.
const OPTIONS_BYTES_MAX: usize = 64 << 10;

/// Adds a mount, making its directory and those above it where they are missing.
pub(super) fn add(ctx: &mut Ctx<'_>, request: &AddMountRequest) -> Step<Answer> {
    let Some(asked) = &request.mount else { return refuse(Refusal::NoMount) };
    let path = NsPath::parse(&asked.path)?;
    check_uri(&asked.ufs_uri)?;
    check_options(&asked.options)?;
    apart_from_others(ctx.view(), &path)?;
    can_hold_a_mount(ctx.view(), &path)?;

    let root_inode = namespace::make_mount_point(ctx, &path)?;
    let mut row = resolve::directory(ctx.view(), root_inode)?;
    let id = ctx.counters.next_mount;
    ctx.counters.next_mount += 1;
    row.mount_id = id;
    row.complete = false;
    row.version += 1;
    row.ctime_ns = ctx.now;
    if root_inode == ROOT_INODE {
        row.content = ctx.new_inode();
    }
    rows::put_inode(ctx.txn, root_inode, &row);
    let mount = Mount {
        id,
        path: name_of(&path),
        meta_policy: policy_or(asked.meta_policy(), MetaPolicy::Once).into(),
        root_inode,
        ..asked.clone()
    };
    store(ctx, &mount);
    Ok(Answer::Mount(mount))
}

/// Changes options and policies of a mount; its path and uri stay.
pub(super) fn change(ctx: &mut Ctx<'_>, request: &ChangeMountRequest) -> Step<Answer> {
    let mut mount = mount_at(ctx.view(), &NsPath::parse(&request.path)?)?;
    check_options(&request.options)?;
    mount.options.clone_from(&request.options);
    mount.meta_policy = policy_or(request.meta_policy(), mount.meta_policy()).into();
    mount.read_only = request.read_only;
    store(ctx, &mount);
    Ok(Answer::Mount(mount))
}

/// Removes a mount. What was below vanishes at once and is freed by purges; an empty plain directory stays.
pub(super) fn remove(ctx: &mut Ctx<'_>, request: &RemoveMountRequest) -> Step<Answer> {
    let mount = mount_at(ctx.view(), &NsPath::parse(&request.path)?)?;
    let row = resolve::directory(ctx.view(), mount.root_inode)?;
    ctx.txn.delete(Table::Mount, &keys::mount(mount.id));
    ctx.forget_stat(mount.id);
    ctx.counters.mounts_version += 1;
    if mount.root_inode == ROOT_INODE {
        ctx.discard(rows::content_of(ROOT_INODE, &row));
        let plain = plain_directory(ctx, &row, 0);
        rows::put_inode(ctx.txn, ROOT_INODE, &plain);
    } else {
        replace_root(ctx, mount.root_inode, row)?;
    }
    Ok(Answer::Mount(mount))
}

/// Puts an empty directory with a new number in the place of a mount's root.
fn replace_root(ctx: &mut Ctx<'_>, old: u64, row: InodeRow) -> Step {
    let parent_content = rows::content(ctx.view(), row.parent)?;
    let parent_mount = resolve::directory(ctx.view(), row.parent)?.mount_id;
    let id = ctx.new_inode();
    let plain = plain_directory(ctx, &row, parent_mount);
    namespace::link(ctx, &keys::dentry(parent_content, &row.name), id, FileType::Directory);
    rows::put_inode(ctx.txn, id, &plain);
    namespace::detach(ctx, old, row);
    Ok(())
}

fn plain_directory(ctx: &Ctx<'_>, row: &InodeRow, mount_id: u32) -> InodeRow {
    InodeRow {
        r#type: row.r#type,
        mode: row.mode,
        uid: row.uid,
        gid: row.gid,
        mtime_ns: ctx.now,
        ctime_ns: ctx.now,
        nlink: 2,
        parent: row.parent,
        mount_id,
        version: row.version + 1,
        born_index: ctx.index,
        name: row.name.clone(),
        ..InodeRow::default()
    }
}

fn store(ctx: &mut Ctx<'_>, mount: &Mount) {
    rows::write(ctx.txn, Table::Mount, &keys::mount(mount.id), mount);
    ctx.counters.mounts_version += 1;
}

fn policy_or(asked: MetaPolicy, otherwise: MetaPolicy) -> MetaPolicy {
    if asked == MetaPolicy::Unspecified { otherwise } else { asked }
}

fn mount_at(view: &dyn View, path: &NsPath) -> Step<Mount> {
    match rows::mounts(view)?.into_iter().find(|mount| &mount.path[..] == path.as_bytes()) {
        Some(mount) => Ok(mount),
        None => refuse(Refusal::NothingMounted { path: name_of(path) }),
    }
}

fn name_of(path: &NsPath) -> Bytes {
    Bytes::copy_from_slice(path.as_bytes())
}

fn check_uri(uri: &str) -> Step {
    if uri.len() > URI_MAX {
        return refuse(Refusal::UriTooLong { bytes: uri.len() as u64, most: URI_MAX as u64 });
    }
    if SCHEMES.iter().any(|scheme| uri.len() > scheme.len() && uri.starts_with(scheme)) {
        return Ok(());
    }
    refuse(Refusal::BadUri { uri: Bytes::copy_from_slice(uri.as_bytes()) })
}

fn check_options(options: &BTreeMap<String, String>) -> Step {
    let bytes: usize = options.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes <= OPTIONS_BYTES_MAX {
        return Ok(());
    }
    refuse(Refusal::OptionsTooLarge { bytes: bytes as u64, most: OPTIONS_BYTES_MAX as u64 })
}

/// Refuses a mount at, above or below another one.
fn apart_from_others(view: &dyn View, path: &NsPath) -> Step {
    let mounts = rows::mounts(view)?;
    if mounts.len() >= rows::MOUNTS_MAX {
        return refuse(Refusal::TooManyMounts { most: rows::MOUNTS_MAX as u64 });
    }
    for mount in mounts {
        let other = NsPath::parse(&mount.path)?;
        if other == *path {
            return refuse(Refusal::MountedThere { uri: mount.ufs_uri.into(), path: name_of(path) });
        }
        if path.starts_with(&other) || other.starts_with(path) {
            return refuse(Refusal::MountsInEachOther { path: name_of(path), other: name_of(&other) });
        }
    }
    Ok(())
}

/// The path is free or an empty directory.
fn can_hold_a_mount(view: &dyn View, path: &NsPath) -> Step {
    let Reach::Inode(id) = resolve::walk(view, path.names())? else { return Ok(()) };
    match rows::inode(view, id)? {
        Some(row) if !rows::is_dir(&row) => refuse(Refusal::MountOnNoDirectory { path: name_of(path) }),
        Some(row) if row.entries > 0 => refuse(Refusal::MountHidesEntries { path: name_of(path) }),
        _ => Ok(()),
    }
}
