//! Snapshots: a RocksDB checkpoint in a directory of its own, sent file by file.
//!
//! A snapshot directory is named after the log id it stands for and gets that name by a rename once everything in it is
//! on disk. A received one is written into `incoming-*`, checked against the sender's checksums and synced before
//! anyone may use it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jindofs_proto::raft::v1 as wire;
use prost::Message;
use tokio::sync::mpsc;

use crate::runtime::{failpoint_io, random_id, sync_dir};

use super::disk_parts::{Part, SnapshotPart};
use super::identity::Owner;
use super::types::{self, LogId, SnapshotMeta};

/// Bytes of one chunk on the wire.
const CHUNK_BYTES: usize = 1 << 20;
const META: &str = "SNAPSHOT";
/// Format of the state machine inside.
pub(crate) const FORMAT: u32 = 1;

/// A snapshot on disk. Deleted when the last user lets go of it, once it is obsolete.
#[derive(Debug)]
pub(crate) struct SnapshotDir {
    path: PathBuf,
    /// Sent by another member and not yet installed.
    received: bool,
    obsolete: AtomicBool,
}

/// What openraft passes around.
pub(crate) type SnapshotData = Arc<SnapshotDir>;

impl SnapshotDir {
    pub(crate) fn new(path: PathBuf) -> SnapshotDir {
        SnapshotDir { path, received: false, obsolete: AtomicBool::new(false) }
    }

    /// A snapshot that another member has sent. Raft may decline it: unless an install moves it away, it is deleted when
    /// the last user lets go of it.
    fn received(path: PathBuf) -> SnapshotDir {
        SnapshotDir { path, received: true, obsolete: AtomicBool::new(true) }
    }

