//! openraft's own contract tests, on our log and our state machine.

use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

use super::disk_space::DiskSpace;
use super::identity::Owner;
use super::peers::Peers;
use super::state_machine::StateMachine;
use super::types::TypeConfig;
use super::wal::{self, LogStamp, LogStore};
use crate::master::store::StoreOptions;

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let temp = tempfile::tempdir().expect("tempdir");
        let owner = Owner { cluster: [1; 16], member_id: 1, incarnation: [2; 16] };
        let (dir, space) = (temp.path().join("wal"), DiskSpace::unlimited(temp.path()));
        let recovered = wal::recover(&dir).expect("log");
        let log = LogStore::start(&dir, recovered, LogStamp { owner, boot: 1 }, space.clone()).expect("log");
        let (state, snapshots) = (temp.path().join("state"), temp.path().join("snapshots"));
        // The suite applies entries that it never appends.
        let flushed = tokio::sync::watch::channel(u64::MAX).1;
        let (peers, options) = (Arc::new(Peers::default()), StoreOptions::default());
        let machine = StateMachine::open(&state, &snapshots, peers, owner, flushed, space, options).expect("state");
        Ok((temp, log, machine))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_and_the_state_machine_pass_openrafts_suite() {
    Suite::test_all(Builder).await.expect("the suite passes");
}
