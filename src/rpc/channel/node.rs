//! One master (or worker) and the connection to it.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tonic::transport::{Channel, Endpoint};

use crate::error::{Error, ErrorKind, Result};
use crate::runtime::lock;
use crate::types::address::host_port;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Addresses of one name tried per connect.
const ADDRESSES_MAX: usize = 4;

/// An address with at most one connection, made on demand.
#[derive(Debug)]
pub(crate) struct Node {
    /// host:port.
    address: String,
    current: Mutex<Option<(u64, Channel)>>,
    connecting: tokio::sync::Mutex<u64>,
    /// What the name last resolved to, for when it does not resolve.
    last_good: Mutex<Vec<SocketAddr>>,
    suspect_until: Mutex<Option<Instant>>,
}

impl Node {
    /// A node without a connection.
    pub(crate) fn new(address: String) -> Node {
        Node {
            address,
            current: Mutex::new(None),
            connecting: tokio::sync::Mutex::new(0),
            last_good: Mutex::new(Vec::new()),
            suspect_until: Mutex::new(None),
        }
    }

    /// host:port as configured or learned.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The connection and its number, for [`Node::discard`]. Callers that come together share one attempt to connect.
    pub(crate) async fn channel(&self) -> Result<(u64, Channel)> {
        if let Some(current) = self.current() {
            return Ok(current);
        }
        let mut number = self.connecting.lock().await;
        if let Some(current) = self.current() {
            return Ok(current);
        }
        let channel = self.connect().await?;
        *number += 1;
        let connected = (*number, channel);
        *lock(&self.current) = Some(connected.clone());
        Ok(connected)
    }

    fn current(&self) -> Option<(u64, Channel)> {
        lock(&self.current).clone()
    }

    /// Gives up connection `number`, unless a newer one took its place.
    pub(crate) fn discard(&self, number: u64) {
        let mut current = lock(&self.current);
        if current.as_ref().is_some_and(|(known, _)| *known == number) {
            *current = None;
        }
    }

    pub(super) fn suspect(&self, time: Duration) {
        *lock(&self.suspect_until) = Some(Instant::now() + time);
    }

    pub(super) fn trust(&self) {
        *lock(&self.suspect_until) = None;
    }

    pub(super) fn is_suspect(&self) -> bool {
        lock(&self.suspect_until).is_some_and(|until| Instant::now() < until)
    }

    async fn connect(&self) -> Result<Channel> {
        let addresses = self.resolve().await?;
        let mut last = None;
        for address in addresses.iter().take(ADDRESSES_MAX) {
            let endpoint = endpoint(&format!("http://{address}"), &self.address)?;
            match endpoint.connect().await {
                Ok(channel) => {
                    *lock(&self.last_good) = addresses;
                    return Ok(channel);
                }
                Err(error) => last = Some(error),
            }
        }
        let reason = last.map_or_else(|| "no address".to_owned(), |error| innermost(&error));
        Err(Error::unavailable(format!("cannot connect: {reason}")))
    }

    /// Resolves the name anew: a pod that moved keeps its name, not its address.
    async fn resolve(&self) -> Result<Vec<SocketAddr>> {
        host_port(&self.address).map_err(Error::invalid)?;
        let reason = match tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host(&self.address)).await {
            Ok(Ok(found)) => {
                let found: Vec<_> = found.collect();
                if !found.is_empty() {
                    return Ok(found);
                }
                "it has no address".to_owned()
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the name service did not answer".to_owned(),
        };
        let known = lock(&self.last_good).clone();
        if known.is_empty() {
            return Err(Error::unavailable(format!("cannot resolve {}: {reason}", self.address)));
        }
        tracing::warn!(address = self.address, reason, "name does not resolve, the last good addresses are tried");
        Ok(known)
    }
}

/// The settings of all our client connections: no Nagle, windows large enough for data, a dead peer noticed in seconds.
///
/// *Errors*: `InvalidArgument` when `uri` or `authority` is malformed.
pub fn endpoint(uri: &str, authority: &str) -> Result<Endpoint> {
    let bad = |error: &dyn std::fmt::Display| {
        Error::new(ErrorKind::InvalidArgument, format!("{authority:?} is no address (host:port is): {error}"))
    };
    let origin = format!("http://{authority}").parse().map_err(|error| bad(&error))?;
    Ok(Endpoint::from_shared(uri.to_owned())
        .map_err(|error| bad(&error))?
        .origin(origin)
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true))
}

/// The cause at the end of an error's chain: what people can act on ("connection refused").
pub(super) fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
