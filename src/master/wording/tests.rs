//! Texts of refusals, and that nothing which is stored depends on them.

use std::cell::Cell;

use jindofs_proto::store::v1::command::Command as Body;
use jindofs_proto::store::v1::{Command, FinishIntent, FinishJob, OpenSession, Outcome, RetireMember, SubmitJob};
use jindofs_proto::v1::batch_op::Op;
use jindofs_proto::v1::batch_result::Result as Told;
use jindofs_proto::v1::{
    AddMountRequest, BatchOp, BatchRequest, CreateRequest, EndWriteRequest, MkdirRequest, Mount, OpId, Target,
    UnlinkRequest, target,
};
use prost::Message;

use super::*;
use crate::master::state::refusal::said;
use crate::master::state::{self, Table, View, query};
use crate::master::store::{Store, StoreOptions};
use crate::types::PathProblem;

/// A refusal of every kind with these arguments.
fn all(names: &[Bytes], numbers: &[u64]) -> Vec<Refusal> {
    let with =
        |number: u32| stored::Refusal { kind: 0, reason: number, names: names.to_vec(), numbers: numbers.to_vec() };
    Refusal::TABLE.iter().map(|(number, _)| Refusal::from_stored(&with(*number)).expect("a known reason")).collect()
}

#[test]
fn every_reason_has_a_text_that_names_its_arguments() {
    for refusal in all(&["name-1".into(), "name-2".into()], &[7001, 7002, 7003]) {
        let (text, stored) = (words(&refusal), refusal.to_stored());
        assert!(!text.is_empty(), "{refusal:?}");
        let names = stored.names.iter().map(|name| String::from_utf8_lossy(name).into_owned());
        for argument in names.chain(stored.numbers.iter().map(u64::to_string)) {
            assert!(text.contains(&argument), "{refusal:?} is told without {argument}: {text}");
        }
    }
}

#[test]
fn arguments_that_are_no_text_or_beyond_every_range_are_told_all_the_same() {
    for name in [vec![0xff, 0x00, b'\n', b'"', b'{', b'}'], Vec::new(), vec![b'x'; 4096]] {
        let name = Bytes::from(name);
        for refusal in all(&[name.clone(), name], &[u64::MAX; 3]) {
            let is_from_outside = matches!(refusal, Refusal::UnderStorageSaid { .. });
            assert!(is_from_outside || !words(&refusal).is_empty(), "{refusal:?}");
        }
    }
}

#[test]
fn a_path_is_refused_with_the_same_words_at_the_door_and_behind_it() {
    for problem in [
        PathProblem::PathTooLong(5000),
        PathProblem::NameTooLong(256),
        PathProblem::NotAbsolute(b"a\xff".to_vec()),
        PathProblem::BadName(b"..".to_vec()),
        PathProblem::NameOfRoot,
    ] {
        let behind = Error::from(Refusal::from(problem.clone()));
        assert_eq!(behind, Error::from(problem));
    }
}

thread_local! {
    static IS_REWORDED: Cell<bool> = const { Cell::new(false) };
}

/// Another text for a refusal, in a test that words all of them differently. It is longer than what a session's row holds
/// of an outcome.
pub(super) fn reworded(refusal: &Refusal) -> Option<String> {
    IS_REWORDED.get().then(|| format!("{} {refusal:?}", "reworded ".repeat(100)))
}

const CLIENT: [u8; 16] = [7; 16];
const SAID: &str = "the under-storage is out of rooms";

fn op(seq: u64) -> OpId {
    OpId { client_id: CLIENT.to_vec().into(), seq, acked_below: 1 }
}

fn at(path: &str) -> Option<Target> {
    Some(Target { target: Some(target::Target::Path(path.as_bytes().to_vec().into())) })
}

fn mkdir(path: &str) -> Body {
    Body::Mkdir(MkdirRequest { target: at(path), mode: 0o755, ..MkdirRequest::default() })
}

fn unlink(path: &str) -> Body {
    Body::Unlink(UnlinkRequest { target: at(path), ..UnlinkRequest::default() })
}

fn mount() -> Body {
    let mount = Mount { path: "/m".into(), ufs_uri: "local:///d".into(), ..Mount::default() };
    Body::AddMount(AddMountRequest { op: None, mount: Some(mount) })
}

