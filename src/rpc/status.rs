//! [`Error`] to gRPC status and back. The kind and the leader hint travel as data in the status details.

use jindofs_proto::v1::ErrorDetail;
use prost::Message;
use tonic::{Code, Status};

use crate::error::{Error, ErrorKind};

/// The status a server answers with.
pub fn to_status(error: &Error) -> Status {
    let detail = to_detail(error);
    Status::with_details(code_of(error.kind), error.message.clone(), detail.encode_to_vec().into())
}

/// The error a client sees. A status without our details (a proxy's, or the transport's own) is judged by its code.
pub fn from_status(status: &Status) -> Error {
    if !status.details().is_empty()
        && let Ok(detail) = ErrorDetail::decode(status.details())
        && detail.kind() != ErrorKind::Unspecified
    {
        return from_detail(&detail);
    }
    let kind = match status.code() {
        Code::NotFound => ErrorKind::NotFound,
        Code::InvalidArgument => ErrorKind::InvalidArgument,
        Code::OutOfRange | Code::ResourceExhausted => ErrorKind::ResourceExhausted,
        Code::Unimplemented => ErrorKind::Unsupported,
        Code::DeadlineExceeded => ErrorKind::Timeout,
        // The connection broke or was never there: for a mutation the outcome may exist, which the OpId makes safe.
        Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Aborted => ErrorKind::Unavailable,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, format!("{}: {}", status.code(), status.message()))
}

/// The wire form of an error.
pub fn to_detail(error: &Error) -> ErrorDetail {
    ErrorDetail { kind: error.kind.into(), message: error.message.clone(), leader: error.leader.clone() }
}

/// The error behind its wire form.
pub fn from_detail(detail: &ErrorDetail) -> Error {
    Error { kind: detail.kind(), message: detail.message.clone(), leader: detail.leader.clone() }
}

fn code_of(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::InvalidArgument | ErrorKind::NameTooLong => Code::InvalidArgument,
        ErrorKind::PermissionDenied | ErrorKind::ReadOnly => Code::PermissionDenied,
        ErrorKind::NotLeader | ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::OutcomeUnknown | ErrorKind::SessionExpired => Code::Aborted,
        ErrorKind::ResourceExhausted | ErrorKind::NoSpace => Code::ResourceExhausted,
        ErrorKind::Unsupported => Code::Unimplemented,
        ErrorKind::Corrupted => Code::DataLoss,
        ErrorKind::Timeout => Code::DeadlineExceeded,
        ErrorKind::NotEmpty
        | ErrorKind::NotADirectory
        | ErrorKind::IsADirectory
        | ErrorKind::CrossMount
        | ErrorKind::Busy
        | ErrorKind::Stale
        | ErrorKind::Foreign
        | ErrorKind::Loop
        | ErrorKind::FailedPrecondition => Code::FailedPrecondition,
        ErrorKind::UnderStorage | ErrorKind::Internal | ErrorKind::Unspecified => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_message_and_leader_survive_the_wire() {
        let leader = Some(crate::error::LeaderHint { id: 7, address: "m:8101".into() });
        for number in 1..=26 {
            let kind = ErrorKind::try_from(number).expect("a kind");
            let sent = Error { kind, message: format!("{kind:?} happened"), leader: leader.clone() };
            let seen = from_status(&to_status(&sent));
            assert_eq!((seen.kind, &seen.message, &seen.leader), (kind, &sent.message, &leader));
        }
    }
}
