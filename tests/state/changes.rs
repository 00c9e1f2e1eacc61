//! What clients are told to read again, derived from the rows that commands write.

use std::collections::BTreeSet;

use jindofs::master::state::changes::Changes;
use jindofs::types::ROOT_INODE;
use jindofs_proto::store::v1::command::Command as Body;
use jindofs_proto::store::v1::{CloseSession, LoadEntries, UfsEntry};
use jindofs_proto::v1::batch_op::Op;
use jindofs_proto::v1::{
    AddMountRequest, BatchOp, BatchRequest, BeginWriteRequest, CreateRequest, EndWriteRequest, FileType, MkdirRequest,
    Mount, RemoveMountRequest, RenameRequest, RmdirRequest, SetAttrRequest, StoredContent, UnlinkRequest,
};

use super::intents::{CLIENT, Tree, at, directory, file, pending};

/// Inodes, names and directories that the last command has changed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    inodes: BTreeSet<u64>,
    names: BTreeSet<(u64, String)>,
    directories: BTreeSet<u64>,
}

fn seen(tree: &Tree) -> Seen {
    let Changes::Sets(sets) = &tree.changes else { panic!("everything has changed") };
    let mut seen = Seen::default();
    for set in sets {
        seen.inodes.extend(&set.inodes);
        seen.directories.extend(&set.directories);
        let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        seen.names.extend(set.names.iter().map(|(parent, name)| (*parent, text(name))));
    }
    seen
}

/// Applies new operations of the client in one transaction.
fn change_together(tree: &mut Tree, bodies: Vec<Body>) {
    let with_op = |body| {
        tree.seq += 1;
        (Some(tree.op()), body)
    };
    let commands = bodies.into_iter().map(with_op).collect();
    tree.run_all(commands);
}

/// What commands that are applied in one transaction change.
fn seen_after(tree: &mut Tree, bodies: Vec<Body>) -> Seen {
    change_together(tree, bodies);
    seen(tree)
}

fn expected(inodes: &[u64], names: &[(u64, &str)]) -> Seen {
    let names = names.iter().map(|(parent, name)| (*parent, (*name).to_owned())).collect();
    Seen { inodes: inodes.iter().copied().collect(), names, ..Seen::default() }
}

fn inode(tree: &Tree, path: &str) -> u64 {
    tree.lookup(path).unwrap_or_else(|error| panic!("{path}: {error:?}")).inode
}

fn create(path: &str) -> CreateRequest {
    CreateRequest { target: at(path), mode: 0o644, ..CreateRequest::default() }
}

fn mkdir(path: &str) -> Body {
    Body::Mkdir(MkdirRequest { target: at(path), mode: 0o755, ..MkdirRequest::default() })
}

fn rename(from: &str, to: &str) -> Body {
    Body::Rename(RenameRequest { from: at(from), to: at(to), ..RenameRequest::default() })
}

fn unlink(path: &str) -> Body {
    Body::Unlink(UnlinkRequest { target: at(path), ..UnlinkRequest::default() })
}

/// A tree with a directory `/d` outside the mount.
fn tree() -> (Tree, u64) {
    let mut tree = Tree::new("local:///x");
    tree.change(mkdir("/d"));
    let directory = inode(&tree, "/d");
    (tree, directory)
}

#[test]
fn a_creation_names_the_entry_and_the_directory_and_a_repetition_or_a_refusal_nothing() {
    let (mut tree, d) = tree();
    assert_eq!(seen(&tree), expected(&[ROOT_INODE], &[(ROOT_INODE, "d")]));
    tree.change(Body::Create(create("/d/f")));
    assert_eq!(seen(&tree), expected(&[d], &[(d, "f")]), "nobody knows the new inode");
    tree.again(Body::Create(create("/d/f")));
    assert_eq!(seen(&tree), Seen::default());
    tree.change(Body::Create(CreateRequest { exclusive: true, ..create("/d/f") }));
    assert_eq!(seen(&tree), Seen::default());
}

