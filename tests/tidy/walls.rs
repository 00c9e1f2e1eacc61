//! Who may import whom.
//!
//! ```text
//! types <- error <- { config, runtime, telemetry } <- { rpc | ufs } <- { master | worker | client } <- { fuse | cli } <- { dev | fluid } <- main
//! ```
//! A room sees what lies below it. Rooms in braces with commas see each other, rooms apart by bars never do: `master`,
//! `worker` and `client` meet on the wire.

use super::source::{Source, find_word};

/// Layers from the bottom; `true` where the rooms of a layer may see each other.
const LAYERS: [(&[&str], bool); 7] = [
    (&["types"], false),
    (&["error"], false),
    (&["config", "runtime", "telemetry"], true),
    (&["rpc", "ufs"], false),
    (&["master", "worker", "client"], false),
    (&["fuse", "cli"], false),
    (&["dev", "fluid"], false),
];

/// Inside the master: (room, rooms beside it that it must not see).
const MASTER: [(&str, &[&str]); 7] = [
    ("state", &["raft", "store", "service", "view", "duties", "http", "wording"]),
    ("store", &["raft", "service", "view", "duties", "http", "wording"]),
    ("wording", &["raft", "service", "view", "duties", "http"]),
    ("view", &["raft", "store", "service", "duties", "http"]),
    ("invalidations", &["raft", "store", "service", "view", "duties", "http"]),
    ("raft", &["service", "duties", "http"]),
    ("service", &["duties", "http"]),
];

/// (crate, where in `src/` it may be named). Tests and programs for tests may name any.
const OWNED: [(&str, &[&str]); 4] = [
    ("openraft", &["src/master/raft"]),
    ("rocksdb", &["src/master/store"]),
    ("fuser", &["src/fuse"]),
    ("opendal", &["src/ufs"]),
];

/// What the deterministic core must not name, as two replicas would disagree.
const NOT_IN_STATE: [&str; 12] = [
    "tokio",
    "tonic",
    "openraft",
    "rocksdb",
    "SystemTime",
    "Instant",
    "rand",
    "uuid",
    "std::fs",
    "std::net",
    "std::thread",
    "std::env",
];

/// Rooms must not see what lies above or beside them.
pub fn check_imports(source: &Source) -> Vec<String> {
    let Some(room) = room_of(&source.path) else { return Vec::new() };
    let mut complaints = Vec::new();
    for (at, path) in references(source) {
        let Some(other) = path.first() else { continue };
        if other != room && layer(other).is_some() && !may_see(room, other) {
            complaints.push(format!("{}: `{room}` must not see `{other}`", source.place(at)));
        }
        if room == "master"
            && other == "master"
            && let (Some(from), Some(to)) = (master_room(&source.path), path.get(1))
            && MASTER.iter().any(|(inner, hidden)| *inner == from && hidden.contains(&to.as_str()))
        {
            complaints.push(format!("{}: `master/{from}` must not see `master/{to}`", source.place(at)));
        }
    }
    // A group names the same room more than once.
    complaints.dedup();
    complaints
}

/// Crates are named where they belong; the wire types stay out of `types` and `ufs`.
pub fn check_crates(source: &Source) -> Vec<String> {
    if !source.path.starts_with("src/") {
        return Vec::new();
    }
    let in_room =
        |room: &str| source.path.strip_prefix(room).is_some_and(|rest| rest.starts_with('/') || rest.starts_with('.'));
    let strayed = OWNED.iter().filter(|(_, rooms)| !rooms.iter().any(|room| in_room(room)));
    let mut complaints: Vec<String> =
        strayed.flat_map(|(name, rooms)| source.complain(name, &format!("belongs to {}", rooms.join(", ")))).collect();
    if in_room("src/types") || in_room("src/ufs") {
        complaints.extend(source.complain("jindofs_proto", "has no place here: convert at the wire"));
    }
    complaints
}

