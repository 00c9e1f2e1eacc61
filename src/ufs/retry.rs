//! Trouble that passes (a busy object store, a broken connection) is tried again a few times, with growing pauses.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::health::Health;
use super::{AttrChange, Content, Deadline, Entry, Expected, Listing, NewAttr, PreparedPut, Space, Ufs, Upload};
use crate::error::{Error, ErrorKind, Result};

/// Pauses between attempts; together they are shorter than what a reader waits for one worker.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_millis(200), Duration::from_millis(800), Duration::from_secs(2)];

/// An under-storage that is asked again when it fails for a moment; what comes of it is noted.
#[derive(Debug)]
pub(super) struct Retry<U> {
    inner: U,
    health: Arc<Health>,
}

impl<U> Retry<U> {
    pub(super) fn new(inner: U, health: Arc<Health>) -> Retry<U> {
        Retry { inner, health }
    }

    /// As [`again`], for what every under-storage answers to by a request.
    async fn noted<T, F: Future<Output = Result<T>>>(&self, attempt: impl Fn() -> F) -> Result<T> {
        let outcome = again(attempt).await;
        self.health.note(&outcome);
        outcome
    }
}

/// Asks up to five times, as long as it fails for a moment.
pub(super) async fn again<T, F: Future<Output = Result<T>>>(attempt: impl Fn() -> F) -> Result<T> {
    for pause in PAUSES {
        match attempt().await {
            Err(error) if error.is_retryable() => wait(pause, &error).await,
            done => return done,
        }
    }
    attempt().await
}

/// As [`again`], as part of the storing of a file: not after its deadline.
pub(super) async fn again_until<T, F: Future<Output = Result<T>>>(
    deadline: &Deadline,
    attempt: impl Fn() -> F,
) -> Result<T> {
    let once = || async { deadline.bound(attempt()).await.unwrap_or_else(|| Err(deadline.passed())) };
    for pause in PAUSES {
        match once().await {
            Err(error) if error.is_retryable() && deadline.has_room_for(pause) => wait(pause, &error).await,
            done => return done,
        }
    }
    once().await
}

/// Stores content again, until `deadline`, only while nothing was stored. An attempt that finds another version than expected
/// is refused, unless one before it may have been carried out late: then that may be what it has found.
async fn store_again<T, F: Future<Output = Result<T>>>(deadline: &Deadline, attempt: impl Fn() -> F) -> Result<T> {
    let mut pauses = PAUSES.into_iter();
    let mut may_be_late = false;
    loop {
        let error = match attempt().await {
            Err(error) => error,
            stored => return stored,
        };
        deadline.attempt_failed();
        match (error.kind, pauses.next()) {
            (ErrorKind::Unavailable | ErrorKind::Timeout, Some(pause)) if deadline.has_room_for(pause) => {
                wait(pause, &error).await;
            }
            (ErrorKind::Stale, _) if may_be_late => return Err(Error { kind: ErrorKind::OutcomeUnknown, ..error }),
            _ => return Err(error),
        }
        may_be_late |= error.kind == ErrorKind::Timeout;
    }
}

async fn wait(pause: Duration, error: &Error) {
    tracing::info!(%error, ?pause, "under-storage is asked again");
    let jitter = pause.mul_f64(rand::random_range(0.5..1.0));
    tokio::time::sleep(jitter).await;
}

impl<U: Ufs> Ufs for Retry<U> {
    fn list<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<Listing>> {
        Box::pin(self.noted(move || self.inner.list(path)))
    }

    fn check_path(&self, path: &[u8]) -> Result<()> {
        self.inner.check_path(path)
    }

    fn stat<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<Option<Entry>>> {
        Box::pin(self.noted(move || self.inner.stat(path)))
    }

