//! Changes of under-storage in the state: what is held while one is made, and what each way to end it leaves.

use jindofs::master::state::changes::Changes;
use jindofs::master::state::plan::{self, Due, Work};
use jindofs::master::state::{self, query, refusal};
use jindofs::master::store::{Store, StoreOptions};
use jindofs_proto::store::v1::command::Command as Body;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::store::v1::{CloseSession, Command, FinishIntent, Leftover, LoadEntries, OpenSession, UfsEntry};
use jindofs_proto::v1::{
    AddMountRequest, Attr, BeginWriteRequest, CreateRequest, EndWriteRequest, ErrorKind, FileType, Lock, LockType,
    MkdirRequest, Mount, OpId, RenameRequest, SetLockRequest, StoredContent, Target, UnlinkRequest, target,
};

pub(super) const CLIENT: [u8; 16] = [7; 16];

/// A state with a mount at `/m`, whose root is loaded.
pub(super) struct Tree {
    pub(super) store: Store,
    pub(super) index: u64,
    /// What clients see changed by the last command.
    pub(super) changes: Changes,
    pub(super) seq: u64,
    root: u64,
    _dir: tempfile::TempDir,
}

pub(super) fn at(path: &str) -> Option<Target> {
    Some(Target { target: Some(target::Target::Path(path.as_bytes().to_vec().into())) })
}

pub(super) fn file(name: &str, token: &str) -> UfsEntry {
    let mut entry = UfsEntry {
        name: name.as_bytes().to_vec().into(),
        size: token.len() as u64,
        version_token: token.as_bytes().to_vec().into(),
        mode: 0o644,
        ..UfsEntry::default()
    };
    entry.set_type(FileType::File);
    entry
}

pub(super) fn directory(name: &str) -> UfsEntry {
    let mut entry = UfsEntry { version_token: Default::default(), size: 0, mode: 0o755, ..file(name, "") };
    entry.set_type(FileType::Directory);
    entry
}

impl Tree {
    pub(super) fn new(uri: &str) -> Tree {
        let mut tree = Tree::bare(tempfile::tempdir().expect("tempdir"));
        let mount = Mount { path: b"/m".to_vec().into(), ufs_uri: uri.into(), ..Mount::default() };
        tree.internal(Body::AddMount(AddMountRequest { op: None, mount: Some(mount) }));
        tree.root = tree.lookup("/m").expect("the mount").inode;
        tree
    }

    /// A state with a session and nothing else.
    pub(super) fn bare(dir: tempfile::TempDir) -> Tree {
        let options = StoreOptions { block_cache_bytes: 1 << 20, write_buffer_bytes: 1 << 20 };
        let store = Store::open(dir.path(), &options).expect("opened");
        let mut tree = Tree { store, index: 0, changes: Changes::All, seq: 0, root: 0, _dir: dir };
        tree.internal(Body::OpenSession(OpenSession { client_id: CLIENT.to_vec().into(), ..OpenSession::default() }));
        tree
    }

    fn run(&mut self, op: Option<OpId>, body: Body) -> Answer {
        self.run_all(vec![(op, body)]).remove(0)
    }

    /// Applies commands in one transaction.
    pub(super) fn run_all(&mut self, commands: Vec<(Option<OpId>, Body)>) -> Vec<Answer> {
        let mut txn = self.store.begin();
        let mut answers = Vec::new();
        for (op, body) in commands {
            self.index += 1;
            let command = Command { op, command: Some(body), time_ns: i64::try_from(self.index).expect("small") };
            let outcome = state::apply(&mut txn, self.index, &command).expect("applied");
            answers.push(outcome.outcome.expect("an answer"));
        }
        self.changes = txn.visible_changes(answers.len() == 1).expect("derived");
        self.store.commit(txn).expect("committed");
        answers
    }

    pub(super) fn internal(&mut self, body: Body) -> Answer {
        self.run(None, body)
    }

    /// A new operation of the client.
    pub(super) fn change(&mut self, body: Body) -> Answer {
        self.seq += 1;
        self.again(body)
    }

    /// The first operation of another client.
    pub(super) fn change_of(&mut self, client: [u8; 16], body: Body) -> Answer {
        self.run(Some(OpId { client_id: client.to_vec().into(), seq: 1, acked_below: 1 }), body)
    }

    /// The last operation once more.
    pub(super) fn again(&mut self, body: Body) -> Answer {
        self.run(Some(self.op()), body)
    }

