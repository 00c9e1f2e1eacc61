//! What a user finds: the operator installed, a bucket with files, and the guide's resources.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use super::{Namespace, eventually, kubectl, ok, program, text};
use crate::support::ROOT;
use crate::support::cluster::binary;

pub const KEY: &str = crate::support::oss::ACCESS_KEY;
pub const SECRET: &str = crate::support::oss::SECRET_KEY;
/// Name by which pods reach an object store that listens beside the control plane; buckets are names below it.
const HOST: &str = "oss.test";
/// The kernel chooses the port, so that each test has an object store of its own.
const LISTEN: &str = "192.168.50.254:0";

pub const PVC: &str = include_str!("../../deploy/samples/pvc.yaml");
pub const SECRET_YAML: &str = include_str!("../../deploy/samples/secret.yaml");
pub const POD: &str = include_str!("../../deploy/samples/pod.yaml");

/// Installs what `make manifest` prints, once, and waits until it runs everywhere.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let manifest = Command::new(format!("{ROOT}/deploy/manifest")).output().expect("it runs");
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), ok(&manifest)).expect("written");
        ok(&kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &file.path().display().to_string()]));
        for what in ["deployment/jindofs-operator", "daemonset/jindofs-csi"] {
            ok(&kubectl(&["-n", "jindofs-system", "rollout", "status", what, "--timeout=120s"]));
        }
    });
}

/// The turn of a test that kills clients or the node plugin. The plugin holds the mount of a client that is killed: if one
/// test killed the plugin of a node while another one kills a client there, open files would end.
pub fn kill_clients_alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a script of the cluster that the tests bring along.
pub fn script(name: &str, arguments: &[&str]) -> Output {
    Command::new(format!("{ROOT}/tests/kube/cluster/{name}")).args(arguments).output().expect("it runs")
}

/// An OSS with files in `guide/data`. It ends with this value.
pub struct Oss {
    server: Child,
    /// URL under which pods reach it.
    pub endpoint: String,
    /// The files, as they must be read.
    pub files: PathBuf,
    objects: tempfile::TempDir,
}