    fn read<'a>(&'a self, path: &'a [u8], token: &'a [u8], offset: u64, length: u64) -> BoxFuture<'a, Result<Bytes>> {
        Box::pin(self.noted(move || self.inner.read(path, token, offset, length)))
    }

    fn put<'a>(
        &'a self,
        path: &'a [u8],
        content: Content,
        expected: Expected<'a>,
        attr: NewAttr,
        intent: u64,
        deadline: &'a Deadline,
    ) -> BoxFuture<'a, Result<Entry>> {
        Box::pin(async move {
            let attempt = || self.inner.put(path, content.clone(), expected, attr, intent, deadline);
            let stored = store_again(deadline, attempt).await;
            self.health.note(&stored);
            stored
        })
    }

    fn begin<'a>(&'a self, path: &'a [u8], expected: Expected<'a>) -> BoxFuture<'a, Result<Option<Upload>>> {
        Box::pin(again(move || self.inner.begin(path, expected)))
    }

    fn prepare<'a>(&'a self, path: &'a [u8], content: Content, attr: NewAttr) -> BoxFuture<'a, PreparedPut> {
        self.inner.prepare(path, content, attr)
    }

    fn clean<'a>(&'a self, path: &'a [u8], intent: u64) -> BoxFuture<'a, Result<()>> {
        Box::pin(again(move || self.inner.clean(path, intent)))
    }

    fn sync_name<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        Box::pin(again(move || self.inner.sync_name(path)))
    }

    fn make_directory<'a>(&'a self, path: &'a [u8], attr: NewAttr) -> BoxFuture<'a, Result<Entry>> {
        Box::pin(self.noted(move || self.inner.make_directory(path, attr)))
    }

    fn make_symlink<'a>(&'a self, path: &'a [u8], target: &'a [u8], attr: NewAttr) -> BoxFuture<'a, Result<Entry>> {
        Box::pin(again(move || self.inner.make_symlink(path, target, attr)))
    }

    fn remove<'a>(&'a self, path: &'a [u8], token: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.noted(move || self.inner.remove(path, token)))
    }

    fn remove_directory<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.noted(move || self.inner.remove_directory(path)))
    }

    fn rename<'a>(
        &'a self,
        from: &'a [u8],
        token: &'a [u8],
        to: &'a [u8],
        expected: Expected<'a>,
    ) -> BoxFuture<'a, Result<Entry>> {
        Box::pin(again(move || self.inner.rename(from, token, to, expected)))
    }

    fn copy<'a>(
        &'a self,
        from: &'a [u8],
        token: &'a [u8],
        to: &'a [u8],
        expected: Expected<'a>,
    ) -> BoxFuture<'a, Result<Entry>> {
        Box::pin(again(move || self.inner.copy(from, token, to, expected)))
    }

    fn keep_directory<'a>(&'a self, path: &'a [u8], leaving: usize) -> BoxFuture<'a, Result<()>> {
        Box::pin(again(move || self.inner.keep_directory(path, leaving)))
    }

    fn set_attr<'a>(&'a self, path: &'a [u8], change: AttrChange) -> BoxFuture<'a, Result<Option<Entry>>> {
        Box::pin(again(move || self.inner.set_attr(path, change)))
    }

    /// Whoever adds a mount waits for the answer: a wrong address is told at once.
    fn check(&self) -> BoxFuture<'_, Result<bool>> {
        Box::pin(async move {
            let checked = self.inner.check().await;
            self.health.note_check(&checked);
            checked
        })
    }

    /// Whoever asks has something else to show.
    fn space(&self) -> BoxFuture<'_, Result<Option<Space>>> {
        self.inner.space()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// What comes of a put whose attempts end as told, and how many attempts are left.
    async fn stored_after(attempts: &[Result<(), ErrorKind>]) -> (Result<(), ErrorKind>, usize) {
        let left = RefCell::new(attempts.iter());
        let next = || left.borrow_mut().next().copied().unwrap_or(Err(ErrorKind::Internal));
        let attempt = || std::future::ready(next().map_err(|kind| Error::new(kind, "told")));
        let stored = store_again(&Deadline::for_store(), attempt).await;
        let left = left.borrow().len();
        (stored.map_err(|error| error.kind), left)
    }

    #[tokio::test]
    async fn content_is_stored_again_only_while_nothing_was_stored() {
        use ErrorKind::{OutcomeUnknown, Stale, Timeout, Unavailable};
        assert_eq!(stored_after(&[Err(Unavailable), Ok(())]).await, (Ok(()), 0));
        assert_eq!(stored_after(&[Err(Timeout), Ok(())]).await, (Ok(()), 0));
        assert_eq!(stored_after(&[Err(OutcomeUnknown), Ok(())]).await, (Err(OutcomeUnknown), 1));
        assert_eq!(stored_after(&[Err(Stale), Ok(())]).await, (Err(Stale), 1));
        assert_eq!(stored_after(&[Err(Timeout), Err(Stale), Ok(())]).await, (Err(OutcomeUnknown), 1));
        assert_eq!(stored_after(&[Err(Timeout), Err(Unavailable), Err(Stale)]).await, (Err(OutcomeUnknown), 0));
        assert_eq!(
            stored_after(&[Err(Unavailable), Err(Stale), Ok(())]).await,
            (Err(Stale), 1),
            "what was refused before anything was done cannot come late"
        );
    }

    #[tokio::test]
    async fn nothing_is_tried_after_the_deadline_however_deep_the_attempts_are_nested() {
        let (began, deadline) = (std::time::Instant::now(), Deadline::within(Duration::from_millis(300)));
        let inner = || std::future::pending::<Result<()>>();
        let stored = store_again(&deadline, || again_until(&deadline, inner)).await;
        assert_eq!(stored.expect_err("no answer").kind, ErrorKind::Unavailable);
        assert!(began.elapsed() < Duration::from_secs(15), "five attempts of five, each of which hangs for ever");
    }
}
