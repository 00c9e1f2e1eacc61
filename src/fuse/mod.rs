//! The FUSE client: the namespace as a kernel mount. This file only wires its rooms together.

mod adapter;
mod dircache;
mod directory;
mod errno;
mod fs;
mod handles;
mod inodes;
mod mountpoint;

use std::sync::Arc;
use std::time::Duration;

use fuser::{BackgroundSession, Config, MountOption, SessionACL};

use crate::client::mounts::Mounts;
use crate::client::reader::Reader;
use crate::config::FuseConfig;
use crate::error::{Error, Result};
use crate::rpc::channel::MasterChannel;
use crate::rpc::server;
use crate::runtime::Shutdown;
use crate::telemetry::http::{self, Probe};
use crate::ufs;

use fs::Fs;

pub use mountpoint::{is_mounted, unmount};

/// How often the mount table is looked at, and whether the kernel still serves the mount.
const LOOK: Duration = Duration::from_secs(1);

/// Serves a mount until `stop`, or until somebody unmounts it.
///
/// *Errors*: what keeps it from mounting, with the way out.
pub async fn run(config: FuseConfig, stop: Shutdown) -> Result<()> {
    let http_port = server::bind(&format!("{}:{}", config.bind, config.http_port), "fuse.http.port").await?;
    mountpoint::prepare(&config.mount, config.create_mount)?;
    let channel = MasterChannel::new(&config.client);
    let mounts = Arc::new(Mounts::new(channel.clone()));
    let reader = Reader::new(channel.clone(), mounts.clone(), Some(ufs::Registry::default()));
    reader.start_tidying();
    let workers = reader.workers().clone();
    let fs = Fs::new(&config, channel.clone(), mounts.clone(), reader);
    let session = mount(&config, fs.clone())?;
    // What opening needs beside attributes is asked for now: masters may be gone when it is needed.
    let (early, list) = (mounts.clone(), workers);
    tokio::spawn(async move { tokio::join!(early.keep_fresh(), list.all()) });
    tracing::info!(mount = %config.mount.display(), "mounted");

    let ends = Shutdown::new();
    let probe = Arc::new(Ready { channel, mount: config.mount.clone() });
    let served = tokio::spawn(http::serve(http_port, probe, ends.clone()));
    let outcome = loop {
        tokio::select! {
            () = stop.cancelled() => break Ok(()),
            () = tokio::time::sleep(LOOK) => {}
        }
        if session.guard.is_finished() {
            tracing::info!("unmounted by somebody else");
            break Ok(());
        }
        if served.is_finished() {
            break Err(Error::internal("the HTTP server has ended"));
        }
        mounts.keep_fresh().await;
    };
    ends.cancel();
    end(session, &config);
    outcome
}

fn mount(config: &FuseConfig, fs: Arc<Fs>) -> Result<BackgroundSession> {
    let mut options = Config::default();
    // The kernel checks permissions, refuses writes, and says whose mount it is.
    options.mount_options = vec![
        MountOption::FSName("jindofs".to_owned()),
        MountOption::Subtype("jindofs".to_owned()),
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::DefaultPermissions,
    ];
    options.acl = if config.allow_other { SessionACL::All } else { SessionACL::Owner };
    options.n_threads = Some(config.threads);
    options.clone_fd = true;
    let adapter = adapter::Adapter::new(fs, tokio::runtime::Handle::current());
    fuser::spawn_mount(adapter, &config.mount, &options).map_err(|error| {
        let hint = match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => ": run it as root, or set user_allow_other in /etc/fuse.conf",
            Some(libc::ENODEV | libc::ENOENT) => ": is /dev/fuse there?",
            _ => "",
        };
        Error::from(error).context(format!("cannot mount at {}{hint}", config.mount.display()))
    })
}

/// Unmounts; a mount that is in use vanishes from the tree and lives on for those who use it until they let go.
fn end(session: BackgroundSession, config: &FuseConfig) {
    if let Err(error) = unmount(&config.mount) {
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
