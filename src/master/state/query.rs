//! The read side: what services and duties ask. Each call reads one view, so its answer is consistent in itself.

use std::time::Duration;

use bytes::Bytes;
use jindofs_proto::store::v1::intent_row::Intent;
use jindofs_proto::store::v1::{
    ClusterRow, CounterRow, InodeRow, IntentRow, Member, Outcome, SessionRow, StatRow, WorkerRow, Write,
};
use jindofs_proto::v1::{Attr, Entry, FileSource, FileType, JobInfo, Lock, Mount, OpId, Target, target};

use super::fault::{Fault, Step, refuse};
use super::resolve::{self, Reach};
use super::{Refusal, StoreError, Table, View, intent, job, keys, lock, member, rows, session, worker};
use crate::config::meta_policy::{RefreshPolicy, is_read_once};
use crate::error::ErrorKind;
use crate::rpc::source::source_of;
use crate::types::{LIST_PAGE_MAX, NsPath};

/// Rows read at a time where a whole table is read.
const CHUNK: usize = 1000;

/// Metadata that must come from the under-storage before a question can be answered.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadNeed {
    /// Inode of the directory to load into.
    pub directory: u64,
    /// The mount it belongs to.
    pub mount: Mount,
    /// Path of the directory below the mount's uri, without a leading '/'; empty for the mount's root.
    pub path: Vec<u8>,
    /// The one name that is needed; `None` for the whole listing.
    pub name: Option<Bytes>,
    /// Set where something is known that serves until it was read so long ago; zero: it does not serve.
    pub max_age: Option<Duration>,
}

/// Answer of [`lookup_or_load`].
#[derive(Debug, Clone, PartialEq)]
pub enum LookupStep {
    /// It exists.
    Found(Attr),
    /// There is no such thing, for sure.
    Absent(Refusal),
    /// Nobody knows yet. If the same need comes again right after the load, the name does not exist.
    NeedsLoad(LoadNeed),
}

/// Answer of [`list_or_load`].
#[derive(Debug, Clone, PartialEq)]
pub enum ListStep {
    /// A page.
    Page {
        /// The directory itself.
        directory: Attr,
        /// Entries in name order.
        entries: Vec<Entry>,
        /// Nothing follows.
        end: bool,
    },
    /// There is no such directory, for sure.
    Absent(Refusal),
    /// The directory, or one on the way, must be loaded first.
    NeedsLoad(LoadNeed),
}

/// Attributes of what `target` points at, as far as is known.
///
/// *Errors*: `NotFound`, `NotADirectory`, `InvalidArgument`, `NameTooLong`, `Internal`.
pub fn lookup(view: &dyn View, target: &Target) -> Step<Attr> {
    attr(view, resolve(view, target)?)
}

/// The inode `target` points at.
pub fn resolve(view: &dyn View, target: &Target) -> Step<u64> {
    match reach_now(view, target)? {
        Reach::Inode(id) => Ok(id),
        Reach::Missing { name, .. } => refuse(resolve::missing(&name)),
    }
}

/// As [`lookup`], telling "absent" from "not loaded yet".
pub fn lookup_or_load(view: &dyn View, target: &Target) -> Step<LookupStep> {
    let found = match definite(reach_now(view, target))? {
        Ok(Reach::Inode(id)) => id,
        Ok(Reach::Missing { directory, name, .. }) => {
            return Ok(match need_name(view, directory, &name)? {
                Some(need) => LookupStep::NeedsLoad(need),
                None => LookupStep::Absent(resolve::missing(&name)),
            });
        }
        Err(absent) => return Ok(LookupStep::Absent(absent)),
    };
    Ok(LookupStep::Found(attr(view, found)?))
}

