//! Client sessions: what makes a mutation happen once, however often it is sent.
//!
//! Promises: a (client id, seq) is executed at most once; as long as the client has not acknowledged the answer and its
//! session lives, a repetition gets the first outcome; after that it gets a definite refusal, never a second execution.
//! At most [`WINDOW`] outcomes are kept per session.

use bytes::Bytes;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::store::v1::{
    CloseSession, ExpireSessions, InodeRange, OpenSession, Outcome, ReserveInodes, ReservedRange, SessionRow,
};
use jindofs_proto::v1::OpId;

use super::apply::done;
use super::context::{CLOCK_BEHIND_MAX_NS, Ctx};
use super::fault::{Step, refuse};
use super::{Refusal, StoreError, Table, Txn, View, keys, lock, reply, reserved, rows};

/// Most operations of one client from the lowest one it has no answer for: further ones must wait.
pub const WINDOW: u64 = 64;
/// Most live sessions.
const SESSIONS_MAX: u64 = 100_000;
/// Most sessions one command expires.
const EXPIRE_MAX: usize = 1000;
/// Longest description, bytes.
const DESCRIPTION_MAX: usize = 1024;
/// How long an ended session is remembered, so that no late duplicate of OpenSession brings it back. One hour: longer
/// than any message is under way.
const ENDED_KEPT_NS: i64 = 3_600_000_000_000;
/// Most inode numbers set aside at a time.
const RESERVE_MAX: u32 = 65_536;
/// Ranges of them that a session may have: one in use, and the next.
const RANGES_MAX: usize = 4;
/// Rows each OpenSession looks at to drop ended sessions: more than it adds, so that they cannot pile up.
const SWEEP: usize = 4;

/// What to do with an operation.
pub(super) enum Gate {
    /// It was executed before: this is what came out.
    Answer(Outcome),
    /// Execute it, then store its outcome with the ticket.
    Run(Ticket),
}

/// The right to execute one operation.
pub(super) struct Ticket {
    client_id: Bytes,
    seq: u64,
    acked_below: u64,
    row: SessionRow,
}

/// Decides whether an operation runs. Changes nothing.
///
/// *Errors*: `SessionExpired` without a live session, or for an answer that was acknowledged and forgotten;
/// `InvalidArgument` for a malformed op id or one beyond the window.
pub(super) fn admit(txn: &dyn Txn, op: &OpId) -> Step<Gate> {
    let OpId { client_id, seq, acked_below } = op;
    check_client_id(client_id)?;
    if *seq == 0 || acked_below > seq {
        return refuse(Refusal::BadOpNumbers { seq: *seq, acked_below: *acked_below });
    }
    let row = match rows::read::<SessionRow>(txn, Table::Session, client_id)? {
        Some(row) if row.ended_ns == 0 => row,
        _ => return refuse(Refusal::NoSession),
    };
    if *seq < row.acked_below {
        return refuse(Refusal::OutcomeForgotten { seq: *seq });
    }
    if let Some(outcome) = reply::find(txn, client_id, &row, *seq)? {
        return Ok(Gate::Answer(outcome));
    }
    let acked_below = row.acked_below.max(*acked_below).max(1);
    if seq - acked_below >= WINDOW {
        return refuse(Refusal::BeyondWindow { seq: *seq, window: WINDOW, acked_below });
    }
    Ok(Gate::Run(Ticket { client_id: client_id.clone(), seq: *seq, acked_below, row }))
}

impl Ticket {
    /// Inode numbers set aside for the session.
    pub(super) fn reserved(&self) -> &[ReservedRange] {
        &self.row.reserved
    }

    /// Stores the outcome and what is left of the numbers set aside, and forgets the outcomes that the client has
    /// acknowledged.
    pub(super) fn store(mut self, txn: &mut dyn Txn, outcome: &Outcome, reserved: Vec<ReservedRange>) {
        self.row.reserved = reserved;
        reply::forget(txn, &self.client_id, &mut self.row, self.acked_below);
        self.row.acked_below = self.acked_below;
        self.row.last_seq = self.row.last_seq.max(self.seq);
        reply::keep(txn, &self.client_id, &mut self.row, self.seq, outcome);
        rows::write(txn, Table::Session, &self.client_id, &self.row);
    }
}

/// Stores the final outcome of an operation that was answered with "pending", and of no other. Without the session nobody will
/// ask.
pub(super) fn replace(txn: &mut dyn Txn, op: &OpId, outcome: &Outcome) -> Result<(), StoreError> {
    let Some(mut row) = rows::read::<SessionRow>(txn, Table::Session, &op.client_id)?.filter(|row| row.ended_ns == 0)
    else {
        return Ok(());
    };
    if op.seq < row.acked_below {
        return Ok(());
    }
    match reply::find(txn, &op.client_id, &row, op.seq)? {
        Some(Outcome { outcome: Some(Answer::Pending(_)) }) => {}
        _ => return Ok(()),
    }
    row.replies.retain(|reply| reply.seq != op.seq);
    reply::keep(txn, &op.client_id, &mut row, op.seq, outcome);
    rows::write(txn, Table::Session, &op.client_id, &row);
    Ok(())
}

/// The stored outcome of an operation, of a live session.
pub(super) fn outcome(view: &dyn View, op: &OpId) -> Result<Option<Outcome>, StoreError> {
    let row = rows::read::<SessionRow>(view, Table::Session, &op.client_id)?.filter(|row| row.ended_ns == 0);
    row.map_or(Ok(None), |row| reply::find(view, &op.client_id, &row, op.seq))
}

