//! The manifest of a snapshot: what it stands for, who sealed it, and a checksum of each of its files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use jindofs_proto::raft::v1 as wire;
use prost::Message;

use crate::master::raft::identity::Owner;
use crate::master::raft::types::{self, Malformed, SnapshotMeta};

use super::{FORMAT, sum};

/// Name of the manifest in the directory of a snapshot.
pub(super) const FILE: &str = "SNAPSHOT";
const MAGIC: &[u8; 8] = b"JFSSNAP\n";
const HEADER_BYTES: usize = 16;
/// Most files of one snapshot: bounds what a forged manifest can make the receiver remember.
const FILES_MAX: usize = 1 << 20;

/// Length and checksum of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileSum {
    /// Bytes.
    pub(crate) length: u64,
    pub(crate) crc32c: u32,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) meta: SnapshotMeta,
    pub(crate) files: BTreeMap<String, FileSum>,
    /// The disk that sealed the snapshot.
    pub(crate) owner: Owner,
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("the snapshot has format {0}, this release reads format {format}", format = FORMAT)]
    OtherFormat(u32),
    #[error("the manifest of the snapshot is damaged: {0}")]
    Damaged(String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<Malformed> for ManifestError {
    fn from(error: Malformed) -> ManifestError {
        ManifestError::Damaged(error.to_string())
    }
}

impl From<ManifestError> for io::Error {
    fn from(error: ManifestError) -> io::Error {
        match error {
            ManifestError::Io(error) => error,
            other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
        }
    }
}

impl Manifest {
    pub(crate) fn to_wire(&self) -> wire::SnapshotManifest {
        let file = |(name, sum): (&String, &FileSum)| wire::SnapshotFile {
            file: name.clone(),
            length: sum.length,
            crc32c: sum.crc32c,
        };
        wire::SnapshotManifest {
            format: FORMAT,
            last_log_id: self.meta.last_log_id.as_ref().map(types::log_id_to_wire),
            membership: Some(types::stored_membership_to_wire(&self.meta.last_membership)),
            files: self.files.iter().map(file).collect(),
            cluster_uuid: self.owner.cluster.to_vec().into(),
            member_id: self.owner.member_id,
            incarnation: self.owner.incarnation.to_vec().into(),
        }
    }

    pub(crate) fn from_wire(manifest: &wire::SnapshotManifest) -> Result<Manifest, ManifestError> {
        if manifest.format != FORMAT {
            return Err(ManifestError::OtherFormat(manifest.format));
        }
        if manifest.files.len() > FILES_MAX {
            return Err(ManifestError::Damaged(format!("{} files", manifest.files.len())));
        }
        let mut files = BTreeMap::new();
        for file in &manifest.files {
            if !is_safe_name(&file.file) {
                return Err(ManifestError::Damaged("a file has an unsafe name".to_owned()));
            }
            let sum = FileSum { length: file.length, crc32c: file.crc32c };
            if files.insert(file.file.clone(), sum).is_some() {
                return Err(ManifestError::Damaged(format!("it names the file {} twice", file.file)));
            }
        }
        let membership = manifest.membership.as_ref().ok_or(Malformed("snapshot without membership"))?;
        let id = |bytes: &[u8]| <[u8; 16]>::try_from(bytes).map_err(|_| Malformed("owner of a snapshot"));
        Ok(Manifest {
            meta: SnapshotMeta {
                last_log_id: manifest.last_log_id.as_ref().map(types::log_id_from_wire),
                last_membership: types::stored_membership_from_wire(membership)?,
            },
            files,
            owner: Owner {
                cluster: id(&manifest.cluster_uuid)?,
                member_id: manifest.member_id,
                incarnation: id(&manifest.incarnation)?,
            },
        })
    }

    /// The content of the manifest's file: magic, format, checksum, message.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let payload = self.to_wire().encode_to_vec();
        let mut content = Vec::with_capacity(HEADER_BYTES + payload.len());
        content.extend_from_slice(MAGIC);
        content.extend_from_slice(&FORMAT.to_le_bytes());
        content.extend_from_slice(&crc32c::crc32c(&payload).to_le_bytes());
        content.extend_from_slice(&payload);
        content
    }

    pub(crate) fn decode(content: &[u8]) -> Result<Manifest, ManifestError> {
        let damaged = |why: &str| ManifestError::Damaged(why.to_owned());
        let Some(rest) = content.strip_prefix(MAGIC) else {
            // Format 1 was a bare message that holds its format in field 5.
            return match FormatOne::decode(content) {
                Ok(old) if old.format == 1 => Err(ManifestError::OtherFormat(1)),
                _ => Err(damaged("it does not begin as a manifest does")),
            };
        };
        let (Some(format), Some(crc), Some(payload)) = (number(rest, 0), number(rest, 4), rest.get(8..)) else {
            return Err(damaged("it is cut short"));
        };
        if crc != crc32c::crc32c(payload) {
            return Err(damaged("its checksum does not match"));
        }
        if format != FORMAT {
            return Err(ManifestError::OtherFormat(format));
        }
        let manifest = wire::SnapshotManifest::decode(payload).map_err(|error| damaged(&error.to_string()))?;
        Manifest::from_wire(&manifest)
    }

    /// Reads the manifest of the sealed snapshot in `dir`.
    pub(crate) fn read(dir: &Path) -> Result<Manifest, ManifestError> {
        Manifest::decode(&fs::read(dir.join(FILE))?)
    }

    /// Writes the manifest into `dir`. *Durability*: the content is on disk on return, its name is not yet.
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let mut file = File::create(dir.join(FILE))?;
        file.write_all(&self.encode())?;
        file.sync_all()
    }

    /// Compares every file in `dir` with its checksum.
    ///
    /// *Errors*: `InvalidData` names the first file that differs.
    pub(crate) fn verify(&self, dir: &Path) -> io::Result<()> {
        self.files.iter().try_for_each(|(name, expected)| expected.verify(&dir.join(name)))
    }
}

