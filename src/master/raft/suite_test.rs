//! openraft's own contract tests, on our log and our state machine.

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

use super::peers::Peers;
use super::state_machine::StateMachine;
use super::types::TypeConfig;
use super::wal::LogStore;

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let temp = tempfile::tempdir().expect("tempdir");
        let log = LogStore::open(&temp.path().join("wal")).expect("log");
        let (state, snapshots) = (temp.path().join("state"), temp.path().join("snapshots"));
        let machine = StateMachine::open(&state, &snapshots, std::sync::Arc::new(Peers::default())).expect("state");
        Ok((temp, log, machine))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_and_the_state_machine_pass_openrafts_suite() {
    Suite::test_all(Builder).await.expect("the suite passes");
}