/// Another master may apply the commands one by one, and a client may read from it in between.
#[test]
fn commands_of_one_transaction_name_everything_that_a_client_may_have_seen_between_them() {
    let (mut tree, _) = tree();
    change_together(&mut tree, vec![mkdir("/new"), Body::Create(create("/new/f"))]);
    let (new, f) = (inode(&tree, "/new"), inode(&tree, "/new/f"));
    let names = [(ROOT_INODE, "new"), (new, "f")];
    assert_eq!(seen(&tree), expected(&[ROOT_INODE, new, f], &names), "it may have been listed while it was empty");

    let moved = seen_after(&mut tree, vec![Body::Create(create("/new/temporary")), rename("/new/temporary", "/new/g")]);
    let g = inode(&tree, "/new/g");
    assert_eq!(moved, expected(&[new, g], &[(new, "temporary"), (new, "g")]));

    let removed = seen_after(&mut tree, vec![Body::Create(create("/new/short")), unlink("/new/short")]);
    assert!(removed.names.contains(&(new, "short".to_owned())) && removed.inodes.len() >= 2, "{removed:?}");
}

#[test]
fn a_file_that_is_made_and_changed_in_one_transaction_is_named() {
    let (mut tree, _) = tree();
    let chmod = SetAttrRequest { target: at("/d/f"), mode: Some(0o600), ..SetAttrRequest::default() };
    let seen = seen_after(&mut tree, vec![Body::Create(create("/d/f")), Body::SetAttr(chmod)]);
    assert!(seen.inodes.contains(&inode(&tree, "/d/f")), "it may have been looked up with its first mode: {seen:?}");
}

#[test]
fn a_first_listing_and_a_creation_in_one_transaction_are_named() {
    let (mut tree, _) = tree();
    let m = inode(&tree, "/m");
    let load = LoadEntries {
        directory: m,
        mount_id: 1,
        entries: vec![file("a", "1")],
        complete: true,
        sync_start_index: tree.index,
        ..LoadEntries::default()
    };
    change_together(&mut tree, vec![Body::LoadEntries(load), mkdir("/other")]);
    let a = inode(&tree, "/m/a");
    let seen = seen(&tree);
    assert!(seen.names.contains(&(m, "a".to_owned())) && seen.inodes.contains(&a), "{seen:?}");
}

#[test]
fn a_mount_and_another_change_in_one_transaction_change_everything() {
    let (mut tree, _) = tree();
    let mount = Mount { path: b"/d".to_vec().into(), ufs_uri: "local:///y".into(), ..Mount::default() };
    change_together(&mut tree, vec![Body::AddMount(AddMountRequest { op: None, mount: Some(mount) }), mkdir("/other")]);
    assert_eq!(tree.changes, Changes::All);
}

#[test]
fn attributes_name_the_inode_alone() {
    let (mut tree, _) = tree();
    tree.change(Body::Create(create("/d/f")));
    let f = inode(&tree, "/d/f");
    let chmod = SetAttrRequest { target: at("/d/f"), mode: Some(0o600), ..SetAttrRequest::default() };
    tree.change(Body::SetAttr(chmod));
    assert_eq!(seen(&tree), expected(&[f], &[]));
}

#[test]
fn a_rename_names_both_entries_and_what_was_moved_and_replaced() {
    let (mut tree, d) = tree();
    tree.change(mkdir("/e"));
    tree.change(Body::Create(create("/d/f")));
    tree.change(Body::Create(create("/e/g")));
    let (e, f, g) = (inode(&tree, "/e"), inode(&tree, "/d/f"), inode(&tree, "/e/g"));
    tree.change(rename("/d/f", "/e/g"));
    assert_eq!(seen(&tree), expected(&[d, e, f, g], &[(d, "f"), (e, "g")]));
}

