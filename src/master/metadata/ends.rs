//! Files whose writers were answered when the under-storage had the content, before that was recorded: whoever asks for one
//! waits for the record, which is on its way.
//!
//! Where it does not come, because the writer is slow or gone, what lies in the under-storage is what there is to tell.

use std::time::Duration;

use jindofs_proto::store::v1::command::Command as Kind;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::store::v1::{self as stored, Command, FinishIntent};
use jindofs_proto::v1::Attr;

use super::Metadata;
use super::load::convert;
use crate::error::{Error, ErrorKind, Result};
use crate::master::state::{Fault, Refusal, query};
use crate::master::wording::to_error;
use crate::ufs;

/// How long to wait for a writer: many times what it takes.
const COMMIT_TIMEOUT: Duration = Duration::from_millis(100);

/// A file that is being stored, by the intent of that.
type Behind = (u64, u64);

impl Metadata {
    /// Waits until it is known what came of storing these files, as far as that had begun. False if there was nothing to wait
    /// for; otherwise they are to be asked for again.
    ///
    /// *Errors*: `NotLeader` on a follower that has waited in vain; the under-storage's.
    pub(super) async fn await_ends<'a>(&self, attrs: impl Iterator<Item = &'a Attr>) -> Result<bool> {
        let (behind, changed) = self.behind(attrs)?;
        if behind.is_empty() {
            return Ok(changed);
        }
        // Whether it was in vain is seen from what is left.
        let _ = tokio::time::timeout(COMMIT_TIMEOUT, self.all_end(&behind)).await;
        let left = self.left(&behind)?;
        if !left.is_empty() && !self.handle.is_leader() {
            return Err(self.handle.not_leader());
        }
        for file in left {
            self.look_at(file).await?;
        }
        Ok(true)
    }

    /// As [`Metadata::await_ends`], for inodes that are about to be changed.
    pub(crate) async fn await_ends_of(&self, inodes: &[u64]) -> Result<()> {
        let Some(store) = self.handle.store() else { return Ok(()) };
        let attrs: Vec<Attr> = inodes.iter().filter_map(|inode| query::attr(&store.view(), *inode).ok()).collect();
        self.await_ends(attrs.iter()).await.map(drop)
    }

    /// Those that are being stored, and whether any has changed since it was looked at: it may have been stored by then.
    fn behind<'a>(&self, attrs: impl Iterator<Item = &'a Attr>) -> Result<(Vec<Behind>, bool)> {
        let (mut behind, mut changed) = (Vec::new(), false);
        for attr in attrs.filter(|attr| query::was_never_stored(attr)) {
            let Some(store) = self.handle.store() else { break };
            let view = store.view();
            match query::inode(&view, attr.inode)? {
                Some(row) if row.version == attr.version => {
                    behind.extend(query::ends_behind(&view, attr.inode, &row)?.map(|intent| (intent, attr.inode)));
                }
                _ => changed = true,
            }
        }
        Ok((behind, changed))
    }

    /// Those that have not ended yet.
    fn left(&self, behind: &[Behind]) -> Result<Vec<Behind>> {
        let store = self.handle.store().ok_or_else(|| Error::unavailable("this master belongs to no cluster"))?;
        let (view, mut left) = (store.view(), Vec::new());
        for file in behind {
            if query::intent(&view, file.0)?.is_some() {
                left.push(*file);
            }
        }
        Ok(left)
    }

    async fn all_end(&self, behind: &[Behind]) -> Result<()> {
        let Some(mut applied) = self.handle.applied() else { return Ok(()) };
        let mut left = behind.to_vec();
        loop {
            applied.mark_unchanged();
            left = self.left(&left)?;
            if left.is_empty() || applied.changed().await.is_err() {
                return Ok(());
            }
        }
    }

    /// Takes in what was stored of a file. What is not there may still come, and is as good as not begun.
    async fn look_at(&self, (intent, inode): Behind) -> Result<()> {
        let store = self.handle.read().await?;
        let (mount, path) = match query::ufs_path(&store.view(), inode) {
            Err(Fault::Refused(refusal)) if refusal.kind() == ErrorKind::NotFound => return Ok(()),
            place => place?,
        };
        let storage = self.storage.open(&mount.ufs_uri, &mount.options)?;
        let Some(found) = storage.stat(&path).await?.filter(|found| found.kind == ufs::Kind::File) else {
            return Ok(());
        };
        // What is recorded is told, and must not be gone after a power cut. Its writer may not have come to that yet.
        storage.sync_name(&path).await?;
        tracing::info!(intent, inode, "a file is there whose writer has not said so");
        let finish = FinishIntent { id: intent, entry: Some(convert(found)), ..FinishIntent::default() };
        match self.record_end(finish).await? {
            Some(Answer::Refused(refusal)) => Err(to_error(&refusal)),
            // `None` when its writer has just said so.
            _ => Ok(()),
        }
    }

    /// Records what came of a change of under-storage; `None` when somebody has done so before.
    ///
    /// *Errors*: as [`crate::master::raft::Handle::propose`].
    pub(crate) async fn record_end(&self, finish: FinishIntent) -> Result<Option<Answer>> {
        let command = Command { command: Some(Kind::FinishIntent(finish)), ..Command::default() };
        match self.handle.propose(command).await?.outcome {
            Some(Answer::Refused(refusal)) if has_ended(&refusal) => Ok(None),
            Some(said) => Ok(Some(said)),
            None => Err(Error::internal("a command was answered with nothing")),
        }
    }
}

/// True for the refusal of an end that was recorded before. An under-storage may refuse a change with the same kind.
fn has_ended(refusal: &stored::Refusal) -> bool {
    matches!(Refusal::from_stored(refusal), Some(Refusal::IntentEnded { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::master::state::refusal::said;

    #[test]
    fn a_change_that_its_under_storage_refuses_is_not_taken_for_one_that_has_ended_before() {
        let ended = Refusal::IntentEnded { intent: 7 };
        assert!(has_ended(&ended.to_stored()));
        assert!(!has_ended(&said(ended.kind(), "the bucket has a retention policy")));
    }
}
