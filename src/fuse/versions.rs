//! Which version the handles of a node go on with, and what is shown of a node that stays behind.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use jindofs_proto::v1::Attr;

use crate::client::OpenFile;
use crate::error::{Error, ErrorKind, Result};
use crate::types::version_of;

use super::fs::Fs;
use super::inodes::Known;
use super::nodes::{extends, inode_of, same_version};
use super::staging::Turn;

/// What is to come of the pages that the kernel has of a node which has moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pages {
    Kept,
    ToDrop,
}

impl Fs {
    /// The kernel looks a file up: the node that it is told. Its lookup is counted.
    pub(super) fn enter_node(&self, newest: &Attr) -> u64 {
        match self.staging.changed_node(newest.inode) {
            Some(node) => {
                self.nodes.count_lookup(node);
                node
            }
            None => self.nodes.enter(newest),
        }
    }

    /// The node that the kernel would be told, without counting a lookup.
    pub(super) fn choose_node(&self, newest: &Attr) -> u64 {
        self.staging.changed_node(newest.inode).unwrap_or_else(|| self.nodes.choose(newest))
    }

    /// True if a node that is open stands for an older version than `newest`, and nothing of it is staged.
    pub(super) fn is_behind(&self, node: u64, newest: &Attr) -> bool {
        self.nodes.open_node(node).is_some_and(|open| open.is_behind(newest)) && self.staging.ready_for(node).is_none()
    }

    /// True unless a node that is open stands for another version than `attr`, be it an older or a newer one.
    pub(super) fn may_stand_for(&self, node: u64, attr: &Attr) -> bool {
        self.nodes.open_node(node).is_none_or(|open| open.version == version_of(&attr.version_token))
    }

    /// True for a node that goes on with `newest`: one that is written or locked, or that the version only extends. What is
    /// staged and not stored stays what it was made from.
    pub(super) fn may_move(&self, node: u64, newest: &Attr) -> bool {
        self.is_behind(node, newest) && self.goes_on(node, newest)
    }

    fn goes_on(&self, node: u64, newest: &Attr) -> bool {
        let Some(open) = self.nodes.open_node(node) else { return false };
        open.is_written
            || self.locks.are_held_through(&self.nodes.handles(node))
            || open.attr.is_some_and(|attr| extends(newest, &attr))
    }

    /// What of a file is staged and stored gives way to the version `newest` that others have stored since, if it is that of an
    /// older one. Its node moves first, if it goes on with `newest`, and what is staged goes then: a reader finds the one or
    /// the other. If another task has the turn, this `waits` for it, or leaves all as it is. The node whose pages are to be
    /// dropped.
    ///
    /// *Errors*: `Timeout` if the turn is not given up in time; those of finding the content.
    pub(super) async fn give_way(self: &Arc<Self>, newest: &Attr, waits: bool) -> Result<Option<u64>> {
        let Some(staged) = self.staging.superseded(newest).filter(|_| !self.is_unrecorded(newest.inode)) else {
            return Ok(None);
        };
        let turn = match staged.try_turn() {
            None if waits => self.in_time(newest.inode, staged.turn()).await?,
            turn => turn,
        };
        let Some(turn) = turn.filter(|turn| turn.gives_way_to(newest)) else { return Ok(None) };
        let node = turn.node();
        let goes_on = self.goes_on(node, newest);
        let pages = if goes_on { self.move_in_turn(&turn, newest).await? } else { Pages::Kept };
        self.staging.remove(turn);
        Ok((pages == Pages::ToDrop).then_some(node))
    }

    /// As [`Fs::give_way`], with pages dropped later: the request that is answered may hold them.
    pub(super) async fn give_way_behind(self: &Arc<Self>, newest: &Attr) -> Result<()> {
        if let Some(moved) = self.give_way(newest, true).await? {
            self.drop_pages_later(moved);
        }
        Ok(())
    }

    /// Waits for another task that changes a file, as long as for an answer of the masters: that is what it waits for itself.
    async fn in_time<T>(&self, inode: u64, work: impl Future<Output = T>) -> Result<T> {
        let Some(wait) = self.channel.timeout() else { return Ok(work.await) };
        let late = |_| Error::new(ErrorKind::Timeout, format!("inode {inode} is changed for longer than {wait:?}"));
        tokio::time::timeout(wait, work).await.map_err(late)
    }

    /// Moves all handles of a node to the version `newest`, and drops its pages before it returns: not to be called by who answers a
    /// request that holds pages.
    ///
    /// *Errors*: those of finding the content.
    pub(super) async fn move_node(self: &Arc<Self>, node: u64, newest: &Attr) -> Result<()> {
        // What a mapping has written and the kernel still keeps is of the version before: it comes now, and is `Stale`.
        self.drop_pages(node).await?;
        if self.move_handles(node, newest).await? == Pages::ToDrop {
            self.drop_pages(node).await?;
        }
        Ok(())
    }