/// True while a client's session lives.
pub(super) fn lives(view: &dyn View, client_id: &[u8]) -> Result<bool, StoreError> {
    Ok(rows::read::<SessionRow>(view, Table::Session, client_id)?.is_some_and(|row| row.ended_ns == 0))
}

fn check_client_id(client_id: &[u8]) -> Step {
    if client_id.len() == 16 {
        return Ok(());
    }
    refuse(Refusal::BadClientId { bytes: client_id.len() as u64 })
}

/// Opens a session; for one that is open, nothing changes.
pub(super) fn open(ctx: &mut Ctx<'_>, request: &OpenSession) -> Step<Answer> {
    check_client_id(&request.client_id)?;
    if request.description.len() > DESCRIPTION_MAX {
        return refuse(Refusal::DescriptionTooLong { most: DESCRIPTION_MAX as u64 });
    }
    match rows::read::<SessionRow>(ctx.view(), Table::Session, &request.client_id)? {
        Some(row) if row.ended_ns == 0 => return Ok(done()),
        Some(_) => return refuse(Refusal::SessionEnded),
        None => {}
    }
    if ctx.counters.sessions >= SESSIONS_MAX {
        return refuse(Refusal::TooManySessions { most: SESSIONS_MAX });
    }
    sweep(ctx)?;
    let row = SessionRow {
        description: request.description.clone(),
        opened_ns: ctx.now,
        acked_below: 1,
        ..SessionRow::default()
    };
    rows::write(ctx.txn, Table::Session, &request.client_id, &row);
    ctx.counters.sessions += 1;
    Ok(done())
}

/// Ends a session that its client does not need any more.
pub(super) fn close(ctx: &mut Ctx<'_>, request: &CloseSession) -> Step<Answer> {
    check_client_id(&request.client_id)?;
    end(ctx, &request.client_id)?;
    Ok(done())
}

/// Sets inode numbers aside. The oldest ones that the session has not used are given up for them.
pub(super) fn reserve(ctx: &mut Ctx<'_>, request: &ReserveInodes) -> Step<Answer> {
    check_client_id(&request.client_id)?;
    if request.count == 0 || request.count > RESERVE_MAX {
        return refuse(Refusal::BadReserveCount { most: RESERVE_MAX.into() });
    }
    let row = rows::read::<SessionRow>(ctx.view(), Table::Session, &request.client_id)?.filter(|row| row.ended_ns == 0);
    let Some(mut row) = row else { return refuse(Refusal::ReserveWithoutSession) };
    let range = InodeRange { first: ctx.counters.next_inode, count: request.count };
    ctx.counters.next_inode += u64::from(request.count);
    if row.reserved.len() >= RANGES_MAX {
        row.reserved.remove(0);
    }
    row.reserved.push(reserved::untouched(range));
    rows::write(ctx.txn, Table::Session, &request.client_id, &row);
    Ok(Answer::Reserved(range))
}

/// Ends sessions that were not renewed.
pub(super) fn expire(ctx: &mut Ctx<'_>, request: &ExpireSessions) -> Step<Answer> {
    if request.client_ids.len() > EXPIRE_MAX {
        return refuse(Refusal::TooManyToExpire { most: EXPIRE_MAX as u64 });
    }
    for client_id in &request.client_ids {
        check_client_id(client_id)?;
    }
    for client_id in &request.client_ids {
        end(ctx, client_id)?;
    }
    Ok(done())
}

/// Forgets the outcomes and locks of a session and leaves a mark; without a live session, nothing happens.
fn end(ctx: &mut Ctx<'_>, client_id: &[u8]) -> Result<(), StoreError> {
    let Some(mut row) = rows::read::<SessionRow>(ctx.view(), Table::Session, client_id)? else { return Ok(()) };
    if row.ended_ns != 0 {
        return Ok(());
    }
    reply::forget(ctx.txn, client_id, &mut row, u64::MAX);
    // The mark must not look alive should every clock stand at zero.
    let mark = SessionRow { ended_ns: ctx.now.max(1), ..SessionRow::default() };
    rows::write(ctx.txn, Table::Session, client_id, &mark);
    ctx.counters.sessions = ctx.counters.sessions.saturating_sub(1);
    lock::forget_client(ctx, client_id)
}

/// Drops the marks of long-ended sessions, a few rows at a time, round and round the table.
fn sweep(ctx: &mut Ctx<'_>) -> Result<(), StoreError> {
    let from = ctx.view().get(Table::Meta, keys::SESSION_SWEEP)?.unwrap_or_default();
    let found = ctx.view().scan(Table::Session, &[], &from, SWEEP)?;
    let next = match found.last() {
        Some((key, _)) if found.len() == SWEEP => key.to_vec(),
        _ => Vec::new(),
    };
    for (key, value) in found {
        let row: SessionRow = rows::decode(Table::Session, &key, value)?;
        if row.ended_ns == 0 {
            continue;
        }
        if ctx.now.saturating_sub(row.ended_ns) > ENDED_KEPT_NS {
            ctx.txn.delete(Table::Session, &key);
        } else if row.ended_ns.saturating_sub(ctx.now) > CLOCK_BEHIND_MAX_NS {
            // Made while the clock was wrong: without this the mark would stay until that time has come.
            let mark = SessionRow { ended_ns: ctx.now.max(1), ..row };
            rows::write(ctx.txn, Table::Session, &key, &mark);
        }
    }
    if next != from {
        ctx.txn.put(Table::Meta, keys::SESSION_SWEEP, next);
    }
    Ok(())
}