/// One page of the directory `target` points at, or what must be loaded first. `limit` 0 means the most.
pub fn list_or_load(view: &dyn View, target: &Target, after: &[u8], limit: usize) -> Step<ListStep> {
    let directory = match lookup_or_load(view, target)? {
        LookupStep::Found(attr) => attr,
        LookupStep::Absent(refusal) => return Ok(ListStep::Absent(refusal)),
        LookupStep::NeedsLoad(need) => return Ok(ListStep::NeedsLoad(need)),
    };
    if let Err(absent) = definite(resolve::directory(view, directory.inode))? {
        return Ok(ListStep::Absent(absent));
    }
    if let Some(need) = need(view, directory.inode, None)? {
        return Ok(ListStep::NeedsLoad(need));
    }
    let (entries, end) = list(view, directory.inode, after, limit)?;
    Ok(ListStep::Page { directory, entries, end })
}

/// Where a target points at, or ends. Of a name in a directory that is gone it is not said that there is none: another directory
/// may have the path by which the client came to that one, and the client has to look it up again.
fn reach_now(view: &dyn View, target: &Target) -> Step<Reach> {
    let reached = resolve::reach(view, Some(target));
    let Some(target::Target::Entry(entry)) = &target.target else { return reached };
    let is_gone = match &reached {
        Err(Fault::Refused(refusal)) => refusal.kind() == ErrorKind::NotFound,
        // Removed, it or one above it, and not purged yet.
        Ok(_) if has_garbage(&rows::counters(view)?) => match rows::inode(view, entry.parent)? {
            Some(row) => resolve::ancestry(view, entry.parent, &row)?.is_none(),
            None => true,
        },
        _ => false,
    };
    match is_gone {
        true => refuse(Refusal::DirectoryGone { inode: entry.parent }),
        false => reached,
    }
}

/// Refusals are answers; only a failed store is an error.
fn definite<T>(step: Step<T>) -> Result<Result<T, Refusal>, StoreError> {
    match step {
        Ok(found) => Ok(Ok(found)),
        Err(Fault::Refused(refusal)) => Ok(Err(refusal)),
        Err(Fault::Store(error)) => Err(error),
    }
}

/// What must be loaded to know that `name` is not in `directory`: nothing if it is complete, unless it is read again.
fn need_name(view: &dyn View, directory: u64, name: &Bytes) -> Step<Option<LoadNeed>> {
    match need(view, directory, Some(name.clone()))? {
        None => need_again(view, directory, Some(name.clone())),
        found => Ok(found),
    }
}

/// What must be loaded to know `name` in `directory` (all names for `None`): nothing if the directory is complete.
fn need(view: &dyn View, directory: u64, name: Option<Bytes>) -> Step<Option<LoadNeed>> {
    match rows::inode(view, directory)? {
        Some(row) if row.mount_id != 0 && !row.complete => {
            let (mount, path) = ufs_path(view, directory)?;
            Ok(Some(LoadNeed { directory, mount, path, name, max_age: None }))
        }
        _ => Ok(None),
    }
}

/// What to read again to be sure of `name` in `directory`, or of all its names: nothing where metadata is read once.
fn need_again(view: &dyn View, directory: u64, name: Option<Bytes>) -> Step<Option<LoadNeed>> {
    let again = mount_of(view, directory)?.is_some_and(|mount| !is_read_once(&mount));
    if !again {
        return Ok(None);
    }
    let (mount, path) = ufs_path(view, directory)?;
    let policy = match &name {
        Some(name) if path.is_empty() => RefreshPolicy::of_path(&mount, name),
        Some(name) => RefreshPolicy::of_path(&mount, &[&path, &b"/"[..], name].concat()),
        None => RefreshPolicy::of_path(&mount, &path),
    };
    let max_age = match policy {
        RefreshPolicy::Once => return Ok(None),
        RefreshPolicy::Always => Duration::ZERO,
        RefreshPolicy::After(interval) => interval,
    };
    Ok(Some(LoadNeed { directory, mount, path, name, max_age: Some(max_age) }))
}

/// What to read again to be sure of `inode` itself: nothing where metadata is read once.
pub fn refresh_need(view: &dyn View, inode: u64) -> Step<Option<LoadNeed>> {
    let row = inode_row(view, inode)?;
    match mount_by_id(view, row.mount_id)? {
        Some(mount) if mount.root_inode != inode => need_again(view, row.parent, Some(row.name)),
        _ => Ok(None),
    }
}

