//! `jindoctl`: the folder tree is the command tree. Output on stdout is a contract; messages go to stderr.

mod bench;
mod cluster;
pub(crate) mod fs;
mod load;
mod mount;
mod output;
mod report;
mod worker;

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::client::namespace::Namespace;
use crate::config::ClientConfig;
use crate::error::{Error, Result};
use output::Format;

/// Exit code when a part could not be done.
const PARTIAL: u8 = 5;

/// Looks after a JindoFS cluster. Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 no leader or unavailable, 5 partial.
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
    #[arg(long, global = true, default_value_t = 10)]
    timeout: u64,
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
}

impl Common {
    fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }

    fn masters(&self) -> Vec<String> {
        self.masters.split(',').map(str::trim).filter(|one| !one.is_empty()).map(str::to_owned).collect()
    }

    fn client(&self) -> Result<ClientConfig> {
        let masters = self.masters();
        if masters.is_empty() {
            return Err(Error::invalid("no master is given: use --masters host:port,... or JINDOFS_MASTERS"));
        }
        Ok(ClientConfig { masters, rpc_timeout: self.timeout(), hard: false })
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
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&Error::from(error)),
    };
    match runtime.block_on(dispatch(cli)) {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

fn fail(error: &Error) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::from(error.exit_code())
}

async fn dispatch(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Cluster(command) => cluster::run(&cli.common, command).await,
        Command::Mount(command) => mount::run(&cli.common, command).await.map(|()| ExitCode::SUCCESS),
        Command::Worker(command) => worker::run(&cli.common, command).await,
        Command::Report => report::run(&cli.common).await.map(|()| ExitCode::SUCCESS),
        Command::Load(arguments) => load::run(&cli.common, arguments).await,
        Command::Fs(command) => fs::run(&cli.common, command).await.map(|()| ExitCode::SUCCESS),
        Command::Bench(command) => bench::run(&cli.common, command).await,
        Command::Version => {
            println!("jindoctl {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "jindoctl", &mut io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    }
}
