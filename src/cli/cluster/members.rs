//! `jindoctl cluster add|remove`: ask the leader, then wait until the group is as it was asked to be.

use std::time::{Duration, Instant};

use clap::Args;
use jindofs_proto::v1::{MemberStatus, Role, StatusResponse};

use crate::cli::interrupted;
use crate::client::admin;
use crate::error::{Error, ErrorKind, Result};
use crate::rpc::channel::MasterChannel;
use crate::runtime::stdio;
use crate::types::address::host_port;

/// Pause between two looks.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How long one master may take to say what it sees.
const BUDGET: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
pub(in crate::cli) struct Add {
    /// Raft host:port of each new master.
    #[arg(required = true)]
    addresses: Vec<String>,
    /// They stay learners until they are promoted.
    #[arg(long)]
    learner: bool,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Remove {
    /// Member ids, or Raft host:port.
    #[arg(required = true)]
    members: Vec<String>,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, Args)]
struct Wait {
    /// Return as soon as the wish is recorded.
    #[arg(long)]
    no_wait: bool,
    /// Seconds to wait.
    #[arg(long, default_value_t = 120)]
    timeout: u64,
}

pub(super) async fn add(channel: &MasterChannel, add: Add) -> Result<()> {
    let addresses = add.addresses.iter().map(|address| host_port(address).map_err(Error::invalid));
    let addresses = addresses.collect::<Result<Vec<String>>>()?;
    let expected = admin::add_members(channel, &addresses, add.learner).await?;
    stdio::write_line(format_args!("expected: {}", expected.join(", ")))?;
    add.wait
        .until(channel, "the new masters have not joined: do they run, with a member in their list?", |status| {
            // The newest member there: an older one may still be on record until it is retired.
            let there = |address: &String| status.members.iter().rev().find(|one| one.raft_address == *address);
            let all: Option<Vec<&MemberStatus>> = addresses.iter().map(there).collect();
            let all = all?;
            let learners = all.iter().filter(|member| member.role() == Role::Learner).count();
            let voters = status.members.iter().filter(|member| member.role() != Role::Learner).count();
            // One too many for an odd number stays a learner.
            let settled = add.learner || learners == 0 || (learners == 1 && !voters.is_multiple_of(2));
            settled.then(|| all.iter().map(|member| describe(member)).collect())
        })
        .await
}

fn describe(member: &MemberStatus) -> String {
    match member.role() {
        Role::Learner => format!("member {} at {} is a learner", member.id, member.raft_address),
        _ => format!("member {} at {} votes", member.id, member.raft_address),
    }
}

pub(super) async fn remove(channel: &MasterChannel, remove: Remove) -> Result<()> {
    let ids: Vec<u64> = remove.members.iter().filter_map(|text| text.parse().ok()).collect();
    let named = remove.members.iter().filter(|text| text.parse::<u64>().is_err());
    let addresses = named.map(|address| host_port(address).map_err(Error::invalid)).collect::<Result<Vec<String>>>()?;
    let expected = admin::remove_members(channel, &ids, &addresses).await?;
    stdio::write_line(format_args!("expected: {}", expected.join(", ")))?;
    remove
        .wait
        .until(channel, "the members have not left yet: the leader goes on", |status| {
            let named = |member: &MemberStatus| ids.contains(&member.id) || addresses.contains(&member.raft_address);
            let left: Vec<String> = status.members.iter().map(describe).collect();
            (!status.members.iter().any(named)).then_some(left)
        })
        .await
}

impl Wait {
    /// Prints what `done` finds in the leader's view, as soon as it finds it.
    async fn until(
        &self,
        channel: &MasterChannel,
        late: &str,
        done: impl Fn(&StatusResponse) -> Option<Vec<String>>,
    ) -> Result<()> {
        if self.no_wait {
            return Ok(());
        }
        tokio::select! {
            settled = self.wait(channel, late, done) => settled,
            interrupted = interrupted() => {
                interrupted?;
                let way = "the leader goes on, `jindoctl cluster status` shows how far it is";
                Err(Error::new(ErrorKind::Timeout, format!("interrupted while waiting: {way}")))
            }
        }
    }

    async fn wait(
        &self,
        channel: &MasterChannel,
        late: &str,
        done: impl Fn(&StatusResponse) -> Option<Vec<String>>,
    ) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(self.timeout);
        loop {
            let answers = admin::status_of_all(channel, &channel.masters(), BUDGET).await;
            let views = answers.into_iter().filter_map(|(_, answer)| answer.ok());
            let leader = views.filter(|status| status.quorum).max_by_key(|status| status.term);
            if let Some(lines) = leader.as_ref().and_then(&done) {
                lines.iter().try_for_each(stdio::write_line)?;
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Error::new(ErrorKind::Timeout, format!("after {} s {late}", self.timeout)));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}