/// What to read to know what lies where `target` points, once it was found to be something else than what is known.
pub fn look_need(view: &dyn View, target: &Target) -> Step<Option<LoadNeed>> {
    let reached = match resolve::reach(view, Some(target)) {
        // A file on the way: it is that file which may be a directory by now.
        Err(Fault::Refused(refusal)) if refusal.kind() == ErrorKind::NotADirectory => match above(target) {
            Some(above) => return look_need(view, &above),
            None => return refuse(refusal),
        },
        reached => reached?,
    };
    let (directory, name) = match reached {
        Reach::Missing { directory, name, .. } => (directory, name),
        Reach::Inode(id) => {
            let row = inode_row(view, id)?;
            (row.parent, row.name)
        }
    };
    whatever_is_known(view, directory, Some(name))
}

/// What `target` is an entry of.
fn above(target: &Target) -> Option<Target> {
    let above = match target.target.as_ref()? {
        target::Target::Path(path) => {
            let end = path.iter().rposition(|byte| *byte != b'/')?;
            let at = path[..end].iter().rposition(|byte| *byte == b'/').filter(|at| *at > 0)?;
            target::Target::Path(path.slice(..at))
        }
        target::Target::Entry(entry) => target::Target::Inode(entry.parent),
        target::Target::Inode(_) => return None,
    };
    Some(Target { target: Some(above) })
}

/// What to read to know all names of `directory`, whatever is known.
pub fn listing_need(view: &dyn View, directory: u64) -> Step<Option<LoadNeed>> {
    whatever_is_known(view, directory, None)
}

fn whatever_is_known(view: &dyn View, directory: u64, name: Option<Bytes>) -> Step<Option<LoadNeed>> {
    match rows::inode(view, directory)? {
        Some(row) if row.mount_id != 0 => {
            let (mount, path) = ufs_path(view, directory)?;
            Ok(Some(LoadNeed { directory, mount, path, name, max_age: None }))
        }
        _ => Ok(None),
    }
}

/// What to read again to be sure of the listing of `directory`: as [`refresh_need`].
pub fn relist_need(view: &dyn View, directory: u64) -> Step<Option<LoadNeed>> {
    need_again(view, directory, None)
}

/// Up to `limit` entries of `directory` after the name `after` (empty for the start), in name order, and whether
/// nothing follows. `limit` 0, or more than a page may have, means a full page.
pub fn list(view: &dyn View, directory: u64, after: &[u8], limit: usize) -> Step<(Vec<Entry>, bool)> {
    let limit = if limit == 0 { LIST_PAGE_MAX } else { limit.min(LIST_PAGE_MAX) };
    let row = resolve::directory(view, directory)?;
    let content = rows::content_of(directory, &row);
    let prefix = keys::id(content);
    let mut cursor = if after.is_empty() { Vec::new() } else { keys::dentry(content, after) };
    let mut entries = Vec::with_capacity(limit.min(row.entries.min(LIST_PAGE_MAX as u64) as usize));
    loop {
        let wanted = limit + 1 - entries.len();
        let found = view.scan(Table::Dentry, &prefix, &cursor, wanted)?;
        let end = found.len() < wanted;
        for (key, value) in found {
            cursor = key.to_vec();
            let entry: jindofs_proto::store::v1::DentryRow = rows::decode(Table::Dentry, &key, value)?;
            if entry.inode == 0 {
                continue;
            }
            if entries.len() == limit {
                return Ok((entries, false));
            }
            entries.push(Entry { name: key.slice(8..), attr: Some(attr(view, entry.inode)?) });
        }
        if end {
            return Ok((entries, true));
        }
    }
}

/// Attributes of an inode.
pub fn attr(view: &dyn View, inode: u64) -> Step<Attr> {
    Ok(rows::attr(inode, &inode_row(view, inode)?))
}

fn inode_row(view: &dyn View, inode: u64) -> Step<InodeRow> {
    match rows::inode(view, inode)? {
        Some(row) => Ok(row),
        None => resolve::no_inode(inode),
    }
}

