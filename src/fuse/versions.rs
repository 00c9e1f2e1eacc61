//! Decides which version the handles of a node stand for, and what is shown of a node that stays with an older version.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use jindofs_proto::v1::Attr;

use crate::client::OpenFile;
use crate::error::{Error, ErrorKind, Result};
use crate::types::version_of;

use super::fs::Fs;
use super::inodes::Known;
use super::nodes::{extends, inode_of, same_version, supersedes};
use super::open::other_version;
use super::staging::{Staged, WriteGuard};

/// How long a GETATTR waits for the kernel to drop pages.
const DROP_TIMEOUT: Duration = Duration::from_secs(2);

impl Fs {
    /// Serves a lookup: chooses the node of a file and counts the lookup.
    pub(super) fn enter_node(&self, newest: &Attr) -> u64 {
        match self.staging.changed_node(newest.inode) {
            Some(node) => {
                self.nodes.count_lookup(node);
                node
            }
            None => self.nodes.enter(newest),
        }
    }

    /// The node that a lookup would return, without counting one.
    pub(super) fn choose_node(&self, newest: &Attr) -> u64 {
        self.staging.changed_node(newest.inode).unwrap_or_else(|| self.nodes.choose(newest))
    }

    /// True if an open node stands for an older version than `newest` and nothing of it is staged.
    pub(super) fn is_behind(&self, node: u64, newest: &Attr) -> bool {
        self.nodes.open_node(node).is_some_and(|open| open.is_behind(newest)) && self.staging.ready_for(node).is_none()
    }

    /// True unless an open node stands for another version than `attr`, older or newer.
    pub(super) fn may_stand_for(&self, node: u64, attr: &Attr) -> bool {
        self.nodes.open_node(node).is_none_or(|open| open.version == version_of(&attr.version_token))
    }

    /// True for an open node that should move to `newest`: one that is written or locked, or whose version is a prefix
    /// of `newest`. Staged content that is not stored keeps its base.
    pub(super) fn may_move(&self, node: u64, newest: &Attr) -> bool {
        self.is_behind(node, newest) && self.goes_on(node, newest)
    }

    fn goes_on(&self, node: u64, newest: &Attr) -> bool {
        let Some(open) = self.nodes.open_node(node) else { return false };
        open.is_written
            || self.locks.are_held_through(&self.nodes.handles(node))
            || open.attr.is_some_and(|attr| extends(newest, &attr))
    }

    /// Drops staged content that is stored and older than the version `newest`, which another client has stored. A node
    /// that should move to `newest` moves first, so that a reader finds either the one or the other. If another task
    /// holds the guard, this `waits` for it or leaves everything as it is. Does not wait for the kernel.
    ///
    /// *Errors*: `Timeout` if the guard is not released in time; those of finding the content.
    pub(super) async fn give_way(self: &Arc<Self>, newest: &Attr, waits: bool) -> Result<()> {
        let Some(staged) = self.staging.superseded(newest).filter(|_| !self.is_uncommitted(newest.inode)) else {
            return Ok(());
        };
        let guard = match staged.try_lock() {
            None if waits => self.in_time(newest.inode, staged.lock()).await?,
            guard => guard,
        };
        let Some(guard) = guard.filter(|guard| guard.gives_way_to(newest)) else { return Ok(()) };
        let node = guard.node();
        if self.goes_on(node, newest) {
            self.move_locked(&guard, newest).await?;
        }
        self.staging.remove(guard);
        self.drop_stale_pages(node);
        Ok(())
    }

    /// Has what is staged and not stored go on from the version `newest`, if others have stored that since the change began. What
    /// was appended is stored behind it. A file that was only cut off keeps what they have stored, which they were told is stored,
    /// while nobody was told that the file is empty; the caller has it give way.
    ///
    /// *Errors*: `Stale` for what was written elsewhere than at the end, or has no room behind `newest`; those of storing it.
    pub(super) async fn take_unsaved_to(self: &Arc<Self>, staged: &Arc<Staged>, newest: &Attr) -> Result<()> {
        if !supersedes(newest, &staged.base()) {
            return Ok(());
        }
        let guard = self.in_time(newest.inode, staged.clone().lock()).await?;
        let Some(mut guard) = guard.filter(|guard| is_overtaken(guard, newest)) else { return Ok(()) };
        if guard.is_emptied() {
            guard.discard_new();
            return Ok(());
        }
        if guard.appended_from().is_none() {
            return Err(other_version(newest.inode));
        }
        match self.store(&mut guard).await {
            Err(error) if error.kind == ErrorKind::NoSpace => Err(Error { kind: ErrorKind::Stale, ..error }),
            stored => stored,
        }
    }

