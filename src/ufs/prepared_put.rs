//! Work for a put that is done before the put may begin: while the content is still written, or while the masters
//! record the write intent.
//!
//! It is not visible in the under-storage, and leaves no name behind.

use std::fs::File;
use std::sync::{Arc, Mutex};

use crate::runtime::lock;

use super::{NewAttr, Upload};

/// Prepared content.
#[derive(Debug)]
pub(super) enum Prepared {
    /// The first parts of a multipart upload.
    Upload(Upload),
    /// The whole content of a new local file.
    NewFile(UnnamedFile),
}

/// A file without a name (`O_TMPFILE`) that holds the whole content and is synced.
#[derive(Debug)]
pub(super) struct UnnamedFile {
    pub(super) file: File,
    pub(super) attr: NewAttr,
}

/// Content that is prepared in the under-storage. The first put that uses it takes it.
#[derive(Debug, Clone, Default)]
pub struct PreparedPut(Arc<Mutex<Option<Prepared>>>);

impl PreparedPut {
    pub(super) fn new(prepared: Prepared) -> PreparedPut {
        PreparedPut(Arc::new(Mutex::new(Some(prepared))))
    }

    /// Content of which the first parts are being uploaded.
    pub fn from_upload(upload: Upload) -> PreparedPut {
        PreparedPut::new(Prepared::Upload(upload))
    }

    /// Takes the prepared content, once.
    pub(super) fn take(&self) -> Option<Prepared> {
        lock(&self.0).take()
    }

    /// Aborts what no put has taken.
    pub async fn abort(&self) {
        if let Some(Prepared::Upload(upload)) = self.take() {
            upload.abort().await;
        }
    }
}
