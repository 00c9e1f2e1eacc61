//! From the under-storage into the log: listings and single entries, each asked for once at a time.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use jindofs_proto::store::v1::command::Command as Kind;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::store::v1::{Command, LoadEntries, UfsEntry};
use jindofs_proto::v1::FileType;
use lru::LruCache;
use metrics::counter;
use prost::Message;

use crate::error::{Error, ErrorKind, Result};
use crate::master::raft::Handle;
use crate::master::state::query::LoadNeed;
use crate::master::wording::to_error;
use crate::runtime::lock;
use crate::types::LIST_PAGE_MAX;
use crate::ufs;

/// Most bytes of entries in one command: half of what a command may have.
const PAGE_BYTES_MAX: usize = crate::types::COMMAND_BYTES_MAX / 2;

type Key = (u64, Option<Bytes>);
type Running = Shared<BoxFuture<'static, Result<()>>>;

/// Most names and directories of which is remembered when they were read. One that is forgotten is read again.
const READS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(99_999);

/// Looks at one name, each of which was overtaken by a listing, before the caller is told so.
const ATTEMPTS_MAX: u32 = 8;

/// Where the youngest listing began that is taken into a directory, shared by the loads of it that are under way. A listing
/// takes tombstones away: what was looked up before it began may be a name that has gone since, and is looked up again.
type Youngest = tokio::sync::RwLock<u64>;

/// Loads under way on this master.
pub(super) struct Loads {
    handle: Handle,
    storage: Arc<ufs::Registry>,
    /// With the time when each began.
    running: Mutex<HashMap<Key, (Instant, Running)>>,
    directories: Mutex<HashMap<u64, Weak<Youngest>>>,
    /// When the last load that has succeeded on this master began, of names and directories.
    reads: Mutex<LruCache<Key, Instant>>,
}

impl std::fmt::Debug for Loads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loads").finish_non_exhaustive()
    }
}

impl Loads {
    pub(super) fn new(handle: Handle, storage: Arc<ufs::Registry>) -> Loads {
        let reads = Mutex::new(LruCache::sparse(READS));
        Loads { handle, storage, running: Mutex::default(), directories: Mutex::default(), reads }
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Key, (Instant, Running)>> {
        lock(&self.running)
    }

    fn reads(&self) -> MutexGuard<'_, LruCache<Key, Instant>> {
        lock(&self.reads)
    }

    /// True if what is known was read recently enough by this master.
    pub(super) fn is_fresh(&self, need: &LoadNeed) -> bool {
        let Some(max_age) = need.max_age.filter(|max_age| !max_age.is_zero()) else { return false };
        let mut reads = self.reads();
        let mut is_recent = |key: &Key| reads.get(key).is_some_and(|read| read.elapsed() < max_age);
        is_recent(&(need.directory, need.name.clone())) || need.name.is_some() && is_recent(&(need.directory, None))
    }

    /// As [`Loads::load`], by a load that began at `since` or later: an older one may have asked before the caller knew of a
    /// change. A caller that repeats a request after a timeout gives the same `since`, and joins the load that goes on.
    ///
    /// *Errors*: as [`Loads::load`].
    pub(super) async fn load_since(self: &Arc<Self>, need: LoadNeed, since: Instant) -> Result<()> {
        let key = (need.directory, need.name.clone());
        if self.reads().get(&key).is_some_and(|begun| *begun >= since) {
            return Ok(());
        }
        let earlier = self.running().get(&key).cloned();
        if let Some((begun, running)) = earlier {
            let done = running.await;
            if begun >= since {
                return done;
            }
            // Its error is that of those who began it; ours comes from a load of our own.
        }
        self.load(need).await
    }