fn batch() -> Body {
    let ops = [
        Op::Mkdir(MkdirRequest { target: at("/made"), mode: 0o755, ..MkdirRequest::default() }),
        Op::Create(CreateRequest { target: at("/dir"), ..CreateRequest::default() }),
        Op::Unlink(UnlinkRequest { target: at("/none"), ..UnlinkRequest::default() }),
    ];
    Body::Batch(BatchRequest { op: None, ops: ops.map(|op| BatchOp { op: Some(op) }).to_vec() })
}

fn refuse_intent(id: u64, refused: stored::Refusal) -> Body {
    Body::FinishIntent(FinishIntent { id, refused: Some(refused), ..FinishIntent::default() })
}

/// A log in which commands of every sort are refused: by themselves, in a batch, by an under-storage, and again.
fn log() -> Vec<(Option<u64>, Body)> {
    let open = OpenSession { client_id: CLIENT.to_vec().into(), description: "a test".into() };
    let end = EndWriteRequest { intent: 77, ..EndWriteRequest::default() };
    vec![
        (None, Body::OpenSession(open)),
        (Some(1), mkdir("/dir")),
        (Some(2), mkdir("/dir")),
        (Some(3), unlink("relative")),
        (Some(4), batch()),
        (Some(5), mount()),
        (Some(6), mkdir("/m/new")),
        (None, refuse_intent(1, said(ErrorKind::NoSpace, SAID))),
        (None, refuse_intent(1, said(ErrorKind::NoSpace, SAID))),
        (Some(7), Body::EndWrite(end)),
        (Some(8), Body::SubmitJob(SubmitJob { path: "relative".into() })),
        (Some(9), mount()),
        (Some(2), mkdir("/dir")),
        (None, Body::RetireMember(RetireMember { member_id: 9 })),
        (Some(100), mkdir("/far")),
    ]
}

/// A replica of which clients were told something.
struct Replica {
    store: Store,
    index: u64,
    outcomes: Vec<Outcome>,
    told: Vec<String>,
    dir: tempfile::TempDir,
}

impl Replica {
    fn new() -> Replica {
        let dir = tempfile::tempdir().expect("tempdir");
        let options = StoreOptions { block_cache_bytes: 1 << 20, write_buffer_bytes: 1 << 20 };
        let store = Store::open(&dir.path().join("state"), &options).expect("opened");
        Replica { store, index: 0, outcomes: Vec::new(), told: Vec::new(), dir }
    }

    fn apply(&mut self, seq: Option<u64>, body: Body) -> Outcome {
        self.index += 1;
        let mut txn = self.store.begin();
        let command = Command { op: seq.map(op), command: Some(body), time_ns: 1 };
        let outcome = state::apply(&mut txn, self.index, &command).expect("applied");
        self.store.commit(txn).expect("committed");
        match answer_of(outcome.clone()) {
            Err(error) => self.told.push(error.message),
            Ok(Answer::Batch(batch)) => {
                for result in batch_response(batch).results {
                    if let Some(Told::Error(detail)) = result.result {
                        self.told.push(detail.message);
                    }
                }
            }
            Ok(_) => {}
        }
        self.outcomes.push(outcome.clone());
        outcome
    }

    /// What the client is answered with if it asks again.
    fn stored(&self) -> Vec<Option<Outcome>> {
        (1..10).map(|seq| query::outcome(&self.store.view(), &op(seq)).expect("read")).collect()
    }

    /// Every row of a snapshot.
    fn snapshot(&self) -> Vec<(Table, Bytes, Bytes)> {
        let dir = self.dir.path().join("snapshot");
        self.store.checkpoint(&dir).expect("a snapshot");
        let snapshot = Store::open_read_only(&dir).expect("opened");
        let rows = |table| snapshot.view().scan(table, &[], &[], 10_000).expect("scanned");
        Table::ALL
            .into_iter()
            .flat_map(|table| rows(table).into_iter().map(move |(key, row)| (table, key, row)))
            .collect()
    }
}

fn replay(is_reworded: bool) -> Replica {
    IS_REWORDED.set(is_reworded);
    let mut replica = Replica::new();
    for (seq, body) in log() {
        replica.apply(seq, body);
    }
    IS_REWORDED.set(false);
    replica
}

