//! Dead mounts that the keeper does not hold: the plugin ended after their client and before it could let go of them, or the
//! client was one whose mount is not held. The next client clears the place where it mounts; without one, since its Dataset is
//! gone, nobody else would ever take the mount away.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::health::Health;
use super::mount_holder::MountHolder;
use super::mounts::{Mounted, table};
use super::published::Published;

/// Pause between two scans. A live mount that is not held and not published is asked in each of them.
const SCAN_INTERVAL: Duration = Duration::from_secs(5);

/// Takes dead mounts away that no volume shows.
#[derive(Debug)]
pub(super) struct Reaper {
    /// Directory below which the clients of this node mount.
    pub(super) mounts: PathBuf,
    pub(super) mount_holder: Arc<MountHolder>,
    pub(super) published: Arc<Published>,
    pub(super) health: Health,
}

impl Reaper {
    /// Scans the mount table again and again.
    pub(super) async fn run(self) {
        loop {
            match self.candidates() {
                Ok(candidates) => {
                    for mounted in candidates {
                        self.reap(mounted).await;
                    }
                }
                Err(error) => tracing::warn!(%error, "mounts without a client are not looked for"),
            }
            tokio::time::sleep(SCAN_INTERVAL).await;
        }
    }

    /// Mounts that would stay for ever if their client were gone.
    fn candidates(&self) -> std::io::Result<Vec<Mounted>> {
        let mut candidates = Vec::new();
        for mounted in table()? {
            if mounted.is_fuse()
                && mounted.at.starts_with(&self.mounts)
                && !self.mount_holder.holds(&mounted.device)
                && !self.published.needs(&mounted.device)?
            {
                candidates.push(mounted);
            }
        }
        Ok(candidates)
    }

    async fn reap(&self, mounted: Mounted) {
        if !self.health.is_dead(&mounted.at).await {
            return;
        }
        let published = self.published.clone();
        let (at, device) = (mounted.at.display().to_string(), mounted.device);
        tracing::warn!(at, device, "a dead mount is taken away: its client is gone and no volume shows it");
        match tokio::task::spawn_blocking(move || published.end(&device)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(at, %error, "a dead mount was not taken away"),
            Err(error) => tracing::error!(at, %error, "taking a dead mount away broke off"),
        }
    }
}
