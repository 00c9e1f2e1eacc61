//! Batches: many changes as one log entry, of which some may announce or end the storing of content below mounts.
//!
//! What cannot begin is refused by itself and holds nothing up: its place in the batch stays, so that a repetition finds
//! each answer where the first one had it.

use futures::future::join_all;
use jindofs_proto::store::v1::command::Command as Kind;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::v1::batch_op::Op;
use jindofs_proto::v1::batch_result::Result as Body;
use jindofs_proto::v1::{BatchOp, BatchRequest, BatchResponse, BatchResult, MutationResponse, OpId};

use super::Intents;
use super::locks::Guard;
use crate::error::{Error, ErrorKind, Result};
use crate::master::raft::grows;
use crate::master::state::plan::Scope;
use crate::master::state::query;
use crate::master::wording::batch_response;
use crate::rpc::status::to_detail;

impl Intents {
    /// Executes a batch.
    ///
    /// *Errors*: those of a proposal; what is wrong with one of its operations is in that one's result.
    ///
    /// *Durability*: on `Ok` everything that the results say is on the disks of a quorum.
    pub async fn batch(&self, mut request: BatchRequest) -> Result<BatchResponse> {
        let kinds: Vec<Option<Kind>> = request.ops.iter().map(kind_of).collect();
        let op = request.op.clone();
        let scopes = join_all(kinds.iter().map(async |kind| match kind {
            Some(kind) => self.scope(kind).await,
            None => Ok(None),
        }))
        .await;
        let mut refused = self.without_room(&kinds);
        let mut held = Vec::new();
        for (at, scope) in scopes.into_iter().enumerate() {
            match scope.and_then(|scope| scope.map(|scope| self.hold_in_batch(&scope, op.as_ref())).transpose()) {
                Ok(guard) => held.extend(guard),
                Err(error) if !refused.iter().any(|(known, _)| *known == at) => refused.push((at, error)),
                Err(_) => {}
            }
        }
        for (at, _) in &refused {
            request.ops[*at].op = None;
        }
        let mut response = match self.propose(op, Kind::Batch(request)).await? {
            Answer::Batch(batch) => batch_response(batch),
            other => return Err(Error::internal(format!("a batch was answered with {other:?}"))),
        };
        drop(held);
        for (at, error) in refused {
            // Unless it is the answer of an earlier attempt, in which it could begin.
            if let Some(BatchResult { result: Some(result @ Body::Error(_)) }) = response.results.get_mut(at) {
                *result = Body::Error(to_detail(&error));
            }
        }
        self.say_where(&kinds, &mut response)?;
        Ok(response)
    }

    /// What full disks refuse of a batch of which the rest can be done: removals and endings must not wait for it.
    fn without_room(&self, kinds: &[Option<Kind>]) -> Vec<(usize, Error)> {
        let Some(refusal) = self.0.handle.refusal_of_growth() else { return Vec::new() };
        let grows = |kind: &Option<Kind>| kind.as_ref().is_some_and(grows);
        if refusal.kind != ErrorKind::NoSpace || kinds.iter().all(grows) {
            // The whole of it is refused, like any other command.
            return Vec::new();
        }
        let refused = kinds.iter().enumerate().filter(|(_, kind)| grows(kind));
        refused.map(|(at, _)| (at, refusal.clone())).collect()
    }

    /// Holds what an operation changes. A batch waits for nobody: a change under way may take as long as its under-storage.
    fn hold_in_batch(&self, scope: &Scope, op: Option<&OpId>) -> Result<Guard> {
        let busy = || Error::new(ErrorKind::ResourceExhausted, "another change of it is under way: send it alone");
        let guard = self.0.locks.try_all(scope).ok_or_else(busy)?;
        self.may_begin(scope, op)?;
        Ok(guard)
    }

    /// Adds where what was begun has to be stored.
    fn say_where(&self, kinds: &[Option<Kind>], response: &mut BatchResponse) -> Result<()> {
        let begun = |result: &BatchResult| matches!(&result.result, Some(Body::Ok(done)) if done.intent != 0);
        if !response.results.iter().any(begun) {
            return Ok(());
        }
        let store = self.leaders_store()?;
        let view = store.view();
        for (kind, result) in kinds.iter().zip(&mut response.results) {
            let Some(Body::Ok(done)) = result.result.as_mut().filter(|_| begun_of(kind.as_ref())) else { continue };
            if done.intent != 0
                && let Err(error) = complete(&view, kind.as_ref(), done)
            {
                // Gone again meanwhile.
                result.result = Some(Body::Error(to_detail(&error)));
            }
        }
        Ok(())
    }
}

fn begun_of(kind: Option<&Kind>) -> bool {
    matches!(kind, Some(Kind::Create(_) | Kind::BeginWrite(_)))
}

fn complete(view: &impl crate::master::state::View, kind: Option<&Kind>, done: &mut MutationResponse) -> Result<()> {
    let inode = match (kind, &done.attr) {
        (Some(Kind::BeginWrite(request)), _) => request.inode,
        (_, Some(attr)) => attr.inode,
        _ => return Ok(()),
    };
    done.ufs_path = query::ufs_path(view, inode)?.1.into();
    done.attr = Some(query::attr(view, inode)?);
    Ok(())
}

/// The command that an operation would be by itself; `None` for one that is not understood.
fn kind_of(op: &BatchOp) -> Option<Kind> {
    Some(match op.op.clone()? {
        Op::Create(request) => Kind::Create(request),
        Op::Mkdir(request) => Kind::Mkdir(request),
        Op::Symlink(request) => Kind::Symlink(request),
        Op::SetAttr(request) => Kind::SetAttr(request),
        Op::Rename(request) => Kind::Rename(request),
        Op::Unlink(request) => Kind::Unlink(request),
        Op::Rmdir(request) => Kind::Rmdir(request),
        Op::BeginWrite(request) => Kind::BeginWrite(request),
        Op::EndWrite(request) => Kind::EndWrite(request),
    })
}
