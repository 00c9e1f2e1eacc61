//! Deferred creates: the client answers a CREATE at once and sends the mutation to the masters in the background. The
//! result of the mutation is reported by the next `fsync` or `close` of the file. Other mounts see the file once the
//! masters have committed it, which takes a few milliseconds.
//!
//! The kernel holds the lock of the directory until a CREATE is answered, so without this, creates in one directory
//! would be serialised. Deferred creates of one directory are committed together, many in one log entry.
//!
//! A CREATE with `O_EXCL` needs the answer of the masters and waits for it.

use std::sync::Arc;
use std::time::Instant;

use jindofs_proto::v1::batch_op::Op;
use jindofs_proto::v1::{Attr, CreateRequest, FileType, MutationResponse};
use tokio::runtime::Handle;

use crate::client::namespace::{at_entry, at_inode};
use crate::client::writer::WriteIntent;
use crate::error::{Error, ErrorKind, Result};
use crate::runtime::now_ns;
use crate::types::check_name;

use super::dircache::CachedName;
use super::fs::Fs;
use super::inodes::Known;
use super::namespace_ops::{Credentials, Name};
use super::pending_creates::PendingCreate;
use super::staging::WriteGuard;

/// Most creates in the queue of the batcher. Above this bound a create is not deferred: its caller waits.
const WAITING_MAX: usize = 1024;

impl Fs {
    /// Creates a file and opens it without waiting for the masters. Returns `None` if they have to be asked first, for
    /// example because the name may exist; a caller that has already asked sets `sure`. Otherwise as [`Fs::create`].
    ///
    /// *Errors*: too many files are open.
    pub(super) fn create_deferred(
        self: &Arc<Self>,
        at: Name<'_>,
        credentials: Credentials,
        sure: bool,
        on: &Handle,
    ) -> Option<Result<(Known, u64)>> {
        if !self.writable
            || self.masters_fail()
            || self.batcher.pending_creates() >= WAITING_MAX
            || check_name(at.1).is_err()
        {
            return None;
        }
        let directory = self.attr_now(at.0)?.attr;
        if !self.accepts_files(&directory) || !(sure || self.is_known_absent(at)) {
            return None;
        }
        // A caller that is not sure runs on the kernel's thread, which must not block, not even for reading an option
        // file.
        let is_storable =
            if sure { self.check_storable(at, &directory).is_ok() } else { self.is_storable_now(at, &directory) };
        if !is_storable {
            return None;
        }
        let inode = self.batcher.next_inode(on)?;
        self.pending_creates.add(inode, at.0, at.1)?;
        let attr = predicted_attr(inode, &directory, credentials.inherit_from(&directory, false));
        let number = match self.open_new(&attr) {
            Ok(number) => number,
            Err(error) => {
                self.pending_creates.finish(inode, Err(error.clone()), || false);
                return Some(Err(error));
            }
        };
        if directory.mount_id != 0 {
            self.staging.begin_new(attr.clone(), self.client.session().id_now());
        }
        self.listings.insert(at.0, at.1);
        self.inodes.grown(at.0, attr.mtime_ns);
        let known = self.enter_new(at, attr);
        self.enqueue_create(at, &known.attr, on);
        Some(Ok((known, number)))
    }

    /// Prepares a deferred create: waits for a reserved inode number and for the attributes of the directory. Returns
    /// false if the create cannot be deferred or the name exists.
    pub(super) async fn can_defer_create(self: &Arc<Self>, at: Name<'_>) -> bool {
        if self.masters_fail() || !self.batcher.ensure_inodes().await || self.attr(at.0).await.is_err() {
            return false;
        }
        if self.is_known_absent(at) {
            return true;
        }
        self.client.lookup(at_entry(at.0, at.1)).await.is_err_and(|error| error.kind == ErrorKind::NotFound)
    }

    /// True for a directory in which this mount may create files, as far as the client knows.
    fn accepts_files(&self, directory: &Attr) -> bool {
        let below = || self.mounts.known(directory.mount_id);
        directory.r#type() == FileType::Directory
            && (directory.mount_id == 0 || below().is_some_and(|mount| !mount.read_only))
    }

