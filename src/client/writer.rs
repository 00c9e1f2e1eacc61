//! Storing file content: straight into the under-storage, between an intent of the masters and its end.
//!
//! *Promises.* A file is stored as a whole, and only while it still is of the version the content was made from: a second
//! writer whose base is gone is told `Stale`. `Ok` means that the under-storage has it and the masters know it. After an
//! error the file is what it was before, unless the error says that nobody knows; then a master finds out.

use std::sync::Arc;
use std::time::Duration;

use jindofs_proto::v1::batch_op::Op;
use jindofs_proto::v1::{Attr, BeginWriteRequest, BeginWriteResponse, EndWriteRequest, Mount, StoredContent};
use tokio::runtime::Handle;

use super::batches::Batches;
use super::mounts::Mounts;
use super::namespace::Namespace;
use crate::error::{Error, ErrorKind, Result};
use crate::runtime::failpoint_io;
use crate::ufs::{Content, Entry, Expected, NewAttr, Registry, Sent, Upload};

/// How long the error of a write waits for a master to find out what came of it.
const LOOK: Duration = Duration::from_secs(2);

/// The way of content out of one client process.
#[derive(Debug)]
pub struct Writer {
    namespace: Arc<Namespace>,
    batches: Arc<Batches>,
    mounts: Arc<Mounts>,
    storage: Registry,
}

impl Writer {
    /// A writer. `namespace` must be the one that creates the files: what is made in a session ends with it.
    pub fn new(namespace: Arc<Namespace>, batches: Arc<Batches>, mounts: Arc<Mounts>, storage: Registry) -> Writer {
        Writer { namespace, batches, mounts, storage }
    }

    /// Stores the whole content of a file below a mount. `attr` names the file and the version that `content` was made from.
    /// `begun` is the announcement, if it was made already. Returns the attributes of the new version.
    ///
    /// Not cancel-safe: dropped half-way it leaves the file to nobody else until the session ends.
    ///
    /// *Errors*: `Stale` when the file is of another version by now; `Busy`; what the under-storage says; `OutcomeUnknown`.
    pub async fn store(&self, attr: &Attr, begun: Option<BeginWriteResponse>, content: Content) -> Result<Attr> {
        let begun = match begun {
            Some(begun) => begun,
            None => self.begin(attr).await?,
        };
        let entry = match self.put(&begun, &attr.version_token, content).await {
            Ok(entry) => entry,
            Err(error) => {
                self.give_up(attr, begun.intent).await;
                return Err(error);
            }
        };
        let stored = StoredContent { version_token: entry.token.into(), size: entry.size, mtime_ns: entry.mtime_ns };
        let ended = match self.end(begun.intent, stored).await {
            Err(error) if has_ended(&error) => {
                self.give_up(attr, begun.intent).await;
                return Err(error);
            }
            ended => ended?,
        };
        ended.ok_or_else(|| Error::new(ErrorKind::NotFound, "the file was removed while it was stored"))
    }

    /// Begins to send content that is going to be stored at `path` of a mount in place of the version `base`, before its end is
    /// known. `None` where the under-storage cannot be opened: whoever stores is told why.
    pub fn begin_upload(
        &self,
        mount: &Mount,
        path: Vec<u8>,
        base: Vec<u8>,
    ) -> Option<impl Future<Output = Result<Option<Upload>>> + Send + use<>> {
        let storage = self.storage.open(&mount.ufs_uri, &mount.options).ok()?;
        Some(async move { storage.begin(&path, expected(&base)).await })
    }

    /// Prepares the storing of a new file at `path` of a mount, while the masters are told of it; best effort.
    pub async fn prepare(&self, mount: &Mount, path: &[u8], attr: NewAttr, content: Content) -> Sent {
        match self.storage.open(&mount.ufs_uri, &mount.options) {
            Ok(storage) => storage.prepare(path, content, attr).await,
            Err(_) => Sent::default(),
        }
    }

    async fn begin(&self, attr: &Attr) -> Result<BeginWriteResponse> {
        let (inode, base_token) = (attr.inode, attr.version_token.clone());
        let request = BeginWriteRequest { op: None, inode, base_token: base_token.clone() };
        match self.batches.submit(Op::BeginWrite(request), &Handle::current()).await {
            Ok(done) => Ok(BeginWriteResponse {
                intent: done.intent,
                mount_id: done.attr.as_ref().map_or(0, |attr| attr.mount_id),
                ufs_path: done.ufs_path,
                attr: done.attr,
            }),
            // It has to wait, which a batch does not.
            Err(error) if error.was_not_begun() => self.namespace.begin_write(inode, base_token).await,
            Err(error) => Err(error),
        }
    }

    async fn end(&self, intent: u64, stored: StoredContent) -> Result<Option<Attr>> {
        let request = EndWriteRequest { op: None, intent, stored: Some(stored.clone()) };
        match self.batches.submit(Op::EndWrite(request), &Handle::current()).await {
            Ok(done) => Ok(done.attr),
            Err(error) if error.was_not_begun() => self.namespace.end_write(intent, Some(stored)).await,
            Err(error) => Err(error),
        }
    }

    /// Has a master look what came of a write. Best effort: it looks too when the session ends.
    async fn give_up(&self, attr: &Attr, intent: u64) {
        let (namespace, inode, base) = (self.namespace.clone(), attr.inode, attr.version_token.clone());
        let looked = tokio::spawn(async move {
            let ended = match namespace.end_write(intent, None).await {
                // A master has looked when our session ended, and we may have stored since.
                Err(error) if has_ended(&error) => match namespace.begin_write(inode, base).await {
                    Ok(begun) => namespace.end_write(begun.intent, None).await,
                    Err(error) => Err(error),
                },
                ended => ended,
            };
            if let Err(error) = ended {
                tracing::warn!(inode, %error, "a write that failed is not ended yet");
            }
        });
        if tokio::time::timeout(LOOK, looked).await.is_err() {
            tracing::info!(inode, "what came of a write is found out when the under-storage answers again");
        }
    }

    async fn put(&self, begun: &BeginWriteResponse, base: &[u8], content: Content) -> Result<Entry> {
        let mount = self.mounts.get(begun.mount_id).await?.ok_or_else(|| {
            Error::new(ErrorKind::Stale, format!("mount {} of the file does not exist any more", begun.mount_id))
        })?;
        let storage = self.storage.open(&mount.ufs_uri, &mount.options)?;
        let attr = begun.attr.as_ref().ok_or_else(|| Error::internal("begin a write: the answer lacks attributes"))?;
        let attr = new_attr(attr);
        failpoint_io("write.begun")?;
        let entry = storage.put(&begun.ufs_path, content, expected(base), attr, begun.intent).await?;
        failpoint_io("write.stored")?;
        Ok(entry)
    }
}

/// What a new file is given.
pub fn new_attr(attr: &Attr) -> NewAttr {
    NewAttr { mode: attr.mode, uid: attr.uid, gid: attr.gid }
}

/// What is there before content that was made from the version `base` is stored.
fn expected(base: &[u8]) -> Expected<'_> {
    if base.is_empty() { Expected::Absent } else { Expected::Token(base) }
}

/// Somebody else has ended the write: our session has expired meanwhile.
fn has_ended(error: &Error) -> bool {
    matches!(error.kind, ErrorKind::Stale | ErrorKind::SessionExpired)
}
