//! Whether a mount answers and how full it is, asked so that one that hangs costs one thread and holds nobody up.

use std::path::Path;
use std::time::Duration;

use jindofs_proto::csi::VolumeUsage;
use jindofs_proto::csi::volume_usage::Unit;
use rustix::fs::StatVfs;
use rustix::io::Errno;

use super::keyed_lock::KeyedLock;

/// How long a file system may take to answer. A client whose masters are away needs two seconds to say what it knows.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(2250);
/// Pause between two looks whether an earlier question was answered.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Asks mounts.
#[derive(Debug, Clone, Default)]
pub(super) struct Health {
    asked: KeyedLock,
}

impl Health {
    /// How full a mount is.
    ///
    /// *Errors*: what is wrong with it.
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

    /// True if a mount answers that its client is gone. One that hangs may go on.
    pub(super) async fn is_dead(&self, path: &Path) -> bool {
        matches!(self.ask(path).await, Ok(Err(error)) if is_gone(error))
    }

    /// The answer of a mount.
    ///
    /// *Errors*: that there is none.
    async fn ask(&self, path: &Path) -> Result<rustix::io::Result<StatVfs>, String> {
        let answer = async {
            // One that hangs keeps its thread: no second one is spent on it.
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

/// What is told of a mount that does not say how full it is. The kubelet takes an answer without any figure for an error, and
/// drops what is said about the volume's condition.
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
    // Nothing limits inodes where there are none in all: told as figures, that would read as full.
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
