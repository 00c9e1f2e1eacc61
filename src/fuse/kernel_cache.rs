//! What the kernel is told without being asked: that attributes, pages or names it keeps are not right any more.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;

use fuser::{INodeNo, Notifier};

/// The way to the kernel's caches; nothing is told before the mount is there.
#[derive(Debug, Default)]
pub(super) struct KernelCache(OnceLock<Notifier>);

impl KernelCache {
    /// To be called before the kernel asks for anything.
    pub(super) fn tell_through(&self, kernel: Notifier) {
        let _ = self.0.set(kernel);
    }

    fn notify(&self, what: &'static str, node: u64, tell: impl FnOnce(&Notifier) -> std::io::Result<()>) {
        match self.0.get().map(tell) {
            // It does not know the node: then it keeps nothing of it.
            Some(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::debug!(node, %error, "the kernel keeps {what} until they expire");
            }
            _ => {}
        }
    }

    /// Attributes of a node have to be asked for again. Does not wait.
    pub(super) fn expire_attributes(&self, node: u64) {
        self.notify("attributes", node, |kernel| kernel.inval_inode(INodeNo(node), -1, 0));
    }

    /// The pages and attributes of a node are dropped. Blocks while requests for pages of the node are under way: never to be
    /// called on a thread that answers one.
    pub(super) fn drop_pages(&self, node: u64) {
        self.notify("pages", node, |kernel| kernel.inval_inode(INodeNo(node), 0, 0));
    }

    /// Names of a directory have to be looked up again. Blocks while names of the directory are changed.
    pub(super) fn expire_names<'a>(&self, directory: u64, names: impl Iterator<Item = &'a [u8]>) {
        for name in names {
            self.notify("names", directory, |kernel| kernel.inval_entry(INodeNo(directory), OsStr::from_bytes(name)));
        }
    }
}
