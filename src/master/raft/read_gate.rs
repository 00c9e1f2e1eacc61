//! Linearizable reads share quorum rounds: all that arrive while one is under way wait for the next one together.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use crate::error::{Error, Result};

/// How often the loop lets other tasks run before it begins a round.
const GATHER: usize = 4;

/// Where reads meet. A read joins only a round that begins after it arrived.
#[derive(Debug)]
pub(super) struct ReadGate<T> {
    inner: Mutex<Inner<T>>,
}

#[derive(Debug)]
struct Inner<T> {
    running: bool,
    waiting: Vec<oneshot::Sender<Result<T>>>,
}

impl<T> Default for ReadGate<T> {
    fn default() -> Self {
        ReadGate { inner: Mutex::new(Inner { running: false, waiting: Vec::new() }) }
    }
}

impl<T: Clone + Send + 'static> ReadGate<T> {
    /// What is found by a round that begins after this call; one round is under way at a time.
    ///
    /// One loop runs many rounds, so `round` must not remember what may change from one to the next.
    ///
    /// *Errors*: the round's. *Cancel safety*: a caller that gives up does not disturb the others.
    pub(super) async fn join<F, R>(self: &Arc<Self>, round: F) -> Result<T>
    where
        F: Fn() -> R + Send + 'static,
        R: Future<Output = Result<T>> + Send,
    {
        let (tell, wait) = oneshot::channel();
        let start = {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            inner.waiting.push(tell);
            !std::mem::replace(&mut inner.running, true)
        };
        if start {
            let this = self.clone();
            tokio::spawn(async move { this.run(round).await });
        }
        wait.await.map_err(|_| Error::unavailable("the read was given up"))?
    }

    async fn run<F, R>(&self, round: F)
    where
        F: Fn() -> R,
        R: Future<Output = Result<T>>,
    {
        loop {
            // Requests that are being decoded right now can still join: fewer rounds cost less than they wait.
            for _ in 0..GATHER {
                tokio::task::yield_now().await;
            }
            let waiting = {
                let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
                if inner.waiting.is_empty() {
                    inner.running = false;
                    return;
                }
                std::mem::take(&mut inner.waiting)
            };
            let result = round().await;
            for tell in waiting {
                // A reader may have given up.
                let _ = tell.send(result.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn readers_that_arrive_during_a_round_share_the_next_one_and_never_join_the_one_under_way() {
        let gate = Arc::new(ReadGate::<u64>::default());
        let (begun, go) = (Arc::new(AtomicU64::new(0)), Arc::new(Semaphore::new(0)));
        let join = || {
            let (gate, begun, go) = (gate.clone(), begun.clone(), go.clone());
            tokio::spawn(async move {
                let round = move || {
                    let (begun, go) = (begun.clone(), go.clone());
                    async move {
                        let number = begun.fetch_add(1, Ordering::SeqCst) + 1;
                        go.acquire().await.expect("open").forget();
                        Ok(number)
                    }
                };
                gate.join(round).await.expect("a round")
            })
        };
        let first = join();
        while begun.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let others: Vec<_> = (0..10).map(|_| join()).collect();
        while gate.inner.lock().expect("lock").waiting.len() < others.len() {
            tokio::task::yield_now().await;
        }
        go.add_permits(2);
        assert_eq!(first.await.expect("joined"), 1);
        for other in others {
            assert_eq!(other.await.expect("joined"), 2);
        }
        assert_eq!(begun.load(Ordering::SeqCst), 2);
    }
}
