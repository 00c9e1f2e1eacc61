//! Locks on ranges of files, as one client asks the masters for them. They end with the client's session.

use std::sync::OnceLock;

use bytes::Bytes;
use jindofs_proto::v1::{GetLockRequest, Lock, SetLockRequest};

use super::namespace::Namespace;
use crate::error::Result;
use crate::rpc::channel::namespace;

/// What came of asking for a lock.
#[derive(Debug, Clone, PartialEq)]
pub enum Asked {
    /// The owner has what it asked for, in the session with this id.
    Granted(Bytes),
    /// This lock is in the way.
    Held(Lock),
}

impl Namespace {
    /// Takes, changes or gives up a lock, at once or not at all. An error that says nothing else leaves open whether it was
    /// done.
    ///
    /// *Errors*: `NotFound` for a file that is gone, `NoSpace` at a limit; as [`Namespace::create`].
    pub async fn set_lock(&self, inode: u64, lock: Lock) -> Result<Asked> {
        let session = OnceLock::new();
        let request = SetLockRequest { op: None, inode, lock: Some(lock) };
        let send = |to, op: Option<jindofs_proto::v1::OpId>| {
            session.get_or_init(|| op.as_ref().map(|op| op.client_id.clone()).unwrap_or_default());
            let request = SetLockRequest { op, ..request.clone() };
            async move { namespace(to).set_lock(request).await }
        };
        let answer = self.mutate("set a lock", send).await?;
        Ok(match answer.holder {
            Some(holder) => Asked::Held(holder),
            None => Asked::Granted(session.into_inner().unwrap_or_default()),
        })
    }

    /// The lock that is in the way of `lock`; none of its owner's own is.
    ///
    /// *Errors*: those of the channel.
    pub async fn lock_holder(&self, inode: u64, lock: Lock) -> Result<Option<Lock>> {
        let client_id = self.session().id().await.unwrap_or_default();
        let request = GetLockRequest { inode, lock: Some(Lock { client_id, ..lock }) };
        let send = |to| {
            let request = request.clone();
            async move { namespace(to).get_lock(request).await }
        };
        Ok(self.channel().call_any("get a lock", send).await?.holder)
    }
}
