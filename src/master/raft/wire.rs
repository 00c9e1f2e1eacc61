//! Connections between masters: where a member is, how it is reached, and the header every message carries.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use jindofs_proto::raft::v1::raft_client::RaftClient;
use jindofs_proto::raft::v1::{Header, ProbeRequest, ProbeResponse};
use tonic::transport::{Channel, Endpoint};

use crate::error::{Error, ErrorKind, Result};
use crate::rpc::status::from_status;
use crate::runtime::random_id;
use crate::types::MESSAGE_BYTES_MAX;
use crate::types::address::host_port;

use super::admission::DiskReports;
use super::announce::Refusals;
use super::confirm::Confirmations;
use super::integrity::Integrity;
use super::peers::{Disbelief, Peers};
use super::snapshot::Transfers;
use super::types::Node;

/// Longest host:port.
const ADDRESS_BYTES_MAX: usize = 255;
/// Most masters that one is configured with.
const PEERS_MAX: usize = 64;
/// Largest answer to a probe.
const PROBE_BYTES_MAX: usize = 64 << 10;
/// Most names whose last good addresses are remembered.
const RESOLVED_MAX: usize = 1_024;

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

    /// Refuses a header that is not for this member, not of its cluster, or that no member can have sent.
    fn check_header<'h>(&self, header: Option<&'h Header>) -> Result<&'h Header> {
        let foreign = |why: String| Err(Error::new(ErrorKind::Foreign, why));
        let Some(header) = header else { return foreign("the message has no header".to_owned()) };
        if header.cluster_uuid != self.cluster[..] {
            return foreign("the message belongs to another cluster".to_owned());
        }
        if header.target_id != self.id {
            return foreign(format!("the message is for member {}, this is member {}", header.target_id, self.id));
        }
        if header.sender_id == self.id {
            return foreign(format!(
                "the message is from another process that says to be member {}, as this is",
                self.id
            ));
        }
        if header.sender_id == 0 || header.boot == 0 {
            return foreign("the message is from no member: it has no id or no boot".to_owned());
        }
        check_id("incarnation", &header.incarnation)?;
        check_id("boot nonce", &header.boot_nonce)?;
        Ok(header)
    }
}

/// Refuses an id or nonce that does not have 16 bytes.
pub(super) fn check_id(what: &str, bytes: &[u8]) -> Result<()> {
    match bytes.len() {
        16 => Ok(()),
        length => Err(Error::invalid(format!("the {what} has {length} bytes, 16 are needed"))),
    }
}

/// Refuses what is no host:port in the one form in which addresses are compared, or a long one.
pub(super) fn check_address(what: &str, address: &str) -> Result<()> {
    if address.len() > ADDRESS_BYTES_MAX {
        let length = address.len();
        return Err(Error::invalid(format!("the {what} has {length} bytes, at most {ADDRESS_BYTES_MAX} are allowed")));
    }
    match host_port(address) {
        Ok(read) if read == address => Ok(()),
        Ok(read) => Err(Error::invalid(format!("the {what} {address:?} must be written {read}"))),
        Err(why) => Err(Error::invalid(format!("the {what}: {why}"))),
    }
}

