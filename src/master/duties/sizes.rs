//! Counts what lies in the under-storages, for those who ask. Listings cost requests: nothing is counted unless asked for.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use jindofs_proto::v1::Mount;

use crate::error::Result;
use crate::master::service::Parts;
use crate::master::state::query;
use crate::master::view::Size;
use crate::runtime::{Shutdown, now_ns};
use crate::ufs::Kind;

/// Pause between two looks at what is due.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Shortest time between two counts of a mount.
const COUNT_INTERVAL_MIN: Duration = Duration::from_secs(60);
/// A count that takes long is repeated after this many times its length.
const COUNT_INTERVAL_FACTOR: u32 = 20;

/// Counts until `stop`.
pub(super) async fn run(parts: Parts, stop: Shutdown) {
    let mut due: HashMap<(u32, String), Instant> = HashMap::new();
    while !stop.is_cancelled() {
        if parts.sizes.wanted() && parts.handle.is_leader() {
            let counted =
                tokio::select! { () = stop.cancelled() => return, counted = round(&parts, &mut due) => counted };
            if let Err(error) = counted {
                tracing::info!(%error, "under-storages are not counted");
            }
        }
        tokio::select! { () = stop.cancelled() => {}, () = tokio::time::sleep(POLL_INTERVAL) => {} }
    }
}

async fn round(parts: &Parts, due: &mut HashMap<(u32, String), Instant>) -> Result<()> {
    let Some(store) = parts.handle.store() else { return Ok(()) };
    let mounts = query::mounts(&store.view())?.0;
    drop(store);
    parts.sizes.retain(|id| mounts.iter().any(|mount| mount.id == id));
    due.retain(|(id, _), _| mounts.iter().any(|mount| mount.id == *id));
    for mount in mounts {
        let key = (mount.id, mount.ufs_uri.clone());
        if due.get(&key).is_some_and(|at| *at > Instant::now()) {
            continue;
        }
        let began = Instant::now();
        match count(parts, &mount).await {
            Ok(size) => parts.sizes.set(mount.id, size),
            Err(error) => tracing::warn!(ufs = mount.ufs_uri, %error, "an under-storage cannot be counted"),
        }
        due.insert(key, Instant::now() + COUNT_INTERVAL_MIN.max(began.elapsed() * COUNT_INTERVAL_FACTOR));
    }
    Ok(())
}

/// Lists every directory, one after the other.
async fn count(parts: &Parts, mount: &Mount) -> Result<Size> {
    let ufs = parts.storage.open(&mount.ufs_uri, &mount.options)?;
    let (mut size, mut left) = (Size::default(), vec![Vec::new()]);
    while let Some(directory) = left.pop() {
        for entry in ufs.list(&directory).await?.entries {
            match entry.kind {
                Kind::Directory => {
                    let slash: &[u8] = if directory.is_empty() { b"" } else { b"/" };
                    left.push([&directory[..], slash, &entry.name[..]].concat());
                }
                Kind::File => {
                    size.files += 1;
                    // Sparse files may say that they are larger than all together can be.
                    size.bytes = size.bytes.saturating_add(entry.size);
                }
                Kind::Symlink => size.files += 1,
            }
        }
    }
    size.counted_ns = now_ns();
    Ok(size)
}
