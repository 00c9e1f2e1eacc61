//! Checks whether a mount answers and how full it is. A mount that hangs costs one thread and blocks no caller.

use std::path::Path;
use std::time::Duration;

use jindofs_proto::csi::VolumeUsage;
use jindofs_proto::csi::volume_usage::Unit;
use rustix::fs::StatVfs;
use rustix::io::Errno;

use super::keyed_lock::KeyedLock;

/// Timeout of a `statvfs`. A client without masters needs two seconds to answer from its cache.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(2250);
/// Pause between two checks whether an earlier `statvfs` has returned.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Asks mounts for their state.
#[derive(Debug, Clone, Default)]
pub(super) struct Health {
    asked: KeyedLock,
}

impl Health {
    /// Usage of a mount.
    ///
    /// *Errors*: what is wrong with the mount.
    pub(super) async fn usage(&self, path: &Path) -> Result<Vec<VolumeUsage>, String> {
        let stat = self.ask(path).await?.map_err(|error| {
            if is_gone(error) {
                "the client behind it is gone: look at the FUSE pod of this node".to_owned()
            } else {
                error.to_string()
            }
        })?;
        Ok(figures(&stat))
    }

    /// True if the client of a mount is gone. A mount that hangs may recover.
    pub(super) async fn is_dead(&self, path: &Path) -> bool {
        matches!(self.ask(path).await, Ok(Err(error)) if is_gone(error))
    }

    /// Calls `statvfs` on a mount.
    ///
    /// *Errors*: the mount does not answer.
    async fn ask(&self, path: &Path) -> Result<rustix::io::Result<StatVfs>, String> {
        let answer = async {
            // A mount that hangs keeps its thread: no second thread is spent on it.
            let guard = loop {
                match self.asked.try_lock(path.display().to_string()) {
                    Some(guard) => break guard,
                    None => tokio::time::sleep(POLL_INTERVAL).await,
                }
            };
            let path = path.to_owned();
            let ask = move || {
                let _guard = guard;
                rustix::fs::statvfs(&path)
            };
            tokio::task::spawn_blocking(ask).await
        };
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, answer).await;
        let answer = answer.map_err(|_| "the client behind it does not answer: look at the FUSE pod of this node")?;
        answer.map_err(|error| error.to_string())
    }
}

fn is_gone(error: Errno) -> bool {
    matches!(error, Errno::NOTCONN | Errno::CONNABORTED)
}

/// The usage that is reported for a mount that does not answer. The kubelet takes an answer without any figure for an
/// error, and drops the condition of the volume.
pub(super) fn unknown() -> Vec<VolumeUsage> {
    vec![VolumeUsage { unit: Unit::Bytes.into(), ..VolumeUsage::default() }]
}

fn figures(stat: &StatVfs) -> Vec<VolumeUsage> {
    let whole = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let bytes = |blocks: u64| whole(blocks.saturating_mul(stat.f_frsize));
    let mut figures = vec![VolumeUsage {
        available: bytes(stat.f_bavail),
        total: bytes(stat.f_blocks),
        used: bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
        unit: Unit::Bytes.into(),
    }];
    // A total of zero means that inodes are not limited: reported as figures it would read as full.
    if stat.f_files > 0 {
        figures.push(VolumeUsage {
            available: whole(stat.f_ffree),
            total: whole(stat.f_files),
            used: whole(stat.f_files.saturating_sub(stat.f_ffree)),
            unit: Unit::Inodes.into(),
        });
    }
    figures
}
