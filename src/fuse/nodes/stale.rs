//! Pages that the kernel may still have of the versions which a node has moved from.
//!
//! The last page of a version is filled up with zeros. So the length of the next one is shown only after that page is dropped:
//! until then the node shows the first of the versions that the kernel may have pages of.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use jindofs_proto::v1::Attr;
use tokio::sync::watch;

use super::{Node, Nodes};
use crate::client::OpenFile;

/// Pages that the kernel has to drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fuse) struct StalePages {
    /// Counts the moves of all nodes: whoever has pages dropped since an earlier one has not dropped these.
    number: u64,
    /// The first byte that may be wrong: all pages from that of this byte on are dropped.
    pub(in crate::fuse) from: u64,
    /// True if they are of another content than the node stands for, and not only out of place.
    pub(in crate::fuse) are_replaced: bool,
}

/// The stale pages of a node, until they are dropped.
#[derive(Debug)]
pub(super) struct Leftover {
    pages: StalePages,
    /// The version that is shown until then, where it is not the one that the node stands for.
    shown: Option<Attr>,
    /// Never sent through: it ends with this.
    dropped: watch::Sender<()>,
}

impl Node {
    /// From now on the kernel's pages are stale; `shown` is the version that they are of.
    pub(super) fn spoil(&mut self, pages: StalePages, shown: Option<Attr>) {
        let fresh = || Leftover { pages, shown: None, dropped: watch::Sender::new(()) };
        let left = self.leftover.get_or_insert_with(fresh);
        let before = left.pages;
        let (from, are_replaced) = (before.from.min(pages.from), before.are_replaced || pages.are_replaced);
        left.pages = StalePages { from, are_replaced, ..pages };
        left.shown = left.shown.take().or(shown);
    }
}

impl Leftover {
    /// What the node stands for is shown, whatever pages there are.
    pub(super) fn show_newest(&mut self) {
        self.shown = None;
    }
}

impl Nodes {
    /// Pages that become stale now: those of a content that was replaced, or from a byte on.
    pub(super) fn spoilt(&self, from: u64, are_replaced: bool) -> StalePages {
        StalePages { number: self.moves.fetch_add(1, Ordering::Relaxed), from, are_replaced }
    }

    /// The kernel's pages of a node that is open are not what it stands for, from a byte on.
    pub(in crate::fuse) fn spoil(&self, node: u64, from: u64, are_replaced: bool) {
        let pages = self.spoilt(from, are_replaced);
        self.with(node, |known| known.is_open().then(|| known.spoil(pages, None)));
    }

    /// Attributes of the version that a node is to show while it is open, if they are known.
    pub(in crate::fuse) fn shown(&self, node: u64) -> Option<Attr> {
        self.with(node, |known| {
            let left = known.leftover.as_ref().and_then(|left| left.shown.as_ref());
            left.or(known.attr.as_ref()).filter(|_| known.is_open()).cloned()
        })
        .flatten()
    }

    /// The pages of a node that have to be dropped, if there are any.
    pub(in crate::fuse) fn stale_pages(&self, node: u64) -> Option<StalePages> {
        self.with(node, |known| known.leftover.as_ref().map(|left| left.pages)).flatten()
    }

    /// True while the kernel may have pages of a content that has been replaced.
    pub(in crate::fuse) fn has_replaced_pages(&self, node: u64) -> bool {
        self.stale_pages(node).is_some_and(|pages| pages.are_replaced)
    }

    /// What a node reads, if it is only read, and is longer than it shows until these pages are dropped.
    pub(in crate::fuse) fn longer(&self, node: u64, pages: StalePages) -> Option<Arc<OpenFile>> {
        self.with(node, |known| {
            let left = known.leftover.as_ref().filter(|left| left.pages == pages)?;
            let file = known.file.clone().filter(|_| !known.is_written())?;
            let shown = left.shown.as_ref()?;
            (file.source.length > shown.size).then_some(file)
        })
        .flatten()
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
