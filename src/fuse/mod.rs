//! The FUSE client: the namespace as a kernel mount. This file only wires the modules together.

mod adapter;
mod attempt;
mod attributes;
mod deferred_create;
mod dircache;
mod directory;
mod errno;
mod fs;
mod handles;
mod handover;
mod handover_state;
mod init;
mod inodes;
mod invalidation;
mod kernel_cache;
mod last_close;
mod locks;
mod mountpoint;
mod namespace_ops;
mod nodes;
mod open;
mod pages;
mod pending_commits;
mod pending_creates;
mod reply;
mod restored_handles;
mod session;
mod space;
mod staging;
mod store_again;
mod unsaved;
mod versions;
mod write;

use std::sync::Arc;
use std::time::Duration;

use fuser::BackgroundSession;

use crate::client::mounts::Mounts;
use crate::client::reader::Reader;
use crate::config::FuseConfig;
use crate::error::{Error, Result};
use crate::rpc::channel::MasterChannel;
use crate::rpc::server;
use crate::runtime::{Shutdown, failpoint};
use crate::telemetry::http::{self, Probe};
use crate::ufs;

use fs::Fs;
use handover::{HeldFlag, Link, Taken};
use session::Served;

pub use mountpoint::{is_mounted, unmount};

/// How often the mount table is refreshed and the kernel session is checked.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Serves a mount until `stop`, or until it is unmounted. If the mount holder has the mount, it is left to the next
/// process, and this process exits.
///
/// *Errors*: what prevents mounting, with a hint.
pub async fn run(config: FuseConfig, stop: Shutdown) -> Result<()> {
    // A symbolic link may change while this process runs: it must unmount where it mounted.
    let config = FuseConfig { mount: mountpoint::resolve(&config.mount), ..config };
    let http_port = server::bind(&format!("{}:{}", config.bind, config.http_port), "fuse.http.port").await?;
    let channel = MasterChannel::new(&config.client);
    let mounts = Arc::new(Mounts::new(channel.clone()));
    let reader = Reader::new(channel.clone(), mounts.clone(), Some(ufs::Registry::default()));
    reader.start_tidying();
    let workers = reader.workers().clone();
    let fs = Fs::new(&config, channel.clone(), mounts.clone(), reader);
    if config.writable {
        fs.staging.prepare()?;
    }
    let served = tokio::select! {
        biased;
        served = serve(&config, &fs) => served?,
        // A mount that another process still serves is left alone.
        () = stop.cancelled() => return Ok(()),
    };
    let (Served { session, handover }, link) = served;
    let device = mountpoint::device(&config.mount);
    // The mount holder has a mount that was taken over from the start, so a client that is stopped at once leaves the
    // mount as well.
    let held = HeldFlag::new(link.is_some());
    if let (Some(socket), Some(handover)) = (config.handover_socket.clone(), handover) {
        tokio::spawn(handover::keep_held(socket, handover, link, held.clone()));
    }
    // Fetched early, because an open needs them and the masters may not answer then.
    let (early, list) = (mounts.clone(), workers);
    tokio::spawn(async move { tokio::join!(early.keep_fresh(), list.all()) });
    tracing::info!(mount = %config.mount.display(), "mounted");

    let _following = fs.invalidation.is_followed().then(|| fs.follow_changes());
    let ends = Shutdown::new();
    let probe = Arc::new(Ready { channel, mount: config.mount.clone() });
    let served = tokio::spawn(http::serve(http_port, probe, ends.clone()));
    let outcome = loop {
        tokio::select! {
            () = stop.cancelled() => break Ok(()),
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
        if session.guard.is_finished() {
            tracing::info!("unmounted by somebody else");
            break Ok(());
        }
        if served.is_finished() {
            break Err(Error::internal("the HTTP server has ended"));
        }
        mounts.keep_fresh().await;
        // This may wait for a new session, which can take long while masters do not answer.
        let _ = tokio::time::timeout(POLL_INTERVAL, fs.look_at_locks()).await;
    };
    if held.get() && !session.guard.is_finished() {
        leave(&outcome);
    }
    ends.cancel();
    end(session, &config, device.as_deref());
    fs.settle().await;
    let saved = fs.check_saved();
    outcome.and(saved)
}

/// Takes over a mount that another process has left, or creates a new one.
async fn serve(config: &FuseConfig, fs: &Arc<Fs>) -> Result<(Served, Option<Link>)> {
    let taken = match &config.handover_socket {
        Some(socket) => handover::take(socket, &config.mount).await?,
        None => None,
    };
    if let Some(Taken { device, fuse, state, link }) = taken {
        failpoint("fuse.handover.taken");
        match session::take_over(config, fs, device.clone(), fuse, state) {
            Ok(served) => return Ok((served, Some(link))),
            Err(error) => {
                tracing::error!(%error, "what the process before has left is given up, and a new mount is made");
                link.discard(&device).await?;
            }
        }
    }
    let place = mountpoint::prepare(config)?;
    let served = session::mount(config, &place, fs);
    if served.is_err()
        && let Err(error) = place.abandon()
    {
        tracing::warn!(%error, "something is left at the mount point");
    }
    served.map(|served| (served, None))
}

/// Exits without answering the pending requests of the kernel, which the next process gets. An orderly end would drop
/// them, and each dropped request is an error for a reader.
fn leave(outcome: &Result<()>) -> ! {
    match outcome {
        Ok(()) => tracing::info!("the mount is left to the next process"),
        Err(error) => tracing::error!(%error, "the mount is left to the next process"),
    }
    std::process::exit(outcome.as_ref().map_or_else(|error| i32::from(error.exit_code()), |_| 0));
}

/// Unmounts. A mount in use disappears from the tree and stays until its last user releases it.
fn end(session: BackgroundSession, config: &FuseConfig, device: Option<&str>) {
    if let Err(error) = mountpoint::unmount_device(&config.mount, device) {
        tracing::warn!(%error, "not unmounted");
    }
    // Its threads end with the connection, which open files may keep for long: the process does not wait for them.
    drop(session);
    tracing::info!(mount = %config.mount.display(), "unmounted");
}

struct Ready {
    channel: MasterChannel,
    mount: std::path::PathBuf,
}

impl Probe for Ready {
    fn ready(&self) -> Result<String, String> {
        if !is_mounted(&self.mount) {
            return Err(format!("{} is not mounted", self.mount.display()));
        }
        match self.channel.failing_since() {
            Some(since) => Err(format!("no master answers since {} s", since.elapsed().as_secs())),
            None => Ok("mounted".to_owned()),
        }
    }
}
