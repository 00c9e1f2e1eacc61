//! The receiving side: what an interrupted transfer has left, and what the disk holds anyway, is not sent again.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jindofs_proto::raft::v1 as wire;

use crate::runtime::{failpoint_io, sync_dir};

use super::{CHUNK_BYTES, FileSum, INCOMING, Manifest, SnapshotDir, is_table, name_of, names, scratch, sum};

/// A snapshot being received. Dropped before its end, it stays on disk for the next attempt.
#[derive(Debug)]
pub(crate) struct Incoming {
    path: PathBuf,
    manifest: Manifest,
    /// Files whose checksum has been compared.
    verified: BTreeSet<String>,
    open: Option<Open>,
    received: u64,
}

/// The file that is being written.
#[derive(Debug)]
struct Open {
    name: String,
    file: File,
    length: u64,
}

fn invalid(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

/// Makes the content of a received file durable.
///
/// *Errors*: the file is deleted. A failed sync leaves clean pages: the next one would succeed without having written them.
fn sync_or_delete(path: &Path) -> io::Result<()> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    if synced.is_err() {
        fs::remove_file(path)?;
    }
    synced
}

impl Incoming {
    /// Begins or continues to receive a snapshot below `dir`. Files that an earlier transfer has left, and tables in the
    /// directories `sources` that match name, length and checksum, are taken over. Deletes all other transfers.
    pub(crate) fn resume(dir: &Path, sources: &[PathBuf], manifest: Manifest) -> io::Result<Incoming> {
        fs::create_dir_all(dir)?;
        let id = crc32c::crc32c(&manifest.encode());
        let path = dir.join(format!("{INCOMING}{}-{id:08x}", name_of(manifest.meta.last_log_id.as_ref())));
        if !path.try_exists()? {
            fs::create_dir(&path)?;
        }
        let mut incoming = Incoming { path, manifest, verified: BTreeSet::new(), open: None, received: 0 };
        incoming.keep_matching()?;
        let earlier = incoming.earlier(dir)?;
        for source in &earlier {
            // As in `keep_matching`: before the files are shared.
            for name in names(source)?.into_iter().filter(|name| is_table(name)) {
                sync_or_delete(&source.join(name))?;
            }
            incoming.take_from(source)?;
        }
        for source in sources {
            incoming.take_from(source)?;
        }
        for old in earlier {
            fs::remove_dir_all(old)?;
        }
        Ok(incoming)
    }

    /// Keeps what this transfer has left: whole files that match, and beginnings.
    fn keep_matching(&mut self) -> io::Result<()> {
        for name in names(&self.path)? {
            let path = self.path.join(&name);
            let Some(expected) = self.manifest.files.get(&name) else {
                fs::remove_file(path)?;
                continue;
            };
            let length = fs::metadata(&path)?.len();
            if length < expected.length {
                continue;
            }
            if expected.verify(&path).is_err() {
                fs::remove_file(path)?;
                continue;
            }
            // The process that wrote it may have ended before its sync.
            sync_or_delete(&path)?;
            self.verified.insert(name);
        }
        Ok(())
    }

    /// Directories of other transfers.
    fn earlier(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let mut earlier = Vec::new();
        for item in fs::read_dir(dir)? {
            let path = item?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with(INCOMING) && path != self.path {
                earlier.push(path);
            }
        }
        Ok(earlier)
    }

    /// Links tables that are the same as wanted ones. Databases of two members use the same names for different files,
    /// so a file only counts after its own content was read and compared.
    fn take_from(&mut self, source: &Path) -> io::Result<()> {
        for (name, expected) in self.manifest.files.clone() {
            let (from, to) = (source.join(&name), self.path.join(&name));
            let candidate = is_table(&name)
                && !self.verified.contains(&name)
                && fs::metadata(&from).is_ok_and(|meta| meta.is_file() && meta.len() == expected.length);
            // A file that vanishes meanwhile (compaction) or rots is not taken.
            if !candidate || sum(&from).ok() != Some(expected) {
                continue;
            }
            if to.try_exists()? {
                fs::remove_file(&to)?;
            }
            if fs::hard_link(&from, &to).is_ok() {
                self.verified.insert(name);
            }
        }
        Ok(())
    }

