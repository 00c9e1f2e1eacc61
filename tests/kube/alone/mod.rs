//! Tests that disturb the whole cluster or measure it. `make kube-test` runs them one after the other, when all other tests
//! have ended.

mod beside_fluid;
mod guide;
mod idle;
mod masters;
mod verbs;

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use super::site::{install, script};
use super::{NODES, PATIENCE, POLL_INTERVAL, TEST_LABEL, kubectl, ok, show};
use crate::support::poll;

/// Waits until the operator is installed and nothing of earlier tests is left, also of those that ran at the same time.
/// What stays fails the first test that finds it, and none of those after it.
pub fn begin() {
    static REPORTED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    install();
    let mut reported = REPORTED.lock().unwrap_or_else(PoisonError::into_inner);
    let mut left = BTreeSet::new();
    poll(POLL_INTERVAL, PATIENCE, || {
        left = leftovers().difference(&reported).cloned().collect();
        left.is_empty().then_some(())
    });
    reported.extend(left.iter().cloned());
    drop(reported);
    for namespace in left.iter().filter_map(|one| one.strip_prefix("namespace/")) {
        show(namespace);
    }
    assert!(left.is_empty(), "earlier tests have left for {PATIENCE:?}: {left:#?}");
}

/// Namespaces of tests, and what [`left_on`] finds on every node.
fn leftovers() -> BTreeSet<String> {
    let namespaces = ok(&kubectl(&["get", "namespaces", "-l", TEST_LABEL, "-o", "name"]));
    let mut left: BTreeSet<String> = namespaces.lines().map(str::to_owned).collect();
    for node in NODES {
        left.extend(left_on(node).lines().map(|line| format!("{node}: {line}")));
    }
    left
}

/// Lines about our mounts in a node's mount table, and our processes beside the installed ones.
fn left_on(node: &str) -> String {
    let look = "grep -E 'runtime-mnt|jindofs-fuse' /proc/self/mountinfo || true; \
                ps -eo args | grep -E '^[a-z/]*jindofs (master|worker|fuse|fluid)' || true";
    String::from_utf8_lossy(&script("node", &[node, "exec", "sh", "-c", look]).stdout).into_owned()
}
