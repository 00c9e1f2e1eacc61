//! One attempt to store the staged content of a file. It holds the guard of the file, so that renames, attribute
//! changes and removals of the file wait for it; therefore it has a deadline.

use std::sync::Arc;

use jindofs_proto::v1::{Attr, Mount};

use crate::client::writer::{WriteIntent, new_attr};
use crate::error::Result;
use crate::ufs::{Content, Deadline, PreparedPut, Times};

use super::fs::Fs;
use super::staging::WriteGuard;
use super::write::StoreMode;

impl Fs {
    /// *Errors*: as [`Fs::sync`].
    pub(super) async fn store_once(self: &Arc<Self>, guard: &mut WriteGuard, how: StoreMode) -> Result<()> {
        // The content is taken once, because content in memory is copied.
        let content = guard.is_due().then(|| guard.content()).transpose()?;
        let prepared = self.prepared(guard, content.as_ref());
        let is_due = guard.is_due();
        let (begun, prepared) = tokio::join!(self.await_create(guard, is_due), prepared);
        let begun = begun?;
        let Some(content) = content.filter(|_| guard.is_due()) else { return Ok(()) };
        self.await_commit(guard.inode()).await;
        let behind = how == StoreMode::CommitInBackground && content.is_in_memory() && self.pending_commits.has_room();
        let begun = match begun {
            Some(begun) => Ok(begun),
            None if how == StoreMode::NonBlocking => self.writer.try_begin(guard.base(), false).await,
            None => self.writer.begin(guard.base(), behind && guard.base().version_token.is_empty()).await,
        };
        // The masters have a timeout of their own. From here on the under-storage is awaited with the guard held.
        let deadline = Deadline::for_store();
        let prefix = if begun.is_ok() { guard.finish_upload(&deadline).await } else { guard.discard_upload() };
        let (prepared, extends) = (prepared.unwrap_or_else(|| prefix.prepared.clone()), guard.extends_base());
        let content = Content { prepared, extends, times: self.times_of_unwritten(guard), ..content };
        let intent = begun.as_ref().ok().map(WriteIntent::intent);
        let stored = match begun {
            Ok(begun) if behind => self.writer.store_deferring_commit(guard.base(), begun, content, &deadline).await,
            Ok(begun) => self.writer.store(guard.base(), begun, content, &deadline).await.map(|attr| (attr, None)),
            Err(error) => Err(error),
        };
        if let Some(intent) = intent.filter(|_| stored.is_err()) {
            // Some or all of the content may be stored.
            guard.doubt(intent);
        }
        prefix.prepared.abort().await;
        let stored = stored.map(|(attr, end)| {
            if let Some(end) = end {
                self.commit_in_background(&attr, end);
            }
            attr
        });
        self.finish_store(guard, stored).await
    }

    /// The times that handles see of a file without written content: storing it after its last close must not change
    /// them.
    fn times_of_unwritten(&self, guard: &WriteGuard) -> Option<Times> {
        let known = self.inodes.get(guard.inode()).filter(|_| !guard.is_written())?;
        let seen = self.staging.overlay(guard.node(), &known.attr);
        Some(Times { mtime_ns: seen.mtime_ns, ctime_ns: seen.ctime_ns })
    }

    /// Prepares the storing of a small file while its create is committed, which takes about as long.
    fn prepared<'s>(
        &'s self,
        guard: &WriteGuard,
        content: Option<&Content>,
    ) -> impl Future<Output = Option<PreparedPut>> + Send + use<'s> {
        let base = guard.base();
        let content = content.filter(|content| content.is_in_memory()).cloned();
        let place = self.pending_creates.get(base.inode).and_then(|_| self.place_of(base));
        let attr = new_attr(base);
        async move {
            let ((mount, path), content) = place.zip(content)?;
            Some(self.writer.prepare(&mount, &path, attr, content).await)
        }
    }

    /// The mount of a file and its path below it, as far as known.
    pub(super) fn place_of(&self, attr: &Attr) -> Option<(Mount, Vec<u8>)> {
        let mount = self.mounts.known(attr.mount_id)?;
        let path = self.inodes.path_below(mount.root_inode, attr.inode)?;
        Some((mount, path))
    }
}
