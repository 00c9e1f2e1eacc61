//! A small file of the metadata directory: a record as one line of JSON with the number of its format, and a line with the
//! checksum of the first.

use std::fs;
use std::io;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::runtime::write_durably;

use super::disk_parts::Part;

#[derive(Deserialize)]
struct FormatStamp {
    format: u32,
}

/// Reads the record at `path`, which must have this format.
///
/// *Errors*: what the file system says; damage and another format are part of the answer.
pub(super) fn read<T: DeserializeOwned>(path: &Path, format: u32) -> io::Result<Part<T>> {
    match fs::read(path) {
        Ok(content) => Ok(parse(&content, format).map_or_else(Part::Damaged, Part::Present)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Part::Missing),
        Err(error) => Err(error),
    }
}

/// Replaces the record at `path`.
///
/// *Durability*: on disk on return; a crash leaves the old record or the new one.
pub(super) fn write(path: &Path, record: &impl Serialize) -> io::Result<()> {
    let line = serde_json::to_string(record).map_err(io::Error::other)?;
    write_durably(path, encode(&line).as_bytes())
}

fn encode(line: &str) -> String {
    format!("{line}\n{:08x}\n", crc32c::crc32c(line.as_bytes()))
}

fn parse<T: DeserializeOwned>(content: &[u8], format: u32) -> Result<T, String> {
    let text = std::str::from_utf8(content).map_err(|_| "it is not text".to_owned())?;
    let mut lines = text.lines();
    let (Some(line), Some(sum)) = (lines.next(), lines.next()) else { return Err("it is cut short".to_owned()) };
    if u32::from_str_radix(sum, 16) != Ok(crc32c::crc32c(line.as_bytes())) {
        return Err("its checksum does not match".to_owned());
    }
    // The number first: a line of another format need not have the fields of this one.
    let stamp: FormatStamp = serde_json::from_str(line).map_err(|error| error.to_string())?;
    if stamp.format != format {
        return Err(format!("its format is {}, this release reads {format}", stamp.format));
    }
    serde_json::from_str(line).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Record {
        format: u32,
        word: String,
    }

    #[test]
    fn every_cut_and_flipped_bit_is_damage_and_another_format_is_named() {
        let temp = tempfile::tempdir().expect("tempdir");
        let path = temp.path().join("RECORD");
        assert!(matches!(read::<Record>(&path, 2), Ok(Part::Missing)));
        let record = Record { format: 2, word: "whole".to_owned() };
        write(&path, &record).expect("write");
        assert!(matches!(read::<Record>(&path, 2), Ok(Part::Present(found)) if found == record));
        let good = fs::read(&path).expect("read");
        // Without the last line's end nothing is missing.
        for length in 0..good.len() - 1 {
            assert!(parse::<Record>(&good[..length], 2).is_err(), "cut to {length} bytes");
        }
        let line = good.iter().position(|byte| *byte == b'\n').expect("a line");
        for bit in 0..line * 8 {
            let mut flipped = good.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(parse::<Record>(&flipped, 2).is_err(), "bit {bit} flipped");
        }
        let error = parse::<Record>(encode(r#"{"format":1}"#).as_bytes(), 2).expect_err("another format");
        assert_eq!(error, "its format is 1, this release reads 2");
    }
}