    /// Loads what is needed; whoever needs the same waits for the same load, which goes on if they give up.
    ///
    /// *Errors*: `NotLeader` on a follower; the under-storage's; those of a proposal.
    pub(super) async fn load(self: &Arc<Self>, need: LoadNeed) -> Result<()> {
        if !self.handle.is_leader() {
            return Err(self.handle.not_leader());
        }
        let key = (need.directory, need.name.clone());
        let running = {
            let mut all = self.running();
            all.entry(key.clone()).or_insert_with(|| (Instant::now(), self.start(key, need))).1.clone()
        };
        running.await
    }

    fn start(self: &Arc<Self>, key: Key, need: LoadNeed) -> Running {
        let this = self.clone();
        let task = tokio::spawn(async move {
            let youngest = this.youngest(need.directory);
            let done = this.run(&need, &youngest).await;
            drop(youngest);
            this.forget(need.directory);
            this.running().remove(&key);
            done
        });
        let joined = task.map(|joined| joined.unwrap_or_else(|error| Err(Error::internal(format!("a load: {error}")))));
        joined.boxed().shared()
    }

    fn youngest(&self, directory: u64) -> Arc<Youngest> {
        let mut all = lock(&self.directories);
        let known = all.get(&directory).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let made = Arc::default();
            all.insert(directory, Arc::downgrade(&made));
            made
        })
    }

    fn forget(&self, directory: u64) {
        let mut all = lock(&self.directories);
        if all.get(&directory).is_some_and(|known| known.strong_count() == 0) {
            all.remove(&directory);
        }
    }

    async fn run(&self, need: &LoadNeed, youngest: &Youngest) -> Result<()> {
        let storage = self.storage.open(&need.mount.ufs_uri, &need.mount.options)?;
        let (term, begun) = (*self.handle.leadership().borrow(), Instant::now());
        match &need.name {
            Some(name) => self.look(need, name, &*storage, term, youngest).await?,
            None => self.list(need, &*storage, term, youngest).await?,
        }
        // A name of its own: the one that was asked with may be a part of a whole request.
        self.reads().put((need.directory, need.name.as_deref().map(Bytes::copy_from_slice)), begun);
        Ok(())
    }

    /// A load that begins now: whatever is changed from here on is younger than what the under-storage tells us.
    fn blank(&self, need: &LoadNeed) -> LoadEntries {
        LoadEntries {
            directory: need.directory,
            mount_id: need.mount.id,
            sync_start_index: self.handle.applied_index(),
            ..LoadEntries::default()
        }
    }

    async fn look(
        &self,
        need: &LoadNeed,
        name: &Bytes,
        storage: &dyn ufs::Ufs,
        term: Option<u64>,
        youngest: &Youngest,
    ) -> Result<()> {
        let path = if need.path.is_empty() { name.to_vec() } else { [&need.path, &b"/"[..], name].concat() };
        for _ in 0..ATTEMPTS_MAX {
            let blank = self.blank(need);
            counter!("jindofs_master_ufs_stats_total", "mount" => need.mount.id.to_string()).increment(1);
            let found = storage.stat(&path).await.map_err(not_absent)?;
            // Held until it is taken in: a listing waits for it.
            let listed = youngest.read().await;
            if found.is_none() || *listed <= blank.sync_start_index {
                let absent = if found.is_none() { vec![name.clone()] } else { Vec::new() };
                let entries = found.map(convert).into_iter().collect();
                return self.propose(LoadEntries { point: true, entries, absent, ..blank }, term).await;
            }
        }
        Err(Error::unavailable("the directory is listed faster than a name in it is found: try again"))
    }

    async fn list(
        &self,
        need: &LoadNeed,
        storage: &dyn ufs::Ufs,
        term: Option<u64>,
        youngest: &Youngest,
    ) -> Result<()> {
        let blank = self.blank(need);
        let mount = need.mount.id.to_string();
        counter!("jindofs_master_ufs_lists_total", "mount" => mount.clone()).increment(1);
        let listing = storage.list(&need.path).await.map_err(not_absent)?;
        if listing.skipped > 0 {
            counter!("jindofs_master_ufs_skipped_total", "mount" => mount).increment(listing.skipped);
            let path = String::from_utf8_lossy(&need.path);
            tracing::warn!(%path, skipped = listing.skipped, "entries that no path can express are left out");
        }
        *youngest.write().await = blank.sync_start_index;
        let blank = LoadEntries { skipped: listing.skipped, ..blank };
        for page in pages(blank, listing.entries.into_iter().map(convert)) {
            self.propose(page, term).await?;
        }
        Ok(())
    }

    /// Takes entries in that were found in `term`: others may have led since, and have taken tombstones away.
    async fn propose(&self, entries: LoadEntries, term: Option<u64>) -> Result<()> {
        loop {
            if term.is_none() || *self.handle.leadership().borrow() != term {
                return Err(self.handle.not_leader());
            }
            let command = Command { command: Some(Kind::LoadEntries(entries.clone())), ..Command::default() };
            match self.handle.propose(command).await?.outcome {
                Some(Answer::Loaded(loaded)) if loaded.more => {}
                Some(Answer::Refused(refusal)) => return Err(to_error(&refusal)),
                _ => return Ok(()),
            }
        }
    }
}

