//! How a step of the core ends early: refused (an outcome like any other), or the store failed (the node stops).

use crate::error::{Error, ErrorKind};
use crate::types::PathProblem;
use jindofs_proto::v1::ErrorDetail;

use super::StoreError;

/// Why a step ended early.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The store failed: nothing may be acknowledged.
    Store(StoreError),
    /// The rules say no. Nothing was changed.
    Refused(Error),
}

/// Result of a step.
pub(crate) type Step<T = ()> = Result<T, Fault>;

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Fault {
        Fault::Store(error)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Refused(error)
    }
}

impl From<PathProblem> for Fault {
    fn from(problem: PathProblem) -> Fault {
        Fault::Refused(problem.into())
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Error {
        Error::internal(error.to_string())
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Error {
        match fault {
            Fault::Store(error) => error.into(),
            Fault::Refused(error) => error,
        }
    }
}

/// A refusal.
pub(crate) fn refuse<T>(kind: ErrorKind, message: impl Into<String>) -> Step<T> {
    Err(Fault::Refused(Error::new(kind, message)))
}

/// The stored form of a refusal.
pub(crate) fn detail(error: Error) -> ErrorDetail {
    ErrorDetail { kind: error.kind.into(), message: error.message, leader: error.leader }
}

/// Bytes for a message.
pub(crate) fn show(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
