//! The machine of a simulated run: on a thread that has entered it, the clocks, the random numbers and the waits of libc
//! are those of the simulation, for the standard library, for tokio and for every crate alike.
//!
//! The functions below stand before those of libc in the test program. On all other threads they only pass on.

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_uint, c_void};
use std::future::poll_fn;
use std::task::{Poll, Waker};

use tokio::runtime::Runtime;

use super::attended::AttendedClock;
use super::planted::PlantedFault;

/// What the monotonic clock shows when a simulation begins.
const BOOT_NS: u64 = 1_000_000_000_000;
/// What the wall clock shows then: a fixed day.
const EPOCH_NS: u64 = 1_750_000_000_000_000_000;

thread_local! {
    static ACTIVE: Cell<bool> = const { Cell::new(false) };
    /// Nanoseconds since the simulation began.
    static NOW: Cell<u64> = const { Cell::new(0) };
    /// How far the wall clock of the machine that runs now is ahead.
    static SKEW: Cell<i64> = const { Cell::new(0) };
    static RANDOM: Cell<u64> = const { Cell::new(0) };
    /// Set when a runtime has nothing to do before `WAKE_AT`.
    static IDLE: Cell<bool> = const { Cell::new(false) };
    static WAKE_AT: Cell<u64> = const { Cell::new(u64::MAX) };
    static MAIN: RefCell<Option<Waker>> = const { RefCell::new(None) };
    static DIED: RefCell<Option<String>> = const { RefCell::new(None) };
    static CLOCK: RefCell<Option<AttendedClock>> = const { RefCell::new(None) };
    static ROOM: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
    static PLANTED: Cell<Option<PlantedFault>> = const { Cell::new(None) };
}

/// The end of a simulated process, as the payload of a panic.
struct Died;

/// Makes this thread a simulated one for good.
pub(crate) fn enter(seed: u64) {
    RANDOM.set(seed);
    ACTIVE.set(true);
}

/// True on a simulated thread.
pub(crate) fn is_active() -> bool {
    ACTIVE.get()
}

/// Puts a fault back, on this thread.
pub(crate) fn plant(fault: Option<PlantedFault>) {
    PLANTED.set(fault);
}

/// The fault that was put back on this thread.
pub(crate) fn planted_fault() -> Option<PlantedFault> {
    PLANTED.get()
}

/// Nanoseconds since the simulation began.
pub(crate) fn now() -> u64 {
    NOW.get()
}

pub(crate) fn set_now(ns: u64) {
    NOW.set(ns);
}

/// What the machine whose process runs next has for itself: a wall clock, a clock of its process, and room on its disk as
/// total and free bytes.
pub(crate) fn set_machine(skew_ns: i64, clock: Option<AttendedClock>, room: (u64, u64)) {
    SKEW.set(skew_ns);
    ROOM.set(room);
    CLOCK.with_borrow_mut(|current| *current = clock);
}

/// The clock of the process that runs now.
pub(crate) fn attended_clock() -> Option<AttendedClock> {
    if is_active() { CLOCK.with_borrow(Clone::clone) } else { None }
}

/// Room on the disk of the machine that runs now.
pub(crate) fn disk_room() -> Option<(u64, u64)> {
    is_active().then(|| ROOM.get())
}

/// Ends the simulated process. Does nothing on other threads.
pub(crate) fn die(reason: &str) {
    if is_active() {
        DIED.with_borrow_mut(|died| died.get_or_insert_with(|| reason.to_owned()).len());
        // Not a panic: a process that ends says so itself.
        std::panic::resume_unwind(Box::new(Died));
    }
}

/// Why the process that ran last has died, once.
pub(crate) fn take_death() -> Option<String> {
    DIED.with_borrow_mut(Option::take)
}

/// Runs `runtime` until it has nothing to do at this moment. Returns the time of its next timer; the time may have advanced
/// if something slept.
pub(crate) fn run_until_idle(runtime: &Runtime) -> Option<u64> {
    IDLE.set(false);
    WAKE_AT.set(u64::MAX);
    runtime.block_on(poll_fn(|context| {
        if IDLE.get() {
            return Poll::Ready(());
        }
        MAIN.with_borrow_mut(|main| *main = Some(context.waker().clone()));
        Poll::Pending
    }));
    MAIN.with_borrow_mut(|main| *main = None);
    Some(WAKE_AT.get()).filter(|at| *at != u64::MAX)
}

