//! New content of files below mounts: stored by a client, between an intent and its end.
//!
//! One rule for writers that meet: whoever ends first wins. Content is made from a version, and stored only while the file
//! still is of that version; the other writer is told that it is stale.

use bytes::Bytes;
use jindofs_proto::store::v1::intent_row::Intent;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::store::v1::{FinishIntent, InodeRow, IntentRow, Made, UfsEntry, Write};
use jindofs_proto::v1::{BeginWriteRequest, CreateRequest, EndWriteRequest, FileType, OpId};

use super::apply::done;
use super::context::{Begun, Ctx};
use super::fault::{Step, refuse};
use super::resolve::{self, Place};
use super::{Refusal, StoreError, View, intent, lock, namespace, rows, session};

/// Most clients that are remembered to have made a file that another one has made and nobody stored.
const MAKERS_MAX: usize = 256;
/// Largest file, bytes.
const SIZE_MAX: u64 = i64::MAX as u64;

/// Notes that a file was made which is not stored yet; its client may say that it is going to store it.
pub(super) fn made(ctx: &mut Ctx<'_>, inode: u64, row: &mut InodeRow, request: &CreateRequest) -> Step {
    let op = Some(intent::op_of(ctx)?.clone());
    row.own_attr = !resolve::keeps_attributes(ctx.view(), row.mount_id)?;
    let id = ctx.new_intent();
    (row.unstored, row.intent) = (true, id);
    let intent = if request.begin_write && ctx.batched {
        ctx.begun = Begun { intent: id, end_behind: request.end_behind };
        Intent::Write(Write { inode, end_behind: request.end_behind, ..Write::default() })
    } else {
        Intent::Made(Made { inode })
    };
    intent::write(ctx, id, &IntentRow { op, intent: Some(intent), ..IntentRow::default() });
    Ok(())
}

/// Notes that a file which is not stored yet was made by one more client: it does not go with the first one's session.
pub(super) fn made_too(ctx: &mut Ctx<'_>, row: &InodeRow) -> Step {
    let Some(op) = ctx.op.as_ref().filter(|_| row.unstored) else { return Ok(()) };
    let client_id = op.client_id.clone();
    let Some(mut intent) = intent::get(ctx.view(), row.intent)? else { return Ok(()) };
    let known = is_of(&intent, &client_id) || intent.makers.contains(&client_id);
    if known || !matches!(intent.intent, Some(Intent::Made(_) | Intent::Write(_))) {
        return Ok(());
    }
    intent.makers = living(ctx.view(), &intent.makers)?;
    if intent.makers.len() < MAKERS_MAX {
        intent.makers.push(client_id);
        intent::write(ctx, row.intent, &intent);
    }
    Ok(())
}

fn is_of(intent: &IntentRow, client_id: &[u8]) -> bool {
    intent.op.as_ref().is_some_and(|op| op.client_id == client_id)
}

fn living(view: &dyn View, client_ids: &[Bytes]) -> Result<Vec<Bytes>, StoreError> {
    let mut living = Vec::new();
    for client_id in client_ids {
        if session::lives(view, client_id)? {
            living.push(client_id.clone());
        }
    }
    Ok(living)
}

/// True while a client lives that has made a file which is not stored yet, beside the one whose it is.
pub(super) fn has_other_maker(view: &dyn View, intent: &IntentRow) -> Result<bool, StoreError> {
    Ok(!living(view, &intent.makers)?.is_empty())
}

/// Forgets a file that was made and never stored.
///
/// *Errors*: `Busy` while it is being stored.
pub(super) fn unmade(ctx: &mut Ctx<'_>, row: &InodeRow) -> Step {
    match intent::get(ctx.view(), row.intent)?.and_then(|row| row.intent) {
        Some(Intent::Made(_)) | None => intent::delete(ctx, row.intent),
        Some(_) => intent::is_free(row)?,
    }
    Ok(())
}

