//! Whether an under-storage answers, as this process finds when it asks.

use std::sync::{Mutex, MutexGuard};

use crate::error::{Error, ErrorKind, Result};
use crate::runtime::{lock, now_ns};
use crate::telemetry::series::Series;

/// Why an under-storage does not serve, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outage {
    /// When it was first found, nanoseconds since the epoch.
    pub since_ns: i64,
    /// What the last request ended with.
    pub error: Error,
}

/// What the requests to one under-storage have found.
pub(super) struct Health {
    uri: String,
    state: Mutex<State>,
    available: Series,
}

#[derive(Debug, Default)]
struct State {
    outage: Option<Outage>,
    /// A request was denied: of one object, or of all.
    suspected: bool,
}

impl std::fmt::Debug for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Health").field("uri", &self.uri).finish_non_exhaustive()
    }
}

impl Health {
    /// Of an under-storage that was not asked yet.
    pub(super) fn new(uri: &str) -> Health {
        let available = Series::new("jindofs_ufs_available", "ufs", uri, 1.0);
        Health { uri: uri.to_owned(), state: Mutex::default(), available }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Notes the outcome of a request.
    pub(super) fn note<T>(&self, outcome: &Result<T>) {
        use ErrorKind::{FailedPrecondition, Internal, InvalidArgument, OutcomeUnknown, PermissionDenied, Unsupported};
        match outcome {
            Err(error) if is_outage(error) => self.lost(error),
            Err(error) if error.kind == PermissionDenied => self.state().suspected = true,
            // These are found without a request, or say nothing of the whole.
            Err(Error {
                kind: FailedPrecondition | Internal | InvalidArgument | OutcomeUnknown | Unsupported, ..
            }) => {}
            _ => self.answered(),
        }
    }

    /// Notes the outcome of a look at the whole under-storage.
    pub(super) fn note_check<T>(&self, outcome: &Result<T>) {
        match outcome {
            Ok(_) => self.answered(),
            Err(error) => self.lost(error),
        }
        self.state().suspected = false;
    }

    fn lost(&self, error: &Error) {
        let mut state = self.state();
        // Also of one that is known to be out: another mount of the same place has a state of its own, and the same metric.
        self.available.set(0.0);
        if let Some(outage) = &mut state.outage {
            outage.error = error.clone();
            return;
        }
        tracing::warn!(ufs = self.uri, %error, "an under-storage does not serve");
        state.outage = Some(Outage { since_ns: now_ns(), error: error.clone() });
    }

    fn answered(&self) {
        let mut state = self.state();
        if state.outage.take().is_some() {
            tracing::info!(ufs = self.uri, "an under-storage serves again");
            self.available.set(1.0);
        }
    }

    /// The outage that was found last and is not known to be over.
    pub(super) fn outage(&self) -> Option<Outage> {
        self.state().outage.clone()
    }

    /// True if a look at the whole under-storage would tell more.
    pub(super) fn is_in_doubt(&self) -> bool {
        let state = self.state();
        state.suspected || state.outage.is_some()
    }
}

fn is_outage(error: &Error) -> bool {
    matches!(error.kind, ErrorKind::UnderStorage | ErrorKind::Unavailable | ErrorKind::Timeout)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(kind: ErrorKind) -> Result<()> {
        Err(Error::new(kind, format!("{kind:?}")))
    }

    #[test]
    fn an_outage_lasts_from_the_first_failure_to_the_first_answer() {
        let health = Health::new("s3://b");
        health.note(&refused(ErrorKind::Timeout));
        let first = health.outage().expect("an outage");
        health.note(&refused(ErrorKind::UnderStorage));
        let second = health.outage().expect("an outage");
        assert_eq!((second.since_ns, second.error.kind), (first.since_ns, ErrorKind::UnderStorage));
        health.note(&refused(ErrorKind::Internal));
        assert!(health.outage().is_some(), "that says nothing of the under-storage");
        health.note(&refused(ErrorKind::NotEmpty));
        assert!(health.outage().is_none() && !health.is_in_doubt(), "a refusal is an answer");
    }

    #[test]
    fn a_denied_request_is_an_outage_only_if_the_whole_is_denied() {
        let health = Health::new("s3://b");
        health.note(&refused(ErrorKind::PermissionDenied));
        assert!(health.outage().is_none() && health.is_in_doubt());
        health.note_check(&refused(ErrorKind::PermissionDenied));
        assert!(health.outage().is_some());
        health.note_check(&Ok(()));
        assert!(health.outage().is_none() && !health.is_in_doubt());
    }
}
