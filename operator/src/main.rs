//! `jindofs-operator`: Kubernetes' side of JindoFS.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use jindofs_operator::crd;

#[derive(Debug, Parser)]
#[command(name = "jindofs-operator", version, about = "Kubernetes' side of JindoFS")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Prints the definitions of Dataset, JindoRuntime and DataLoad, for `kubectl apply -f -`.
    Crd,
}

fn main() -> ExitCode {
    let printed = match Arguments::parse().command {
        Command::Crd => crd::yaml(),
    };
    match printed {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
