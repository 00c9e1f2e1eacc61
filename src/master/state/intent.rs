//! Changes of under-storage: recorded before they begin, ended when they are done.
//!
//! A change of names or attributes below a mount is checked as any other, and then not made but recorded, with whatever it
//! needs held: the leader carries it out in the under-storage, and the command that ends it makes the change here. New
//! content of a file is stored by its client in between. A leader or client that dies leaves an intent which says what may
//! have happened; the next leader finishes or undoes it. The bracket is that of a two-phase commit with one participant.

use jindofs_proto::store::v1::command::Command as Body;
use jindofs_proto::store::v1::intent_row::Intent;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::store::v1::{
    Command, DentryRow, FinishIntent, HeldName, InodeRow, IntentRow, Leftover, Outcome, Pending, UfsEntry,
};
use jindofs_proto::v1::OpId;

use super::apply::{done, refused, run};
use super::context::Ctx;
use super::fault::{Fault, Step, refuse};
use super::resolve::Place;
use super::{Refusal, StoreError, Table, View, keys, namespace, refusal, rows, session};

/// `born_index` of a name that is held: younger than every listing.
pub(super) const HELD: u64 = u64::MAX;

/// What the under-storage said of a change that it has made.
#[derive(Debug, Clone, Default)]
pub(crate) struct Finishing {
    /// What lies there now.
    pub(crate) entry: Option<UfsEntry>,
    /// It keeps no attributes.
    pub(crate) own_attr: bool,
}

/// What a change needs to stay as it is.
pub(super) enum Hold<'a> {
    /// An inode with its row.
    Inode(u64, &'a InodeRow),
    /// A name that is free.
    Name(&'a Place),
}

/// True if a change in this territory has to be made in the under-storage first.
pub(super) fn is_due(ctx: &Ctx<'_>, mount_id: u32) -> bool {
    mount_id != 0 && ctx.finishing.is_none()
}

/// Records a change that is to be carried out.
///
/// *Errors*: `Busy` when another one is at work on the same things.
pub(super) fn begin(ctx: &mut Ctx<'_>, body: Body, holds: &[Hold<'_>]) -> Step<Answer> {
    check(ctx, holds)?;
    let id = ctx.new_intent();
    let change = Command { command: Some(body), ..Command::default() };
    let mut intent = IntentRow { op: ctx.op.clone(), intent: Some(Intent::Change(change)), ..IntentRow::default() };
    for hold in holds {
        match hold {
            Hold::Inode(inode, row) => {
                rows::put_inode(ctx.txn, *inode, &InodeRow { intent: id, ..(*row).clone() });
                intent.inodes.push(*inode);
            }
            Hold::Name(place) => {
                let key = place.key();
                hold_name(ctx, &key);
                intent.names.push(HeldName { dentry_key: key.into() });
            }
        }
    }
    write(ctx, id, &intent);
    Ok(pending(id))
}

/// Refuses what [`begin`] would refuse.
///
/// *Errors*: as [`begin`].
pub(super) fn check(ctx: &Ctx<'_>, holds: &[Hold<'_>]) -> Step {
    if ctx.batched {
        return refuse(Refusal::ChangeInBatch);
    }
    for hold in holds {
        if let Hold::Inode(_, row) = hold {
            is_free(row)?;
        }
    }
    Ok(())
}

/// Refuses what an intent is at work on.
pub(super) fn is_free(row: &InodeRow) -> Step {
    if row.intent == 0 {
        return Ok(());
    }
    refuse(Refusal::UnderChange)
}

fn hold_name(ctx: &mut Ctx<'_>, key: &[u8]) {
    rows::write(ctx.txn, Table::Dentry, key, &DentryRow { born_index: HELD, ..DentryRow::default() });
}

pub(super) fn pending(intent: u64) -> Answer {
    Answer::Pending(Pending { intent })
}

pub(super) fn write(ctx: &mut Ctx<'_>, id: u64, row: &IntentRow) {
    rows::write(ctx.txn, Table::Intent, &keys::id(id), row);
}

pub(super) fn delete(ctx: &mut Ctx<'_>, id: u64) {
    ctx.txn.delete(Table::Intent, &keys::id(id));
}

/// The intent with this id.
pub(super) fn get(view: &dyn View, id: u64) -> Result<Option<IntentRow>, StoreError> {
    rows::read(view, Table::Intent, &keys::id(id))
}