    pub(super) fn op(&self) -> OpId {
        OpId { client_id: CLIENT.to_vec().into(), seq: self.seq, acked_below: self.seq }
    }

    /// A listing that began when `start` was applied.
    pub(super) fn list(&mut self, start: u64, entries: &[UfsEntry]) {
        let load = LoadEntries {
            directory: self.root,
            mount_id: 1,
            entries: entries.to_vec(),
            complete: true,
            sync_start_index: start,
            ..LoadEntries::default()
        };
        assert!(matches!(self.internal(Body::LoadEntries(load)), Answer::Loaded(_)));
    }

    pub(super) fn finish(&mut self, id: u64, entry: Option<UfsEntry>) -> Answer {
        self.internal(Body::FinishIntent(FinishIntent { id, entry, ..FinishIntent::default() }))
    }

    pub(super) fn lookup(&self, path: &str) -> Result<Attr, ErrorKind> {
        query::lookup(&self.store.view(), &at(path).expect("path")).map_err(|f| jindofs::error::Error::from(f).kind)
    }

    fn names(&self) -> Vec<String> {
        let (entries, _) = query::list(&self.store.view(), self.root, b"", 0).expect("listed");
        entries.iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned()).collect()
    }

    pub(super) fn intents(&self) -> usize {
        query::intents(&self.store.view(), 0).expect("read").len()
    }

    pub(super) fn ends_behind(&self, path: &str) -> Option<u64> {
        let (view, inode) = (self.store.view(), self.lookup(path).expect("it is there").inode);
        let row = query::inode(&view, inode).expect("read").expect("it is there");
        query::ends_behind(&view, inode, &row).expect("read")
    }

    pub(super) fn due(&self, id: u64) -> Due {
        plan::due(&self.store.view(), id).expect("planned")
    }

    fn write(&mut self, inode: u64, base: &str) -> Answer {
        let base_token = base.as_bytes().to_vec().into();
        self.change(Body::BeginWrite(BeginWriteRequest { inode, base_token, ..BeginWriteRequest::default() }))
    }

    fn end(&mut self, intent: u64, stored: Option<&str>) -> Answer {
        let stored = stored.map(|token| StoredContent {
            version_token: token.as_bytes().to_vec().into(),
            size: token.len() as u64,
            mtime_ns: 5,
            ..StoredContent::default()
        });
        self.change(Body::EndWrite(EndWriteRequest { intent, stored, ..EndWriteRequest::default() }))
    }
}

pub(super) fn pending(answer: &Answer) -> u64 {
    match answer {
        Answer::Pending(pending) => pending.intent,
        other => panic!("not pending: {other:?}"),
    }
}

fn refused(answer: &Answer) -> ErrorKind {
    match answer {
        Answer::Refused(refusal) => refusal.kind(),
        other => panic!("not refused: {other:?}"),
    }
}

fn mkdir(path: &str) -> Body {
    Body::Mkdir(MkdirRequest { target: at(path), mode: 0o755, ..MkdirRequest::default() })
}

fn unlink(path: &str) -> Body {
    Body::Unlink(UnlinkRequest { target: at(path), ..UnlinkRequest::default() })
}

fn create(path: &str) -> Body {
    Body::Create(CreateRequest { target: at(path), mode: 0o600, ..CreateRequest::default() })
}

#[test]
fn a_directory_comes_when_it_was_made_in_the_under_storage_and_whoever_asks_again_gets_the_answer() {
    let mut tree = Tree::new("local:///x");
    tree.list(tree.index, &[]);
    let id = pending(&tree.change(mkdir("/m/d")));
    assert_eq!(tree.lookup("/m/d"), Err(ErrorKind::NotFound));
    assert_eq!(pending(&tree.again(mkdir("/m/d"))), id);
    tree.list(tree.index, &[directory("d")]);
    assert!(tree.names().is_empty(), "the name is held");
    let Due::Leader(todo) = tree.due(id) else { panic!("it is due") };
    assert!(matches!(todo.work, Work::MakeDirectory { path, .. } if path == b"d"));
    let Answer::Attr(made) = tree.finish(id, Some(directory("d"))) else { panic!("it is there") };
    assert_eq!(tree.lookup("/m/d"), Ok(made.clone()));
    assert_eq!(tree.again(mkdir("/m/d")), Answer::Attr(made), "the answer is kept for the operation");
    assert_eq!((tree.intents(), tree.due(id)), (0, Due::Ended));
    assert_eq!(refused(&tree.finish(id, None)), ErrorKind::FailedPrecondition, "it ends once");
    assert_eq!(refused(&tree.change(mkdir("/m/d"))), ErrorKind::AlreadyExists);
}

