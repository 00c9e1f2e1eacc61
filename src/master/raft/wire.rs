//! Connections between masters: where a member is, how it is reached, and the header every message carries.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use jindofs_proto::raft::v1::raft_client::RaftClient;
use jindofs_proto::raft::v1::{Header, ProbeRequest, ProbeResponse};
use tonic::transport::{Channel, Endpoint};

use crate::error::{Error, Result};
use crate::rpc::status::from_status;
use crate::types::MESSAGE_BYTES_MAX;

use super::peers::Peers;
use super::types::Node;

/// Who we are in every message.
#[derive(Debug, Clone)]
pub(crate) struct Me {
    pub(crate) cluster: [u8; 16],
    pub(crate) id: u64,
    pub(crate) incarnation: [u8; 16],
    pub(crate) boot: u64,
    pub(crate) nonce: [u8; 16],
}

impl Me {
    /// The header of a message to `target`.
    pub(crate) fn header(&self, target: u64) -> Header {
        Header {
            cluster_uuid: self.cluster.to_vec().into(),
            target_id: target,
            sender_id: self.id,
            incarnation: self.incarnation.to_vec().into(),
            boot: self.boot,
            boot_nonce: self.nonce.to_vec().into(),
        }
    }

    /// Refuses a message that is not for us, not of our cluster, or from a disk that lags behind what is known.
    pub(crate) fn check(&self, header: Option<&Header>, peers: &Peers) -> Result<(), String> {
        let header = header.ok_or("the message has no header")?;
        if header.cluster_uuid != self.cluster[..] {
            return Err("the message belongs to another cluster".to_owned());
        }
        if header.target_id != self.id {
            return Err(format!("the message is for member {}, this is member {}", header.target_id, self.id));
        }
        peers.hear(header).map_err(|disbelief| disbelief.to_string())
    }
}

/// Where members are, as far as known: newer than the membership when a member moved.
#[derive(Debug, Default)]
pub(crate) struct AddressBook(RwLock<HashMap<u64, Node>>);

impl AddressBook {
    pub(crate) fn set(&self, id: u64, node: &Node) {
        let mut book = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if book.get(&id) != Some(node) {
            book.insert(id, node.clone());
        }
    }

    pub(crate) fn get(&self, id: u64) -> Option<Node> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }
}

/// Resolves names anew on each connect; while that fails, the last good addresses serve. Identity is checked by every
/// message, so a wrong address can do no harm.
#[derive(Debug, Default)]
pub(crate) struct Resolver(Mutex<HashMap<String, Vec<SocketAddr>>>);

impl Resolver {
    async fn resolve(&self, address: &str) -> Result<Vec<SocketAddr>> {
        match tokio::net::lookup_host(address).await {
            Ok(found) => {
                let found: Vec<_> = found.collect();
                self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(address.to_owned(), found.clone());
                Ok(found)
            }
            Err(error) => {
                let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(address).cloned();
                known.ok_or_else(|| Error::unavailable(format!("master {address} does not resolve: {error}")))
            }
        }
    }

    /// Connects to the Raft server at `address`.
    ///
    /// *Errors*: `Unavailable`.
    pub(crate) async fn connect(&self, address: &str, timeout: Duration) -> Result<RaftClient<Channel>> {
        let mut last = Error::unavailable(format!("master {address} has no address"));
        for socket in self.resolve(address).await? {
            let endpoint = Endpoint::from_shared(format!("http://{socket}"))
                .map_err(|error| Error::invalid(format!("master address {address}: {error}")))?
                .connect_timeout(timeout)
                .tcp_nodelay(true)
                .initial_stream_window_size(8 << 20)
                .initial_connection_window_size(16 << 20)
                .http2_keep_alive_interval(Duration::from_secs(5))
                .keep_alive_timeout(Duration::from_secs(5));
            match endpoint.connect().await {
                Ok(channel) => {
                    return Ok(RaftClient::new(channel)
                        .max_decoding_message_size(MESSAGE_BYTES_MAX)
                        .max_encoding_message_size(MESSAGE_BYTES_MAX));
                }
                Err(error) => last = Error::unavailable(format!("master {address} does not answer: {error}")),
            }
        }
        Err(last)
    }

    /// Asks whoever is at `address` who it is.
    pub(crate) async fn probe(&self, address: &str, timeout: Duration) -> Result<ProbeResponse> {
        let ask = async {
            let mut client = self.connect(address, timeout).await?;
            let answer = client.probe(ProbeRequest {}).await.map_err(|status| from_status(&status))?;
            Ok(answer.into_inner())
        };
        tokio::time::timeout(timeout, ask)
            .await
            .unwrap_or_else(|_| Err(Error::unavailable(format!("master {address} does not answer within {timeout:?}"))))
    }
}

/// What every Raft client of a member shares.
#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) me: Me,
    pub(crate) peers: Arc<Peers>,
    pub(crate) book: AddressBook,
    pub(crate) resolver: Arc<Resolver>,
    /// Longest wait for an answer to replication before the connection is given up.
    pub(crate) append_timeout: Duration,
    /// Connection that reads are confirmed on: a follower's to its leader, a leader's to its witness.
    pub(crate) reads: Mutex<Option<(u64, RaftClient<Channel>)>>,
}

impl Net {
    /// A client of the member that confirms reads, kept between calls.
    pub(crate) async fn reads_client(&self, id: u64, address: &str) -> Result<RaftClient<Channel>> {
        let known = self.reads.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((known, client)) = known
            && known == id
        {
            return Ok(client);
        }
        let client = self.resolver.connect(address, Duration::from_secs(1)).await?;
        *self.reads.lock().unwrap_or_else(PoisonError::into_inner) = Some((id, client.clone()));
        Ok(client)
    }

    /// After a failure: the next call connects anew.
    pub(crate) fn forget_reads_client(&self) {
        *self.reads.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
