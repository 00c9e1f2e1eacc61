//! The worker: keeps blocks of files on this host and fills them from under-storage. It serves and fills without a
//! master. This file only wires its rooms together.

mod draining_peers;
mod fill;
mod heartbeat;
mod identity;
mod local;
mod mounts;
mod service;
mod store;

use std::sync::Arc;

use jindofs_proto::v1::WorkerInfo;
use jindofs_proto::v1::worker_server::WorkerServer;
use tokio::task::JoinSet;

use crate::config::{ClientConfig, WorkerConfig};
use crate::error::{Error, Result};
use crate::rpc::channel::MasterChannel;
use crate::rpc::server;
use crate::runtime::{Shutdown, host_name};
use crate::telemetry::http::{self, Probe};
use crate::types::MESSAGE_BYTES_MAX;
use jindofs_packets::PacketListener;

use draining_peers::DrainingPeers;
use fill::Filler;
use heartbeat::HeartbeatTask;
use identity::Identity;
use mounts::Mounts;
use store::Store;

/// Runs a worker until `stop`.
///
/// *Errors*: what keeps it from starting or from going on, each with the way out.
pub async fn run(config: WorkerConfig, stop: Shutdown) -> Result<()> {
    let client_port = server::bind(&format!("{}:{}", config.bind, config.grpc_port), "storage.rpc.port").await?;
    let http_port = server::bind(&format!("{}:{}", config.bind, config.http_port), "storage.http.port").await?;
    let identity = Arc::new(Identity::open(&config.data_dir)?);
    let store = {
        let tiers = config.tiers.clone();
        let opened = tokio::task::spawn_blocking(move || Store::open(tiers)).await;
        Arc::new(opened.map_err(|error| Error::internal(format!("opening the cache: {error}")))??)
    };
    let socket = PacketListener::bind(&config.socket).map_err(|error| {
        Error::from(error).context(format!("cannot listen on {} (storage.socket)", config.socket.display()))
    })?;
    let channel = MasterChannel::new(&ClientConfig {
        masters: config.masters.clone(),
        rpc_timeout: std::time::Duration::from_secs(10),
        hard: false,
    });
    let mounts = Arc::new(Mounts::open(&config.data_dir, channel.clone())?);
    let draining = Arc::new(DrainingPeers::new(identity.id()));
    let filler = Arc::new(Filler::new(store.clone(), mounts.clone(), draining.clone()));
    let info = WorkerInfo {
        id: identity.id(),
        address: format!("{}:{}", config.host, config.grpc_port),
        host: host_name(),
        socket: config.socket.display().to_string(),
        capacity_bytes: store.capacity(),
        ..WorkerInfo::default()
    };
    tracing::info!(id = info.id, files = store.count(), bytes = store.used(), "the cache is open");

    let ends = Shutdown::new();
    let mut tasks = JoinSet::new();
    let heartbeats =
        HeartbeatTask::new(&config, info.clone(), identity.clone(), store.clone(), mounts, draining, channel);
    let service = service::WorkerService::new(info, identity, store, filler.clone());
    let service = WorkerServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    tasks.spawn(server::serve(client_port, server::routes(service).await?, ends.clone()));
    tasks.spawn(http::serve(http_port, Arc::new(Ready(heartbeats.clone())), ends.clone()));
    tasks.spawn(local::serve(socket, filler, ends.clone()));
    tasks.spawn(heartbeats.run(ends.clone()));
    let outcome = tokio::select! {
        () = stop.cancelled() => Ok(()),
        ended = tasks.join_next() => match ended {
            Some(Ok(ended)) => ended.and_then(|()| Err(Error::internal("a task of the worker has ended"))),
            _ => Err(Error::internal("a task of the worker has failed")),
        },
    };
    ends.cancel();
    while tasks.join_next().await.is_some() {}
    // Whoever starts next at this path must not be taken for us; that it is gone already is as good.
    let _ = std::fs::remove_file(&config.socket);
    outcome
}

struct Ready(Arc<HeartbeatTask>);

impl Probe for Ready {
    fn ready(&self) -> Result<String, String> {
        // Blocks are served and filled with or without masters, but nobody can find a worker that never registered.
        if self.0.is_registered() {
            Ok("registered".to_owned())
        } else {
            Err("not registered with a master yet".to_owned())
        }
    }
}
