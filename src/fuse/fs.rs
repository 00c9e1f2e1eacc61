//! The semantics of the file system, independent of the kernel interface: names, attributes, listings and reads, also
//! while no master answers. Opens are in `open`; changes are in `namespace_ops`, `attributes` and `write`.
//!
//! Cached attributes and names are at most `fuse.attr-ttl` old. While no master answers, cached ones are used for at
//! most `fuse.offline-max-staleness`; a request for anything that is not cached waits.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use jindofs_proto::v1::{Attr, Entry, FileType, Target};

use crate::client::layout_cache::LayoutCache;
use crate::client::mounts::Mounts;
use crate::client::namespace::{Namespace, at_entry, at_inode};
use crate::client::reader::Reader;
use crate::client::{Batcher, OpenFile, Writer};
use crate::config::FuseConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::rpc::channel::MasterChannel;
use crate::runtime::lock;
use crate::types::ROOT_INODE;
use crate::ufs::Registry;

use super::dircache::{CachedName, DirCache};
use super::directory::Directory;
use super::handles::{FileHandle, Handles};
use super::inodes::{Inodes, Known};
use super::invalidation::Invalidation;
use super::kernel_cache::KernelCache;
use super::last_close::LastCloses;
use super::locks::Locks;
use super::nodes::{Nodes, inode_of};
use super::open::StaleOpens;
use super::pages::PageDrops;
use super::pending_commits::PendingCommits;
use super::pending_creates::PendingCreates;
use super::space::Spaces;
use super::staging::Staging;

/// Timeout of a request to the masters that a cached answer can replace.
const FAST_TIMEOUT: Duration = Duration::from_secs(2);
/// Most sources that one read tries, if each is replaced during the read.
const MOVES: usize = 4;
/// Pause between two checks whether the masters answer again.
const PROBE: Duration = Duration::from_millis(500);

/// The file system of one mount.
pub(super) struct Fs {
    pub(super) channel: MasterChannel,
    pub(super) client: Arc<Namespace>,
    pub(super) fast_client: Namespace,
    pub(super) mounts: Arc<Mounts>,
    pub(super) reader: Arc<Reader>,
    pub(super) batcher: Arc<Batcher>,
    pub(super) writer: Writer,
    /// Mutations whose commit is pending.
    pub(super) pending_creates: PendingCreates,
    pub(super) pending_commits: PendingCommits,
    pub(super) last_closes: LastCloses,
    pub(super) inodes: Inodes,
    pub(super) nodes: Nodes,
    pub(super) kernel: KernelCache,
    pub(super) page_drops: PageDrops,
    pub(super) invalidation: Invalidation,
    pub(super) stale_opens: StaleOpens,
    pub(super) listings: DirCache,
    pub(super) layouts: LayoutCache,
    pub(super) handles: Handles,
    pub(super) locks: Locks,
    pub(super) spaces: Spaces,
    pub(super) staging: Staging,
    /// False for a read-only mount, which never stages anything.
    pub(super) writable: bool,
    pub(super) ttl: Duration,
    staleness: Duration,
    pub(super) direct_min: u64,
    probing: AtomicBool,
}

impl Fs {
    pub(super) fn new(
        config: &FuseConfig,
        channel: MasterChannel,
        mounts: Arc<Mounts>,
        reader: Arc<Reader>,
    ) -> Arc<Fs> {
        let client = Arc::new(Namespace::with_channel(channel.clone()));
        Arc::new_cyclic(|this: &Weak<Fs>| {
            let batcher = batcher(&client, this);
            Fs {
                writer: Writer::new(client.clone(), batcher.clone(), mounts.clone(), Registry::default()),
                batcher,
                pending_creates: PendingCreates::default(),
                pending_commits: PendingCommits::default(),
                last_closes: LastCloses::default(),
                client,
                fast_client: Namespace::with_channel(channel.with_timeout(FAST_TIMEOUT.min(config.client.rpc_timeout))),
                channel,
                mounts,
                reader,
                inodes: Inodes::new(),
                nodes: Nodes::default(),
                kernel: KernelCache::default(),
                page_drops: PageDrops::default(),
                // A writable mount asks a master at each open, and would receive its own changes as invalidations.
                invalidation: Invalidation::new(!config.writable && !config.attr_ttl.is_zero()),
                stale_opens: StaleOpens::default(),
                listings: DirCache::new(),
                layouts: LayoutCache::default(),
                handles: Handles::new(),
                locks: Locks::new(config),
                spaces: Spaces::default(),
                staging: Staging::new(config.staging_dir.clone(), config.staging_bytes),
                writable: config.writable,
                ttl: config.attr_ttl,
                staleness: config.offline_max_staleness,
                direct_min: config.direct_io_min_size,
                probing: AtomicBool::new(false),
            }
        })
    }

