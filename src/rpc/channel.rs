//! The channel of a client to the masters: it follows the leader, spreads reads, and survives failovers.
//!
//! *Promises.* A call ends by its deadline. A mutation is retried only with its first request, so that the operation id
//! in it makes the retry idempotent. A master that hangs costs one attempt, never the whole deadline. Host names are
//! resolved again at every connect. The configured addresses are a start: the members are learned from the cluster.

mod attempts;
mod discovery;
mod node;

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use jindofs_proto::v1::admin_client::AdminClient;
use jindofs_proto::v1::block_client::BlockClient;
use jindofs_proto::v1::invalidation_client::InvalidationClient;
use jindofs_proto::v1::job_client::JobClient;
use jindofs_proto::v1::namespace_client::NamespaceClient;
use tokio::sync::{Semaphore, watch};
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::config::ClientConfig;
use crate::error::{ErrorKind, Result};
use crate::runtime::{lock, read_lock, write_lock};
use crate::types::MESSAGE_BYTES_MAX;

pub(crate) use attempts::judge;
use attempts::{Attempts, Failure};
pub(crate) use node::Node;
pub use node::endpoint;

/// Most calls that look for a leader at the same time; the others wait until one of them has found it.
const PROBES: usize = 8;
/// How long a master that failed is tried only after the others.
const SUSPICION: Duration = Duration::from_secs(1);

/// Which masters may answer a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    /// Mutations, and reads that only the leader can answer.
    Leader,
    /// Linearizable reads on any master.
    Any,
}

/// A channel to all masters. Clones share the connections and the known leader.
#[derive(Debug, Clone)]
pub struct MasterChannel {
    inner: Arc<ChannelState>,
    /// `None` waits forever.
    timeout: Option<Duration>,
}

#[derive(Debug)]
struct ChannelState {
    nodes: RwLock<Nodes>,
    leader: watch::Sender<Option<Arc<Node>>>,
    turn: AtomicUsize,
    probes: Semaphore,
    /// Since when all masters fail.
    failing_since: Mutex<Option<Instant>>,
    discovering: AtomicBool,
}

#[derive(Debug)]
struct Nodes {
    /// The configured addresses; tried last once the members are known.
    configured: Vec<Arc<Node>>,
    /// The members, learned from the cluster and from leader hints.
    members: Vec<Arc<Node>>,
    cluster: Vec<u8>,
}

impl MasterChannel {
    /// Creates a channel with the configured masters. Connects at the first call.
    pub fn new(config: &ClientConfig) -> MasterChannel {
        let configured = config.masters.iter().map(|address| Arc::new(Node::new(address.clone()))).collect();
        let inner = ChannelState {
            nodes: RwLock::new(Nodes { configured, members: Vec::new(), cluster: Vec::new() }),
            leader: watch::Sender::new(None),
            turn: AtomicUsize::new(usize::from(crate::runtime::random_id()[0])),
            probes: Semaphore::new(PROBES),
            failing_since: Mutex::new(None),
            discovering: AtomicBool::new(false),
        };
        let timeout = (!config.hard).then_some(config.rpc_timeout);
        MasterChannel { inner: Arc::new(inner), timeout }
    }