    /// Puts the files of the snapshot into `target`, which must not exist. A received snapshot is moved. One of this disk
    /// is copied, with tables shared by hard links: the log behind it may be gone, so that until the next one is sealed it
    /// is all that a crash leaves of the state.
    ///
    /// *Durability*: everything is on disk on return, except the name of `target` itself.
    pub(crate) fn place(&self, target: &Path) -> io::Result<()> {
        if self.received {
            return fs::rename(&self.path, target);
        }
        fs::create_dir(target)?;
        for item in fs::read_dir(&self.path)? {
            let name = item?.file_name();
            let (from, to) = (self.path.join(&name), target.join(&name));
            if to.extension().is_some_and(|extension| extension == "sst") {
                fs::hard_link(from, to)?;
            } else if name != META {
                // RocksDB goes on writing to the other files.
                fs::copy(from, &to)?;
                File::open(to)?.sync_all()?;
            }
        }
        sync_dir(target)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
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

/// Notes in a checkpoint what it stands for, makes everything in it durable and gives it its name below `dir`.
pub(crate) fn seal(checkpoint: &Path, dir: &Path, meta: &SnapshotMeta, owner: &Owner) -> io::Result<SnapshotDir> {
    let start = wire::SnapshotStart {
        header: None,
        vote: None,
        last_log_id: meta.last_log_id.as_ref().map(types::log_id_to_wire),
        membership: Some(types::stored_membership_to_wire(&meta.last_membership)),
        format: FORMAT,
        owner: owner.encode().to_vec().into(),
    };
    let mut file = File::create(checkpoint.join(META))?;
    file.write_all(&start.encode_to_vec())?;
    for item in fs::read_dir(checkpoint)? {
        File::open(item?.path())?.sync_all()?;
    }
    sync_dir(checkpoint)?;
    failpoint_io("snapshot.sealed")?;
    let path = dir.join(name_of(meta.last_log_id.as_ref()));
    if path.exists() {
        // The same state again.
        fs::remove_dir_all(&path)?;
    }
    fs::rename(checkpoint, &path)?;
    sync_dir(dir)?;
    Ok(SnapshotDir::new(path))
}

fn name_of(id: Option<&LogId>) -> String {
    id.map_or("empty".to_owned(), |id| format!("{:020}-{}-{}", id.index, id.leader_id.term, id.leader_id.node_id))
}

/// What a sealed snapshot stands for.
pub(crate) fn read_meta(path: &Path) -> io::Result<SnapshotMeta> {
    let start = wire::SnapshotStart::decode(fs::read(path.join(META))?.as_slice()).map_err(io::Error::other)?;
    meta_from_wire(&start).map_err(io::Error::other)
}

pub(crate) fn meta_from_wire(start: &wire::SnapshotStart) -> Result<SnapshotMeta, types::Malformed> {
    let membership = start.membership.as_ref().ok_or(types::Malformed("snapshot without membership"))?;
    Ok(SnapshotMeta {
        last_log_id: start.last_log_id.as_ref().map(types::log_id_from_wire),
        last_membership: types::stored_membership_from_wire(membership)?,
    })
}

/// The newest sealed snapshot below `dir`; everything else in there is deleted.
pub(crate) fn newest(dir: &Path) -> io::Result<Option<(SnapshotMeta, SnapshotDir)>> {
    fs::create_dir_all(dir)?;
    let mut found: Option<(SnapshotMeta, PathBuf)> = None;
    for item in fs::read_dir(dir)? {
        let path = item?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let meta = if name.contains("incoming") || name.contains("building") { None } else { read_meta(&path).ok() };
        let newer = meta.filter(|meta| found.as_ref().is_none_or(|(old, _)| old.last_log_id < meta.last_log_id));
        let loser = match newer {
            Some(meta) => found.replace((meta, path)).map(|(_, old)| old),
            None => Some(path),
        };
        if let Some(path) = loser {
            fs::remove_dir_all(path)?;
        }
    }
    Ok(found.map(|(meta, path)| (meta, SnapshotDir::new(path))))
}

/// What the newest sealed snapshot below `dir` says; one that does not decode is damage if there is no other.
pub(crate) fn peek(dir: &Path) -> io::Result<Part<SnapshotPart>> {
    let mut newest = Part::Missing;
    let items = match fs::read_dir(dir) {
        Ok(items) => items,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Part::Missing),
        Err(error) => return Err(error),
    };
    for item in items {
        let path = item?.path();
        if is_scratch(&path) {
            continue;
        }
        match (read_part(&path), &newest) {
            (Ok(part), Part::Present(SnapshotPart { last, .. })) if part.last <= *last => {}
            (Ok(part), _) => newest = Part::Present(part),
            (Err(error), Part::Missing) => newest = Part::Damaged(format!("{}: {error}", path.display())),
            (Err(_), _) => {}
        }
    }
    Ok(newest)
}

fn read_part(path: &Path) -> io::Result<SnapshotPart> {
    let start = wire::SnapshotStart::decode(fs::read(path.join(META))?.as_slice()).map_err(io::Error::other)?;
    let owner = Owner::decode(&start.owner).ok_or_else(|| io::Error::other("it does not name its member"))?;
    Ok(SnapshotPart { owner, last: start.last_log_id.as_ref().map(types::log_id_from_wire) })
}

fn is_scratch(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.contains("incoming") || name.contains("building")
}

/// A fresh directory name below `dir`.
pub(crate) fn scratch(dir: &Path, purpose: &str) -> PathBuf {
    dir.join(format!("{purpose}-{}", uuid::Uuid::from_bytes(random_id()).simple()))
}

/// Sends every file of a snapshot, then their checksums. Runs on a blocking thread; stops when the receiver is gone.
pub(crate) fn send_files(path: &Path, out: &mpsc::Sender<wire::SnapshotChunk>) -> io::Result<()> {
    let mut files = Vec::new();
    let mut names = BTreeSet::new();
    for item in fs::read_dir(path)? {
        names.insert(item?.file_name().to_string_lossy().into_owned());
    }
    for name in names.into_iter().filter(|name| name != META && name != "LOCK") {
        let mut file = File::open(path.join(&name))?;
        let (mut offset, mut crc) = (0, 0);
        loop {
            let mut data = vec![0; CHUNK_BYTES];
            let count = read_full(&mut file, &mut data)?;
            data.truncate(count);
            if count == 0 && offset > 0 {
                break;
            }
            crc = crc32c::crc32c_append(crc, &data);
            let chunk = wire::SnapshotData { file: name.clone(), offset, data: data.into() };
            let chunk = wire::SnapshotChunk { chunk: Some(wire::snapshot_chunk::Chunk::Data(chunk)) };
            out.blocking_send(chunk).map_err(|_| io::Error::other("the receiver is gone"))?;
            offset += count as u64;
            if count < CHUNK_BYTES {
                break;
            }
        }
        files.push(wire::SnapshotFile { file: name, length: offset, crc32c: crc });
    }
    let end = wire::snapshot_chunk::Chunk::End(wire::SnapshotEnd { files });
    out.blocking_send(wire::SnapshotChunk { chunk: Some(end) }).map_err(|_| io::Error::other("the receiver is gone"))
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

/// A snapshot being received.
#[derive(Debug)]
pub(crate) struct Incoming {
    path: PathBuf,
    open: Option<(String, File, u64)>,
    kept: bool,
}

impl Incoming {
    pub(crate) fn create(dir: &Path) -> io::Result<Incoming> {
        fs::create_dir_all(dir)?;
        let path = scratch(dir, "incoming");
        fs::create_dir(&path)?;
        Ok(Incoming { path, open: None, kept: false })
    }

    /// Writes one chunk; the chunks of a file come in order.
    pub(crate) fn write(&mut self, chunk: &wire::SnapshotData) -> io::Result<()> {
        failpoint_io("snapshot.chunk")?;
        let safe = !chunk.file.is_empty() && !chunk.file.contains('/') && !chunk.file.starts_with('.');
        if !safe {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a snapshot file with an unsafe name"));
        }
        if self.open.as_ref().is_none_or(|(name, _, _)| *name != chunk.file) {
            self.finish_file()?;
            self.open = Some((chunk.file.clone(), File::create_new(self.path.join(&chunk.file))?, 0));
        }
        let Some((_, file, written)) = &mut self.open else { return Ok(()) };
        if *written != chunk.offset {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a snapshot chunk out of order"));
        }
        file.write_all(&chunk.data)?;
        *written += chunk.data.len() as u64;
        Ok(())
    }

    fn finish_file(&mut self) -> io::Result<()> {
        match self.open.take() {
            Some((_, file, _)) => file.sync_all(),
            None => Ok(()),
        }
    }

    /// Checks that every file arrived whole, and makes all of it durable.
    pub(crate) fn finish(mut self, end: &wire::SnapshotEnd) -> io::Result<SnapshotDir> {
        self.finish_file()?;
        let expected: BTreeSet<_> = end.files.iter().map(|file| file.file.as_str()).collect();
        let mut present = 0;
        for item in fs::read_dir(&self.path)? {
            let name = item?.file_name();
            present += 1;
            if !expected.contains(name.to_string_lossy().as_ref()) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "an unexpected file in a snapshot"));
            }
        }
        if present != expected.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a file of the snapshot did not arrive"));
        }
        for file in &end.files {
            let (length, crc) = checksum(&self.path.join(&file.file))?;
            if (length, crc) != (file.length, file.crc32c) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("snapshot file {} arrived damaged", file.file),
                ));
            }
        }
        sync_dir(&self.path)?;
        failpoint_io("snapshot.received")?;
        self.kept = true;
        Ok(SnapshotDir::received(self.path.clone()))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.kept {
            // The next start deletes what could not be deleted now.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn checksum(path: &Path) -> io::Result<(u64, u32)> {
    let mut file = File::open(path)?;
    let mut data = vec![0; CHUNK_BYTES];
    let (mut length, mut crc) = (0, 0);
    loop {
        let count = read_full(&mut file, &mut data)?;
        crc = crc32c::crc32c_append(crc, &data[..count]);
        length += count as u64;
        if count < data.len() {
            return Ok((length, crc));
        }
    }
}
