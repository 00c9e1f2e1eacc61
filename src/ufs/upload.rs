//! A multipart upload to a bucket. It may begin before the length of the content is known, so that little is left to
//! send at the end.
//!
//! The object becomes visible when the upload completes, on the condition that the file still is what it was expected
//! to be at the start. An aborted upload leaves at most parts, which the store removes.

use std::time::Duration;

use bytes::Bytes;
use opendal::Writer;

use super::Expected;

/// How long the store may take to abort an upload. If it takes longer, the store removes the parts by its own rules.
const ABORT_TIMEOUT: Duration = Duration::from_secs(5);

/// The first parts of an object. It has to be completed by a put, or aborted.
pub struct Upload {
    pub(super) writer: Writer,
    pub(super) key: String,
    expected: Option<Vec<u8>>,
    /// The store checks the condition.
    pub(super) conditional: bool,
    part: u64,
    sent: u64,
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload").field("key", &self.key).field("sent", &self.sent).finish_non_exhaustive()
    }
}

impl Upload {
    /// Creates an upload with nothing sent. `part` is the size of a part in bytes.
    pub(super) fn new(writer: Writer, key: &str, expected: Expected<'_>, conditional: bool, part: u64) -> Upload {
        Upload { writer, key: key.to_owned(), expected: expected.owned(), conditional, part, sent: 0 }
    }

    /// Size of a part in bytes; only the last part may be shorter.
    pub fn part(&self) -> u64 {
        self.part
    }

    /// Bytes of the content that are sent or in flight.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Sends the next part; waits while too many are in flight.
    ///
    /// *Errors*: those of the store, after which the upload can only be aborted.
    pub async fn send(&mut self, part: Bytes) -> Result<(), opendal::Error> {
        let length = part.len() as u64;
        self.writer.write(part).await?;
        self.sent += length;
        Ok(())
    }

    /// True if the upload is for `key`, in place of what is `expected`.
    pub(super) fn is_for(&self, key: &str, expected: Expected<'_>) -> bool {
        self.key == key && Expected::of(&self.expected) == expected
    }

    /// Aborts the upload. If that fails, the store removes the parts in time.
    pub async fn abort(mut self) {
        match tokio::time::timeout(ABORT_TIMEOUT, self.writer.abort()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(key = self.key, %error, "an upload is not given up"),
            Err(_) => tracing::debug!(key = self.key, "an upload is not given up: the store does not answer"),
        }
    }
}
