//! Three members of etcd on this machine, as Debian packages it, and puts to their leader.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};

use super::Outcome;

const MEMBERS: usize = 3;
/// Clients that share one connection, as with `jindoctl bench`.
const CLIENTS_PER_CONNECTION: usize = 64;
/// About what the inode and the dentry of a new file take.
const VALUE_BYTES: usize = 128;

/// `etcdserverpb.PutRequest`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// `etcdserverpb.PutResponse`; nothing of it is looked at.
#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

/// A running cluster; killed when dropped.
pub(crate) struct Etcd {
    members: Vec<Child>,
    clients: Vec<u16>,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            let killed = member.kill().and_then(|()| member.wait());
            if let Err(error) = killed {
                eprintln!("warning: a member of etcd was not stopped: {error}");
            }
        }
    }
}

fn free_ports(count: usize) -> Outcome<Vec<u16>> {
    let listeners = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    Ok(listeners.iter().map(|one| one.local_addr().map(|address| address.port())).collect::<Result<_, _>>()?)
}

impl Etcd {
    /// Starts three members with their default fsync.
    pub(crate) fn start(dir: &Path) -> Outcome<Etcd> {
        std::fs::create_dir_all(dir)?;
        let ports = free_ports(2 * MEMBERS)?;
        let (clients, peers) = ports.split_at(MEMBERS);
        let peer = |number: usize| format!("http://127.0.0.1:{}", peers[number]);
        let all: Vec<String> = (0..MEMBERS).map(|number| format!("m{number}={}", peer(number))).collect();
        let mut etcd = Etcd { members: Vec::new(), clients: clients.to_vec() };
        for (number, port) in clients.iter().enumerate() {
            let url = format!("http://127.0.0.1:{port}");
            let mut command = Command::new("etcd");
            command.args(["--name", &format!("m{number}"), "--data-dir"]).arg(dir.join(format!("m{number}")));
            command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
            command.args(["--listen-peer-urls", &peer(number), "--initial-advertise-peer-urls", &peer(number)]);
            command.args(["--initial-cluster", &all.join(","), "--log-level", "error"]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let started = command.spawn().map_err(|error| format!("etcd: {error}; apt-get install etcd-server"))?;
            etcd.members.push(started);
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        while etcd.leader().is_err() {
            if Instant::now() > deadline {
                return Err("etcd has no leader after 30 s".into());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(etcd)
    }

    /// Client port of the leader, from the members' metrics.
    fn leader(&self) -> Outcome<u16> {
        for port in &self.clients {
            let mut stream = TcpStream::connect(("127.0.0.1", *port))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            if text.contains("\netcd_server_is_leader 1") {
                return Ok(*port);
            }
        }
        Err("etcd has no leader".into())
    }

    /// Puts per second of `clients` clients that each wait for the answer to their last put.
    pub(crate) async fn puts(&self, clients: usize, time: Duration) -> Outcome<f64> {
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{}", self.leader()?))?;
        let mut channels = Vec::new();
        for _ in 0..clients.div_ceil(CLIENTS_PER_CONNECTION) {
            channels.push(endpoint.connect().await?);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let tasks: Vec<_> = (0..clients)
            .map(|number| {
                let channel = channels[number / CLIENTS_PER_CONNECTION].clone();
                tokio::spawn(put(channel, number, stop.clone(), done.clone()))
            })
            .collect();
        let began = Instant::now();
        tokio::time::sleep(time).await;
        stop.store(true, Ordering::Relaxed);
        for task in tasks {
            task.await??;
        }
        #[allow(clippy::cast_precision_loss)]
        let puts = done.load(Ordering::Relaxed) as f64;
        Ok(puts / began.elapsed().as_secs_f64())
    }
}

async fn put(
    channel: Channel,
    client: usize,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
) -> Result<(), tonic::Status> {
    let mut grpc = Grpc::new(channel);
    let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let key = Bytes::from(format!("bench/{client:04}/f{number:08}"));
        grpc.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let request = tonic::Request::new(PutRequest { key, value: value.clone() });
        let path = PathAndQuery::from_static("/etcdserverpb.KV/Put");
        let codec = tonic_prost::ProstCodec::<PutRequest, PutResponse>::default();
        grpc.unary(request, path, codec).await?;
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
