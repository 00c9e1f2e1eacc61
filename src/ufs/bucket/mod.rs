//! Object stores through `OpenDAL`: listings, versions by etag, and what to do about errors. How each store is reached says
//! a module of its name.

mod change;
mod put;
#[cfg(test)]
mod tests;
mod verdict;

use std::sync::Once;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use futures::future::BoxFuture;
use opendal::layers::TimeoutLayer;
use opendal::{Builder, EntryMode, Metadata, Operator};

use super::options::{self, Options, Owner};
use super::{
    AttrChange, Content, Deadline, Entry, Expected, Kind, Listing, NewAttr, Ufs, Upload, saturated_ns, stale, tidy,
};
use crate::error::{Error, ErrorKind, Result};

/// Longest wait for an answer without a body.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the next bytes of a body.
const IO_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest wait for one request that changes something: a copy of [`change::COPY_MAX`] bytes on the store's side at 43 MiB/s.
/// What stores content has a [`Deadline`], which ends before.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest etag that is believed, bytes: a hash, its count of parts, and quotes take a tenth of it.
const ETAG_MAX: usize = 1024;

/// Bytes of the longest key that all stores take.
const KEY_MAX: usize = 1023;

/// Makes TLS and HTTP ready, once.
pub(super) fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Fails when there is one already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        opendal_http_transport_reqwest::install_default();
    });
}

/// A prefix of a bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    operator: Operator,
    /// The same with more patience: for content that is stored.
    write_operator: Operator,
    /// The store has been found to know no conditions for what is written.
    unconditional: AtomicBool,
    owner: Owner,
    /// For people: endpoint and bucket.
    place: String,
    /// What to do when nobody answers.
    check_endpoint: &'static str,
}

impl Bucket {
    /// A bucket that `service` reaches. Nothing is contacted.
    pub(super) fn new(
        service: impl Builder,
        bucket: &str,
        endpoint: Option<&str>,
        check_endpoint: &'static str,
        options: &Options,
    ) -> Result<Bucket> {
        prepare();
        let place = format!("bucket {bucket} at {}", endpoint.unwrap_or("the default endpoint"));
        let service = Operator::new(service).map_err(|error| Error::invalid(format!("{place}: {error}")))?;
        let waits = |io| TimeoutLayer::default().with_timeout(TIMEOUT).with_io_timeout(io);
        Ok(Bucket {
            operator: service.clone().layer(waits(IO_TIMEOUT)),
            write_operator: service.layer(waits(CHANGE_TIMEOUT)),
            unconditional: AtomicBool::new(false),
            owner: options::owner(options)?,
            place,
            check_endpoint,
        })
    }

    async fn list_now(&self, path: &[u8]) -> Result<Listing> {
        let Some(path) = key_of(path) else { return Ok(Listing::default()) };
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        let listed = async {
            let mut lister = self.operator.lister(&prefix).await?;
            let (mut entries, mut skipped) = (Vec::new(), 0);
            while let Some(found) = lister.try_next().await? {
                let Some(name) = found.path().strip_prefix(&prefix).filter(|name| !name.is_empty() && *name != "/")
                else {
                    continue;
                };
                let directory = name.ends_with('/');
                let name = name.strip_suffix('/').unwrap_or(name);
                match self.entry(name, found.metadata(), directory) {
                    Some(entry) => entries.push(entry),
                    None => skipped += 1,
                }
            }
            Ok::<_, opendal::Error>((entries, skipped))
        };
        let (entries, skipped) = listed.await.map_err(|error| self.failed(&prefix, &error))?;
        Ok(tidy(entries, skipped))
    }

