//! Snapshots: a RocksDB checkpoint in a directory of its own, sent file by file.
//!
//! A snapshot is *sealed* when its manifest, with a checksum of each file, is on disk and the directory has got the name
//! of the log id it stands for, by a rename. The checksums are verified when the files are sent, when they have arrived,
//! before the snapshot is installed, and by the scrub. A snapshot that is being received lies in a directory
//! `incoming-*`, which outlives an interrupted transfer: the next one begins with the files that are there.

mod manifest;
mod receive;
mod send;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::master::raft::identity::Owner;
use crate::runtime::{failpoint_io, random_id, sync_dir};

use super::disk_parts::{Part, SnapshotPart};
use super::types::{LogId, SnapshotMeta};

pub(crate) use manifest::{FileSum, Manifest, ManifestError};
pub(crate) use receive::Incoming;
pub(crate) use send::{Pace, SendError, Transfers, push, send};

/// Bytes of one chunk on the wire.
const CHUNK_BYTES: usize = 1 << 20;
/// Format of a snapshot, and of the state machine inside.
pub(crate) const FORMAT: u32 = 4;
/// Names of directories that are no sealed snapshots.
const INCOMING: &str = "incoming-";
const BUILDING: &str = "building-";
const DAMAGED: &str = "damaged-";

/// A snapshot on disk. Its directory is deleted when the last user lets go of it, once it is obsolete.
#[derive(Debug)]
pub(crate) struct SnapshotDir {
    path: PathBuf,
    manifest: Manifest,
    received: bool,
    obsolete: AtomicBool,
}

/// What openraft passes around.
pub(crate) type SnapshotData = Arc<SnapshotDir>;

impl SnapshotDir {
    fn sealed(path: PathBuf, manifest: Manifest) -> SnapshotDir {
        SnapshotDir { path, manifest, received: false, obsolete: AtomicBool::new(false) }
    }

    /// A snapshot that was received: unless it is installed, nothing of it stays.
    fn received(path: PathBuf, manifest: Manifest) -> SnapshotDir {
        SnapshotDir { path, manifest, received: true, obsolete: AtomicBool::new(true) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(crate) fn meta(&self) -> &SnapshotMeta {
        &self.manifest.meta
    }

    /// Index of the last entry the snapshot includes.
    pub(crate) fn index(&self) -> u64 {
        self.manifest.meta.last_log_id.map_or(0, |id| id.index)
    }

    /// Compares the manifest on disk with what it was, and every file with its checksum.
    ///
    /// *Errors*: `InvalidData` names what differs first; others when it could not be read.
    pub(crate) fn verify(&self) -> io::Result<()> {
        failpoint_io("snapshot.verify")?;
        self.verify_manifest()?;
        self.manifest.verify(&self.path)
    }

    /// Compares the manifest on disk with what it was.
    pub(crate) fn verify_manifest(&self) -> io::Result<()> {
        let at =
            |error: io::Error| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", self.path.display()));
        match Manifest::read(&self.path).map_err(io::Error::from).map_err(at)? {
            found if found == self.manifest => Ok(()),
            _ => Err(at(io::Error::other("its manifest is that of another snapshot"))),
        }
    }

    /// True for a snapshot that another member has sealed: its directory may be moved away.
    pub(crate) fn is_received(&self) -> bool {
        self.received
    }

    pub(crate) fn retire(&self) {
        self.obsolete.store(true, Ordering::Release);
    }
}

impl Drop for SnapshotDir {
    fn drop(&mut self) {
        if self.obsolete.load(Ordering::Acquire)
            && let Err(error) = fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "obsolete snapshot not deleted; the next start does it");
        }
    }
}

/// Writes the manifest of a checkpoint, makes everything in it durable and gives it its name below `dir`.
///
/// A file that is the same (by inode) in `before`, the snapshot sealed last, keeps the checksum recorded there: if it
/// has rotted since, the old checksum reveals it, and a new one would hide it.
pub(crate) fn seal(
    checkpoint: &Path,
    dir: &Path,
    meta: &SnapshotMeta,
    owner: Owner,
    before: Option<&SnapshotDir>,
) -> io::Result<SnapshotDir> {
    let mut files = BTreeMap::new();
    for name in names(checkpoint)? {
        let path = checkpoint.join(&name);
        File::open(&path)?.sync_all()?;
        let known = before.and_then(|before| recorded(&path, &name, before));
        let sum = match known {
            Some(known) => known,
            None => sum(&path)?,
        };
        files.insert(name, sum);
    }
    let manifest = Manifest { meta: meta.clone(), files, owner };
    manifest.write(checkpoint)?;
    sync_dir(checkpoint)?;
    failpoint_io("snapshot.sealed")?;
    // The same state may have been sealed before, and be in use: a transfer must not find other files under the name.
    let name = name_of(meta.last_log_id.as_ref());
    let mut path = dir.join(&name);
    let mut copy = 0;
    while path.try_exists()? {
        copy += 1;
        path = dir.join(format!("{name}-{copy}"));
    }
    fs::rename(checkpoint, &path)?;
    sync_dir(dir)?;
    Ok(SnapshotDir::sealed(path, manifest))
}

