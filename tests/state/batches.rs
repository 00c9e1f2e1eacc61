//! Batches of creations and of stored content, and the inode numbers that a client sets aside for them.

use jindofs::master::state::plan::Due;
use jindofs_proto::store::v1::command::Command as Body;
use jindofs_proto::store::v1::op_outcome::Outcome as Of;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::store::v1::{BatchOutcome, CloseSession, OpOutcome, OpenSession, ReserveInodes};
use jindofs_proto::v1::batch_op::Op;
use jindofs_proto::v1::{
    BatchOp, BatchRequest, BeginWriteRequest, CreateRequest, EndWriteRequest, ErrorKind, MutationResponse,
    StoredContent, UnlinkRequest,
};

use super::intents::{CLIENT, Tree, at, file};

fn create(path: &str, inode: u64) -> Op {
    let begin_write = path.starts_with("/m/");
    Op::Create(CreateRequest { target: at(path), mode: 0o644, inode, begin_write, ..CreateRequest::default() })
}

fn end(intent: u64, token: &str) -> Op {
    let stored = StoredContent {
        version_token: token.as_bytes().to_vec().into(),
        size: 4,
        mtime_ns: 5,
        ctime_ns: 0,
        ..StoredContent::default()
    };
    Op::EndWrite(EndWriteRequest { intent, stored: Some(stored), ..EndWriteRequest::default() })
}

fn batch(ops: Vec<Op>) -> Body {
    let ops = ops.into_iter().map(|op| BatchOp { op: Some(op) }).collect();
    Body::Batch(BatchRequest { op: None, ops })
}

fn whole(answer: Answer) -> BatchOutcome {
    match answer {
        Answer::Batch(batch) => batch,
        other => panic!("no batch: {other:?}"),
    }
}

fn results(answer: Answer) -> Vec<Result<MutationResponse, ErrorKind>> {
    let outcome = |one: OpOutcome| match one.outcome.expect("an outcome") {
        Of::Done(done) => Ok(done),
        Of::Refused(refusal) => Err(refusal.kind()),
    };
    whole(answer).outcomes.into_iter().map(outcome).collect()
}

fn reserve(tree: &mut Tree, count: u32) -> Result<u64, ErrorKind> {
    match tree.internal(Body::ReserveInodes(ReserveInodes { client_id: CLIENT.to_vec().into(), count })) {
        Answer::Reserved(range) => {
            assert_eq!(range.count, count);
            Ok(range.first)
        }
        Answer::Refused(refusal) => Err(refusal.kind()),
        other => panic!("not reserved: {other:?}"),
    }
}

#[test]
fn only_a_reserved_number_can_be_given_and_only_once_and_nobody_else_gets_it() {
    let mut tree = Tree::new("local:///d");
    let first = reserve(&mut tree, 100).expect("reserved");
    let made = results(tree.change(batch(vec![create("/a", first), create("/b", 0), create("/c", first + 99)])));
    let made: Vec<u64> = made.into_iter().map(|done| done.expect("made").attr.expect("attributes").inode).collect();
    assert_eq!(made, [first, first + 100, first + 99], "what asks for none gets one behind the reserved");
    let refused = results(tree.change(batch(vec![create("/d", first), create("/e", first + 100), create("/f", 1)])));
    let kinds: Vec<ErrorKind> = refused.into_iter().map(|done| done.expect_err("refused")).collect();
    assert_eq!(kinds, [ErrorKind::InvalidArgument, ErrorKind::SessionExpired, ErrorKind::SessionExpired]);
    assert_eq!(tree.lookup("/d"), Err(jindofs::error::ErrorKind::NotFound));
    for count in [0, 65_537] {
        assert_eq!(reserve(&mut tree, count), Err(ErrorKind::InvalidArgument));
    }
    let second = reserve(&mut tree, 65_536).expect("reserved");
    assert!(second > first + 100, "never the same again");
}

fn unlink(path: &str) -> Body {
    Body::Unlink(UnlinkRequest { target: at(path), ..UnlinkRequest::default() })
}

/// Creates a file with this number, or says why not; nothing is left of it.
fn create_and_unlink(tree: &mut Tree, number: u64) -> Result<(), ErrorKind> {
    let made = results(tree.change(batch(vec![create("/passing", number)]))).remove(0);
    made.map(|done| {
        assert_eq!(done.attr.expect("attributes").inode, number);
        assert!(matches!(tree.change(unlink("/passing")), Answer::Done(_)));
    })
}

#[test]
fn a_reserved_number_is_given_once_also_after_its_file_is_gone() {
    let mut tree = Tree::new("local:///d");
    let first = reserve(&mut tree, 100).expect("reserved");
    // Threads of a client come out of order.
    for number in [first, first + 7, first + 3, first + 2, first + 99] {
        create_and_unlink(&mut tree, number).expect("a number that was never used");
        assert_eq!(create_and_unlink(&mut tree, number), Err(ErrorKind::InvalidArgument), "{number} was used");
    }
    // A creation that is refused has used nothing, and one that is repeated is answered as before.
    tree.change(batch(vec![create("/there", 0)]));
    let Op::Create(exclusive) = create("/there", first + 1) else { panic!("a creation") };
    let exclusive = Op::Create(CreateRequest { exclusive: true, ..exclusive });
    assert_eq!(results(tree.change(batch(vec![exclusive]))), [Err(ErrorKind::AlreadyExists)]);
    let body = batch(vec![create("/passing", first + 1)]);
    let made = tree.change(body.clone());
    assert_eq!(tree.again(body), made);
    // The numbers of an earlier range stay usable, and used, when more are reserved.
    let second = reserve(&mut tree, 10).expect("reserved");
    for (number, expected) in [(first + 4, Ok(())), (first + 3, Err(ErrorKind::InvalidArgument)), (second + 9, Ok(()))]
    {
        assert!(matches!(tree.change(unlink("/passing")), Answer::Done(_) | Answer::Refused(_)));
        assert_eq!(create_and_unlink(&mut tree, number), expected, "{number}");
    }
}