    /// What has to be sent.
    pub(crate) fn wanted(&self) -> io::Result<Vec<wire::WantedFile>> {
        let missing = self.manifest.files.keys().filter(|name| !self.verified.contains(*name));
        missing
            .map(|name| {
                let offset = match fs::metadata(self.path.join(name)) {
                    Ok(meta) => meta.len(),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
                    Err(error) => return Err(error),
                };
                Ok(wire::WantedFile { file: name.clone(), offset })
            })
            .collect()
    }

    /// Bytes that need not be sent.
    pub(crate) fn reused(&self) -> io::Result<u64> {
        let whole: u64 = self.verified.iter().filter_map(|name| self.manifest.files.get(name)).map(|f| f.length).sum();
        Ok(whole + self.wanted()?.iter().map(|file| file.offset).sum::<u64>())
    }

    /// Deletes beginnings of files: the sender begins each file anew.
    pub(crate) fn drop_beginnings(&mut self) -> io::Result<()> {
        for name in names(&self.path)?.into_iter().filter(|name| !self.verified.contains(name)) {
            fs::remove_file(self.path.join(name))?;
        }
        Ok(())
    }

    /// True unless the file is there.
    pub(crate) fn lacks(&self, file: &str) -> bool {
        !self.verified.contains(file)
    }

    /// Deletes everything that has arrived.
    pub(crate) fn discard(self) -> io::Result<()> {
        fs::remove_dir_all(&self.path)
    }

    /// Bytes received.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// Writes one chunk; the chunks of a file come in order.
    ///
    /// *Errors*: `InvalidData` for a file that the manifest does not name, a gap, or more bytes than it names.
    pub(crate) fn write(&mut self, chunk: &wire::SnapshotData) -> io::Result<()> {
        failpoint_io("snapshot.chunk")?;
        let Some(FileSum { length, .. }) = self.manifest.files.get(&chunk.file).copied() else {
            return Err(invalid("a chunk of a file that the manifest does not name"));
        };
        if self.verified.contains(&chunk.file) || chunk.data.len() > CHUNK_BYTES {
            return Err(invalid("a chunk that was not asked for, or is too long"));
        }
        if self.open.as_ref().is_none_or(|open| open.name != chunk.file) {
            self.finish_file()?;
            let file = File::options().append(true).create(true).open(self.path.join(&chunk.file))?;
            let length = file.metadata()?.len();
            self.open = Some(Open { name: chunk.file.clone(), file, length });
        }
        let Some(open) = &mut self.open else { return Ok(()) };
        let end = open.length.saturating_add(chunk.data.len() as u64);
        if open.length != chunk.offset || end > length {
            return Err(invalid("a snapshot chunk out of order, or beyond the end of its file"));
        }
        open.file.write_all(&chunk.data)?;
        open.length = end;
        self.received += chunk.data.len() as u64;
        Ok(())
    }