/// Announces that a client is going to store content.
///
/// *Errors*: `Stale` when the file is of another version by now, `NotFound` when it was removed, `Busy` while it is changed.
pub(super) fn begin_write(ctx: &mut Ctx<'_>, request: &BeginWriteRequest) -> Step<Answer> {
    let op = intent::op_of(ctx)?.clone();
    let inode = request.inode;
    let Some(row) = rows::inode(ctx.view(), inode)? else { return resolve::no_inode(inode) };
    if row.mount_id == 0 || row.r#type() != FileType::File {
        return refuse(Refusal::NoContent { inode });
    }
    resolve::writable(ctx.view(), row.mount_id)?;
    namespace::still_there(ctx, inode, &row)?;
    if row.version_token != request.base_token {
        return refuse(Refusal::StoredByAnother { inode });
    }
    let (id, makers) = if row.intent == 0 {
        (ctx.new_intent(), Vec::new())
    } else {
        match intent::get(ctx.view(), row.intent)? {
            // A file that was only made is stored by whoever does so first; the others have made it all the same.
            Some(made @ IntentRow { intent: Some(Intent::Made(_)), .. }) => {
                (row.intent, makers_but(made, &op.client_id))
            }
            _ => return intent::is_free(&row).map(|()| done()),
        }
    };
    let end_behind = request.end_behind && ctx.batched && row.unstored;
    let write = Write { inode, base_token: request.base_token.clone(), end_behind, ..Write::default() };
    let intent = IntentRow { op: Some(op), intent: Some(Intent::Write(write)), makers, ..IntentRow::default() };
    intent::write(ctx, id, &intent);
    rows::put_inode(ctx.txn, inode, &InodeRow { intent: id, ..row });
    ctx.begun = Begun { intent: id, end_behind };
    Ok(intent::pending(id))
}

/// All who have made a file, without one.
fn makers_but(made: IntentRow, client_id: &[u8]) -> Vec<Bytes> {
    let all = made.op.map(|op| op.client_id).into_iter().chain(made.makers);
    all.filter(|maker| maker != client_id).collect()
}

/// What came of it.
///
/// *Errors*: `Stale` when the intent has ended otherwise: by the end of the client's session.
pub(super) fn end_write(ctx: &mut Ctx<'_>, request: &EndWriteRequest) -> Step<Answer> {
    let op = intent::op_of(ctx)?.clone();
    let found = intent::get(ctx.view(), request.intent)?;
    let (write, owner, makers) = match found {
        Some(IntentRow { op: Some(owner), intent: Some(Intent::Write(write)), makers, .. }) => (write, owner, makers),
        _ => return refuse(Refusal::WriteEnded { intent: request.intent }),
    };
    if owner.client_id != op.client_id {
        return refuse(Refusal::WriteOfAnother { intent: request.intent });
    }
    let Some(stored) = &request.stored else {
        if ctx.batched {
            return refuse(Refusal::UnknownEndInBatch);
        }
        let write = Write { given_up: true, abandoned: request.abandoned, ..write };
        let row = IntentRow { op: Some(op), intent: Some(Intent::Write(write)), makers, ..IntentRow::default() };
        intent::write(ctx, request.intent, &row);
        return Ok(intent::pending(request.intent));
    };
    if stored.version_token.is_empty() || stored.size > SIZE_MAX {
        return refuse(Refusal::BadStoredContent);
    }
    let entry = UfsEntry {
        version_token: stored.version_token.clone(),
        size: stored.size,
        mtime_ns: stored.mtime_ns,
        ..UfsEntry::default()
    };
    intent::delete(ctx, request.intent);
    let Some(mut row) = rows::inode(ctx.view(), write.inode)? else { return resolve::no_inode(write.inode) };
    // The time is the client's: what the under-storage says of this version later does not replace it.
    row.own_attr |= !resolve::keeps_attributes(ctx.view(), row.mount_id)?;
    let changed_ns = if stored.ctime_ns == 0 { ctx.now } else { stored.ctime_ns.max(row.ctime_ns) };
    Ok(take(ctx, write.inode, row, &entry, Taken { changed_ns, extends: stored.extends_base }))
}