    /// True while no master answers.
    pub(super) fn masters_fail(&self) -> bool {
        self.channel.failing_since().is_some()
    }

    /// Asks a master. While none answers, the cached attributes `known` are returned.
    async fn ask(self: &Arc<Self>, target: Target, known: Option<Known>) -> Result<Known> {
        let asked = Instant::now();
        let Some(known) = known.filter(|known| known.since.elapsed() < self.staleness) else {
            return Ok(Known::new(self.client.lookup(target).await?, asked));
        };
        if self.channel.failing_since().is_some_and(|since| since.elapsed() > FAST_TIMEOUT) {
            self.look_for_masters();
            return Ok(known);
        }
        match self.fast_client.lookup(target).await {
            Ok(attr) => Ok(Known::new(attr, asked)),
            Err(error) if error.is_retryable() => {
                tracing::debug!(%error, inode = known.attr.inode, "no master answers, what is known serves");
                self.look_for_masters();
                Ok(known)
            }
            Err(error) => Err(error),
        }
    }

    /// Probes the masters in the background: while requests are served from the cache, nothing else would detect that
    /// the masters are back.
    fn look_for_masters(self: &Arc<Self>) {
        if self.probing.swap(true, Ordering::AcqRel) {
            return;
        }
        let this = self.clone();
        tokio::spawn(async move {
            while this.channel.failing_since().is_some() {
                if this.fast_client.lookup(at_inode(ROOT_INODE)).await.is_err() {
                    tokio::time::sleep(PROBE).await;
                }
            }
            this.probing.store(false, Ordering::Release);
        });
    }

    /// Answers a lookup from the cache, if possible; `Err` means that the name is absent. A writable mount does not
    /// cache absent names: an open must find a file that another mount has created and closed before.
    pub(super) fn lookup_now(&self, parent: u64, name: &[u8]) -> Option<Result<Known, ()>> {
        if let Some(inode) = self.pending_creates.named(parent, name) {
            return self.inodes.get(inode).map(Ok);
        }
        // Processes that lock files of a directory must see its current names.
        if self.locks.are_names_watched(parent) {
            return None;
        }
        let is_current = |since| self.invalidation.is_name_current(parent, name, since);
        match self.listings.get(parent, name, self.ttl) {
            CachedName::Entry(known) if is_current(known.since) && self.invalidation.is_current(&known) => {
                Some(Ok(*known))
            }
            CachedName::Absent(since) if !self.writable && is_current(since) => Some(Err(())),
            _ => None,
        }
    }

    /// Looks up the entry `name` of a directory.
    pub(super) async fn lookup(self: &Arc<Self>, parent: u64, name: &[u8]) -> Result<Known> {
        if self.listings.note_miss(parent, self.ttl) {
            let this = self.clone();
            tokio::spawn(async move { this.remember_listing(parent).await });
        }
        let asked = self.ask(at_entry(parent, name), self.inodes.get_named(parent, name)).await;
        match asked {
            Err(error) if error.kind == ErrorKind::Stale => Err(self.gone_directory(parent).await),
            Ok(known) => {
                self.follow_by_name(&known.attr).await;
                Ok(known)
            }
            Err(error) => Err(error),
        }
    }

    /// Lists a whole directory, to serve the next lookups from the cache.
    async fn remember_listing(&self, directory: u64) {
        self.flush_pending(directory).await;
        let since = self.listings.begin(directory);
        let add = |page: &[Entry], end| {
            self.listings.add(directory, since, page, end);
            !self.listings.is_full(directory)
        };
        self.read_all(directory, add).await;
        self.listings.end(directory, since);
    }

    /// Lists a directory for as long as `add` returns true; `add` is told whether a page is the last one.
    async fn read_all(&self, directory: u64, add: impl Fn(&[Entry], bool) -> bool) {
        let mut after = Bytes::new();
        loop {
            let Ok(page) = self.fast_client.list_page(at_inode(directory), after, 0).await else { return };
            let end = page.end || page.entries.is_empty();
            after = page.entries.last().map(|last| last.name.clone()).unwrap_or_default();
            if !add(&page.entries, end) || end {
                return;
            }
        }
    }