    /// `None` for an object that could not be asked for by this name again, that names no version of its content, or that is
    /// larger than a file can be.
    fn entry(&self, name: &str, metadata: &Metadata, directory: bool) -> Option<Entry> {
        if name.trim() != name || name.contains('/') {
            return None;
        }
        if directory || metadata.mode() == EntryMode::DIR {
            return Some(self.directory(name));
        }
        let etag = metadata.etag().filter(|etag| !etag.is_empty() && etag.len() <= ETAG_MAX)?;
        let size = Some(metadata.content_length()).filter(|size| *size <= i64::MAX as u64)?;
        let mtime = metadata.last_modified().map_or(0, |time| saturated_ns(time.into_inner().as_nanosecond()));
        Some(self.file(name, etag, size, mtime))
    }

    fn file(&self, name: &str, etag: &str, size: u64, mtime_ns: i64) -> Entry {
        Entry {
            name: name.as_bytes().to_vec(),
            kind: Kind::File,
            size,
            mtime_ns,
            token: etag.as_bytes().to_vec(),
            mode: self.owner.file_mode,
            uid: self.owner.uid,
            gid: self.owner.gid,
            symlink_target: Vec::new(),
        }
    }

    /// A common prefix: nothing is known of it but its name.
    fn directory(&self, name: &str) -> Entry {
        Entry {
            name: name.as_bytes().to_vec(),
            kind: Kind::Directory,
            size: 0,
            mtime_ns: 0,
            token: Vec::new(),
            mode: self.owner.dir_mode,
            uid: self.owner.uid,
            gid: self.owner.gid,
            symlink_target: Vec::new(),
        }
    }

