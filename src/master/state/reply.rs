//! Outcomes that clients may still ask for again.
//!
//! Small ones stand in the session's own row, which changes with every operation anyway: a client that waits for each
//! answer costs one row, not three. Large ones, and those beyond a few, have rows of their own.

use jindofs_proto::store::v1::{Outcome, SessionRow, StoredReply};
use prost::Message;

use super::{StoreError, Table, Txn, View, keys, rows};

/// Most outcomes in a session's row, and the largest of them, bytes.
const INLINE_MAX: usize = 4;
const INLINE_BYTES: usize = 512;

/// The outcome of operation `seq`, if it was executed and is not forgotten.
pub(super) fn find(
    view: &dyn View,
    client_id: &[u8],
    row: &SessionRow,
    seq: u64,
) -> Result<Option<Outcome>, StoreError> {
    if let Some(reply) = row.replies.iter().find(|reply| reply.seq == seq) {
        return Ok(Some(reply.outcome.clone().unwrap_or_default()));
    }
    if seq > row.apart_upto {
        return Ok(None);
    }
    rows::read(view, Table::Reply, &keys::reply(client_id, seq))
}

/// Stores the outcome of operation `seq`; the caller writes `row`.
pub(super) fn keep(txn: &mut dyn Txn, client_id: &[u8], row: &mut SessionRow, seq: u64, outcome: &Outcome) {
    if row.replies.len() < INLINE_MAX && outcome.encoded_len() <= INLINE_BYTES {
        row.replies.push(StoredReply { seq, outcome: Some(outcome.clone()) });
        return;
    }
    row.apart_upto = row.apart_upto.max(seq);
    rows::write(txn, Table::Reply, &keys::reply(client_id, seq), outcome);
}

/// Forgets the outcomes of operations below `below`; the caller writes `row`.
pub(super) fn forget(txn: &mut dyn Txn, client_id: &[u8], row: &mut SessionRow, below: u64) {
    row.replies.retain(|reply| reply.seq >= below);
    for seq in row.acked_below.max(1)..below.min(row.apart_upto.saturating_add(1)) {
        txn.delete(Table::Reply, &keys::reply(client_id, seq));
    }
    if row.apart_upto < below {
        row.apart_upto = 0;
    }
}
