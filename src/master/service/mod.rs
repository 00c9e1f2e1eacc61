//! The client gRPC services of a master: check at the door, propose or read, convert.

mod admin;
mod block;
mod invalidation;
mod job;
mod mounts;
mod namespace;

use std::sync::Arc;

use jindofs_proto::store::v1::Command;
use jindofs_proto::store::v1::command::Command as Kind;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::v1::OpId;
use jindofs_proto::v1::admin_server::AdminServer;
use jindofs_proto::v1::block_server::BlockServer;
use jindofs_proto::v1::job_server::JobServer;
use jindofs_proto::v1::namespace_server::NamespaceServer;
use tokio::net::TcpListener;
use tonic::{Response, Status};

use crate::error::{Error, ErrorKind, Result};
use crate::master::intents::Intents;
use crate::master::metadata::Metadata;
use crate::master::raft::Handle;
use crate::master::view::{Drains, Progress, Sessions, Sizes, Workers};
use crate::master::wording::answer_of;
use crate::rpc::server;
use crate::rpc::status::to_status;
use crate::runtime::{Fail, Shutdown, failpoint};
use crate::types::MESSAGE_BYTES_MAX;
use crate::ufs;

/// What the services and duties of one master share.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The member of the group.
    pub handle: Handle,
    /// The read side of the tree.
    pub metadata: Metadata,
    /// Changes below mounts.
    pub intents: Intents,
    /// Under-storages.
    pub storage: Arc<ufs::Registry>,
    /// Workers, as they report.
    pub workers: Arc<Workers>,
    /// Client sessions, as they are renewed.
    pub sessions: Arc<Sessions>,
    /// Drains under way.
    pub drains: Arc<Drains>,
    /// Jobs under way.
    pub progress: Arc<Progress>,
    /// What lies in the under-storages.
    pub sizes: Arc<Sizes>,
}

/// Serves clients until `stop`.
///
/// *Errors*: when the transport fails.
pub async fn serve(listener: TcpListener, parts: Parts, stop: Shutdown) -> Result<()> {
    macro_rules! limited {
        ($server:expr) => {
            $server.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX)
        };
    }
    let routes = server::routes(limited!(NamespaceServer::new(namespace::NamespaceService(parts.clone())))).await?;
    let invalidation = invalidation::InvalidationService { parts: parts.clone(), stop: stop.clone() };
    let routes = routes
        .add_service(invalidation::InvalidationServer(invalidation))
        .add_service(limited!(BlockServer::new(block::BlockService(parts.clone()))))
        .add_service(limited!(JobServer::new(job::JobService(parts.clone()))))
        .add_service(limited!(AdminServer::new(admin::AdminService(parts))));
    server::serve(listener, routes, stop).await
}

fn answer<T>(result: Result<T>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|error| to_status(&error))
}

/// The answer to a change, which tests let get lost on its way: to its client that is a broken connection.
fn delivered<T>(answer: Result<T>) -> Result<T> {
    match failpoint("service.reply") {
        Fail::Skip => Err(Error::new(ErrorKind::OutcomeUnknown, "the answer was dropped by a failpoint")),
        _ => answer,
    }
}

/// Proposes a command; that it was refused is an error here.
async fn propose(handle: &Handle, op: Option<OpId>, kind: Kind) -> Result<Answer> {
    answer_of(handle.propose(Command { op, command: Some(kind), time_ns: 0 }).await?)
}

/// Every mutation of a client is numbered.
fn check_op(op: Option<&OpId>) -> Result<()> {
    let op = op
        .ok_or_else(|| Error::invalid("op is missing: every mutation carries the client's id and a sequence number"))?;
    check_client(&op.client_id)?;
    if op.seq == 0 {
        return Err(Error::invalid("op.seq is 0: sequence numbers start at 1"));
    }
    Ok(())
}

fn check_client(id: &[u8]) -> Result<()> {
    if id.len() != 16 {
        return Err(Error::invalid(format!("client_id has {} bytes: 16 random bytes are needed", id.len())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mutations_without_a_proper_number_are_refused_at_the_door() {
        let op = |length: usize, seq| OpId { client_id: vec![7; length].into(), seq, acked_below: 0 };
        for bad in [None, Some(op(15, 1)), Some(op(16, 0))] {
            assert_eq!(check_op(bad.as_ref()).expect_err("refused").kind, ErrorKind::InvalidArgument);
        }
        check_op(Some(&op(16, 1))).expect("good");
    }
}
