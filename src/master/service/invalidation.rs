//! `jindofs.v1.Invalidation`: what this replica applies, for clients that cache the tree.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use jindofs_proto::v1::invalidation_server::Invalidation;
use jindofs_proto::v1::{DirEntry, InvalidationEvent, SubscribeRequest};
use tonic::{Request, Response, Status};

use super::Parts;
use crate::error::{Error, ErrorKind, Result};
use crate::master::invalidations::{Batch, Invalidations, Subscription};
use crate::master::raft::Handle;
use crate::rpc::status::to_status;
use crate::runtime::Shutdown;

/// How often a subscriber hears of a master that applies nothing. Clients give a stream up after some of these.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
/// How often a master that no quorum confirms asks again, and how long it goes on: an election ends no stream.
const RECHECK_INTERVAL: Duration = Duration::from_millis(500);
const UNCONFIRMED_MAX: Duration = Duration::from_secs(8);

/// The service.
#[derive(Debug, Clone)]
pub(super) struct InvalidationService {
    pub(super) parts: Parts,
    /// Streams would hold the end of the server up.
    pub(super) stop: Shutdown,
}

/// One stream.
struct Subscriber {
    handle: Handle,
    source: Arc<Invalidations>,
    subscription: Subscription,
    stop: Shutdown,
}

impl InvalidationService {
    async fn subscribe(&self) -> Result<BoxStream<'static, Result<InvalidationEvent>>> {
        let handle = self.parts.handle.clone();
        let source =
            handle.invalidations().ok_or_else(|| Error::unavailable("this master belongs to no cluster yet"))?;
        // One that no quorum confirms may be cut off: it would have nothing to tell.
        handle.read().await?;
        let subscription = source.subscribe().ok_or_else(|| {
            Error::new(ErrorKind::ResourceExhausted, "this master has as many subscribers as it takes: ask another one")
        })?;
        let subscriber = Subscriber { handle, source, subscription, stop: self.stop.clone() };
        let events = stream::try_unfold(subscriber, |mut subscriber| async move {
            let event = subscriber.next().await?;
            Ok(Some((event, subscriber)))
        });
        Ok(events.boxed())
    }
}

impl Subscriber {
    /// The next event: changes, or that the master is alive and up to date.
    ///
    /// *Errors*: `Unavailable` for a replica that may be cut off from the others, or whose disk was set aside.
    async fn next(&mut self) -> Result<InvalidationEvent> {
        let begun = Instant::now();
        let mut pause = KEEPALIVE_INTERVAL;
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Error::unavailable("this master is about to end")),
                batch = self.subscription.next() => return Ok(event_of(batch)),
                () = tokio::time::sleep(pause) => {}
            }
            if !self.handle.invalidations().is_some_and(|source| Arc::ptr_eq(&source, &self.source)) {
                return Err(Error::unavailable("this master has begun anew"));
            }
            match self.handle.read().await {
                Ok(_) => return Ok(InvalidationEvent::default()),
                Err(error) if begun.elapsed() >= UNCONFIRMED_MAX => return Err(error),
                Err(_) => pause = RECHECK_INTERVAL,
            }
        }
    }
}

fn event_of(batch: Batch) -> InvalidationEvent {
    let mut event = InvalidationEvent { lost: batch.lost, ..InvalidationEvent::default() };
    for set in batch.sets {
        event.inodes.extend(&set.inodes);
        event.directories.extend(&set.directories);
        let names = set.names.iter().map(|(parent, name)| DirEntry { parent: *parent, name: name.clone() });
        event.names.extend(names);
    }
    event
}

#[tonic::async_trait]
impl Invalidation for InvalidationService {
    type SubscribeStream = BoxStream<'static, Result<InvalidationEvent, Status>>;

    async fn subscribe(&self, request: Request<SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        let description = request.into_inner().description;
        let events = InvalidationService::subscribe(self).await.map_err(|error| to_status(&error))?;
        tracing::debug!(description, "a client subscribes to what is applied here");
        Ok(Response::new(events.map_err(|error| to_status(&error)).boxed()))
    }
}
