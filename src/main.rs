//! `jindofs`: the roles of the cluster in one binary.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use jindofs::config::keys::Role;
use jindofs::config::{FuseConfig, MasterConfig, Settings, WorkerConfig, explain, flags};
use jindofs::error::{Error, Result};
use jindofs::fluid::{self, Asked};
use jindofs::runtime::stdio::{self, fail};
use jindofs::runtime::{Shutdown, shutdown_on_signal};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if let Err(error) = jindofs::dev::die_with_parent() {
        return fail(&error);
    }
    let matches = match stdio::parsed(cli().try_get_matches()) {
        Ok(matches) => matches,
        Err(code) => return code,
    };
    let outcome = match matches.subcommand() {
        Some(("master", found)) => from_flags(Role::Master, found),
        Some(("worker", found)) => from_flags(Role::Worker, found),
        Some(("fuse", found)) => from_flags(Role::Fuse, found),
        Some(("check-config", found)) => check_config(found),
        Some(("fluid", found)) => fluid::run(found).and_then(|asked| match asked {
            Asked::Run(launch) => run_role(launch.role, &launch.settings, launch.role == Role::Master),
            Asked::Done => Ok(()),
        }),
        Some(("dev", found)) => jindofs::dev::command::run(found),
        Some(("version", _)) => stdio::write_line(concat!("jindofs ", env!("CARGO_PKG_VERSION"))),
        _ => Err(Error::invalid("no command given; see jindofs --help")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn cli() -> Command {
    let roles = ["master", "worker", "fuse"];
    Command::new("jindofs")
        .about("The roles of a JindoFS cluster")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(flags::command(Role::Master, "Runs a master: a member of the group that holds the namespace"))
        .subcommand(flags::command(Role::Worker, "Runs a worker: it caches blocks of files"))
        .subcommand(flags::command(Role::Fuse, "Mounts the file system on a directory"))
        .subcommand(jindofs::dev::command::command())
        .subcommand(fluid::command())
        .subcommand(
            Command::new("check-config")
                .about("Explains the effective settings of a role and where each comes from; exits with 2 on errors")
                .args(flags::common())
                .arg(Arg::new("role").long("role").required(true).value_parser(roles).help("Whose settings")),
        )
        .subcommand(Command::new("version").about("Prints the version"))
}

fn from_flags(role: Role, matches: &ArgMatches) -> Result<()> {
    run_role(role, &flags::settings(role, matches)?, false)
}

/// Checks the settings first, so that a mistake in them is told before anything is touched. A master founds its cluster by
/// itself only where nobody else can be asked to.
fn run_role(role: Role, settings: &Settings, founds: bool) -> Result<()> {
    explain::check(settings)?;
    jindofs::telemetry::init_logging();
    jindofs::telemetry::http::init_metrics();
    jindofs::runtime::raise_descriptor_limit();
    for warning in explain::advice(settings) {
        tracing::warn!(%warning, "a setting should be looked at");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name(role.name()).build()?;
    let outcome = runtime.block_on(async {
        let shutdown = shutdown_on_signal()?;
        if founds {
            let config = MasterConfig::from_settings(settings)?;
            tokio::spawn(async move { fluid::founding::found(&config).await });
        }
        start(role, settings, shutdown).await
    });
    // A blocking call that hangs (a dead disk, a dead mount) must not keep a role from ending.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    outcome
}

async fn start(role: Role, settings: &Settings, shutdown: Shutdown) -> Result<()> {
    match role {
        Role::Master => jindofs::master::run(MasterConfig::from_settings(settings)?, shutdown).await,
        Role::Worker => jindofs::worker::run(WorkerConfig::from_settings(settings)?, shutdown).await,
        Role::Fuse => jindofs::fuse::run(FuseConfig::from_settings(settings)?, shutdown).await,
        Role::Ctl => Err(Error::invalid("jindoctl is a binary of its own")),
    }
}

fn check_config(matches: &ArgMatches) -> Result<()> {
    let role = match matches.get_one::<String>("role").map(String::as_str) {
        Some("master") => Role::Master,
        Some("worker") => Role::Worker,
        _ => Role::Fuse,
    };
    let settings = flags::settings(role, matches)?;
    stdio::write(explain::explain(&settings))?;
    explain::check(&settings)
}
