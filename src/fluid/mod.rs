//! What Fluid's own controllers ask of an image, so that an existing Fluid runs our masters, workers and clients
//! (`jindoVersion.image`, `fuse.image`): entrypoints, a handful of commands, and settings in upstream's file. Nothing of
//! this is needed beside our own operator.
//!
//! Fluid renders pods on the network of their nodes, tells the first master only what to mount, and asks it alone how full
//! the cache is. Nobody tells the masters who founds the cluster: see [`founding`].

mod cacheset;
mod cfg;
mod commands;
pub mod founding;
mod launch;
mod storage;

use std::path::Path;
use std::time::Duration;

use clap::{Arg, ArgMatches, Command};

use crate::error::{Error, ErrorKind, Result};
use crate::runtime::stdio;
use cfg::Cfg;
pub use launch::Launch;

/// Where Fluid puts upstream's file of settings in every pod.
const CFG: &str = "/jindocache.cfg";
/// Variable with the place of a client's mount.
const MOUNT: &str = "FLUID_FUSE_MOUNTPOINT";
/// Pause between two attempts to find the own name among those of the masters.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// `jindofs fluid`.
pub fn command() -> Command {
    let one = |name: &'static str, about: &'static str| {
        let arguments = Arg::new("arguments").num_args(0..).trailing_var_arg(true).allow_hyphen_values(true);
        Command::new(name).about(about).arg(arguments).disable_help_flag(true)
    };
    Command::new("fluid")
        .about("What Fluid's own controllers run in a pod; the image for them has these under the names they use")
        .subcommand_required(true)
        .subcommand(one("entrypoint", "/entrypoint.sh: master, worker, or the options of a mount"))
        .subcommand(one("prestop", "/prestop.sh of a client: takes the mount away"))
        .subcommand(one("jindocache", "jindocache: -report, -mount, -listCacheSet, -refreshCacheSet, -load"))
        .subcommand(one("jindo", "jindo fs: -ls, -count"))
}

/// What a command line of `jindofs fluid` asks for.
pub enum Asked {
    /// This role is to be run.
    Run(Launch),
    /// It is done.
    Done,
}

/// Does what was asked, or says which role is to be run.
///
/// *Errors*: what is wrong with the arguments, the settings or the cluster.
pub fn run(matches: &ArgMatches) -> Result<Asked> {
    let Some((name, found)) = matches.subcommand() else { return Err(Error::invalid("see jindofs fluid --help")) };
    let arguments: Vec<String> = found.get_many("arguments").into_iter().flatten().cloned().collect();
    match name {
        "entrypoint" => entrypoint(&arguments).map(Asked::Run),
        "prestop" => crate::fuse::unmount(Path::new(&mount_point()?)).map(|()| Asked::Done),
        name => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            let commands = commands::Commands::new(&Cfg::read(Path::new(CFG))?)?;
            let outcome = runtime.block_on(commands.run(name, &arguments));
            outcome.map(|()| Asked::Done)
        }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn mount_point() -> Result<String> {
    variable(MOUNT).ok_or_else(|| Error::invalid(format!("{MOUNT} is not set: it says where to mount")))
}

fn entrypoint(arguments: &[String]) -> Result<Launch> {
    let cfg = Cfg::read(Path::new(CFG))?;
    match arguments.first().map(String::as_str) {
        Some("master") => loop {
            match launch::master(&cfg, &variable, &crate::runtime::host_name(), &launch::is_local) {
                // The names of pods are made known after they start.
                Err(error) if error.kind == ErrorKind::Unavailable => {
                    stdio::complain(format_args!("waiting: {error}"));
                    std::thread::sleep(POLL_INTERVAL);
                }
                other => break other,
            }
        },
        Some("worker") => launch::worker(&cfg, &variable),
        Some(option) if option.starts_with("-o") => launch::client(&cfg, &mount_point()?, arguments),
        None => launch::client(&cfg, &mount_point()?, &[]),
        Some(other) => {
            Err(Error::invalid(format!("{other:?} is no role: write master, worker, or -oOPTION of a mount")))
        }
    }
}
