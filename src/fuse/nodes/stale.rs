//! Pages that the kernel may still have of the versions which a node has moved from.

use std::sync::atomic::Ordering;

use tokio::sync::watch;

use super::{Node, Nodes};

/// Pages that the kernel has to drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fuse) struct StalePages {
    /// Counts the moves of all nodes: whoever has pages dropped since an earlier one has not dropped these.
    number: u64,
    /// True if they are of another content than the node stands for, and not only out of place.
    pub(in crate::fuse) are_replaced: bool,
}

/// The stale pages of a node, until they are dropped.
#[derive(Debug)]
pub(super) struct Leftover {
    pages: StalePages,
    /// Never sent through: it ends with this.
    dropped: watch::Sender<()>,
}

impl Node {
    /// From now on the kernel's pages are stale.
    pub(super) fn spoil(&mut self, pages: StalePages) {
        let fresh = || Leftover { pages, dropped: watch::Sender::new(()) };
        let left = self.leftover.get_or_insert_with(fresh);
        let are_replaced = left.pages.are_replaced || pages.are_replaced;
        left.pages = StalePages { are_replaced, ..pages };
    }
}

impl Nodes {
    pub(super) fn next_move(&self, are_replaced: bool) -> StalePages {
        StalePages { number: self.moves.fetch_add(1, Ordering::Relaxed), are_replaced }
    }

    /// The kernel's pages of a node that is open are not what it stands for.
    pub(in crate::fuse) fn spoil(&self, node: u64, are_replaced: bool) {
        let pages = self.next_move(are_replaced);
        self.with(node, |known| known.is_open().then(|| known.spoil(pages)));
    }

    /// The pages of a node that have to be dropped, if there are any.
    pub(in crate::fuse) fn stale_pages(&self, node: u64) -> Option<StalePages> {
        self.with(node, |known| known.leftover.as_ref().map(|left| left.pages)).flatten()
    }

    /// True while the kernel may have pages of a content that has been replaced.
    pub(in crate::fuse) fn has_replaced_pages(&self, node: u64) -> bool {
        self.stale_pages(node).is_some_and(|pages| pages.are_replaced)
    }

    /// The kernel has dropped these pages of a node; others may have become stale meanwhile.
    pub(in crate::fuse) fn dropped(&self, node: u64, pages: StalePages) {
        self.with(node, |known| known.leftover.take_if(|left| left.pages == pages));
    }

    /// What ends when the kernel has dropped the stale pages of a node; `None` if there are none.
    pub(in crate::fuse) fn dropping(&self, node: u64) -> Option<watch::Receiver<()>> {
        self.with(node, |known| known.leftover.as_ref().map(|left| left.dropped.subscribe())).flatten()
    }
}
