//! Files that cannot be stored because they are not what they were: their directory has moved meanwhile, they have gone with the
//! session in which they were made, or an attempt that was given up has stored them.

use std::sync::Arc;

use jindofs_proto::v1::{Attr, CreateRequest, FileType};

use crate::client::namespace::{at_entry, at_inode};
use crate::error::{Error, ErrorKind};

use super::fs::Fs;
use super::staging::WriteGuard;

impl Fs {
    /// After an attempt to store a file has failed with `error`: true if the next one may find the file.
    pub(super) async fn is_elsewhere_by_now(self: &Arc<Self>, guard: &mut WriteGuard, error: &Error) -> bool {
        let was_never_stored = guard.base().version_token.is_empty();
        if guard.is_unlinked() || !guard.is_dirty() {
            return false;
        }
        match error.kind {
            // The masters were not told of the attempt: the next one is told what they know.
            ErrorKind::SessionExpired => was_never_stored && !guard.may_be_stored(),
            // Where it lies is told when an attempt begins, and may have moved before the attempt came to it.
            ErrorKind::NotFound | ErrorKind::Stale => match self.client.lookup(at_inode(guard.base().inode)).await {
                Ok(there) => there.version_token == guard.base().version_token,
                Err(error) if error.kind == ErrorKind::NotFound => was_never_stored && self.make_again(guard).await,
                Err(_) => false,
            },
            _ => false,
        }
    }

    /// Makes a file again that the masters have forgotten with the session in which it was made; false if it was removed, or its name
    /// is another's by now.
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

    /// Attributes of a file that was cut off here, if there is nothing in it by now: an attempt of which nobody knew the end has
    /// stored that, or others have.
    pub(super) async fn emptied_already(&self, guard: &WriteGuard) -> Option<Attr> {
        if !guard.is_emptied() || guard.is_unlinked() {
            return None;
        }
        let there = self.client.lookup(at_inode(guard.base().inode)).await.ok()?;
        let is_other = there.version_token != guard.base().version_token;
        (is_other && there.size == 0 && there.r#type() == FileType::File).then_some(there)
    }
}
