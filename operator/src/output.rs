//! Standard output and standard error of the commands. A reader that has gone (`| head`) ends a command quietly, a full disk
//! with an error; the macros of the standard library make a panic of both.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

/// Exit code of a command whose reader has gone: 128 and the number of SIGPIPE.
const READER_GONE_CODE: u8 = 141;

/// Writes to standard output; how the command ends with that.
pub fn print(text: &str) -> ExitCode {
    let mut output = io::stdout().lock();
    ended(output.write_all(text.as_bytes()).and_then(|()| output.flush()))
}

/// How a command ends whose output was written so far.
fn ended(written: io::Result<()>) -> ExitCode {
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::from(READER_GONE_CODE),
        Err(error) => {
            complain(format_args!("error: standard output cannot be written: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Prints help, version, or what is wrong with a command line; how the command ends with that.
pub fn print_usage(answer: &clap::Error) -> ExitCode {
    match answer.print().and_then(|()| io::stdout().flush()) {
        Err(error) if !answer.use_stderr() => ended(Err(error)),
        _ => ExitCode::from(u8::try_from(answer.exit_code()).unwrap_or(1)),
    }
}

/// Writes a line to standard error. There is nowhere to say that this failed.
pub fn complain(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}
