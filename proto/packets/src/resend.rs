//! What is said to the kernel about a FUSE mount that changes hands.

use std::io;
use std::os::fd::AsFd;

/// `FUSE_NOTIFY_RESEND`.
const RESEND: i32 = 7;

/// Makes the kernel queue all unanswered requests of a mount again (Linux 6.9): the next reader of `fuse` gets them. A process
/// that waits for the answer to a queued request can be killed.
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
