//! Who this disk is. A pod's name is an address; the identity is what stands in `meta-dir/IDENTITY`.
//!
//! The file has a state that only moves forward, each step by fsync and rename: `founding` (the cluster's uuid is stored
//! before the log is initialised) or `joining` (the incarnation is stored before the first request to join), then
//! `member`, then `retired`. A start in `founding` or `joining` repeats that step. Data without the file, or a `member`
//! without data, is refused: somebody lost half of a disk, and such a disk must not vote.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::runtime::{random_id, sync_dir, write_durably};

const FILE: &str = "IDENTITY";
const FORMAT: u32 = 1;

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
        }
    }

    pub(crate) fn cluster_bytes(&self) -> [u8; 16] {
        *self.cluster.as_bytes()
    }

    pub(crate) fn incarnation_bytes(&self) -> [u8; 16] {
        *self.incarnation.as_bytes()
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

    fn has_data(&self) -> Result<bool> {
        for dir in [self.wal(), self.state()] {
            if dir.exists() && fs::read_dir(&dir)?.next().is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The identity, checked against what lies beside it; `None` for an empty directory.
    ///
    /// *Errors*: `Corrupted` or `FailedPrecondition`, with what was found and the way out.
    pub(crate) fn load(&self) -> Result<Option<Identity>> {
        let file = self.path.join(FILE);
        let text = match fs::read(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.has_data()? {
                    return Err(
                        self.refuse("it holds a Raft log or state but no IDENTITY file: whose disk it is is lost")
                    );
                }
                return Ok(None);
            }
            Err(error) => return Err(Error::from(error).context(file.display())),
        };
        let identity = parse(&text).map_err(|why| self.refuse(&format!("its IDENTITY file is damaged ({why})")))?;
        if identity.stage == Stage::Member && !self.has_data()? {
            return Err(self.refuse(&format!(
                "it says to be member {} but its Raft log and state are gone: a member that forgot its votes must not vote",
                identity.member_id
            )));
        }
        Ok(Some(identity))
    }

    fn refuse(&self, why: &str) -> Error {
        Error::new(
            ErrorKind::FailedPrecondition,
            format!(
                "namespace.meta-dir {}: {why}. Way out: move the directory aside and start with an empty one; the \
                 cluster then admits this master as a new member",
                self.path.display()
            ),
        )
    }

    /// Stores the identity.
    ///
    /// *Durability*: on disk on return.
    pub(crate) fn store(&self, identity: &Identity) -> Result<()> {
        let line = serde_json::to_string(identity).map_err(|error| Error::internal(error.to_string()))?;
        let content = format!("{line}\n{:08x}\n", crc32c::crc32c(line.as_bytes()));
        write_durably(&self.path.join(FILE), content.as_bytes())
            .map_err(|error| Error::from(error).context(self.path.join(FILE).display()))
    }

    /// Moves everything of a retired disk into a sub-directory of its own, the identity last, so that a crash in
    /// between repeats the move.
    pub(crate) fn set_aside(&self, identity: &Identity) -> Result<()> {
        let aside = self.path.join(format!("retired-{}-{}", identity.member_id, identity.incarnation));
        fs::create_dir_all(&aside)?;
        for name in ["wal", "state", "snapshots", FILE] {
            let from = self.path.join(name);
            if from.exists() {
                fs::rename(&from, aside.join(name))?;
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

fn tree_bytes(dir: &Path, depth: u32) -> u64 {
    let Ok(items) = fs::read_dir(dir) else { return 0 };
    let sizes = items.flatten().map(|item| match item.metadata() {
        Ok(meta) if meta.is_dir() && depth > 0 => tree_bytes(&item.path(), depth - 1),
        Ok(meta) if meta.is_file() => meta.len(),
        _ => 0,
    });
    sizes.sum()
}

fn parse(text: &[u8]) -> Result<Identity, String> {
    let text = std::str::from_utf8(text).map_err(|_| "it is not text".to_owned())?;
    let mut lines = text.lines();
    let (Some(line), Some(sum)) = (lines.next(), lines.next()) else { return Err("it is cut short".to_owned()) };
    if u32::from_str_radix(sum, 16) != Ok(crc32c::crc32c(line.as_bytes())) {
        return Err("its checksum does not match".to_owned());
    }
    let identity: Identity = serde_json::from_str(line).map_err(|error| error.to_string())?;
    if identity.format != FORMAT {
        return Err(format!("its format is {}, this release reads {FORMAT}", identity.format));
    }
    Ok(identity)
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
        assert_eq!(dir.load().expect("empty"), None);
        let identity = member(&dir);
        fs::create_dir_all(dir.wal().join("x")).expect("mkdir");
        assert_eq!(dir.load().expect("load"), Some(identity));
        assert_eq!(MetaDir::open(temp.path()).expect_err("locked").kind, ErrorKind::Busy);
    }

    #[test]
    fn half_a_disk_is_refused_with_a_way_out() {
        let temp = tempfile::tempdir().expect("tempdir");
        let dir = MetaDir::open(temp.path()).expect("open");
        member(&dir);
        let error = dir.load().expect_err("member without data");
        assert!(error.message.contains("Way out"), "{}", error.message);
        fs::create_dir_all(dir.wal().join("x")).expect("mkdir");
        fs::remove_file(temp.path().join(FILE)).expect("rm");
        let error = dir.load().expect_err("data without identity");
        assert!(error.message.contains("no IDENTITY"), "{}", error.message);
    }

    #[test]
    fn a_cut_or_changed_identity_is_refused() {
        let temp = tempfile::tempdir().expect("tempdir");
        let dir = MetaDir::open(temp.path()).expect("open");
        member(&dir);
        fs::create_dir_all(dir.wal().join("x")).expect("mkdir");
        let good = fs::read(temp.path().join(FILE)).expect("read");
        for length in 0..good.len() - 1 {
            fs::write(temp.path().join(FILE), &good[..length]).expect("write");
            assert_eq!(dir.load().expect_err("refused").kind, ErrorKind::FailedPrecondition, "cut to {length}");
        }
        let mut changed = good.clone();
        changed[30] ^= 1;
        fs::write(temp.path().join(FILE), &changed).expect("write");
        assert!(dir.load().expect_err("refused").message.contains("damaged"));
    }

    #[test]
    fn a_retired_disk_is_moved_aside_whole() {
        let temp = tempfile::tempdir().expect("tempdir");
        let dir = MetaDir::open(temp.path()).expect("open");
        let identity = member(&dir);
        fs::create_dir_all(dir.wal().join("x")).expect("mkdir");
        dir.set_aside(&identity).expect("set aside");
        assert_eq!(dir.load().expect("empty again"), None);
    }
}