/// The checksum that `before` holds for the file at `path`, if both are one file.
fn recorded(path: &Path, name: &str, before: &SnapshotDir) -> Option<FileSum> {
    let sum = before.manifest.files.get(name)?;
    is_table(name).then_some(())?;
    let (ours, theirs) = (fs::metadata(path).ok()?, fs::metadata(before.path.join(name)).ok()?);
    let same = (ours.dev(), ours.ino(), ours.len()) == (theirs.dev(), theirs.ino(), sum.length);
    same.then_some(*sum)
}

/// Compares the tables in `dir` that `snapshot` holds as well, by hard links, with the checksums recorded there.
///
/// *Errors*: `InvalidData` names the first file that differs.
pub(crate) fn verify_shared_tables(dir: &Path, snapshot: &SnapshotDir) -> io::Result<()> {
    for name in names(dir)?.into_iter().filter(|name| is_table(name)) {
        let path = dir.join(&name);
        if let Some(sum) = recorded(&path, &name, snapshot) {
            match sum.verify(&path) {
                // Deleted by compaction meanwhile. A disk that does not answer is no proof of that.
                Err(_) if matches!(path.try_exists(), Ok(false)) => {}
                verified => verified?,
            }
        }
    }
    Ok(())
}

/// Bytes of the tables in `dir` that `snapshot` does not hold as well, by hard links.
pub(crate) fn unshared_table_bytes(dir: &Path, snapshot: Option<&SnapshotDir>) -> io::Result<u64> {
    let mut bytes = 0;
    for name in names(dir)?.into_iter().filter(|name| is_table(name)) {
        let path = dir.join(&name);
        if snapshot.and_then(|snapshot| recorded(&path, &name, snapshot)).is_none() {
            // One that compaction deletes meanwhile does not count.
            bytes += fs::metadata(&path).map_or(0, |meta| meta.len());
        }
    }
    Ok(bytes)
}

fn name_of(id: Option<&LogId>) -> String {
    id.map_or("empty".to_owned(), |id| format!("{:020}-{}-{}", id.index, id.leader_id.term, id.leader_id.node_id))
}

/// Names of the files in `dir`, without the manifest and RocksDB's lock.
fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for item in fs::read_dir(dir)? {
        let name = item?.file_name().to_string_lossy().into_owned();
        if name != manifest::FILE && name != "LOCK" {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// True for the files that RocksDB never changes once they are written: they may be shared by hard links.
pub(crate) fn is_table(name: &str) -> bool {
    name.ends_with(".sst")
}

/// The newest sealed snapshot below `dir`. Older ones and what was never sealed are deleted.
///
/// A directory whose manifest is damaged is set aside under another name, once: the log may have been purged behind it,
/// so its loss must not go unseen. An interrupted transfer stays, so that it can go on.
///
/// *Errors*: `InvalidData` for a snapshot of another format.
pub(crate) fn newest(dir: &Path) -> io::Result<Option<SnapshotDir>> {
    fs::create_dir_all(dir)?;
    let mut found: Option<SnapshotDir> = None;
    for item in fs::read_dir(dir)? {
        let path = item?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(INCOMING) || name.starts_with(DAMAGED) {
            continue;
        }
        if name.starts_with(BUILDING) {
            fs::remove_dir_all(path)?;
            continue;
        }
        match Manifest::read(&path) {
            Ok(manifest) => {
                let one = SnapshotDir::sealed(path, manifest);
                let newer = found.as_ref().is_none_or(|old| old.meta().last_log_id < one.meta().last_log_id);
                if let Some(older) = if newer { found.replace(one) } else { Some(one) } {
                    older.retire();
                }
            }
            Err(ManifestError::OtherFormat(format)) => return Err(other_format(&path, format)),
            Err(error) => quarantine(dir, &path, &error)?,
        }
    }
    Ok(found)
}

/// What the newest sealed snapshot below `dir` says; a manifest that cannot be read is damage if no other one can. Changes
/// nothing.
///
/// *Errors*: the directory cannot be listed.
pub(crate) fn peek(dir: &Path) -> io::Result<Part<SnapshotPart>> {
    let items = match fs::read_dir(dir) {
        Ok(items) => items,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Part::Missing),
        Err(error) => return Err(error),
    };
    let mut newest = Part::Missing;
    for item in items {
        let path = item?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Interrupted transfers and builds, and what was set aside.
        if [INCOMING, BUILDING, DAMAGED].iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let read = Manifest::read(&path);
        match (read.map(|found| SnapshotPart { owner: found.owner, last: found.meta.last_log_id }), &newest) {
            (Ok(part), Part::Present(SnapshotPart { last, .. })) if part.last <= *last => {}
            (Ok(part), _) => newest = Part::Present(part),
            (Err(error), Part::Missing) => newest = Part::Damaged(format!("{}: {error}", path.display())),
            (Err(_), _) => {}
        }
    }
    Ok(newest)
}

fn other_format(path: &Path, format: u32) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "the snapshot {} has format {format}, this release reads format {FORMAT}. Way out: start the release that \
             wrote it, or move the metadata directory aside and start with an empty one; the cluster then admits this \
             master as a new member",
            path.display()
        ),
    )
}

