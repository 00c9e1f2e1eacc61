//! Stores the content of files directly in the under-storage, between the begin and the end of a write intent that the
//! masters record.
//!
//! *Promises.* A file is stored as a whole, and only while it has the version that the content was made from: a second
//! writer with an outdated base gets `Stale`. `Ok` means that the under-storage has the content and that the masters
//! either know it, or find it before they answer any request for the file. After an error the file is unchanged, unless
//! the error says that the outcome is unknown; then a master finds it out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jindofs_proto::v1::batch_op::Op;
use jindofs_proto::v1::{
    Attr, BeginWriteRequest, CreateRequest, EndWriteRequest, Mount, MutationResponse, StoredContent,
};
use tokio::runtime::Handle;

use super::batcher::Batcher;
use super::mounts::Mounts;
use super::namespace::{Namespace, at_entry, at_inode};
use crate::error::{Error, ErrorKind, Result};
use crate::runtime::{Fail, failpoint, failpoint_io, now_ns};
use crate::ufs::{Content, Deadline, Entry, Expected, NewAttr, PreparedPut, Registry, Ufs, Upload};

/// How long a failed write waits for a master to find out its outcome.
const OUTCOME_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause between two attempts to commit what is stored.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// A write intent that the masters have recorded: the right to store the content of a file.
#[derive(Debug, Clone)]
pub struct WriteIntent {
    intent: u64,
    ufs_path: Bytes,
    attr: Attr,
    /// Readers of the file wait for the commit, so it may follow after the answer to the writer.
    end_behind: bool,
    /// When the intent was requested, or earlier.
    asked: Instant,
}

impl WriteIntent {
    /// The write intent in the response to a mutation that was sent at `asked`; `None` if it contains none.
    pub fn from_response(done: MutationResponse, asked: Instant) -> Option<WriteIntent> {
        let MutationResponse { attr, intent, ufs_path, end_behind } = done;
        (intent != 0).then_some(WriteIntent { intent, ufs_path, attr: attr?, end_behind, asked })
    }

    /// Number of the intent at the masters.
    pub fn intent(&self) -> u64 {
        self.intent
    }

    /// Attributes of the file after the commit.
    fn resulting_attr(&self, stored: &StoredContent) -> Attr {
        let mut attr = self.attr.clone();
        (attr.size, attr.mtime_ns) = (stored.size, stored.mtime_ns);
        (attr.version_token, attr.ctime_ns) = (stored.version_token.clone(), stored.ctime_ns);
        attr.version += 1;
        if !stored.extends_base {
            attr.prefix_since = attr.version;
        }
        attr
    }
}

/// A write whose content is stored and whose commit is still to be sent.
#[derive(Debug)]
pub struct DeferredCommit {
    writer: Writer,
    begun: WriteIntent,
    stored: StoredContent,
}

impl DeferredCommit {
    /// Queues the commit, which is retried for as long as the masters do not answer. `completion` is called with the
    /// resulting attributes in a task; it must not block.
    ///
    /// *Errors*: the masters do not know the stored content.
    pub fn enqueue(self, completion: impl FnOnce(Result<Attr>) + Send + 'static) {
        let (batcher, op) = (self.writer.batcher.clone(), end_write_op(&self.begun, &self.stored));
        batcher.enqueue(op, &Handle::current(), move |outcome| match outcome {
            Ok(MutationResponse { attr: Some(attr), .. }) => completion(Ok(attr)),
            outcome => {
                tokio::spawn(async move { completion(self.resolve(outcome).await) });
            }
        });
    }

    async fn resolve(self, outcome: Result<MutationResponse>) -> Result<Attr> {
        match self.writer.outcome_of_end(outcome, self.begun.intent, &self.stored).await {
            Ok(Some(attr)) => Ok(attr),
            // A master has resolved the intent already, or the outcome is unknown.
            _ => self.writer.recover(&self.begun, &self.stored).await,
        }
    }
}

/// Stores the content of files for one client process. Clones share it.
#[derive(Debug, Clone)]
pub struct Writer {
    namespace: Arc<Namespace>,
    batcher: Arc<Batcher>,
    mounts: Arc<Mounts>,
    storage: Arc<Registry>,
}