/// Words for people are no part of the state: it has neither the error that holds a text, nor texts of its own but those with
/// which a node stops.
pub fn check_words(source: &Source) -> Vec<String> {
    if master_room(&source.path) != Some("state") {
        return Vec::new();
    }
    let code = source.product();
    let ends_node = |at: &usize| code[..*at].trim_end().ends_with("StoreError(");
    let texts = find_word(code, "format!").into_iter().filter(|at| !ends_node(at));
    find_word(code, "Error")
        .into_iter()
        .chain(texts)
        .filter(|at| !code[..*at].ends_with("thiserror::"))
        .map(|at| format!("{}: a text in the deterministic core: give the refusal a reason", source.place(at)))
        .collect()
}

/// The state machine is a function of state and command.
pub fn check_state(source: &Source) -> Vec<String> {
    if master_room(&source.path) != Some("state") {
        return Vec::new();
    }
    let code = source.product();
    let named = |word: &&str| find_word(code, word).into_iter().map(|at| source.place(at)).collect::<Vec<_>>();
    NOT_IN_STATE
        .iter()
        .flat_map(|word| {
            named(word).into_iter().map(move |place| format!("{place}: `{word}` in the deterministic core"))
        })
        .collect()
}

/// The room of a file in `src/`; `None` where everything may be seen: main, lib, bin, docs.
fn room_of(path: &str) -> Option<&str> {
    let room = path.strip_prefix("src/")?.split(['/', '.']).next()?;
    layer(room).map(|_| room)
}

/// The room inside the master.
fn master_room(path: &str) -> Option<&str> {
    path.strip_prefix("src/master/")?.split(['/', '.']).next()
}

fn layer(room: &str) -> Option<usize> {
    LAYERS.iter().position(|(rooms, _)| rooms.contains(&room))
}

fn may_see(room: &str, other: &str) -> bool {
    match (layer(room), layer(other)) {
        (Some(own), Some(below)) => below < own || (below == own && LAYERS[own].1),
        _ => true,
    }
}

/// Every path from the root of the crate that the code names: where, and its first two names after the root.
fn references(source: &Source) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    for root in ["crate::", "jindofs::"] {
        for at in source.find(root) {
            paths(&source.code[at + root.len()..], 2).into_iter().for_each(|path| found.push((at, path)));
        }
    }
    // `super::super::x` reaches the root in as many steps as the file lies deep.
    let modules = modules_of(&source.path);
    for at in source.find("super::").into_iter().filter(|at| !source.code[..*at].ends_with("super::")) {
        let rest = source.code[at..].trim_start_matches("super::");
        let steps = (source.code[at..].len() - rest.len()) / "super::".len();
        let base = &modules[..modules.len().saturating_sub(steps)];
        for path in paths(rest, 2) {
            let whole: Vec<String> = base.iter().map(|name| (*name).to_owned()).chain(path).take(2).collect();
            found.push((at, whole));
        }
    }
    found
}

/// Modules a file lies in, itself included: `src/master/raft/mod.rs` is `master::raft`.
fn modules_of(path: &str) -> Vec<&str> {
    let inner = path.strip_prefix("src/").unwrap_or(path);
    let stem = inner.strip_suffix(".rs").unwrap_or(inner);
    stem.strip_suffix("/mod").unwrap_or(stem).split('/').collect()
}

/// First names, at most `depth`, of the path or of each path of the group that `rest` starts with.
fn paths(rest: &str, depth: usize) -> Vec<Vec<String>> {
    let rest = rest.trim_start();
    if depth == 0 {
        return vec![Vec::new()];
    }
    if let Some(group) = rest.strip_prefix('{') {
        return members(group).into_iter().flat_map(|member| paths(member, depth)).collect();
    }
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    let (name, after) = rest.split_at(end);
    if name.is_empty() {
        return vec![Vec::new()];
    }
    let tails = after.strip_prefix("::").map_or_else(|| vec![Vec::new()], |tail| paths(tail, depth - 1));
    tails.into_iter().map(|tail| std::iter::once(name.to_owned()).chain(tail).collect()).collect()
}

/// Members of a `{...}` group, after its opening brace.
fn members(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                found.push(&group[start..at]);
                return found;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(&group[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    found
}
