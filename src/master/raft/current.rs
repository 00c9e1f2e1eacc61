//! `state/CURRENT`: which of the numbered directories is the state, and the snapshot it was installed from.

use std::fs;
use std::io;
use std::path::Path;

use openraft::impls::leader_id_adv::LeaderId;
use serde::{Deserialize, Serialize};

use crate::runtime::write_durably;

use super::disk_parts::Part;
use super::types::LogId;

const FILE: &str = "CURRENT";
/// Format 1 was the number alone.
const FORMAT: u32 = 2;

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
    match fs::read(dir.join(FILE)) {
        Ok(text) => Ok(parse(&text).map_or_else(
            |why| Part::Damaged(format!("{} is damaged: {why}", dir.join(FILE).display())),
            Part::Present,
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Part::Missing),
        Err(error) => Err(error),
    }
}

fn parse(text: &[u8]) -> Result<Current, String> {
    let text = std::str::from_utf8(text).map_err(|_| "it is not text".to_owned())?;
    let mut lines = text.lines();
    let (Some(line), Some(sum)) = (lines.next(), lines.next()) else {
        return Err(format!("it is cut short, or of format 1, while this release reads {FORMAT}"));
    };
    if u32::from_str_radix(sum, 16) != Ok(crc32c::crc32c(line.as_bytes())) {
        return Err("its checksum does not match".to_owned());
    }
    let current: Current = serde_json::from_str(line).map_err(|error| error.to_string())?;
    if current.format != FORMAT {
        return Err(format!("its format is {}, this release reads {FORMAT}", current.format));
    }
    Ok(current)
}

/// Replaces the file below `dir`.
///
/// *Durability*: on disk on return; a crash leaves the old file or the new one.
pub(crate) fn write(dir: &Path, current: &Current) -> io::Result<()> {
    let line = serde_json::to_string(current).map_err(io::Error::other)?;
    write_durably(&dir.join(FILE), format!("{line}\n{:08x}\n", crc32c::crc32c(line.as_bytes())).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_any_cut_is_damage() {
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
        let good = fs::read(temp.path().join(FILE)).expect("read");
        for length in 0..good.len() - 1 {
            fs::write(temp.path().join(FILE), &good[..length]).expect("write");
            assert!(matches!(read(temp.path()).expect("read"), Part::Damaged(_)), "cut to {length}");
        }
        fs::write(temp.path().join(FILE), b"0\n").expect("write");
        assert!(matches!(read(temp.path()).expect("read"), Part::Damaged(why) if why.contains("format 1")));
    }
}
