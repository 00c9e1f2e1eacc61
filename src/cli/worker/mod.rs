//! `jindoctl worker`: who caches, and who has to leave.

mod drain;
mod row;

use std::process::ExitCode;

use clap::Subcommand;
use jindofs_proto::v1::WorkerInfo;

use super::Common;
use super::output::{print, size};
use crate::client::admin;
use crate::error::{Error, ErrorKind, Result};
use crate::rpc::channel::MasterChannel;
use crate::runtime::stdio;
use crate::types::address::host_port;

pub(super) use row::Worker;

/// Said to workers that people drain.
const BY_HAND: &str = "by hand";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Lists the workers, and how far drains are.
    List,
    /// Has others take what workers hold, and waits until that is done. Exit code 5 if a part could not move.
    Drain(drain::Arguments),
    /// Lets workers stay that were drained.
    Undrain {
        /// Ids, or host:port.
        #[arg(required = true)]
        workers: Vec<String>,
    },
    /// Forgets workers that are gone for good.
    Remove {
        /// Ids, or host:port.
        #[arg(required = true)]
        workers: Vec<String>,
    },
}

pub(super) async fn run(common: &Common, command: Command) -> Result<ExitCode> {
    let channel = MasterChannel::new(&common.client()?);
    match command {
        Command::List => list(common, &channel).await?,
        Command::Drain(arguments) => return drain::run(&channel, arguments).await,
        Command::Undrain { workers } => {
            let ids = ids(&admin::workers(&channel).await?, &workers)?;
            admin::drain_workers(&channel, &ids, true, "").await?;
            ids.iter().try_for_each(|id| stdio::write_line(format_args!("worker {id} stays")))?;
        }
        Command::Remove { workers } => {
            let ids = ids(&admin::workers(&channel).await?, &workers)?;
            admin::remove_workers(&channel, &ids).await?;
            ids.iter().try_for_each(|id| stdio::write_line(format_args!("worker {id} is forgotten")))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(common: &Common, channel: &MasterChannel) -> Result<()> {
    let rows: Vec<Worker> = admin::workers(channel).await?.iter().map(Worker::from).collect();
    print(common.output, &rows, &["WORKER", "ADDRESS", "STATE", "USED", "CAPACITY", "DRAIN", "LEFT", "MESSAGE"], |_| {
        let row = |one: &Worker| {
            let drain = one.drain.as_ref();
            vec![
                one.id.clone(),
                one.address.clone(),
                one.state.to_owned(),
                size(one.used_bytes),
                size(one.capacity_bytes),
                drain.map_or("", |drain| drain.state).to_owned(),
                drain.map_or_else(String::new, |drain| size(drain.left_bytes)),
                drain.map_or_else(String::new, |drain| drain.message.clone()),
            ]
        };
        rows.iter().map(row).collect()
    })
}

/// Ids of workers that are named by id or by address.
fn ids(known: &[WorkerInfo], named: &[String]) -> Result<Vec<String>> {
    let find = |name: &String| {
        // In the form in which a worker registers.
        let address = host_port(name).unwrap_or_else(|_| name.clone());
        let mut found = known.iter().filter(|worker| worker.id == *name || worker.address == address);
        match (found.next(), found.next()) {
            (Some(worker), None) => Ok(worker.id.clone()),
            (None, _) => {
                let message = format!("worker {name} is not on record: see jindoctl worker list");
                Err(Error::new(ErrorKind::NotFound, message))
            }
            (Some(_), Some(_)) => {
                Err(Error::invalid(format!("several workers have had the address {name}: give the id")))
            }
        }
    };
    named.iter().map(find).collect()
}