#[test]
fn what_the_under_storage_refuses_changes_nothing_and_holds_nothing() {
    let mut tree = Tree::new("local:///x");
    tree.list(tree.index, &[file("f", "1")]);
    for body in [mkdir("/m/d"), unlink("/m/f")] {
        let id = pending(&tree.change(body.clone()));
        let refusal = refusal::said(ErrorKind::PermissionDenied, "no right to do that");
        let finish = FinishIntent { id, refused: Some(refusal), ..FinishIntent::default() };
        assert_eq!(refused(&tree.internal(Body::FinishIntent(finish))), ErrorKind::PermissionDenied);
        assert_eq!(refused(&tree.again(body)), ErrorKind::PermissionDenied);
        assert_eq!((tree.names(), tree.intents()), (vec!["f".to_owned()], 0));
    }
    tree.list(tree.index, &[]);
    assert!(tree.names().is_empty(), "a listing judges them again");
}

#[test]
fn a_name_that_was_removed_and_then_refused_is_not_brought_back_by_a_listing_that_began_before() {
    let mut tree = Tree::new("local:///x");
    tree.list(tree.index, &[file("f", "1")]);
    let before = tree.index;
    let id = pending(&tree.change(unlink("/m/f")));
    tree.finish(id, None);
    let id = pending(&tree.change(mkdir("/m/f")));
    let refusal = refusal::said(ErrorKind::NoSpace, "the disk is full");
    tree.internal(Body::FinishIntent(FinishIntent { id, refused: Some(refusal), ..FinishIntent::default() }));
    tree.list(before, &[file("f", "1")]);
    assert!(tree.names().is_empty());
    tree.list(tree.index, &[file("f", "2")]);
    assert_eq!(tree.names(), ["f"], "what is listed later is there");
}

#[test]
fn a_removed_name_is_not_brought_back_by_a_listing_that_began_before() {
    let mut tree = Tree::new("s3://b");
    tree.list(tree.index, &[file("f", "1")]);
    let start = tree.index;
    let id = pending(&tree.change(unlink("/m/f")));
    assert_eq!(refused(&tree.change(unlink("/m/f"))), ErrorKind::Busy, "one at a time");
    let Due::Leader(todo) = tree.due(id) else { panic!("it is due") };
    assert_eq!(todo.work, Work::Remove { path: b"f".to_vec(), token: "1".into() });
    tree.list(tree.index, &[]);
    assert_eq!(tree.names(), ["f"], "what is at work is left alone");
    tree.finish(id, None);
    tree.list(start, &[file("f", "1")]);
    assert!(tree.names().is_empty());
    tree.list(tree.index, &[file("f", "2")]);
    assert_eq!(tree.names(), ["f"], "somebody else has stored it again");
}

#[test]
fn a_file_that_was_made_outlives_listings_and_goes_with_its_session_unless_it_was_stored() {
    let mut tree = Tree::new("s3://b");
    tree.list(tree.index, &[]);
    let start = tree.index;
    for name in ["/m/lost", "/m/stored", "/m/removed"] {
        assert!(matches!(tree.change(create(name)), Answer::Attr(_)));
    }
    tree.list(start, &[]);
    tree.list(tree.index, &[]);
    assert_eq!(tree.names(), ["lost", "removed", "stored"]);
    let inode = tree.lookup("/m/stored").expect("there").inode;
    let id = pending(&tree.write(inode, ""));
    assert_eq!(tree.due(id), Due::Client);
    assert!(matches!(tree.end(id, Some("v1")), Answer::Attr(attr) if attr.size == 2 && attr.mode == 0o600));
    assert_eq!(tree.change(unlink("/m/removed")), Answer::Done(Default::default()), "nothing is stored of it");
    let lost = query::intents(&tree.store.view(), 0).expect("read")[0].0;
    assert_eq!(tree.due(lost), Due::Client);
    tree.internal(Body::CloseSession(CloseSession { client_id: CLIENT.to_vec().into() }));
    assert_eq!(tree.due(lost), Due::Forgotten);
    tree.finish(lost, None);
    assert_eq!((tree.names(), tree.intents()), (vec!["stored".to_owned()], 0));
    let counted = query::stat(&tree.store.view(), 1).expect("counted");
    assert_eq!((counted.files, counted.bytes), (1, 2));
}

