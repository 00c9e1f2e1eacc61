//! How the under-storages of the mounts are, for those who ask.

use std::time::Duration;

use futures::future::join_all;
use jindofs_proto::v1::{CheckMountsResponse, Mount, MountState};

use super::Parts;
use crate::error::Result;
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
    match parts.storage.check(&mount.ufs_uri, &mount.options, CHECK_TIMEOUT).await {
        Ok(()) => MountState { available: true, ..blank },
        Err(error) => {
            let outage = parts.storage.outage(&mount.ufs_uri, &mount.options);
            let since_ns = outage.map_or(0, |outage| outage.since_ns);
            MountState { available: false, error: error.message, since_ns, ..blank }
        }
    }
}
