//! Directories of mounts that lose names, and when metadata is to be read again.

use std::time::Duration;

use jindofs::master::state::plan::{Due, Plan, may_be_emptied};
use jindofs::master::state::query;
use jindofs_proto::store::v1::LoadEntries;
use jindofs_proto::store::v1::command::Command as Body;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::v1::{AddMountRequest, MetaPolicy, Mount, RenameRequest, UnlinkRequest};

use super::intents::{Tree, at, directory, file};

/// A tree with the files `a` and `b` in a directory `d`.
fn tree() -> Tree {
    let mut tree = Tree::new("s3://b");
    tree.list(tree.index, &[directory("d")]);
    let load = LoadEntries {
        directory: tree.lookup("/m/d").expect("it is there").inode,
        mount_id: 1,
        entries: vec![file("a", "1"), file("b", "1")],
        complete: true,
        sync_start_index: tree.index,
        ..LoadEntries::default()
    };
    assert!(matches!(tree.internal(Body::LoadEntries(load)), Answer::Loaded(_)));
    tree
}

fn planned(tree: &mut Tree, body: Body) -> (u64, Plan) {
    let Answer::Pending(pending) = tree.change(body) else { panic!("it begins") };
    let Due::Leader(plan) = tree.due(pending.intent) else { panic!("it is due") };
    (pending.intent, *plan)
}

#[test]
fn a_directory_may_be_emptied_once_as_many_names_go_as_it_has() {
    let mut tree = tree();
    let unlink = |path| Body::Unlink(UnlinkRequest { target: at(path), ..UnlinkRequest::default() });
    let (first, plan) = planned(&mut tree, unlink("/m/d/a"));
    let from = plan.leaves.expect("a directory loses a name");
    assert_eq!((from.directory, &from.path[..]), (tree.lookup("/m/d").expect("it is there").inode, &b"d"[..]));
    let emptied = |tree: &Tree, leaving| may_be_emptied(&tree.store.view(), &from, leaving).expect("read");
    assert!(!emptied(&tree, 1), "the other one stays");
    assert!(emptied(&tree, 2), "the other one goes too");
    tree.finish(first, None);
    assert!(emptied(&tree, 1));
    let body = Body::Rename(RenameRequest { from: at("/m/d/b"), to: at("/m/b"), ..RenameRequest::default() });
    let (_, plan) = planned(&mut tree, body);
    assert_eq!(plan.leaves, None, "its source goes afterwards");
}

#[test]
fn metadata_is_read_again_as_the_policy_of_the_mount_and_of_the_path_says() {
    let mut tree = tree();
    let options = [("metaPolicy", "1m"), ("metaPolicy:/sub", "ONCE"), ("metaPolicy:/sub/f", "ALWAYS")];
    let mount = Mount {
        path: b"/n".to_vec().into(),
        ufs_uri: "s3://b".into(),
        meta_policy: MetaPolicy::Always.into(),
        options: options.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        ..Mount::default()
    };
    tree.internal(Body::AddMount(AddMountRequest { op: None, mount: Some(mount) }));
    let load = |tree: &mut Tree, path: &str, entries| {
        let (directory, sync_start_index) = (tree.lookup(path).expect("it is there").inode, tree.index);
        let load =
            LoadEntries { directory, mount_id: 2, entries, complete: true, sync_start_index, ..LoadEntries::default() };
        assert!(matches!(tree.internal(Body::LoadEntries(load)), Answer::Loaded(_)));
    };
    load(&mut tree, "/n", vec![file("f", "1"), directory("sub")]);
    load(&mut tree, "/n/sub", vec![file("f", "1"), file("g", "1")]);
    let inode = |path: &str| tree.lookup(path).expect("it is there").inode;
    let view = tree.store.view();
    let name = |path: &str| query::refresh_need(&view, inode(path)).expect("read").map(|need| need.max_age);
    let minute = Some(Duration::from_secs(60));
    assert_eq!((name("/n/f"), name("/n/sub"), name("/n")), (Some(minute), None, None));
    assert_eq!((name("/n/sub/g"), name("/n/sub/f")), (None, Some(Some(Duration::ZERO))));
    assert_eq!(name("/m/d/a"), None);
    let names =
        |path: &str| query::relist_need(&view, inode(path)).expect("read").map(|need| (need.name, need.max_age));
    assert_eq!((names("/n"), names("/n/sub"), names("/m")), (Some((None, minute)), None, None));
}