/// Ends an intent with what was found or done in the under-storage.
///
/// *Errors*: `FailedPrecondition` when it has ended before.
pub(super) fn finish(ctx: &mut Ctx<'_>, request: &FinishIntent) -> Step<Answer> {
    let Some(row) = get(ctx.view(), request.id)? else {
        return refuse(Refusal::IntentEnded { intent: request.id });
    };
    let answer = match &row.intent {
        Some(Intent::Change(change)) => finish_change(ctx, request, &row, change)?,
        Some(Intent::Made(made)) => super::content::finish(ctx, request, made.inode, &[])?,
        Some(Intent::Write(write)) => super::content::finish(ctx, request, write.inode, &write.base_token)?,
        Some(Intent::Leftover(leftover)) => {
            delete(ctx, request.id);
            bury(ctx, &leftover.dentry_key);
            done()
        }
        None => {
            return Err(StoreError(format!("intent {} is of a kind this release does not know", request.id)).into());
        }
    };
    if let Some(op) = &row.op {
        session::replace(ctx.txn, op, &Outcome { outcome: Some(answer.clone()) })?;
    }
    Ok(answer)
}

fn finish_change(ctx: &mut Ctx<'_>, request: &FinishIntent, row: &IntentRow, change: &Command) -> Step<Answer> {
    delete(ctx, request.id);
    release(ctx, request.id, row)?;
    if let Some(refused) = &request.refused {
        return Ok(Answer::Refused(refusal::adopted(refused)));
    }
    let Some(body) = &change.command else {
        return Err(StoreError(format!("intent {} changes nothing this release knows", request.id)).into());
    };
    ctx.finishing = Some(Finishing { entry: request.entry.clone(), own_attr: request.own_attr });
    let ran = run(ctx, body);
    ctx.finishing = None;
    let answer = match ran {
        Ok(answer) => answer,
        // It was checked when it began, and held since: only the mount itself can have gone.
        Err(Fault::Refused(refusal)) => return Ok(refused(&refusal)),
        Err(fault) => return Err(fault),
    };
    if let Some(leftover) = &request.leftover {
        keep_leftover(ctx, request.id, leftover);
    }
    Ok(answer)
}

fn keep_leftover(ctx: &mut Ctx<'_>, id: u64, leftover: &Leftover) {
    hold_name(ctx, &leftover.dentry_key);
    write(ctx, id, &IntentRow { intent: Some(Intent::Leftover(leftover.clone())), ..IntentRow::default() });
}

/// Lets go of what an intent holds.
fn release(ctx: &mut Ctx<'_>, id: u64, row: &IntentRow) -> Result<(), StoreError> {
    for inode in &row.inodes {
        if let Some(mut held) = rows::inode(ctx.view(), *inode)?.filter(|held| held.intent == id) {
            held.intent = 0;
            rows::put_inode(ctx.txn, *inode, &held);
        }
    }
    for name in &row.names {
        let held: Option<DentryRow> = rows::read(ctx.view(), Table::Dentry, &name.dentry_key)?;
        if held.is_some_and(|held| held.inode == 0 && held.born_index == HELD) {
            // Not just let go: there may have been a tombstone, which is still needed.
            bury(ctx, &name.dentry_key);
        }
    }
    Ok(())
}

/// Leaves a tombstone: listings that began earlier do not bring the name back.
pub(super) fn bury(ctx: &mut Ctx<'_>, key: &[u8]) {
    rows::write(ctx.txn, Table::Dentry, key, &DentryRow { born_index: ctx.index, ..DentryRow::default() });
}

/// Takes over what the under-storage says of something that was just changed there.
pub(super) fn adopt(ctx: &Ctx<'_>, row: &mut InodeRow) {
    let Some(finishing) = &ctx.finishing else { return };
    row.born_index = ctx.index;
    row.own_attr |= finishing.own_attr;
    if let Some(entry) = &finishing.entry {
        if row.version_token != entry.version_token {
            // Whether the content is what it was nobody has looked.
            row.prefix_since = row.version + 1;
        }
        row.version_token = entry.version_token.clone();
        if !finishing.own_attr {
            (row.mode, row.uid, row.gid) = (entry.mode & namespace::MODE_BITS, entry.uid, entry.gid);
            row.mtime_ns = entry.mtime_ns;
        }
    }
}

/// The operation a command belongs to; changes of under-storage have one.
pub(super) fn op_of<'c>(ctx: &'c Ctx<'_>) -> Step<&'c OpId> {
    match &ctx.op {
        Some(op) => Ok(op),
        None => refuse(Refusal::NoOp),
    }
}
