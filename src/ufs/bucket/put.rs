//! An object is stored whole, on condition that what it replaces is still there: checked by the store itself where it
//! can, otherwise by a look right before.

use std::sync::atomic::Ordering;

use opendal::Metadata;

use super::{Bucket, is_gone, key_to_change};
use crate::error::{Error, ErrorKind, Result};
use crate::runtime::{failpoint_io, now_ns};
use crate::ufs::early::Early;
use crate::ufs::retry::again;
use crate::ufs::{Content, Entry, Expected, Kind, Upload, stale};

/// Content up to this many bytes is one request; more is sent in parts of it, unless there were too many then.
pub(super) const PART: u64 = 8 << 20;
/// Most parts of an object that stores take.
const PARTS_MAX: u64 = 10_000;
/// Parts of one object under way at once. With those that wait, a put holds about seven parts in memory.
const CONCURRENT: usize = 4;

/// Bytes of a part of an object of `length` bytes.
fn part_size(length: u64) -> u64 {
    PART.max(length.div_ceil(PARTS_MAX))
}

impl Bucket {
    pub(super) async fn put_now(&self, path: &[u8], content: &Content, expected: Expected<'_>) -> Result<Entry> {
        let key = key_to_change(path)?;
        let Some(Early::Upload(upload)) = content.sent.take() else {
            return self.put_whole(path, key, content, expected).await;
        };
        if !upload.is_for(key, expected) || upload.sent() > content.length || content.length > upload.part() * PARTS_MAX
        {
            upload.abort().await;
            return self.put_whole(path, key, content, expected).await;
        }
        match self.finish(path, upload, content, expected).await {
            Err(error) if of_the_upload(error.kind) => {
                tracing::info!(key, %error, "what was sent before the end is of no use, and is sent again");
                let stored = self.put_whole(path, key, content, expected).await;
                stored.map_err(|error| match error.kind {
                    // The first attempt may have come through all the same.
                    ErrorKind::Stale => Error { kind: ErrorKind::OutcomeUnknown, ..error },
                    _ => error,
                })
            }
            done => done,
        }
    }

    /// Begins to send an object of any length.
    pub(super) async fn begin_now(&self, path: &[u8], expected: Expected<'_>) -> Result<Upload> {
        let condition = self.condition(expected);
        self.upload(path, key_to_change(path)?, 0, expected, condition).await
    }

    async fn put_whole(&self, path: &[u8], key: &str, content: &Content, expected: Expected<'_>) -> Result<Entry> {
        let condition = self.condition(expected);
        // Told before much is sent. What is one request is told by its condition, or by the look right before it.
        if content.length > PART {
            self.must_be(path, expected).await?;
        }
        match self.store(path, key, content, expected, condition).await {
            Err(error) if error.kind == ErrorKind::Unsupported && condition.is_some() => {
                tracing::info!(%error, "an object store refuses conditions: it is looked at instead");
                let stored = self.store(path, key, content, expected, None).await?;
                self.unconditional.store(true, Ordering::Relaxed);
                Ok(stored)
            }
            done => done,
        }
    }

    /// *Errors*: `Stale` when something else is there than expected; `IsADirectory`.
    pub(super) async fn must_be(&self, path: &[u8], expected: Expected<'_>) -> Result<()> {
        match (self.stat_now(path).await?, expected) {
            (Some(found), _) if found.kind == Kind::Directory => Err(is_a_directory(path)),
            (Some(found), Expected::Token(token)) if found.token == token => Ok(()),
            (None, Expected::Absent) => Ok(()),
            _ => Err(stale(path)),
        }
    }

    /// As [`Bucket::must_be`], by one request unless the store is busy: a directory of the name is not noticed.
    async fn must_still_be(&self, path: &[u8], key: &str, expected: Expected<'_>) -> Result<()> {
        again(|| self.look_for(path, key, expected)).await
    }

    async fn look_for(&self, path: &[u8], key: &str, expected: Expected<'_>) -> Result<()> {
        let found = match self.operator.stat(key).await {
            Ok(found) => Some(found.etag().unwrap_or_default().as_bytes().to_vec()),
            Err(error) if error.kind() == opendal::ErrorKind::NotFound => None,
            Err(error) => return Err(self.failed(key, &error)),
        };
        if found == expected.owned() { Ok(()) } else { Err(stale(path)) }
    }

