//! The client gRPC services of a master: check at the door, propose or read, convert.

mod admin;
mod namespace;

use jindofs_proto::store::v1::Command;
use jindofs_proto::store::v1::command::Command as Kind;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::v1::OpId;
use jindofs_proto::v1::admin_server::AdminServer;
use jindofs_proto::v1::namespace_server::NamespaceServer;
use tokio::net::TcpListener;

use crate::config::MasterConfig;
use crate::error::{Error, Result};
use crate::master::raft::Handle;
use crate::rpc::server;
use crate::rpc::status::from_detail;
use crate::runtime::Shutdown;
use crate::types::MESSAGE_BYTES_MAX;

/// Serves clients until `stop`.
///
/// *Errors*: when the transport fails.
pub async fn serve(listener: TcpListener, handle: Handle, config: &MasterConfig, stop: Shutdown) -> Result<()> {
    let namespace = namespace::NamespaceService::new(handle.clone(), config.session_ttl);
    let namespace = NamespaceServer::new(namespace)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let admin = AdminServer::new(admin::AdminService(handle))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    server::serve(listener, server::routes(namespace).await?.add_service(admin), stop).await
}

/// Proposes a command; an error that applying it returned is an error here.
async fn propose(handle: &Handle, op: Option<OpId>, kind: Kind) -> Result<Answer> {
    let outcome = handle.propose(Command { op, command: Some(kind), time_ns: 0 }).await?;
    match outcome.outcome {
        Some(Answer::Error(detail)) => Err(from_detail(&detail)),
        Some(answer) => Ok(answer),
        None => Err(Error::internal("a command was answered with nothing")),
    }
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
    use crate::error::ErrorKind;

    #[test]
    fn mutations_without_a_proper_number_are_refused_at_the_door() {
        let op = |length: usize, seq| OpId { client_id: vec![7; length].into(), seq, acked_below: 0 };
        for bad in [None, Some(op(15, 1)), Some(op(16, 0))] {
            assert_eq!(check_op(bad.as_ref()).expect_err("refused").kind, ErrorKind::InvalidArgument);
        }
        check_op(Some(&op(16, 1))).expect("good");
    }
}
