//! `jindoctl bench <what>`: measures through the public API, like any client.

mod meta;
mod pauses;

use std::process::ExitCode;

use clap::Subcommand;

use super::Common;
use crate::error::Result;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Namespace operations, each client in a directory of its own.
    Meta(meta::Arguments),
    /// Makes and removes names until Ctrl-C, tells each pause in which nothing was acknowledged, and looks at the end
    /// whether everything that was acknowledged is so.
    Pauses(pauses::Arguments),
}

pub(super) async fn run(common: &Common, command: Command) -> Result<ExitCode> {
    match command {
        Command::Meta(arguments) => meta::run(common, arguments).await.map(|()| ExitCode::SUCCESS),
        Command::Pauses(arguments) => pauses::run(common, arguments).await,
    }
}
