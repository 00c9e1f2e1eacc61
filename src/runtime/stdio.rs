//! Standard output and standard error of commands.
//!
//! A full disk behind standard output is an error. A reader that has closed it (`| head`) wants no more: the command ends
//! without a word, with the exit code that shells show for a program ended by SIGPIPE. Neither is a panic, which is what
//! `println!` makes of both.

use std::fmt::Display;
use std::io::{self, StdoutLock, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// Exit code of a command whose reader has gone: 128 and the number of SIGPIPE.
pub const READER_GONE_CODE: u8 = 141;

/// Set once a write to standard output found that nobody reads it.
static READER_GONE: AtomicBool = AtomicBool::new(false);

/// Standard output, locked. Its errors are those of [`write()`].
#[derive(Debug)]
pub struct Output(StdoutLock<'static>);

impl Output {
    /// Waits for the lock.
    pub fn lock() -> Output {
        Output(io::stdout().lock())
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(noted)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(noted)
    }
}

/// Remembers that the reader has gone, and says what could not be written.
fn noted(error: io::Error) -> io::Error {
    match error.kind() {
        // `write_all` repeats it.
        io::ErrorKind::Interrupted => error,
        kind => {
            if kind == io::ErrorKind::BrokenPipe {
                READER_GONE.store(true, Ordering::Relaxed);
            }
            io::Error::new(kind, format!("standard output cannot be written: {error}"))
        }
    }
}

/// True once a write has found that nobody reads standard output.
pub fn is_reader_gone() -> bool {
    READER_GONE.load(Ordering::Relaxed)
}

/// Writes `text` to standard output.
///
/// *Errors*: when not all of it could be written. [`fail`] is silent about a reader that has gone.
pub fn write(text: impl Display) -> Result<()> {
    let mut output = Output::lock();
    write!(output, "{text}").and_then(|()| output.flush()).map_err(Error::from)
}

/// As [`write()`], with a line break behind `line`.
///
/// *Errors*: as [`write()`].
pub fn write_line(line: impl Display) -> Result<()> {
    write(format_args!("{line}\n"))
}

/// Writes a line to standard error. There is nowhere to say that this failed.
pub fn complain(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Says on standard error why a command failed, unless its reader has gone; its exit code.
pub fn fail(error: &Error) -> ExitCode {
    if is_reader_gone() {
        return ExitCode::from(READER_GONE_CODE);
    }
    complain(format_args!("error: {error}"));
    ExitCode::from(error.exit_code())
}

/// What a command line says. After its help, its version or what is wrong with it has been printed: the exit code.
pub fn parsed<T>(parsed: Result<T, clap::Error>) -> Result<T, ExitCode> {
    parsed.map_err(|answer| {
        let printed = answer.print().and_then(|()| io::stdout().flush());
        match printed {
            Err(error) if !answer.use_stderr() => fail(&Error::from(noted(error))),
            _ => ExitCode::from(u8::try_from(answer.exit_code()).unwrap_or(1)),
        }
    })
}