    /// True if the client has cached nothing under this name. The kernel has looked the name up before, and a master
    /// answered that it does not exist.
    fn is_known_absent(&self, at: Name<'_>) -> bool {
        !matches!(self.listings.get(at.0, at.1, self.ttl), CachedName::Entry(_))
    }

    fn enqueue_create(self: &Arc<Self>, at: Name<'_>, attr: &Attr, on: &Handle) {
        let credentials = Credentials { mode: attr.mode, uid: attr.uid, gid: attr.gid };
        let request = CreateRequest { inode: attr.inode, ..credentials.request(at) };
        let (this, parent, name, op) = (self.clone(), at.0, at.1.to_vec(), Op::Create(request.clone()));
        self.batcher.enqueue(op, on, move |outcome| match outcome {
            // The create did not fit into its batch: it is sent by itself.
            Err(error) if error.was_not_begun() => {
                tokio::spawn(async move {
                    let inode = request.inode;
                    let alone = this.client.create(request).await;
                    let done = alone.map(|attr| MutationResponse { attr: Some(attr), ..MutationResponse::default() });
                    this.finish_create((parent, &name), inode, done);
                });
            }
            outcome => this.finish_create((parent, &name), request.inode, outcome),
        });
    }

    /// Accepts the outcome of a create only if it is for `inode` itself. A file of the same name with another inode was
    /// created by another client; it is recorded as the one that supersedes ours.
    fn check_created(&self, inode: u64, done: MutationResponse) -> Result<MutationResponse> {
        match &done.attr {
            Some(attr) if attr.inode == inode => Ok(done),
            Some(attr) => {
                if let Some(pending) = self.pending_creates.get(inode) {
                    pending.set_superseded_by(attr.inode);
                }
                Err(Error::new(ErrorKind::AlreadyExists, "a file of this name was made elsewhere at the same time"))
            }
            None => Err(Error::internal("the answer to a creation lacks its subject")),
        }
    }

    /// Handles the outcome of a deferred create: updates the caches and wakes the waiters.
    fn finish_create(&self, at: Name<'_>, inode: u64, outcome: Result<MutationResponse>) {
        let outcome = outcome.and_then(|done| self.check_created(inode, done));
        match &outcome {
            Ok(MutationResponse { attr: Some(attr), .. }) => {
                self.inodes.renew(Known::new(attr.clone(), Instant::now()));
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(inode, directory = at.0, %error, "a file that was opened could not be made");
                self.inodes.removed(at.0, at.1);
                self.changed(at.0);
            }
        }
        self.inodes.has_come(at.0);
        self.pending_creates.finish(inode, outcome, || self.nodes.is_inode_open(inode));
    }

    /// Waits until the create of the file under `guard` is committed, if it is pending. With `stores` the masters are
    /// told in the same mutation that the content will be stored; the returned write intent has to be ended.
    ///
    /// *Errors*: why the create failed.
    pub(super) async fn await_create(&self, guard: &mut WriteGuard, stores: bool) -> Result<Option<WriteIntent>> {
        let Some(pending) = self.pending_creates.get(guard.inode()) else { return Ok(None) };
        let on = Handle::current();
        match stores {
            true => self.batcher.attach_write(guard.inode(), guard.is_in_memory(), &on),
            false => self.batcher.flush(&on),
        }
        match pending.done().await {
            Ok(()) => Ok(pending.take_write_intent()),
            Err(error) if error.kind == ErrorKind::AlreadyExists => {
                if self.try_adopt(guard, pending.superseded_by()).await? {
                    return Ok(None);
                }
                // The file of the other client stays. If nothing was written here, the create counts as done.
                let written = guard.length() > 0;
                guard.unlink_stale_name();
                if written { Err(Error { kind: ErrorKind::Stale, ..error }) } else { Ok(None) }
            }
            Err(error) => {
                guard.unlink_stale_name();
                Err(error)
            }
        }
    }

