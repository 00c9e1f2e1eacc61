//! Logs and metrics. One line per event on stderr: constant lower-case messages, values as fields.

pub mod http;
pub mod series;

use tracing_subscriber::EnvFilter;

use crate::runtime::stdio;

/// Starts logging. `JINDOFS_LOG` filters as `RUST_LOG` does elsewhere; `JINDOFS_LOG_FORMAT=json` for machines.
pub fn init_logging() {
    let filter = EnvFilter::try_from_env("JINDOFS_LOG").unwrap_or_else(|_| EnvFilter::new("info,openraft=error"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    // What cannot be logged, as on a full disk, would be told on standard error by a macro that panics.
    let builder = builder.log_internal_errors(false);
    let started = if std::env::var("JINDOFS_LOG_FORMAT").is_ok_and(|format| format == "json") {
        builder.json().try_init()
    } else {
        builder.try_init()
    };
    if let Err(error) = started {
        stdio::complain(format_args!("warning: logging was started before: {error}"));
    }
}