#[test]
fn a_removal_names_the_entry_and_the_inode_and_that_of_a_tree_its_top() {
    let (mut tree, d) = tree();
    tree.change(Body::Create(create("/d/f")));
    let f = inode(&tree, "/d/f");
    tree.change(unlink("/d/f"));
    assert_eq!(seen(&tree), expected(&[d, f], &[(d, "f")]));
    tree.change(Body::Create(create("/d/g")));
    tree.change(Body::Rmdir(RmdirRequest { target: at("/d"), recursive: true, ..RmdirRequest::default() }));
    let seen = seen(&tree);
    assert!(seen.inodes.contains(&ROOT_INODE) && seen.inodes.contains(&d), "{seen:?}");
    assert_eq!(seen.names, expected(&[], &[(ROOT_INODE, "d")]).names, "no path leads to what was in it");
}

#[test]
fn content_that_is_stored_names_the_inode_once_it_is_and_not_before() {
    let (mut tree, _) = tree();
    tree.list(tree.index, &[file("f", "1")]);
    let f = inode(&tree, "/m/f");
    let base_token = b"1".to_vec().into();
    let begin = BeginWriteRequest { inode: f, base_token, ..BeginWriteRequest::default() };
    let intent = pending(&tree.change(Body::BeginWrite(begin)));
    assert_eq!(seen(&tree), Seen::default());
    let version_token = b"2".to_vec().into();
    let stored = StoredContent { version_token, size: 4, mtime_ns: 5, ..StoredContent::default() };
    tree.change(Body::EndWrite(EndWriteRequest { intent, stored: Some(stored), ..EndWriteRequest::default() }));
    assert_eq!(seen(&tree), expected(&[f], &[]));
}

#[test]
fn what_a_change_of_under_storage_holds_is_told_when_it_is_made() {
    let (mut tree, _) = tree();
    tree.list(tree.index, &[file("f", "1")]);
    let (m, f) = (inode(&tree, "/m"), inode(&tree, "/m/f"));
    let intent = pending(&tree.change(unlink("/m/f")));
    assert_eq!(seen(&tree), Seen::default());
    tree.finish(intent, None);
    let seen = seen(&tree);
    assert!(seen.inodes.contains(&m) && seen.inodes.contains(&f), "{seen:?}");
    assert_eq!(seen.names, expected(&[], &[(m, "f")]).names);
}

#[test]
fn a_later_listing_names_what_it_finds_changed_and_the_same_listing_again_nothing() {
    let (mut tree, _) = tree();
    let m = inode(&tree, "/m");
    tree.list(tree.index, &[file("a", "1"), file("b", "1")]);
    assert_eq!(seen(&tree), expected(&[m], &[]), "before the first listing nobody knows of an absent name");
    tree.list(tree.index, &[file("a", "1"), file("b", "1"), directory("c")]);
    assert_eq!(seen(&tree), expected(&[m], &[(m, "c")]));
    let (a, b) = (inode(&tree, "/m/a"), inode(&tree, "/m/b"));
    tree.list(tree.index, &[file("a", "1"), file("b", "1"), directory("c")]);
    assert_eq!(seen(&tree), Seen::default());
    tree.list(tree.index, &[file("a", "longer"), directory("c")]);
    let seen = seen(&tree);
    assert!(seen.inodes.contains(&a) && seen.inodes.contains(&b), "{seen:?}");
    assert_eq!(seen.names, expected(&[], &[(m, "b")]).names);
}

#[test]
fn a_batch_names_everything_in_it_and_many_names_of_a_directory_are_the_directory() {
    let (mut tree, d) = tree();
    tree.change(mkdir("/e"));
    let e = inode(&tree, "/e");
    let paths = (0..100).map(|at| format!("/d/{at}")).chain(["/e/one".to_owned()]);
    let ops = paths.map(|path| BatchOp { op: Some(Op::Create(create(&path))) }).collect();
    tree.change(Body::Batch(BatchRequest { op: None, ops }));
    let names = expected(&[d, e], &[(e, "one")]);
    assert_eq!(seen(&tree), Seen { directories: [d].into(), ..names });
}

