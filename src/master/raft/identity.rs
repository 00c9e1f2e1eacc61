//! Who this disk is. A pod's name is an address; the identity is what stands in `meta-dir/IDENTITY`.
//!
//! The file has a state that only moves forward, each step by fsync and rename: `founding` (the cluster's uuid is stored
//! before the log is initialised) or `joining` (the incarnation is stored before the first request to join), then
//! `member`, then `retired`. A start in `founding` or `joining` repeats that step. One step back exists: a disk that is
//! `joining` and was never admitted has no log, and becomes empty again when the cluster does not admit it. Whether the
//! file belongs to the data beside it is decided in [`disk_parts`](super::disk_parts).

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::runtime::{random_id, sync_dir};

use super::disk_parts::Part;
use super::record_file;

const FILE: &str = "IDENTITY";
/// Format 1 did not say whether the log had been opened.
const FORMAT: u32 = 4;

/// Where the disk is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stage {
    /// Told to found a cluster; not known whether it happened.
    Founding,
    /// Asked, or about to ask, to become a member.
    Joining,
    /// A member with data.
    Member,
    /// Its place was given to another disk.
    Retired,
}

impl Stage {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Stage::Founding => "founding",
            Stage::Joining => "joining",
            Stage::Member => "member",
            Stage::Retired => "retired",
        }
    }
}

/// What ties the parts of a disk together: every part names the member it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) cluster: [u8; 16],
    pub(crate) member_id: u64,
    pub(crate) incarnation: [u8; 16],
}

impl Owner {
    /// Bytes of an encoded owner.
    pub(crate) const BYTES: usize = 40;

    pub(crate) fn encode(&self) -> [u8; Owner::BYTES] {
        let mut bytes = [0; Owner::BYTES];
        bytes[..16].copy_from_slice(&self.cluster);
        bytes[16..32].copy_from_slice(&self.incarnation);
        bytes[32..].copy_from_slice(&self.member_id.to_be_bytes());
        bytes
    }

    /// The owner in `bytes`; `None` for bytes of another length.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Owner> {
        let bytes: &[u8; Owner::BYTES] = bytes.try_into().ok()?;
        Some(Owner {
            cluster: bytes[..16].try_into().ok()?,
            incarnation: bytes[16..32].try_into().ok()?,
            member_id: u64::from_be_bytes(bytes[32..].try_into().ok()?),
        })
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (cluster, incarnation) = (uuid::Uuid::from_bytes(self.cluster), uuid::Uuid::from_bytes(self.incarnation));
        let (cluster, incarnation) = (cluster.simple(), incarnation.simple());
        write!(f, "member {} of cluster {cluster} (incarnation {incarnation})", self.member_id)
    }
}

/// The content of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    format: u32,
    pub(crate) stage: Stage,
    #[serde(with = "uuid::serde::simple")]
    pub(crate) cluster: uuid::Uuid,
    /// 0 while joining and not yet admitted.
    pub(crate) member_id: u64,
    #[serde(with = "uuid::serde::simple")]
    pub(crate) incarnation: uuid::Uuid,
    /// Raised and stored at each start.
    pub(crate) boot: u64,
    /// The newest boot that has opened the log: a log that knows only earlier ones is an older copy. 0 before the first.
    pub(crate) log_boot: u64,
    /// Why the peers refused this disk as an older copy. Each start counts the boot up: without this note, an older copy that
    /// is restarted again and again would pass the boot that its peers know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reverted: Option<String>,
    /// While founding: the masters that have promised to join what is founded, this one first. `None` in a file of an older
    /// release, where it is the configured ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) founders: Option<Vec<String>>,
}

impl Identity {
    /// A new disk that founds or joins `cluster`.
    pub(crate) fn new(stage: Stage, cluster: [u8; 16], member_id: u64) -> Identity {
        Identity {
            format: FORMAT,
            stage,
            cluster: uuid::Uuid::from_bytes(cluster),
            member_id,
            incarnation: uuid::Uuid::from_bytes(random_id()),
            boot: 1,
            log_boot: 0,
            reverted: None,
            founders: None,
        }
    }