/// Path of an inode.
///
/// *Errors*: `NotFound` for an inode that is gone or in a removed tree.
pub fn path_of(view: &dyn View, inode: u64) -> Step<NsPath> {
    let chain = chain_of(view, inode)?;
    Ok(chain.iter().rev().fold(NsPath::root(), |path, (_, name)| path.join(name)))
}

fn chain_of(view: &dyn View, inode: u64) -> Step<Vec<(u64, Bytes)>> {
    let row = inode_row(view, inode)?;
    match resolve::ancestry(view, inode, &row)? {
        Some(chain) => Ok(chain),
        None => refuse(Refusal::InodeRemoved { inode }),
    }
}

/// The mount an inode belongs to, with its path below the mount's uri, without a leading '/'.
///
/// *Errors*: `NotFound` for an inode outside any mount, gone, or in a removed tree.
pub fn ufs_path(view: &dyn View, inode: u64) -> Step<(Mount, Vec<u8>)> {
    let Some(mount) = mount_of(view, inode)? else { return refuse(Refusal::OutsideMounts { inode }) };
    let chain = chain_of(view, inode)?;
    let names: Vec<&[u8]> =
        chain.iter().take_while(|(id, _)| *id != mount.root_inode).map(|(_, name)| &name[..]).collect();
    let path = names.into_iter().rev().collect::<Vec<_>>().join(&b'/');
    Ok((mount, path))
}

/// True if every entry of the directory is known.
pub fn directory_complete(view: &dyn View, inode: u64) -> Step<bool> {
    let row = resolve::directory(view, inode)?;
    Ok(row.mount_id == 0 || row.complete)
}

/// Every mount, and the version of the mount table.
pub fn mounts(view: &dyn View) -> Step<(Vec<Mount>, u64)> {
    Ok((rows::mounts(view)?, rows::counters(view)?.mounts_version))
}

/// The mount with this id.
pub fn mount_by_id(view: &dyn View, id: u32) -> Step<Option<Mount>> {
    Ok(rows::mount(view, id)?)
}

/// The mount an inode belongs to; none outside any.
pub fn mount_of(view: &dyn View, inode: u64) -> Step<Option<Mount>> {
    match inode_row(view, inode)?.mount_id {
        0 => Ok(None),
        id => mount_by_id(view, id),
    }
}

/// Every live session, by client id.
pub fn sessions(view: &dyn View) -> Step<Vec<([u8; 16], SessionRow)>> {
    let mut live = Vec::new();
    let mut after = Bytes::new();
    loop {
        let found = view.scan(Table::Session, &[], &after, CHUNK)?;
        let Some((last, _)) = found.last() else { return Ok(live) };
        after = last.clone();
        for (key, value) in found {
            let row: SessionRow = rows::decode(Table::Session, &key, value)?;
            if let (0, Ok(id)) = (row.ended_ns, <[u8; 16]>::try_from(&key[..])) {
                live.push((id, row));
            }
        }
    }
}

/// True if the client has a live session.
pub fn session_exists(view: &dyn View, client_id: &[u8]) -> Step<bool> {
    Ok(session::lives(view, client_id)?)
}

/// The outcome of a client's operation, if it was executed and is not forgotten.
pub fn outcome(view: &dyn View, op: &OpId) -> Step<Option<Outcome>> {
    Ok(session::outcome(view, op)?)
}

/// The lock that is in the way of one that `client_id` asks for; none of its owner's own is.
///
/// *Errors*: `InvalidArgument` for what is no lock.
pub fn lock_holder(view: &dyn View, inode: u64, client_id: &[u8], lock: Option<&Lock>) -> Step<Option<Lock>> {
    lock::holder(view, inode, client_id, lock)
}

/// The intent with this id.
pub fn intent(view: &dyn View, id: u64) -> Step<Option<IntentRow>> {
    Ok(intent::get(view, id)?)
}

/// True for a file below a mount of which nothing is known to be stored.
pub fn was_never_stored(attr: &Attr) -> bool {
    attr.mount_id != 0 && attr.r#type() == FileType::File && attr.version_token.is_empty()
}