    async fn stat_now(&self, path: &[u8]) -> Result<Option<Entry>> {
        let Some(path) = key_of(path).filter(|path| !path.is_empty()) else { return Ok(None) };
        let name = path.rsplit('/').next().unwrap_or_default();
        // A directory wins over an object of its name, as in listings.
        let prefix = format!("{path}/");
        let mut lister =
            self.operator.lister_with(&prefix).limit(1).await.map_err(|error| self.failed(path, &error))?;
        if lister.try_next().await.map_err(|error| self.failed(path, &error))?.is_some() {
            return Ok(Some(self.directory(name)));
        }
        match self.operator.stat(path).await {
            Ok(metadata) => Ok(self.entry(name, &metadata, false)),
            Err(error) if error.kind() == opendal::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed(path, &error)),
        }
    }

    async fn read_now(&self, path: &[u8], token: &[u8], offset: u64, length: u64) -> Result<Bytes> {
        let (Some(key), Ok(token)) = (key_of(path), std::str::from_utf8(token)) else { return Err(stale(path)) };
        match self.operator.read_with(key).range(offset..offset.saturating_add(length)).if_match(token).await {
            // A store may answer a range that goes beyond the end with the whole object.
            Ok(buffer) if buffer.len() as u64 > length => Err(stale(path)),
            Ok(buffer) => Ok(buffer.to_bytes()),
            Err(error) => match error.kind() {
                opendal::ErrorKind::ConditionNotMatch => Err(stale(path)),
                opendal::ErrorKind::NotFound if !names_bucket(&error) => Err(stale(path)),
                _ => Err(self.failed(key, &error)),
            },
        }
    }

    async fn check_now(&self) -> Result<bool> {
        let listed = async {
            let mut lister = self.operator.lister_with("").limit(1).await?;
            while let Some(found) = lister.try_next().await? {
                // The marker of the prefix itself is nothing in it.
                if !found.path().trim_matches('/').is_empty() {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        let checked = tokio::time::timeout(TIMEOUT, listed).await;
        let late = |_| Error::new(ErrorKind::Timeout, format!("{}: no answer: {}", self.place, self.check_endpoint));
        checked.map_err(late)?.map_err(|error| match is_gone(&error) {
            true => Error { kind: ErrorKind::NotFound, ..self.failed("", &error) },
            false => self.failed("", &error),
        })
    }

    fn failed(&self, path: &str, error: &opendal::Error) -> Error {
        use opendal::ErrorKind as Theirs;
        let says = |code: &str| error.message().contains(code);
        let (kind, hint) = match error.kind() {
            // Never absent: whoever mirrors a directory that ends so would remove all that it has held.
            _ if names_bucket(error) => (ErrorKind::UnderStorage, "the bucket does not exist"),
            Theirs::NotFound => (ErrorKind::UnderStorage, "check that the bucket exists"),
            _ if says("QuotaExceeded") || says("StorageFull") => (ErrorKind::NoSpace, "it is full"),
            _ if says("KeyTooLong") => (ErrorKind::NameTooLong, "the path is too long for it"),
            _ if says("RequestTimeTooSkewed") => (
                ErrorKind::UnderStorage,
                "the clock of this host and that of the storage differ too much: set this one right, as with NTP",
            ),
            _ if says("AccessDenied") => (ErrorKind::PermissionDenied, "the access key has no right to do that"),
            _ if cannot(error) => (ErrorKind::Unsupported, "it cannot do that"),
            Theirs::PermissionDenied => (ErrorKind::PermissionDenied, check_keys(error)),
            Theirs::RateLimited => (ErrorKind::Unavailable, "it asks for fewer requests"),
            // A connection that cannot be made, or breaks, and what the store itself calls passing.
            _ if error.is_temporary() => (ErrorKind::Unavailable, self.check_endpoint),
            _ => (ErrorKind::UnderStorage, "it answers with an error"),
        };
        let at = if path.is_empty() { String::new() } else { format!("{path} in ") };
        Error::new(kind, format!("under-storage {at}{}: {hint}: {}", self.place, words(error)))
    }
}

/// What to do when a store does not let us in.
fn check_keys(error: &opendal::Error) -> &'static str {
    let is_known = ["SignatureDoesNotMatch", "InvalidAccessKeyId"].iter().any(|code| error.message().contains(code));
    if is_known {
        return "check access key and secret (options accessKeyId and accessKeySecret)";
    }
    // The answer to a HEAD request names no reason.
    "check access key and secret (options accessKeyId and accessKeySecret), and the clock of this host"
}

/// There is no such bucket, or nothing in it that could be meant.
fn is_gone(error: &opendal::Error) -> bool {
    error.kind() == opendal::ErrorKind::NotFound || names_bucket(error)
}

/// The store answers that there is no such bucket. Its answer names keys as well: only the code counts.
fn names_bucket(error: &opendal::Error) -> bool {
    error.message().contains(r#"code: "NoSuchBucket""#)
}

/// The client knows that the store cannot do it, or the store answers so.
fn cannot(error: &opendal::Error) -> bool {
    let answered = || error.message().contains("NotImplemented") || error.to_string().contains("status: 501");
    error.kind() == opendal::ErrorKind::Unsupported || answered()
}

/// The message of an error without its context, which may hold headers.
fn words(error: &opendal::Error) -> String {
    with_causes(format!("{} ({})", error.message(), error.kind()), error)
}

/// What an error says, followed by its causes, as far as a person would read.
pub(super) fn with_causes(mut text: String, error: &dyn std::error::Error) -> String {
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text.chars().take(600).collect()
}

/// Keys are UTF-8: nothing can lie under another path.
fn key_of(path: &[u8]) -> Option<&str> {
    std::str::from_utf8(path).ok().filter(|path| path.split('/').all(|name| name.trim() == name))
}

/// Refuses a path that cannot be a key below `prefix`.
///
/// *Errors*: `InvalidArgument`, `NameTooLong`.
pub(super) fn check_key(prefix: &str, path: &[u8]) -> Result<()> {
    let key = key_to_change(path)?;
    let prefix = prefix.trim_matches('/').len();
    let length = if prefix == 0 { key.len() } else { prefix + 1 + key.len() };
    if length <= KEY_MAX {
        return Ok(());
    }
    let message = format!("{key:?} makes a key of {length} bytes: an object store takes at most {KEY_MAX}");
    Err(Error::new(ErrorKind::NameTooLong, message))
}

/// The key of what is to be changed.
///
/// *Errors*: `InvalidArgument` for a path that no key can express.
fn key_to_change(path: &[u8]) -> Result<&str> {
    key_of(path).filter(|key| !key.is_empty()).ok_or_else(|| {
        let path = String::from_utf8_lossy(path);
        let rule = "names must be UTF-8 and neither begin nor end with a blank";
        Error::invalid(format!("{path:?} cannot be the name of an object: {rule}"))
    })
}

fn unsupported(path: &[u8], why: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{}: {why}", String::from_utf8_lossy(path)))
}

impl Ufs for Bucket {
    fn list<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<Listing>> {
        Box::pin(self.list_now(path))
    }

    fn check_path(&self, path: &[u8]) -> Result<()> {
        check_key(&self.operator.info().root(), path)
    }

    fn stat<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<Option<Entry>>> {
        Box::pin(self.stat_now(path))
    }

    fn read<'a>(&'a self, path: &'a [u8], token: &'a [u8], offset: u64, length: u64) -> BoxFuture<'a, Result<Bytes>> {
        Box::pin(self.read_now(path, token, offset, length))
    }

    fn put<'a>(
        &'a self,
        path: &'a [u8],
        content: Content,
        expected: Expected<'a>,
        _attr: NewAttr,
        _intent: u64,
        deadline: &'a Deadline,
    ) -> BoxFuture<'a, Result<Entry>> {
        Box::pin(async move { self.put_now(path, &content, expected, deadline).await })
    }

    fn begin<'a>(&'a self, path: &'a [u8], expected: Expected<'a>) -> BoxFuture<'a, Result<Option<Upload>>> {
        Box::pin(async move { self.begin_now(path, expected).await.map(Some) })
    }

    /// Nothing is left beside the path. Parts of an upload that was cut off are not seen by anybody, and are removed by
    /// the store, by a rule of the bucket for incomplete uploads.
    fn clean<'a>(&'a self, _path: &'a [u8], _intent: u64) -> BoxFuture<'a, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn sync_name<'a>(&'a self, _path: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn make_directory<'a>(&'a self, path: &'a [u8], _attr: NewAttr) -> BoxFuture<'a, Result<Entry>> {
        Box::pin(self.make_directory_now(path))
    }

    fn make_symlink<'a>(&'a self, path: &'a [u8], _target: &'a [u8], _attr: NewAttr) -> BoxFuture<'a, Result<Entry>> {
        Box::pin(std::future::ready(Err(unsupported(path, "an object store has no symbolic links"))))
    }

    fn remove<'a>(&'a self, path: &'a [u8], token: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.remove_now(path, token))
    }

    fn remove_directory<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.remove_directory_now(path))
    }

    fn rename<'a>(
        &'a self,
        from: &'a [u8],
        _token: &'a [u8],
        _to: &'a [u8],
        _expected: Expected<'a>,
    ) -> BoxFuture<'a, Result<Entry>> {
        Box::pin(std::future::ready(Err(unsupported(from, "an object store renames nothing in one step"))))
    }

    fn copy<'a>(
        &'a self,
        from: &'a [u8],
        token: &'a [u8],
        to: &'a [u8],
        expected: Expected<'a>,
    ) -> BoxFuture<'a, Result<Entry>> {
        Box::pin(self.copy_now(from, token, to, expected))
    }

    fn keep_directory<'a>(&'a self, path: &'a [u8], leaving: usize) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.keep_directory_now(path, leaving))
    }

    /// An object has neither owner nor mode, and its time is that of its content.
    fn set_attr<'a>(&'a self, _path: &'a [u8], _change: AttrChange) -> BoxFuture<'a, Result<Option<Entry>>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    fn check(&self) -> BoxFuture<'_, Result<bool>> {
        Box::pin(self.check_now())
    }
}
