//! What is said to the kernel about a FUSE mount that changes hands.

use std::io;
use std::os::fd::AsFd;

/// `FUSE_NOTIFY_RESEND`.
const RESEND: i32 = 7;

/// Has the kernel ask again whatever it has asked of a mount and was not answered (Linux 6.9): each such request waits for
/// whoever reads it next. Until it is read, a process that waits for its answer can be killed.
///
/// *Errors*: those of writing to `/dev/fuse`: `EINVAL` before Linux 6.9.
pub fn resend_requests(fuse: impl AsFd) -> io::Result<()> {
    rustix::io::write(fuse, &notice(RESEND))?;
    Ok(())
}

/// Something said to the kernel without being asked: length, code, and no request that it answers.
fn notice(code: i32) -> Vec<u8> {
    [&16_u32.to_ne_bytes()[..], &code.to_ne_bytes(), &0_u64.to_ne_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_is_as_long_as_it_says() {
        assert_eq!(notice(RESEND), [16, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