    fn finish_file(&mut self) -> io::Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let synced = open.file.sync_all();
        if synced.is_err() {
            fs::remove_file(self.path.join(&open.name))?;
        }
        synced
    }

    /// Compares every file with the manifest, and makes all of it durable. A file that arrived damaged is deleted, so that
    /// the next attempt asks for it again.
    ///
    /// *Errors*: `InvalidData` names the file.
    pub(crate) fn finish(mut self) -> io::Result<SnapshotDir> {
        self.finish_file()?;
        for (name, expected) in &self.manifest.files {
            if self.verified.contains(name) {
                continue;
            }
            let path = self.path.join(name);
            if let Err(error) = expected.verify(&path) {
                if error.kind() == io::ErrorKind::InvalidData && path.exists() {
                    fs::remove_file(&path)?;
                }
                return Err(invalid(format!("snapshot file {name} arrived damaged: {error}")));
            }
            // Also what an earlier process has written.
            sync_or_delete(&path)?;
        }
        sync_dir(&self.path)?;
        failpoint_io("snapshot.received")?;
        // Under a name of its own: a later transfer of the same snapshot must not meet this one's end.
        let dir = self.path.parent().ok_or_else(|| invalid("a transfer outside of any directory"))?;
        let path = scratch(dir);
        fs::rename(&self.path, &path)?;
        Ok(SnapshotDir::received(path, self.manifest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::master::raft::identity::Owner;
    use crate::master::raft::types::{SnapshotMeta, StoredMembership};

    fn manifest(files: &[(&str, &[u8])]) -> Manifest {
        let files = files.iter().map(|(name, data)| {
            let sum = FileSum { length: data.len() as u64, crc32c: crc32c::crc32c(data) };
            ((*name).to_owned(), sum)
        });
        Manifest {
            meta: SnapshotMeta { last_log_id: None, last_membership: StoredMembership::default() },
            files: files.collect(),
            owner: Owner { cluster: [1; 16], member_id: 3, incarnation: [2; 16] },
        }
    }

    fn chunk(file: &str, offset: u64, data: &'static [u8]) -> wire::SnapshotData {
        wire::SnapshotData { file: file.to_owned(), offset, data: data.into() }
    }

    fn wanted(incoming: &Incoming) -> Vec<(String, u64)> {
        let wanted = incoming.wanted().expect("wanted");
        wanted.into_iter().map(|file| (file.file, file.offset)).collect()
    }

    #[test]
    fn a_transfer_goes_on_where_it_stopped_and_takes_equal_tables_from_this_disk_only() {
        let temp = tempfile::tempdir().expect("tempdir");
        let (dir, state) = (temp.path().join("snapshots"), temp.path().join("state"));
        fs::create_dir_all(&state).expect("mkdir");
        let files = manifest(&[("1.sst", b"equal"), ("2.sst", b"other"), ("3.sst", b"sent-half"), ("CURRENT", b"now")]);
        fs::write(state.join("1.sst"), b"equal").expect("write");
        fs::write(state.join("2.sst"), b"otter").expect("write");
        fs::write(state.join("CURRENT"), b"now").expect("write");
        let sources = [state];
        let mut incoming = Incoming::resume(&dir, &sources, files.clone()).expect("begin");
        assert_eq!(wanted(&incoming), [("2.sst".into(), 0), ("3.sst".into(), 0), ("CURRENT".into(), 0)]);
        incoming.write(&chunk("2.sst", 0, b"other")).expect("whole");
        incoming.write(&chunk("3.sst", 0, b"sent-")).expect("half");
        drop(incoming);

        let mut incoming = Incoming::resume(&dir, &sources, files.clone()).expect("go on");
        assert_eq!(wanted(&incoming), [("3.sst".into(), 5), ("CURRENT".into(), 0)]);
        incoming.write(&chunk("3.sst", 5, b"half")).expect("rest");
        drop(incoming);

        // A newer snapshot takes over what it shares with the one that was not finished.
        let newer = manifest(&[("3.sst", b"sent-half"), ("9.sst", b"new"), ("CURRENT", b"now")]);
        let mut incoming = Incoming::resume(&dir, &[], newer).expect("another snapshot");
        assert_eq!(wanted(&incoming), [("9.sst".into(), 0), ("CURRENT".into(), 0)]);
        assert_eq!(fs::read_dir(&dir).expect("list").count(), 1, "one transfer is kept");
        incoming.write(&chunk("9.sst", 0, b"new")).expect("whole");
        incoming.write(&chunk("CURRENT", 0, b"now")).expect("whole");
        let received = incoming.finish().expect("finished");
        assert!(received.path().exists());
        drop(received);
        assert_eq!(fs::read_dir(&dir).expect("list").count(), 0, "what is not installed leaves nothing");
    }

    #[test]
    fn what_the_manifest_does_not_name_is_refused_and_a_damaged_file_is_asked_for_again() {
        let temp = tempfile::tempdir().expect("tempdir");
        let files = manifest(&[("1.sst", b"12345"), ("2.sst", b"x")]);
        let mut incoming = Incoming::resume(temp.path(), &[], files.clone()).expect("begin");
        for bad in [
            chunk("3.sst", 0, b"x"),
            chunk("../1.sst", 0, b"x"),
            chunk("1.sst", 1, b"x"),
            chunk("1.sst", 0, b"123456"),
            chunk("1.sst", u64::MAX, b"x"),
        ] {
            incoming.write(&bad).expect_err("refused");
        }
        incoming.write(&chunk("1.sst", 0, b"12#45")).expect("written");
        incoming.write(&chunk("2.sst", 0, b"x")).expect("written");
        let error = incoming.finish().expect_err("damaged");
        assert!(error.to_string().contains("1.sst arrived damaged"), "{error}");
        let incoming = Incoming::resume(temp.path(), &[], files).expect("go on");
        assert_eq!(wanted(&incoming), [("1.sst".into(), 0)]);
    }
}
