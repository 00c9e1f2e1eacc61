//! On a real Kubernetes: `make kube-test`. The resources of the guide as the API server takes them, and masters in pods that
//! are deleted, lose their volumes and their nodes.

mod client;
mod fluid;
mod guide;
mod idle;
mod install;
mod loads;
mod masters;
mod mistakes;
mod plugin;
mod resources;
mod running;
mod sanity;
mod scale_in;
mod site;
mod storing;
mod verbs;

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::support::wait_for;

/// Nodes of the cluster that the tests bring along.
const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// Longest wait for what Kubernetes has to do.
const PATIENCE: Duration = Duration::from_secs(120);
const GUIDE: &str = include_str!("../../deploy/samples/dataset.yaml");

/// A namespace of its own, deleted with everything in it.
struct Namespace {
    name: String,
}

impl Namespace {
    fn new(test: &str) -> Namespace {
        let name = format!("{test}-{:04x}", rand::random::<u16>());
        let space = Namespace { name };
        let definitions = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/crd.yaml");
        ok(&kubectl(&["apply", "--server-side", "--force-conflicts", "-f", definitions]));
        ok(&kubectl(&[
            "wait",
            "--for=condition=Established",
            "--timeout=60s",
            "crd/datasets.data.fluid.io",
            "crd/jindoruntimes.data.fluid.io",
        ]));
        ok(&kubectl(&["create", "namespace", &space.name]));
        space
    }

    fn kubectl(&self, arguments: &[&str]) -> Output {
        kubectl(&[&["-n", self.name.as_str()], arguments].concat())
    }

    /// Standard output of a command that must succeed.
    fn ok(&self, arguments: &[&str]) -> String {
        ok(&self.kubectl(arguments))
    }

    /// Gives `yaml` to a command that reads `-f -`.
    fn feed(&self, arguments: &[&str], yaml: &str) -> Output {
        let mut command = Command::new(program());
        command.args(["-n", self.name.as_str()]).args(arguments).args(["-f", "-"]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("kubectl runs");
        child.stdin.take().expect("a pipe").write_all(yaml.as_bytes()).expect("written");
        child.wait_with_output().expect("kubectl ends")
    }

    /// Creates what `yaml` says, which must be taken.
    #[track_caller]
    fn create(&self, yaml: &str) {
        ok(&self.feed(&["create"], yaml));
    }

    fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(&[arguments, &["-o", "json"]].concat())).expect("JSON")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            show(&self.name);
        }
        // A namespace that stays is seen by whoever looks at the cluster next.
        let _ = kubectl(&["delete", "namespace", &self.name, "--wait=true", "--timeout=90s"]);
    }
}

/// Prints what somebody needs who was not there: the newest last, as the end of a long output is what is read.
fn show(namespace: &str) {
    let of = ["-n", namespace];
    let columns = "custom-columns=OBJECT:.involvedObject.name,REASON:.reason,MESSAGE:.message";
    let looks: [&[&str]; 5] = [
        &["logs", "-l", "app=jindofs", "--prefix", "--tail=8"],
        &["get", "pods,pvc", "-o", "wide"],
        &["get", "datasets,jindoruntimes", "-o", "jsonpath={range .items[*]}{.status.conditions}{\"\\n\"}{end}"],
        &["get", "events", "--sort-by=.metadata.creationTimestamp", "-o", columns],
        &["-n", "jindofs-system", "logs", "-l", "app.kubernetes.io/name=jindofs-operator", "--tail=8"],
    ];
    for look in looks {
        let told = text(&kubectl(&[&of, look].concat()));
        let lines: Vec<String> = told.lines().map(|line| line.chars().take(300).collect()).collect();
        eprintln!("--- {}\n{}", look.join(" "), lines[lines.len().saturating_sub(24)..].join("\n"));
    }
}

/// True if the long times are asked for, with `LONG=1`.
fn long() -> bool {
    std::env::var_os("LONG").is_some_and(|value| value != "0")
}

fn program() -> String {
    std::env::var("KUBECTL").unwrap_or_else(|_| "kubectl".to_owned())
}

fn kubectl(arguments: &[&str]) -> Output {
    Command::new(program()).args(arguments).output().expect("kubectl runs")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The value that a command prints once it succeeds and `pick` finds something in it.
#[track_caller]
fn eventually<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    wait_for(what, PATIENCE, probe)
}