/// Ends the making or storing of a file with what lies in the under-storage.
pub(super) fn finish(ctx: &mut Ctx<'_>, request: &FinishIntent, inode: u64, base_token: &[u8]) -> Step<Answer> {
    let Some(row) = rows::inode(ctx.view(), inode)?.filter(|row| row.intent == request.id) else {
        intent::delete(ctx, request.id);
        return Ok(done());
    };
    if let Some(entry) = request.entry.as_ref().filter(|entry| entry.version_token != base_token) {
        intent::delete(ctx, request.id);
        return Ok(take(ctx, inode, row, entry, Taken { changed_ns: ctx.now, extends: false }));
    }
    if !row.unstored {
        intent::delete(ctx, request.id);
        let row = InodeRow { intent: 0, ..row };
        rows::put_inode(ctx.txn, inode, &row);
        return Ok(Answer::Attr(rows::attr(inode, &row)));
    }
    if let Some(made) = still_made(ctx, request.id, inode)? {
        intent::write(ctx, request.id, &made);
        return Ok(Answer::Attr(rows::attr(inode, &row)));
    }
    intent::delete(ctx, request.id);
    vanish(ctx, inode, row)?;
    Ok(done())
}

/// Whose a file is that is not stored: that of the client whose it was, if it lives and tries again, or else of all others that
/// have made it or locked it; a lock would keep nobody out if the next one made another file.
fn still_made(ctx: &Ctx<'_>, id: u64, inode: u64) -> Result<Option<IntentRow>, StoreError> {
    let view = ctx.view();
    let Some(intent) = intent::get(view, id)? else { return Ok(None) };
    let made = |op, makers| {
        Some(IntentRow { op: Some(op), intent: Some(Intent::Made(Made { inode })), makers, ..IntentRow::default() })
    };
    let makers = living(view, &intent.makers)?;
    let abandoned = matches!(&intent.intent, Some(Intent::Write(write)) if write.abandoned);
    let mut heirs = lock::holders(view, inode)?;
    heirs.extend(makers.iter().cloned());
    if let Some(op) = intent.op {
        if abandoned {
            heirs.remove(&op.client_id);
        } else if session::lives(view, &op.client_id)? {
            return Ok(made(op, makers));
        }
    }
    // None of its operations is answered by this.
    let heir = heirs.pop_first().map(|client_id| OpId { client_id, ..OpId::default() });
    Ok(heir.and_then(|heir| made(heir, heirs.into_iter().collect())))
}

/// How the content of a file has become another one.
struct Taken {
    changed_ns: i64,
    /// All of the content before is the beginning of the new one.
    extends: bool,
}

/// The content of a file is another one.
fn take(ctx: &mut Ctx<'_>, inode: u64, mut row: InodeRow, entry: &UfsEntry, taken: Taken) -> Answer {
    ctx.count(&row, -1);
    (row.size, row.mtime_ns, row.version_token) = (entry.size, entry.mtime_ns, entry.version_token.clone());
    (row.ctime_ns, row.born_index) = (taken.changed_ns, ctx.index);
    (row.intent, row.unstored) = (0, false);
    row.version += 1;
    if !taken.extends {
        row.prefix_since = row.version;
    }
    ctx.count(&row, 1);
    rows::put_inode(ctx.txn, inode, &row);
    Answer::Attr(rows::attr(inode, &row))
}

/// A file that was made and never stored is gone with its client.
fn vanish(ctx: &mut Ctx<'_>, inode: u64, row: InodeRow) -> Step {
    let parent = row.parent;
    if let Some(directory) = rows::inode(ctx.view(), parent)? {
        let content = rows::content_of(parent, &directory);
        if let Some(entry) = rows::entry(ctx.view(), content, &row.name)?.filter(|entry| entry.inode == inode) {
            let place = Place { parent, row: directory, name: row.name.clone(), entry: Some(entry) };
            namespace::remove(ctx, place, inode, row);
            return Ok(());
        }
    }
    ctx.drop_inode(inode);
    ctx.count(&row, -1);
    Ok(())
}
