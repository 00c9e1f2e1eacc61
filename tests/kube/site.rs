//! What a user finds: the operator installed, a bucket with files, and the guide's resources.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Once;

use super::{eventually, kubectl, ok, program, text};
use crate::support::cluster::binary;

pub const KEY: &str = crate::support::oss::ACCESS_KEY;
pub const SECRET: &str = crate::support::oss::SECRET_KEY;
/// Where pods reach what listens beside the control plane; buckets are names below it.
pub const ENDPOINT: &str = "http://oss.test:9000";
const LISTEN: &str = "192.168.50.254:9000";

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
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

/// Runs a script of the cluster that the tests bring along.
pub fn script(name: &str, arguments: &[&str]) -> Output {
    Command::new(format!("{ROOT}/tests/kube/cluster/{name}")).args(arguments).output().expect("it runs")
}

/// An OSS with files in `guide/data`. It ends with this value.
pub struct Oss {
    server: Child,
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
        let program = binary("jindofs").with_file_name("examples").join("s3-test-server");
        let mut server = Command::new(format!("{ROOT}/tests/kube/cluster/control"))
            .arg("exec")
            .arg(program)
            .args([&objects.path().join("objects"), Path::new("guide"), &upload, Path::new(LISTEN)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it runs");
        let lines = BufReader::new(server.stdout.take().expect("a pipe")).lines();
        let ready = lines.map_while(Result::ok).any(|line| line == "ready");
        assert!(ready, "the object store did not start");
        Oss { server, files: upload.join("data"), objects }
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
}

impl Guide {
    /// Writes the files; only bucket, endpoint and keys are filled in.
    pub fn new() -> Guide {
        let guide = Guide { dir: tempfile::tempdir().expect("tempdir") };
        let secret = SECRET_YAML.replacen("******", KEY, 1).replacen("******", SECRET, 1);
        let files = [("pvc", PVC.to_owned()), ("secret", secret), ("dataset", dataset()), ("pod", POD.to_owned())];
        for (name, yaml) in files {
            guide.write(name, &yaml);
        }
        guide
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
        shell.env("PATH", path).stdin(Stdio::null()).output().expect("bash runs")
    }

    /// What a line prints, which must succeed.
    #[track_caller]
    pub fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {}", text(&output));
        // Newer kubectls than the guide's say where from.
        String::from_utf8_lossy(&output.stdout).replace(" from default namespace", "")
    }

    /// Waits until a pod of the default namespace runs.
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
        if std::thread::panicking() {
            super::show("default");
            // The next test finds the names free.
            self.run(
                "ls *.yaml | grep -vE '^(dataset|pvc|secret)' | sed 's/^/-f /' | xargs kubectl delete --ignore-not-found --timeout=30s
                 for one in dataset pvc secret; do kubectl delete -f $one.yaml --ignore-not-found --timeout=60s; done",
            );
        }
    }
}

/// The Dataset and JindoRuntime of the guide, for the bucket of [`Oss`].
pub fn dataset() -> String {
    super::GUIDE.replace("<OSS_BUCKET>/<BUCKET_DIR>", "guide/data").replace("<OSS_BUCKET_ENDPOINT>", ENDPOINT)
}
