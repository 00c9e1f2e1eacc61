//! `state/CURRENT`: which of the numbered directories is the state, and the snapshot it was installed from.

use std::io;
use std::path::Path;

use openraft::impls::leader_id_adv::LeaderId;
use serde::{Deserialize, Serialize};

use super::disk_parts::Part;
use super::record_file;
use super::types::LogId;

const FILE: &str = "CURRENT";
/// Format 1 was the number alone.
const FORMAT: u32 = 4;

/// The content of the file: one line of JSON and its checksum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Current {
    format: u32,
    pub(crate) number: u64,
    installed: Option<Installed>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Installed {
    term: u64,
    node_id: u64,
    index: u64,
}

impl Default for Current {
    fn default() -> Current {
        Current { format: FORMAT, number: 0, installed: None }
    }
}

impl Current {
    /// The state `number`, which the log explains.
    pub(crate) fn begun(number: u64) -> Current {
        Current { number, ..Current::default() }
    }

    /// The state `number`, which begins with the snapshot that ends with `last`.
    pub(crate) fn installed(number: u64, last: Option<LogId>) -> Current {
        let installed =
            last.map(|id| Installed { term: id.leader_id.term, node_id: id.leader_id.node_id, index: id.index });
        Current { number, installed, ..Current::default() }
    }

    /// The snapshot that the state was installed from.
    pub(crate) fn installed_id(&self) -> Option<LogId> {
        let installed = self.installed.as_ref()?;
        let leader_id = LeaderId { term: installed.term, node_id: installed.node_id };
        Some(LogId { leader_id, index: installed.index })
    }
}

/// Reads the file below `dir`.
///
/// *Errors*: what the file system says; damage is part of the answer.
pub(crate) fn read(dir: &Path) -> io::Result<Part<Current>> {
    let path = dir.join(FILE);
    Ok(match record_file::read(&path, FORMAT)? {
        Part::Damaged(why) => Part::Damaged(format!("{} is damaged, or of format 1: {why}", path.display())),
        found => found,
    })
}

/// Replaces the file below `dir`.
///
/// *Durability*: on disk on return; a crash leaves the old file or the new one.
pub(crate) fn write(dir: &Path, current: &Current) -> io::Result<()> {
    record_file::write(&dir.join(FILE), current)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_was_written_is_read_and_format_1_is_named() {
        let temp = tempfile::tempdir().expect("tempdir");
        assert!(matches!(read(temp.path()).expect("read"), Part::Missing));
        let last = LogId { leader_id: LeaderId { term: 3, node_id: 1 }, index: 77 };
        let current = Current::installed(4, Some(last));
        write(temp.path(), &current).expect("write");
        match read(temp.path()).expect("read") {
            Part::Present(found) => {
                assert_eq!(found, current);
                assert_eq!(found.installed_id(), Some(last));
            }
            other => panic!("{other:?}"),
        }
        fs::write(temp.path().join(FILE), b"0\n").expect("write");
        assert!(matches!(read(temp.path()).expect("read"), Part::Damaged(why) if why.contains("format 1")));
    }
}
