//! One attempt to store what is staged of a file. It holds the turn of the file: a change of its name or mode, and a removal,
//! wait for it. So it has a deadline.

use std::sync::Arc;

use jindofs_proto::v1::{Attr, Mount};

use crate::client::writer::{Begun, new_attr};
use crate::error::Result;
use crate::ufs::{Content, Deadline, Sent, Times};

use super::fs::Fs;
use super::staging::Turn;
use super::write::Storing;

impl Fs {
    /// *Errors*: as [`Fs::sync`].
    pub(super) async fn store_once(self: &Arc<Self>, turn: &mut Turn, how: Storing) -> Result<()> {
        // The content is taken once, as what is in memory is copied.
        let content = turn.is_due().then(|| turn.content()).transpose()?;
        let prepared = self.prepared(turn, content.as_ref());
        let is_due = turn.is_due();
        let (begun, prepared) = tokio::join!(self.made_of(turn, is_due), prepared);
        let begun = begun?;
        let Some(content) = content.filter(|_| turn.is_due()) else { return Ok(()) };
        self.recorded(turn.inode()).await;
        let behind = how == Storing::Behind && content.is_in_memory() && self.endings.have_room();
        let begun = match begun {
            Some(begun) => Ok(begun),
            None if how == Storing::AtOnce => self.writer.begin_at_once(turn.base(), false).await,
            None => self.writer.begin(turn.base(), behind && turn.base().version_token.is_empty()).await,
        };
        // The masters have a time of their own. From here on the under-storage is waited for, with the turn held.
        let deadline = Deadline::for_store();
        let head = if begun.is_ok() { turn.head(&deadline).await } else { turn.without_head() };
        let (sent, extends) = (prepared.unwrap_or_else(|| head.sent.clone()), turn.extends_base());
        let content = Content { sent, extends, times: self.times_of_unwritten(turn), ..content };
        let intent = begun.as_ref().ok().map(Begun::intent);
        let stored = match begun {
            Ok(begun) if behind => self.writer.store_behind(turn.base(), begun, content, &deadline).await,
            Ok(begun) => self.writer.store(turn.base(), begun, content, &deadline).await.map(|attr| (attr, None)),
            Err(error) => Err(error),
        };
        if let Some(intent) = intent.filter(|_| stored.is_err()) {
            // Some or all of it may be there.
            turn.doubt(intent);
        }
        head.sent.give_up().await;
        let stored = stored.map(|(attr, end)| {
            if let Some(end) = end {
                self.record_behind(&attr, end);
            }
            attr
        });
        self.stored(turn, stored).await
    }

    /// The times that handles see of a file that was never written: to store it behind its last close changes nothing of it.
    fn times_of_unwritten(&self, turn: &Turn) -> Option<Times> {
        let known = self.inodes.get(turn.inode()).filter(|_| !turn.is_written())?;
        let seen = self.staging.overlay(turn.node(), &known.attr);
        Some(Times { mtime_ns: seen.mtime_ns, ctime_ns: seen.ctime_ns })
    }

    /// What can be done of storing a small file while it is being made, which takes the masters as long.
    fn prepared<'s>(
        &'s self,
        turn: &Turn,
        content: Option<&Content>,
    ) -> impl Future<Output = Option<Sent>> + Send + use<'s> {
        let base = turn.base();
        let content = content.filter(|content| content.is_in_memory()).cloned();
        let place = self.creates.get(base.inode).and_then(|_| self.place_of(base));
        let attr = new_attr(base);
        async move {
            let ((mount, path), content) = place.zip(content)?;
            Some(self.writer.prepare(&mount, &path, attr, content).await)
        }
    }

    /// The mount of a file and its path there, as far as is known.
    pub(super) fn place_of(&self, attr: &Attr) -> Option<(Mount, Vec<u8>)> {
        let mount = self.mounts.known(attr.mount_id)?;
        let path = self.inodes.path_below(mount.root_inode, attr.inode)?;
        Some((mount, path))
    }
}
