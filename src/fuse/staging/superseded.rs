//! Staged content that is stored gives way to a newer version that another client has stored.

use std::sync::Arc;

use jindofs_proto::v1::Attr;

use crate::runtime::lock;

use super::super::nodes::supersedes;
use super::{Staged, Staging, WriteGuard};

impl Staged {
    /// The version that was stored last, or from which the content was made. Readable without the guard.
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
    /// True if all staged content is stored, and another client has stored the version `newest` since.
    pub(in crate::fuse) fn gives_way_to(&self, newest: &Attr) -> bool {
        self.staged.gives_way_to(newest)
    }
}

impl Staging {
    /// The staged content of a file that has to give way to the version `newest`. The holder of its guard may still
    /// change that.
    pub(in crate::fuse) fn superseded(&self, newest: &Attr) -> Option<Arc<Staged>> {
        self.ready(newest.inode).filter(|staged| staged.gives_way_to(newest))
    }
}
