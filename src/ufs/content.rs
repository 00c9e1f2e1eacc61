//! Content to be stored in an under-storage.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::fs::copy_file_range;
use rustix::io::{Errno, pread};

use super::{PreparedPut, blocking};
use crate::error::{Error, Result};

/// Bytes that are copied at a time where the kernel does not copy by itself.
const BUFFER: u64 = 1 << 20;

/// Where the content is; nobody changes it meanwhile.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file of this host, open for reading; read by offset.
    File(Arc<File>),
    /// All of it, in memory.
    Memory(Bytes),
}

/// Times that a stored file gets, in nanoseconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// Modification time of the content.
    pub mtime_ns: i64,
    /// Change time of the file, as far as the masters keep it.
    pub ctime_ns: i64,
}

/// Content to be stored.
#[derive(Debug, Clone)]
pub struct Content {
    /// Where it is.
    pub source: Source,
    /// Bytes.
    pub length: u64,
    /// The part of it that is already prepared in the under-storage.
    pub prepared: PreparedPut,
    /// The version that it replaces is a prefix of it.
    pub extends: bool,
    /// The times that the file already has; `None` for the time of storing.
    pub times: Option<Times>,
}

impl Content {
    /// True if the content is in memory.
    pub fn is_in_memory(&self) -> bool {
        matches!(self.source, Source::Memory(_))
    }

    fn new(source: Source, length: u64) -> Content {
        Content { source, length, prepared: PreparedPut::default(), extends: false, times: None }
    }

    /// The first `length` bytes of a file.
    pub fn in_file(file: Arc<File>, length: u64) -> Content {
        Content::new(Source::File(file), length)
    }

    /// Bytes in memory.
    pub fn in_memory(bytes: Bytes) -> Content {
        let length = bytes.len() as u64;
        Content::new(Source::Memory(bytes), length)
    }

    /// Copies all of it to the beginning of a file, by offset, since others may read the same source. Blocks.
    pub(super) fn copy_to(&self, to: &File) -> io::Result<()> {
        match &self.source {
            Source::Memory(bytes) => to.write_all_at(bytes, 0),
            Source::File(file) => copy(file, self.length, to),
        }
    }

    /// Reads a part of it into memory.
    ///
    /// *Errors*: those of the disk; the content is shorter than its length.
    pub async fn part(&self, offset: u64, length: u64) -> Result<Bytes> {
        let too_long = |_| Error::invalid("a part too long to be read");
        let length = usize::try_from(length).map_err(too_long)?;
        match &self.source {
            Source::Memory(bytes) => {
                let offset = usize::try_from(offset).map_err(too_long)?;
                Ok(bytes.slice(offset..offset + length))
            }
            Source::File(file) => {
                let file = file.clone();
                let read = move || {
                    read_exact(&file, offset, length)
                        .map_err(|error| Error::from(error).context("what is to be stored is not read"))
                };
                blocking(read).await.map(Bytes::from)
            }
        }
    }
}

fn copy(file: &File, length: u64, to: &File) -> io::Result<()> {
    let mut done = copied_by_kernel(file, length, to);
    let mut buffer = Vec::new();
    while done < length {
        let wanted = (length - done).min(BUFFER);
        buffer.resize(usize::try_from(wanted).map_err(io::Error::other)?, 0);
        match file.read_at(&mut buffer, done) {
            Ok(0) => return Err(io::Error::other(format!("what is to be stored ends at {done} bytes"))),
            Ok(read) => {
                to.write_all_at(&buffer[..read], done)?;
                done += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The number of bytes that the kernel has copied by itself. The caller continues, and gets the error if there is one.
fn copied_by_kernel(file: &File, length: u64, to: &File) -> u64 {
    let (mut read, mut written) = (0, 0);
    while written < length {
        let wanted = usize::try_from(length - written).unwrap_or(usize::MAX);
        match copy_file_range(file, Some(&mut read), to, Some(&mut written), wanted) {
            Err(Errno::INTR) => {}
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    written
}

/// Reads into memory that is not cleared first.
fn read_exact(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let at = offset + bytes.len() as u64;
        match pread(file, spare_capacity(&mut bytes), at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // The allocation may be larger than requested, and filled too.
    bytes.truncate(length);
    Ok(bytes)
}
