//! The registry of workers: who they are, and which of them have to leave. Whether they live and what they hold is soft
//! state elsewhere.

use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::store::v1::{DrainWorkers, RegisterWorker, RemoveWorkers, WorkerRow};

use super::apply::done;
use super::context::Ctx;
use super::fault::{Step, refuse};
use super::{Refusal, StoreError, Table, View, rows};

/// Most workers on record.
pub(super) const WORKERS_MAX: usize = 10_000;
/// Longest worker id, bytes.
const ID_MAX: usize = 255;
/// Longest reason of a drain, bytes.
const REASON_MAX: usize = 255;

/// Records a start of a worker.
///
/// *Errors*: `Stale` for an epoch below the recorded one: an older process that lingers, or an old copy of its disk.
pub(super) fn register(ctx: &mut Ctx<'_>, request: &RegisterWorker) -> Step<Answer> {
    let Some(worker) = &request.worker else { return refuse(Refusal::NoWorker) };
    if worker.id.is_empty() || worker.id.len() > ID_MAX {
        return refuse(Refusal::BadWorkerId { most: ID_MAX as u64 });
    }
    let mut row = worker.clone();
    match get(ctx.view(), &worker.id)? {
        Some(known) if worker.epoch < known.epoch => {
            let (known, epoch) = (known.epoch, worker.epoch);
            return refuse(Refusal::OldEpoch { worker: worker.id.clone().into(), known, epoch });
        }
        // Whether it has to leave is not its own to say.
        Some(known) => {
            (row.draining, row.drain_reason) = (known.draining, known.drain_reason);
            if row.draining {
                ctx.counters.drains_version += 1;
            }
        }
        None if all(ctx.view())?.len() >= WORKERS_MAX => {
            return refuse(Refusal::TooManyWorkers { most: WORKERS_MAX as u64 });
        }
        None => {}
    }
    put(ctx, &row);
    Ok(done())
}

/// Marks workers that have to leave, or takes the mark away.
///
/// *Errors*: `NotFound` for a worker that is not on record, and nothing is changed.
pub(super) fn drain(ctx: &mut Ctx<'_>, request: &DrainWorkers) -> Step<Answer> {
    if request.reason.len() > REASON_MAX {
        return refuse(Refusal::ReasonTooLong { most: REASON_MAX as u64 });
    }
    let mut rows = Vec::new();
    for id in &request.worker_ids {
        rows.push(known(ctx.view(), id)?);
    }
    let reason = if request.cancel { String::new() } else { request.reason.clone() };
    for row in rows.into_iter().filter(|row| row.draining == request.cancel) {
        ctx.counters.drains_version += 1;
        put(ctx, &WorkerRow { draining: !request.cancel, drain_reason: reason.clone(), ..row });
    }
    Ok(done())
}

/// Forgets workers. One that is not on record is forgotten already.
pub(super) fn remove(ctx: &mut Ctx<'_>, request: &RemoveWorkers) -> Step<Answer> {
    for id in &request.worker_ids {
        let Some(row) = get(ctx.view(), id)? else { continue };
        if row.draining {
            ctx.counters.drains_version += 1;
        }
        ctx.txn.delete(Table::Worker, id.as_bytes());
    }
    Ok(done())
}

fn get(view: &dyn View, id: &str) -> Result<Option<WorkerRow>, StoreError> {
    rows::read(view, Table::Worker, id.as_bytes())
}

fn known(view: &dyn View, id: &str) -> Step<WorkerRow> {
    match get(view, id)? {
        Some(row) => Ok(row),
        None => refuse(Refusal::NoSuchWorker { worker: id.to_owned().into() }),
    }
}

fn put(ctx: &mut Ctx<'_>, row: &WorkerRow) {
    rows::write(ctx.txn, Table::Worker, row.id.as_bytes(), row);
}

/// Every worker, by id.
pub(super) fn all(view: &dyn View) -> Result<Vec<WorkerRow>, StoreError> {
    Ok(rows::scan(view, Table::Worker, &[], WORKERS_MAX)?.into_iter().map(|(_, worker)| worker).collect())
}