    /// Drops the pages of a node before it returns.
    pub(super) async fn drop_pages(self: &Arc<Self>, node: u64) -> Result<()> {
        let this = self.clone();
        let dropped = tokio::task::spawn_blocking(move || this.kernel.drop_pages(node)).await;
        dropped.map_err(|error| Error::internal(format!("dropping pages: {error}")))
    }

    /// As [`Fs::move_node`]; what comes of its pages is for the caller, as the kernel waits for requests that are under way.
    async fn move_handles(&self, node: u64, newest: &Attr) -> Result<Pages> {
        let turn = self.staging.turn(node).await;
        if turn.is_ready() {
            return Ok(Pages::Kept);
        }
        let moved = self.move_in_turn(&turn, newest).await;
        self.staging.remove(turn);
        moved
    }

    /// As [`Fs::move_handles`], where nothing is staged and nobody else can begin to.
    pub(super) async fn move_in_turn(&self, turn: &Turn, newest: &Attr) -> Result<Pages> {
        let node = turn.node();
        let file = self.open_version(newest).await?;
        let grows = self.nodes.open_node(node).and_then(|open| open.attr).is_some_and(|attr| extends(newest, &attr));
        let numbers = self.nodes.move_to(node, &file, newest, grows);
        self.handles.note_version(&numbers, node, file.source.version);
        // With a new length the kernel drops them itself.
        Ok(if grows { Pages::Kept } else { Pages::ToDrop })
    }

    /// What the handles of `turn` have, and the kernel's pages hold, is the version `attr` now, or made from it.
    pub(super) fn note_stored(&self, turn: &Turn, attr: &Attr) {
        let file = self.open_source_now(attr);
        let node = turn.node();
        let numbers = self.nodes.move_to(node, &file, attr, true);
        self.handles.note_version(&numbers, node, file.source.version);
    }

    /// What a node is to show, without asking anybody; `None` if a master has to be asked, or it has to move first.
    pub(super) fn attr_of_node_now(&self, node: u64) -> Option<Known> {
        let known = self.attr_now(inode_of(node))?;
        let has_other = || self.staging.superseded(&known.attr).is_some() && self.goes_on(node, &known.attr);
        let moves = self.may_move(node, &known.attr) || has_other();
        if moves { None } else { Some(self.view_of(node, known)) }
    }

    /// What a node is to show. A node whose handles go on with the newest version moves to it.
    ///
    /// *Errors*: those of the masters.
    pub(super) async fn attr_of_node(self: &Arc<Self>, node: u64) -> Result<Known> {
        let known = self.attr(inode_of(node)).await?;
        // The kernel asks for attributes while it holds no page of the node.
        if let Err(error) = self.follow(node, &known.attr).await {
            tracing::debug!(node, %error, "an open file keeps its version: the newest one cannot be found");
        }
        Ok(self.view_of(node, known))
    }

    /// Moves a node to the version `newest`, if it goes on with that and no other task is changing the file.
    async fn follow(self: &Arc<Self>, node: u64, newest: &Attr) -> Result<()> {
        if self.goes_on(node, newest)
            && let Some(moved) = self.give_way(newest, false).await?
        {
            self.drop_pages(moved).await?;
        }
        if self.may_move(node, newest) { self.move_node(node, newest).await } else { Ok(()) }
    }

    /// The attributes of the version that a node stands for, as a whole: the length of one version is never shown with pages of
    /// another, whoever changes the file meanwhile.
    pub(super) fn view_of(&self, node: u64, known: Known) -> Known {
        let version = match self.staging.ready_for(node) {
            // What is not stored yet is shown by `Staging::overlay`.
            Some(staged) if staged.is_apart() => None,
            Some(staged) => Some(Attr::clone(&staged.base())),
            None => self.nodes.open_node(node).and_then(|open| open.attr),
        };
        match version {
            Some(attr) if !same_version(&attr, &known.attr) => Known { attr, ..known },
            _ => known,
        }
    }

    /// Another source for what a node of a stale file reads: where it was moved to, or the newest version if the node goes on
    /// with that.
    pub(super) async fn source_instead(self: &Arc<Self>, node: u64, file: &OpenFile) -> Option<Arc<OpenFile>> {
        let inode = inode_of(node);
        if let Some(moved) = self.moved(inode, &file.source).await {
            self.nodes.relocate(node, moved.clone());
            return Some(moved);
        }
        let newest = self.ask_attr(inode).await.ok()?.attr;
        if !self.may_move(node, &newest) {
            return None;
        }
        if self.move_handles(node, &newest).await.ok()? == Pages::ToDrop {
            self.drop_pages_later(node);
        }
        self.nodes.file(node)
    }

    /// Has the pages of a node dropped by somebody who holds none of them.
    pub(super) fn drop_pages_later(self: &Arc<Self>, node: u64) {
        let this = self.clone();
        tokio::task::spawn_blocking(move || this.kernel.drop_pages(node));
    }
}
