//! Somebody who waits for a lock, and whether he still does.
//!
//! The kernel tells a file system of an interrupted request by a message that fuser does not pass on, and a process whose
//! request was read waits for its answer, whatever signal it got. So the signals are looked at where the system shows
//! them: in `/proc`, for threads of our own PID namespace. Others are unseen, and wait a bounded time only.

use std::time::{Duration, Instant};

use super::super::errno::Errno;

/// Pause after the first attempt; each further one is half as long again.
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// Pause between two looks for signals.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Pause before a signal that was seen is looked for again.
const RETRY_DELAY: Duration = Duration::from_millis(5);

/// A thread that waits.
#[derive(Debug)]
pub(super) struct Waiter {
    thread: u32,
    since: Instant,
    unseen_max: Duration,
    pause: Duration,
    /// A signal was seen by the last look.
    noticed: bool,
}

/// Whether a thread has a signal to handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signal {
    None,
    Pending,
    Unseen,
}

impl Waiter {
    /// `thread` is the kernel's number of it, 0 for one of a namespace that ours does not see. An unseen one waits for at
    /// most `unseen_max`.
    pub(super) fn new(thread: u32, unseen_max: Duration) -> Waiter {
        Waiter { thread, since: Instant::now(), unseen_max, pause: PAUSE_MIN, noticed: false }
    }

    /// Waits until it is time to ask again.
    ///
    /// *Errors*: `EINTR` for a thread that got a signal. Only then: the kernel takes it for a call to be begun again when the
    /// signal is handled, and lets one without a signal out with a number that no program knows. `ETIMEDOUT`.
    pub(super) async fn pause(&mut self) -> Result<(), Errno> {
        let until = Instant::now() + self.pause;
        self.pause = (self.pause * 3 / 2).min(PAUSE_MAX);
        loop {
            let found = signal(self.thread);
            if found == Signal::Unseen && self.since.elapsed() >= self.unseen_max {
                return Err(Errno::TIMED_OUT);
            }
            // A signal of the whole process may be for another of its threads, which takes it at once.
            if found == Signal::Pending && self.noticed {
                return Err(Errno::INTERRUPTED);
            }
            self.noticed = found == Signal::Pending;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            tokio::time::sleep(left.min(if self.noticed { RETRY_DELAY } else { POLL_INTERVAL })).await;
        }
    }
}

fn signal(thread: u32) -> Signal {
    if thread == 0 || !proc_is_ours() {
        return Signal::Unseen;
    }
    match std::fs::read_to_string(format!("/proc/{thread}/status")) {
        Ok(status) => pending(&status),
        Err(_) => Signal::Unseen,
    }
}

/// True if `/proc` shows our namespace: in a container it may be that of the host.
fn proc_is_ours() -> bool {
    std::fs::read_link("/proc/self").is_ok_and(|own| own.as_os_str() == std::process::id().to_string().as_str())
}

/// Reads the sets of signals in a `/proc/TID/status`.
fn pending(status: &str) -> Signal {
    let set = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|value| u64::from_str_radix(value.trim(), 16).ok())
    };
    let sets = ["SigPnd", "ShdPnd", "SigBlk", "SigIgn"].map(set);
    let [Some(thread), Some(process), Some(blocked), Some(ignored)] = sets else { return Signal::Unseen };
    if (thread | process) & !blocked & !ignored == 0 { Signal::None } else { Signal::Pending }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_counts_unless_it_is_blocked_or_ignored() {
        let status = |sets: [&str; 4]| {
            let [thread, process, blocked, ignored] = sets;
            format!(
                "Name:\tx\nSigQ:\t1/2\nSigPnd:\t{thread}\nShdPnd:\t{process}\nSigBlk:\t{blocked}\nSigIgn:\t{ignored}\n"
            )
        };
        let zero = "0000000000000000";
        let two = "0000000000000002";
        assert_eq!(pending(&status([zero, zero, zero, zero])), Signal::None);
        assert_eq!(pending(&status([two, zero, zero, zero])), Signal::Pending);
        assert_eq!(pending(&status([zero, two, zero, zero])), Signal::Pending);
        assert_eq!(pending(&status([zero, two, two, zero])), Signal::None);
        assert_eq!(pending(&status([zero, two, zero, two])), Signal::None);
        assert_eq!(pending("Name:\tx\n"), Signal::Unseen);
        assert_eq!((signal(0), signal(std::process::id())), (Signal::Unseen, Signal::None));
    }

    #[tokio::test]
    async fn one_who_is_not_seen_waits_a_bounded_time() {
        let mut waiter = Waiter::new(0, Duration::ZERO);
        assert_eq!(waiter.pause().await, Err(Errno::TIMED_OUT));
        let mut waiter = Waiter::new(0, Duration::from_secs(3600));
        for _ in 0..3 {
            assert_eq!(waiter.pause().await, Ok(()));
        }
    }
}
