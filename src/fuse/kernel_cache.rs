//! What the kernel is told without being asked: that attributes, pages or names it keeps are not right any more.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use fuser::{INodeNo, Notifier};

/// `FUSE_NOTIFY_INVAL_ENTRY`, with the flag by which a name is only looked up again (Linux 6.2): without it the kernel takes it out,
/// and with it the working directory of a process or a mount below. Older kernels take no notice of the flag.
const EXPIRE_ENTRY: i32 = 3;
const EXPIRE_ONLY: u32 = 1;
/// `FUSE_NOTIFY_INVAL_INODE`. The one of fuser hides whether the kernel knows the node.
const EXPIRE_INODE: i32 = 2;
/// An offset before the file: no page is dropped.
const NO_PAGES: i64 = -1;

#[derive(Debug)]
struct Kernel {
    notifier: Notifier,
    device: File,
}

/// The way to the kernel's caches; nothing is told before the mount is there.
#[derive(Debug, Default)]
pub(super) struct KernelCache(OnceLock<Kernel>);

impl KernelCache {
    /// To be called before the kernel asks for anything.
    pub(super) fn tell_through(&self, notifier: Notifier, device: OwnedFd) {
        let _ = self.0.set(Kernel { notifier, device: File::from(device) });
    }

    /// False if the kernel does not know the node.
    fn notify(&self, what: &'static str, node: u64, tell: impl FnOnce(&Kernel) -> std::io::Result<()>) -> bool {
        match self.0.get().map(tell) {
            // It does not know the node: then it keeps nothing of it.
            Some(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => return false,
            Some(Err(error)) => tracing::debug!(node, %error, "the kernel keeps {what} until they expire"),
            _ => {}
        }
        true
    }

    /// Attributes of a node have to be asked for again; false if the kernel does not know it. Does not wait.
    pub(super) fn expire_attributes(&self, node: u64) -> bool {
        self.notify("attributes", node, |kernel| (&kernel.device).write_all(&expire_inode(node)))
    }

    /// The attributes of a node are dropped, and its pages from that of the byte `from` on. Blocks while requests for these
    /// pages are under way: never to be called on a thread that answers one.
    pub(super) fn drop_pages(&self, node: u64, from: u64) {
        let from = i64::try_from(from).unwrap_or(i64::MAX);
        self.notify("pages", node, |kernel| kernel.notifier.inval_inode(INodeNo(node), from, 0));
    }

    /// The last byte of a file that is longer by now than the kernel knows. Blocks while a request for its page is under way.
    pub(super) fn set_last_byte(&self, node: u64, offset: u64, byte: u8) {
        self.notify("a length", node, |kernel| kernel.notifier.store(INodeNo(node), offset, &[byte]));
    }

    /// Names of a directory have to be looked up again. Blocks while names of the directory are changed.
    pub(super) fn expire_names<'a>(&self, directory: u64, names: impl Iterator<Item = &'a [u8]>) {
        names.for_each(|name| self.expire_name(directory, name));
    }

    /// As [`KernelCache::expire_names`], of one name.
    pub(super) fn expire_name(&self, directory: u64, name: &[u8]) {
        self.notify("names", directory, |kernel| (&kernel.device).write_all(&expire_entry(directory, name)));
    }
}

/// The header of a notice whose body has `body` bytes.
fn notice(code: i32, body: usize) -> Vec<u8> {
    let length = 16 + body;
    let mut notice = Vec::with_capacity(length);
    notice.extend(u32::try_from(length).unwrap_or(0).to_ne_bytes());
    notice.extend(code.to_ne_bytes());
    notice.extend(0_u64.to_ne_bytes());
    notice
}

/// The notice that attributes have to be asked for again.
fn expire_inode(node: u64) -> Vec<u8> {
    let mut notice = notice(EXPIRE_INODE, 24);
    notice.extend(node.to_ne_bytes());
    notice.extend(NO_PAGES.to_ne_bytes());
    notice.extend(0_i64.to_ne_bytes());
    notice
}

/// The notice that a name has to be looked up again.
fn expire_entry(directory: u64, name: &[u8]) -> Vec<u8> {
    let mut notice = notice(EXPIRE_ENTRY, 16 + name.len() + 1);
    notice.extend(directory.to_ne_bytes());
    notice.extend(u32::try_from(name.len()).unwrap_or(0).to_ne_bytes());
    notice.extend(EXPIRE_ONLY.to_ne_bytes());
    notice.extend(name);
    notice.push(0);
    notice
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_expires_by_a_notice_as_long_as_it_says() {
        let notice = expire_entry(7, b"name");
        assert_eq!(notice.len(), 37);
        assert_eq!(notice[..8], [37_u32.to_ne_bytes(), 3_u32.to_ne_bytes()].concat());
        assert_eq!(notice[16..32], [7_u64.to_ne_bytes(), (4_u64 | 1 << 32).to_ne_bytes()].concat());
        assert_eq!(&notice[32..], b"name\0");
    }

    #[test]
    fn attributes_expire_by_a_notice_that_names_no_pages() {
        let notice = expire_inode(7);
        assert_eq!(notice.len(), 40);
        assert_eq!(notice[..8], [40_u32.to_ne_bytes(), 2_u32.to_ne_bytes()].concat());
        assert_eq!(notice[16..], [7_u64.to_ne_bytes(), u64::MAX.to_ne_bytes(), [0; 8]].concat());
    }
}
