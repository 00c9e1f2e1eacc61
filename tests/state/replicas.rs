//! Random commands on two replicas that group them differently, one of which is restarted: both must hold the same bytes,
//! and the tree must be what the model says.

use std::collections::BTreeMap;

use jindofs::master::state::{self, Table, Txn, View, keys, query};
use jindofs::master::store::{Store, StoreOptions};
use jindofs_proto::store::v1::command::Command as Body;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::store::v1::{Command, OpenSession, Outcome, Purge};
use jindofs_proto::v1::{ErrorKind, FileType, OpId, Target, target};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRng, TestRunner};

use super::model::{Change, Model, Node, change};
use crate::support::{rounds, seed};

const CLIENT: [u8; 16] = [7; 16];

/// One step of a history.
#[derive(Debug, Clone)]
enum Step {
    Change(Change),
    /// The last change is sent once more.
    Retry,
    Purge(u32),
    /// The first replica commits here.
    Commit,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => change().prop_map(Step::Change),
        2 => Just(Step::Retry),
        1 => (1_u32..5).prop_map(Step::Purge),
        3 => Just(Step::Commit),
    ]
}

/// A log as Raft would hand it out, what each entry must be answered with where the model knows, and where the first
/// replica commits.
#[derive(Default)]
struct Log {
    commands: Vec<Command>,
    expected: Vec<Option<Result<(), ErrorKind>>>,
    commits: Vec<usize>,
}

impl Log {
    fn push(&mut self, op: Option<u64>, body: Body, expected: Option<Result<(), ErrorKind>>) {
        let op = op.map(|seq| OpId { client_id: CLIENT.to_vec().into(), seq, acked_below: seq });
        let time_ns = i64::try_from(self.commands.len()).unwrap_or(0);
        self.commands.push(Command { time_ns, op, command: Some(body) });
        self.expected.push(expected);
    }
}

fn write_log(steps: &[Step]) -> (Log, Model) {
    let (mut log, mut model, mut seq) = (Log::default(), Model::default(), 0);
    let open = OpenSession { client_id: CLIENT.to_vec().into(), description: "a test".into() };
    log.push(None, Body::OpenSession(open), Some(Ok(())));
    let mut last = None;
    for step in steps {
        match step {
            Step::Change(change) => {
                seq += 1;
                let verdict = model.apply(change);
                log.push(Some(seq), change.command(), Some(verdict));
                last = Some((change.command(), verdict));
            }
            Step::Retry => {
                if let Some((command, verdict)) = &last {
                    log.push(Some(seq), command.clone(), Some(*verdict));
                }
            }
            Step::Purge(limit) => log.push(None, Body::Purge(Purge { limit: *limit }), None),
            Step::Commit => log.commits.push(log.commands.len()),
        }
    }
    for _ in 0..steps.len() {
        log.push(None, Body::Purge(Purge { limit: 1000 }), None);
    }
    (log, model)
}

fn verdict(outcome: &Outcome) -> Result<(), ErrorKind> {
    match &outcome.outcome {
        Some(Answer::Refused(refusal)) => Err(refusal.kind()),
        _ => Ok(()),
    }
}

/// Applies the log, committing after the entries of which `commits` says so; a crash before the end is played by
/// dropping what was not committed and going on from the applied index.
fn replay(store: &Store, log: &Log, from: usize, commits: impl Fn(usize) -> bool) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let mut txn = store.begin();
    for (at, command) in log.commands.iter().enumerate().skip(from) {
        outcomes.push(state::apply(&mut txn, at as u64 + 1, command).expect("applied"));
        if commits(at + 1) {
            let full = std::mem::replace(&mut txn, store.begin());
            store.commit(full).expect("committed");
        }
    }
    store.commit(txn).expect("committed");
    outcomes
}

/// Every path in the store with what is there, by the read side.
fn tree(store: &Store) -> BTreeMap<String, Node> {
    let (mut found, mut waiting) = (BTreeMap::new(), vec![String::new()]);
    while let Some(directory) = waiting.pop() {
        let path = if directory.is_empty() { "/" } else { &directory };
        let at = Target { target: Some(target::Target::Path(path.as_bytes().to_vec().into())) };
        let step = query::list_or_load(&store.view(), &at, &[], 1000).expect("listed");
        let query::ListStep::Page { entries, .. } = step else { panic!("{path} is not listed") };
        for entry in entries {
            let attr = entry.attr.expect("attributes");
            let path = format!("{directory}/{}", String::from_utf8_lossy(&entry.name));
            if attr.r#type() == FileType::Directory {
                waiting.push(path.clone());
            }
            found.insert(path, Node { kind: attr.r#type(), mode: attr.mode });
        }
    }
    found
}

fn rows(store: &Store, table: Table) -> usize {
    store.view().scan(table, &[], &[], 100_000).expect("scanned").len()
}

fn check(steps: &[Step]) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().expect("tempdir");
    let options = StoreOptions { block_cache_bytes: 1 << 20, write_buffer_bytes: 1 << 20 };
    let open = |name: &str| Store::open(&dir.path().join(name), &options).expect("opened");
    let (log, model) = write_log(steps);

    let one = open("one");
    let outcomes = replay(&one, &log, 0, |at| log.commits.contains(&at));
    for (at, (outcome, expected)) in outcomes.iter().zip(&log.expected).enumerate() {
        if let Some(expected) = expected {
            prop_assert_eq!(verdict(outcome), *expected, "entry {}: {:?}", at + 1, &log.commands[at]);
        }
    }
    prop_assert_eq!(tree(&one), model.nodes.clone());
    // The root's row exists once it was changed.
    let root = usize::from(one.view().get(Table::Inode, &keys::id(1)).expect("read").is_some());
    prop_assert_eq!(rows(&one, Table::Inode), model.nodes.len() + root, "inodes that nobody can reach are freed");
    prop_assert_eq!(rows(&one, Table::Dentry), model.nodes.len());
    prop_assert_eq!(rows(&one, Table::Gc), 0);

    // One entry at a time, and a restart in the middle.
    let half = log.commands.len() / 2;
    {
        let two = open("two");
        let first = Log { commands: log.commands[..half].to_vec(), ..Log::default() };
        replay(&two, &first, 0, |_| true);
        two.flush().expect("flushed");
        // Applied but not committed: gone with the process.
        let mut lost = two.begin();
        lost.put(Table::Meta, b"lost", b"x".to_vec());
    }
    let two = open("two");
    let repeated = replay(&two, &log, half, |_| true);
    prop_assert_eq!(&repeated[..], &outcomes[half..]);
    prop_assert_eq!(two.digest().expect("digest").tables, one.digest().expect("digest").tables);
    Ok(())
}

#[test]
fn replicas_agree_byte_for_byte_and_with_the_model_whatever_is_sent() {
    let seed = seed("replicas_agree_byte_for_byte");
    let cases = rounds(60);
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let algorithm = config.rng_algorithm;
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(algorithm, &bytes));
    let histories = prop::collection::vec(step(), 1..150);
    if let Err(error) = runner.run(&histories, |steps| check(&steps)) {
        panic!("{error}");
    }
}
