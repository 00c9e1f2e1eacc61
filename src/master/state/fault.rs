//! How a step of the core ends early: refused (an outcome like any other), or the store failed (the node stops).

use super::{Refusal, StoreError};
use crate::types::PathProblem;

/// Why a step ended early.
#[derive(Debug)]
pub enum Fault {
    /// The store failed: nothing may be acknowledged.
    Store(StoreError),
    /// The rules say no. Nothing was changed.
    Refused(Refusal),
}

/// Result of a step.
pub type Step<T = ()> = Result<T, Fault>;

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Fault {
        Fault::Store(error)
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Fault {
        Fault::Refused(refusal)
    }
}

impl From<PathProblem> for Fault {
    fn from(problem: PathProblem) -> Fault {
        Fault::Refused(problem.into())
    }
}

/// A refusal.
pub(crate) fn refuse<T>(refusal: Refusal) -> Step<T> {
    Err(Fault::Refused(refusal))
}
