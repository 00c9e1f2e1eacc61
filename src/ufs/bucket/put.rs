//! An object is stored whole, on condition that what it replaces is still there: checked by the store itself where it
//! can, otherwise by a look right before.

use std::sync::atomic::Ordering;

use opendal::{Metadata, Writer};

use super::{Bucket, key_to_change};
use crate::error::{Error, ErrorKind, Result};
use crate::runtime::failpoint_io;
use crate::ufs::{Content, Entry, Expected, Kind, stale};

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
        let condition = self.condition(expected);
        // Told before much is sent; without a condition the store is looked at again at the end.
        if condition.is_some() || content.length > PART {
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
        let mut writer = self.writer(path, key, content.length, condition).await?;
        let sent = match self.send(path, key, &mut writer, content).await {
            Ok(()) if condition.is_none() => self.must_be(path, expected).await,
            sent => sent,
        };
        if let Err(error) = sent {
            self.abort(key, writer).await;
            return Err(error);
        }
        match writer.close().await {
            Ok(written) => self.stored(key, &written, content.length).await,
            Err(error) => {
                // Before the look: then nothing is under way any more.
                self.abort(key, writer).await;
                Err(self.not_closed(path, key, expected, &error).await)
            }
        }
    }

    async fn writer(&self, path: &[u8], key: &str, length: u64, condition: Option<Expected<'_>>) -> Result<Writer> {
        let part = usize::try_from(part_size(length)).map_err(|_| Error::invalid("content too long to be stored"))?;
        let writer = self.patient.writer_with(key).chunk(part).concurrent(CONCURRENT);
        let writer = match condition {
            None => writer,
            Some(Expected::Absent) => writer.if_not_exists(true),
            Some(Expected::Token(token)) => writer.if_match(std::str::from_utf8(token).map_err(|_| stale(path))?),
        };
        writer.await.map_err(|error| self.refused(path, key, &error))
    }

    async fn send(&self, path: &[u8], key: &str, writer: &mut Writer, content: &Content) -> Result<()> {
        let part_size = part_size(content.length);
        let mut sent = 0;
        while sent < content.length {
            let length = part_size.min(content.length - sent);
            let part = content.part(sent, length).await?;
            writer.write(part).await.map_err(|error| self.refused(path, key, &error))?;
            failpoint_io("bucket.part")?;
            sent += length;
        }
        Ok(())
    }

    /// Gives up what was sent; what cannot be given up is removed by the store in time.
    async fn abort(&self, key: &str, mut writer: Writer) {
        if let Err(error) = writer.abort().await {
            tracing::debug!(key, %error, "an upload is not given up");
        }
    }

    /// The object as others see it, whose time only they are told.
    async fn stored(&self, key: &str, written: &Metadata, length: u64) -> Result<Entry> {
        let unknown = |why: String| {
            let message = format!("under-storage {key} in {}: what was stored is not found: {why}", self.place);
            Error::new(ErrorKind::OutcomeUnknown, message)
        };
        let found = self.operator.stat(key).await.map_err(|error| unknown(self.failed(key, &error).message))?;
        let name = key.rsplit('/').next().unwrap_or_default();
        let entry = self.entry(name, &found, false).ok_or_else(|| unknown("it has no etag".to_owned()))?;
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
                | ErrorKind::NotFound
                | ErrorKind::NameTooLong
                | ErrorKind::PermissionDenied
                | ErrorKind::Unsupported
        );
        if definite || self.must_be(path, expected).await.is_ok() {
            return told;
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