#[test]
fn a_file_that_ends_with_the_session_of_its_maker_is_named() {
    let (mut tree, _) = tree();
    tree.list(tree.index, &[]);
    tree.change(Body::Create(create("/m/made")));
    let (m, made) = (inode(&tree, "/m"), inode(&tree, "/m/made"));
    tree.internal(Body::CloseSession(CloseSession { client_id: CLIENT.to_vec().into() }));
    // The leader looks whether it was stored after all.
    let intents = jindofs::master::state::query::intents(&tree.store.view(), 0).expect("read");
    for intent in intents {
        tree.finish(intent.0, None);
    }
    let seen = seen(&tree);
    assert!(seen.inodes.contains(&m) && seen.inodes.contains(&made), "{seen:?}");
    assert!(seen.names.contains(&(m, "made".to_owned())), "{seen:?}");
}

#[test]
fn a_mount_over_an_empty_directory_changes_all_of_its_names() {
    let (mut tree, d) = tree();
    let mount = Mount { path: b"/d".to_vec().into(), ufs_uri: "local:///y".into(), ..Mount::default() };
    tree.internal(Body::AddMount(AddMountRequest { op: None, mount: Some(mount) }));
    assert_eq!(seen(&tree), Seen { directories: [d].into(), ..expected(&[d], &[]) });
}

#[test]
fn a_mount_at_the_root_shows_other_entries_there_and_so_does_its_end() {
    let mut tree = Tree::bare(tempfile::tempdir().expect("tempdir"));
    let mount = Mount { path: b"/".to_vec().into(), ufs_uri: "local:///x".into(), ..Mount::default() };
    tree.internal(Body::AddMount(AddMountRequest { op: None, mount: Some(mount) }));
    assert_eq!(tree.changes, Changes::All);
    for entries in [vec![file("f", "1")], vec![file("f", "1"), file("g", "1")]] {
        let load = LoadEntries {
            directory: ROOT_INODE,
            mount_id: 1,
            entries,
            complete: true,
            sync_start_index: tree.index,
            ..LoadEntries::default()
        };
        tree.internal(Body::LoadEntries(load));
    }
    assert_eq!(seen(&tree), expected(&[ROOT_INODE], &[(ROOT_INODE, "g")]), "by the number of the root");
    tree.internal(Body::RemoveMount(RemoveMountRequest { op: None, path: b"/".to_vec().into() }));
    assert_eq!(tree.changes, Changes::All);
}

/// A symbolic link, as an under-storage lists it.
fn link(name: &str, to: &str) -> UfsEntry {
    let target = to.as_bytes().to_vec().into();
    let mut entry = UfsEntry { symlink_target: target, size: to.len() as u64, ..file(name, "link") };
    entry.set_type(FileType::Symlink);
    entry
}

#[test]
fn a_link_that_others_lead_elsewhere_is_another_inode_of_its_name() {
    let mut tree = Tree::new("local:///x");
    let root = tree.lookup("/m").expect("the mount").inode;
    tree.list(tree.index, &[link("l", "one")]);
    let before = tree.lookup("/m/l").expect("the link");
    tree.list(tree.index, &[UfsEntry { mtime_ns: 5, ..link("l", "one") }]);
    assert_eq!(tree.lookup("/m/l").expect("the link").inode, before.inode, "it leads where it did");
    tree.list(tree.index, &[link("l", "two")]);
    let after = tree.lookup("/m/l").expect("the link");
    assert!(after.inode != before.inode && after.symlink_target == b"two"[..]);
    assert!(seen(&tree).names.contains(&(root, "l".to_owned())), "clients are told of the name");
}
