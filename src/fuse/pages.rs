//! Pages that the kernel has to drop, because they are not of the version that their node stands for.
//!
//! *Who waits.* Before the kernel drops a page, it waits for the requests for that page which are under way, and writes the
//! page if a mapping has changed it. It writes none while the length of the file is set. So no thread that answers a request
//! drops pages: a thread of its own does. Who answers a look at attributes, an open or a lock may wait for that thread; who
//! answers a read, a write, a sync or a change of attributes must not, nor must anybody who has the turn of a file.
//!
//! *Pages that a mapping has changed* are of the version that they were read from. Those of a version that was replaced are
//! refused (`Stale`) until the kernel has dropped them: the next sync of the file is told.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::runtime::lock;

use super::fs::Fs;
use super::kernel_cache::KernelCache;
use super::nodes::{StalePages, inode_of};
use super::write::Write;

/// How long the last byte of a version is waited for.
const LAST_BYTE_TIMEOUT: Duration = Duration::from_secs(2);

/// Nodes whose pages a task drops, and whether it has to do so once more.
#[derive(Debug, Default)]
pub(super) struct PageDrops(Mutex<HashMap<u64, bool>>);

impl PageDrops {
    /// False if a task is at work: it drops the pages once more.
    fn begin(&self, node: u64) -> bool {
        let mut drops = lock(&self.0);
        match drops.entry(node) {
            Entry::Vacant(vacant) => {
                vacant.insert(false);
                true
            }
            Entry::Occupied(mut again) => {
                again.insert(true);
                false
            }
        }
    }

    /// The task has dropped the pages; false if it has to do so once more.
    fn end(&self, node: u64) -> bool {
        let mut drops = lock(&self.0);
        if drops.insert(node, false) == Some(true) {
            return false;
        }
        drops.remove(&node);
        true
    }
}

impl Fs {
    /// Has the kernel drop the pages of a node that are stale, if there are any. Does not wait.
    pub(super) fn drop_stale_pages(self: &Arc<Self>, node: u64) {
        if self.nodes.stale_pages(node).is_some() {
            self.drop_pages_later(node);
        }
    }

    /// The pages that the kernel has of a node are not what it stands for, or are out of place, from a byte on: has them
    /// dropped. Does not wait.
    pub(super) fn spoil_pages(self: &Arc<Self>, node: u64, from: u64, are_replaced: bool) {
        self.nodes.spoil(node, from, are_replaced);
        self.drop_pages_later(node);
    }

    /// One task for each node: while it waits for the kernel, more of them would only take threads from those who answer the
    /// request that it waits for.
    fn drop_pages_later(self: &Arc<Self>, node: u64) {
        if !self.page_drops.begin(node) {
            return;
        }
        let this = self.clone();
        tokio::spawn(async move {
            loop {
                if let Err(error) = this.drop_pages(node).await {
                    tracing::warn!(node, %error, "the kernel keeps pages of another version");
                }
                if this.page_drops.end(node) {
                    return;
                }
            }
        });
    }

    /// Drops the pages of a node before it returns.
    pub(super) async fn drop_pages(self: &Arc<Self>, node: u64) -> Result<()> {
        // Looked up first: what becomes stale from here on is dropped by another call.
        let stale = self.nodes.stale_pages(node);
        let from = stale.map_or(0, |stale| stale.from);
        let dropped = self.tell_kernel(move |kernel| kernel.drop_pages(node, from)).await;
        if let Some(stale) = stale {
            self.show_longer(node, stale).await;
            self.nodes.dropped(node, stale);
        }
        dropped
    }

    /// Tells the kernel the new end of a file that is only read and has become longer, before anybody else is told. From
    /// answers to what it has asked for before pages were dropped the kernel takes no length: who was told a new one could map
    /// what it does not let be reached. Best effort.
    async fn show_longer(self: &Arc<Self>, node: u64, stale: StalePages) {
        let Some(file) = self.nodes.longer(node, stale).filter(|_| self.staging.ready_for(node).is_none()) else {
            return;
        };
        let last = file.source.length - 1;
        // Nobody opens the file to write before this has ended.
        let byte = tokio::time::timeout(LAST_BYTE_TIMEOUT, self.reader.read(&file, last, 1)).await;
        let Some(byte) = byte.ok().and_then(Result::ok).and_then(|bytes| bytes.first().copied()) else { return };
        if let Err(error) = self.tell_kernel(move |kernel| kernel.set_last_byte(node, last, byte)).await {
            tracing::debug!(node, %error, "the kernel learns a length when it asks for it");
        }
    }

    /// On a thread that answers no request.
    async fn tell_kernel(self: &Arc<Self>, tell: impl FnOnce(&KernelCache) + Send + 'static) -> Result<()> {
        let this = self.clone();
        let told = tokio::task::spawn_blocking(move || tell(&this.kernel)).await;
        told.map_err(|error| Error::internal(format!("dropping pages: {error}")))
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
    pub(super) async fn check_changed_pages(self: &Arc<Self>, node: u64, write: &Write<'_>) -> Result<()> {
        if !write.from_pages {
            return Ok(());
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_become_stale_while_they_are_dropped_are_dropped_once_more_by_the_same_task() {
        let drops = PageDrops::default();
        assert!(drops.begin(1) && drops.begin(2), "each node has a task of its own");
        assert!(!drops.begin(1) && !drops.begin(1), "one is at work");
        assert!(!drops.end(1), "once more for both");
        assert!(drops.end(1) && drops.end(2));
        assert!(drops.begin(1));
    }
}
