//! The trace: a hash over everything that happens, in order, with its time. Two runs of a seed must have the same.

use std::fmt::Arguments;
use std::io::Write;

use crate::runtime::simulated;

/// See the module.
#[derive(Debug)]
pub(super) struct Trace {
    hash: u64,
    pub(super) events: u64,
    line: String,
    /// Every line in clear text, where `SIMULATION_TRACE` names a file.
    file: Option<std::io::BufWriter<std::fs::File>>,
}

impl Trace {
    pub(super) fn new() -> Trace {
        let file = std::env::var_os("SIMULATION_TRACE").and_then(|path| std::fs::File::create(path).ok());
        Trace { hash: 0xcbf2_9ce4_8422_2325, events: 0, line: String::new(), file: file.map(std::io::BufWriter::new) }
    }

    pub(super) fn note(&mut self, what: Arguments<'_>) {
        use std::fmt::Write as _;
        self.line.clear();
        let _ = write!(self.line, "{} {what}", simulated::now());
        self.events += 1;
        self.hash = (self.hash ^ u64::from(crc32c::crc32c(self.line.as_bytes()))).wrapping_mul(0x0100_0000_01b3);
        self.hash = self.hash.rotate_left(23);
        if let Some(file) = &mut self.file {
            let _ = writeln!(file, "{}", self.line);
        }
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn flush(&mut self) {
        if let Some(file) = &mut self.file {
            let _ = file.flush();
        }
    }
}
