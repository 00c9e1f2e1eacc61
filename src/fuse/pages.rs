//! Pages that the kernel has to drop, because they are not of the version that their node stands for.
//!
//! *Who waits.* Before the kernel drops a page, it waits for the requests for that page which are under way, and writes the
//! page if a mapping has changed it. It writes none while the length of the file is set. So no thread that answers a request
//! drops pages: a thread of its own does. Who answers a look at attributes, an open or a lock may wait for that thread; who
//! answers a read, a write, a sync or a change of attributes must not, nor must anybody who has the turn of a file.
//!
//! *Pages that a mapping has changed* are of the version that they were read from. Those of a version that was replaced are
//! refused (`Stale`) until the kernel has dropped them: the next sync of the file is told.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

use super::fs::Fs;
use super::nodes::inode_of;

impl Fs {
    /// Has the kernel drop the pages of a node that are stale, if there are any. Does not wait.
    pub(super) fn drop_stale_pages(self: &Arc<Self>, node: u64) {
        if self.nodes.stale_pages(node).is_some() {
            self.drop_pages_later(node);
        }
    }

    /// The pages that the kernel has of a node are not what it stands for, or are out of place: has them dropped. Does not wait.
    pub(super) fn spoil_pages(self: &Arc<Self>, node: u64, are_replaced: bool) {
        self.nodes.spoil(node, are_replaced);
        self.drop_pages_later(node);
    }

    fn drop_pages_later(self: &Arc<Self>, node: u64) {
        let this = self.clone();
        tokio::task::spawn_blocking(move || this.drop_pages_now(node));
    }

    fn drop_pages_now(&self, node: u64) {
        // Looked up first: what becomes stale from here on is dropped by another call.
        let stale = self.nodes.stale_pages(node);
        self.kernel.drop_pages(node);
        if let Some(stale) = stale {
            self.nodes.dropped(node, stale);
        }
    }

    /// Drops the pages of a node before it returns.
    pub(super) async fn drop_pages(self: &Arc<Self>, node: u64) -> Result<()> {
        let this = self.clone();
        let dropped = tokio::task::spawn_blocking(move || this.drop_pages_now(node)).await;
        dropped.map_err(|error| Error::internal(format!("dropping pages: {error}")))
    }

    /// Waits until the kernel has dropped the stale pages of a node; for ever without a limit.
    ///
    /// *Errors*: `Timeout`.
    pub(super) async fn stale_pages_dropped(&self, node: u64, limit: Option<Duration>) -> Result<()> {
        let Some(mut dropping) = self.nodes.dropping(node) else { return Ok(()) };
        let dropped = async {
            while dropping.changed().await.is_ok() {}
            Ok(())
        };
        let Some(limit) = limit else { return dropped.await };
        let late = |_| Error::new(ErrorKind::Timeout, format!("the kernel has pages of node {node:#x} for too long"));
        tokio::time::timeout(limit, dropped).await.map_err(late)?
    }

    /// Refuses pages that a mapping has changed, if they are of another version than a node stands for.
    ///
    /// *Errors*: `Stale`; those of the masters.
    pub(super) async fn check_changed_pages(self: &Arc<Self>, node: u64) -> Result<()> {
        let is_staged = self.staging.ready_for(node).is_some();
        if self.nodes.has_replaced_pages(node)
            || !is_staged && self.is_behind(node, &self.attr(inode_of(node)).await?.attr)
        {
            let message = format!("inode {} was replaced since the page was written", inode_of(node));
            return Err(Error::new(ErrorKind::Stale, message));
        }
        Ok(())
    }
}
