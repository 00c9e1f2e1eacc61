//! Who founds the cluster where nobody says so: the first master of the list, if its own disk is empty and every other
//! master answers that its disk is empty too. Otherwise it waits: for those that do not answer, or to be let in by those
//! that are members. So a first master that lost its disk never makes a second cluster.

use std::time::Duration;

use jindofs_proto::v1::MemberStatus;
use uuid::Uuid;

use crate::client::admin;
use crate::config::{ClientConfig, MasterConfig};
use crate::error::Error;
use crate::rpc::channel::MasterChannel;

/// Pause between two attempts.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How often in succession the own master must be found empty: members of a cluster that misses its disk announce themselves
/// to it every second. Looks are counted and no time, so that a pause of this process counts for nothing.
const EMPTY_POLLS: u32 = 6;
/// Longest wait for an answer about the state of the own master.
const BUDGET: Duration = Duration::from_secs(2);
/// Longest wait until all masters vote.
const FOUNDING: Duration = Duration::from_secs(90);
/// How the phase of a master begins whose disk is empty, see `Status`.
const EMPTY: &str = "empty";
/// As that one, of a master that has not looked yet.
const STARTING: &str = "starting";

/// Founds the cluster if this master is the one to do so; returns once that is settled. *Cancel-safe*: what was begun is
/// finished by the master itself when it starts again.
pub async fn found(config: &MasterConfig) {
    let own = format!("{}:{}", config.host, config.raft_port);
    if config.peers.first() != Some(&own) {
        return;
    }
    let address = format!("{}:{}", config.host, config.grpc_port);
    let only = ClientConfig { masters: vec![address.clone()], rpc_timeout: BUDGET, hard: false };
    let channel = MasterChannel::new(&only);
    let uuid = Uuid::new_v4();
    let (mut told, mut empty_looks) = (String::new(), 0);
    loop {
        match attempt(&channel, &address, uuid, &mut empty_looks).await {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => {
                let why = error.to_string();
                if why != told {
                    tracing::info!(why, "the cluster is not founded yet");
                    told = why;
                }
            }
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// What follows from the state of the own master.
#[derive(Debug, PartialEq, Eq)]
enum NextStep {
    /// Nothing is certain yet.
    Wait,
    Found,
    /// It belongs to a cluster.
    Done,
}

fn next_step(own: &MemberStatus) -> NextStep {
    if own.state.starts_with(EMPTY) {
        return NextStep::Found;
    }
    // One that asks a cluster to admit it is empty again if that cluster does not.
    let is_settled = own.id != 0 && !own.state.starts_with(STARTING);
    if is_settled { NextStep::Done } else { NextStep::Wait }
}

/// True once this master needs nobody to found anything.
async fn attempt(channel: &MasterChannel, address: &str, uuid: Uuid, empty_looks: &mut u32) -> Result<bool, Error> {
    let status = admin::status(channel, address, BUDGET).await;
    let step = next_step(&status?.self_.unwrap_or_default());
    *empty_looks = if step == NextStep::Found { *empty_looks + 1 } else { 0 };
    match step {
        NextStep::Wait => return Ok(false),
        NextStep::Done => return Ok(true),
        NextStep::Found if *empty_looks < EMPTY_POLLS => return Ok(false),
        NextStep::Found => {}
    }
    admin::provision(channel, address, uuid.into_bytes(), FOUNDING).await?;
    tracing::info!(cluster = %uuid.simple(), "the cluster is founded");
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_master_that_no_cluster_has_admitted_may_yet_have_to_found_one() {
        for (id, state, expected) in [
            (0, "starting", NextStep::Wait),
            (0, "empty: waiting to be provisioned, or for a peer that is a member", NextStep::Found),
            (0, "joining: no peer answers", NextStep::Wait),
            (4, "joining: catching up", NextStep::Done),
            (1, "founding", NextStep::Done),
            (4, "starting", NextStep::Wait),
            (4, "serving", NextStep::Done),
        ] {
            let own = MemberStatus { id, state: state.to_owned(), ..MemberStatus::default() };
            assert_eq!(next_step(&own), expected, "{id} {state}");
        }
    }
}
