//! Opening files: which content a handle stands for, and what the kernel's page cache may keep of it.

use std::sync::Arc;

use jindofs_proto::v1::{Attr, FileSource, FileType};

use crate::client::OpenFile;
use crate::error::{Error, ErrorKind, Result};
use crate::rpc::source::source_of;
use crate::types::version_of;

use super::fs::Fs;
use super::inodes::PageCache;
use super::saved::Open;
use super::staging::Staged;

/// How often a file is opened again that gets another version at this very moment.
const ATTEMPTS: usize = 5;

impl Fs {
    /// Opens a file for reading without waiting for anybody, if all that is needed is known.
    pub(super) fn open_now(&self, inode: u64) -> Option<(u64, PageCache)> {
        let known = self.attr_now(inode)?;
        if known.attr.r#type() != FileType::File {
            return None;
        }
        let file = self.reader.open(self.source_now(&known.attr)?);
        if self.is_large(&file.source) && !file.is_local() {
            return None;
        }
        // One that cannot be opened is tried again, with an error for the caller.
        self.opened(inode, file, false).ok().flatten()
    }

    fn is_large(&self, source: &FileSource) -> bool {
        self.direct_min > 0 && source.length >= self.direct_min
    }

    /// Opens a file; if it `cuts`, with nothing in it, as far as this mount sees until it is stored.
    ///
    /// *Errors*: `IsADirectory`; `ReadOnly` for one to be written where nothing can be; `InvalidArgument` for one that is to be
    /// read and cut off; those of [`Fs::truncate`].
    pub(super) async fn open(self: &Arc<Self>, inode: u64, writes: bool, cuts: bool) -> Result<(u64, PageCache)> {
        if cuts && !writes {
            self.check_nothing_to_cut(inode).await?;
        }
        let opened = self.open_whole(inode, writes).await?;
        if cuts
            && writes
            && let Err(error) = self.truncate(inode, 0, Some(opened.0)).await
        {
            if let Some(inode) = self.release(opened.0) {
                self.let_go(inode).await;
            }
            return Err(error);
        }
        Ok(opened)
    }

    /// The kernel refuses to open a running program like that only after it was cut off, and its pages are gone even if it
    /// was not: then the program dies.
    async fn check_nothing_to_cut(self: &Arc<Self>, inode: u64) -> Result<()> {
        let attr = self.attr(inode).await?.attr;
        match self.staging.overlay(&attr).size {
            0 => Ok(()),
            _ => Err(Error::invalid("O_RDONLY | O_TRUNC: what is to be cut off has to be opened for writing")),
        }
    }

    async fn open_whole(self: &Arc<Self>, inode: u64, writes: bool) -> Result<(u64, PageCache)> {
        for _ in 0..ATTEMPTS {
            let attr = self.attr(inode).await?.attr;
            if attr.r#type() == FileType::Directory {
                return Err(Error::new(ErrorKind::IsADirectory, format!("inode {inode} is a directory")));
            }
            if writes {
                self.check_changeable(&attr).await?;
            }
            let file = self.open_source(&attr).await?;
            if self.is_large(&file.source) && !file.is_local() {
                self.reader.look_local(&file).await;
            }
            if let Some(opened) = self.opened(inode, file, writes)? {
                return Ok(opened);
            }
        }
        Err(Error::new(ErrorKind::Stale, format!("inode {inode} changes faster than it can be opened")))
    }

    /// The content that attributes name.
    pub(super) async fn open_source(&self, attr: &Attr) -> Result<Arc<OpenFile>> {
        let source = match self.source_now(attr) {
            Some(source) => source,
            None => self.source(attr).await?,
        };
        Ok(self.reader.open(source))
    }

    /// A handle for `file`; `None` if another version was stored here meanwhile: then it is to be opened again.
    fn opened(&self, inode: u64, file: Arc<OpenFile>, writes: bool) -> Result<Option<(u64, PageCache)>> {
        let version = file.source.version;
        // Writes go through the page cache: mappings must see them.
        let direct = !writes && self.is_large(&file.source) && file.is_local();
        if self.writable
            && let Some(newest) = self.inodes.get(inode)
        {
            self.staging.drop_superseded(&newest.attr);
        }
        let number = self.handles.add_file(inode, file)?;
        if !writes && let Some(handle) = self.handles.file(number) {
            handle.reads_only();
        }
        // Noted before the look: what is staged while a handle is noted stays staged.
        let other = self.inodes.note_open(inode, version);
        if let Some(staged) = self.staging.ready(inode) {
            return Ok(Some((number, self.inodes.pages_of_staged(inode, staged.base_version()))));
        }
        let newest = self.inodes.get(inode).filter(|_| self.writable);
        if newest.is_some_and(|known| version_of(&known.attr.version_token) != version) {
            self.release(number);
            return Ok(None);
        }
        Ok(Some((number, self.inodes.pages(inode, version, other, direct))))
    }

    /// True if a newer version than that of a handle is known, and is shorter. The kernel knows one length of a file, and would
    /// give what lies within the new one for the whole of the old.
    pub(super) fn is_shorter_by_now(&self, inode: u64, length: u64, version: u64) -> bool {
        let newest = self.inodes.length_and_version(inode);
        newest.is_some_and(|(newest, other)| newest < length && other != version)
    }

    /// As [`Fs::is_shorter_by_now`], of what is staged and was stored.
    pub(super) fn is_cut(&self, inode: u64, staged: &Staged) -> bool {
        // What is not stored yet has the length that is shown.
        let newest = self.inodes.length_and_version(inode);
        newest.is_some_and(|(newest, _)| newest < staged.length()) && !staged.is_apart()
    }

    fn source_now(&self, attr: &Attr) -> Option<FileSource> {
        if attr.mount_id == 0 {
            return Some(source_of(attr, Vec::new()));
        }
        if let Some(source) = self.layouts.get(attr.inode, &attr.version_token, attr.size) {
            return Some(source);
        }
        let mount = self.mounts.known(attr.mount_id)?;
        Some(source_of(attr, self.inodes.path_below(mount.root_inode, attr.inode)?))
    }

    async fn source(&self, attr: &Attr) -> Result<FileSource> {
        if let Some(mount) = self.mounts.get(attr.mount_id).await?
            && let Some(path) = self.inodes.path_below(mount.root_inode, attr.inode)
        {
            return Ok(source_of(attr, path));
        }
        let source = self.patient.layout(attr.inode).await?.source;
        let source = source.ok_or_else(|| Error::new(ErrorKind::Stale, "the file has moved out of its mount"))?;
        if source.version != version_of(&attr.version_token) {
            self.inodes.expire(attr.inode);
        }
        self.layouts.put(source.clone());
        Ok(source)
    }

    /// Content was not where it should be: nothing that was remembered of it is used again.
    pub(super) fn found_stale(&self, source: &FileSource) {
        self.inodes.expire(source.file_id);
        self.layouts.forget(source.file_id);
        self.reader.forget(source);
    }

    /// The same content under another path, if that is why it was not found: it, or a directory above, was renamed.
    pub(super) async fn moved(&self, inode: u64, before: &FileSource) -> Option<Arc<OpenFile>> {
        let source = self.hasty.layout(inode).await.ok()?.source?;
        if source.version != before.version || source.ufs_path == before.ufs_path {
            return None;
        }
        self.layouts.put(source.clone());
        Some(self.reader.open(source))
    }

    /// Closes a file; returns the inode if that was its last handle and something of it is staged.
    pub(super) fn release(&self, number: u64) -> Option<u64> {
        let Some(Open::File { inode, version }) = self.handles.take_file(number) else { return None };
        self.inodes.closed(inode, version);
        if !self.inodes.is_open(inode) {
            self.creates.closed(inode);
        }
        (self.staging.ready(inode).is_some() && !self.inodes.is_open(inode)).then_some(inode)
    }
}