/// The intent of the writing of the file `inode` with the row `row`, if its writer may be answered before it ends.
pub fn ends_behind(view: &dyn View, inode: u64, row: &InodeRow) -> Step<Option<u64>> {
    if row.intent == 0 {
        return Ok(None);
    }
    let behind = |write: &Write| write.inode == inode && write.end_behind && !write.given_up;
    let intent = intent::get(view, row.intent)?.and_then(|intent| intent.intent);
    Ok(matches!(intent, Some(Intent::Write(write)) if behind(&write)).then_some(row.intent))
}

/// Up to a thousand intents after the one with the id `after`, in the order in which they began.
pub fn intents(view: &dyn View, after: u64) -> Step<Vec<(u64, IntentRow)>> {
    let found = view.scan(Table::Intent, &[], &keys::id(after), CHUNK)?;
    let decoded =
        found.into_iter().map(|(key, value)| Ok((keys::id_of(&key), rows::decode(Table::Intent, &key, value)?)));
    Ok(decoded.collect::<Result<_, StoreError>>()?)
}

/// The row of an inode, with what clients are not told.
pub fn inode(view: &dyn View, id: u64) -> Step<Option<InodeRow>> {
    Ok(rows::inode(view, id)?)
}

/// Every member there ever was, by id; see `retired`.
pub fn members(view: &dyn View) -> Step<Vec<Member>> {
    Ok(member::all(view)?)
}

/// The member with this id.
pub fn member(view: &dyn View, id: u64) -> Step<Option<Member>> {
    Ok(rows::read(view, Table::Member, &keys::id(id))?)
}

/// The logical clock: what the last command was stamped with, nanoseconds since the epoch; 0 before the first.
pub fn clock_ns(view: &dyn View) -> Step<i64> {
    Ok(rows::counters(view)?.clock_ns)
}

/// The cluster; none before it is founded.
pub fn cluster(view: &dyn View) -> Step<Option<ClusterRow>> {
    Ok(rows::read(view, Table::Meta, keys::CLUSTER)?)
}

/// Every registered worker, by id.
pub fn workers(view: &dyn View) -> Step<Vec<WorkerRow>> {
    Ok(worker::all(view)?)
}

/// Version of the set of workers that are drained, and of where they are.
pub fn drains_version(view: &dyn View) -> Step<u64> {
    Ok(rows::counters(view)?.drains_version)
}

/// The source of a file as it is known, without asking the under-storage; none for what is no file of a mount, or was removed.
pub fn known_source(view: &dyn View, inode: u64) -> Step<Option<FileSource>> {
    let Some(row) = rows::inode(view, inode)?.filter(|row| row.mount_id != 0 && row.r#type() == FileType::File) else {
        return Ok(None);
    };
    match ufs_path(view, inode) {
        Ok((_, path)) => Ok(Some(source_of(&rows::attr(inode, &row), path))),
        Err(Fault::Refused(refusal)) if refusal.kind() == ErrorKind::NotFound => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// Every job on record, oldest first.
pub fn jobs(view: &dyn View) -> Step<Vec<JobInfo>> {
    Ok(job::all(view)?)
}

/// The job with this id.
pub fn job(view: &dyn View, id: u64) -> Step<Option<JobInfo>> {
    Ok(job::get(view, id)?)
}

/// The counters apply advances, with the logical clock.
pub fn counters(view: &dyn View) -> Step<CounterRow> {
    Ok(rows::counters(view)?)
}

/// What is counted for a mount; 0 is the tree outside any.
pub fn stat(view: &dyn View, mount_id: u32) -> Step<StatRow> {
    Ok(rows::read(view, Table::Stat, &keys::mount(mount_id))?.unwrap_or_default())
}

/// True while removed trees wait for a purge.
pub fn gc_pending(view: &dyn View) -> Step<bool> {
    Ok(has_garbage(&rows::counters(view)?))
}

fn has_garbage(counters: &CounterRow) -> bool {
    counters.first_gc < counters.next_gc
}
