//! Rights: what the operator and the node plugin asked of the API server while all other tests ran, against what they may ask.
//! The name of this module makes it the last of those that run alone, which run after all others.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::begin;

const RBAC: &str = include_str!("../../../deploy/kustomize/rbac.yaml");
pub const OPERATOR: &str = "system:serviceaccount:jindofs-system:jindofs-operator";
/// Accounts, and what their roles are called.
const ACCOUNTS: [(&str, &str); 2] =
    [(OPERATOR, "jindofs-operator"), ("system:serviceaccount:jindofs-system:jindofs-csi", "jindofs-csi")];
/// When the run of all tests began, in UTC as `2026-01-02T03:04:05Z`: only then can a right be called unused.
const SINCE: &str = "JINDOFS_KUBE_SINCE";

/// `verb resource.group`, or `verb resource/part.group`.
fn right(verb: &str, resource: &str, group: &str) -> String {
    format!("{verb} {resource}{}{group}", if group.is_empty() { "" } else { "." })
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Everything that the roles of this name give.
fn granted(rbac: &str, role: &str) -> BTreeSet<String> {
    let mut rights = BTreeSet::new();
    for document in rbac.split("\n---\n") {
        let document: Value = serde_saphyr::from_str(document).expect("yaml");
        if document["metadata"]["name"] != role {
            continue;
        }
        for rule in document["rules"].as_array().into_iter().flatten() {
            for group in strings(&rule["apiGroups"]) {
                for resource in strings(&rule["resources"]) {
                    rights.extend(strings(&rule["verbs"]).iter().map(|verb| right(verb, resource, group)));
                }
            }
        }
    }
    rights
}

/// What a request needed. To apply what is not there yet needs two rights.
fn needed(event: &Value) -> Vec<String> {
    let (verb, object) = (event["verb"].as_str().unwrap_or_default(), &event["objectRef"]);
    let Some(resource) = object["resource"].as_str() else { return Vec::new() };
    let resource = match object["subresource"].as_str() {
        Some(part) => format!("{resource}/{part}"),
        None => resource.to_owned(),
    };
    let group = object["apiGroup"].as_str().unwrap_or_default();
    let mut rights = vec![right(verb, &resource, group)];
    if verb == "patch" && event["responseStatus"]["code"] == 201 {
        rights.push(right("create", &resource, group));
    }
    rights
}

/// Refused for want of a right. What is made in a namespace that is on its way out is refused too, with another reason.
fn forbidden(event: &Value) -> bool {
    event["annotations"]["authorization.k8s.io/decision"] == "forbid"
}

/// The log of the cluster that the tests bring along; none of another one.
pub fn audit_log() -> Option<PathBuf> {
    let config = std::env::var("KUBECONFIG").ok()?;
    let log = Path::new(&config).parent()?.join("logs/audit.log");
    log.exists().then_some(log)
}

/// Names of the tests of `alone` as they run, one after the other.
fn order() -> Vec<String> {
    let program = std::env::current_exe().expect("a program");
    let listed =
        std::process::Command::new(program).args(["--list", "--ignored", "kube::alone::"]).output().expect("it runs");
    let listed = crate::kube::ok(&listed);
    listed.lines().filter_map(|line| line.strip_suffix(": test").map(str::to_owned)).collect()
}

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn whatever_operator_and_plugin_may_do_they_have_done_and_nothing_they_did_was_forbidden() {
    begin();
    let Some(path) = audit_log() else {
        assert!(
            std::env::var_os(SINCE).is_none(),
            "our own cluster keeps no audit log: make kube-down, and start it anew"
        );
        eprintln!("left out: rights against use, as a cluster of others keeps no audit log for us");
        return;
    };
    let last = order().pop().unwrap_or_default();
    assert!(last.starts_with("kube::alone::verbs::"), "{last} runs after this one, which must be the last");
    let since = std::env::var(SINCE).ok();
    let text = std::fs::read_to_string(&path).expect("the audit log");
    let mut used: BTreeMap<(&str, String), usize> = BTreeMap::new();
    let (mut refused, mut allowed) = (BTreeSet::new(), BTreeSet::new());
    for line in text.lines() {
        let event: Value = serde_json::from_str(line).expect("one event a line");
        let (user, at) = (event["user"]["username"].as_str(), event["requestReceivedTimestamp"].as_str());
        let recent = since.as_deref().is_none_or(|since| at.unwrap_or_default() >= since);
        let what = || format!("{}: {} {}", user.unwrap_or("?"), needed(&event).join(", "), event["requestURI"]);
        let account = ACCOUNTS.iter().find(|(account, _)| user == Some(*account)).filter(|_| !forbidden(&event));
        match account {
            Some((account, _)) => {
                allowed.insert(what());
                needed(&event).into_iter().for_each(|right| *used.entry((*account, right)).or_default() += 1);
            }
            // What an operator of an earlier run was refused is nothing against this one.
            None if recent => _ = refused.insert(what()),
            None => {}
        }
    }
    // An API server that has just been started answers before it has read what it gives to whom: the same is allowed later.
    refused.retain(|what| !allowed.contains(what));
    assert!(refused.is_empty(), "forbidden, or by one that has no rights, in {}: {refused:#?}", path.display());
    assert!(used.keys().any(|(_, right)| right.starts_with("watch datasets")), "the log holds what we do: {used:#?}");
    if since.is_none() {
        eprintln!("left out: which rights were never used, as not all tests ran ({SINCE} is not set)");
        return;
    }
    for (account, role) in ACCOUNTS {
        let mut unused = granted(RBAC, role);
        unused.retain(|right| !used.contains_key(&(account, right.clone())));
        assert!(unused.is_empty(), "granted to {account} and never used, take them away: {unused:#?}");
    }
}

#[test]
fn a_right_is_found_where_it_is_given_and_where_it_is_used() {
    let rights = granted(
        "metadata: {name: r}\nrules:\n- apiGroups: [a.io]\n  resources: [x, x/status]\n  verbs: [get, patch]\n---\n\
         metadata: {name: r}\nrules:\n- apiGroups: ['']\n  resources: [pods]\n  verbs: [list]\n---\n\
         metadata: {name: other}\nrules:\n- apiGroups: ['']\n  resources: [secrets]\n  verbs: [get]\n",
        "r",
    );
    let expected = ["get x.a.io", "get x/status.a.io", "list pods", "patch x.a.io", "patch x/status.a.io"];
    assert_eq!(rights.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    let event = |code: u16| -> Value {
        serde_json::json!({
            "verb": "patch", "objectRef": {"resource": "x", "subresource": "status", "apiGroup": "a.io"},
            "responseStatus": {"code": code},
        })
    };
    assert_eq!(needed(&event(200)), ["patch x/status.a.io"]);
    assert_eq!(needed(&event(201)), ["patch x/status.a.io", "create x/status.a.io"]);
    assert!(!forbidden(&event(403)), "the namespace was going");
    assert!(forbidden(&serde_json::json!({"annotations": {"authorization.k8s.io/decision": "forbid"}})));
    assert!(granted(RBAC, "jindofs-operator").contains("get deployments.apps"), "the file is read");
    assert!(granted(RBAC, "jindofs-csi").contains("create events.events.k8s.io"), "the file is read");
}
