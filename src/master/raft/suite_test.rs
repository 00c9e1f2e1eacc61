//! openraft's own contract tests, on our log and our state machine, and what it does not ask of them.

use std::sync::Arc;
use std::time::Duration;

use openraft::StorageError;
use openraft::entry::RaftEntry;
use openraft::impls::leader_id_adv::LeaderId;
use openraft::storage::RaftStateMachine;
use openraft::testing::log::{StoreBuilder, Suite};

use super::disk_space::DiskSpace;
use super::identity::Owner;
use super::peers::Peers;
use super::state_machine::StateMachine;
use super::types::{Entry, LogId, Payload, TypeConfig};
use super::wal::{self, LogStamp, LogStore};
use crate::master::store::StoreOptions;
use crate::runtime::planted::PlantedFault;
use crate::runtime::simulated;

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

/// Whether an entry that a quorum without this member has committed is applied before the log here holds it. It is applied
/// afterwards.
async fn is_applied_early(fault: Option<PlantedFault>) -> bool {
    simulated::plant(fault);
    let temp = tempfile::tempdir().expect("tempdir");
    let owner = Owner { cluster: [1; 16], member_id: 1, incarnation: [2; 16] };
    let (state, snapshots) = (temp.path().join("state"), temp.path().join("snapshots"));
    let (flush, flushed) = tokio::sync::watch::channel(0);
    let (peers, space) = (Arc::new(Peers::default()), DiskSpace::unlimited(temp.path()));
    let machine = StateMachine::open(&state, &snapshots, peers, owner, flushed, space, StoreOptions::default());
    let mut machine = machine.expect("state");
    let applied = machine.applied();
    let id = LogId { leader_id: LeaderId { term: 1, node_id: 1 }, index: 1 };
    let mut committed = futures::stream::iter([Ok((Entry::new(id, Payload::Blank), None))]);
    let applying = machine.apply(&mut committed);
    tokio::pin!(applying);
    let early = tokio::time::timeout(Duration::from_millis(100), &mut applying).await.is_ok();
    assert_eq!(early, *applied.borrow() == 1);
    if !early {
        flush.send_replace(1);
        applying.await.expect("applied");
    }
    assert_eq!(*applied.borrow(), 1);
    simulated::plant(None);
    early
}

#[tokio::test]
async fn an_entry_is_applied_only_once_the_log_on_this_disk_holds_it() {
    assert!(!is_applied_early(None).await);
    assert!(is_applied_early(Some(PlantedFault::ApplyBeforeFlush)).await, "the test sees the fault");
}
