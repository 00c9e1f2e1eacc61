//! Metadata that is read again from under-storages, for a whole tree.

use futures::stream::{FuturesUnordered, StreamExt};
use jindofs_proto::v1::{Attr, FileType};

use super::namespace::{Namespace, at_inode, at_path};
use crate::error::{Error, ErrorKind, Result};

/// Directories that are read at the same time.
const CONCURRENT: usize = 8;
/// Directories for which no answer comes before a tree is given up: by then the masters or the under-storage are down.
const UNANSWERED_MAX: usize = 2 * CONCURRENT;

/// What was read again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Refreshed {
    /// Directories, with their entries.
    pub directories: u64,
    /// Files and links that were found.
    pub files: u64,
    /// Bytes in them.
    pub bytes: u64,
}

impl Refreshed {
    fn add_file(&mut self, attr: &Attr) {
        self.files += 1;
        self.bytes = self.bytes.saturating_add(attr.size);
    }
}

/// Has the metadata of `path` read again, with that of its entries if it is a directory, and of everything below if
/// `recursive`.
///
/// *Errors*: those of [`Namespace::refresh`]. The error of a directory below names it, and comes after the others have been
/// read. What is removed meanwhile is left out.
pub async fn refresh(namespace: &Namespace, path: &[u8], recursive: bool) -> Result<Refreshed> {
    let top = namespace.refresh(at_path(path)).await?;
    let mut sum = Refreshed::default();
    if top.r#type() != FileType::Directory {
        sum.add_file(&top);
        return Ok(sum);
    }
    let mut failures = Failures::default();
    // The last one found is read first, so that the entries of one directory at each depth wait, and not a whole level.
    let mut waiting = vec![Directory { inode: top.inode, path: path.to_vec(), is_current: true }];
    let mut reading = FuturesUnordered::new();
    loop {
        while reading.len() < CONCURRENT
            && failures.unanswered < UNANSWERED_MAX
            && let Some(directory) = waiting.pop()
        {
            reading.push(read(namespace, directory, recursive));
        }
        let Some(Read { path, found, mut below, outcome }) = reading.next().await else { break };
        sum.directories += found.directories;
        sum.files += found.files;
        sum.bytes = sum.bytes.saturating_add(found.bytes);
        waiting.append(&mut below);
        match outcome {
            Err(error) if error.kind != ErrorKind::NotFound => failures.add(&path, error),
            _ => {}
        }
    }
    failures.conclude(!waiting.is_empty()).map(|()| sum)
}

/// A directory to be read again.
struct Directory {
    inode: u64,
    path: Vec<u8>,
    /// It was read again already, and is only to be listed.
    is_current: bool,
}

/// What came of a directory.
struct Read {
    path: Vec<u8>,
    found: Refreshed,
    below: Vec<Directory>,
    outcome: Result<()>,
}

async fn read(namespace: &Namespace, directory: Directory, recursive: bool) -> Read {
    let Directory { inode, path, is_current } = directory;
    let (mut found, mut below) = (Refreshed::default(), Vec::new());
    let outcome = async {
        if !is_current {
            namespace.refresh(at_inode(inode)).await?;
        }
        found.directories = 1;
        let mut entries = std::pin::pin!(namespace.list(at_inode(inode)));
        while let Some(entry) = entries.next().await {
            let entry = entry?;
            let Some(attr) = entry.attr else { continue };
            if attr.r#type() != FileType::Directory {
                found.add_file(&attr);
            } else if recursive {
                let path = [path.strip_suffix(b"/").unwrap_or(&path), &entry.name].join(&b'/');
                below.push(Directory { inode: attr.inode, path, is_current: false });
            }
        }
        Ok(())
    };
    let outcome = outcome.await;
    Read { path, found, below, outcome }
}

/// Directories that could not be read.
#[derive(Default)]
struct Failures {
    all: usize,
    unanswered: usize,
    first: Option<Error>,
}

impl Failures {
    fn add(&mut self, path: &[u8], error: Error) {
        self.all += 1;
        self.unanswered += usize::from(error.is_retryable());
        self.first.get_or_insert_with(|| error.context(String::from_utf8_lossy(path)));
    }

    fn conclude(self, gave_up: bool) -> Result<()> {
        let Some(first) = self.first else { return Ok(()) };
        Err(match self.all {
            1 => first,
            all if gave_up => first.context(format!("given up after {all} directories that cannot be read, the first")),
            all => first.context(format!("{all} directories cannot be read, the first")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_directory_that_cannot_be_read_is_named_and_others_are_counted() {
        let denied = || Error::new(ErrorKind::PermissionDenied, "no access");
        let mut failures = Failures::default();
        failures.add(b"/a/b", denied());
        assert_eq!((failures.all, failures.unanswered), (1, 0));
        failures.add(b"/c", Error::unavailable("away"));
        assert_eq!((failures.all, failures.unanswered), (2, 1));
        let error = failures.conclude(false).expect_err("two failures");
        assert_eq!(error, Error::new(denied().kind, "2 directories cannot be read, the first: /a/b: no access"));
        assert_eq!(Failures::default().conclude(false), Ok(()));
    }
}