    /// Waits for a task that holds a guard, with the same timeout as for an answer of the masters: that is what the
    /// task waits for itself.
    async fn in_time<T>(&self, inode: u64, work: impl Future<Output = T>) -> Result<T> {
        let Some(wait) = self.channel.timeout() else { return Ok(work.await) };
        let late = |_| Error::new(ErrorKind::Timeout, format!("inode {inode} is changed for longer than {wait:?}"));
        tokio::time::timeout(wait, work).await.map_err(late)
    }

    /// Moves all handles of a node to the version `newest`, and waits until the kernel has dropped its pages.
    ///
    /// *Errors*: those of finding the content; `Timeout`.
    pub(super) async fn move_node(self: &Arc<Self>, node: u64, newest: &Attr) -> Result<()> {
        let guard = self.in_time(newest.inode, self.staging.lock(node)).await?;
        self.move_handles(guard, newest).await?;
        self.stale_pages_dropped(node, self.channel.timeout()).await
    }

    /// As [`Fs::move_node`], without waiting for the kernel; does nothing if content is staged.
    async fn move_handles(self: &Arc<Self>, guard: WriteGuard, newest: &Attr) -> Result<()> {
        if guard.is_ready() {
            return Ok(());
        }
        let node = guard.node();
        // Another task may have moved the node while this one waited for the guard.
        let moved = if self.may_move(node, newest) { self.move_locked(&guard, newest).await } else { Ok(()) };
        self.staging.remove(guard);
        self.drop_stale_pages(node);
        moved
    }

    /// As [`Fs::move_handles`], with the guard held and nothing staged. The caller drops the stale pages afterwards:
    /// the kernel must not read them again from the old version.
    pub(super) async fn move_locked(&self, guard: &WriteGuard, newest: &Attr) -> Result<()> {
        let file = self.open_version(newest).await?;
        let numbers = self.nodes.move_to(guard.node(), &file, newest);
        self.handles.note_version(&numbers, guard.node(), file.source.version);
        Ok(())
    }

    /// Records that the handles of `guard`, and the pages of the kernel, now hold the version `attr`, or content made
    /// from it.
    pub(super) fn note_stored(&self, guard: &WriteGuard, attr: &Attr) {
        let file = self.open_source_now(attr);
        let numbers = self.nodes.note_stored(guard.node(), &file, attr);
        self.handles.note_version(&numbers, guard.node(), file.source.version);
    }

    /// Attributes of a node without asking a master; `None` if a master has to be asked, or the node has to move first.
    pub(super) fn attr_of_node_now(&self, node: u64) -> Option<Known> {
        let known = self.attr_now(inode_of(node))?;
        if self.is_to_follow(node, &known.attr) { None } else { Some(self.view_of(node, known)) }
    }

    /// True for a node that should move to `newest` and has not moved, or whose pages the kernel has not dropped yet.
    fn is_to_follow(&self, node: u64, newest: &Attr) -> bool {
        let has_other = || self.staging.superseded(newest).is_some() && self.goes_on(node, newest);
        self.may_move(node, newest) || has_other() || self.nodes.stale_pages(node).is_some()
    }

    /// Attributes of a node. If its handles should move to the newest version, the node moves first and later callers
    /// see the new attributes. While the kernel drops pages it forgets lengths that it asked for before, so a caller
    /// that got the new length could map pages that the kernel does not let it reach.
    ///
    /// *Errors*: those of the masters.
    pub(super) async fn attr_of_node(self: &Arc<Self>, node: u64) -> Result<Known> {
        let (shown, newest) = self.shown_and_newest(node).await?;
        if let Some(newest) = newest {
            // The kernel asks for attributes while it holds no page of the node.
            self.follow(node, &newest).await;
        }
        Ok(shown)
    }

