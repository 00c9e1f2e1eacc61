//! The CSI node plugin: binds the mount of the FUSE client on a node into the pods that use its Dataset.
//!
//! Its only permission in Kubernetes is to create events. The operator decides which nodes run a client; the plugin
//! waits until the mount is there and binds it to the target of the kubelet.

mod health;
mod identity;
mod keyed_lock;
mod mount_holder;
mod mounts;
mod node;
mod orphans;
mod pod_events;
mod published;
mod registration;
mod request;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jindofs_proto::csi::identity_server::IdentityServer;
use jindofs_proto::csi::node_server::NodeServer;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::desired::handover_socket;
use crate::http::Ready;
use health::Health;
use keyed_lock::KeyedLock;
use mount_holder::MountHolder;
use orphans::Reaper;
use pod_events::PodEvents;
use published::{Published, Volume};

/// How often mounts are compared with the published volumes.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Options of the plugin.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the driver.
    pub driver: String,
    /// Name of the node.
    pub node: String,
    /// Directory of the kubelet; the path is the same in the container and on the node.
    pub kubelet: PathBuf,
    /// Directory below which the clients of this node mount.
    pub mounts: PathBuf,
    /// How long an unserved mount waits for the next client.
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
/// *Errors*: a socket cannot be opened, or serving ends.
pub async fn run(options: Options, ready: Ready, stop: impl Future<Output = ()>) -> Result<(), String> {
    let directory = options.kubelet.join("plugins").join(&options.driver);
    let published = Arc::new(Published::load(directory.join("published"))?);
    let socket = directory.join("csi.sock");
    let listener = listen(&socket)?;
    let register = options.kubelet.join("plugins_registry").join(format!("{}-reg.sock", options.driver));
    let registrar = listen(&register)?;
    let handover = mount_holder::listen(&handover_socket(&options.mounts))?;
    let mount_holder = Arc::new(MountHolder::new(published.clone(), options.handover_timeout));
    let (key_locks, health) = (KeyedLock::default(), Health::default());
    let node = node::NodeService::new(options.clone(), published.clone(), key_locks.clone(), health.clone());
    let reaper = Reaper {
        mounts: options.mounts.clone(),
        mount_holder: mount_holder.clone(),
        published: published.clone(),
        health: health.clone(),
    };
    let serve = Server::builder()
        .add_service(IdentityServer::new(identity::IdentityService { driver: options.driver.clone() }))
        .add_service(NodeServer::new(node))
        .serve_with_incoming(UnixListenerStream::new(listener));
    let pod_events = PodEvents::new(&options.node).await;
    let plugin = registration::info(&options.driver, &socket);
    ready.set();
    tracing::info!(driver = options.driver, node = options.node, socket = %socket.display(), "serving the kubelet");
    let outcome = tokio::select! {
        served = serve => served.map_err(|error| format!("the plugin's socket: {error}")),
        () = registration::serve(registrar, plugin) => Err("the registration socket has ended".to_owned()),
        () = keep_bound(published, key_locks, health, pod_events) => Ok(()),
        () = keep_tidy(mount_holder.clone()) => Ok(()),
        () = reaper.run() => Ok(()),
        () = mount_holder.serve(handover) => Ok(()),
        () = stop => Ok(()),
    };
    // The kubelet takes a removed socket for a removed plugin, and mounts nothing more until the plugin is back.
    let _ = std::fs::remove_file(&register);
    outcome
}

async fn keep_bound(published: Arc<Published>, key_locks: KeyedLock, health: Health, pod_events: PodEvents) {
    loop {
        for volume in published.stale() {
            tokio::spawn(bind_again(volume, published.clone(), key_locks.clone(), health.clone(), pod_events.clone()));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// In a task of its own: a bind that blocks may wait for a mount that is released here.
async fn keep_tidy(mount_holder: Arc<MountHolder>) {
    loop {
        mount_holder.clone().tidied().await;
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Binds a volume to a client that came back, unless the client does not answer or the target is locked: the next check
/// follows soon.
async fn bind_again(
    volume: Volume,
    published: Arc<Published>,
    key_locks: KeyedLock,
    health: Health,
    pod_events: PodEvents,
) {
    if health.usage(&volume.source).await.is_err() {
        return;
    }
    let Some(guard) = key_locks.try_lock(volume.target.display().to_string()) else { return };
    let shown = volume.clone();
    let work = move || {
        let _guard = guard;
        published.rebind(&shown)
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(true) => pod_events.replaced(&volume).await,
        Ok(false) => {}
        Err(error) => tracing::error!(%error, "binding again broke off"),
    }
}
