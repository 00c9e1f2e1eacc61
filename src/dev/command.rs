//! The command line of `jindofs dev`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::{DevCluster, DevFile, DevOptions, UfsMount, control, detach, launch};
use crate::config::value;
use crate::error::{Error, Result};
use crate::runtime::stdio;

/// Last line of a start.
pub(super) const READY: &str = "ready";

/// The subcommand with its own subcommands.
pub fn command() -> Command {
    let dir = || {
        let arg = Arg::new("data-dir").long("data-dir").value_name("DIR").value_parser(value_parser!(PathBuf));
        arg.required(true).help("Directory of the cluster")
    };
    let name = || Arg::new("name").required(true).value_name("NAME").help("master-0, ...");
    Command::new("dev")
        .about("A local cluster, each role its own process; Ctrl-C stops it")
        .args_conflicts_with_subcommands(true)
        .subcommand_negates_reqs(true)
        .arg(dir())
        .arg(number("masters", "3", "Number of masters"))
        .arg(number("workers", "0", "Number of workers"))
        .arg(
            Arg::new("worker-quota")
                .long("worker-quota")
                .value_name("SIZE")
                .default_value("1GiB")
                .help("Cache of each worker; an eighth of it, at most 128 MiB, lies in memory"),
        )
        .arg(Arg::new("ufs").long("ufs").value_name("[PATH=]URI").action(ArgAction::Append).help("Under-storage"))
        .arg(Arg::new("ufs-option").long("ufs-option").value_name("K=V").action(ArgAction::Append))
        .arg(
            Arg::new("mount")
                .long("mount")
                .value_name("MNT")
                .value_parser(value_parser!(PathBuf))
                .action(ArgAction::Append),
        )
        .arg(flag("writable", "Let files be written through every --mount"))
        .arg(
            Arg::new("set")
                .long("set")
                .value_name("KEY=VALUE")
                .action(ArgAction::Append)
                .help("Sets any key of the masters"),
        )
        .arg(flag("fast-elections", "Heartbeat 100 ms, election 300 to 600 ms"))
        .arg(flag("supervise", "Start processes again that end"))
        .arg(flag("detach", "Return when everything is ready; `jindofs dev stop` ends it"))
        .subcommand(Command::new("stop").about("Stops a cluster").arg(dir()))
        .subcommand(Command::new("status").about("Prints dev.json").arg(dir()))
        .subcommand(Command::new("restart").about("Starts one process again").arg(name()).arg(dir()))
        .subcommand(
            Command::new("add-master")
                .about("Starts one more master, which joins when `jindoctl cluster add` names it")
                .arg(dir()),
        )
        .subcommand(Command::new("kill").about("Kills one process with SIGKILL").arg(name()).arg(dir()))
}

fn number(name: &'static str, default: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name("N").default_value(default).value_parser(value_parser!(usize)).help(help)
}

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

/// Runs what was asked for.
///
/// *Errors*: as the command says; the exit code follows from the kind.
pub fn run(matches: &ArgMatches) -> Result<()> {
    let dir = |found: &ArgMatches| found.get_one::<PathBuf>("data-dir").cloned().unwrap_or_default();
    let name = |found: &ArgMatches| found.get_one::<String>("name").cloned().unwrap_or_default();
    match matches.subcommand() {
        Some(("stop", found)) => control::send(&dir(found), "stop"),
        Some(("restart", found)) => control::send(&dir(found), &format!("restart {}", name(found))),
        Some(("kill", found)) => control::send(&dir(found), &format!("kill {}", name(found))),
        Some(("add-master", found)) => {
            control::send(&dir(found), "add-master")?;
            let file = DevFile::read(&dir(found))?;
            let added = file.processes.into_iter().rfind(|one| one.role == "master");
            let added = added.ok_or_else(|| Error::internal("dev.json names no master"))?;
            stdio::write_line(format_args!("{} waits at {}", added.name, added.raft.unwrap_or_default()))
        }
        Some(("status", found)) => {
            let file = DevFile::read(&dir(found))?;
            let text = serde_json::to_string_pretty(&file).map_err(|error| Error::internal(error.to_string()))?;
            stdio::write_line(text)
        }
        _ if matches.get_flag("detach") => detach::run(&options(matches)?),
        _ => foreground(options(matches)?),
    }
}

fn options(matches: &ArgMatches) -> Result<DevOptions> {
    let mut options = DevOptions::new(matches.get_one::<PathBuf>("data-dir").cloned().unwrap_or_default());
    options.masters = matches.get_one("masters").copied().unwrap_or(3);
    options.workers = matches.get_one("workers").copied().unwrap_or(0);
    if let Some(text) = matches.get_one::<String>("worker-quota") {
        let quota = value::size(text).map_err(|why| Error::invalid(format!("--worker-quota {text}: {why}")))?;
        options.worker_quota = quota;
    }
    options.fast_elections = matches.get_flag("fast-elections");
    options.supervise = matches.get_flag("supervise");
    options.writable = matches.get_flag("writable");
    options.mounts = matches.get_many::<PathBuf>("mount").into_iter().flatten().cloned().collect();
    options.ufs = matches.get_many::<String>("ufs").into_iter().flatten().map(|text| UfsMount::parse(text)).collect();
    for text in matches.get_many::<String>("ufs-option").into_iter().flatten() {
        options.add_ufs_option(text)?;
    }
    for text in matches.get_many::<String>("set").into_iter().flatten() {
        let (key, value) =
            text.split_once('=').ok_or_else(|| Error::invalid(format!("--set {text}: write KEY=VALUE")))?;
        options.settings.push((key.to_owned(), value.to_owned()));
    }
    options.progress = Some(|line| {
        // The line that says that everything is ready brings out what is wrong with the output.
        let _ = say(line);
    });
    Ok(options)
}

fn foreground(options: DevOptions) -> Result<()> {
    // The signals are caught before anything is started: Ctrl-C in the middle of a start leaves nothing behind.
    let stop = Arc::new(AtomicBool::new(false));
    let raise = stop.clone();
    on_signal(move || raise.store(true, Ordering::Release))?;
    let options = DevOptions { interrupt: Some(stop.clone()), ..options };
    let dir = options.dir.clone();
    let cluster = DevCluster::start(options)?;
    let listener = control::listen(&dir)?;
    listener.set_nonblocking(true)?;
    say(&format!("masters {}", cluster.file().masters))?;
    launch::outlive_parent()?;
    say(READY)?;
    while !stop.load(Ordering::Acquire) {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                match control::answer(&cluster, stream) {
                    Ok(true) => break,
                    Ok(false) => {}
                    Err(error) => stdio::complain(format_args!("warning: a command was not answered: {error}")),
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(20))
            }
            Err(error) => return Err(error.into()),
        }
    }
    drop(cluster);
    Ok(())
}

/// Prints a line. Who started the cluster may be gone by then, which must not end it.
///
/// *Errors*: when the output cannot be written for another reason.
pub(super) fn say(line: &str) -> Result<()> {
    match stdio::write_line(line) {
        Err(error) if !stdio::is_reader_gone() => Err(error),
        _ => Ok(()),
    }
}

/// Runs `then` once on SIGINT or SIGTERM, which from now on do nothing else.
pub(super) fn on_signal(then: impl FnOnce() + Send + 'static) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let token = {
        let _inside = runtime.enter();
        crate::runtime::shutdown_on_signal()?
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(token.cancelled());
        then();
    })?;
    Ok(())
}