/// A file that two clients have made, by its intent, with the sessions of both.
fn made_by_two(other: [u8; 16]) -> (Tree, u64) {
    let mut tree = Tree::new("local:///data");
    tree.internal(Body::OpenSession(OpenSession { client_id: other.to_vec().into(), ..OpenSession::default() }));
    let create = || Body::Create(CreateRequest { target: at("/m/f"), ..CreateRequest::default() });
    let made = tree.change(create());
    assert_eq!(tree.change_of(other, create()), made, "it is the same file for both");
    let (intent, _) = query::intents(&tree.store.view(), 0).expect("read")[0];
    (tree, intent)
}

fn ends(tree: &mut Tree, client: [u8; 16]) {
    tree.internal(Body::CloseSession(CloseSession { client_id: client.to_vec().into() }));
}

#[test]
fn a_file_that_two_clients_have_made_goes_with_the_session_of_the_last_of_them() {
    let other = [8; 16];
    for order in [[CLIENT, other], [other, CLIENT]] {
        let (mut tree, intent) = made_by_two(other);
        ends(&mut tree, order[0]);
        assert_eq!(tree.due(intent), Due::Client);
        ends(&mut tree, order[1]);
        assert_eq!(tree.due(intent), Due::Forgotten);
        tree.finish(intent, None);
        assert_eq!((tree.lookup("/m/f"), tree.intents()), (Err(ErrorKind::NotFound), 0));
    }
}

#[test]
fn a_file_that_two_clients_have_made_stays_for_one_when_the_other_dies_while_it_stores() {
    let other = [8; 16];
    let (mut tree, intent) = made_by_two(other);
    let inode = tree.lookup("/m/f").expect("made").inode;
    assert_eq!(pending(&tree.write(inode, "")), intent);
    ends(&mut tree, CLIENT);
    assert!(matches!(tree.due(intent), Due::Leader(_)), "nobody knows whether it was stored");
    tree.finish(intent, None);
    assert_eq!((tree.lookup("/m/f").map(|attr| attr.inode), tree.due(intent)), (Ok(inode), Due::Client));
    ends(&mut tree, other);
    assert_eq!(tree.due(intent), Due::Forgotten);
}

#[test]
fn a_file_that_its_client_gives_up_goes_unless_it_was_stored_or_another_has_made_or_locked_it() {
    let (other, locker) = ([8; 16], [9; 16]);
    for (stored, by_two, locks) in
        [(false, false, false), (true, false, false), (false, true, false), (false, false, true)]
    {
        let (mut tree, intent) = made_by_two(other);
        let inode = tree.lookup("/m/f").expect("made").inode;
        if !by_two {
            ends(&mut tree, other);
        }
        if locks {
            let open = OpenSession { client_id: locker.to_vec().into(), ..OpenSession::default() };
            tree.internal(Body::OpenSession(open));
            let mut lock = Lock { start: 0, end: 9, owner: 1, ..Lock::default() };
            lock.set_type(LockType::Exclusive);
            tree.change_of(locker, Body::SetLock(SetLockRequest { op: None, inode, lock: Some(lock) }));
        }
        assert_eq!(pending(&tree.write(inode, "")), intent);
        let request = EndWriteRequest { intent, abandoned: true, ..EndWriteRequest::default() };
        assert_eq!(pending(&tree.change(Body::EndWrite(request))), intent);
        assert!(matches!(tree.due(intent), Due::Leader(_)), "what is there is looked at");
        tree.finish(intent, stored.then(|| file("f", "v1")));
        match (stored, by_two, locks) {
            (false, false, false) => assert_eq!((tree.lookup("/m/f"), tree.intents()), (Err(ErrorKind::NotFound), 0)),
            (true, ..) => assert_eq!(tree.lookup("/m/f").map(|attr| attr.size), Ok(2)),
            _ => assert_eq!((tree.lookup("/m/f").map(|attr| attr.inode), tree.due(intent)), (Ok(inode), Due::Client)),
        }
        if by_two || locks {
            ends(&mut tree, if by_two { other } else { locker });
            assert_eq!(tree.due(intent), Due::Forgotten, "it was the other's only");
        }
    }
}