#[test]
fn numbers_reserved_for_a_session_end_with_it() {
    let mut tree = Tree::new("local:///d");
    let first = reserve(&mut tree, 10).expect("reserved");
    tree.internal(Body::CloseSession(CloseSession { client_id: CLIENT.to_vec().into() }));
    assert_eq!(reserve(&mut tree, 10), Err(ErrorKind::SessionExpired));
    let other = [8; 16];
    tree.internal(Body::OpenSession(OpenSession { client_id: other.to_vec().into(), ..OpenSession::default() }));
    let made = results(tree.change_of(other, batch(vec![create("/a", first)])));
    assert_eq!(made, [Err(ErrorKind::SessionExpired)]);
}

#[test]
fn a_batch_tells_of_each_directory_that_grew_with_a_version_that_counts_what_came() {
    let mut tree = Tree::new("local:///d");
    let before = tree.lookup("/m").expect("the mount").version;
    let answer = whole(tree.change(batch(vec![create("/m/a", 0), create("/m/b", 0), create("/c", 0)])));
    assert_eq!(answer.directories.len(), 2);
    let mount = tree.lookup("/m").expect("the mount");
    assert_eq!(mount.version, before + 2);
    assert!(answer.directories.contains(&mount) && answer.directories.contains(&tree.lookup("/").expect("the root")));
}

#[test]
fn files_that_are_made_and_stored_by_batches_leave_no_intent_and_a_client_that_dies_between_leaves_a_look() {
    let mut tree = Tree::new("local:///d");
    let made = results(tree.change(batch(vec![create("/m/a", 0), create("/m/b", 0), create("/m/a", 0)])));
    let intents: Vec<u64> = made.iter().map(|done| done.as_ref().expect("made").intent).collect();
    assert!(intents[0] != 0 && intents[1] > intents[0] && intents[2] == 0, "{intents:?}: the last was there");
    let ends = vec![end(intents[0], "one"), end(intents[0], "one"), end(77, "none")];
    let ended = results(tree.change(batch(ends)));
    assert_eq!(ended[0].as_ref().expect("stored").attr.as_ref().expect("attributes").size, 4);
    assert_eq!((ended[1].clone(), ended[2].clone()), (Err(ErrorKind::Stale), Err(ErrorKind::Stale)));
    assert_eq!((tree.lookup("/m/a").expect("stored").version_token, tree.intents()), ("one".into(), 1));
    assert_eq!(tree.due(intents[1]), Due::Client);
    tree.internal(Body::CloseSession(CloseSession { client_id: CLIENT.to_vec().into() }));
    assert!(matches!(tree.due(intents[1]), Due::Leader(_)), "it may be stored, and nobody has said so");
    tree.finish(intents[1], Some(file("b", "two")));
    assert_eq!((tree.lookup("/m/b").expect("found").version_token, tree.intents()), ("two".into(), 0));
}

#[test]
fn the_end_of_a_write_that_a_batch_began_leaves_the_answer_of_the_batch_as_it_was() {
    let mut tree = Tree::new("local:///d");
    let body = batch(vec![create("/m/a", 0)]);
    let first = tree.change(body.clone());
    let intent = results(first.clone())[0].as_ref().expect("made").intent;
    tree.finish(intent, None);
    assert_eq!(tree.again(body), first);
}

#[test]
fn others_wait_only_for_a_write_whose_client_says_so_and_only_of_a_file_that_was_never_stored() {
    let mut tree = Tree::new("local:///d");
    let made = |path: &str, end_behind: bool| {
        let Op::Create(request) = create(path, 0) else { panic!("a creation") };
        Op::Create(CreateRequest { end_behind, ..request })
    };
    let said = |done: &Result<MutationResponse, ErrorKind>| {
        let done = done.as_ref().expect("begun");
        (done.intent, done.end_behind)
    };
    let begun = results(tree.change(batch(vec![made("/m/a", true), made("/m/b", false), made("/c", true)])));
    let (a, b) = (said(&begun[0]).0, said(&begun[1]).0);
    assert_eq!((said(&begun[0]), said(&begun[1]), said(&begun[2])), ((a, true), (b, false), (0, false)));
    assert_eq!((tree.ends_behind("/m/a"), tree.ends_behind("/m/b"), tree.ends_behind("/c")), (Some(a), None, None));
    let far = i64::MAX - 1;
    let stored =
        StoredContent { version_token: "one".into(), size: 4, mtime_ns: 5, ctime_ns: far, ..StoredContent::default() };
    let ended = EndWriteRequest { intent: a, stored: Some(stored), ..EndWriteRequest::default() };
    assert_eq!(
        results(tree.change(batch(vec![Op::EndWrite(ended), end(b, "two")]))).iter().filter(|end| end.is_ok()).count(),
        2
    );
    assert_eq!((tree.ends_behind("/m/a"), tree.lookup("/m/a").expect("stored").ctime_ns), (None, far));
    // What was stored before has a version that others can tell from the next.
    let again = |path: &str, token: &'static str| {
        let inode = tree.lookup(path).expect("it is there").inode;
        Op::BeginWrite(BeginWriteRequest { op: None, inode, base_token: token.into(), end_behind: true })
    };
    let again = batch(vec![again("/m/b", "two")]);
    assert!(!said(&results(tree.change(again))[0]).1);
    assert_eq!(tree.ends_behind("/m/b"), None);
}