impl Writer {
    /// Creates a writer. `namespace` must be the one that creates the files: files that are not stored are removed with
    /// its session.
    pub fn new(namespace: Arc<Namespace>, batcher: Arc<Batcher>, mounts: Arc<Mounts>, storage: Registry) -> Writer {
        Writer { namespace, batcher, mounts, storage: Arc::new(storage) }
    }

    /// Stores the whole content of a file below a mount. `attr` names the file and the version that `content` was made
    /// from, `begun` is the write intent, and after `deadline` the under-storage is given up. Returns the attributes of
    /// the new version.
    ///
    /// Not cancel-safe: a dropped future blocks other writers of the file until the session ends.
    ///
    /// *Errors*: `Stale` if the file has another version by now; `Busy`; those of the under-storage; `OutcomeUnknown`.
    pub async fn store(&self, attr: &Attr, begun: WriteIntent, content: Content, deadline: &Deadline) -> Result<Attr> {
        let stored = self.put(&begun, attr, content, deadline).await?;
        self.end(attr, &begun, stored).await
    }

    /// As [`Writer::store`], but returns the commit to the caller if it may be deferred.
    ///
    /// *Durability*: the under-storage has the content, and the masters have recorded the intent: if this client dies,
    /// they look up what is stored.
    ///
    /// *Errors*: as [`Writer::store`]. Those of the commit say that the masters do not know the stored content.
    pub async fn store_deferring_commit(
        &self,
        attr: &Attr,
        begun: WriteIntent,
        content: Content,
        deadline: &Deadline,
    ) -> Result<(Attr, Option<DeferredCommit>)> {
        let mut stored = self.put(&begun, attr, content, deadline).await?;
        if !begun.end_behind || !self.holds_lease(&begun) {
            return Ok((self.end(attr, &begun, stored).await?, None));
        }
        if stored.ctime_ns == 0 {
            stored.ctime_ns = now_ns();
        }
        stored.ctime_ns = stored.ctime_ns.max(begun.attr.ctime_ns);
        let resulting_attr = begun.resulting_attr(&stored);
        Ok((resulting_attr, Some(DeferredCommit { writer: self.clone(), begun, stored })))
    }

    /// Rejects a path that no object in the under-storage of a mount can have, as far as that is known without a
    /// request.
    ///
    /// *Errors*: `InvalidArgument`, `NameTooLong`.
    pub fn check_path(&self, mount: &Mount, path: &[u8]) -> Result<()> {
        // If the under-storage cannot be opened, storing reports why.
        let storage = self.storage.open(&mount.ufs_uri, &mount.options).ok();
        storage.map_or(Ok(()), |storage| storage.check_path(path))
    }

    /// True if an object in the under-storage of a mount can have this path, as far as known; `None` if the
    /// under-storage is not open yet, since to open it may read files.
    pub fn can_be_path_now(&self, mount: &Mount, path: &[u8]) -> Option<bool> {
        let storage = self.storage.opened_now(&mount.ufs_uri, &mount.options)?;
        Some(storage.check_path(path).is_ok())
    }

    /// Asks the masters to forget a file that was created in our session and is not stored. If it is stored, or another
    /// client has created it as well, it stays and its attributes are returned. `given_up` is the intent of the last
    /// failed attempt: while the under-storage does not answer the master that resolves it, no other intent can begin.
    ///
    /// *Errors*: `Stale` if the file is stored; `NotFound`; as [`Namespace::end_write`]. After an error the masters may
    /// know of the request nevertheless, and forget the file later.
    pub async fn abandon_create(&self, inode: u64, given_up: Option<u64>) -> Result<Option<Attr>> {
        if let Some(intent) = given_up {
            match self.namespace.abandon_write(intent).await {
                Err(error) if ended_by_others(&error) => {}
                abandoned => return abandoned,
            }
        }
        let begun = self.namespace.begin_write(inode, Bytes::new()).await?;
        self.namespace.abandon_write(begun.intent).await
    }

    /// True if the masters cannot have ended the intent because our session expired: the intent was recorded less than
    /// half of the session timeout ago.
    fn holds_lease(&self, begun: &WriteIntent) -> bool {
        failpoint("write.lease") == Fail::Skip
            || self.namespace.session().lasts_now().is_some_and(|lasts| begun.asked.elapsed() < lasts / 2)
    }