    /// Redirects what was written here to the file that another client created under the same name at the same time.
    /// Returns true if that file has the same attributes and nobody has written to it.
    ///
    /// *Errors*: the masters cannot be asked for the attributes of the other file.
    async fn try_adopt(&self, guard: &mut WriteGuard, other_inode: Option<u64>) -> Result<bool> {
        let Some(other_inode) = other_inode else { return Ok(false) };
        if guard.base().inode == other_inode {
            return Ok(true);
        }
        match self.client.lookup(at_inode(other_inode)).await {
            Err(error) if error.kind == ErrorKind::NotFound => Ok(false),
            other => Ok(adopt(guard, other?)),
        }
    }

    /// Redirects what was written to a new file to the empty version that another client has stored under the same name
    /// in the meantime. Returns false if that version is not empty or has other attributes.
    pub(super) async fn try_adopt_empty(&self, guard: &mut WriteGuard) -> bool {
        if !guard.base().version_token.is_empty() || guard.is_new() {
            return false;
        }
        let there = self.client.lookup(at_inode(guard.base().inode)).await;
        let Some(other) = there.ok().filter(|other| !other.version_token.is_empty()) else { return false };
        let goes_on = adopt(guard, other.clone());
        if goes_on && other.inode == guard.inode() {
            self.note_stored(guard, &other);
        }
        goes_on
    }

    /// As [`Fs::await_create`], for a file without data.
    pub(super) async fn await_empty_create(&self, inode: u64) -> Result<()> {
        let Some(pending) = self.pending_creates.get(inode) else { return Ok(()) };
        match self.flush_create(&pending).await {
            Err(error) if error.kind == ErrorKind::AlreadyExists => Ok(()),
            done => done,
        }
    }

    /// Flushes the batcher and waits for the outcome of a pending create.
    ///
    /// *Errors*: why the create failed.
    pub(super) async fn flush_create(&self, pending: &PendingCreate) -> Result<()> {
        self.batcher.flush(&Handle::current());
        pending.done().await
    }

    /// As [`Fs::resolve_inode`], without waiting: from what is known now.
    pub(super) fn resolved_inode_now(&self, inode: u64) -> u64 {
        self.pending_creates.get(inode).and_then(|pending| pending.superseded_by()).unwrap_or(inode)
    }

    /// The inode under which the cluster knows a file. It differs from the inode of the handles here if another client
    /// created the file at the same time.
    ///
    /// *Errors*: why the create failed.
    pub(super) async fn resolve_inode(&self, inode: u64) -> Result<u64> {
        let Some(pending) = self.pending_creates.get(inode) else { return Ok(inode) };
        match (self.flush_create(&pending).await, pending.superseded_by()) {
            (Ok(()), _) => Ok(inode),
            (Err(_), Some(other_inode)) => Ok(other_inode),
            (Err(error), None) => Err(error),
        }
    }
}

/// Makes `other` the base of what is written to a new file. Returns false unless `other` is empty and has the same
/// type, mode, owner, mount and parent: for another owner or mode nobody has checked whether the caller may open it.
fn adopt(guard: &mut WriteGuard, other: Attr) -> bool {
    let made_so = |attr: &Attr| (attr.r#type, attr.mode, attr.uid, attr.gid, attr.mount_id, attr.parent);
    if made_so(guard.base()) != made_so(&other) || other.size > 0 {
        return false;
    }
    let is_stored = !other.version_token.is_empty();
    guard.rebase(other);
    if is_stored && guard.is_new() {
        guard.discard_new();
    }
    true
}

/// The attributes that a new file gets, as far as the client can compute them.
fn predicted_attr(inode: u64, directory: &Attr, credentials: Credentials) -> Attr {
    let now = now_ns();
    let mut attr = Attr {
        inode,
        mode: credentials.mode,
        uid: credentials.uid,
        gid: credentials.gid,
        mtime_ns: now,
        ctime_ns: now,
        nlink: 1,
        parent: directory.inode,
        mount_id: directory.mount_id,
        version: 1,
        ..Attr::default()
    };
    attr.set_type(FileType::File);
    attr
}
