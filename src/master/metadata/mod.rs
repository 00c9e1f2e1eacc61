//! Reading the tree, with what must first be loaded from under-storage. Reads are linearizable; loading is the leader's.

mod ends;
mod load;

use std::sync::Arc;
use std::time::Instant;

use jindofs_proto::v1::{Attr, Entry, FileSource, FileType, Target, target};

use crate::error::{Error, ErrorKind, Result};
use crate::master::raft::Handle;
use crate::master::state::query::{self, ListStep, LookupStep};
use crate::rpc::source::source_of;
use crate::ufs;

pub(super) use load::convert;

use load::Loads;

/// A page of a directory.
#[derive(Debug)]
pub struct Page {
    /// The directory itself.
    pub directory: Attr,
    /// Entries in name order.
    pub entries: Vec<Entry>,
    /// Nothing follows.
    pub end: bool,
}

/// The read side of the tree. Clones share what is under way.
#[derive(Debug, Clone)]
pub struct Metadata {
    handle: Handle,
    storage: Arc<ufs::Registry>,
    loads: Arc<Loads>,
}

impl Metadata {
    /// Over a member of the group and the under-storages it may read.
    pub fn new(handle: Handle, storage: Arc<ufs::Registry>) -> Metadata {
        Metadata { loads: Arc::new(Loads::new(handle.clone(), storage.clone())), storage, handle }
    }

    /// Attributes of what `target` points at.
    ///
    /// *Errors*: `NotFound` and its like; `NotLeader` on a follower when metadata must be loaded; the under-storage's.
    pub async fn lookup(&self, target: &Target) -> Result<Attr> {
        let attr = self.find(target).await?;
        if !self.await_ends(std::iter::once(&attr)).await? {
            return Ok(attr);
        }
        self.find(target).await
    }

    /// As [`Metadata::lookup`], as far as is recorded.
    async fn find(&self, target: &Target) -> Result<Attr> {
        let mut refreshed = false;
        let mut loaded = None;
        loop {
            let store = self.handle.read().await?;
            let step = query::lookup_or_load(&store.view(), target)?;
            let need = match step {
                LookupStep::Absent(refusal) => return Err(refusal.into()),
                LookupStep::NeedsLoad(need) if loaded.as_ref() == Some(&need) || self.loads.is_fresh(&need) => {
                    let name = need.name.as_deref().unwrap_or_default().escape_ascii().to_string();
                    return Err(Error::new(ErrorKind::NotFound, format!("{name:?} does not exist")));
                }
                LookupStep::NeedsLoad(need) => need,
                // Outside any mount there is nothing to load.
                LookupStep::Found(attr) if refreshed || attr.mount_id == 0 => return Ok(attr),
                LookupStep::Found(attr) => match query::refresh_need(&store.view(), attr.inode)? {
                    None => return Ok(attr),
                    Some(need) if self.loads.is_fresh(&need) => return Ok(attr),
                    Some(need) => {
                        refreshed = true;
                        need
                    }
                },
            };
            match self.loads.load(need.clone()).await {
                // The entry is recorded and this would only refresh it: reads go on although the disk is full.
                Err(error) if refreshed && loaded.is_none() && error.kind == ErrorKind::NoSpace => {}
                done => done?,
            }
            loaded = Some(need);
        }
    }

    /// Takes in what lies in the under-storage where `target` points, whatever is known.
    ///
    /// *Errors*: as [`Metadata::lookup`].
    pub(super) async fn look_again(&self, target: &Target) -> Result<()> {
        self.look_since(target, Instant::now()).await
    }

    /// As [`Metadata::look_again`], unless that was done since then.
    async fn look_since(&self, target: &Target, since: Instant) -> Result<()> {
        let store = self.handle.read().await?;
        match query::look_need(&store.view(), target)? {
            Some(need) => self.loads.load_since(need, since).await,
            None => Ok(()),
        }
    }