    /// Lets the masters find the stored content; retries without a limit.
    async fn recover(&self, begun: &WriteIntent, stored: &StoredContent) -> Result<Attr> {
        loop {
            match self.recover_once(begun, stored).await {
                Err(error) if error.is_retryable() || error.kind == ErrorKind::OutcomeUnknown => {
                    tracing::warn!(inode = begun.attr.inode, %error, "a file that is stored is not recorded yet");
                }
                found => return found,
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    async fn recover_once(&self, begun: &WriteIntent, stored: &StoredContent) -> Result<Attr> {
        let mut found = self.namespace.lookup(at_inode(begun.attr.inode)).await;
        if found.as_ref().is_err_and(|error| error.kind == ErrorKind::NotFound)
            && self.is_still_stored(begun, stored).await?
        {
            // Our session expired before the content was stored, and with it the file that we created.
            let name = begun.ufs_path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
            let target = Some(at_entry(begun.attr.parent, name));
            let Attr { mode, uid, gid, .. } = begun.attr;
            found = self.namespace.create(CreateRequest { target, mode, uid, gid, ..CreateRequest::default() }).await;
        }
        let attr = found?;
        if !attr.version_token.is_empty() {
            return Ok(attr);
        }
        let looked = probe_outcome(&self.namespace, attr.inode, attr.version_token).await?;
        looked.ok_or_else(|| Error::new(ErrorKind::NotFound, "the file was removed since it was stored"))
    }

    /// True if the under-storage still has the stored version.
    async fn is_still_stored(&self, begun: &WriteIntent, stored: &StoredContent) -> Result<bool> {
        let storage = self.storage_of(begun).await?;
        Ok(storage.stat(&begun.ufs_path).await?.is_some_and(|entry| entry.token == stored.version_token))
    }

    /// Opens an upload to `path` of a mount, in place of the version `base`, before the length of the content is known.
    /// Returns `None` if the under-storage cannot be opened; storing reports why.
    pub fn begin_upload(
        &self,
        mount: &Mount,
        path: Vec<u8>,
        base: Vec<u8>,
    ) -> Option<impl Future<Output = Result<Option<Upload>>> + Send + use<>> {
        let storage = self.storage.open(&mount.ufs_uri, &mount.options).ok()?;
        Some(async move { storage.begin(&path, expected(&base)).await })
    }

    /// Prepares the put of a new file at `path` of a mount while the masters record the intent. Best effort.
    pub async fn prepare(&self, mount: &Mount, path: &[u8], attr: NewAttr, content: Content) -> PreparedPut {
        match self.storage.open(&mount.ufs_uri, &mount.options) {
            Ok(storage) => storage.prepare(path, content, attr).await,
            Err(_) => PreparedPut::default(),
        }
    }

    /// Records a write intent at the masters. With `end_behind` the commit may follow after the answer to the writer.
    ///
    /// *Errors*: `Stale` if the file has another version by now; `Busy`. Nothing is stored then.
    pub async fn begin(&self, attr: &Attr, end_behind: bool) -> Result<WriteIntent> {
        let asked = Instant::now();
        match self.try_begin(attr, end_behind).await {
            // The intent has to wait for another change, which a batch does not.
            Err(error) if error.was_not_begun() => {
                let done = self.namespace.begin_write(attr.inode, attr.version_token.clone()).await?;
                let attr = done.attr.ok_or_else(missing_location)?;
                Ok(WriteIntent { intent: done.intent, ufs_path: done.ufs_path, attr, end_behind: false, asked })
            }
            begun => begun,
        }
    }

    /// As [`Writer::begin`], without waiting for another change of the file in progress.
    ///
    /// *Errors*: as [`Writer::begin`]; `ResourceExhausted` while there is one.
    pub async fn try_begin(&self, attr: &Attr, end_behind: bool) -> Result<WriteIntent> {
        let (inode, base_token, asked) = (attr.inode, attr.version_token.clone(), Instant::now());
        let request = BeginWriteRequest { op: None, inode, base_token, end_behind };
        let done = self.batcher.submit(Op::BeginWrite(request), &Handle::current()).await?;
        WriteIntent::from_response(done, asked).ok_or_else(missing_location)
    }

    async fn end(&self, attr: &Attr, begun: &WriteIntent, stored: StoredContent) -> Result<Attr> {
        let outcome = self.batcher.submit(end_write_op(begun, &stored), &Handle::current()).await;
        let ended = match self.outcome_of_end(outcome, begun.intent, &stored).await {
            Err(error) if ended_by_others(&error) => {
                self.resolve_outcome(attr, begun.intent).await;
                return Err(error);
            }
            ended => ended?,
        };
        ended.ok_or_else(|| Error::new(ErrorKind::NotFound, "the file was removed while it was stored"))
    }

    /// The outcome of a commit. A commit that did not fit into its batch is sent by itself.
    async fn outcome_of_end(
        &self,
        outcome: Result<MutationResponse>,
        intent: u64,
        stored: &StoredContent,
    ) -> Result<Option<Attr>> {
        match outcome {
            Ok(done) => Ok(done.attr),
            Err(error) if error.was_not_begun() => self.namespace.end_write(intent, Some(stored.clone())).await,
            Err(error) => Err(error),
        }
    }

    /// Lets a master resolve a failed write. Best effort: the masters also resolve it when the session ends.
    async fn resolve_outcome(&self, attr: &Attr, intent: u64) {
        let (namespace, inode, base) = (self.namespace.clone(), attr.inode, attr.version_token.clone());
        let looked = tokio::spawn(async move {
            let ended = match namespace.end_write(intent, None).await {
                // A master resolved the intent when our session ended, and we may have stored the content since.
                Err(error) if ended_by_others(&error) => probe_outcome(&namespace, inode, base).await,
                ended => ended,
            };
            if let Err(error) = ended {
                tracing::warn!(inode, %error, "a write that failed is not ended yet");
            }
        });
        if tokio::time::timeout(OUTCOME_TIMEOUT, looked).await.is_err() {
            tracing::info!(inode, "what came of a write is found out when the under-storage answers again");
        }
    }

    /// Stores the content in the under-storage. After an error the masters resolve the intent.
    async fn put(
        &self,
        begun: &WriteIntent,
        attr: &Attr,
        content: Content,
        deadline: &Deadline,
    ) -> Result<StoredContent> {
        let (extends_base, ctime_ns) = (content.extends, content.times.map_or(0, |times| times.ctime_ns));
        match self.put_once(begun, &attr.version_token, content, deadline).await {
            Ok(Entry { token, size, mtime_ns, .. }) => {
                Ok(StoredContent { version_token: token.into(), size, mtime_ns, ctime_ns, extends_base })
            }
            Err(error) => {
                self.resolve_outcome(attr, begun.intent).await;
                Err(error)
            }
        }
    }

    async fn put_once(&self, begun: &WriteIntent, base: &[u8], content: Content, deadline: &Deadline) -> Result<Entry> {
        let storage = self.storage_of(begun).await?;
        failpoint_io("write.begun")?;
        let attr = new_attr(&begun.attr);
        let entry = storage.put(&begun.ufs_path, content, expected(base), attr, begun.intent, deadline).await?;
        failpoint_io("write.stored")?;
        Ok(entry)
    }

    async fn storage_of(&self, begun: &WriteIntent) -> Result<Arc<dyn Ufs>> {
        let id = begun.attr.mount_id;
        let gone = || Error::new(ErrorKind::Stale, format!("mount {id} of the file does not exist any more"));
        let mount = self.mounts.get(id).await?.ok_or_else(gone)?;
        self.storage.open(&mount.ufs_uri, &mount.options)
    }
}

/// Lets a master look up the stored version of a file whose base is `base`, as after a write with an unknown outcome.
async fn probe_outcome(namespace: &Namespace, inode: u64, base: Bytes) -> Result<Option<Attr>> {
    let begun = namespace.begin_write(inode, base).await?;
    namespace.end_write(begun.intent, None).await
}

fn missing_location() -> Error {
    Error::internal("begin a write: the answer lacks what to store where")
}

/// Owner and mode of a new file.
pub fn new_attr(attr: &Attr) -> NewAttr {
    NewAttr { mode: attr.mode, uid: attr.uid, gid: attr.gid }
}

fn end_write_op(begun: &WriteIntent, stored: &StoredContent) -> Op {
    Op::EndWrite(EndWriteRequest { intent: begun.intent, stored: Some(stored.clone()), ..EndWriteRequest::default() })
}

/// The version that the under-storage must have before content with this base is stored.
fn expected(base: &[u8]) -> Expected<'_> {
    if base.is_empty() { Expected::Absent } else { Expected::Token(base) }
}

/// True if the intent was ended by a master because our session expired.
fn ended_by_others(error: &Error) -> bool {
    matches!(error.kind, ErrorKind::Stale | ErrorKind::SessionExpired)
}
