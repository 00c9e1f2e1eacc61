//! What is done of a put before it may begin: while its content is still written, or while the masters are told of it.
//!
//! Nobody sees any of it, and it leaves no name behind.

use std::fs::File;
use std::sync::{Arc, Mutex};

use crate::runtime::lock;

use super::{NewAttr, Upload};

/// Something to begin with.
#[derive(Debug)]
pub(super) enum Early {
    /// The beginning of an object.
    Upload(Upload),
    /// All of a new file.
    Filled(Filled),
}

/// A file without a name that holds all of the content, on disk.
#[derive(Debug)]
pub(super) struct Filled {
    pub(super) file: File,
    pub(super) attr: NewAttr,
}

/// What is there of some content already: whoever puts it first takes it over.
#[derive(Debug, Clone, Default)]
pub struct Sent(Arc<Mutex<Option<Early>>>);

impl Sent {
    pub(super) fn early(early: Early) -> Sent {
        Sent(Arc::new(Mutex::new(Some(early))))
    }

    /// The beginning is on its way.
    pub fn by(upload: Upload) -> Sent {
        Sent::early(Early::Upload(upload))
    }

    /// What there is, once.
    pub(super) fn take(&self) -> Option<Early> {
        lock(&self.0).take()
    }

    /// Gives up what nobody has taken over.
    pub async fn give_up(&self) {
        if let Some(Early::Upload(upload)) = self.take() {
            upload.abort().await;
        }
    }
}