/// A generator of random numbers: SplitMix64.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`; 0 for 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        if end == 0 { 0 } else { self.next() % end }
    }

    /// A number from `start` up to, and without, `end`.
    pub(crate) fn between(&mut self, start: u64, end: u64) -> u64 {
        start + self.below(end - start)
    }

    /// True in `percent` of all cases.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Passes a call on to the system, with libc's convention for errors.
macro_rules! pass {
    ($number:expr $(, $argument:expr)*) => {
        unsafe { libc::syscall($number $(, $argument)*) }
    };
}
pub(crate) use pass;

fn truncated(result: i64) -> c_int {
    c_int::try_from(result).unwrap_or(-1)
}

#[unsafe(no_mangle)]
extern "C" fn clock_gettime(clock: libc::clockid_t, out: *mut libc::timespec) -> c_int {
    if !ACTIVE.get() {
        return truncated(pass!(libc::SYS_clock_gettime, clock, out));
    }
    let ns = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => (EPOCH_NS + NOW.get()).saturating_add_signed(SKEW.get()),
        _ => BOOT_NS + NOW.get(),
    };
    let (seconds, rest) = (ns / 1_000_000_000, ns % 1_000_000_000);
    let (Ok(tv_sec), Ok(tv_nsec)) = (seconds.try_into(), rest.try_into()) else { return -1 };
    unsafe { out.write(libc::timespec { tv_sec, tv_nsec }) };
    0
}

#[unsafe(no_mangle)]
extern "C" fn getrandom(out: *mut c_void, length: usize, flags: c_uint) -> isize {
    if !ACTIVE.get() {
        return isize::try_from(pass!(libc::SYS_getrandom, out, length, flags)).unwrap_or(-1);
    }
    let mut random = Random(RANDOM.get());
    for at in 0..length {
        let byte = random.next().to_le_bytes()[0];
        unsafe { out.cast::<u8>().add(at).write(byte) };
    }
    RANDOM.set(random.0);
    isize::try_from(length).unwrap_or(-1)
}

/// A thread that sleeps holds its whole machine up: everything of a process runs on one simulated thread.
fn sleep(time: *const libc::timespec, until: bool) -> c_int {
    let time = unsafe { time.read() };
    let (Ok(seconds), Ok(rest)) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec)) else { return -1 };
    let ns = seconds * 1_000_000_000 + rest;
    NOW.set(if until { NOW.get().max(ns.saturating_sub(BOOT_NS)) } else { NOW.get() + ns });
    0
}

#[unsafe(no_mangle)]
extern "C" fn nanosleep(time: *const libc::timespec, left: *mut libc::timespec) -> c_int {
    if !ACTIVE.get() {
        return truncated(pass!(libc::SYS_nanosleep, time, left));
    }
    sleep(time, false)
}

#[unsafe(no_mangle)]
extern "C" fn clock_nanosleep(
    clock: libc::clockid_t,
    flags: c_int,
    time: *const libc::timespec,
    left: *mut libc::timespec,
) -> c_int {
    if !ACTIVE.get() {
        // This one returns the error itself.
        return match pass!(libc::SYS_clock_nanosleep, clock, flags, time, left) {
            0 => 0,
            _ => std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINTR),
        };
    }
    sleep(time, flags & libc::TIMER_ABSTIME != 0)
}

#[unsafe(no_mangle)]
extern "C" fn epoll_wait(epoll: c_int, events: *mut libc::epoll_event, most: c_int, timeout_ms: c_int) -> c_int {
    if !ACTIVE.get() {
        return truncated(pass!(libc::SYS_epoll_wait, epoll, events, most, timeout_ms));
    }
    // Nothing simulated arrives by a file descriptor: what is waited for is a timer, or another machine.
    if timeout_ms != 0 {
        let wait = u64::try_from(timeout_ms).ok().map(|ms| NOW.get() + ms * 1_000_000);
        WAKE_AT.set(wait.unwrap_or(u64::MAX));
        IDLE.set(true);
        MAIN.with_borrow(|main| main.as_ref().map(Waker::wake_by_ref));
    }
    0
}
