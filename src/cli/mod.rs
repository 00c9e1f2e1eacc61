//! `jindoctl`: the folder tree is the command tree. Output on stdout is a contract; messages go to stderr.

mod bench;
mod cluster;
pub(crate) mod fs;
mod job;
mod load;
mod mount;
mod output;
mod report;
mod worker;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::client::namespace::Namespace;
use crate::config::{ClientConfig, value};
use crate::error::{Error, Result};
use crate::runtime::shutdown_on_signal;
use crate::runtime::stdio::{self, fail};
use output::Format;

/// Exit code when a part could not be done.
const PARTIAL: u8 = 5;
/// Exit code of a command that was interrupted while it waited: 128 and the number of SIGINT.
const INTERRUPTED: u8 = 130;

/// Looks after a JindoFS cluster. Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 no leader or unavailable, 5 partial, 130
/// interrupted while it waited, 141 nobody reads its output.
#[derive(Debug, Parser)]
#[command(name = "jindoctl", version)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
struct Common {
    /// Client gRPC host:port of masters, with commas.
    #[arg(long, global = true, env = "JINDOFS_MASTERS", default_value = "127.0.0.1:8101")]
    masters: String,
    /// Longest wait for one operation, seconds.
    #[arg(long, global = true, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
}

impl Common {
    fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }

    /// Addresses of the masters that are given.
    ///
    /// *Errors*: `InvalidArgument` for what is no host:port, and when none is given.
    fn masters(&self) -> Result<Vec<String>> {
        let masters = value::addresses(&self.masters)
            .map_err(|why| Error::invalid(format!("--masters (or JINDOFS_MASTERS): {why}")))?;
        if masters.is_empty() {
            return Err(Error::invalid("no master is given: use --masters host:port,... or JINDOFS_MASTERS"));
        }
        Ok(masters)
    }

    fn client(&self) -> Result<ClientConfig> {
        Ok(ClientConfig { masters: self.masters()?, rpc_timeout: self.timeout(), hard: false })
    }

    fn namespace(&self) -> Result<Namespace> {
        Ok(Namespace::new(&self.client()?))
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The masters: who leads, how far behind each replica is.
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Under-storage and its places in the namespace.
    #[command(subcommand)]
    Mount(mount::Command),
    /// Files and directories; changes below a mount are made in its under-storage.
    #[command(subcommand)]
    Fs(fs::Command),
    /// Workers: who caches, and who has to leave.
    #[command(subcommand)]
    Worker(worker::Command),
    /// What is cached, by worker and by mount.
    Report,
    /// Caches every file below a path, and waits for it.
    Load(load::Arguments),
    /// Work that the cluster does by itself, such as loads.
    #[command(subcommand)]
    Job(job::Command),
    /// Measures through the public API.
    #[command(subcommand)]
    Bench(bench::Command),
    /// Prints the version.
    Version,
    /// Prints completions for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// Runs `jindoctl` with the process's arguments.
pub fn run() -> ExitCode {
    let cli = match stdio::parsed(Cli::try_parse()) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&Error::from(error)),
    };
    match runtime.block_on(dispatch(cli)) {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

/// Waits for Ctrl-C or SIGTERM.
///
/// *Errors*: when the signals cannot be caught.
async fn interrupted() -> Result<()> {
    shutdown_on_signal()?.cancelled().await;
    Ok(())
}

async fn dispatch(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Cluster(command) => cluster::run(&cli.common, command).await,
        Command::Mount(command) => mount::run(&cli.common, command).await.map(|()| ExitCode::SUCCESS),
        Command::Worker(command) => worker::run(&cli.common, command).await,
        Command::Report => report::run(&cli.common).await.map(|()| ExitCode::SUCCESS),
        Command::Job(command) => job::run(&cli.common, command).await,
        Command::Load(arguments) => load::run(&cli.common, arguments).await,
        Command::Fs(command) => fs::run(&cli.common, command).await.map(|()| ExitCode::SUCCESS),
        Command::Bench(command) => bench::run(&cli.common, command).await,
        Command::Version => {
            stdio::write_line(concat!("jindoctl ", env!("CARGO_PKG_VERSION")))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions { shell } => {
            // Into memory first: the generator panics when it cannot write.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "jindoctl", &mut script);
            stdio::write(String::from_utf8_lossy(&script))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