    /// Attributes from the cache, if they are fresh.
    pub(super) fn attr_now(&self, inode: u64) -> Option<Known> {
        let is_usable = |known: &Known| known.fresh_for(self.ttl).is_some() && self.invalidation.is_current(known);
        self.inodes.get(inode).filter(is_usable)
    }

    /// Attributes of an inode.
    pub(super) async fn attr(self: &Arc<Self>, inode: u64) -> Result<Known> {
        match self.attr_now(inode) {
            Some(known) => Ok(known),
            None => self.ask_attr(inode).await,
        }
    }

    /// As [`Fs::attr`], always from a master.
    pub(super) async fn ask_attr(self: &Arc<Self>, inode: u64) -> Result<Known> {
        match self.ask_attr_of_name(inode).await {
            // The name is gone, but the file is open here.
            Err(error) if error.kind == ErrorKind::NotFound && self.nodes.is_inode_open(inode) => {
                self.inodes.get(inode).ok_or(error)
            }
            asked => asked,
        }
    }

    /// As [`Fs::ask_attr`], for an inode that must have a name.
    pub(super) async fn ask_attr_of_name(self: &Arc<Self>, inode: u64) -> Result<Known> {
        let known = self.inodes.get(inode);
        if let Some(known) = known.as_ref().filter(|_| self.staging.is_unlinked(inode)) {
            return Ok(known.clone());
        }
        if let Some(pending) = self.pending_creates.get(inode) {
            // The close of the file reports why the create failed.
            let _ = self.flush_create(&pending).await;
        }
        match self.ask(at_inode(inode), known.clone()).await {
            Ok(news) => {
                self.inodes.renew(news.clone());
                Ok(self.newest(news))
            }
            Err(error) => Err(error),
        }
    }

    /// How long the kernel may cache a name in a directory.
    pub(super) fn ttl_of_name(&self, parent: u64, known: &Known) -> Duration {
        if self.locks.are_names_watched(parent) { Duration::ZERO } else { self.ttl_of(known) }
    }

    /// As [`Fs::ttl_of_name`], for a name that may have changed since it was asked for.
    pub(super) fn ttl_of_entry(&self, parent: u64, name: &[u8], known: &Known) -> Duration {
        let is_current =
            self.invalidation.is_name_current(parent, name, known.since) && self.is_expired_by_events(parent);
        if is_current { self.ttl_of_name(parent, known) } else { Duration::ZERO }
    }

    /// How long the kernel may cache attributes. While no master answers the TTL is short, and the kernel gets the same
    /// answer again.
    pub(super) fn ttl_of(&self, known: &Known) -> Duration {
        // A view that differs from that of the masters changes without an invalidation.
        if known.passing
            || self.staging.has_private_view(known.attr.inode)
            || self.pending_creates.get(known.attr.inode).is_some()
        {
            return Duration::ZERO;
        }
        // A master reported a change while the answer was on its way.
        if !self.invalidation.is_current(known) {
            return Duration::ZERO;
        }
        known.fresh_for(self.ttl).unwrap_or(PROBE.min(self.ttl))
    }

    /// Reads up to `size` bytes of the version that a node stands for; fewer at the end of the file. All bytes are of
    /// one version: if that is gone, they are read again from the version that the node stands for then.
    ///
    /// *Errors*: `Stale` for a node that stays with a version which is gone; those of reading.
    pub(super) async fn read(
        self: &Arc<Self>,
        node: u64,
        file: &Arc<OpenFile>,
        offset: u64,
        size: u32,
    ) -> Result<Bytes> {
        let mut file = file.clone();
        let mut moves = 0;
        loop {
            let read = self.reader.read(&file, offset, u64::from(size)).await;
            if moves == MOVES || !read.as_ref().is_err_and(|error| error.kind == ErrorKind::Stale) {
                return read;
            }
            moves += 1;
            // The next open sees the new version.
            self.found_stale(&file.source);
            let instead = self.source_instead(node, &file).await;
            if let Some(staged) = self.staging.ready_for(node) {
                return staged.read(offset, size).map(Bytes::from);
            }
            let Some(instead) = instead else { return read };
            file = instead;
        }
    }

