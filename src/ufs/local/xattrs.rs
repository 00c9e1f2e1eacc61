//! Extended attributes of a file whose content is replaced: the new file gets those that a change in place would keep.

use std::ffi::CStr;
use std::fs::File;
use std::io;

use rustix::fs::{XattrFlags, fremovexattr, fsetxattr, getxattr, listxattr};
use rustix::io::Errno;

use super::by_fd;

/// Names, or beginnings of names, of what is kept. A change in place takes capabilities and signatures of the content away.
const KEPT: [&[u8]; 3] = [b"user.", b"system.posix_acl_access", b"security.selinux"];
/// Most bytes of names, and of one value: the kernel has no more.
const BYTES_MAX: usize = 64 << 10;

const ACCESS_LIST: &CStr = c"system.posix_acl_access";

/// What we may not read or set is left out: the file could never be stored otherwise.
fn is_refusal(error: Errno) -> bool {
    matches!(error, Errno::PERM | Errno::ACCESS | Errno::NOTSUP | Errno::TOOBIG)
}

/// Gives `to` the extended attributes of `from`, which may be opened by its path only. What we may not read or set is left out.
///
/// *Errors*: the disk's.
pub(super) fn copy(from: &File, to: &File) -> io::Result<()> {
    let path = by_fd(from);
    let mut names = vec![0; BYTES_MAX];
    let length = match listxattr(&path, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => return Ok(()),
        Err(error) if is_refusal(error) => {
            tracing::warn!(%error, "extended attributes of a changed file are not kept");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    // What a directory gives to all that is made in it is not for a file that has no list of its own.
    let has_list = names[..length].split(|byte| *byte == 0).any(|name| name == ACCESS_LIST.to_bytes());
    if !has_list && let Err(error) = fremovexattr(to, ACCESS_LIST) {
        match error {
            Errno::NODATA | Errno::NOTSUP => {}
            error => return Err(error.into()),
        }
    }
    let mut value = vec![0; BYTES_MAX];
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        if !KEPT.iter().any(|kept| name.to_bytes().starts_with(kept)) {
            continue;
        }
        let size = match getxattr(&path, name, &mut value[..]) {
            Ok(size) => size,
            // Removed since it was listed.
            Err(Errno::NODATA) => continue,
            Err(error) if is_refusal(error) => {
                tracing::warn!(?name, %error, "an extended attribute of a changed file is not kept");
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        match fsetxattr(to, name, &value[..size], XattrFlags::empty()) {
            Ok(()) => {}
            // An access control list may name users that there are not here.
            Err(error) if is_refusal(error) || error == Errno::INVAL => {
                tracing::warn!(?name, %error, "an extended attribute of a changed file is not kept");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
