//! `jindofs.v1.Invalidation`: the changes that this replica applies, for clients that cache the tree.

mod confirmation;
mod feed;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt, TryStreamExt};
use jindofs_proto::v1::SubscribeRequest;
use tonic::Status;

use super::Parts;
use crate::error::{Error, ErrorKind, Result};
use crate::master::invalidations::Invalidations;
use crate::master::raft::Handle;
use crate::rpc::status::to_status;
use crate::runtime::Shutdown;
use confirmation::{Confirmation, Timing};
use feed::{Feed, Next};
use wire::EncodedEvent;

pub(super) use wire::InvalidationServer;

/// A master shows every few seconds that it is alive and confirmed: clients give up a stream that is silent for longer.
/// A master that no quorum confirms ends the stream after a time that is longer than an election.
const TIMING: Timing = Timing {
    interval: Duration::from_secs(3),
    retry_delay: Duration::from_millis(500),
    unconfirmed_max: Duration::from_secs(8),
};
/// Longest time for which a heartbeat waits for changes that are told before it. With the time between two confirmations it is
/// shorter than that after which a client gives up a stream without heartbeats.
const BACKLOG_TIMEOUT: Duration = Duration::from_secs(5);

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
    feed: Feed,
    stop: Shutdown,
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
        let feed = Feed::new(source.clone(), subscription, confirmation, BACKLOG_TIMEOUT);
        let subscriber = Subscriber { handle, source, feed, stop: self.stop.clone() };
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
    /// The next event: changes, or a heartbeat. The master is confirmed beside, so that changes neither wait for the
    /// confirmation nor hide that there is none.
    ///
    /// *Errors*: `Unavailable` for a replica that may be cut off from the others, or whose disk was set aside.
    async fn next(&mut self) -> Result<EncodedEvent> {
        loop {
            let next = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Error::unavailable("this master is about to end")),
                next = self.feed.next() => next?,
            };
            match next {
                Next::Event(event) => return Ok(event),
                Next::Confirmed => {
                    if !self.handle.invalidations().is_some_and(|source| Arc::ptr_eq(&source, &self.source)) {
                        return Err(Error::unavailable("this master has begun anew"));
                    }
                    // The changes that were acknowledged before the confirmation began are published by now.
                    self.feed.owe_heartbeat();
                }
            }
        }
    }
}