/// Renames a snapshot that cannot be used. One of them is kept for people to look at, the newest.
pub(crate) fn quarantine(dir: &Path, path: &Path, why: &dyn std::fmt::Display) -> io::Result<()> {
    for item in fs::read_dir(dir)? {
        let item = item?;
        if item.file_name().to_string_lossy().starts_with(DAMAGED) {
            fs::remove_dir_all(item.path())?;
        }
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let aside = dir.join(format!("{DAMAGED}{name}"));
    tracing::error!(path = %path.display(), error = %why, aside = %aside.display(), "a snapshot is damaged: it is set aside");
    fs::rename(path, aside)?;
    sync_dir(dir)
}

/// A fresh directory name below `dir` for a snapshot that is being built, or was received and is not installed yet.
pub(crate) fn scratch(dir: &Path) -> PathBuf {
    dir.join(format!("{BUILDING}{}", uuid::Uuid::from_bytes(random_id()).simple()))
}

/// Deletes transfers below `dir` that no sender has continued for `age`. No transfer may be under way.
pub(crate) fn expire_transfers(dir: &Path, age: Duration) -> io::Result<()> {
    for item in fs::read_dir(dir)? {
        let item = item?;
        let incoming = item.file_name().to_string_lossy().starts_with(INCOMING);
        // Writing into a file does not change the time of its directory: the newest of both counts.
        let newest = || {
            let inner = fs::read_dir(item.path()).into_iter().flatten().flatten().map(|file| file.metadata());
            inner.chain([item.metadata()]).flatten().filter_map(|meta| meta.modified().ok()).max()
        };
        if incoming && newest().is_none_or(|at| at.elapsed().is_ok_and(|since| since > age)) {
            fs::remove_dir_all(item.path())?;
        }
    }
    Ok(())
}

/// Makes `target`, which must not exist, a copy of a snapshot's files: tables are shared by hard links, everything that
/// RocksDB may go on writing to is copied.
///
/// *Durability*: everything is on disk on return, except the name of `target` itself.
pub(crate) fn link_copy(snapshot: &SnapshotDir, target: &Path) -> io::Result<()> {
    fs::create_dir(target)?;
    for name in snapshot.manifest.files.keys() {
        let (from, to) = (snapshot.path.join(name), target.join(name));
        if is_table(name) {
            fs::hard_link(from, to)?;
        } else {
            fs::copy(from, &to)?;
            File::open(to)?.sync_all()?;
        }
    }
    sync_dir(target)
}

/// Length and checksum of a file as it is on disk now.
fn sum(path: &Path) -> io::Result<FileSum> {
    let mut file = File::open(path)?;
    let mut data = vec![0; CHUNK_BYTES];
    let (mut length, mut crc32c) = (0, 0);
    loop {
        let count = read_full(&mut file, &mut data)?;
        crc32c = crc32c::crc32c_append(crc32c, &data[..count]);
        length += count as u64;
        if count < data.len() {
            return Ok(FileSum { length, crc32c });
        }
    }
}

fn read_full(file: &mut File, data: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < data.len() {
        match file.read(&mut data[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}
