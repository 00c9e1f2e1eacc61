//! An object is stored whole, on condition that what it replaces is still there: checked by the store itself where it
//! can, otherwise by a look right before.

use std::sync::atomic::Ordering;

use opendal::Metadata;

use super::verdict::{Verdict, says};
use super::{Bucket, key_to_change};
use crate::error::{Error, ErrorKind, Result};
use crate::runtime::{failpoint_io, now_ns};
use crate::ufs::prepared_put::Prepared;
use crate::ufs::retry::again_until;
use crate::ufs::{Content, Deadline, Entry, Expected, Kind, Upload, stale};

/// Content up to this many bytes is one request; more is sent in parts of it, unless there were too many then.
pub(super) const PART: u64 = 8 << 20;
/// Most parts of an object that stores take.
const PARTS_MAX: u64 = 10_000;
/// Parts of one object under way at once. With those that wait, a put holds about seven parts in memory.
const CONCURRENT: usize = 4;
/// Most parts that were sent and that the store may not have taken: those under way, and two that wait.
const UNDER_WAY: u64 = CONCURRENT as u64 + 2;

/// Bytes of a part of an object of `length` bytes.
fn part_size(length: u64) -> u64 {
    PART.max(length.div_ceil(PARTS_MAX))
}

/// Content to be stored, and where.
#[derive(Debug, Clone, Copy)]
pub(super) struct Put<'a> {
    path: &'a [u8],
    key: &'a str,
    content: &'a Content,
    expected: Expected<'a>,
    deadline: &'a Deadline,
}

