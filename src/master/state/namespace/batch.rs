//! Many mutations as one log entry: applied in order, each with its own result, none undoing another.

use jindofs_proto::store::v1::op_outcome::Outcome as One;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::store::v1::{BatchOutcome, OpOutcome};
use jindofs_proto::v1::batch_op::Op;
use jindofs_proto::v1::{Attr, BatchOp, BatchRequest, MutationResponse};

use crate::master::state::context::{Begun, Ctx};
use crate::master::state::fault::{Fault, Step, refuse};
use crate::master::state::{Refusal, content, rows};
use crate::types::BATCH_MAX;

/// Applies a batch.
pub(crate) fn batch(ctx: &mut Ctx<'_>, request: &BatchRequest) -> Step<Answer> {
    if request.ops.len() > BATCH_MAX {
        return refuse(Refusal::BatchTooLong { operations: request.ops.len() as u64, most: BATCH_MAX as u64 });
    }
    let mut outcomes = Vec::with_capacity(request.ops.len());
    ctx.batched = true;
    for op in &request.ops {
        ctx.begun = Begun::default();
        let outcome = match one(ctx, op) {
            Ok(Answer::Attr(attr)) => One::Done(answered(Some(attr), ctx.begun)),
            Ok(Answer::Pending(_)) => One::Done(answered(None, ctx.begun)),
            Ok(_) => One::Done(MutationResponse::default()),
            Err(Fault::Refused(refusal)) => One::Refused(refusal.to_stored()),
            Err(fault) => return Err(fault),
        };
        outcomes.push(OpOutcome { outcome: Some(outcome) });
    }
    let mut directories = Vec::with_capacity(ctx.grown.len());
    for directory in std::mem::take(&mut ctx.grown) {
        if let Some(row) = rows::inode(ctx.view(), directory)? {
            directories.push(rows::attr(directory, &row));
        }
    }
    Ok(Answer::Batch(BatchOutcome { outcomes, directories }))
}

fn answered(attr: Option<Attr>, begun: Begun) -> MutationResponse {
    let Begun { intent, end_behind } = begun;
    MutationResponse { attr, intent, end_behind, ..MutationResponse::default() }
}

fn one(ctx: &mut Ctx<'_>, op: &BatchOp) -> Step<Answer> {
    match &op.op {
        Some(Op::Create(request)) => super::create(ctx, request),
        Some(Op::Mkdir(request)) => super::mkdir(ctx, request),
        Some(Op::Symlink(request)) => super::symlink(ctx, request),
        Some(Op::SetAttr(request)) => super::set_attr(ctx, request),
        Some(Op::Rename(request)) => super::rename(ctx, request),
        Some(Op::Unlink(request)) => super::unlink(ctx, request),
        Some(Op::Rmdir(request)) => super::rmdir(ctx, request),
        Some(Op::BeginWrite(request)) => content::begin_write(ctx, request),
        Some(Op::EndWrite(request)) => content::end_write(ctx, request),
        None => refuse(Refusal::UnknownOperation),
    }
}
