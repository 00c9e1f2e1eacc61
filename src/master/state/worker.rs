//! The registry of workers: who they are. Whether they live and what they hold is soft state elsewhere.

use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::store::v1::{RegisterWorker, WorkerRow};

use super::apply::done;
use super::context::Ctx;
use super::fault::{Step, refuse};
use super::{StoreError, Table, View, rows};
use crate::error::ErrorKind;

/// Most workers on record.
pub(super) const WORKERS_MAX: usize = 10_000;
/// Longest worker id, bytes.
const ID_MAX: usize = 255;

/// Records a start of a worker.
///
/// *Errors*: `Stale` for an epoch below the recorded one: an older process that lingers, or an old copy of its disk.
pub(super) fn register(ctx: &mut Ctx<'_>, request: &RegisterWorker) -> Step<Answer> {
    let Some(worker) = &request.worker else {
        return refuse(ErrorKind::InvalidArgument, "the request has no worker");
    };
    if worker.id.is_empty() || worker.id.len() > ID_MAX {
        return refuse(ErrorKind::InvalidArgument, format!("a worker id has 1 to {ID_MAX} bytes"));
    }
    match rows::read::<WorkerRow>(ctx.view(), Table::Worker, worker.id.as_bytes())? {
        Some(known) if worker.epoch < known.epoch => {
            let message =
                format!("worker {} has registered with epoch {}, newer than {}", worker.id, known.epoch, worker.epoch);
            return refuse(ErrorKind::Stale, message);
        }
        Some(_) => {}
        None if all(ctx.view())?.len() >= WORKERS_MAX => {
            return refuse(ErrorKind::ResourceExhausted, format!("{WORKERS_MAX} workers are on record"));
        }
        None => {}
    }
    rows::write(ctx.txn, Table::Worker, worker.id.as_bytes(), worker);
    Ok(done())
}

/// Every worker, by id.
pub(super) fn all(view: &dyn View) -> Result<Vec<WorkerRow>, StoreError> {
    Ok(rows::scan(view, Table::Worker, &[], WORKERS_MAX)?.into_iter().map(|(_, worker)| worker).collect())
}
