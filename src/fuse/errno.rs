//! The one table from [`ErrorKind`] to errno.

use crate::error::{Error, ErrorKind};

/// An errno, as the kernel wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Errno(pub(super) i32);

impl Errno {
    /// The mount is read-only.
    pub(super) const READ_ONLY: Errno = Errno(libc::EROFS);
    /// The handle is not one of ours.
    pub(super) const BAD_HANDLE: Errno = Errno(libc::EBADF);
    /// No such entry.
    pub(super) const NOT_FOUND: Errno = Errno(libc::ENOENT);
    /// What was known is not so any more.
    pub(super) const STALE: Errno = Errno(libc::ESTALE);
    /// Somebody has the lock.
    pub(super) const WOULD_BLOCK: Errno = Errno(libc::EAGAIN);
    /// There are too many locks.
    pub(super) const NO_LOCKS: Errno = Errno(libc::ENOLCK);
    /// Locks were lost, and somebody else may have had them since.
    pub(super) const LOST: Errno = Errno(libc::EIO);
    /// A signal came. Said without one, it is nothing a program knows.
    pub(super) const INTERRUPTED: Errno = Errno(libc::EINTR);
    /// It was waited for long enough.
    pub(super) const TIMED_OUT: Errno = Errno(libc::ETIMEDOUT);
}

impl From<&Error> for Errno {
    fn from(error: &Error) -> Errno {
        Errno::from(error.kind)
    }
}

impl From<ErrorKind> for Errno {
    /// No wildcard: a new kind must be given its errno.
    fn from(kind: ErrorKind) -> Errno {
        Errno(match kind {
            ErrorKind::NotFound => libc::ENOENT,
            ErrorKind::AlreadyExists => libc::EEXIST,
            ErrorKind::NotEmpty => libc::ENOTEMPTY,
            ErrorKind::NotADirectory => libc::ENOTDIR,
            ErrorKind::IsADirectory => libc::EISDIR,
            ErrorKind::InvalidArgument => libc::EINVAL,
            ErrorKind::NameTooLong => libc::ENAMETOOLONG,
            ErrorKind::PermissionDenied => libc::EACCES,
            ErrorKind::CrossMount => libc::EXDEV,
            ErrorKind::Busy => libc::EBUSY,
            ErrorKind::ReadOnly => libc::EROFS,
            ErrorKind::NoSpace => libc::ENOSPC,
            ErrorKind::Stale => libc::ESTALE,
            ErrorKind::Unsupported => libc::EOPNOTSUPP,
            ErrorKind::Loop => libc::ELOOP,
            // What was retried until the deadline, and what is wrong beyond the caller's reach.
            ErrorKind::NotLeader
            | ErrorKind::Unavailable
            | ErrorKind::Timeout
            | ErrorKind::OutcomeUnknown
            | ErrorKind::SessionExpired
            | ErrorKind::ResourceExhausted
            | ErrorKind::Corrupted
            | ErrorKind::UnderStorage
            | ErrorKind::Foreign
            | ErrorKind::FailedPrecondition
            | ErrorKind::Internal
            | ErrorKind::Unspecified => libc::EIO,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_an_errno_and_file_system_errors_keep_their_own() {
        let mut kinds = 0;
        for number in 0..=i32::from(u8::MAX) {
            let Ok(kind) = ErrorKind::try_from(number) else { continue };
            kinds += 1;
            assert!(Errno::from(kind).0 > 0, "{kind:?}");
        }
        assert!(kinds >= 27, "{kinds} kinds");
        assert_eq!(Errno::from(ErrorKind::Stale), Errno(libc::ESTALE));
        assert_eq!(Errno::from(ErrorKind::NotFound), Errno::NOT_FOUND);
        assert_eq!(Errno::from(ErrorKind::SessionExpired), Errno(libc::EIO));
    }
}
