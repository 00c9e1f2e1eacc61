//! File locks that hold across all mounts: the kernel forwards the requests, the masters decide.
//!
//! `flock` and `fcntl` locks look the same here, as ranges with an owner, because fuser does not distinguish them. So
//! they exclude each other, as on NFS. What was written under a lock is stored before the lock is released, and the
//! next holder gets fresh attributes.

mod owners;
mod waiter;
mod watched;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{FileHandle, INodeNo, LockOwner, ReplyLock};
use jindofs_proto::v1::{Lock, LockType};

use crate::client::locks::Asked;
use crate::config::FuseConfig;
use crate::error::{Error, ErrorKind, Result};

use super::errno::Errno;
use super::fs::Fs;
use super::nodes::inode_of;

use owners::{Admission, Departure, LockOwners, Owner};
use waiter::Waiter;
use watched::WatchedNames;

/// Last byte of a file of any length.
const END: u64 = i64::MAX as u64;
/// How long a close waits until the masters have released its locks.
const CLOSE: Duration = Duration::from_secs(5);
/// Pause before the release is retried.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// How long to wait for the RELEASE of a handle that was flushed. The kernel sends FLUSH and RELEASE one after the
/// other at the last close, and only the FLUSH when a duplicate is closed.
const RELEASE: Duration = Duration::from_millis(50);
/// Most retries of a lock request whose conflicting owners on this mount have closed meanwhile.
const DEPARTURES_MAX: usize = 8;
/// Most retries of a lock request whose session ends concurrently.
const SESSIONS: usize = 3;

/// The locks of one mount.
#[derive(Debug)]
pub(super) struct Locks {
    shared: bool,
    wait_max: Duration,
    held: LockOwners,
    names: WatchedNames,
}

impl Locks {
    pub(super) fn new(config: &FuseConfig) -> Locks {
        Locks {
            shared: config.shared_locks,
            wait_max: config.lock_wait_max,
            held: LockOwners::default(),
            names: WatchedNames::default(),
        }
    }

    /// False if the kernel keeps the locks local.
    pub(super) fn are_shared(&self) -> bool {
        self.shared
    }

    /// True if an owner that used one of these handles may hold a lock.
    pub(super) fn are_held_through(&self, handles: &[u64]) -> bool {
        self.shared && self.held.holds_through(handles)
    }

    /// True for a directory in which files were locked recently: its names are looked up at each use.
    pub(super) fn are_names_watched(&self, directory: u64) -> bool {
        self.shared && self.names.contains(directory)
    }

    /// True if a close by `owner` may have to release a lock.
    pub(super) fn concern(&self, inode: u64, owner: u64) -> bool {
        self.shared && self.held.knows((inode, owner))
    }

    /// A handle, or a duplicate of it, was closed.
    pub(super) fn flush(&self, number: u64) {
        if self.shared {
            self.held.flush(number);
        }
    }

    /// The last close of a handle: returns the owners whose locks end with it.
    pub(super) fn release(&self, number: u64) -> Vec<Owner> {
        if self.shared { self.held.release(number) } else { Vec::new() }
    }

    /// Waits for an owner of this mount that is about to release its lock. Returns false for an owner that is not.
    async fn await_departure(&self, owner: Owner) -> bool {
        let started = Instant::now();
        loop {
            // Created before the check, so that no departure is missed.
            let next = self.held.next_departure();
            let wait = match self.held.departure(owner) {
                Departure::Absent => return true,
                Departure::None => return false,
                Departure::Flushed => RELEASE,
                Departure::Released => CLOSE,
            };
            let left = wait.saturating_sub(started.elapsed());
            if tokio::time::timeout(left, next).await.is_err() {
                if self.held.departure(owner) == Departure::Flushed {
                    self.held.stays(owner);
                }
                return false;
            }
        }
    }

    fn lost(&self, inodes: &BTreeSet<u64>) {
        if !inodes.is_empty() {
            tracing::error!(?inodes, "locks are lost with the session: others may have them by now");
        }
    }
}

/// A lock request of the kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    pub(super) inode: INodeNo,
    pub(super) number: FileHandle,
    pub(super) owner: LockOwner,
    pub(super) start: u64,
    pub(super) end: u64,
    /// `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
    pub(super) kind: i32,
    pub(super) pid: u32,
}

impl Request {
    /// The locked file.
    fn file(&self) -> u64 {
        inode_of(self.inode.0)
    }

    fn owner(&self) -> Owner {
        (self.file(), self.owner.0)
    }

