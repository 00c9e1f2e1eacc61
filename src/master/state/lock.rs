//! Locks on ranges of files, for clients that must not meet.
//!
//! Promises: two owners never have ranges with a byte in common of which one is exclusive; what an owner asks for it gets
//! whole or not at all; a lock ends when it is given up, when its file is gone, and when the session of its client ends,
//! by whatever way. Nothing waits here: a client that wants to asks again.
//!
//! An owner is a number its client gives. `flock` and `fcntl` differ for the kernel of that client only: both end up
//! here as ranges, and exclude each other.

mod ranges;

use std::collections::BTreeSet;

use bytes::Bytes;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::store::v1::{LockRow, LockedRange, LockerRow};
use jindofs_proto::v1::{FileType, Lock, LockType, SetLockRequest};

use super::apply::done;
use super::context::Ctx;
use super::fault::{Step, refuse};
use super::{Refusal, StoreError, Table, View, keys, namespace, resolve, rows};

/// Most ranges that are locked of one file: every request looks at all of them.
const OF_INODE_MAX: u64 = 1000;
/// Most ranges that one client has locked, over all files: the end of its session frees them with one command.
const OF_CLIENT_MAX: u64 = 10_000;

/// What an owner asks for.
struct Wanted {
    range: LockedRange,
    /// Give up what there is.
    none: bool,
}

fn wanted(lock: Option<&Lock>) -> Step<Wanted> {
    let Some(lock) = lock else { return refuse(Refusal::NoLock) };
    if lock.start > lock.end || lock.end > ranges::END {
        return refuse(Refusal::BadRange { start: lock.start, end: lock.end });
    }
    let (exclusive, none) = match lock.r#type() {
        LockType::Shared => (false, false),
        LockType::Exclusive => (true, false),
        LockType::None => (false, true),
        LockType::Unspecified => return refuse(Refusal::BadLockType),
    };
    Ok(Wanted { range: LockedRange { start: lock.start, end: lock.end, exclusive, pid: lock.pid }, none })
}

/// Takes, changes or gives up a lock. What is in the way of it is an answer, and nothing is changed then.
///
/// *Errors*: `NotFound` for a file that is gone, `NoSpace` at a limit, `InvalidArgument`.
pub(super) fn set(ctx: &mut Ctx<'_>, request: &SetLockRequest) -> Step<Answer> {
    let Some(client_id) = ctx.op.as_ref().map(|op| op.client_id.clone()) else {
        return refuse(Refusal::LockWithoutOp);
    };
    let Wanted { range, none } = wanted(request.lock.as_ref())?;
    let (inode, owner) = (request.inode, request.lock.as_ref().map_or(0, |lock| lock.owner));
    if !none {
        check_file(ctx, inode)?;
        if let Some(holder) = in_the_way(ctx.view(), inode, (&client_id, owner), &range)? {
            return Ok(Answer::Holder(holder));
        }
    }
    let key = keys::lock(inode, &client_id, owner);
    let old: LockRow = rows::read(ctx.view(), Table::Lock, &key)?.unwrap_or_default();
    let mut new = old.clone();
    if none {
        ranges::clear(&mut new.ranges, range.start, range.end);
    } else {
        ranges::set(&mut new.ranges, range);
    }
    if new.ranges.len() > old.ranges.len() {
        check_limits(ctx, inode, &client_id, (new.ranges.len() - old.ranges.len()) as u64)?;
    }
    if new != old {
        write(ctx, inode, (&client_id, owner), &old, &new)?;
    }
    Ok(done())
}

fn check_file(ctx: &Ctx<'_>, inode: u64) -> Step {
    let Some(row) = rows::inode(ctx.view(), inode)? else { return resolve::no_inode(inode) };
    if row.r#type() != FileType::File {
        return refuse(Refusal::NotLockable { inode });
    }
    namespace::still_there(ctx, inode, &row)
}

fn check_limits(ctx: &Ctx<'_>, inode: u64, client_id: &[u8], more: u64) -> Step {
    let there: u64 = of_inode(ctx.view(), inode)?.iter().map(|(_, row)| row.ranges.len() as u64).sum();
    if there + more > OF_INODE_MAX {
        return refuse(Refusal::TooManyLocksOfFile { ranges: there, inode, most: OF_INODE_MAX });
    }
    let own = of_client(ctx.view(), client_id)?.ranges;
    if own + more > OF_CLIENT_MAX {
        return refuse(Refusal::TooManyLocksOfClient { ranges: own, most: OF_CLIENT_MAX });
    }
    Ok(())
}