impl FileSum {
    /// Compares the file at `path` with this checksum.
    ///
    /// *Errors*: `InvalidData` when it differs, or is not there.
    pub(crate) fn verify(&self, path: &Path) -> io::Result<()> {
        let damaged = |why: String| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", path.display()));
        match sum(path) {
            Ok(found) if found == *self => Ok(()),
            Ok(found) if found.length != self.length => {
                Err(damaged(format!("{} bytes instead of {}", found.length, self.length)))
            }
            Ok(_) => Err(damaged("the content does not match its checksum".to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(damaged("the file is gone".to_owned())),
            Err(error) => Err(error),
        }
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

fn is_safe_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 255 && !name.contains('/') && !name.starts_with('.') && name != FILE
}

#[derive(Clone, PartialEq, Message)]
struct FormatOne {
    #[prost(uint32, tag = "5")]
    format: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::master::raft::types::StoredMembership;

    fn manifest() -> Manifest {
        Manifest {
            meta: SnapshotMeta { last_log_id: None, last_membership: StoredMembership::default() },
            files: BTreeMap::from([("000012.sst".to_owned(), FileSum { length: 7, crc32c: 9 })]),
            owner: Owner { cluster: [1; 16], member_id: 3, incarnation: [2; 16] },
        }
    }

    #[test]
    fn a_manifest_survives_and_every_cut_or_flipped_bit_is_found() {
        let whole = manifest().encode();
        assert_eq!(Manifest::decode(&whole).expect("whole"), manifest());
        for length in 0..whole.len() {
            assert!(Manifest::decode(&whole[..length]).is_err(), "cut to {length} bytes");
        }
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Manifest::decode(&flipped).is_err(), "bit {bit} flipped");
        }
    }

    #[test]
    fn another_format_is_named_by_its_number() {
        let old = FormatOne { format: 1 }.encode_to_vec();
        assert!(matches!(Manifest::decode(&old), Err(ManifestError::OtherFormat(1))));
        let mut newer = manifest().encode();
        newer[8..12].copy_from_slice(&(FORMAT + 1).to_le_bytes());
        assert!(matches!(Manifest::decode(&newer), Err(ManifestError::OtherFormat(other)) if other == FORMAT + 1));
    }

    #[test]
    fn unsafe_or_repeated_names_of_files_are_refused() {
        for name in ["", "a/b", "..", ".hidden", "SNAPSHOT", &"x".repeat(256)] {
            let mut forged = manifest().to_wire();
            forged.files[0].file = name.to_owned();
            assert!(Manifest::from_wire(&forged).is_err(), "{name:?}");
        }
        let mut forged = manifest().to_wire();
        forged.files.push(forged.files[0].clone());
        assert!(Manifest::from_wire(&forged).is_err());
    }
}
