//! What is done of a put before it may begin: while its content is still written, or while the masters are told of it.
//!
//! Nobody sees any of it, and it leaves no name behind.

use std::fs::File;
use std::sync::{Arc, Mutex};

use crate::runtime::lock;

use super::{NewAttr, Upload};

/// Something to begin with.
#[derive(Debug)]
pub(super) enum Prepared {
    /// The beginning of an object.
    Upload(Upload),
    /// All of a new file.
    NewFile(UnnamedFile),
}

/// A file without a name that holds all of the content, on disk.
#[derive(Debug)]
pub(super) struct UnnamedFile {
    pub(super) file: File,
    pub(super) attr: NewAttr,
}

/// What is there of some content already: whoever puts it first takes it over.
#[derive(Debug, Clone, Default)]
pub struct PreparedPut(Arc<Mutex<Option<Prepared>>>);

impl PreparedPut {
    pub(super) fn new(prepared: Prepared) -> PreparedPut {
        PreparedPut(Arc::new(Mutex::new(Some(prepared))))
    }

    /// The beginning is on its way.
    pub fn from_upload(upload: Upload) -> PreparedPut {
        PreparedPut::new(Prepared::Upload(upload))
    }

    /// What there is, once.
    pub(super) fn take(&self) -> Option<Prepared> {
        lock(&self.0).take()
    }

    /// Gives up what nobody has taken over.
    pub async fn abort(&self) {
        if let Some(Prepared::Upload(upload)) = self.take() {
            upload.abort().await;
        }
    }
}
