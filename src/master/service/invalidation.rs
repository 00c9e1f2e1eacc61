//! `jindofs.v1.Invalidation`: the changes that this replica applies, for clients that cache the tree.

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

/// How often a master without changes shows that it is alive. Clients give up a stream that is silent for longer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
/// How often a master that no quorum confirms asks again, and after which time it ends the stream: an election is
/// shorter.
const RECHECK_INTERVAL: Duration = Duration::from_millis(500);
const UNCONFIRMED_MAX: Duration = Duration::from_secs(8);

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
    stop: Shutdown,
    /// When the next batch may be taken: a subscriber of a busy master takes many changes at once.
    not_before: Instant,
}

impl InvalidationService {
    async fn subscribe(&self) -> Result<BoxStream<'static, Result<InvalidationEvent>>> {
        let handle = self.parts.handle.clone();
        let source =
            handle.invalidations().ok_or_else(|| Error::unavailable("this master belongs to no cluster yet"))?;
        // A master that no quorum confirms may be cut off from the others, and would not learn of changes.
        handle.read().await?;
        let subscription = source.subscribe().ok_or_else(|| {
            Error::new(ErrorKind::ResourceExhausted, "this master has as many subscribers as it takes: ask another one")
        })?;
        let (stop, not_before) = (self.stop.clone(), Instant::now());
        let subscriber = Subscriber { handle, source, subscription, stop, not_before };
        let events = stream::try_unfold(subscriber, |mut subscriber| async move {
            let event = subscriber.next().await?;
            Ok(Some((event, subscriber)))
        });
        Ok(events.boxed())
    }
}

impl Subscriber {
    /// The next event: changes, or a sign that the master is alive and up to date.
    ///
    /// *Errors*: `Unavailable` for a replica that may be cut off from the others, or whose disk was set aside.
    async fn next(&mut self) -> Result<InvalidationEvent> {
        let begun = Instant::now();
        let mut pause = KEEPALIVE_INTERVAL;
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Error::unavailable("this master is about to end")),
                batch = next_batch(&mut self.subscription, self.not_before) => {
                    self.not_before = Instant::now() + self.source.batch_interval();
                    return Ok(event_of(batch));
                }
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

async fn next_batch(subscription: &mut Subscription, not_before: Instant) -> Batch {
    tokio::time::sleep_until(not_before.into()).await;
    subscription.next().await
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
        tracing::debug!(description, "a client subscribes to the changes that are applied here");
        Ok(Response::new(events.map_err(|error| to_status(&error)).boxed()))
    }
}
