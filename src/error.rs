//! The one error taxonomy that crosses a process. The kind decides gRPC code, errno and exit code, in one table each.

pub use jindofs_proto::v1::{ErrorKind, LeaderHint};

use crate::types::PathProblem;

/// What went wrong (kind), and for people: what, where and what to do (message).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Decides what the caller does.
    pub kind: ErrorKind,
    /// For people.
    pub message: String,
    /// Whom to ask instead, with `NotLeader`.
    pub leader: Option<LeaderHint>,
}

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), leader: None }
    }

    /// `Internal`, for what should not happen.
    pub fn internal(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Internal, message)
    }

    /// `InvalidArgument`.
    pub fn invalid(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::InvalidArgument, message)
    }

    /// `Unavailable`: nothing was done, retry.
    pub fn unavailable(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Unavailable, message)
    }

    /// Puts `context` before the message: "open /x: permission denied".
    #[must_use]
    pub fn context(mut self, context: impl std::fmt::Display) -> Error {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// True if the same request (same OpId) may be sent again, here or to another master.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::NotLeader
                | ErrorKind::Unavailable
                | ErrorKind::OutcomeUnknown
                | ErrorKind::ResourceExhausted
                | ErrorKind::Timeout
        )
    }

    /// True if nothing was done, and the same may be asked for again.
    pub fn was_not_begun(&self) -> bool {
        matches!(self.kind, ErrorKind::ResourceExhausted | ErrorKind::NotLeader | ErrorKind::Unavailable)
    }

    /// Exit code of a command that ends with this error: 1 failed, 2 usage, 3 not found, 4 no leader or unavailable.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            ErrorKind::InvalidArgument | ErrorKind::NameTooLong => 2,
            ErrorKind::NotFound => 3,
            ErrorKind::NotLeader | ErrorKind::Unavailable | ErrorKind::OutcomeUnknown | ErrorKind::Timeout => 4,
            _ => 1,
        }
    }
}

impl From<PathProblem> for Error {
    fn from(problem: PathProblem) -> Error {
        let kind = match problem {
            PathProblem::PathTooLong(_) | PathProblem::NameTooLong(_) => ErrorKind::NameTooLong,
            PathProblem::NotAbsolute(_) | PathProblem::BadName(_) | PathProblem::NameOfRoot => {
                ErrorKind::InvalidArgument
            }
        };
        Error::new(kind, problem.to_string())
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Error {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            std::io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
            std::io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            std::io::ErrorKind::ReadOnlyFilesystem => ErrorKind::ReadOnly,
            _ => ErrorKind::Internal,
        };
        Error::new(kind, error.to_string())
    }
}
