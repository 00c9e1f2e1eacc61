//! Object stores through `OpenDAL`: listings, versions by etag, and what to do about errors. How each store is reached says
//! a module of its name.

use std::sync::Once;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use futures::future::BoxFuture;
use opendal::layers::TimeoutLayer;
use opendal::{Builder, EntryMode, Metadata, Operator};

use super::options::{self, Options, Owner};
use super::{Entry, Kind, Listing, Ufs, stale, tidy};
use crate::error::{Error, ErrorKind, Result};

/// Longest wait for an answer without a body.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the next bytes of a body.
const IO_TIMEOUT: Duration = Duration::from_secs(20);

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
        let operator = Operator::new(service)
            .map_err(|error| Error::invalid(format!("{place}: {error}")))?
            .layer(TimeoutLayer::default().with_timeout(TIMEOUT).with_io_timeout(IO_TIMEOUT));
        Ok(Bucket { operator, owner: options::owner(options)?, place, check_endpoint })
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

    /// `None` for an object that could not be asked for by this name again, or that names no version of its content.
    fn entry(&self, name: &str, metadata: &Metadata, directory: bool) -> Option<Entry> {
        if name.trim() != name || name.contains('/') {
            return None;
        }
        if directory || metadata.mode() == EntryMode::DIR {
            return Some(self.directory(name));
        }
        let mtime =
            metadata.last_modified().map_or(0, |time| i64::try_from(time.into_inner().as_nanosecond()).unwrap_or(0));
        Some(Entry {
            name: name.as_bytes().to_vec(),
            kind: Kind::File,
            size: metadata.content_length(),
            mtime_ns: mtime,
            token: metadata.etag()?.as_bytes().to_vec(),
            mode: self.owner.file_mode,
            uid: self.owner.uid,
            gid: self.owner.gid,
            symlink_target: Vec::new(),
        })
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
                opendal::ErrorKind::NotFound | opendal::ErrorKind::ConditionNotMatch => Err(stale(path)),
                _ => Err(self.failed(key, &error)),
            },
        }
    }

    async fn check_now(&self) -> Result<()> {
        let listed = async {
            let mut lister = self.operator.lister_with("").limit(1).await?;
            lister.try_next().await.map(drop)
        };
        let checked = tokio::time::timeout(TIMEOUT, listed).await;
        let late = |_| Error::new(ErrorKind::Timeout, format!("{}: no answer: {}", self.place, self.check_endpoint));
        checked.map_err(late)?.map_err(|error| self.failed("", &error))
    }

    fn failed(&self, path: &str, error: &opendal::Error) -> Error {
        use opendal::ErrorKind as Theirs;
        let (kind, hint) = match error.kind() {
            Theirs::NotFound => (ErrorKind::NotFound, "check that the bucket exists"),
            _ if error.message().contains("NoSuchBucket") => (ErrorKind::NotFound, "the bucket does not exist"),
            Theirs::PermissionDenied => (ErrorKind::PermissionDenied, "check access key and secret"),
            Theirs::RateLimited => (ErrorKind::Unavailable, "it asks for fewer requests"),
            // A connection that cannot be made, or breaks, and what the store itself calls passing.
            _ if error.is_temporary() => (ErrorKind::Unavailable, self.check_endpoint),
            _ => (ErrorKind::UnderStorage, "it answers with an error"),
        };
        let at = if path.is_empty() { String::new() } else { format!("{path} in ") };
        Error::new(kind, format!("under-storage {at}{}: {hint}: {}", self.place, words(error)))
    }
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

impl Ufs for Bucket {
    fn list<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<Listing>> {
        Box::pin(self.list_now(path))
    }

    fn stat<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<Option<Entry>>> {
        Box::pin(self.stat_now(path))
    }

    fn read<'a>(&'a self, path: &'a [u8], token: &'a [u8], offset: u64, length: u64) -> BoxFuture<'a, Result<Bytes>> {
        Box::pin(self.read_now(path, token, offset, length))
    }

    fn check(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.check_now())
    }
}