#[test]
fn replicas_that_word_refusals_differently_hold_the_same_outcomes_rows_snapshots_and_digests() {
    let (one, other) = (replay(false), replay(true));
    assert_eq!(one.told.len(), 12, "{:?}", one.told);
    assert_eq!(one.told.len(), other.told.len());
    for (text, reworded) in one.told.iter().zip(&other.told) {
        assert!(text != reworded && reworded.starts_with("reworded"), "{text} / {reworded}");
    }
    let encoded = |replica: &Replica| replica.outcomes.iter().map(Outcome::encode_to_vec).collect::<Vec<_>>();
    assert_eq!(encoded(&one), encoded(&other));
    assert!(one.stored().iter().all(Option::is_some));
    assert_eq!(one.stored(), other.stored());
    assert_eq!(one.store.digest().expect("digest"), other.store.digest().expect("digest"));
    let (rows, others) = (one.snapshot(), other.snapshot());
    assert_eq!(rows, others);
    let holds = |text: &str| rows.iter().any(|(_, _, row)| row.windows(text.len()).any(|part| part == text.as_bytes()));
    assert!(holds(SAID), "what comes from outside is data");
    for text in one.told.iter().chain(&other.told).filter(|text| *text != SAID) {
        assert!(!holds(text), "a row holds {text:?}");
    }
}

#[test]
fn a_reason_of_a_newer_release_is_kept_as_it_is_and_told_with_its_number_and_arguments() {
    let newer =
        stored::Refusal { kind: ErrorKind::Busy.into(), reason: 4711, names: vec!["who".into()], numbers: vec![17] };
    let mut replica = Replica::new();
    for (seq, body) in log().into_iter().take(7) {
        replica.apply(seq, body);
    }
    let refused = Outcome { outcome: Some(Answer::Refused(newer.clone())) };
    assert_eq!(replica.apply(None, refuse_intent(1, newer.clone())), refused);
    // Each further operation reads the session's row and writes it again.
    replica.apply(Some(7), mkdir("/later"));
    assert_eq!(replica.apply(Some(6), mkdir("/m/new")), refused);
    assert_eq!(replica.stored()[5], Some(refused));

    let error = to_error(&newer);
    assert_eq!(error.kind, ErrorKind::Busy);
    for part in ["4711", "\"who\"", "17"] {
        assert!(error.message.contains(part), "{error}");
    }
    // A known reason with fewer arguments than it has here is as good as unknown, and so is a kind.
    let fewer = stored::Refusal { names: Vec::new(), ..Refusal::NameExists { name: "a".into() }.to_stored() };
    assert_eq!(to_error(&fewer).kind, ErrorKind::AlreadyExists);
    assert!(to_error(&fewer).message.contains("32"), "{}", to_error(&fewer));
    assert_eq!(to_error(&stored::Refusal { kind: 999, ..newer }).kind, ErrorKind::Internal);
    assert_eq!(to_error(&stored::Refusal::default()).kind, ErrorKind::Internal);
    // More arguments than are known here come from a newer release, which has added them at the end.
    let mut more = Refusal::NameExists { name: "a".into() }.to_stored();
    more.numbers.push(3);
    assert_eq!(to_error(&more).message, "\"a\" exists");
}

#[test]
fn answers_that_hold_nothing_are_errors_and_never_a_panic() {
    let batch =
        stored::BatchOutcome { outcomes: vec![stored::OpOutcome::default()], ..stored::BatchOutcome::default() };
    let result = batch_response(batch).results.remove(0).result;
    assert!(matches!(result, Some(Told::Error(detail)) if detail.kind() == ErrorKind::Internal));
    assert_eq!(answer_of(Outcome::default()).expect_err("nothing").kind, ErrorKind::Internal);
}

#[test]
fn what_a_job_says_of_its_end_is_bounded_in_bytes_and_cut_between_two_characters() {
    let mut replica = Replica::new();
    replica.apply(None, Body::SubmitJob(SubmitJob { path: "/".into() }));
    let message = format!("x{}", "é".repeat(4096));
    let finish = FinishJob { id: 1, state: JobState::Failed.into(), message, ..FinishJob::default() };
    match replica.apply(None, Body::FinishJob(finish)).outcome {
        Some(Answer::Job(job)) => assert_eq!((job.message.len(), job.message.ends_with('é')), (4095, true)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_job_that_was_cancelled_says_so_though_no_text_of_that_is_stored() {
    let job = |state: JobState, message: &str| {
        shown_job(JobInfo { state: state.into(), message: message.into(), ..JobInfo::default() }).message
    };
    assert_eq!(job(JobState::Cancelled, ""), "cancelled");
    assert_eq!((job(JobState::Done, ""), job(JobState::Failed, "why")), (String::new(), "why".to_owned()));
}
