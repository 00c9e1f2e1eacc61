//! What is lost when this process ends: files that are open, and were not stored since they were changed.

use crate::error::{Error, ErrorKind, Result};
use crate::types::ROOT_INODE;

use super::fs::Fs;

/// Most files that are named one by one.
const NAMED_MAX: usize = 1000;

impl Fs {
    /// To be called when nothing is being stored any more: names each file in the log whose last changes are lost now.
    ///
    /// *Errors*: `FailedPrecondition` when there is any.
    pub(super) fn check_saved(&self) -> Result<()> {
        let unsaved = self.staging.unsaved();
        for inode in unsaved.iter().take(NAMED_MAX) {
            match self.inodes.path_below(ROOT_INODE, *inode) {
                Some(path) => {
                    let path = format!("/{}", String::from_utf8_lossy(&path));
                    tracing::error!(?path, inode, "changes of an open file are lost: it was neither closed nor synced");
                }
                None => tracing::error!(inode, "changes of an open file are lost: it was neither closed nor synced"),
            }
        }
        match unsaved.len() {
            0 => Ok(()),
            count => {
                let message = format!("{count} open files had changes that are not stored; the log names them");
                Err(Error::new(ErrorKind::FailedPrecondition, message))
            }
        }
    }
}
