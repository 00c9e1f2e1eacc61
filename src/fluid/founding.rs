//! Who founds the cluster where nobody says so: the first master of the list, if its own disk is empty and every other
//! master answers that its disk is empty too. Otherwise it waits: for those that do not answer, or to be let in by those
//! that are members. So a first master that lost its disk never makes a second cluster.

use std::time::Duration;

use uuid::Uuid;

use crate::client::admin;
use crate::config::{ClientConfig, MasterConfig};
use crate::error::Error;
use crate::rpc::channel::MasterChannel;

/// Pause between two attempts.
const LOOK: Duration = Duration::from_secs(1);
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
    let mut told = String::new();
    loop {
        match attempt(&channel, &address, uuid).await {
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
        tokio::time::sleep(LOOK).await;
    }
}

/// True once this master needs nobody to found anything.
async fn attempt(channel: &MasterChannel, address: &str, uuid: Uuid) -> Result<bool, Error> {
    let status = admin::status(channel, address, BUDGET).await?;
    let state = status.self_.map(|own| own.state).unwrap_or_default();
    if state.starts_with(STARTING) {
        return Ok(false);
    }
    if !state.starts_with(EMPTY) {
        return Ok(true);
    }
    admin::provision(channel, address, uuid.into_bytes(), FOUNDING).await?;
    tracing::info!(cluster = %uuid.simple(), "the cluster is founded");
    Ok(true)
}
