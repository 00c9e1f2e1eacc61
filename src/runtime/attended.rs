//! Time during which this process ran: the measure of how long others have been silent.
//!
//! A process that stands still (SIGSTOP, a paused virtual machine, a runtime that hangs) hears nothing, while the
//! monotonic clock of the system goes on. An attended clock advances only by intervals in which the process
//! demonstrably ran: a longer interval between two readings counts as `TICK_MAX`. After a pause, silence is measured
//! anew from the end of the pause, because what was sent meanwhile still waits in the sockets.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::{Shutdown, lock};

/// How often the clock is read while nothing else reads it.
const TICK_INTERVAL: Duration = Duration::from_millis(100);
/// Most that the interval between two readings counts: several ticks, so that a busy machine loses no time.
const TICK_MAX: Duration = Duration::from_millis(500);
/// An interval between two readings that is at least this long is a pause of the process.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// A reading of an [`AttendedClock`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

/// A clock that advances only while the process runs. Clones share it.
#[derive(Clone)]
pub struct AttendedClock(Arc<ClockState>);

struct ClockState {
    /// Time since a fixed point, pauses included.
    elapsed: Box<dyn Fn() -> Duration + Send + Sync>,
    readings: Mutex<Readings>,
}

#[derive(Debug, Default)]
struct Readings {
    /// What `elapsed` was at the last reading.
    last: Duration,
    attended: Duration,
    /// Reading at the end of the last pause.
    resumed: Duration,
    pauses: u64,
}

impl std::fmt::Debug for AttendedClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AttendedClock").finish_non_exhaustive()
    }
}

impl AttendedClock {
    /// A clock over `elapsed`, the time since a fixed point, which never decreases.
    pub fn over(elapsed: impl Fn() -> Duration + Send + Sync + 'static) -> AttendedClock {
        let readings = Mutex::new(Readings { last: elapsed(), ..Readings::default() });
        AttendedClock(Arc::new(ClockState { elapsed: Box::new(elapsed), readings }))
    }

    /// The clock of this process. It advances while [`AttendedClock::tick_until`] runs.
    pub fn of_process() -> AttendedClock {
        static CLOCK: OnceLock<AttendedClock> = OnceLock::new();
        #[cfg(test)]
        if let Some(clock) = super::simulated::attended_clock() {
            return clock;
        }
        let start = Instant::now();
        CLOCK.get_or_init(|| AttendedClock::over(move || start.elapsed())).clone()
    }

    /// Reads the clock regularly until `stop`. Runs as a task beside those that serve, so that a runtime which hangs is
    /// noticed as well as a process that is stopped.
    pub async fn tick_until(&self, stop: Shutdown) {
        while !stop.is_cancelled() {
            self.now();
            tokio::select! { () = stop.cancelled() => {}, () = tokio::time::sleep(TICK_INTERVAL) => {} }
        }
    }

    /// The present moment.
    pub fn now(&self) -> Moment {
        Moment(self.read(|readings| readings.attended))
    }

    /// How long nothing was heard from a sender that was last heard at `heard`, as far as this process can tell: the
    /// attended time since then, or since the last pause if that was later.
    pub fn silence_since(&self, heard: Moment) -> Duration {
        self.read(|readings| readings.attended.saturating_sub(heard.0.max(readings.resumed)))
    }

    /// How often the process has stood still so far.
    pub fn pauses(&self) -> u64 {
        self.read(|readings| readings.pauses)
    }

    fn read<T>(&self, at: impl FnOnce(&Readings) -> T) -> T {
        let mut readings = lock(&self.0.readings);
        // Under the lock: two readers must not take the interval between them for time that ran backwards.
        let elapsed = (self.0.elapsed)();
        let interval = elapsed.saturating_sub(readings.last);
        readings.last = readings.last.max(elapsed);
        readings.attended += interval.min(TICK_MAX);
        if interval >= PAUSE_MIN {
            readings.resumed = readings.attended;
            readings.pauses += 1;
            tracing::warn!(paused = ?interval, "this process stood still; the silence of others is measured anew");
        }
        at(&readings)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// A clock, and the milliseconds that it is told have passed.
    fn manual() -> (AttendedClock, Arc<AtomicU64>) {
        let elapsed = Arc::new(AtomicU64::new(5_000));
        let source = elapsed.clone();
        (AttendedClock::over(move || Duration::from_millis(source.load(Ordering::SeqCst))), elapsed)
    }

    #[test]
    fn time_between_regular_readings_counts_in_full() {
        let (clock, elapsed) = manual();
        let heard = clock.now();
        for _ in 0..100 {
            elapsed.fetch_add(400, Ordering::SeqCst);
            clock.now();
        }
        assert_eq!(clock.silence_since(heard), Duration::from_secs(40));
        assert_eq!(clock.pauses(), 0);
    }

    #[test]
    fn a_late_reading_counts_no_more_than_a_late_tick() {
        let (clock, elapsed) = manual();
        let heard = clock.now();
        elapsed.fetch_add(900, Ordering::SeqCst);
        assert_eq!(clock.silence_since(heard), TICK_MAX);
        assert_eq!(clock.pauses(), 0);
    }

    #[test]
    fn after_a_pause_silence_begins_anew_for_everybody_and_then_grows_again() {
        let (clock, elapsed) = manual();
        let heard = clock.now();
        for _ in 0..10 {
            elapsed.fetch_add(500, Ordering::SeqCst);
            clock.now();
        }
        assert_eq!(clock.silence_since(heard), Duration::from_secs(5));
        elapsed.fetch_add(86_400_000, Ordering::SeqCst);
        assert_eq!(clock.silence_since(heard), Duration::ZERO, "a day that was not attended");
        assert_eq!(clock.pauses(), 1);
        for _ in 0..4 {
            elapsed.fetch_add(500, Ordering::SeqCst);
            clock.now();
        }
        assert_eq!(clock.silence_since(heard), Duration::from_secs(2));
        assert!(clock.now() > heard, "the clock itself never runs backwards");
    }

    #[test]
    fn a_source_that_runs_backwards_adds_nothing() {
        let (clock, elapsed) = manual();
        let heard = clock.now();
        elapsed.store(1_000, Ordering::SeqCst);
        assert_eq!(clock.silence_since(heard), Duration::ZERO);
        elapsed.store(5_100, Ordering::SeqCst);
        assert_eq!(clock.silence_since(heard), Duration::from_millis(100));
    }
}