    fn lock(&self) -> Result<Lock, Errno> {
        let kind = match self.kind {
            libc::F_RDLCK => LockType::Shared,
            libc::F_WRLCK => LockType::Exclusive,
            libc::F_UNLCK => LockType::None,
            _ => return Err(Errno(libc::EINVAL)),
        };
        let Request { start, end, pid, .. } = *self;
        Ok(Lock { r#type: kind.into(), start, end, owner: self.owner.0, pid, ..Lock::default() })
    }
}

fn refused(what: &str, inode: u64, error: &Error) -> Errno {
    match error.kind {
        ErrorKind::NoSpace => Errno::NO_LOCKS,
        // The file was removed: a lock on it would exclude nobody.
        ErrorKind::NotFound => Errno::from(ErrorKind::Stale),
        _ => {
            tracing::warn!(what, inode, %error, "a lock is refused");
            Errno::from(error)
        }
    }
}

impl Fs {
    /// Takes or releases a lock. `waits` is the thread that waits for it, if the request is blocking.
    ///
    /// *Errors*: `EAGAIN` if another owner holds it, `ENOLCK` at a limit, `ESTALE` for a file that is gone, `EIO` for
    /// an owner that has lost its locks; those of [`Waiter::pause`].
    pub(super) async fn set_lock(self: &Arc<Self>, request: Request, waits: Option<u32>) -> Result<(), Errno> {
        let lock = request.lock()?;
        if lock.r#type() == LockType::None {
            return self.unlock(request, lock).await;
        }
        let (had, grants) = (self.locks.held.keeps(request.owner()), self.locks.held.grants(request.owner()));
        let mut waiter = waits.map(|thread| Waiter::new(thread, self.locks.wait_max));
        let mut departures = 0;
        while let Some(holder) = self.try_lock(request, &lock).await? {
            if waiter.is_none()
                && departures < DEPARTURES_MAX
                && let Some(holder) = holder
                && self.locks.await_departure(holder).await
            {
                departures += 1;
                continue;
            }
            match &mut waiter {
                Some(waiter) => waiter.pause().await?,
                None => return Err(Errno::WOULD_BLOCK),
            }
        }
        if let Err(error) = self.make_current(request.inode.0).await {
            // A lock that it held before stays until its close.
            if !had {
                let unlocked = Lock { r#type: LockType::None.into(), ..lock };
                if self.unlock(request, unlocked).await.is_ok() {
                    self.locks.held.freed(request.owner(), grants + 1);
                }
            }
            return Err(refused("lock", request.file(), &error));
        }
        Ok(())
    }

    /// Makes everything visible that other clients stored before they released the lock: the content through each
    /// handle of the node, and the names in its directory.
    ///
    /// *Errors*: `Stale` for a file that was replaced by another one; those of finding the newest version, of
    /// [`Fs::take_unsaved_to`], and of [`Fs::give_way`].
    async fn make_current(self: &Arc<Self>, node: u64) -> Result<()> {
        let inode = inode_of(node);
        self.watch_names_beside(inode).await?;
        let known_as = self.resolved_inode_now(inode);
        for inode in BTreeSet::from([inode, known_as]) {
            self.inodes.changed(inode);
            self.kernel.expire_attributes(inode);
        }
        if known_as != inode || self.is_uncommitted(inode) {
            return Ok(());
        }
        self.kernel.expire_attributes(node);
        let newest = self.attr(inode).await?.attr;
        if let Some(staged) = self.staging.ready_for(node).filter(|staged| staged.has_private_view()) {
            self.take_unsaved_to(&staged, &newest).await?;
            if staged.has_private_view() {
                return Ok(());
            }
        }
        self.give_way(&newest, true).await?;
        if self.may_move(node, &newest) {
            self.move_node(node, &newest).await?;
        }
        self.stale_pages_dropped(node, self.channel.timeout()).await?;
        match self.is_behind(node, &newest) {
            true => Err(Error::new(ErrorKind::Stale, format!("inode {inode} was replaced since it was opened"))),
            false => Ok(()),
        }
    }

    /// Makes the kernel look up the names of the file's directory at each use, for a while.
    async fn watch_names_beside(self: &Arc<Self>, inode: u64) -> Result<()> {
        let Some((directory, _)) = self.inodes.name_of(inode) else { return Ok(()) };
        self.listings.changed(directory);
        if self.locks.names.goes_on(directory) {
            return Ok(());
        }
        let this = self.clone();
        let expired = tokio::task::spawn_blocking(move || {
            let names = this.inodes.names_in(directory);
            this.kernel.expire_names(directory, names.iter().map(|name| &**name));
        });
        expired.await.map_err(|error| Error::internal(format!("expiring names: {error}")))
    }

    /// Returns `None` if the lock is granted; otherwise the conflicting owner, if it belongs to this mount.
    async fn try_lock(&self, request: Request, lock: &Lock) -> Result<Option<Option<Owner>>, Errno> {
        let owner = request.owner();
        let inode = self.resolve_inode(owner.0).await.map_err(|error| refused("lock", owner.0, &error))?;
        for _ in 0..SESSIONS {
            match self.locks.held.ask(owner, request.number.0) {
                Admission::Free => {}
                Admission::Busy => return Ok(Some(Some(owner))),
                Admission::Lost => return Err(Errno::LOST),
            }
            match self.client.set_lock(inode, lock.clone()).await {
                Ok(Asked::Granted(session)) => {
                    self.locks.lost(&self.locks.held.granted(owner, request.number.0, &session));
                    return Ok(None);
                }
                Ok(Asked::Held(holder)) => {
                    let is_ours = self.locks.held.is_session(&holder.client_id);
                    return Ok(Some(is_ours.then_some((owner.0, holder.owner))));
                }
                Err(error) if error.kind == ErrorKind::SessionExpired => self.look_at_locks().await,
                Err(error) => {
                    if !matches!(error.kind, ErrorKind::NoSpace | ErrorKind::NotFound) {
                        self.locks.held.doubt(owner, request.number.0);
                    }
                    return Err(refused("lock", owner.0, &error));
                }
            }
        }
        Err(Errno::LOST)
    }

    async fn unlock(self: &Arc<Self>, request: Request, lock: Lock) -> Result<(), Errno> {
        let (owner, is_whole) = (request.owner(), (lock.start, lock.end) == (0, END));
        if is_whole {
            self.locks.held.forgive(owner);
        }
        if !self.locks.held.has(owner) {
            return Ok(());
        }
        // Read before the request: a grant in the meantime may come after this release.
        let grants = self.locks.held.grants(owner);
        let inode = self.resolve_inode(owner.0).await.unwrap_or(owner.0);
        for inode in BTreeSet::from([owner.0, inode]) {
            self.store_before_others(inode).await;
        }
        match self.client.set_lock(inode, lock).await {
            Err(error) if error.kind != ErrorKind::SessionExpired => return Err(refused("unlock", owner.0, &error)),
            _ if is_whole => self.locks.held.freed(owner, grants),
            _ => {}
        }
        Ok(())
    }

    /// Stores what was written under a lock before the lock is released. A failure is reported by the close.
    async fn store_before_others(self: &Arc<Self>, inode: u64) {
        if let Err(error) = self.sync(inode).await {
            tracing::warn!(inode, %error, "what was written under a lock is not stored when the lock is given up");
        }
    }

    /// As [`Fs::give_up`], after what was changed under the locks is stored: in one attempt, since others wait for the
    /// locks. A file that is only new looks the same to the next holder, stored or not.
    pub(super) async fn give_up_stored(self: &Arc<Self>, owner: Owner, known: u64) {
        for inode in BTreeSet::from([owner.0, known]) {
            if self.staging.ready(inode).is_some_and(|staged| staged.is_due() && !staged.is_new()) {
                self.store_before_others(inode).await;
            }
        }
        self.give_up(owner, known).await;
    }

    /// Releases all locks of an owner on a file. If no master answers, the release is retried in the background.
    /// `inode` is the inode that the masters know.
    pub(super) async fn give_up(self: &Arc<Self>, owner: Owner, inode: u64) {
        if !self.locks.held.leave(owner) {
            return;
        }
        let this = self.clone();
        let told = tokio::spawn(async move {
            let mut lock = Lock { start: 0, end: END, owner: owner.1, ..Lock::default() };
            lock.set_type(LockType::None);
            while let Err(error) = this.client.set_lock(inode, lock.clone()).await {
                if error.kind == ErrorKind::SessionExpired {
                    break;
                }
                tracing::warn!(inode, %error, "a lock is not given up yet");
                tokio::time::sleep(RETRY_DELAY).await;
            }
            this.locks.held.left(owner);
        });
        if tokio::time::timeout(CLOSE, told).await.is_err() {
            tracing::warn!(inode = owner.0, "a file is closed whose lock is given up when a master answers");
        }
    }

    /// Detects that locks were lost with their session.
    pub(super) async fn look_at_locks(&self) {
        if self.locks.shared {
            self.locks.lost(&self.locks.held.lives(self.client.session().id().await.as_ref()));
        }
    }

    /// Answers which lock conflicts (`F_GETLK`).
    pub(super) async fn tell_lock(&self, request: Request, reply: ReplyLock) {
        let asked = match request.lock() {
            Ok(lock) => match self.resolve_inode(request.file()).await {
                Ok(inode) => self.client.lock_holder(inode, lock).await,
                Err(error) => Err(error),
            },
            Err(number) => return reply.error(super::reply::errno(number)),
        };
        match asked {
            Ok(None) => reply.locked(request.start, request.end, libc::F_UNLCK, 0),
            Ok(Some(holder)) => {
                let kind = if holder.r#type() == LockType::Shared { libc::F_RDLCK } else { libc::F_WRLCK };
                // A process of another host has no number here.
                let ours = self.client.session().id().await.is_some_and(|own| own == holder.client_id);
                reply.locked(holder.start, holder.end, kind, if ours { holder.pid } else { 0 });
            }
            Err(error) => reply.error(super::reply::errno(refused("getlk", request.file(), &error))),
        }
    }
}