/// Refuses an answer to a probe that does not repeat its nonce, or that no master can have given.
fn check_probe(answer: &ProbeResponse, nonce: &[u8]) -> Result<()> {
    let malformed = |why: &str| Err(Error::unavailable(format!("the answer to a probe {why}")));
    if answer.nonce != nonce {
        return malformed("does not repeat its nonce");
    }
    let ids = [
        &answer.cluster_uuid,
        &answer.incarnation,
        &answer.boot_nonce,
        &answer.founding_attempt,
        &answer.promised_attempt,
    ];
    if ids.into_iter().any(|id| !matches!(id.len(), 0 | 16)) {
        return malformed("holds an id that does not have 16 bytes");
    }
    let texts = [&answer.state, &answer.grpc_address, &answer.raft_address, &answer.leader_raft_address];
    let long = |text: &String| text.len() > ADDRESS_BYTES_MAX;
    if texts.into_iter().any(long) || answer.peers.iter().any(long) || answer.peers.len() > PEERS_MAX {
        return malformed("is longer than any master gives");
    }
    Ok(())
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
                let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                // Strangers can name addresses too: what they name must not fill the memory.
                if known.len() < RESOLVED_MAX || known.contains_key(address) {
                    known.insert(address.to_owned(), found.clone());
                }
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
            match open(&endpoint).await {
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

    /// Asks the master at `address` for its identity and its start. The answer repeats a fresh nonce, so it was given
    /// after this call by a process that can be reached there.
    ///
    /// *Errors*: `Unavailable`.
    pub(crate) async fn probe(&self, address: &str, timeout: Duration) -> Result<ProbeResponse> {
        self.probe_with(address, ProbeRequest::default(), timeout).await
    }

    /// As [`Resolver::probe`], with what else the request says.
    pub(crate) async fn probe_with(
        &self,
        address: &str,
        request: ProbeRequest,
        timeout: Duration,
    ) -> Result<ProbeResponse> {
        let nonce = random_id();
        let ask = async {
            let client = self.connect(address, timeout).await?;
            let mut client = client.max_decoding_message_size(PROBE_BYTES_MAX);
            let request = ProbeRequest { nonce: nonce.to_vec().into(), ..request };
            let answer = client.probe(request).await.map_err(|status| from_status(&status))?.into_inner();
            check_probe(&answer, &nonce).map(|()| answer)
        };
        tokio::time::timeout(timeout, ask)
            .await
            .unwrap_or_else(|_| Err(Error::unavailable(format!("master {address} does not answer within {timeout:?}"))))
    }
}

async fn open(endpoint: &Endpoint) -> Result<Channel, tonic::transport::Error> {
    #[cfg(test)]
    if crate::runtime::simulated::is_active() {
        return endpoint.connect_with_connector(super::simulation::Connector).await;
    }
    endpoint.connect().await
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
    /// A member that was heard from within this time is alive.
    pub(crate) alive_timeout: Duration,
    /// Claims whose disks are being asked.
    pub(crate) confirmations: Arc<Confirmations>,
    /// Peers that refuse this disk.
    pub(crate) refusals: Refusals,
    /// Messages of other masters that were refused since the start.
    pub(crate) refused: AtomicU64,
    /// What is known of damage on this disk.
    pub(crate) integrity: Arc<Integrity>,
    pub(crate) transfers: Arc<Transfers>,
    /// What members said of their disks.
    pub(crate) disks: DiskReports,
    /// Connection that reads are confirmed on: a follower's to its leader, a leader's to its witness.
    pub(crate) reads: Mutex<Option<(u64, RaftClient<Channel>)>>,
}

impl Net {
    /// Refuses a message that is not for this member, not of its cluster, or from a disk that lags behind what is known.
    ///
    /// *Errors*: `Foreign` or `InvalidArgument`; `Unavailable` for a start of the sender that its disk has not confirmed
    /// yet: the confirmation begins, and the message may be sent again.
    pub(crate) fn check(self: &Arc<Net>, header: Option<&Header>) -> Result<()> {
        let checked = self.me.check_header(header).and_then(|header| match self.peers.hear(header) {
            Ok(()) => Ok(()),
            Err(disbelief @ Disbelief::Unconfirmed { .. }) => {
                self.confirm_sender(header);
                Err(Error::unavailable(disbelief.to_string()))
            }
            Err(disbelief) => Err(Error::new(ErrorKind::Foreign, disbelief.to_string())),
        });
        if checked.is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        checked
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    fn header(me: &Me) -> Header {
        Header { sender_id: me.id + 1, ..me.header(me.id) }
    }

    #[test]
    fn headers_that_no_member_can_have_sent_are_refused() {
        let me = Me { cluster: [1; 16], id: 5, incarnation: [2; 16], boot: 3, nonce: [4; 16] };
        let good = header(&me);
        me.check_header(Some(&good)).expect("good");
        let bad = [
            Header { cluster_uuid: vec![9; 16].into(), ..good.clone() },
            Header { target_id: 6, ..good.clone() },
            Header { sender_id: 5, ..good.clone() },
            Header { sender_id: 0, ..good.clone() },
            Header { boot: 0, ..good.clone() },
            Header { incarnation: vec![2; 17].into(), ..good.clone() },
            Header { boot_nonce: Vec::new().into(), ..good.clone() },
        ];
        for header in bad {
            me.check_header(Some(&header)).expect_err("refused");
        }
        me.check_header(None).expect_err("no header");
    }

    #[test]
    fn addresses_are_short_and_plain() {
        for good in ["h:1", "master-0.ns.svc:8103", "[::1]:8103", "10.0.0.1:65535"] {
            check_address("address", good).unwrap_or_else(|error| panic!("{good}: {error}"));
        }
        let long = format!("{}:1", "h".repeat(254));
        for bad in [
            "::1:8103",
            "[0::1]:8103",
            "",
            "h",
            "h:",
            "h:0",
            "h:65536",
            ":1",
            "h:x",
            " h:1",
            "h h:1",
            "h/x:1",
            "h\n:1",
            long.as_str(),
        ] {
            check_address("address", bad).expect_err(bad);
        }
    }

    #[test]
    fn an_answer_to_a_probe_repeats_the_nonce_and_is_short() {
        let good =
            ProbeResponse { nonce: vec![7; 16].into(), incarnation: vec![1; 16].into(), ..ProbeResponse::default() };
        check_probe(&good, &[7; 16]).expect("good");
        check_probe(&good, &[8; 16]).expect_err("another nonce");
        let bad = [
            ProbeResponse { boot_nonce: vec![1; 17].into(), ..good.clone() },
            ProbeResponse { promised_attempt: vec![1; 17].into(), ..good.clone() },
            ProbeResponse { raft_address: "h".repeat(256), ..good.clone() },
            ProbeResponse { peers: vec!["h:1".to_owned(); 65], ..good.clone() },
        ];
        for answer in bad {
            check_probe(&answer, &[7; 16]).expect_err("refused");
        }
    }
}