/// That an under-storage cannot be asked says nothing of a name in it: a reader takes an absent directory for an empty one.
fn not_absent(error: Error) -> Error {
    match error.kind {
        ErrorKind::NotFound | ErrorKind::NotADirectory => Error { kind: ErrorKind::UnderStorage, ..error },
        _ => error,
    }
}

/// Cuts a listing into commands, each within its bounds; the last one completes the directory.
fn pages(blank: LoadEntries, entries: impl Iterator<Item = UfsEntry>) -> Vec<LoadEntries> {
    let mut pages = vec![blank.clone()];
    let mut bytes = 0;
    for entry in entries {
        let size = entry.encoded_len() + 8;
        let Some(page) = pages.last_mut() else { break };
        if page.entries.len() == LIST_PAGE_MAX || bytes + size > PAGE_BYTES_MAX {
            let after = page.entries.last().map(|last| last.name.clone()).unwrap_or_default();
            bytes = 0;
            pages.push(LoadEntries { after, ..blank.clone() });
        }
        bytes += size;
        if let Some(page) = pages.last_mut() {
            page.entries.push(entry);
        }
    }
    if let Some(last) = pages.last_mut() {
        last.complete = true;
    }
    pages
}

/// An entry of the under-storage, as the log takes it.
pub(crate) fn convert(entry: ufs::Entry) -> UfsEntry {
    let mut made = UfsEntry {
        name: entry.name.into(),
        size: entry.size,
        mtime_ns: entry.mtime_ns,
        version_token: entry.token.into(),
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        symlink_target: entry.symlink_target.into(),
        ..UfsEntry::default()
    };
    made.set_type(match entry.kind {
        ufs::Kind::File => FileType::File,
        ufs::Kind::Directory => FileType::Directory,
        ufs::Kind::Symlink => FileType::Symlink,
    });
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_cut_by_count_and_by_bytes_and_every_page_follows_the_one_before() {
        let entries = |count: usize, target: usize| {
            (0..count).map(move |at| UfsEntry {
                name: format!("{at:06}").into_bytes().into(),
                symlink_target: vec![b'x'; target].into(),
                ..UfsEntry::default()
            })
        };
        for (count, target, expected) in [(0, 0, 1), (1000, 0, 1), (1001, 0, 2), (500, 4000, 4)] {
            let made = pages(LoadEntries::default(), entries(count, target));
            assert_eq!(made.len(), expected);
            assert_eq!(made.iter().map(|page| page.entries.len()).sum::<usize>(), count);
            assert!(made.iter().all(|page| page.encoded_len() < crate::types::COMMAND_BYTES_MAX));
            for pair in made.windows(2) {
                assert!(!pair[0].complete && pair[1].after == pair[0].entries[pair[0].entries.len() - 1].name);
            }
            assert!(made[made.len() - 1].complete);
        }
    }
}