/// Everything that is locked of a file, by client and owner.
fn of_inode(view: &dyn View, inode: u64) -> Result<Vec<(Bytes, LockRow)>, StoreError> {
    // No owner has a row without a range.
    rows::scan(view, Table::Lock, &keys::id(inode), OF_INODE_MAX as usize)
}

/// Clients that have locked something of a file.
pub(super) fn holders(view: &dyn View, inode: u64) -> Result<BTreeSet<Bytes>, StoreError> {
    let held = of_inode(view, inode)?;
    Ok(held.iter().map(|(key, _)| Bytes::copy_from_slice(keys::locker_of(key).0)).collect())
}

fn of_client(view: &dyn View, client_id: &[u8]) -> Result<LockerRow, StoreError> {
    Ok(rows::read(view, Table::Locker, client_id)?.unwrap_or_default())
}

/// The first lock of somebody else than `own` (client and owner) that does not go with `range`.
fn in_the_way(view: &dyn View, inode: u64, own: (&[u8], u64), range: &LockedRange) -> Result<Option<Lock>, StoreError> {
    for (key, row) in of_inode(view, inode)? {
        let (client_id, owner) = keys::locker_of(&key);
        if (client_id, owner) == own {
            continue;
        }
        let clash =
            row.ranges.iter().find(|other| ranges::overlap(other, range) && (other.exclusive || range.exclusive));
        if let Some(other) = clash {
            let kind = if other.exclusive { LockType::Exclusive } else { LockType::Shared };
            return Ok(Some(Lock {
                r#type: kind.into(),
                start: other.start,
                end: other.end,
                owner,
                pid: other.pid,
                client_id: Bytes::copy_from_slice(client_id),
            }));
        }
    }
    Ok(None)
}

/// What is in the way of a lock that `client_id` asks for. Nothing is in the way of giving one up.
pub(super) fn holder(view: &dyn View, inode: u64, client_id: &[u8], lock: Option<&Lock>) -> Step<Option<Lock>> {
    let Wanted { range, none } = wanted(lock)?;
    if none {
        return Ok(None);
    }
    let owner = lock.map_or(0, |lock| lock.owner);
    Ok(in_the_way(view, inode, (client_id, owner), &range)?)
}

/// Writes what an owner has locked now, with all that counts it.
fn write(
    ctx: &mut Ctx<'_>,
    inode: u64,
    (client_id, owner): (&[u8], u64),
    old: &LockRow,
    new: &LockRow,
) -> Result<(), StoreError> {
    let (key, of_owner) = (keys::lock(inode, client_id, owner), keys::locker(client_id, inode, owner));
    let ranges = new.ranges.len() as u64;
    if ranges == 0 {
        ctx.txn.delete(Table::Lock, &key);
        ctx.txn.delete(Table::Locker, &of_owner);
    } else {
        rows::write(ctx.txn, Table::Lock, &key, new);
        rows::write(ctx.txn, Table::Locker, &of_owner, &LockerRow { ranges });
    }
    let before = old.ranges.len() as u64;
    let count = |all: u64| (all + ranges).saturating_sub(before);
    ctx.counters.locked_ranges = count(ctx.counters.locked_ranges);
    match count(of_client(ctx.view(), client_id)?.ranges) {
        0 => ctx.txn.delete(Table::Locker, client_id),
        ranges => rows::write(ctx.txn, Table::Locker, client_id, &LockerRow { ranges }),
    }
    Ok(())
}

/// Ends every lock on a file that is gone.
pub(super) fn forget_inode(ctx: &mut Ctx<'_>, inode: u64) -> Result<(), StoreError> {
    for (key, row) in of_inode(ctx.view(), inode)? {
        write(ctx, inode, keys::locker_of(&key), &row, &LockRow::default())?;
    }
    Ok(())
}

/// Ends every lock of a client whose session has ended.
pub(super) fn forget_client(ctx: &mut Ctx<'_>, client_id: &[u8]) -> Result<(), StoreError> {
    let own = of_client(ctx.view(), client_id)?.ranges;
    if own == 0 {
        return Ok(());
    }
    // One row for each owner of a file, and that of the client.
    let found = ctx.view().scan(Table::Locker, client_id, &[], OF_CLIENT_MAX as usize + 1)?;
    for (key, _) in found {
        if let Some((inode, owner)) = keys::locked_of(&key) {
            ctx.txn.delete(Table::Lock, &keys::lock(inode, client_id, owner));
        }
        ctx.txn.delete(Table::Locker, &key);
    }
    ctx.counters.locked_ranges = ctx.counters.locked_ranges.saturating_sub(own);
    Ok(())
}