    /// The same channel with another deadline per call.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> MasterChannel {
        MasterChannel { inner: self.inner.clone(), timeout: Some(timeout) }
    }

    /// How long a call is retried; `None` for ever.
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// Sends `op` to the leader until it answers or the deadline passes. `op` must build the same request each time.
    /// `what` names the call in error messages.
    ///
    /// *Errors*: the answer of the leader; `Timeout` if the outcome is unknown; `Unavailable` if nothing was done.
    pub async fn call_leader<T, F, Fut>(&self, what: &str, op: F) -> Result<T>
    where
        F: Fn(Channel) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        self.run(what, Route::Leader, op).await
    }

    /// Sends a read to the masters in rotation, to the others if one fails, and to the leader if a master says so.
    ///
    /// *Errors*: as [`MasterChannel::call_leader`].
    pub async fn call_any<T, F, Fut>(&self, what: &str, op: F) -> Result<T>
    where
        F: Fn(Channel) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        self.run(what, Route::Any, op).await
    }

    /// Sends `op` once, to the master at `address`, which need not be a known member.
    ///
    /// *Errors*: the answer of the master; `Unavailable` or `Timeout` if it does not answer within `budget`.
    pub async fn call_one<T, F, Fut>(&self, address: &str, budget: Duration, op: F) -> Result<T>
    where
        F: Fn(Channel) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let known = self.inner.all().into_iter().find(|node| node.address() == address);
        let node = known.unwrap_or_else(|| Arc::new(Node::new(address.to_owned())));
        attempt(&node, budget, &op).await.map_err(|failure| failure.error.context(address))
    }

    /// Addresses of all known masters, members first.
    pub fn masters(&self) -> Vec<String> {
        self.inner.all().iter().map(|node| node.address().to_owned()).collect()
    }

    /// Address of the leader, if known.
    pub fn leader(&self) -> Option<String> {
        self.inner.leader.borrow().as_ref().map(|node| node.address().to_owned())
    }

    /// Since when no master answers; `None` while calls succeed.
    pub fn failing_since(&self) -> Option<Instant> {
        *lock(&self.inner.failing_since)
    }

    async fn run<T, F, Fut>(&self, what: &str, mut route: Route, op: F) -> Result<T>
    where
        F: Fn(Channel) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        discovery::start(&self.inner);
        let mut attempts = Attempts::new(what, self.timeout);
        loop {
            let Some((node, probe)) = self.pick(route, &mut attempts).await else {
                return Err(attempts.give_up(&self.masters()));
            };
            let failure = match attempt(&node, attempts.budget(), &op).await {
                Ok(value) => {
                    self.succeeded(route, &node);
                    return Ok(value);
                }
                Err(failure) => failure,
            };
            if !failure.error.is_retryable() && !failure.foreign {
                self.succeeded(Route::Any, &node);
                return Err(failure.error);
            }
            drop(probe);
            let next = self.failed(&node, &failure, &mut attempts);
            attempts.record(node.address(), failure);
            match next {
                Next::Hinted => route = Route::Leader,
                Next::Another => {}
                Next::Pause => {
                    if !attempts.pause(&self.inner.leader, route == Route::Leader).await {
                        return Err(attempts.give_up(&self.masters()));
                    }
                }
            }
        }
    }

    /// The master to try next; `None` if the deadline passed first. Without a known leader only a few calls at a time
    /// may look for one, so that a failover does not cause a storm of requests.
    async fn pick(
        &self,
        route: Route,
        attempts: &mut Attempts<'_>,
    ) -> Option<(Arc<Node>, Option<tokio::sync::SemaphorePermit<'_>>)> {
        if attempts.expired() {
            return None;
        }
        if route == Route::Any {
            return Some((self.inner.next_for_read(attempts)?, None));
        }
        let mut leader = self.inner.leader.subscribe();
        loop {
            if let Some(node) = leader.borrow_and_update().clone() {
                return Some((node, None));
            }
            tokio::select! {
                biased;
                _ = leader.changed() => {}
                permit = self.inner.probes.acquire() => {
                    return Some((self.inner.next_for_probe(attempts)?, permit.ok()));
                }
                () = attempts.until_deadline() => return None,
            }
        }
    }

    fn succeeded(&self, route: Route, node: &Arc<Node>) {
        node.trust();
        *lock(&self.inner.failing_since) = None;
        if route == Route::Leader {
            self.inner.set_leader(node);
        }
    }

    /// Updates what is known of a master after a failure, and decides how to continue.
    fn failed(&self, node: &Arc<Node>, failure: &Failure, attempts: &mut Attempts<'_>) -> Next {
        let kind = failure.error.kind;
        if kind == ErrorKind::NotLeader {
            return self.redirected(node, failure, attempts);
        }
        if matches!(kind, ErrorKind::ResourceExhausted | ErrorKind::OutcomeUnknown) {
            // The master is alive: it will know more in a moment.
            return Next::Pause;
        }
        node.suspect(SUSPICION);
        self.inner.unset_leader(node);
        self.next_in_round(node, attempts)
    }

    fn redirected(&self, node: &Arc<Node>, failure: &Failure, attempts: &mut Attempts<'_>) -> Next {
        let hint = failure.error.leader.as_ref().map(|leader| leader.address.as_str()).filter(|hint| !hint.is_empty());
        match hint {
            Some(hint) if hint != node.address() && attempts.may_follow(hint) => {
                let hinted = self.inner.member(hint);
                self.inner.set_leader(&hinted);
                Next::Hinted
            }
            _ => {
                self.inner.unset_leader(node);
                self.next_in_round(node, attempts)
            }
        }
    }

    /// The next master of this round, or a pause at the end of the round.
    fn next_in_round(&self, node: &Arc<Node>, attempts: &mut Attempts<'_>) -> Next {
        if attempts.round_goes_on(node.address(), self.inner.all().len()) {
            return Next::Another;
        }
        let mut since = lock(&self.inner.failing_since);
        since.get_or_insert_with(Instant::now);
        Next::Pause
    }
}

enum Next {
    /// At once, to the leader that the hint names.
    Hinted,
    /// At once, to a master that was not tried in this round.
    Another,
    /// After a pause.
    Pause,
}