#[test]
fn the_time_of_an_object_that_a_client_has_stored_stays_though_the_store_tells_another() {
    let mut tree = Tree::new("s3://b");
    tree.list(tree.index, &[file("f", "v1")]);
    let inode = tree.lookup("/m/f").expect("there").inode;
    let id = pending(&tree.write(inode, "v1"));
    tree.end(id, Some("v2"));
    assert_eq!(tree.lookup("/m/f").map(|attr| attr.mtime_ns), Ok(5));
    tree.list(tree.index, &[UfsEntry { mtime_ns: 7, ..file("f", "v2") }]);
    assert_eq!(tree.lookup("/m/f").map(|attr| attr.mtime_ns), Ok(5), "of the same version");
    tree.list(tree.index, &[UfsEntry { mtime_ns: 9, ..file("f", "v3") }]);
    assert_eq!(tree.lookup("/m/f").map(|attr| attr.mtime_ns), Ok(9), "somebody else has stored another");
}

#[test]
fn a_file_that_is_locked_stays_when_the_session_ends_in_which_it_was_made() {
    let locker = [8; 16];
    let mut tree = Tree::new("local:///data");
    tree.internal(Body::OpenSession(OpenSession { client_id: locker.to_vec().into(), ..OpenSession::default() }));
    tree.change(Body::Create(CreateRequest { target: at("/m/f"), ..CreateRequest::default() }));
    let (intent, _) = query::intents(&tree.store.view(), 0).expect("read")[0];
    let inode = tree.lookup("/m/f").expect("made").inode;
    ends(&mut tree, CLIENT);
    let mut lock = Lock { start: 0, end: 9, owner: 1, ..Lock::default() };
    lock.set_type(LockType::Exclusive);
    tree.change_of(locker, Body::SetLock(SetLockRequest { op: None, inode, lock: Some(lock) }));
    tree.finish(intent, None);
    assert_eq!((tree.lookup("/m/f").map(|attr| attr.inode), tree.due(intent)), (Ok(inode), Due::Client));
    ends(&mut tree, locker);
    tree.finish(intent, None);
    assert_eq!((tree.lookup("/m/f"), tree.intents()), (Err(ErrorKind::NotFound), 0));
}

#[test]
fn content_made_from_a_version_that_is_gone_is_stale() {
    let mut tree = Tree::new("s3://b");
    tree.list(tree.index, &[file("f", "1")]);
    let inode = tree.lookup("/m/f").expect("there").inode;
    let id = pending(&tree.write(inode, "1"));
    assert_eq!(refused(&tree.write(inode, "1")), ErrorKind::Busy);
    assert_eq!(refused(&tree.change(unlink("/m/f"))), ErrorKind::Busy);
    tree.list(tree.index, &[file("f", "other")]);
    assert_eq!(tree.lookup("/m/f").expect("there").version_token, "1", "left alone while it is stored");
    assert!(matches!(tree.end(id, Some("2")), Answer::Attr(_)));
    assert_eq!(refused(&tree.write(inode, "1")), ErrorKind::Stale);
    assert_eq!(refused(&tree.end(id, Some("3"))), ErrorKind::Stale, "it has ended");
    assert_eq!(tree.lookup("/m/f").expect("there").version_token, "2");
}

#[test]
fn whoever_has_begun_to_store_content_does_not_wait_for_itself_when_it_asks_again() {
    let mut tree = Tree::new("s3://b");
    tree.list(tree.index, &[file("f", "1")]);
    let inode = tree.lookup("/m/f").expect("there").inode;
    let waits = |tree: &Tree, op: OpId| plan::is_being_stored(&tree.store.view(), &[inode], Some(&op)).expect("read");
    assert!(!waits(&tree, tree.op()), "nobody is at it");
    let id = pending(&tree.write(inode, "1"));
    assert!(!waits(&tree, tree.op()), "it is the same operation");
    assert!(waits(&tree, OpId { seq: tree.seq + 1, ..tree.op() }));
    assert!(matches!(tree.end(id, Some("2")), Answer::Attr(_)));
}

