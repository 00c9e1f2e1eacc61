//! Every rule finds what it is there to find.

use super::source::Source;
use super::walls::{check_crates, check_imports, check_state, check_words};
use super::{check_leftovers, check_length, check_prints, check_sleep, manifest};

fn complaints(check: impl Fn(&Source) -> Vec<String>, path: &str, text: &str) -> usize {
    check(&Source::new(path, text)).len()
}

#[test]
fn an_import_from_above_or_beside_is_found_however_it_is_written() {
    for (path, text) in [
        ("src/types/path.rs", "use crate::error::Error;"),
        ("src/error.rs", "use crate::{types::X, rpc::Y};"),
        ("src/rpc/mod.rs", "use crate::ufs::Ufs;"),
        ("src/master/service/mod.rs", "fn f() -> crate::client::Namespace { }"),
        ("src/worker/fill.rs", "use crate::{\n    error::Error,\n    client::{self, Namespace},\n};"),
        ("src/client/mod.rs", "use super::master::state;"),
        ("src/client/namespace.rs", "use super::super::worker;"),
        ("src/fuse/fs.rs", "use crate::cli::table;"),
        ("src/cli/mod.rs", "use crate::dev;"),
        ("src/master/state/apply.rs", "use crate::master::store::Db;"),
        ("src/master/state/apply.rs", "use crate::master::wording;"),
        ("src/master/store/db.rs", "use super::super::raft::Log;"),
        ("src/master/raft/mod.rs", "use crate::master::{duties, state};"),
    ] {
        assert_eq!(complaints(check_imports, path, text), 1, "{path}: {text}");
    }
}

#[test]
fn an_import_from_below_is_fine_and_so_is_talk_about_other_rooms() {
    for (path, text) in [
        ("src/error.rs", "use crate::types::Path;"),
        ("src/config/mod.rs", "use crate::runtime::now_ns;"),
        ("src/client/channel.rs", "use crate::rpc::status; use crate::ufs::Ufs;"),
        ("src/dev.rs", "use crate::{fuse, cli, master::Master, worker};"),
        ("src/main.rs", "use jindofs::{dev, master};"),
        ("src/master/raft/log.rs", "use super::super::state::Command; use crate::master::store::Db;"),
        ("src/worker/mod.rs", "// see crate::client\n//! [`crate::master`]\nconst X: &str = \"crate::master\";"),
        ("src/rpc/channel.rs", "use super::status;"),
        ("src/error.rs", "#[cfg(test)]\nmod tests {\n    use super::*;\n}"),
    ] {
        assert_eq!(complaints(check_imports, path, text), 0, "{path}: {text}");
    }
}

#[test]
fn a_crate_named_outside_its_room_is_found() {
    for (path, text) in [
        ("src/master/state/mod.rs", "use openraft::LogId;"),
        ("src/master/raft/log.rs", "use rocksdb::DB;"),
        ("src/worker/mod.rs", "let e: opendal::Error;"),
        ("src/cli/mod.rs", "fuser::mount();"),
        ("src/ufs/s3.rs", "use jindofs_proto::v1::Mount;"),
    ] {
        assert_eq!(complaints(check_crates, path, text), 1, "{path}: {text}");
    }
    for (path, text) in [
        ("src/master/raft/mod.rs", "use openraft::LogId;"),
        ("src/master/store/db.rs", "use rocksdb::DB;"),
        ("src/fuse.rs", "use fuser::mount;"),
        ("src/types/mod.rs", "struct Rocksdb; // rocksdb and openraft, jindofs_proto"),
        ("tests/cluster.rs", "use rocksdb::DB;"),
    ] {
        assert_eq!(complaints(check_crates, path, text), 0, "{path}: {text}");
    }
}

