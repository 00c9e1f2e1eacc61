//! Command-line flags of the roles, made from the table of keys.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::keys::{self, Role};
use super::source::{FlagValue, Settings, config_file};
use crate::error::Result;

const HELP: &str = "Settings come from flags, the environment (NAMESPACE_META_DIR for namespace.meta-dir), the config \
                    file and defaults, in this order. `jindofs check-config --role ROLE` explains every key.";

/// The subcommand of a role, with a flag for each key that has one.
pub fn command(role: Role, about: &'static str) -> Command {
    let command = Command::new(role.name()).about(about).after_help(HELP);
    let command = command.args(common());
    let command = keys::of_role(role).filter(|key| !key.flag.is_empty()).fold(command, |command, key| {
        command.arg(Arg::new(key.name).long(key.flag).value_name(key.kind.form()).help(key.doc))
    });
    if role == Role::Master {
        let help = "Heartbeat 100 ms, election 300 to 600 ms, unless set otherwise";
        return command.arg(Arg::new("fast-elections").long("fast-elections").action(ArgAction::SetTrue).help(help));
    }
    command
}

/// `--config` and `--set`.
pub fn common() -> [Arg; 2] {
    [
        Arg::new("config")
            .long("config")
            .short('c')
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("TOML file of settings [env: JINDOFS_CONFIG]"),
        Arg::new("set").long("set").value_name("KEY=VALUE").action(ArgAction::Append).help("Sets any key"),
    ]
}

/// The settings a command line asks for.
///
/// *Errors*: when the file cannot be read, or `--set` has no `=`.
pub fn settings(role: Role, matches: &ArgMatches) -> Result<Settings> {
    let mut flags = Vec::new();
    for key in keys::of_role(role).filter(|key| !key.flag.is_empty()) {
        // `check-config` takes any role and hence no flags of their own.
        if let Ok(Some(value)) = matches.try_get_one::<String>(key.name) {
            flags.push(FlagValue { key: key.name.to_owned(), value: value.clone(), flag: format!("--{}", key.flag) });
        }
    }
    if let Ok(Some(true)) = matches.try_get_one::<bool>("fast-elections") {
        let key = "namespace.backend.raft.fast-elections".to_owned();
        flags.push(FlagValue { key, value: "true".to_owned(), flag: "--fast-elections".to_owned() });
    }
    for text in matches.get_many::<String>("set").into_iter().flatten() {
        flags.push(FlagValue::from_set(text)?);
    }
    let file = config_file(matches.get_one::<PathBuf>("config").map(PathBuf::as_path));
    Settings::load(role, file.as_deref(), &|name| std::env::var_os(name), &flags)
}
