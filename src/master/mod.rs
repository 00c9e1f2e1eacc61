//! The master: a member of the Raft group that keeps the namespace. This file only wires its rooms together.

pub mod duties;
pub mod http;
pub mod intents;
pub mod invalidations;
pub mod metadata;
pub mod raft;
pub mod service;
pub mod state;
pub mod store;
pub mod view;
pub mod wording;

use std::sync::Arc;

use jindofs_proto::raft::v1::raft_server::RaftServer;
use tokio::task::JoinSet;

use crate::config::MasterConfig;
use crate::error::{Error, Result};
use crate::rpc::server;
use crate::runtime::Shutdown;
use crate::runtime::attended::AttendedClock;
use crate::telemetry;
use crate::types::MESSAGE_BYTES_MAX;
use crate::ufs;

use intents::Intents;
use metadata::Metadata;
use raft::{Handle, RaftService};
use service::Parts;

/// Runs a master until `stop`.
///
/// *Errors*: what keeps it from starting (a port or a directory in use, a disk that must not be used), each with the way
/// out; the process should end with them.
pub async fn run(config: MasterConfig, stop: Shutdown) -> Result<()> {
    let listen = |port: u16| format!("{}:{port}", config.bind);
    // Ports first: a second start by mistake must not count as a start of the disk.
    let raft_port = server::bind(&listen(config.raft_port), "namespace.backend.raft.port").await?;
    let client_port = server::bind(&listen(config.grpc_port), "namespace.rpc.port").await?;
    let http_port = server::bind(&listen(config.http_port), "namespace.http.port").await?;
    let handle = Handle::open(config.clone())?;
    let storage = Arc::new(ufs::Registry::default());
    let clock = AttendedClock::of_process();
    let metadata = Metadata::new(handle.clone(), storage.clone());
    let parts = Parts {
        intents: Intents::new(handle.clone(), metadata.clone(), storage.clone()),
        metadata,
        workers: Arc::new(view::Workers::new(config.worker_timeout, clock.clone())),
        sessions: Arc::new(view::Sessions::new(config.session_ttl, clock.clone())),
        drains: Arc::default(),
        progress: Arc::default(),
        sizes: Arc::default(),
        storage,
        handle: handle.clone(),
    };

    let servers = Shutdown::new();
    let mut tasks = JoinSet::new();
    {
        let servers = servers.clone();
        tasks.spawn(async move {
            clock.tick_until(servers).await;
            Ok(())
        });
    }
    let raft = RaftServer::new(RaftService(handle.clone()))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    tasks.spawn(server::serve(raft_port, server::routes(raft).await?, servers.clone()));
    {
        let (parts, servers) = (parts.clone(), servers.clone());
        tasks.spawn(async move { service::serve(client_port, parts, servers).await });
    }
    tasks.spawn(telemetry::http::serve(http_port, Arc::new(http::MasterProbe(handle.clone())), servers.clone()));
    {
        let servers = servers.clone();
        tasks.spawn(async move {
            duties::run(parts, servers).await;
            Ok(())
        });
    }
    let outcome = tokio::select! {
        lived = handle.live(&stop) => lived,
        ended = tasks.join_next() => Err(match ended {
            Some(Ok(Err(error))) => error,
            _ => Error::internal("a task of the master has ended"),
        }),
    };
    // Leadership is handed over by now; the servers answered until then.
    servers.cancel();
    while tasks.join_next().await.is_some() {}
    outcome
}
