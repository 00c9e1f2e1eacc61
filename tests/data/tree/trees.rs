//! What directories hold, as the model has it, as a mount shows it, and as it lies in an under-storage.

use std::collections::BTreeMap;

use futures::TryStreamExt;
use serde_json::{Value, json};

use super::judge::Verdict;
use super::model::{Area, Id, Kind, Model};
use super::world::World;
use crate::support::agent::{decode, encode};

/// What a directory holds by path: what it is, its mode, and its content.
type Tree = BTreeMap<String, (String, Option<u32>, Vec<u8>)>;

impl World {
    /// Compares what every mount shows, and what is stored, where nothing waits to be stored.
    pub(super) fn compare(&mut self, model: &Model, area: Area) -> Verdict {
        (0..self.roots.len()).try_for_each(|mount| self.compare_shown(model, area, mount))?;
        self.compare_stored(model, area)
    }

    /// Compares what a mount shows that has nothing staged. What others have made and it is not sure to show is left out.
    pub(super) fn compare_shown(&mut self, model: &Model, area: Area, mount: usize) -> Verdict {
        let at = self.place(&self.roots[mount], area.name());
        let shown = self.observers[mount].call(&json!(["tree", at])).map_err(|error| format!("tree: {error:?}"))?;
        let (mut found, mut expected) = (tree_of(&shown), tree_in(model, area, |_| true));
        let certain = tree_in(model, area, |node| !model.is_hidden(mount, node));
        found.retain(|path, _| certain.contains_key(path) || !expected.contains_key(path));
        expected.retain(|path, _| certain.contains_key(path));
        differs(&format!("what mount {mount} shows"), &found, &expected)
    }

    pub(super) fn compare_stored(&mut self, model: &Model, area: Area) -> Verdict {
        let mut expected = tree_in(model, area, |node| model.nodes[node].maker.is_none());
        let name = self.history();
        match area {
            Area::Local => {
                // What a client has left on its way may be removed meanwhile.
                let shown = self.observers[0].call(&json!(["tree", self.site.local.join(name)]));
                let shown = shown.map_err(|error| format!("tree of the directory: {error:?}"))?;
                differs("the directory", &tree_of(&shown), &expected)
            }
            Area::S3 => {
                expected.retain(|_, (kind, ..)| kind == "file");
                expected.values_mut().for_each(|(_, mode, _)| *mode = None);
                differs("the bucket", &self.on.block_on(objects(&self.site.bucket, &name)), &expected)
            }
            Area::Outside => Ok(()),
        }
    }
}

/// What the model has below an area, of nodes that are `wanted`.
fn tree_in(model: &Model, area: Area, wanted: impl Fn(Id) -> bool) -> Tree {
    let found = model.walk(&[area.name()], true, &mut Vec::new()).expect("an area");
    let mut tree = Tree::new();
    collect(model, found.node.expect("made"), "", &wanted, &mut tree);
    tree
}

fn collect(model: &Model, dir: Id, path: &str, wanted: &impl Fn(Id) -> bool, into: &mut Tree) {
    let Kind::Dir(children) = &model.nodes[dir].kind else { return };
    for (name, child) in children.iter().filter(|(_, child)| wanted(**child)) {
        let (path, node) = (format!("{path}/{name}"), &model.nodes[*child]);
        let (kind, content) = match &node.kind {
            Kind::Dir(_) => ("dir", Vec::new()),
            Kind::File => ("file", node.newest().clone()),
            Kind::Link(to) => ("link", to.clone().into_bytes()),
        };
        into.insert(path.clone(), (kind.to_owned(), Some(node.mode), content));
        collect(model, *child, &path, wanted, into);
    }
}

fn tree_of(shown: &Value) -> Tree {
    let one = |one: &Value| {
        let mode = one["mode"].as_u64().and_then(|mode| u32::try_from(mode).ok());
        let content = if one["content"].is_null() { Vec::new() } else { decode(&one["content"]) };
        (one["kind"].as_str().expect("a kind").to_owned(), mode, content)
    };
    shown.as_object().expect("a tree").iter().map(|(path, shown)| (path.clone(), one(shown))).collect()
}

async fn objects(bucket: &opendal::Operator, below: &str) -> Tree {
    let lister = bucket.lister_with(&format!("{below}/")).recursive(true).await.expect("listed");
    let mut found = Tree::new();
    for object in lister.try_collect::<Vec<_>>().await.expect("listed") {
        if !object.path().ends_with('/') {
            let content = bucket.read(object.path()).await.expect("read").to_vec();
            found.insert(object.path()[below.len()..].to_owned(), ("file".to_owned(), None, content));
        }
    }
    found
}

fn differs(whose: &str, found: &Tree, expected: &Tree) -> Verdict {
    let told = |one: Option<&(String, Option<u32>, Vec<u8>)>| {
        one.map(|(kind, mode, content)| {
            let begin = encode(&content[..content.len().min(9)]);
            format!("{kind} {:o}, {} bytes from {begin} on", mode.unwrap_or(0), content.len())
        })
    };
    for path in found.keys().chain(expected.keys()) {
        let (found, expected) = (found.get(path), expected.get(path));
        if found != expected {
            return Err(format!("{whose}: {path}: expected {:?}, found {:?}", told(expected), told(found)));
        }
    }
    Ok(())
}
