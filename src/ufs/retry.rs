//! Trouble that passes (a busy object store, a broken connection) is tried again a few times, with growing pauses.

use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::{Entry, Listing, Ufs};
use crate::error::Result;

/// Pauses between attempts; together they are shorter than what a reader waits for one worker.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_millis(200), Duration::from_millis(800), Duration::from_secs(2)];

/// An under-storage that is asked again when it fails for a moment.
#[derive(Debug)]
pub(super) struct Retry<U>(pub(super) U);

async fn again<T, F: Future<Output = Result<T>>>(attempt: impl Fn() -> F) -> Result<T> {
    for pause in PAUSES {
        match attempt().await {
            Err(error) if error.is_retryable() => {
                tracing::info!(%error, ?pause, "under-storage is asked again");
                let jitter = pause.mul_f64(rand::random_range(0.5..1.0));
                tokio::time::sleep(jitter).await;
            }
            done => return done,
        }
    }
    attempt().await
}

impl<U: Ufs> Ufs for Retry<U> {
    fn list<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<Listing>> {
        Box::pin(again(move || self.0.list(path)))
    }

    fn stat<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<Option<Entry>>> {
        Box::pin(again(move || self.0.stat(path)))
    }

    fn read<'a>(&'a self, path: &'a [u8], token: &'a [u8], offset: u64, length: u64) -> BoxFuture<'a, Result<Bytes>> {
        Box::pin(again(move || self.0.read(path, token, offset, length)))
    }

    /// Whoever adds a mount waits for the answer: a wrong address is told at once.
    fn check(&self) -> BoxFuture<'_, Result<()>> {
        self.0.check()
    }
}