    /// A disk that founds `cluster`, as member `member_id`, together with the masters that have promised to join it.
    pub(crate) fn of_founder(cluster: [u8; 16], member_id: u64, founders: Vec<String>) -> Identity {
        Identity { founders: Some(founders), ..Identity::new(Stage::Founding, cluster, member_id) }
    }

    pub(crate) fn cluster_bytes(&self) -> [u8; 16] {
        *self.cluster.as_bytes()
    }

    pub(crate) fn owner(&self) -> Owner {
        Owner { cluster: self.cluster_bytes(), member_id: self.member_id, incarnation: self.incarnation_bytes() }
    }

    pub(crate) fn incarnation_bytes(&self) -> [u8; 16] {
        *self.incarnation.as_bytes()
    }

    /// True for a disk that no cluster has admitted, as far as it knows. It has no member id, and a log is opened only for
    /// one: it has never voted and acknowledged nothing.
    pub(crate) fn is_unadmitted(&self) -> bool {
        self.stage == Stage::Joining && self.member_id == 0 && self.log_boot == 0
    }
}

/// The metadata directory of one master, locked for this process.
#[derive(Debug)]
pub(crate) struct MetaDir {
    path: PathBuf,
    _lock: File,
}

impl MetaDir {
    /// Creates the directory if needed and locks it.
    ///
    /// *Errors*: `Busy` when another process has it; what the file system says otherwise.
    pub(crate) fn open(path: &Path) -> Result<MetaDir> {
        let at = |error: io::Error| Error::from(error).context(format!("namespace.meta-dir {}", path.display()));
        fs::create_dir_all(path).map_err(at)?;
        let lock = File::options().read(true).write(true).create(true).truncate(false).open(path.join("LOCK"));
        let lock = lock.map_err(at)?;
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!(
                        "namespace.meta-dir {} is in use by another process: stop it, or give this master a directory \
                         of its own",
                        path.display()
                    ),
                ));
            }
            Err(error) => return Err(at(error.into())),
        }
        sync_dir(path).map_err(at)?;
        Ok(MetaDir { path: path.to_path_buf(), _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn wal(&self) -> PathBuf {
        self.path.join("wal")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.path.join("state")
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.path.join("snapshots")
    }

    /// The identity as it stands in the file.
    ///
    /// *Errors*: what the file system says. A file that does not hold an identity is a [`Part::Damaged`].
    pub(crate) fn load(&self) -> Result<Part<Identity>> {
        let file = self.path.join(FILE);
        record_file::read(&file, FORMAT).map_err(|error| Error::from(error).context(file.display()))
    }

    /// The error for a directory that must not be used.
    pub(crate) fn refuse(&self, why: impl std::fmt::Display) -> Error {
        Error::new(
            ErrorKind::FailedPrecondition,
            format!(
                "namespace.meta-dir {}: {why}. Way out: put back the part that is missing or old, or move the directory \
                 aside and start with an empty one; the cluster then admits this master as a new member",
                self.path.display()
            ),
        )
    }

    /// Stores the identity.
    ///
    /// *Durability*: on disk on return.
    pub(crate) fn store(&self, identity: &Identity) -> Result<()> {
        let file = self.path.join(FILE);
        record_file::write(&file, identity).map_err(|error| Error::from(error).context(file.display()))
    }

    /// Makes a disk that no cluster has admitted an empty one. Its incarnation is never used again: a new one is drawn for
    /// each identity.
    ///
    /// *Errors*: `Internal` for a disk that may have voted; what the file system says otherwise.
    ///
    /// *Durability*: the file is gone for good on return.
    pub(crate) fn remove_unadmitted(&self, identity: &Identity) -> Result<()> {
        if !identity.is_unadmitted() {
            return Err(Error::internal(format!("the identity of {} must not be removed", identity.owner())));
        }
        let file = self.path.join(FILE);
        let removed = match fs::remove_file(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        };
        let removed = removed.and_then(|()| sync_dir(&self.path));
        removed.map_err(|error| Error::from(error).context(file.display()))
    }

    /// Moves everything of a retired disk into a sub-directory of its own, the identity last, so that a crash in
    /// between repeats the move. What a move before has left under both of its names stays in both directories.
    ///
    /// *Errors*: what the file system says. A part that cannot be looked at is not taken for one that is gone: without
    /// IDENTITY it would make the next start refuse the disk.
    pub(crate) fn set_aside(&self, identity: &Identity) -> Result<()> {
        let aside = self.path.join(format!("retired-{}-{}", identity.member_id, identity.incarnation));
        fs::create_dir_all(&aside)?;
        for name in ["wal", "state", "snapshots", FILE] {
            let from = self.path.join(name);
            if from.try_exists()? {
                fs::rename(&from, free_name(&aside, name)?)?;
            }
            sync_dir(&aside)?;
            sync_dir(&self.path)?;
        }
        Ok(())
    }

    /// Bytes used by this directory, and free on its file system.
    pub(crate) fn disk(&self) -> (u64, u64) {
        let free = rustix::fs::statvfs(&self.path).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
        (tree_bytes(&self.path, 4), free)
    }
}

/// `name` in a directory, or `name.1`, `name.2` and so on where it is taken.
fn free_name(dir: &Path, name: &str) -> io::Result<PathBuf> {
    let mut path = dir.join(name);
    let mut number = 0;
    while path.try_exists()? {
        number += 1;
        path = dir.join(format!("{name}.{number}"));
    }
    Ok(path)
}

fn tree_bytes(dir: &Path, depth: u32) -> u64 {
    let Ok(items) = fs::read_dir(dir) else { return 0 };
    let sizes = items.flatten().map(|item| match item.metadata() {
        Ok(meta) if meta.is_dir() && depth > 0 => tree_bytes(&item.path(), depth - 1),
        Ok(meta) if meta.is_file() => meta.len(),
        _ => 0,
    });
    sizes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(dir: &MetaDir) -> Identity {
        let identity = Identity::new(Stage::Member, [7; 16], 4);
        dir.store(&identity).expect("store");
        identity
    }

    #[test]
    fn an_identity_survives_and_a_second_process_is_refused() {
        let temp = tempfile::tempdir().expect("tempdir");
        let dir = MetaDir::open(temp.path()).expect("open");
        assert!(matches!(dir.load().expect("empty"), Part::Missing));
        let identity = member(&dir);
        assert!(matches!(dir.load().expect("load"), Part::Present(found) if found == identity));
        assert_eq!(MetaDir::open(temp.path()).expect_err("locked").kind, ErrorKind::Busy);
    }

    #[test]
    fn an_identity_of_an_older_format_is_refused_by_number() {
        let temp = tempfile::tempdir().expect("tempdir");
        let dir = MetaDir::open(temp.path()).expect("open");
        let line = r#"{"format":1,"stage":"member","cluster":"00","member_id":1,"incarnation":"00","boot":3}"#;
        let content = format!("{line}\n{:08x}\n", crc32c::crc32c(line.as_bytes()));
        fs::write(temp.path().join(FILE), content).expect("write");
        match dir.load().expect("read") {
            Part::Damaged(why) => assert!(why.contains("format is 1") && why.contains("reads 4"), "{why}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_founding_keeps_its_list_of_masters_and_one_of_an_older_release_has_none() {
        let temp = tempfile::tempdir().expect("tempdir");
        let dir = MetaDir::open(temp.path()).expect("open");
        let founding = Identity::of_founder([7; 16], 1, vec!["a:1".to_owned(), "b:1".to_owned()]);
        dir.store(&founding).expect("stored");
        assert!(matches!(dir.load().expect("read"), Part::Present(found) if found == founding));
        let (cluster, incarnation) = (founding.cluster.simple(), founding.incarnation.simple());
        let line = format!(
            r#"{{"format":4,"stage":"founding","cluster":"{cluster}","member_id":1,"incarnation":"{incarnation}","boot":1,"log_boot":0}}"#
        );
        fs::write(temp.path().join(FILE), format!("{line}\n{:08x}\n", crc32c::crc32c(line.as_bytes())))
            .expect("written");
        let older = Identity { founders: None, ..founding };
        assert!(matches!(dir.load().expect("read"), Part::Present(found) if found == older));
    }

    #[test]
    fn a_retired_disk_that_was_moved_aside_in_part_is_moved_whole() {
        let temp = tempfile::tempdir().expect("tempdir");
        let dir = MetaDir::open(temp.path()).expect("open");
        let identity = member(&dir);
        for again in 0..3 {
            for part in [dir.wal(), dir.state()] {
                fs::create_dir_all(&part).expect("mkdir");
                fs::write(part.join("file"), format!("{again}")).expect("write");
            }
            dir.store(&identity).expect("stored");
            dir.set_aside(&identity).expect("set aside");
            assert!(matches!(dir.load().expect("read"), Part::Missing));
            assert!(!dir.wal().exists() && !dir.state().exists());
        }
    }

    #[test]
    fn the_identity_of_a_retired_disk_stays_as_long_as_a_part_of_it_cannot_be_looked_at() {
        let temp = tempfile::tempdir().expect("tempdir");
        let dir = MetaDir::open(temp.path()).expect("open");
        let identity = member(&dir);
        // A link to itself: every look at it fails, as with a disk that does not answer.
        std::os::unix::fs::symlink("wal", dir.wal()).expect("link");
        dir.set_aside(&identity).expect_err("the log cannot be looked at");
        assert!(matches!(dir.load().expect("read"), Part::Present(found) if found == identity));
    }

    #[test]
    fn only_a_disk_that_no_cluster_has_admitted_loses_its_identity_and_the_next_one_has_another_incarnation() {
        let temp = tempfile::tempdir().expect("tempdir");
        let dir = MetaDir::open(temp.path()).expect("open");
        let joining = Identity::new(Stage::Joining, [7; 16], 0);
        let bound = [
            Identity { stage: Stage::Member, ..joining.clone() },
            Identity { stage: Stage::Founding, ..joining.clone() },
            Identity { member_id: 4, ..joining.clone() },
            // A log was opened: it may hold a vote.
            Identity { log_boot: 1, ..joining.clone() },
        ];
        for identity in bound {
            dir.store(&identity).expect("stored");
            dir.remove_unadmitted(&identity).expect_err("it may have voted");
            assert!(matches!(dir.load().expect("read"), Part::Present(found) if found == identity));
        }
        dir.store(&joining).expect("stored");
        dir.remove_unadmitted(&joining).expect("removed");
        assert!(matches!(dir.load().expect("read"), Part::Missing));
        // Killed behind the removal, before anybody knew of it.
        dir.remove_unadmitted(&joining).expect("repeated");
        assert_ne!(Identity::new(Stage::Joining, [7; 16], 0).incarnation, joining.incarnation);
    }

    #[test]
    fn a_retired_disk_is_moved_aside_whole() {
        let temp = tempfile::tempdir().expect("tempdir");
        let dir = MetaDir::open(temp.path()).expect("open");
        let identity = member(&dir);
        fs::create_dir_all(dir.wal().join("x")).expect("mkdir");
        dir.set_aside(&identity).expect("set aside");
        assert!(matches!(dir.load().expect("read"), Part::Missing));
        assert!(!dir.wal().exists());
    }
}
