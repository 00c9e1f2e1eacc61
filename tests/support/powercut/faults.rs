//! Faults of single fsyncs: the ones of some files are slow, or fail as the disk below them would make them fail.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::PowerCutFs;

/// Which of the fsyncs that match a pattern a fault hits, counted from 1 while its switch is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Every one.
    All,
    /// One of them.
    Nth(u64),
    /// This one and all that follow.
    From(u64),
}

/// What is done to one fsync.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Treatment {
    /// Time that passes before the fsync takes effect and is answered.
    pub(super) delay: Duration,
    /// True if it is answered with EIO and what it should have written is lost.
    pub(super) fails: bool,
}

/// The switch of one fault; on from its creation.
#[derive(Debug, Clone)]
pub struct SyncFault(Arc<Rule>);

#[derive(Debug)]
struct Rule {
    pattern: String,
    which: Which,
    treatment: Treatment,
    on: AtomicBool,
    matched: AtomicU64,
    hits: AtomicU64,
}

impl SyncFault {
    /// From here on fsyncs are hit (true) or left alone and not counted (false).
    pub fn set_on(&self, on: bool) {
        self.0.on.store(on, Ordering::SeqCst);
    }

    /// The number of fsyncs hit so far.
    pub fn hits(&self) -> u64 {
        self.0.hits.load(Ordering::SeqCst)
    }
}

impl Rule {
    fn hits(&self, path: &str) -> bool {
        if !self.on.load(Ordering::SeqCst) || !matches(&self.pattern, path) {
            return false;
        }
        let number = self.matched.fetch_add(1, Ordering::SeqCst) + 1;
        let hit = match self.which {
            Which::All => true,
            Which::Nth(nth) => number == nth,
            Which::From(first) => number >= first,
        };
        self.hits.fetch_add(u64::from(hit), Ordering::SeqCst);
        hit
    }
}

/// All faults of one file system.
#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<Vec<SyncFault>>);

impl Faults {
    /// What is done to the fsync of the file or directory at the path that `path` returns, if it still has a name.
    pub(super) fn treat(&self, path: impl FnOnce() -> Option<String>) -> Treatment {
        let faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut treatment = Treatment::default();
        if faults.is_empty() {
            return treatment;
        }
        let Some(path) = path() else { return treatment };
        for SyncFault(rule) in faults.iter().filter(|fault| fault.0.hits(&path)) {
            treatment.delay += rule.treatment.delay;
            treatment.fails |= rule.treatment.fails;
        }
        treatment
    }

    fn add(&self, pattern: &str, which: Which, treatment: Treatment) -> SyncFault {
        let (on, matched, hits) = (AtomicBool::new(true), AtomicU64::new(0), AtomicU64::new(0));
        let fault = SyncFault(Arc::new(Rule { pattern: pattern.to_owned(), which, treatment, on, matched, hits }));
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(fault.clone());
        fault
    }
}

/// Patterns are paths below the mount point without a leading slash; `*` stands for any part of one name.
impl PowerCutFs {
    /// Fsyncs of matching files and directories take effect, and are answered, after `delay`.
    pub fn delay_syncs(&self, pattern: &str, delay: Duration) -> SyncFault {
        self.shared.faults.add(pattern, Which::All, Treatment { delay, fails: false })
    }

    /// Some fsyncs of matching files and directories fail with EIO. As on Linux the pages that such an fsync should have
    /// written are clean afterwards: they read as written, later fsyncs succeed without writing them, and they are gone
    /// after a power cut unless a program writes them again. Names in a directory likewise, as on ext2.
    pub fn fail_syncs(&self, pattern: &str, which: Which) -> SyncFault {
        self.shared.faults.add(pattern, which, Treatment { delay: Duration::ZERO, fails: true })
    }
}

/// True if `path` has as many names as `pattern` and each matches.
fn matches(pattern: &str, path: &str) -> bool {
    let (mut patterns, mut names) = (pattern.split('/'), path.split('/'));
    loop {
        match (patterns.next(), names.next()) {
            (Some(pattern), Some(name)) if matches_name(pattern, name) => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}

fn matches_name(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(head) else { return false };
    (0..=name.len()).any(|from| name.is_char_boundary(from) && matches_name(rest, &name[from..]))
}

#[test]
fn a_star_stands_for_any_part_of_one_name() {
    for (pattern, path, expected) in [
        ("meta/wal/*.wal", "meta/wal/0000.wal", true),
        ("meta/wal/*.wal", "meta/wal/prepare.tmp", false),
        ("meta/*", "meta/wal/0000.wal", false),
        ("meta", "meta", true),
        ("", "", true),
        ("*/IDENT*.t*p", "meta/IDENTITY.tmp", true),
        ("*/IDENT*.t*p", "meta/IDENTITY", false),
    ] {
        assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
    }
}
