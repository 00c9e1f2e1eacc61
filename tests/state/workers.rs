//! The registry of workers and who of them has to leave.

use jindofs::master::state::{self, query};
use jindofs::master::store::{Store, StoreOptions};
use jindofs_proto::store::v1::command::Command as Body;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::store::v1::{Command, DrainWorkers, RegisterWorker, RemoveWorkers, WorkerRow};
use jindofs_proto::v1::ErrorKind;

struct Registry {
    store: Store,
    index: u64,
    _dir: tempfile::TempDir,
}

impl Registry {
    fn new() -> Registry {
        let dir = tempfile::tempdir().expect("tempdir");
        let options = StoreOptions { block_cache_bytes: 1 << 20, write_buffer_bytes: 1 << 20 };
        Registry { store: Store::open(dir.path(), &options).expect("opened"), index: 0, _dir: dir }
    }

    fn apply(&mut self, body: Body) -> Result<(), ErrorKind> {
        self.index += 1;
        let mut txn = self.store.begin();
        let command = Command { command: Some(body), ..Command::default() };
        let outcome = state::apply(&mut txn, self.index, &command).expect("applied");
        self.store.commit(txn).expect("committed");
        match outcome.outcome {
            Some(Answer::Refused(refusal)) => Err(refusal.kind()),
            _ => Ok(()),
        }
    }

    fn register(&mut self, id: &str, epoch: u64) {
        let worker = Some(WorkerRow { id: id.into(), epoch, address: format!("{id}:{epoch}"), ..WorkerRow::default() });
        self.apply(Body::RegisterWorker(RegisterWorker { worker })).expect("registered");
    }

    fn drain(&mut self, ids: &[&str], cancel: bool) -> Result<(), ErrorKind> {
        let worker_ids = ids.iter().map(|id| (*id).to_owned()).collect();
        self.apply(Body::DrainWorkers(DrainWorkers { worker_ids, cancel, reason: "a test".into() }))
    }

    fn draining(&self) -> Vec<(String, String)> {
        let rows = query::workers(&self.store.view()).expect("read").into_iter();
        rows.filter(|row| row.draining).map(|row| (row.address, row.drain_reason)).collect()
    }

    fn version(&self) -> u64 {
        query::drains_version(&self.store.view()).expect("read")
    }
}

#[test]
fn a_drain_outlives_a_restart_of_its_worker_and_each_change_has_a_version_of_its_own() {
    let mut registry = Registry::new();
    registry.register("a", 1);
    registry.register("b", 1);
    assert_eq!(registry.version(), 0);
    registry.drain(&["a"], false).expect("recorded");
    registry.drain(&["a"], false).expect("again");
    assert_eq!((registry.draining(), registry.version()), (vec![("a:1".into(), "a test".into())], 1));
    registry.register("b", 2);
    assert_eq!(registry.version(), 1, "nobody asks it for anything");
    registry.register("a", 2);
    assert_eq!((registry.draining(), registry.version()), (vec![("a:2".into(), "a test".into())], 2));
    registry.drain(&["a", "b"], true).expect("called off");
    assert_eq!((registry.draining(), registry.version()), (vec![], 3));
}

#[test]
fn nobody_is_drained_when_one_of_those_named_is_not_on_record_and_who_is_removed_comes_back_as_new() {
    let mut registry = Registry::new();
    registry.register("a", 1);
    assert_eq!(registry.drain(&["a", "nobody"], false), Err(ErrorKind::NotFound));
    assert_eq!(registry.draining(), []);
    registry.drain(&["a"], false).expect("recorded");
    let remove = |ids: [&str; 2]| Body::RemoveWorkers(RemoveWorkers { worker_ids: ids.map(str::to_owned).to_vec() });
    registry.apply(remove(["a", "nobody"])).expect("removed");
    assert_eq!((query::workers(&registry.store.view()).expect("read").len(), registry.version()), (0, 2));
    registry.register("a", 2);
    assert_eq!(registry.draining(), []);
}
