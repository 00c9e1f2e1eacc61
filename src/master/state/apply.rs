//! The one writer: dispatch of commands, exactly once.
//!
//! Outcomes are stored, with refusals as data: no text is made here, so that releases which word them differently hold the
//! same state.

use jindofs_proto::store::v1::command::Command as Body;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::store::v1::{Command, Done, Outcome};

use super::context::Ctx;
use super::fault::{Fault, Step};
use super::session::{self, Gate};
use super::{Refusal, StoreError, Txn, content, intent, job, load, lock, member, mount, namespace, purge, worker};

/// Applies the command of log entry `index`.
///
/// A command that carries an op id is executed at most once: repeated, it is answered with the stored outcome and
/// changes nothing. What the rules refuse is an outcome too.
///
/// *Errors*: the store failed, or the command is of a kind this release does not know. The node must stop: going on
/// would make it differ from the others. The transaction must be dropped.
pub fn apply(txn: &mut dyn Txn, index: u64, command: &Command) -> Result<Outcome, StoreError> {
    let Some(body) = &command.command else {
        return Err(StoreError(format!(
            "log entry {index} holds a command of a kind this release does not know: run the release that wrote it"
        )));
    };
    let ticket = match &command.op {
        None => None,
        Some(op) => match session::admit(txn, op) {
            Ok(Gate::Run(ticket)) => Some(ticket),
            Ok(Gate::Answer(outcome)) => return Ok(outcome),
            Err(Fault::Refused(refusal)) => return Ok(answer(refused(&refusal))),
            Err(Fault::Store(error)) => return Err(error),
        },
    };
    let mut ctx = Ctx::load(txn, index, command.time_ns)?;
    ctx.op.clone_from(&command.op);
    ctx.reserved = ticket.as_ref().map(|ticket| ticket.reserved().to_vec()).unwrap_or_default();
    let outcome = match run(&mut ctx, body) {
        Ok(body) => answer(body),
        Err(Fault::Refused(refusal)) => answer(refused(&refusal)),
        Err(Fault::Store(error)) => return Err(error),
    };
    let reserved = std::mem::take(&mut ctx.reserved);
    ctx.finish()?;
    if let Some(ticket) = ticket {
        ticket.store(txn, &outcome, reserved);
    }
    Ok(outcome)
}

fn answer(body: Answer) -> Outcome {
    Outcome { outcome: Some(body) }
}

/// The answer of a command that the rules refuse.
pub(super) fn refused(refusal: &Refusal) -> Answer {
    Answer::Refused(refusal.to_stored())
}

/// The answer of a command that has nothing to say.
pub(super) fn done() -> Answer {
    Answer::Done(Done {})
}

pub(super) fn run(ctx: &mut Ctx<'_>, body: &Body) -> Step<Answer> {
    match body {
        Body::Found(request) => member::found(ctx, request),
        Body::AdmitMember(request) => member::admit(ctx, request),
        Body::RecordBoot(request) => member::record_boot(ctx, request),
        Body::RecordWatermarks(request) => member::record_watermarks(ctx, request),
        Body::RetireMember(request) => member::retire(ctx, request),
        Body::ExpectMembers(request) => member::expect(ctx, request),
        Body::RemoveMembers(request) => member::remove(ctx, request),
        Body::PromoteMember(request) => member::promote(ctx, request),
        Body::OpenSession(request) => session::open(ctx, request),
        Body::CloseSession(request) => session::close(ctx, request),
        Body::ExpireSessions(request) => session::expire(ctx, request),
        Body::ReserveInodes(request) => session::reserve(ctx, request),
        Body::Create(request) => namespace::create(ctx, request),
        Body::Mkdir(request) => namespace::mkdir(ctx, request),
        Body::Symlink(request) => namespace::symlink(ctx, request),
        Body::SetAttr(request) => namespace::set_attr(ctx, request),
        Body::Rename(request) => namespace::rename(ctx, request),
        Body::Unlink(request) => namespace::unlink(ctx, request),
        Body::Rmdir(request) => namespace::rmdir(ctx, request),
        Body::Batch(request) => namespace::batch(ctx, request),
        Body::BeginWrite(request) => content::begin_write(ctx, request),
        Body::EndWrite(request) => content::end_write(ctx, request),
        Body::FinishIntent(request) => intent::finish(ctx, request),
        Body::SetLock(request) => lock::set(ctx, request),
        Body::AddMount(request) => mount::add(ctx, request),
        Body::ChangeMount(request) => mount::change(ctx, request),
        Body::RemoveMount(request) => mount::remove(ctx, request),
        Body::LoadEntries(request) => load::load_entries(ctx, request),
        Body::Purge(request) => purge::purge(ctx, request),
        Body::RegisterWorker(request) => worker::register(ctx, request),
        Body::DrainWorkers(request) => worker::drain(ctx, request),
        Body::RemoveWorkers(request) => worker::remove(ctx, request),
        Body::SubmitJob(request) => job::submit(ctx, request),
        Body::FinishJob(request) => job::finish(ctx, request),
    }
}
