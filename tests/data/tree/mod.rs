//! Random histories of two clients, on one mount and on two, against a file system in memory: each answer is judged, and at
//! the end the tree is compared through every mount and in the under-storage.

mod action;
mod closes;
mod judge;
mod model;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use proptest::test_runner::{Config, TestCaseError, TestRng, TestRunner};
use serde_json::{Value, json};

use self::action::{Action, Step, history};
use self::closes::Behind;
use self::judge::Verdict;
use self::model::{Area, Id, Kind, Model};
use super::Site;
use super::writes::{off, writable};
use crate::support::agent::{Agent, decode, encode};
use crate::support::cluster::PATIENCE;
use crate::support::{fuse_works, rounds, seed, wait_for};

/// How long what was given up behind a close may still be seen.
const SETTLE: Duration = Duration::from_secs(5);

/// What a directory holds by path: what it is, its mode, and its content.
type Tree = BTreeMap<String, (String, Option<u32>, Vec<u8>)>;

/// Two clients, and where they work.
struct World {
    agents: Vec<Agent>,
    /// The mount of each client.
    mounts: Vec<usize>,
    roots: Vec<PathBuf>,
    local: PathBuf,
    bucket: opendal::Operator,
    on: tokio::runtime::Handle,
    histories: u32,
}

impl World {
    /// Where an area of the history at work lies below a mount.
    fn place(&self, root: &Path, area: &str) -> PathBuf {
        let below = match area {
            "Local" => root.join("local"),
            "S3" => root.join("s3"),
            _ => root.to_owned(),
        };
        below.join(format!("history-{}", self.histories))
    }

    fn command(&self, client: usize, action: &Action) -> Value {
        let root = &self.roots[self.mounts[client]];
        action.command(|path| {
            let place = self.place(root, path[0]);
            path[1..].iter().fold(place, |at, name| at.join(name)).to_string_lossy().into_owned()
        })
    }

    fn act(&mut self, model: &mut Model, client: usize, action: &Action) -> Verdict {
        if model.skips(client, action) {
            return Ok(());
        }
        let command = self.command(client, action);
        let answer = self.agents[client].call(&command).map_err(|refusal| refusal.errno);
        let told = |why| format!("client {client} did {action:?} and was told {}: {why}", brief(&answer));
        match model.judge(client, action, &answer).map_err(told)? {
            None => Ok(()),
            Some(Behind::GivenUp(node)) => self.settle(model, client, node),
            Some(Behind::Stored(node)) if self.is_emptied(model, node) => Ok(()),
            Some(Behind::Stored(node)) => Err(format!("{:?} is not stored, empty", path_of(model, 0, node))),
            Some(Behind::MayBeStored(node)) => {
                if self.is_emptied(model, node) {
                    model.emptied(self.mounts[client], node);
                }
                Ok(())
            }
        }
    }

    /// Waits for a file that a last close stores: true if it is there in time, empty, for whoever has not changed it.
    fn is_emptied(&mut self, model: &Model, node: Id) -> bool {
        let Some(path) = path_of(model, 0, node) else { return true };
        let below = format!("history-{}/{}", self.histories, path[1..].join("/"));
        let place = |mount: &usize| {
            let place = self.place(&self.roots[*mount], &path[0]);
            path[1..].iter().fold(place, |at, name| at.join(name))
        };
        let places: Vec<PathBuf> = self.mounts.iter().map(place).collect();
        let started = Instant::now();
        wait_for("a file is stored behind its last close", PATIENCE, || {
            let stored = match model.nodes[node].area {
                Area::Local => std::fs::read(self.local.join(&below)).ok(),
                Area::S3 => self.on.block_on(self.bucket.read(&below)).ok().map(|bytes| bytes.to_vec()),
                Area::Outside => return Some(true),
            };
            let mut clients = self.mounts.iter().zip(&mut self.agents).zip(&places);
            let emptied = stored.is_some_and(|bytes| bytes.is_empty())
                && clients.all(|((mount, agent), place)| {
                    model.apart(*mount, node).is_some() || agent.get(place).is_ok_and(|bytes| bytes.is_empty())
                });
            (emptied || started.elapsed() > SETTLE).then_some(emptied)
        })
    }

    /// What could not be stored is given up behind the last close, which nobody is told of.
    fn settle(&mut self, model: &Model, client: usize, node: Id) -> Verdict {
        let Some(path) = path_of(model, 0, node) else { return Ok(()) };
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        let place = self.place(&self.roots[self.mounts[client]], path[0]);
        let at = path[1..].iter().fold(place, |at, name| at.join(name));
        let started = Instant::now();
        wait_for("a file shows what is stored again", PATIENCE, || {
            let seen = self.agents[client].get(&at);
            if seen.as_ref() == Ok(model.nodes[node].newest()) {
                return Some(Ok(()));
            }
            let seen = seen.map(|bytes| bytes.len());
            (started.elapsed() > SETTLE).then(|| Err(format!("{path:?} never shows what is stored: {seen:?}")))
        })
    }