    /// As [`Fs::attr_of_node`], for a caller that has just changed the file: the kernel may wait for this answer before
    /// it releases a page.
    ///
    /// *Errors*: those of the masters.
    pub(super) async fn attr_of_changed_node(self: &Arc<Self>, node: u64) -> Result<Known> {
        let (shown, newest) = self.shown_and_newest(node).await?;
        if let Some(newest) = newest {
            let this = self.clone();
            tokio::spawn(async move { this.follow(node, &newest).await });
        }
        Ok(shown)
    }

    /// The attributes that a node shows now, and the version that it should move to.
    async fn shown_and_newest(self: &Arc<Self>, node: u64) -> Result<(Known, Option<Attr>)> {
        let known = self.attr(inode_of(node)).await?;
        let newest = self.is_to_follow(node, &known.attr).then(|| known.attr.clone());
        let shown = self.view_of(node, known);
        Ok((Known { passing: newest.is_some(), ..shown }, newest))
    }

    /// Moves the node of a file that was looked up by name, before the lookup is answered.
    pub(super) async fn follow_by_name(self: &Arc<Self>, newest: &Attr) {
        if !self.nodes.is_inode_open(newest.inode) {
            return;
        }
        let node = self.choose_node(newest);
        if self.is_to_follow(node, newest) {
            self.follow(node, newest).await;
        }
    }

    /// Moves a node to the version `newest` if it should and no other task is changing the file, and waits briefly
    /// until the kernel has dropped its pages.
    async fn follow(self: &Arc<Self>, node: u64, newest: &Attr) {
        if let Err(error) = self.try_to_follow(node, newest).await {
            tracing::debug!(node, %error, "an open file keeps its version for now");
        }
    }

    async fn try_to_follow(self: &Arc<Self>, node: u64, newest: &Attr) -> Result<()> {
        if self.goes_on(node, newest) {
            self.give_way(newest, false).await?;
        }
        if self.may_move(node, newest)
            && let Some(guard) = self.staging.try_lock(node)
        {
            self.move_handles(guard, newest).await?;
        }
        self.stale_pages_dropped(node, Some(DROP_TIMEOUT)).await
    }

    /// The attributes of the version that a node stands for, or of the version before while the kernel still has pages
    /// of that: the length of one version is never shown with pages of another.
    pub(super) fn view_of(&self, node: u64, known: Known) -> Known {
        let version = match self.staging.ready_for(node) {
            // Content that is not stored yet is shown by `Staging::overlay`.
            Some(staged) if staged.has_private_view() => None,
            Some(staged) => Some(Attr::clone(&staged.base())),
            None => self.nodes.shown(node),
        };
        match version {
            Some(attr) if !same_version(&attr, &known.attr) => Known { attr: of_version(known.attr, attr), ..known },
            _ => known,
        }
    }

    /// Another source for a node whose version is gone from the under-storage: the version to which another read has
    /// moved the node, the new path of the file, or the newest version if the node should move to it.
    pub(super) async fn source_instead(self: &Arc<Self>, node: u64, file: &Arc<OpenFile>) -> Option<Arc<OpenFile>> {
        let inode = inode_of(node);
        let has_moved = || self.nodes.file(node).filter(|now| !Arc::ptr_eq(now, file));
        if let Some(moved) = has_moved() {
            return Some(moved);
        }
        if let Some(moved) = self.moved(inode, &file.source).await {
            self.nodes.relocate(node, moved.clone());
            return Some(moved);
        }
        let newest = self.ask_attr(inode).await.ok()?.attr;
        if self.may_move(node, &newest) {
            let guard = self.in_time(inode, self.staging.lock(node)).await.ok()?;
            self.move_handles(guard, &newest).await.ok()?;
        }
        has_moved()
    }
}

/// True if an unstored change was made from another version than `newest`, and cannot be stored on top of it. What was
/// written to a new file may replace an empty one.
fn is_overtaken(guard: &WriteGuard, newest: &Attr) -> bool {
    let base = guard.base();
    let began_empty = base.version_token.is_empty() && newest.size == 0;
    let is_changed = guard.is_due() && !guard.is_new();
    is_changed && base.inode == newest.inode && supersedes(newest, base) && !began_empty
}

/// Attributes for a handle of `version`: length and mtime of that version; mode, owner, links and ctime of the file.
fn of_version(newest: Attr, version: Attr) -> Attr {
    let Attr { size, mtime_ns, version, version_token, prefix_since, .. } = version;
    Attr { size, mtime_ns, version, version_token, prefix_since, ..newest }
}