#[test]
fn a_text_for_people_in_the_state_machine_is_found_except_where_the_node_stops() {
    let state = "src/master/state/apply.rs";
    for text in [
        "use crate::error::{Error, ErrorKind};",
        "fn f() -> Error { }",
        "refuse(Refusal::NoSuchWorker { worker: format!(\"worker {id}\").into() })",
        "let why = format!(\"no\");",
    ] {
        assert_eq!(complaints(check_words, state, text), 1, "{text}");
    }
    for text in [
        "use crate::error::ErrorKind;",
        "Err(StoreError(format!(\"row {key}\")))",
        "Err(StoreError(\n    format!(\"row {key}\"),\n))",
        "#[derive(thiserror::Error)]\nstruct S; // Error, format!",
        "#[cfg(test)]\nmod tests {\n    fn f() { format!(\"x\"); }\n}",
    ] {
        assert_eq!(complaints(check_words, state, text), 0, "{text}");
    }
    assert_eq!(complaints(check_words, "src/master/duties/jobs.rs", "format!(\"x\")"), 0);
}

#[test]
fn clock_chance_and_files_in_the_state_machine_are_found_except_in_its_tests() {
    let state = "src/master/state/apply.rs";
    for text in ["SystemTime::now()", "use std::time::{Duration, Instant};", "rand::random()", "std::fs::read(x)"] {
        assert_eq!(complaints(check_state, state, text), 1, "{text}");
    }
    let tested = "fn apply() {}\n#[cfg(test)]\nmod tests {\n    use rand::Rng;\n}";
    assert_eq!(complaints(check_state, state, tested), 0);
    assert_eq!(complaints(check_state, state, "let operand = brand; // rand"), 0);
    assert_eq!(complaints(check_state, "src/master/duties/ttl.rs", "SystemTime::now()"), 0);
}

#[test]
fn long_files_leftovers_and_sleeps_are_found() {
    let long = "x\n".repeat(501);
    assert_eq!(complaints(|source| check_length(source, &[]), "src/a.rs", &long), 1);
    assert_eq!(complaints(|source| check_length(source, &[("src/a.rs", 501)]), "src/a.rs", &long), 0);
    assert_eq!(complaints(|source| check_length(source, &[("src/a.rs", 501)]), "src/a.rs", "short"), 1);
    for text in ["todo!()", "unimplemented!(\"x\")", "dbg!(x)"] {
        assert_eq!(complaints(check_leftovers, "src/a.rs", text), 1, "{text}");
    }
    assert_eq!(complaints(check_leftovers, "src/a.rs", "let todo = r#\"todo!()\"#; let c = '\"'; // dbg!"), 0);
    assert_eq!(complaints(check_sleep, "tests/cluster.rs", "thread::sleep(SECOND);"), 1);
    assert_eq!(complaints(check_sleep, "tests/cluster.rs", "tokio::time::sleep(x).await"), 1);
    assert_eq!(complaints(check_sleep, "tests/cluster.rs", "let failpoint = \"raft=sleep(5)\";"), 0);
    assert_eq!(complaints(check_sleep, "src/worker/mod.rs", "sleep(x)"), 0);
}

#[test]
fn a_print_that_panics_is_found_except_in_tests() {
    for text in ["println!(\"x\")", "eprint!()", "fn f() { eprintln!() }\n#[cfg(test)]\nmod tests {}"] {
        assert_eq!(complaints(check_prints, "src/cli/mod.rs", text), 1, "{text}");
    }
    assert_eq!(complaints(check_prints, "src/cli/mod.rs", "// println!()\n#[cfg(test)]\nmod tests { println!() }"), 0);
    assert_eq!(complaints(check_prints, "tests/data/mod.rs", "println!()"), 0);
}

#[test]
fn a_dependency_nobody_names_is_found() {
    let text = "[dependencies]\nused-crate = \"1\"\nunused = { version = \"1\" }\n";
    let source = Source::new("src/a.rs", "use used_crate::X; // unused");
    let complaints = manifest::check_used("Cargo.toml", text, &[&source]);
    assert_eq!(complaints, ["Cargo.toml: [dependencies] `unused` is named by no source"]);
}

#[test]
fn literals_and_comments_are_blanked_and_lines_stay() {
    let text = "a /* b /* c */ d */ e \"f \\\" g\" 'h' '\\'' '\\u{1F600}' &'i str r#\"j \" k\"# l // m\nn b'o'";
    let source = Source::new("x.rs", text);
    let words: String = source.code.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(words, "a e &'i str l n b");
    assert_eq!(source.code.len(), text.len());
    assert_eq!(source.place(source.find("n")[0]), "x.rs:2");
}
