//! What is staged and stored, until others store a newer version: then it gives way to that.

use std::sync::Arc;

use jindofs_proto::v1::Attr;

use crate::runtime::lock;

use super::super::nodes::supersedes;
use super::{Staged, Staging, WriteGuard};

impl Staged {
    /// The version that was stored last, or that the content was made from. It is known also while another task has the turn.
    pub(in crate::fuse) fn base(&self) -> Arc<Attr> {
        lock(&self.base).clone()
    }

    pub(super) fn publish_base(&self, base: &Attr) {
        *lock(&self.base) = Arc::new(base.clone());
    }

    fn gives_way_to(&self, newest: &Attr) -> bool {
        !self.has_private_view() && supersedes(newest, &self.base())
    }
}

impl WriteGuard {
    /// True if all that is staged is stored, and others have stored the version `newest` since.
    pub(in crate::fuse) fn gives_way_to(&self, newest: &Attr) -> bool {
        self.staged.gives_way_to(newest)
    }
}

impl Staging {
    /// What is staged of a file, if it has to give way to the version `newest`. Whoever has its turn may change that.
    pub(in crate::fuse) fn superseded(&self, newest: &Attr) -> Option<Arc<Staged>> {
        self.ready(newest.inode).filter(|staged| staged.gives_way_to(newest))
    }
}
