//! An object on its way into a bucket, which may begin before the end of its content is known: then little is left to be
//! sent when that is.
//!
//! Nothing of it is seen before it is closed, on the condition that the file is then still what it was expected to be when
//! this began. Given up it leaves nothing behind but parts, which the store removes.

use std::time::Duration;

use bytes::Bytes;
use opendal::Writer;

use super::Expected;

/// Longest wait for a store to be told that an upload is given up: it removes what is left of it by itself.
const ABORT_TIMEOUT: Duration = Duration::from_secs(5);

/// The beginning of an object. To be ended by whoever puts the whole of it, or given up.
pub struct Upload {
    pub(super) writer: Writer,
    pub(super) key: String,
    expected: Option<Vec<u8>>,
    /// The store has been told what is expected, and checks it.
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
    /// Nothing is sent yet. `part` is how many bytes are at a time.
    pub(super) fn new(writer: Writer, key: &str, expected: Expected<'_>, conditional: bool, part: u64) -> Upload {
        Upload { writer, key: key.to_owned(), expected: expected.owned(), conditional, part, sent: 0 }
    }

    /// Bytes that are sent at a time; only the last part may be shorter.
    pub fn part(&self) -> u64 {
        self.part
    }

    /// How many bytes of the content are on their way.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Sends the next part; waits while too many are under way.
    ///
    /// *Errors*: what the store says: then this can only be given up.
    pub async fn send(&mut self, part: Bytes) -> Result<(), opendal::Error> {
        let length = part.len() as u64;
        self.writer.write(part).await?;
        self.sent += length;
        Ok(())
    }

    /// True if this is the beginning of what is to be stored as `key` in place of what is `expected`.
    pub(super) fn is_for(&self, key: &str, expected: Expected<'_>) -> bool {
        self.key == key && Expected::of(&self.expected) == expected
    }

    /// Gives up what was sent; what cannot be given up is removed by the store in time.
    pub async fn abort(mut self) {
        match tokio::time::timeout(ABORT_TIMEOUT, self.writer.abort()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(key = self.key, %error, "an upload is not given up"),
            Err(_) => tracing::debug!(key = self.key, "an upload is not given up: the store does not answer"),
        }
    }
}