    /// What the store can be told to expect.
    fn condition<'a>(&self, expected: Expected<'a>) -> Option<Expected<'a>> {
        let capability = self.operator.info().capability();
        let can = match expected {
            Expected::Absent => capability.write_with_if_not_exists,
            Expected::Token(_) => capability.write_with_if_match,
        };
        (can && !self.unconditional.load(Ordering::Relaxed)).then_some(expected)
    }

    async fn store(
        &self,
        path: &[u8],
        key: &str,
        content: &Content,
        expected: Expected<'_>,
        condition: Option<Expected<'_>>,
    ) -> Result<Entry> {
        let upload = self.upload(path, key, content.length, expected, condition).await?;
        self.finish(path, upload, content, expected).await
    }

    /// Sends what is left, and puts the whole in place.
    async fn finish(
        &self,
        path: &[u8],
        mut upload: Upload,
        content: &Content,
        expected: Expected<'_>,
    ) -> Result<Entry> {
        let sent = match self.send(path, &mut upload, content).await {
            Ok(()) if !upload.conditional => self.must_still_be(path, &upload.key, expected).await,
            sent => sent,
        };
        if let Err(error) = sent {
            upload.abort().await;
            return Err(error);
        }
        match upload.writer.close().await {
            Ok(written) => match version_of_one_request(&upload, &written) {
                Some(etag) => {
                    let mtime = content.times.map_or_else(now_ns, |times| times.mtime_ns);
                    Ok(self.file(name_of(&upload.key), etag, content.length, mtime))
                }
                None => self.stored(&upload.key, &written, content.length).await,
            },
            Err(error) => {
                let key = upload.key.clone();
                // Before the look: then nothing is under way any more.
                upload.abort().await;
                Err(self.not_closed(path, &key, expected, &error).await)
            }
        }
    }

    async fn upload(
        &self,
        path: &[u8],
        key: &str,
        length: u64,
        expected: Expected<'_>,
        condition: Option<Expected<'_>>,
    ) -> Result<Upload> {
        let part = part_size(length);
        let chunk = usize::try_from(part).map_err(|_| Error::invalid("content too long to be stored"))?;
        let writer = self.patient.writer_with(key).chunk(chunk).concurrent(CONCURRENT);
        let writer = match condition {
            None => writer,
            Some(Expected::Absent) => writer.if_not_exists(true),
            Some(Expected::Token(token)) => writer.if_match(std::str::from_utf8(token).map_err(|_| stale(path))?),
        };
        let writer = writer.await.map_err(|error| self.refused(path, key, &error))?;
        Ok(Upload::new(writer, key, expected, condition.is_some(), part))
    }

    async fn send(&self, path: &[u8], upload: &mut Upload, content: &Content) -> Result<()> {
        while upload.sent() < content.length {
            let length = upload.part().min(content.length - upload.sent());
            let part = content.part(upload.sent(), length).await?;
            upload.send(part).await.map_err(|error| self.refused(path, &upload.key, &error))?;
            failpoint_io("bucket.part")?;
        }
        Ok(())
    }

    /// The object as others see it.
    async fn stored(&self, key: &str, written: &Metadata, length: u64) -> Result<Entry> {
        let unknown = |why: String| {
            let message = format!("under-storage {key} in {}: what was stored is not found: {why}", self.place);
            Error::new(ErrorKind::OutcomeUnknown, message)
        };
        let look = || async { self.operator.stat(key).await.map_err(|error| self.failed(key, &error)) };
        let found = again(look).await.map_err(|error| unknown(error.message))?;
        let entry = self.entry(name_of(key), &found, false).ok_or_else(|| unknown("it has no etag".to_owned()))?;
        // Told with quotes here and without them there.
        let same = |etag: &str| found.etag().is_some_and(|other| other.trim_matches('"') == etag.trim_matches('"'));
        if entry.size != length || !written.etag().is_none_or(same) {
            return Err(unknown("another writer has replaced it".to_owned()));
        }
        Ok(entry)
    }

    /// The last request was refused, or nobody knows.
    async fn not_closed(&self, path: &[u8], key: &str, expected: Expected<'_>, error: &opendal::Error) -> Error {
        let told = self.refused(path, key, error);
        let definite = matches!(
            told.kind,
            ErrorKind::Stale
                | ErrorKind::NoSpace
                | ErrorKind::NameTooLong
                | ErrorKind::PermissionDenied
                | ErrorKind::Unsupported
        );
        if definite || is_gone(error) {
            return told;
        }
        // A busy store refuses a request before it does anything. Often it is too busy to be looked at as well.
        let is_busy = error.kind() == opendal::ErrorKind::RateLimited;
        let look = || self.must_be(path, expected);
        match if is_busy { look().await } else { again(look).await } {
            Ok(()) => return told,
            Err(look) if is_busy && look.is_retryable() => return told,
            Err(_) => {}
        }
        Error { kind: ErrorKind::OutcomeUnknown, ..told }.context("it may have been stored all the same")
    }

    fn refused(&self, path: &[u8], key: &str, error: &opendal::Error) -> Error {
        match error.kind() {
            opendal::ErrorKind::ConditionNotMatch => stale(path),
            // Another one stores the same object right now: the next attempt finds what came of it.
            opendal::ErrorKind::Conflict if error.message().contains("ConditionalRequestConflict") => {
                Error { kind: ErrorKind::Unavailable, ..self.failed(key, error) }
            }
            _ => self.failed(key, error),
        }
    }
}

fn name_of(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or_default()
}

/// The version that the store has given to an object that was one request, as it will tell it to others; `None` where it has to
/// be asked for.
fn version_of_one_request<'w>(upload: &Upload, written: &'w Metadata) -> Option<&'w str> {
    written.etag().filter(|etag| upload.sent() <= upload.part() && etag.len() > 2 && etag.starts_with('"'))
}

/// True for an error that says nothing of the object and its place: an upload that the store, or its keys, do not know any
/// more. What passes is tried again by the caller.
fn of_the_upload(kind: ErrorKind) -> bool {
    use ErrorKind::{PermissionDenied, UnderStorage, Unsupported};
    matches!(kind, PermissionDenied | UnderStorage | Unsupported)
}

pub(super) fn is_a_directory(path: &[u8]) -> Error {
    Error::new(ErrorKind::IsADirectory, format!("{} is a directory of the object store", String::from_utf8_lossy(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_grow_only_where_there_were_too_many() {
        assert_eq!([0, 1, PART, PART + 1, PART * PARTS_MAX].map(part_size), [PART; 5]);
        let length: u64 = 5 << 40;
        assert!(length.div_ceil(part_size(length)) <= PARTS_MAX);
    }
}