impl Bucket {
    pub(super) async fn put_now(
        &self,
        path: &[u8],
        content: &Content,
        expected: Expected<'_>,
        deadline: &Deadline,
    ) -> Result<Entry> {
        let key = key_to_change(path)?;
        let put = Put { path, key, content, expected, deadline };
        let Some(Prepared::Upload(upload)) = content.prepared.take() else {
            return self.put_whole(put).await;
        };
        if !upload.is_for(key, expected) || upload.sent() > content.length || content.length > upload.part() * PARTS_MAX
        {
            deadline.bound(upload.abort()).await;
            return self.put_whole(put).await;
        }
        match self.finish(put, upload).await {
            Err(error) if of_the_upload(error.kind) => {
                tracing::info!(key, %error, "what was sent before the end is of no use, and is sent again");
                let stored = self.put_whole(put).await;
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

    async fn put_whole(&self, put: Put<'_>) -> Result<Entry> {
        let condition = self.condition(put.expected);
        // The refusal is known before much is sent. One request is refused by its condition, or by the look right before it.
        if put.content.length > PART {
            let found = put.deadline.bound(self.must_be(put.path, put.expected)).await;
            found.unwrap_or_else(|| Err(self.late(put)))?;
        }
        match self.store(put, condition).await {
            Err(error) if error.kind == ErrorKind::Unsupported && condition.is_some() => {
                tracing::info!(%error, "an object store refuses conditions: it is looked at instead");
                let stored = self.store(put, None).await?;
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
    async fn must_still_be(&self, put: Put<'_>) -> Result<()> {
        again_until(put.deadline, || self.look_for(put)).await
    }

    async fn look_for(&self, put: Put<'_>) -> Result<()> {
        let found = match self.operator.stat(put.key).await {
            Ok(found) => Some(found.etag().unwrap_or_default().as_bytes().to_vec()),
            Err(error) if error.kind() == opendal::ErrorKind::NotFound => None,
            Err(error) => return Err(self.failed(put.key, &error)),
        };
        if found == put.expected.owned() { Ok(()) } else { Err(stale(put.path)) }
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

    async fn store(&self, put: Put<'_>, condition: Option<Expected<'_>>) -> Result<Entry> {
        let upload = self.upload(put.path, put.key, put.content.length, put.expected, condition).await?;
        self.finish(put, upload).await
    }

    /// Sends what is left, and puts the whole in place.
    async fn finish(&self, put: Put<'_>, mut upload: Upload) -> Result<Entry> {
        let sent = match self.send(put, &mut upload).await {
            Ok(()) if !upload.conditional => self.must_still_be(put).await,
            sent => sent,
        };
        if let Err(error) = sent {
            put.deadline.bound(upload.abort()).await;
            return Err(error);
        }
        let written = match put.deadline.bound_attempt(upload.writer.close()).await {
            Some(Ok(written)) => written,
            failed => {
                // The upload is given up before the look, so that nothing is under way any more.
                put.deadline.bound(upload.abort()).await;
                return Err(self.not_closed(put, failed.and_then(|closed| closed.err())).await);
            }
        };
        match version_of_one_request(&upload, &written) {
            Some(etag) => {
                let mtime = put.content.times.map_or_else(now_ns, |times| times.mtime_ns);
                Ok(self.file(name_of(put.key), etag, put.content.length, mtime))
            }
            None => {
                put.deadline.extend();
                self.stored(put, &written).await
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
        let writer = self.write_operator.writer_with(key).chunk(chunk).concurrent(CONCURRENT);
        let writer = match condition {
            None => writer,
            Some(Expected::Absent) => writer.if_not_exists(true),
            Some(Expected::Token(token)) => writer.if_match(std::str::from_utf8(token).map_err(|_| stale(path))?),
        };
        let writer = writer.await.map_err(|error| self.refused(path, key, &error))?;
        Ok(Upload::new(writer, key, expected, condition.is_some(), part))
    }

    async fn send(&self, put: Put<'_>, upload: &mut Upload) -> Result<()> {
        while upload.sent() < put.content.length {
            let length = upload.part().min(put.content.length - upload.sent());
            let part = put.content.part(upload.sent(), length).await?;
            let sent = put.deadline.bound_attempt(upload.send(part)).await.ok_or_else(|| self.late(put))?;
            sent.map_err(|error| self.refused(put.path, put.key, &error))?;
            put.deadline.has_taken(upload.sent().saturating_sub(upload.part() * UNDER_WAY));
            failpoint_io("bucket.part")?;
        }
        Ok(())
    }

    /// The object as others see it.
    async fn stored(&self, put: Put<'_>, written: &Metadata) -> Result<Entry> {
        let key = put.key;
        let unknown = |why: String| {
            let message = format!("under-storage {key} in {}: what was stored is not found: {why}", self.place);
            Error::new(ErrorKind::OutcomeUnknown, message)
        };
        let look = || async { self.operator.stat(key).await.map_err(|error| self.failed(key, &error)) };
        let found = again_until(put.deadline, look).await.map_err(|error| unknown(error.message))?;
        let entry = self.entry(name_of(key), &found, false).ok_or_else(|| unknown("it has no etag".to_owned()))?;
        // Told with quotes here and without them there.
        let same = |etag: &str| found.etag().is_some_and(|other| other.trim_matches('"') == etag.trim_matches('"'));
        if entry.size != put.content.length || !written.etag().is_none_or(same) {
            return Err(unknown("another writer has replaced it".to_owned()));
        }
        Ok(entry)
    }

    /// What came of the last request, which has failed with `error`, or was not answered in time.
    ///
    /// Returns the error that it was refused with; `Timeout` where nothing is there now, though the request may still be
    /// carried out; `OutcomeUnknown`.
    async fn not_closed(&self, put: Put<'_>, error: Option<opendal::Error>) -> Error {
        let told = match &error {
            None => self.late(put),
            // The version that was expected is gone altogether.
            Some(error) if matches!(put.expected, Expected::Token(_)) && says(error, "NoSuchKey") => stale(put.path),
            Some(error) => self.refused(put.path, put.key, error),
        };
        let verdict = error.map_or(Verdict::MayBeStored, |error| Verdict::of(&error, told.kind));
        if verdict == Verdict::NotStored {
            return told;
        }
        match again_until(put.deadline, || self.look_for(put)).await {
            Ok(()) if told.is_retryable() => Error { kind: ErrorKind::Timeout, ..told },
            Ok(()) => told,
            Err(_) => Error { kind: ErrorKind::OutcomeUnknown, ..told }.context("it may have been stored all the same"),
        }
    }

    /// The store has not answered in time.
    fn late(&self, put: Put<'_>) -> Error {
        let place = format!("under-storage {} in {}: {}", put.key, self.place, self.check_endpoint);
        put.deadline.passed().context(place)
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