    /// Reads the metadata of `target` again, and that of its entries if it is a directory, whatever is known, unless that was
    /// done since then; returns its attributes.
    ///
    /// *Errors*: as [`Metadata::lookup`]; `NotLeader` on a follower.
    pub async fn refresh(&self, target: &Target, since: Instant) -> Result<Attr> {
        if !self.handle.is_leader() {
            return Err(self.handle.not_leader());
        }
        match (self.lookup(target).await, &target.target) {
            // Whoever names a directory by its number has read its name just now.
            (Ok(attr), Some(target::Target::Inode(_))) if attr.r#type() == FileType::Directory => {}
            // Something may have come since the directory was read.
            (Ok(_), _) => self.look_since(target, since).await?,
            // What was a file may be a directory by now.
            (Err(error), _) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                self.look_since(target, since).await?;
            }
            (Err(error), _) => return Err(error),
        }
        let attr = self.lookup(target).await?;
        if attr.r#type() != FileType::Directory {
            return Ok(attr);
        }
        let need = query::listing_need(&self.handle.read().await?.view(), attr.inode)?;
        if let Some(need) = need {
            self.loads.load_since(need, since).await?;
        }
        self.lookup(&Target { target: Some(target::Target::Inode(attr.inode)) }).await
    }

    /// Reads the metadata of a file again whose content of the version `missing` was not found, if that is the one on record.
    ///
    /// *Errors*: as [`Metadata::refresh`]; `NotFound` when the file is gone.
    pub async fn look_for_missing(&self, inode: u64, missing: &[u8]) -> Result<()> {
        let target = Target { target: Some(target::Target::Inode(inode)) };
        if self.lookup(&target).await?.version_token != missing {
            return Ok(());
        }
        if !self.handle.is_leader() {
            return Err(self.handle.not_leader());
        }
        self.look_again(&target).await
    }

    /// A page of a directory after the name `after`; `limit` 0 for the most.
    ///
    /// *Errors*: as [`Metadata::lookup`].
    pub async fn list(&self, target: &Target, after: &[u8], limit: usize) -> Result<Page> {
        let page = self.page(target, after, limit).await?;
        if !self.await_ends(page.entries.iter().filter_map(|entry| entry.attr.as_ref())).await? {
            return Ok(page);
        }
        self.page(target, after, limit).await
    }

    /// As [`Metadata::list`], as far as is recorded.
    async fn page(&self, target: &Target, after: &[u8], limit: usize) -> Result<Page> {
        // Further pages go on with what the first one found.
        if after.is_empty() {
            let directory = self.find(target).await?;
            let store = self.handle.read().await?;
            if directory.r#type() == FileType::Directory
                && let Some(need) = query::relist_need(&store.view(), directory.inode)?
                && !self.loads.is_fresh(&need)
            {
                match self.loads.load(need).await {
                    Err(error) if error.kind == ErrorKind::NoSpace => {}
                    done => done?,
                }
            }
        }
        let mut loaded = None;
        loop {
            let store = self.handle.read().await?;
            let need = match query::list_or_load(&store.view(), target, after, limit)? {
                ListStep::Page { directory, entries, end } => return Ok(Page { directory, entries, end }),
                ListStep::Absent(refusal) => return Err(refusal.into()),
                ListStep::NeedsLoad(need) if loaded.as_ref() == Some(&need) => {
                    return Err(Error::unavailable("the directory changes faster than it can be read: try again"));
                }
                ListStep::NeedsLoad(need) => need,
            };
            self.loads.load(need.clone()).await?;
            loaded = Some(need);
        }
    }

    /// Where the bytes of a file come from; none outside any mount.
    ///
    /// *Errors*: `NotFound`, `IsADirectory`.
    pub async fn layout(&self, inode: u64) -> Result<(Attr, Option<FileSource>)> {
        let attr = self.lookup(&Target { target: Some(target::Target::Inode(inode)) }).await?;
        if attr.r#type() == FileType::Directory {
            return Err(Error::new(ErrorKind::IsADirectory, format!("inode {inode} is a directory")));
        }
        if attr.mount_id == 0 {
            return Ok((attr, None));
        }
        let store = self.handle.read().await?;
        let (_, path) = query::ufs_path(&store.view(), inode)?;
        let source = source_of(&attr, path);
        Ok((attr, Some(source)))
    }
}
