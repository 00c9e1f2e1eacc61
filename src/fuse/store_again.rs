//! Files whose storing failed because they have changed elsewhere: their directory was renamed, they were removed with
//! the session in which they were created, or an attempt that timed out has stored them.

use std::sync::Arc;

use jindofs_proto::v1::{Attr, CreateRequest, FileType};

use crate::client::namespace::{at_entry, at_inode};
use crate::error::{Error, ErrorKind};

use super::fs::Fs;
use super::staging::WriteGuard;

impl Fs {
    /// True if the next attempt may succeed after one has failed with `error`.
    pub(super) async fn is_elsewhere_by_now(self: &Arc<Self>, guard: &mut WriteGuard, error: &Error) -> bool {
        let was_never_stored = guard.base().version_token.is_empty();
        if guard.is_unlinked() || !guard.is_dirty() {
            return false;
        }
        match error.kind {
            // The masters did not accept the intent: the next attempt asks them for the current state.
            ErrorKind::SessionExpired => was_never_stored && !guard.may_be_stored(),
            // The path is returned when an attempt begins, and the file may be renamed before the attempt uses it.
            ErrorKind::NotFound | ErrorKind::Stale => match self.client.lookup(at_inode(guard.base().inode)).await {
                Ok(there) => there.version_token == guard.base().version_token,
                Err(error) if error.kind == ErrorKind::NotFound => was_never_stored && self.make_again(guard).await,
                Err(_) => false,
            },
            _ => false,
        }
    }

    /// Creates a file again that the masters have removed with the session in which it was created. Returns false if
    /// the file was removed, or if another file has its name by now.
    async fn make_again(self: &Arc<Self>, guard: &mut WriteGuard) -> bool {
        let session = self.client.session();
        let is_forgotten = guard.is_forgotten(session.id().await.as_ref());
        if !is_forgotten && !self.last_closes.is_given_up(guard.base().inode) {
            return false;
        }
        let Some((parent, name)) = self.inodes.name_of(guard.inode()) else { return false };
        let Attr { mode, uid, gid, .. } = *guard.base();
        let target = Some(at_entry(parent, &name));
        let request = CreateRequest { target, mode, uid, gid, exclusive: true, ..CreateRequest::default() };
        let made = self.client.create(request).await;
        self.changed(parent);
        match made {
            Ok(attr) => {
                tracing::warn!(
                    inode = guard.inode(),
                    as_inode = attr.inode,
                    "a file that had gone with its session is made again"
                );
                guard.rebase(attr);
                guard.mark_new(session.id().await);
                true
            }
            Err(error) => {
                tracing::warn!(inode = guard.inode(), %error, "a file that has gone with its session is not made again");
                false
            }
        }
    }

    /// Attributes of a file that was truncated here, if its current version is empty: stored by an attempt with an
    /// unknown outcome, or by another client.
    pub(super) async fn emptied_already(&self, guard: &WriteGuard) -> Option<Attr> {
        if !guard.is_emptied() || guard.is_unlinked() {
            return None;
        }
        let there = self.client.lookup(at_inode(guard.base().inode)).await.ok()?;
        let is_other = there.version_token != guard.base().version_token;
        (is_other && there.size == 0 && there.r#type() == FileType::File).then_some(there)
    }
}
