//! How the under-storages of the mounts are, for those who ask.

use std::time::Duration;

use futures::future::join_all;
use jindofs_proto::v1::{CheckMountsResponse, Mount, MountState};

use super::Parts;
use crate::error::{Error, ErrorKind, Result};
use crate::master::state::query;

/// How long an under-storage may take to answer: less than an attempt of a client.
const CHECK_TIMEOUT: Duration = Duration::from_millis(1500);

/// Asks every under-storage at the same time.
pub(super) async fn check(parts: &Parts) -> Result<CheckMountsResponse> {
    let mounts = query::mounts(&parts.handle.read().await?.view())?.0;
    let states = join_all(mounts.iter().map(|mount| state(parts, mount))).await;
    Ok(CheckMountsResponse { states })
}

async fn state(parts: &Parts, mount: &Mount) -> MountState {
    let blank = MountState { mount_id: mount.id, ..MountState::default() };
    match ask(parts, mount).await {
        Ok(()) => MountState { available: true, ..blank },
        Err(error) => {
            let outage = parts.storage.outage(&mount.ufs_uri, &mount.options);
            let since_ns = outage.map_or(0, |outage| outage.since_ns);
            MountState { available: false, error: error.message, since_ns, ..blank }
        }
    }
}

async fn ask(parts: &Parts, mount: &Mount) -> Result<()> {
    let storage = parts.storage.open(&mount.ufs_uri, &mount.options)?;
    let late = |_| {
        let message = format!("{} has not answered within {CHECK_TIMEOUT:?}: look at it, or ask again", mount.ufs_uri);
        Error::new(ErrorKind::Timeout, message)
    };
    tokio::time::timeout(CHECK_TIMEOUT, storage.check()).await.map_err(late)?.map(drop)
}
