//! The master: a member of the Raft group that keeps the namespace. This file only wires its rooms together.

pub mod duties;
pub mod http;
pub mod raft;
pub mod service;
pub mod state;
pub mod store;
pub mod view;

use jindofs_proto::raft::v1::raft_server::RaftServer;
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;

use crate::config::MasterConfig;
use crate::error::{Error, Result};
use crate::runtime::Shutdown;
use crate::types::MESSAGE_BYTES_MAX;

use raft::{Handle, RaftService};

/// Runs a master until `stop`.
///
/// *Errors*: what keeps it from starting (a port or a directory in use, a disk that must not be used), each with the way
/// out; the process should end with them.
pub async fn run(config: MasterConfig, stop: Shutdown) -> Result<()> {
    let handle = Handle::open(config.clone())?;
    let servers = Shutdown::new();
    let raft = serve_raft(handle.clone(), &config, servers.clone()).await?;
    let client = tokio::spawn(service::serve(handle.clone(), config.clone(), servers.clone()));
    let lived = handle.live(&stop).await;
    servers.cancel();
    let _ = raft.await; let _ = client.await;
    lived
}

async fn serve_raft(
    handle: Handle,
    config: &MasterConfig,
    stop: Shutdown,
) -> Result<tokio::task::JoinHandle<()>> {
    let address = format!("{}:{}", config.bind, config.raft_port);
    let listener = TcpListener::bind(&address)
        .await
        .map_err(|error| Error::from(error).context(format!("raft port {address} (namespace.backend.raft.port)")))?;
    let service = RaftServer::new(RaftService(handle))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let server = tonic::transport::Server::builder()
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20)
        .add_service(service);
    Ok(tokio::spawn(async move {
        // A small answer must not wait for the peer's delayed acknowledgement.
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        if let Err(error) = server.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await {
            crate::runtime::die(&format!("the raft server has failed: {error}"));
        }
    }))
}