impl Oss {
    /// Stores `files`, by name and content, and serves them.
    pub fn start(files: &[(&str, Vec<u8>)]) -> Oss {
        let objects = tempfile::tempdir().expect("tempdir");
        let upload = objects.path().join("upload");
        for (name, content) in files {
            let path = upload.join("data").join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            std::fs::write(path, content).expect("written");
        }
        let program = binary("s3-test-server");
        let mut server = Command::new(format!("{ROOT}/tests/kube/cluster/control"))
            .arg("exec")
            .arg(program)
            .args([&objects.path().join("objects"), Path::new("guide"), &upload, Path::new(LISTEN)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it runs");
        let lines = BufReader::new(server.stdout.take().expect("a pipe")).lines();
        let lines: Vec<String> = lines.map_while(Result::ok).take_while(|line| line != "ready").collect();
        let address = lines.iter().find_map(|line| line.strip_prefix("endpoint http://")?.parse::<SocketAddr>().ok());
        let port = address.unwrap_or_else(|| panic!("the object store did not start: {lines:?}")).port();
        Oss { server, endpoint: format!("http://{HOST}:{port}"), files: upload.join("data"), objects }
    }

    /// The Dataset and JindoRuntime of the guide, for this object store.
    pub fn dataset(&self) -> String {
        dataset(&self.endpoint)
    }

    /// The object with this name, as a file.
    pub fn stored(&self, name: &str) -> PathBuf {
        self.objects.path().join("objects/guide/data").join(name)
    }
}

impl Drop for Oss {
    fn drop(&mut self) {
        // It ends with its standard input.
        drop(self.server.stdin.take());
        let _ = self.server.wait();
    }
}

/// A directory with the files of the guide, in which its commands are run as they are written there.
pub struct Guide {
    pub dir: tempfile::TempDir,
    /// Namespace that the commands mean, as they name none.
    pub namespace: String,
    /// `None` for the default namespace.
    space: Option<Namespace>,
}

impl Guide {
    /// Writes the files; only bucket, endpoint and keys are filled in. Commands mean a namespace of this test alone.
    pub fn new(test: &str, oss: &Oss) -> Guide {
        let space = Namespace::new(test);
        let guide = Guide::write_files(space.name.clone(), Some(space), oss);
        // Whole, with the certificates in it: the file that it comes from may name others beside it.
        let config = ok(&kubectl(&["config", "view", "--raw", "--minify", "--flatten", "-o", "json"]));
        let mut config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
        config["contexts"][0]["context"]["namespace"] = guide.namespace.clone().into();
        std::fs::write(guide.kubeconfig(), config.to_string()).expect("written");
        guide
    }

    /// As [`Guide::new`], in the default namespace, as a user does it. Only one test at a time may do so.
    pub fn in_default_namespace(oss: &Oss) -> Guide {
        Guide::write_files("default".to_owned(), None, oss)
    }

    fn write_files(namespace: String, space: Option<Namespace>, oss: &Oss) -> Guide {
        let guide = Guide { dir: tempfile::tempdir().expect("tempdir"), namespace, space };
        let secret = SECRET_YAML.replacen("******", KEY, 1).replacen("******", SECRET, 1);
        let files = [("pvc", PVC.to_owned()), ("secret", secret), ("dataset", oss.dataset()), ("pod", POD.to_owned())];
        for (name, yaml) in files {
            guide.write(name, &yaml);
        }
        guide
    }

    /// Configuration of `kubectl` whose namespace is the one of this test.
    fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    pub fn write(&self, name: &str, yaml: &str) {
        std::fs::write(self.dir.path().join(format!("{name}.yaml")), yaml).expect("written");
    }

    /// Runs a line of the guide in a shell that has `kubectl`.
    pub fn run(&self, line: &str) -> Output {
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", line]).current_dir(self.dir.path());
        let mut path = std::env::var("PATH").unwrap_or_default();
        if let Some(parent) = Path::new(&program()).parent() {
            path = format!("{}:{path}", parent.display());
        }
        if self.space.is_some() {
            shell.env("KUBECONFIG", self.kubeconfig());
        }
        shell.env("PATH", path).stdin(Stdio::null()).output().expect("bash runs")
    }

    /// What a line prints, which must succeed.
    #[track_caller]
    pub fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {}", text(&output));
        // Newer kubectls than the guide's say where from.
        String::from_utf8_lossy(&output.stdout).replace(&format!(" from {} namespace", self.namespace), "")
    }

    /// Waits until a pod runs.
    pub fn wait_ready(&self, pod: &str) {
        self.ok(&format!("kubectl wait --for=condition=Ready pod/{pod} --timeout=120s"));
    }

    /// Fields of the row of `kubectl get dataset`, once its phase is Bound and its size is known.
    pub fn bound(&self) -> Vec<String> {
        eventually("the Dataset is Bound and its size is known", || {
            let shown = self.ok("kubectl get dataset demo --no-headers");
            let row: Vec<String> = shown.split_whitespace().map(str::to_owned).collect();
            (row.get(5).is_some_and(|phase| phase == "Bound") && row[1] != "[Calculating]").then_some(row)
        })
    }
}

impl Drop for Guide {
    fn drop(&mut self) {
        if std::thread::panicking() && self.space.is_none() {
            super::show(&self.namespace);
            // The next test finds the names free.
            self.run(
                "ls *.yaml | grep -vE '^(dataset|pvc|secret)' | sed 's/^/-f /' | xargs kubectl delete --ignore-not-found --timeout=30s
                 for one in dataset pvc secret; do kubectl delete -f $one.yaml --ignore-not-found --timeout=60s; done",
            );
        }
    }
}

/// The Dataset and JindoRuntime of the guide, for the bucket of an [`Oss`] with this endpoint.
pub fn dataset(endpoint: &str) -> String {
    super::GUIDE.replace("<OSS_BUCKET>/<BUCKET_DIR>", "guide/data").replace("<OSS_BUCKET_ENDPOINT>", endpoint)
}
