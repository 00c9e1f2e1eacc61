//! `jindoctl cluster`.

mod digest;
mod members;
mod status;

use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;

use super::{Common, PARTIAL};
use crate::client::admin;
use crate::error::{Error, Result};
use crate::rpc::channel::MasterChannel;
use crate::runtime::stdio;

/// How long a master may take to build a snapshot.
const SNAPSHOT: Duration = Duration::from_secs(150);
/// How long founding may take: peers are asked, then all of them have to catch up.
const PROVISION: Duration = Duration::from_secs(90);

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Asks every master; needs no leader. Exit code 4 without a quorum.
    Status,
    /// Compares the checksums of all replicas at one log index. Exit code 1 when they differ.
    Digest,
    /// Hands leadership to a member, or to the most caught-up one.
    TransferLeader {
        /// Member id.
        id: Option<u64>,
    },
    /// Lets new masters join, and waits until they have. Start each with an empty directory and a member in its list.
    Add(members::Add),
    /// Removes masters, and waits until they are gone. Name as many that an odd number of voters is left.
    Remove(members::Remove),
    /// Makes a learner a voter.
    Promote {
        /// Member id.
        id: u64,
    },
    /// Says whether a master may be restarted without losing the quorum. Exit code 1 if not.
    CanRestart {
        /// Member id.
        id: u64,
    },
    /// Founds the cluster; ask the first configured master. A retry must give the same uuid.
    Provision {
        /// Uuid that you have stored beforehand.
        uuid: uuid::Uuid,
    },
    /// Builds a snapshot on every given master.
    Snapshot {
        /// Delete the log behind it.
        #[arg(long)]
        purge: bool,
    },
}

/// How a command ends that asked every one of `asked` masters, of which some have failed: each error names its master.
fn report_failures(mut failures: Vec<Error>, asked: usize) -> Result<ExitCode> {
    if failures.len() == asked
        && let Some(last) = failures.pop()
    {
        failures.iter().for_each(|error| stdio::complain(format_args!("error: {error}")));
        return Err(last);
    }
    failures.iter().for_each(|error| stdio::complain(format_args!("error: {error}")));
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(PARTIAL) })
}

pub(super) async fn run(common: &Common, command: Command) -> Result<ExitCode> {
    let channel = MasterChannel::new(&common.client()?);
    match command {
        Command::Status => return status::run(common, &channel).await,
        Command::Digest => return digest::run(common, &channel).await,
        Command::TransferLeader { id } => {
            let leader = admin::transfer_leader(&channel, id.unwrap_or(0)).await?;
            stdio::write_line(format_args!("member {leader} leads"))?;
        }
        Command::Add(add) => members::add(&channel, add).await?,
        Command::Remove(remove) => members::remove(&channel, remove).await?,
        Command::Promote { id } => {
            admin::promote_member(&channel, id).await?;
            stdio::write_line(format_args!(
                "member {id} becomes a voter as soon as it has caught up and the voters are an odd number"
            ))?;
        }
        Command::CanRestart { id } => {
            if let Some(why) = admin::must_not_restart(&channel, id).await? {
                stdio::write_line(format_args!("no: {why}"))?;
                return Ok(ExitCode::FAILURE);
            }
            stdio::write_line("yes")?;
        }
        Command::Provision { uuid } => {
            let masters = common.masters()?;
            let first = masters.first().ok_or_else(|| Error::invalid("no master is given"))?;
            let founded = admin::provision(&channel, first, uuid.into_bytes(), PROVISION).await?;
            stdio::write_line(format_args!("cluster {uuid} has voters {:?}", founded.voters))?;
        }
        Command::Snapshot { purge } => {
            let (masters, mut failures) = (common.masters()?, Vec::new());
            for address in &masters {
                match admin::snapshot(&channel, address, purge, SNAPSHOT).await {
                    Err(error) => failures.push(error),
                    Ok(built) => {
                        let (index, purged) = (built.index, built.purged);
                        stdio::write_line(format_args!("{address}: snapshot at {index}, log purged up to {purged}"))?;
                    }
                }
            }
            return report_failures(failures, masters.len());
        }
    }
    Ok(ExitCode::SUCCESS)
}
