//! The CSI node plugin: shows the mount of the FUSE client on a node to the pods that use its Dataset.
//!
//! It has no right to change anything in Kubernetes: which node runs a client is the operator's business; the plugin waits
//! until the mount is there and binds it to where the kubelet wants it.

mod identity;
mod keeper;
mod mounts;
mod node;
mod published;
mod registration;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jindofs_proto::csi::identity_server::IdentityServer;
use jindofs_proto::csi::node_server::NodeServer;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::http::Ready;
use keeper::Keeper;
use published::Published;

/// How often mounts are compared with what they show.
const LOOK: Duration = Duration::from_secs(1);

/// What the plugin is told when it starts.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the driver.
    pub driver: String,
    /// Name of the node.
    pub node: String,
    /// Directory of the plugin's socket and records, the same path here and on the node.
    pub directory: PathBuf,
    /// Directory where the kubelet looks for sockets of plugins.
    pub registry: PathBuf,
    /// Socket at which clients leave their mounts to their successors.
    pub handover_socket: PathBuf,
    /// How long a mount waits for the next client.
    pub handover_timeout: Duration,
}

fn listen(socket: &Path) -> Result<UnixListener, String> {
    let at = |error: std::io::Error| format!("{}: {error}", socket.display());
    match std::fs::remove_file(socket) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(at(error)),
    }
    if let Some(directory) = socket.parent() {
        std::fs::create_dir_all(directory).map_err(at)?;
    }
    UnixListener::bind(socket).map_err(at)
}

/// Serves the kubelet until `stop` completes.
///
/// *Errors*: when a socket cannot be had, or serving ends.
pub async fn run(options: Options, ready: Ready, stop: impl Future<Output = ()>) -> Result<(), String> {
    let published = Arc::new(Published::open(options.directory.join("published"))?);
    let socket = options.directory.join("csi.sock");
    let listener = listen(&socket)?;
    let register = options.registry.join(format!("{}-reg.sock", options.driver));
    let registrar = listen(&register)?;
    let handover = keeper::listen(&options.handover_socket)?;
    let keeper = Arc::new(Keeper::new(published.clone(), options.handover_timeout));
    let node = node::NodeService::new(options.node.clone(), published.clone());
    let serve = Server::builder()
        .add_service(IdentityServer::new(identity::IdentityService { driver: options.driver.clone() }))
        .add_service(NodeServer::new(node))
        .serve_with_incoming(UnixListenerStream::new(listener));
    let plugin = registration::info(&options.driver, &socket);
    let rebind = async {
        loop {
            let published = published.clone();
            // Mounting may block for as long as a file system does.
            let _ = tokio::task::spawn_blocking(move || published.rebind()).await;
            tokio::time::sleep(LOOK).await;
        }
    };
    // Apart from it: what blocks there may wait for what is let go of here.
    let tidy = async {
        loop {
            let keeper = keeper.clone();
            let _ = tokio::task::spawn_blocking(move || keeper.tidy()).await;
            tokio::time::sleep(LOOK).await;
        }
    };
    ready.set();
    tracing::info!(driver = options.driver, node = options.node, socket = %socket.display(), "serving the kubelet");
    let outcome = tokio::select! {
        served = serve => served.map_err(|error| format!("the plugin's socket: {error}")),
        () = registration::serve(registrar, plugin) => Err("the registration socket has ended".to_owned()),
        () = rebind => Ok(()),
        () = tidy => Ok(()),
        () = keeper.clone().serve(handover) => Ok(()),
        () = stop => Ok(()),
    };
    // The kubelet takes a socket that is gone for a plugin that is gone, and mounts nothing more until it comes back.
    let _ = std::fs::remove_file(&register);
    outcome
}
