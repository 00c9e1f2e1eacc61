//! Which version the handles of a node go on with, and what is shown of a node that stays behind.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use jindofs_proto::v1::Attr;

use crate::client::OpenFile;
use crate::error::{Error, Result};
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
        let has_other = || self.staging.superseded_base(&known.attr).is_some() && self.goes_on(node, &known.attr);
        let moves = self.may_move(node, &known.attr) || has_other();
        if moves { None } else { Some(self.view_of(node, known)) }
    }

    /// What a node is to show. A node whose handles go on with the newest version moves to it.
    ///
    /// *Errors*: those of the masters.
    pub(super) async fn attr_of_node(self: &Arc<Self>, node: u64) -> Result<Known> {
        let known = self.attr(inode_of(node)).await?;
        if self.goes_on(node, &known.attr) && !self.is_unrecorded(inode_of(node)) {
            // What is staged and was stored before others have stored another version.
            self.staging.drop_superseded(&known.attr);
        }
        if self.may_move(node, &known.attr) {
            // The kernel asks for attributes while it holds no page of the node.
            if let Err(error) = self.move_node(node, &known.attr).await {
                tracing::debug!(node, %error, "an open file keeps its version: the newest one cannot be found");
            }
        }
        Ok(self.view_of(node, known))
    }

    /// The attributes of the version that a node stands for.
    pub(super) fn view_of(&self, node: u64, known: Known) -> Known {
        if self.staging.ready_for(node).is_some() {
            // The length of one version is never shown with pages of another.
            return match self.staging.superseded_base(&known.attr) {
                Some(attr) if !self.is_unrecorded(inode_of(node)) => Known { attr, ..known },
                _ => known,
            };
        }
        let Some(open) = self.nodes.open_node(node) else { return known };
        match open.attr {
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
