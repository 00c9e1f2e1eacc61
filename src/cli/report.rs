//! `jindoctl report`: what is cached.

use serde::Serialize;

use super::Common;
use super::output::{name, print, size};
use super::worker::Worker;
use crate::error::Result;

#[derive(Debug, Serialize)]
struct Report {
    workers: Vec<Worker>,
    mounts: Vec<MountRow>,
}

#[derive(Debug, Serialize)]
struct MountRow {
    path: String,
    ufs: String,
    /// Known of the namespace; what was never listed is not counted.
    files: u64,
    bytes: u64,
    cached_files: u64,
    cached_bytes: u64,
    /// Objects of the directories listed so far that no path can express.
    skipped: u64,
}

pub(super) async fn run(common: &Common) -> Result<()> {
    let namespace = common.namespace()?;
    let (mounts, known) = (namespace.mounts().await?.mounts, namespace.usage().await?);
    let workers = known.workers.iter().map(Worker::from);
    let rows = mounts.iter().map(|mount| {
        let usage = known.mounts.iter().find(|usage| usage.mount_id == mount.id).copied().unwrap_or_default();
        MountRow {
            path: name(&mount.path),
            ufs: mount.ufs_uri.clone(),
            files: usage.files,
            bytes: usage.bytes,
            cached_files: usage.cached_files,
            cached_bytes: usage.cached_bytes,
            skipped: usage.skipped,
        }
    });
    let report = Report { workers: workers.collect(), mounts: rows.collect() };
    print(common.output, &report, &["WHAT", "WHERE", "STATE", "FILES", "SIZE", "CACHED", "SKIPPED"], |_| {
        let workers = report.workers.iter().map(|one| {
            let (capacity, used) = (size(one.capacity_bytes), size(one.used_bytes));
            let (what, state) = (format!("worker {}", one.id), one.state.to_owned());
            vec![what, one.address.clone(), state, String::new(), capacity, used, String::new()]
        });
        let mounts = report.mounts.iter().map(|one| {
            let (files, bytes, cached) = (one.files.to_string(), size(one.bytes), size(one.cached_bytes));
            let (what, state) = (format!("mount {}", one.path), "mounted".to_owned());
            vec![what, one.ufs.clone(), state, files, bytes, cached, one.skipped.to_string()]
        });
        workers.chain(mounts).collect()
    })
}