    /// Records a read, and prefetches for a sequential reader.
    pub(super) fn read_ahead(
        self: &Arc<Self>,
        handle: &FileHandle,
        file: &Arc<OpenFile>,
        offset: u64,
        length: u64,
        on: &tokio::runtime::Handle,
    ) {
        if file.source.mount_id == 0 || file.is_local() {
            return;
        }
        let ahead = {
            let mut readahead = lock(&handle.readahead);
            readahead.note(offset, length, file.source.length)
        };
        if let Some((from, bytes)) = ahead {
            let (this, file) = (self.clone(), file.clone());
            on.spawn(async move { this.reader.prefetch(&file, from, bytes).await });
        }
    }

    /// The kernel drops `lookups` references to a node.
    pub(super) fn forget(&self, node: u64, lookups: u64) {
        self.nodes.forget(node, lookups);
        if self.inodes.forget(inode_of(node), lookups) {
            self.nodes.forget_inode(inode_of(node));
        }
    }

    /// Counts bytes that were passed to the kernel without a copy.
    pub(super) fn count_local(&self, bytes: u64) {
        self.reader.count_local(bytes);
    }

    /// The newest attributes that are known.
    pub(super) fn newest(&self, known: Known) -> Known {
        // A read-only mount receives answers in the order of time, or is as consistent as if it did.
        if self.writable { self.inodes.newest(known) } else { known }
    }

    /// Attributes for opening a directory. A writable mount asks a master, so that the listing is current.
    async fn directory_to_open(self: &Arc<Self>, inode: u64) -> Result<Attr> {
        if !self.writable {
            return Ok(self.attr(inode).await?.attr);
        }
        let attr = self.ask_attr_of_name(inode).await.map(|known| known.attr).and_then(with_name);
        match attr {
            Err(error) if error.kind == ErrorKind::NotFound => Err(self.gone_directory(inode).await),
            attr => attr,
        }
    }

    /// Opens a directory. Returns the handle, and true if the kernel may use the listing it has cached.
    pub(super) async fn open_directory(self: &Arc<Self>, inode: u64) -> Result<(u64, bool)> {
        let attr = self.directory_to_open(inode).await?;
        if attr.r#type() != FileType::Directory {
            return Err(Error::new(ErrorKind::NotADirectory, format!("inode {inode} is not a directory")));
        }
        let listed = self.inodes.fresh_listing(&attr, self.ttl);
        let keep = listed.is_some_and(|since| self.invalidation.is_listing_current(inode, since))
            && !self.locks.are_names_watched(inode);
        Ok((self.handles.add_directory(Directory::new(inode, attr.parent, attr.version))?, keep))
    }

    /// Fetches the pages that are needed to list from `offset` on. Returns true if a page was fetched.
    pub(super) async fn fetch_entries(&self, directory: &Directory, offset: u64) -> Result<bool> {
        let _one = directory.fetching.lock().await;
        self.flush_pending(directory.inode).await;
        let mut fetched = false;
        while let Some(wanted) = directory.wanted(offset) {
            let (asked, changes) = (Instant::now(), self.listings.changes());
            let page = self.client.list_page(at_inode(directory.inode), wanted.after.clone(), 0).await?;
            let end = page.end || page.entries.is_empty();
            if wanted.after.is_empty() {
                self.listings.insert_first_page(directory.inode, (changes, asked), &page.entries, end);
            }
            directory.take(&wanted, page.entries, end, asked);
            fetched = true;
        }
        Ok(fetched)
    }
}

/// Attributes of a directory, unless it was removed and only waits to be purged.
///
/// *Errors*: `NotFound`.
pub(super) fn with_name(directory: Attr) -> Result<Attr> {
    if directory.parent == 0 && directory.inode != ROOT_INODE {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("the directory with inode {} was removed", directory.inode),
        ));
    }
    Ok(directory)
}

/// The batcher for the small mutations of this mount.
fn batcher(client: &Arc<Namespace>, fs: &Weak<Fs>) -> Arc<Batcher> {
    let fs = fs.clone();
    let observer = move |directory, asked| {
        if let Some(fs) = fs.upgrade() {
            fs.inodes.renew(Known::new(directory, asked));
        }
    };
    Batcher::new(client.clone(), Some(Box::new(observer)))
}
