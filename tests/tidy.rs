//! The rules of the house that a compiler does not know, checked on the text of the sources.
//!
//! Who may import whom, which room may name which crate, how long a file may be, what must not be left in. Each rule is
//! a function from sources to complaints, and each is tried on a planted violation.

mod manifest;
mod planted;
mod source;
mod walls;

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::ROOT;
use source::Source;

/// Lines a file may have. Longer ones hold more than one idea.
const MAX_LINES: usize = 500;

/// Files that were longer when they came; they may shrink, never grow: (path, lines).
const LONGER: [(&str, usize); 0] = [];

/// Where tests may sleep: the helper that polls for a condition.
const MAY_SLEEP: [&str; 1] = ["tests/support/mod.rs"];

#[test]
fn every_room_imports_only_what_lies_below_it() {
    assert_tidy(&sources().iter().flat_map(walls::check_imports).collect::<Vec<_>>());
}

#[test]
fn crates_are_named_only_in_the_rooms_that_own_them() {
    assert_tidy(&sources().iter().flat_map(walls::check_crates).collect::<Vec<_>>());
}

#[test]
fn the_state_machine_knows_no_clock_chance_network_or_file() {
    assert_tidy(&sources().iter().flat_map(walls::check_state).collect::<Vec<_>>());
}

#[test]
fn the_state_machine_makes_no_texts_for_people() {
    assert_tidy(&sources().iter().flat_map(walls::check_words).collect::<Vec<_>>());
}

#[test]
fn no_file_holds_more_than_its_reader() {
    assert_tidy(&sources().iter().flat_map(|source| check_length(source, &LONGER)).collect::<Vec<_>>());
}

#[test]
fn nothing_unfinished_is_left_in() {
    assert_tidy(&sources().iter().flat_map(check_leftovers).collect::<Vec<_>>());
}

#[test]
fn nothing_is_printed_by_macros_that_panic() {
    assert_tidy(&sources().iter().flat_map(check_prints).collect::<Vec<_>>());
}

#[test]
fn tests_wait_for_conditions_and_never_sleep() {
    assert_tidy(&sources().iter().flat_map(check_sleep).collect::<Vec<_>>());
}

#[test]
fn every_dependency_is_named_in_a_source() {
    let sources = sources();
    let manifests = [
        ("Cargo.toml", &["src/", "tests/bench/"][..]),
        ("proto/Cargo.toml", &["proto/src/", "proto/build.rs"]),
        ("tests/Cargo.toml", &["tests/"]),
    ];
    for (manifest, under) in manifests {
        let text = fs::read_to_string(root().join(manifest)).expect("manifest");
        let own: Vec<&Source> =
            sources.iter().filter(|source| under.iter().any(|prefix| source.path.starts_with(prefix))).collect();
        assert_tidy(&manifest::check_used(manifest, &text, &own));
    }
}

fn check_length(source: &Source, longer: &[(&str, usize)]) -> Vec<String> {
    let lines = source.text.lines().count();
    let granted = longer.iter().find(|(path, _)| *path == source.path).map(|(_, lines)| *lines);
    match granted {
        Some(granted) if lines <= MAX_LINES => {
            vec![format!("{}: {lines} lines: take it off the list of longer files ({granted})", source.path)]
        }
        Some(granted) if lines <= granted => Vec::new(),
        None if lines <= MAX_LINES => Vec::new(),
        _ => vec![format!("{}: {lines} lines, {} are allowed", source.path, granted.unwrap_or(MAX_LINES))],
    }
}

fn check_leftovers(source: &Source) -> Vec<String> {
    let left = ["todo!", "unimplemented!", "dbg!"];
    left.iter().flat_map(|word| source.complain(word, "is left in")).collect()
}

/// `println!` and its like panic when the output is full or closed.
fn check_prints(source: &Source) -> Vec<String> {
    let is_program = source.path.starts_with("src/") || source.path.starts_with("operator/src/");
    if !is_program || source.path.starts_with("src/master/raft/simulation/") {
        return Vec::new();
    }
    let code = source.product();
    let found = |word: &&str| source::find_word(code, word).into_iter().map(|at| source.place(at)).collect::<Vec<_>>();
    ["println!", "print!", "eprintln!", "eprint!"]
        .iter()
        .flat_map(|word| {
            found(word).into_iter().map(move |place| format!("{place}: `{word}` panics: use runtime::stdio"))
        })
        .collect()
}

fn check_sleep(source: &Source) -> Vec<String> {
    let waits = !source.path.starts_with("tests/")
        || source.path.starts_with("tests/bench/")
        || MAY_SLEEP.contains(&source.path.as_str());
    if waits { Vec::new() } else { source.complain("sleep(", "is no way to wait: use support::wait_until") }
}

fn assert_tidy(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

fn root() -> PathBuf {
    PathBuf::from(ROOT)
}

/// All Rust files of ours, by path from the root.
fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    for dir in ["src", "tests", "packets", "proto", "operator"] {
        collect(&root().join(dir), &mut found);
    }
    assert!(found.len() > 20, "the sources are not where they are looked for");
    found
}

fn collect(dir: &Path, found: &mut Vec<Source>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("read");
            let name = path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
            found.push(Source::new(&name, &text));
        }
    }
}
