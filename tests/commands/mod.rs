//! The commands themselves: their output, what they are told, and what they say.

mod addresses;
mod checks;
mod detach;
mod jobs;
mod mounts;
mod output;

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use jindofs::client::namespace::Namespace;
use jindofs_proto::v1::Mount;

use crate::support::cluster::{Cluster, PATIENCE, binary};
use crate::support::s3::{ACCESS_KEY, S3Server, SECRET_KEY};
use crate::support::{free_port, wait_for};

/// A program with nothing in its environment that would set it up.
fn program(name: &str, arguments: &[impl AsRef<OsStr>]) -> Command {
    let mut command = Command::new(binary("jindofs").with_file_name(name));
    command.args(arguments).env_remove("JINDOFS_MASTERS");
    command
}

fn run(name: &str, arguments: &[impl AsRef<OsStr>]) -> Output {
    program(name, arguments).output().expect("runs")
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A master that was started by its own command line.
struct SoleMaster {
    process: Child,
    address: String,
    raft_address: String,
    _dir: tempfile::TempDir,
}

impl SoleMaster {
    /// Starts it at `host`, which is an address of this machine.
    fn start(host: &str, log: Stdio) -> SoleMaster {
        SoleMaster::start_with(host, log, |_| Vec::new())
    }

    /// As [`SoleMaster::start`], with further arguments made from its Raft address.
    fn start_with(host: &str, log: Stdio, more: impl FnOnce(&str) -> Vec<String>) -> SoleMaster {
        let dir = tempfile::tempdir().expect("tempdir");
        let meta = dir.path().join("meta").display().to_string();
        let ports = [free_port(), free_port(), free_port()].map(|port| port.to_string());
        let at = |port: &str| if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let (address, raft_address) = (at(&ports[0]), at(&ports[1]));
        let named = ["--host", host, "--bind", host, "--meta-dir", &meta];
        let listening = ["--rpc-port", &ports[0], "--raft-port", &ports[1], "--http-port", &ports[2]];
        let mut command = program("jindofs", &[&["master"], &named[..], &listening[..]].concat());
        let process = command.args(more(&raft_address)).stderr(log).spawn().expect("runs");
        SoleMaster { process, address, raft_address, _dir: dir }
    }

    fn provision(&self) -> Output {
        let uuid = "00000000-0000-4000-8000-000000000001";
        run("jindoctl", &["--masters", &self.address, "cluster", "provision", uuid])
    }

    /// Founds its cluster as soon as it answers.
    fn found(&self) {
        wait_for("the cluster is founded", PATIENCE, || self.provision().status.success().then_some(()));
    }
}

impl Drop for SoleMaster {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Masters, and a bucket that is not mounted.
struct Store {
    s3: S3Server,
    bucket: opendal::Operator,
    secret: std::path::PathBuf,
    dir: tempfile::TempDir,
}

impl Store {
    async fn start() -> Store {
        let dir = tempfile::tempdir().expect("tempdir");
        let root = dir.path().join("s3");
        std::fs::create_dir_all(root.join("bucket")).expect("mkdir");
        let secret = dir.path().join("secret");
        std::fs::write(&secret, SECRET_KEY).expect("written");
        let s3 = S3Server::start(&root, ([127, 0, 0, 1], 0).into()).await.expect("an S3 server");
        let bucket = s3.client("bucket");
        Store { s3, bucket, secret, dir }
    }

    fn options(&self) -> Vec<String> {
        vec![
            format!("fs.s3.endpoint={}", self.s3.endpoint()),
            format!("fs.s3.accessKeyId={ACCESS_KEY}"),
            secret_in(&self.secret),
        ]
    }

    /// Mounts the bucket at `/s3`.
    async fn mount(&self, client: &Namespace) {
        let pair = |option: String| option.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())).expect("K=V");
        let mount = Mount {
            path: "/s3".into(),
            ufs_uri: "s3://bucket".to_owned(),
            options: self.options().into_iter().map(pair).collect(),
            ..Mount::default()
        };
        client.add_mount(mount).await.expect("mounted");
    }
}

fn secret_in(file: &Path) -> String {
    format!("fs.s3.accessKeySecret=file:{}", file.display())
}

/// Runs `jindoctl` off the threads that serve S3.
async fn ctl(cluster: &Cluster, arguments: &[&str]) -> Output {
    let masters = cluster.dev.masters().join(",");
    let arguments: Vec<String> = ["--masters", &masters].iter().chain(arguments).map(|one| (*one).to_owned()).collect();
    tokio::task::spawn_blocking(move || run("jindoctl", &arguments)).await.expect("no panic")
}