    fn play(&mut self, steps: &[Step]) -> Verdict {
        self.histories += 1;
        let mut model = Model::new(&self.mounts);
        for agent in &mut self.agents {
            agent.call(&json!(["close_all"])).expect("closed");
        }
        for area in Area::ALL {
            let made = self.place(&self.roots[0], area.name());
            self.agents[0].call(&json!(["mkdir", made, 0o755])).map_err(|error| format!("mkdir: {error:?}"))?;
        }
        for step in steps {
            for action in &step.actions {
                self.act(&mut model, step.client, action)?;
            }
        }
        for (client, slot) in model.handles.keys().copied().collect::<Vec<_>>() {
            self.act(&mut model, client, &Action::Close(slot))?;
        }
        for area in Area::ALL {
            self.compare(&model, area)?;
        }
        Ok(())
    }

    fn compare(&mut self, model: &Model, area: Area) -> Verdict {
        let mut expected = Tree::new();
        collect(
            model,
            model.walk(&[area.name()], true, &mut Vec::new()).expect("an area").node.expect("made"),
            "",
            &mut expected,
        );
        for client in 0..self.agents.len() {
            let at = self.place(&self.roots[self.mounts[client]], area.name());
            let shown = self.agents[client].call(&json!(["tree", at])).map_err(|error| format!("tree: {error:?}"))?;
            differs(&format!("what client {client} sees"), &tree_of(&shown), &expected)?;
        }
        let name = format!("history-{}", self.histories);
        match area {
            Area::Local => {
                let shown = self.agents[0].call(&json!(["tree", self.local.join(name)])).expect("a tree");
                differs("the directory", &tree_of(&shown), &expected)
            }
            Area::S3 => {
                expected.retain(|_, (kind, ..)| kind == "file");
                expected.values_mut().for_each(|(_, mode, _)| *mode = None);
                differs("the bucket", &self.on.block_on(objects(&self.bucket, &name)), &expected)
            }
            Area::Outside => Ok(()),
        }
    }
}

/// An answer without its bytes.
fn brief(answer: &judge::Answer) -> String {
    match answer {
        Ok(value) => value.to_string().chars().take(120).collect(),
        Err(errno) => rustix::io::Errno::from_raw_os_error(*errno).to_string(),
    }
}

fn path_of(model: &Model, dir: Id, node: Id) -> Option<Vec<String>> {
    let Kind::Dir(children) = &model.nodes[dir].kind else { return None };
    children.iter().find_map(|(name, child)| {
        let below = if *child == node { Some(Vec::new()) } else { path_of(model, *child, node) };
        below.map(|mut path| {
            path.insert(0, name.clone());
            path
        })
    })
}

fn collect(model: &Model, dir: Id, path: &str, into: &mut Tree) {
    let Kind::Dir(children) = &model.nodes[dir].kind else { return };
    for (name, child) in children {
        let (path, node) = (format!("{path}/{name}"), &model.nodes[*child]);
        let (kind, content) = match &node.kind {
            Kind::Dir(_) => ("dir", Vec::new()),
            Kind::File => ("file", node.newest().clone()),
            Kind::Link(to) => ("link", to.clone().into_bytes()),
        };
        into.insert(path.clone(), (kind.to_owned(), Some(node.mode), content));
        collect(model, *child, &path, into);
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

/// Plays histories until one is not answered as it should be, which is made as short as it can be.
fn play_all(seed: u64, world: World) {
    let config = Config {
        cases: rounds(16),
        failure_persistence: None,
        max_shrink_iters: 1000,
        max_shrink_time: 90_000,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(config.rng_algorithm, &bytes);
    let (mut runner, world) = (TestRunner::new_with_rng(config, rng), RefCell::new(world));
    if let Err(error) = runner.run(&history(), |steps| world.borrow_mut().play(&steps).map_err(TestCaseError::fail)) {
        panic!("seed {seed}: {error}");
    }
}

async fn two_clients(test: &str, second_mount: bool) {
    let seed = seed(test);
    let other = tempfile::tempdir().expect("tempdir");
    let more = second_mount.then(|| other.path().to_owned());
    let site: Site = writable(1, |dev| {
        dev.mounts.extend(more);
        dev.settings.push(("fuse.attr-ttl".into(), "0s".into()));
    })
    .await;
    let world = World {
        agents: vec![Agent::start(), Agent::start()],
        mounts: vec![0, usize::from(second_mount)],
        roots: vec![site.mnt.clone(), other.path().to_owned()],
        local: site.local.clone(),
        bucket: site.bucket.clone(),
        on: tokio::runtime::Handle::current(),
        histories: 0,
    };
    off(move || play_all(seed, world)).await;
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clients_of_one_mount_are_answered_as_by_a_file_system_in_memory() {
    let test = "two_clients_of_one_mount_are_answered_as_by_a_file_system_in_memory";
    if fuse_works(test) {
        two_clients(test, false).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clients_of_two_mounts_are_answered_as_by_a_file_system_in_memory() {
    let test = "two_clients_of_two_mounts_are_answered_as_by_a_file_system_in_memory";
    if fuse_works(test) {
        two_clients(test, true).await;
    }
}
