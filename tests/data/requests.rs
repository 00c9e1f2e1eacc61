//! What operations of a mount cost at an object store: the table in the semantics is what its server counts.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;

use super::Site;
use super::writes::{off, writable};
use crate::support::cluster::PATIENCE;
use crate::support::{fuse_works, wait_until};

const SEMANTICS: &str = include_str!("../../src/docs/SEMANTICS.md");

type Operation = fn(&Path) -> std::io::Result<()>;

/// The rows of the table. Each operation finds what those before it have left.
const OPERATIONS: [(&str, Operation); 10] = [
    ("`readdir`, the first of a directory", |dir| fs::read_dir(dir)?.try_for_each(|one| one.map(drop))),
    ("`readdir` again", |dir| fs::read_dir(dir)?.try_for_each(|one| one.map(drop))),
    ("create, write, close", |dir| fs::write(dir.join("f"), b"one")),
    ("create, close", |dir| File::create(dir.join("empty")).map(drop)),
    ("`stat`", |dir| fs::metadata(dir.join("f")).map(drop)),
    ("open, close", |dir| File::open(dir.join("f")).map(drop)),
    ("overwrite, close", |dir| fs::write(dir.join("f"), b"another")),
    ("append, close", |dir| OpenOptions::new().append(true).open(dir.join("f"))?.write_all(b" and more")),
    ("rename", |dir| fs::rename(dir.join("f"), dir.join("g"))),
    ("unlink", |dir| fs::remove_file(dir.join("g"))),
];

/// What has come since `before`, as the table has it.
fn asked_since(before: &BTreeMap<&'static str, u64>, site: &Site) -> String {
    let after = site.s3.control.requests();
    let new = after.iter().map(|(kind, count)| (kind, count - before.get(kind).unwrap_or(&0)));
    let new: Vec<String> = new.filter(|(_, count)| *count > 0).map(|(kind, count)| format!("{count} {kind}")).collect();
    if new.is_empty() { "none".to_owned() } else { new.join(", ") }
}

/// The cell of an operation in a column: S3, OSS.
fn cell(operation: &str, column: usize) -> &'static str {
    let row = SEMANTICS.lines().find(|line| line.starts_with(&format!("| {operation} |")));
    let row = row.unwrap_or_else(|| panic!("the table of requests has no row for {operation}"));
    row.split('|').nth(2 + column).unwrap_or_else(|| panic!("{row}: no column {column}")).trim()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_costs_an_object_store_the_requests_that_the_semantics_name() {
    if !fuse_works("every_operation_costs_an_object_store_the_requests_that_the_semantics_name") {
        return;
    }
    let site = writable(1, |_| {}).await;
    let _oss = super::oss::mount_oss(&site).await;
    let mut differs = Vec::new();
    for (column, storage) in ["s3", "oss"].into_iter().enumerate() {
        for (operation, run) in OPERATIONS {
            let (dir, before) = (site.mnt.join(storage), site.s3.control.requests());
            off(move || run(&dir)).await.unwrap_or_else(|error| panic!("{storage}, {operation}: {error}"));
            let expected = cell(operation, column);
            // A last close stores behind its answer.
            let put = |site: &Site| site.s3.control.requests().get("PUT") > before.get("PUT");
            if expected.contains("PUT") {
                wait_until("it is stored", PATIENCE, || put(&site)).await;
            }
            let asked = asked_since(&before, &site);
            if asked != expected {
                differs.push(format!("{storage}, {operation}: {asked}, and not {expected}"));
            }
        }
    }
    assert!(differs.is_empty(), "{differs:#?}");
    site.cluster.assert_no_panic();
}
