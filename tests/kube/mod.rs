//! On a real Kubernetes: `make kube-test`. The resources of the guide as the API server takes them, and masters in pods that
//! are deleted, lose their volumes and their nodes.
//!
//! Several of these tests run at the same time, each in a namespace of its own with an object store of its own. A test that
//! disturbs the whole cluster, or measures it, belongs to [`alone`].

mod alone;
mod client;
mod fluid;
mod guide;
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

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::sync::Once;
use std::time::Duration;

use crate::support::{ROOT, poll};

/// Nodes of the cluster that the tests bring along.
const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// Longest wait for what Kubernetes has to do.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often a condition is looked at. Each look starts programs: without a pause, the tests that wait would take the
/// processors from what they wait for.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
const GUIDE: &str = include_str!("../../deploy/samples/dataset.yaml");

/// Label of the namespaces of tests.
const TEST_LABEL: &str = "jindofs.io/test";

/// A namespace of its own, deleted with everything in it.
struct Namespace {
    name: String,
}

impl Namespace {
    fn new(test: &str) -> Namespace {
        define_resources();
        let space = Namespace { name: format!("{test}-{:04x}", rand::random::<u16>()) };
        let (name, label) = (&space.name, TEST_LABEL);
        space.create(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{label}: {test}}}}}\n"
        ));
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
        // The next test starts meanwhile. The first test of `alone` fails if a namespace stays.
        let _ = kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
    }
}

/// Applies the resource definitions once.
fn define_resources() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let definitions = format!("{ROOT}/deploy/crd.yaml");
        ok(&kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &definitions]));
        ok(&kubectl(&[
            "wait",
            "--for=condition=Established",
            "--timeout=60s",
            "crd/datasets.data.fluid.io",
            "crd/jindoruntimes.data.fluid.io",
        ]));
    });
}

/// Prints what somebody needs who was not there: the newest last, as the end of a long output is what is read.
fn show(namespace: &str) {
    let of = ["-n", namespace];
    let columns = "custom-columns=OBJECT:.involvedObject.name,REASON:.reason,MESSAGE:.message";
    let looks: [&[&str]; 6] = [
        &["logs", "-l", "app=jindofs", "--prefix", "--tail=8"],
        &["get", "pods,pvc", "-o", "wide"],
        &["get", "datasets,jindoruntimes", "-o", "jsonpath={range .items[*]}{.status.conditions}{\"\\n\"}{end}"],
        &["get", "events", "--sort-by=.metadata.creationTimestamp", "-o", columns],
        &["-n", "jindofs-system", "logs", "-l", "app.kubernetes.io/name=jindofs-csi", "--prefix", "--tail=8"],
        &["-n", "jindofs-system", "logs", "-l", "app.kubernetes.io/name=jindofs-operator", "--tail=8"],
    ];
    for look in looks {
        let told = text(&kubectl(&[&of, look].concat()));
        let lines: Vec<String> = told.lines().map(|line| line.chars().take(300).collect()).collect();
        eprintln!("--- {}\n{}", look.join(" "), lines[lines.len().saturating_sub(24)..].join("\n"));
    }
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
    let Some(found) = poll(POLL_INTERVAL, PATIENCE, probe) else { panic!("waited {PATIENCE:?} in vain: {what}") };
    found
}
