//! Reports what is lost when this process ends: files that are open, or were just closed, and were not stored since
//! their last change.

use crate::error::{Error, ErrorKind, Result};

use super::fs::Fs;

/// Most files that are logged by name.
const NAMED_MAX: usize = 1000;

impl Fs {
    /// Called when nothing is being stored any more: logs each file whose last changes are lost.
    ///
    /// *Errors*: `FailedPrecondition` if there is such a file.
    pub(super) fn check_saved(&self) -> Result<()> {
        let unsaved = self.staging.unsaved();
        for inode in unsaved.iter().take(NAMED_MAX) {
            let path = self.path_for_people(*inode);
            if self.nodes.written(*inode).is_some() {
                tracing::error!(?path, inode, "changes of an open file are lost: it was neither closed nor synced");
            } else {
                tracing::error!(?path, inode, "a file is lost: it could not be stored after its last close");
            }
        }
        match unsaved.len() {
            0 => Ok(()),
            count => {
                let message = format!("{count} files had changes that are not stored; the log names them");
                Err(Error::new(ErrorKind::FailedPrecondition, message))
            }
        }
    }
}
