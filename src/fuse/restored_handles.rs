//! Handles that the previous process of this mount had open. Each one is reopened by inode and version, from the
//! masters, when the kernel first uses it.

use std::sync::Arc;

use bytes::Bytes;

use crate::client::OpenFile;
use crate::error::{Error, ErrorKind, Result};

use super::directory::Directory;
use super::fs::Fs;
use super::handles::FileHandle;
use super::handover_state::OpenHandle;
use super::nodes::inode_of;

fn unknown(number: u64) -> Error {
    Error::internal(format!("the kernel names a handle {number} that nobody gave it"))
}

fn stale(what: String) -> Error {
    Error::new(ErrorKind::Stale, what)
}

impl Fs {
    /// Reads through a file handle of the previous process.
    ///
    /// *Errors*: `Stale` if the file was removed or has other content by now.
    pub(super) async fn read_restored(self: &Arc<Self>, number: u64, offset: u64, size: u32) -> Result<Bytes> {
        let (handle, file) = self.restore_file(number).await?;
        let length = file.source.length.saturating_sub(offset).min(u64::from(size));
        if length == 0 {
            return Ok(Bytes::new());
        }
        self.read_ahead(&handle, &file, offset, length, &tokio::runtime::Handle::current());
        self.read(handle.node, &file, offset, size).await
    }

    async fn restore_file(self: &Arc<Self>, number: u64) -> Result<(Arc<FileHandle>, Arc<OpenFile>)> {
        let Some(OpenHandle::File { node, version, writes }) = self.handles.restored(number) else {
            let handle = self.handles.file(number).ok_or_else(|| unknown(number))?;
            let file = self.nodes.file(handle.node).ok_or_else(|| unknown(number))?;
            return Ok((handle, file));
        };
        if let Some(file) = self.nodes.file(node) {
            return Ok((self.handles.adopt_file(number, node, writes), file));
        }
        let inode = inode_of(node);
        let gone = |error: Error| match error.kind {
            ErrorKind::NotFound => stale(format!("inode {inode} was removed while no client served this mount")),
            _ => error,
        };
        let attr = self.attr(inode).await.map_err(gone)?.attr;
        let file = self.open_source(&attr).await.map_err(gone)?;
        if file.source.version != version {
            return Err(stale(format!("inode {inode} was replaced while no client served this mount")));
        }
        self.nodes.provide(node, &file, &attr);
        Ok((self.handles.adopt_file(number, node, writes), file))
    }

    /// The directory behind a handle, with the entries from `offset` on fetched.
    ///
    /// *Errors*: `Stale` if a listing that the previous process began cannot be continued, because the directory has
    /// changed.
    pub(super) async fn read_directory(self: &Arc<Self>, number: u64, offset: u64) -> Result<Arc<Directory>> {
        let directory = match self.handles.directory(number) {
            Some(directory) => directory,
            None => self.restore_directory(number, offset).await?,
        };
        if self.fetch_entries(&directory, offset).await? {
            // Saved before the kernel gets the entries: the next process must know how far the listing was read.
            self.handles.note_directory(number, &directory)?;
        }
        Ok(directory)
    }

    async fn restore_directory(self: &Arc<Self>, number: u64, offset: u64) -> Result<Arc<Directory>> {
        let Some(OpenHandle::Directory { inode, names, fingerprint }) = self.handles.restored(number) else {
            return self.handles.directory(number).ok_or_else(|| unknown(number));
        };
        let directory = {
            let attr = self.attr(inode).await?.attr;
            Directory::new(inode, attr.parent, attr.version)
        };
        // An offset counts the names before it, so those names must be the ones for which it was given out.
        if offset > 0 && names > 0 {
            self.fetch_entries(&directory, Directory::offset_of_last(names)).await?;
            if !directory.begins_with(names, fingerprint) {
                let what = "changed while it was listed and no client served this mount: list it again";
                return Err(stale(format!("the directory with inode {inode} {what}")));
            }
        }
        Ok(self.handles.adopt_directory(number, directory))
    }
}
