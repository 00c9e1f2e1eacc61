//! What `df` is told: the room of the under-storage that a file lies in. The cache is no part of it: what it has no room
//! for is read and written all the same.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jindofs_proto::v1::Mount;
use tokio::sync::Mutex;

use crate::client::reader::Reader;
use crate::ufs::Space;

use super::fs::Fs;

/// How long a figure serves.
const FRESH: Duration = Duration::from_secs(1);
/// How long an under-storage may take to tell.
const ANSWER: Duration = Duration::from_secs(2);
/// Shown where nothing is known that limits it: 1 PiB, which every program can count.
const UNLIMITED: Space = Space { total: 1 << 50, free: 1 << 50, available: 1 << 50 };

/// Figures by mount, with the time they were asked for.
#[derive(Debug, Default)]
pub(super) struct Spaces(Arc<Mutex<HashMap<u32, (Instant, Space)>>>);

impl Spaces {
    /// Room of the under-storage of a mount.
    async fn of(&self, mount: Mount, reader: Arc<Reader>) -> Space {
        let asked = async {
            let mut known = self.0.clone().lock_owned().await;
            if let Some((since, space)) = known.get(&mount.id)
                && since.elapsed() < FRESH
            {
                return *space;
            }
            // It keeps the lock also when nobody waits for it any more: a disk that hangs costs one thread, however many ask.
            let answered = tokio::spawn(async move {
                let space = reader.space(&mount).await.unwrap_or_else(|error| {
                    tracing::debug!(%error, mount = mount.id, "the room of an under-storage is not known");
                    None
                });
                let space = space.unwrap_or(UNLIMITED);
                known.insert(mount.id, (Instant::now(), space));
                space
            });
            answered.await.unwrap_or(UNLIMITED)
        };
        tokio::time::timeout(ANSWER, asked).await.unwrap_or(UNLIMITED)
    }
}

impl Fs {
    /// Room for what lies where this inode does.
    pub(super) async fn space(&self, inode: u64) -> Space {
        let mount_id = self.inodes.get(inode).map(|known| known.attr.mount_id);
        let mount = mount_id.filter(|id| *id != 0).and_then(|id| self.mounts.known(id));
        match mount.or_else(|| self.mounts.rooted_at(inode)) {
            Some(mount) => self.spaces.of(mount, self.reader.clone()).await,
            None => UNLIMITED,
        }
    }
}