impl ChannelState {
    fn all(&self) -> Vec<Arc<Node>> {
        let nodes = read_lock(&self.nodes);
        let extra = nodes.configured.iter().filter(|node| !nodes.members.iter().any(|m| m.address() == node.address()));
        nodes.members.iter().chain(extra).cloned().collect()
    }

    /// Rotates reads over the members; skips one that just failed if there is another.
    fn next_for_read(&self, attempts: &Attempts<'_>) -> Option<Arc<Node>> {
        let fresh = {
            let nodes = read_lock(&self.nodes);
            let list = if nodes.members.is_empty() { &nodes.configured } else { &nodes.members };
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            let ring = (0..list.len()).map(|step| &list[(turn.wrapping_add(step)) % list.len()]);
            ring.clone().find(|node| !attempts.tried(node.address()) && !node.is_suspect()).cloned()
        };
        fresh.or_else(|| self.next_for_probe(attempts))
    }

    /// Any master that was not tried in this round, healthy ones first.
    fn next_for_probe(&self, attempts: &Attempts<'_>) -> Option<Arc<Node>> {
        let all = self.all();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let ring = || (0..all.len()).map(|step| &all[(turn.wrapping_add(step)) % all.len()]);
        let untried = |node: &&Arc<Node>| !attempts.tried(node.address());
        let choice = ring().filter(untried).find(|node| !node.is_suspect());
        choice.or_else(|| ring().find(untried)).or_else(|| ring().next()).cloned()
    }

    /// The node of a member; a new node is kept for later calls.
    fn member(&self, address: &str) -> Arc<Node> {
        let mut nodes = write_lock(&self.nodes);
        let known = nodes.members.iter().chain(&nodes.configured).find(|node| node.address() == address).cloned();
        known.unwrap_or_else(|| {
            let node = Arc::new(Node::new(address.to_owned()));
            nodes.members.push(node.clone());
            node
        })
    }

    /// Replaces the members and keeps their connections. Ignores an answer of another cluster.
    fn set_members(&self, cluster: &[u8], addresses: &[String]) {
        let mut nodes = write_lock(&self.nodes);
        if !nodes.cluster.is_empty() && nodes.cluster != cluster {
            tracing::warn!("a master of another cluster answered, its members are ignored");
            return;
        }
        nodes.cluster = cluster.to_vec();
        let find = |address: &String| {
            let known = nodes.members.iter().chain(&nodes.configured).find(|node| node.address() == address);
            known.cloned().unwrap_or_else(|| Arc::new(Node::new(address.clone())))
        };
        nodes.members = addresses.iter().map(find).collect();
    }

    fn set_leader(&self, node: &Arc<Node>) {
        self.leader.send_if_modified(|leader| {
            let changed = leader.as_ref().is_none_or(|known| !Arc::ptr_eq(known, node));
            if changed {
                *leader = Some(node.clone());
            }
            changed
        });
    }

    fn unset_leader(&self, node: &Arc<Node>) {
        self.leader.send_if_modified(|leader| {
            if leader.as_ref().is_some_and(|known| Arc::ptr_eq(known, node)) {
                *leader = None;
            }
            // Nobody waits for the loss of a leader.
            false
        });
    }
}

async fn attempt<T, F, Fut>(node: &Node, budget: Duration, op: &F) -> Result<T, Failure>
where
    F: Fn(Channel) -> Fut,
    Fut: Future<Output = Result<Response<T>, Status>>,
{
    let mut generation = None;
    let work = async {
        let (number, channel) = node.channel().await.map_err(Failure::not_sent)?;
        generation = Some(number);
        op(channel).await.map(Response::into_inner).map_err(|status| Failure::from_status(&status))
    };
    let result = match tokio::time::timeout(budget, work).await {
        Ok(result) => result,
        Err(_) => Err(Failure::no_answer(budget)),
    };
    if let (Err(failure), Some(generation)) = (&result, generation)
        && failure.broken
    {
        node.discard(generation);
    }
    result
}

/// A client of the Namespace service within our message limits.
pub fn namespace(channel: Channel) -> NamespaceClient<Channel> {
    NamespaceClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// A client of the Block service within our message limits.
pub fn block(channel: Channel) -> BlockClient<Channel> {
    BlockClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// A client of the Admin service within our message limits.
pub fn admin(channel: Channel) -> AdminClient<Channel> {
    AdminClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// A client of the Invalidation service within our message limits.
pub fn invalidation(channel: Channel) -> InvalidationClient<Channel> {
    InvalidationClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// A client of the Job service within our message limits.
pub fn job(channel: Channel) -> JobClient<Channel> {
    JobClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX)
}

#[cfg(test)]
mod tests;
