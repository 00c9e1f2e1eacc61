//! `jindofs.v1.Invalidation`: the changes that this replica applies, for clients that cache the tree.

mod confirmation;
mod wire;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt, TryStreamExt};
use jindofs_proto::v1::SubscribeRequest;
use tonic::Status;

use super::Parts;
use crate::error::{Error, ErrorKind, Result};
use crate::master::invalidations::{Batch, Invalidations, Subscription};
use crate::master::raft::Handle;
use crate::rpc::status::to_status;
use crate::runtime::Shutdown;
use confirmation::{Confirmation, Timing};
use wire::EncodedEvent;

pub(super) use wire::InvalidationServer;

/// A master shows every few seconds that it is alive and confirmed: clients give up a stream that is silent for longer.
/// A master that no quorum confirms ends the stream after a time that is longer than an election.
const TIMING: Timing = Timing {
    interval: Duration::from_secs(3),
    retry_delay: Duration::from_millis(500),
    unconfirmed_max: Duration::from_secs(8),
};

/// The service.
#[derive(Debug, Clone)]
pub(super) struct InvalidationService {
    pub(super) parts: Parts,
    /// Ends the streams: the server waits for them when it stops.
    pub(super) stop: Shutdown,
}

/// One stream.
struct Subscriber {
    handle: Handle,
    source: Arc<Invalidations>,
    subscription: Subscription,
    confirmation: Confirmation,
    stop: Shutdown,
    /// When the next batch may be taken: a subscriber of a busy master takes many changes at once.
    not_before: Instant,
}

impl InvalidationService {
    async fn subscribe(&self) -> Result<BoxStream<'static, Result<EncodedEvent>>> {
        let handle = self.parts.handle.clone();
        let source =
            handle.invalidations().ok_or_else(|| Error::unavailable("this master belongs to no cluster yet"))?;
        // A master that no quorum confirms may be cut off from the others, and would not learn of changes.
        handle.read().await?;
        let subscription = source.subscribe().ok_or_else(|| {
            Error::new(ErrorKind::ResourceExhausted, "this master has as many subscribers as it takes: ask another one")
        })?;
        let asked = handle.clone();
        let ask = move || {
            let handle = asked.clone();
            async move { handle.read().await.map(drop) }.boxed()
        };
        let confirmation = Confirmation::new(Box::new(ask), TIMING);
        let (stop, not_before) = (self.stop.clone(), Instant::now());
        let subscriber = Subscriber { handle, source, subscription, confirmation, stop, not_before };
        let events = stream::try_unfold(subscriber, |mut subscriber| async move {
            let event = subscriber.next().await?;
            Ok(Some((event, subscriber)))
        });
        Ok(events.boxed())
    }

    async fn answer(
        &self,
        request: SubscribeRequest,
    ) -> Result<BoxStream<'static, Result<EncodedEvent, Status>>, Status> {
        let events = self.subscribe().await.map_err(|error| to_status(&error))?;
        tracing::debug!(description = request.description, "a client subscribes to the changes that are applied here");
        Ok(events.map_err(|error| to_status(&error)).boxed())
    }
}

impl Subscriber {
    /// The next event: changes, or a sign that the master is alive and up to date. The master is confirmed beside, so
    /// that changes neither wait for the confirmation nor hide that there is none.
    ///
    /// *Errors*: `Unavailable` for a replica that may be cut off from the others, or whose disk was set aside.
    async fn next(&mut self) -> Result<EncodedEvent> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Error::unavailable("this master is about to end")),
            confirmed = self.confirmation.next() => {
                confirmed?;
                if !self.handle.invalidations().is_some_and(|source| Arc::ptr_eq(&source, &self.source)) {
                    return Err(Error::unavailable("this master has begun anew"));
                }
                Ok(EncodedEvent::default())
            }
            batch = next_batch(&mut self.subscription, self.not_before) => {
                self.not_before = Instant::now() + self.source.batch_interval(batch.bytes());
                Ok(EncodedEvent(batch.events))
            }
        }
    }
}

async fn next_batch(subscription: &mut Subscription, not_before: Instant) -> Batch {
    tokio::time::sleep_until(not_before.into()).await;
    subscription.next().await
}