#[test]
fn what_became_of_content_is_judged_by_what_is_there() {
    for (found, expected) in [(Some("1"), "1"), (Some("2"), "2"), (None, "1")] {
        let mut tree = Tree::new("s3://b");
        tree.list(tree.index, &[file("f", "1")]);
        let inode = tree.lookup("/m/f").expect("there").inode;
        let id = pending(&tree.write(inode, "1"));
        assert_eq!(pending(&tree.end(id, None)), id);
        let Due::Leader(todo) = tree.due(id) else { panic!("given up, it is the leader's") };
        assert_eq!(todo.work, Work::Look { path: b"f".to_vec() });
        let Answer::Attr(judged) = tree.finish(id, found.map(|token| file("f", token))) else { panic!("an answer") };
        assert_eq!((&judged.version_token[..], tree.intents()), (expected.as_bytes(), 0));
    }
}

#[test]
fn a_file_that_could_not_be_stored_stays_its_clients_to_try_again() {
    let mut tree = Tree::new("local:///x");
    tree.list(tree.index, &[]);
    let Answer::Attr(made) = tree.change(create("/m/f")) else { panic!("made") };
    let id = pending(&tree.write(made.inode, ""));
    tree.end(id, None);
    assert!(matches!(tree.finish(id, None), Answer::Attr(_)));
    let again = pending(&tree.write(made.inode, ""));
    assert!(matches!(tree.end(again, Some("1")), Answer::Attr(_)));
    assert_eq!((tree.names(), tree.intents()), (vec!["f".to_owned()], 0));
}

#[test]
fn a_rename_replaces_a_file_that_is_not_stored_and_nobody_stores_as_if_it_was_removed() {
    let mut tree = Tree::new("local:///x");
    tree.list(tree.index, &[file("new", "1")]);
    let rename = || Body::Rename(RenameRequest { from: at("/m/new"), to: at("/m/out"), ..RenameRequest::default() });
    let Answer::Attr(made) = tree.change(create("/m/out")) else { panic!("made") };
    let writing = pending(&tree.write(made.inode, ""));
    assert_eq!(refused(&tree.change(rename())), ErrorKind::Busy, "it is just being stored");
    assert_eq!(tree.names(), ["new", "out"], "what is refused has changed nothing");
    tree.end(writing, None);
    tree.finish(writing, None);
    let id = pending(&tree.change(rename()));
    let Due::Leader(todo) = tree.due(id) else { panic!("it is due") };
    assert!(matches!(todo.work, Work::Rename { replaced: None, .. }), "nothing lies there: {:?}", todo.work);
    assert_eq!((tree.names(), tree.intents()), (vec!["new".to_owned()], 1));
    assert!(matches!(tree.finish(id, Some(file("out", "1"))), Answer::Attr(attr) if attr.inode != made.inode));
    assert_eq!((tree.names(), tree.intents()), (vec!["out".to_owned()], 0));
    assert_eq!(refused(&tree.write(made.inode, "")), ErrorKind::NotFound, "its maker is told");
}

#[test]
fn the_source_of_a_move_by_copy_stays_away_while_it_is_still_there() {
    let mut tree = Tree::new("s3://b");
    tree.list(tree.index, &[file("f", "1")]);
    let body = Body::Rename(RenameRequest { from: at("/m/f"), to: at("/m/g"), ..RenameRequest::default() });
    let id = pending(&tree.change(body));
    let Due::Leader(todo) = tree.due(id) else { panic!("it is due") };
    let Work::Rename { from, token, to, replaced, from_key } = todo.work else { panic!("a move") };
    assert_eq!((&from[..], &token[..], &to[..], replaced), (&b"f"[..], &b"1"[..], &b"g"[..], None));
    let leftover = Leftover { mount_id: 1, ufs_path: from.into(), version_token: token, dentry_key: from_key.into() };
    let finish = FinishIntent {
        id,
        entry: Some(file("g", "copy")),
        leftover: Some(leftover),
        own_attr: true,
        ..FinishIntent::default()
    };
    assert!(matches!(tree.internal(Body::FinishIntent(finish)), Answer::Attr(attr) if attr.version_token == "copy"));
    tree.list(tree.index, &[file("f", "1"), file("g", "copy")]);
    assert_eq!(tree.names(), ["g"], "the name of the source is held");
    let Due::Leader(rest) = tree.due(id) else { panic!("the source has to go") };
    assert_eq!(rest.work, Work::Remove { path: b"f".to_vec(), token: "1".into() });
    tree.finish(id, None);
    assert_eq!((tree.names(), tree.intents()), (vec!["g".to_owned()], 0));
}
