//! Locks that hold among all mounts: the kernel asks, the masters decide.
//!
//! `flock` and `fcntl` come alike, as ranges with an owner: fuser does not say which it was. So they exclude each other, as
//! on NFS. What was written under a lock is stored before the lock is given up, and who gets it sees attributes anew.

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

/// Last byte of a file, however long it gets.
const END: u64 = i64::MAX as u64;
/// How long a close waits for masters to be told what it gives up.
const CLOSE: Duration = Duration::from_secs(5);
/// Pause before they are told again.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// How long the last close of a handle is waited for that was flushed. The kernel sends both one after the other; it
/// sends the first alone when a duplicate is closed.
const RELEASE: Duration = Duration::from_millis(50);
/// How often a lock is asked for anew whose holders here are gone by then.
const DEPARTURES_MAX: usize = 8;
/// How often a lock is asked for anew whose session has ended at this very moment.
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

    /// False if the kernel keeps them to itself.
    pub(super) fn are_shared(&self) -> bool {
        self.shared
    }

    /// True if a lock may be held that was asked for through one of these handles.
    pub(super) fn are_held_through(&self, handles: &[u64]) -> bool {
        self.shared && self.held.holds_through(handles)
    }

    /// True for a directory in which files were locked a moment ago: its names are looked up each time they are used.
    pub(super) fn are_names_watched(&self, directory: u64) -> bool {
        self.shared && self.names.contains(directory)
    }

    /// True if a close by `owner` may have something to give up.
    pub(super) fn concern(&self, inode: u64, owner: u64) -> bool {
        self.shared && self.held.knows((inode, owner))
    }

    /// A handle, or a duplicate of it, is closed.
    pub(super) fn flush(&self, number: u64) {
        if self.shared {
            self.held.flush(number);
        }
    }

    /// The last close of a handle has come: owners whose locks end with it.
    pub(super) fn release(&self, number: u64) -> Vec<Owner> {
        if self.shared { self.held.release(number) } else { Vec::new() }
    }

    /// Waits for an owner of this mount that is about to give up what it has; false for one that is not.
    async fn await_departure(&self, owner: Owner) -> bool {
        let started = Instant::now();
        loop {
            // Made before the look: from here on no departure is missed.
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

/// What the kernel asks for.
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
    /// The file that is locked.
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
        // It was removed, here or elsewhere: a lock on it would keep nobody out.
        ErrorKind::NotFound => Errno::from(ErrorKind::Stale),
        _ => {
            tracing::warn!(what, inode, %error, "a lock is refused");
            Errno::from(error)
        }
    }
}

impl Fs {
    /// Takes or gives up a lock. `waits` is the thread that waits for one, if it wants to.
    ///
    /// *Errors*: `EAGAIN` for one that somebody has, `ENOLCK` at a limit, `ESTALE` for a file that is gone, `EIO` for an owner
    /// that has lost what it had; those of [`Waiter::pause`].
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
            // What it had before is not taken from it: that ends with its close.
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

    /// Who gets a lock sees what was stored before it was given up by others: the content through each handle of the node, and
    /// the names beside it.
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

    /// Has the names of the directory that a file lies in looked up each time they are used, for a while.
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

    /// `None` once it is granted; otherwise who has it, as an owner of this mount if it is one.
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
        // Before the masters are asked: what is granted meanwhile may come after this.
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

    /// Those who get the lock next see what was written under it. A file that cannot be stored is told to who closes it.
    async fn store_before_others(self: &Arc<Self>, inode: u64) {
        if let Err(error) = self.sync(inode).await {
            tracing::warn!(inode, %error, "what was written under a lock is not stored when the lock is given up");
        }
    }

    /// As [`Fs::give_up`], after what was changed under the locks is stored: one attempt, since others wait for them. A file that
    /// is only new is the same for whoever locks it next, stored or not.
    pub(super) async fn give_up_stored(self: &Arc<Self>, owner: Owner, known: u64) {
        for inode in BTreeSet::from([owner.0, known]) {
            if self.staging.ready(inode).is_some_and(|staged| staged.is_due() && !staged.is_new()) {
                self.store_before_others(inode).await;
            }
        }
        self.give_up(owner, known).await;
    }

    /// Gives up all that an owner has locked of a file. When no master answers it goes on behind the caller's back.
    /// `inode` is what the masters know the file by.
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

    /// Notices that locks were lost with their session.
    pub(super) async fn look_at_locks(&self) {
        if self.locks.shared {
            self.locks.lost(&self.locks.held.lives(self.client.session().id().await.as_ref()));
        }
    }

    /// Answers which lock would be in the way.
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
