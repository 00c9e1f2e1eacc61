//! [`Error`] to gRPC status and back. The kind and the leader hint travel as data in the status details.

use jindofs_proto::v1::ErrorDetail;
use prost::Message;
use tonic::{Code, Status};

use crate::error::{Error, ErrorKind};

/// Longest message of a status and of its details, in bytes. Both travel in headers, percent-encoded and in base64, and an
/// answer with more than 16 KiB of headers is refused as a whole by the receiver: nothing of the error would arrive.
const MESSAGE_BYTES_MAX: usize = 512;
const DETAIL_BYTES_MAX: usize = 2 << 10;

/// What stands for the rest of a text that was cut.
const ELLIPSIS: &str = "…";

/// The status a server answers with. A long message is cut, in the details after 2 KiB: it may repeat names and texts from
/// outside.
pub fn to_status(error: &Error) -> Status {
    let mut detail = to_detail(error);
    detail.message = shorten(&error.message, DETAIL_BYTES_MAX);
    let message = shorten(&error.message, MESSAGE_BYTES_MAX);
    Status::with_details(code_of(error.kind), message, detail.encode_to_vec().into())
}

/// The text, cut to so many bytes with an ellipsis for the rest.
fn shorten(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(bytes_max.saturating_sub(ELLIPSIS.len()));
    format!("{}{ELLIPSIS}", &text[..end])
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

    #[test]
    fn a_long_text_of_any_characters_is_cut_visibly_and_its_headers_stay_small() {
        let leader = Some(crate::error::LeaderHint { id: 7, address: "h".repeat(256) });
        for text in ["x".repeat(1 << 20), "é".repeat(3_000), "xé漢🦀".repeat(3_000), "\n%".repeat(3_000)] {
            let error = Error { kind: ErrorKind::FailedPrecondition, message: text.clone(), leader: leader.clone() };
            let status = to_status(&error);
            assert!(status.message().len() <= MESSAGE_BYTES_MAX && status.message().ends_with(ELLIPSIS));
            let seen = from_status(&status);
            let kept = seen.message.strip_suffix(ELLIPSIS).expect("cut visibly");
            assert!(text.starts_with(kept) && kept.len() > DETAIL_BYTES_MAX - 8, "{} bytes are kept", kept.len());
            assert_eq!((seen.kind, seen.leader), (error.kind, leader.clone()));
            let answer = status.into_http::<()>();
            // As HTTP/2 counts them.
            let size = |(name, value): (&http::HeaderName, &http::HeaderValue)| name.as_str().len() + value.len() + 32;
            let bytes: usize = answer.headers().iter().map(size).sum();
            assert!(bytes < 8 << 10, "{bytes} bytes of headers");
        }
        let exact = "x".repeat(MESSAGE_BYTES_MAX);
        assert_eq!(to_status(&Error::internal(exact.clone())).message(), exact, "what fits is not cut");
    }
}
