//! Every bad input gets a clear error and changes nothing.

use std::process::{Command, Output};

use jindofs::client::namespace::at_path;
use jindofs::error::ErrorKind;
use jindofs_proto::v1::namespace_client::NamespaceClient;
use jindofs_proto::v1::{LookupRequest, MkdirRequest, Target, target};

use crate::support::cluster::{Cluster, binary};
use crate::support::free_port;
use crate::support::writers::{create_request, make_dir, names};

fn run(name: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary(name));
    command.args(arguments).env_remove("JINDOFS_MASTERS").output().expect("runs")
}

fn assert_refused(output: &Output, code: i32, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{text}");
    for word in words {
        assert!(text.contains(word), "expected {word:?} in: {text}");
    }
}

#[test]
fn an_unknown_config_key_is_named_with_its_nearest_neighbour() {
    let temp = tempfile::tempdir().expect("tempdir");
    let file = temp.path().join("master.toml");
    let meta = temp.path().join("meta");
    let text = format!("\"namespace.meta-dir\" = \"{}\"\n\"namespace.rpc.prot\" = 1\n", meta.display());
    std::fs::write(&file, text).expect("written");
    let config = file.to_str().expect("a path");
    assert_refused(&run("jindofs", &["master", "--config", config]), 2, &["namespace.rpc.prot", "namespace.rpc.port"]);
    assert!(!meta.exists(), "nothing was touched");
}

#[test]
fn a_port_in_use_is_named_with_its_setting() {
    let cluster = Cluster::start(1);
    let port = cluster.dev.masters()[0].rsplit_once(':').expect("host:port").1.to_owned();
    let meta = cluster.dir.path().join("other");
    let sets = [
        format!("namespace.meta-dir={}", meta.display()),
        "namespace.bind=127.0.0.1".to_owned(),
        "namespace.backend.raft.hostname=127.0.0.1".to_owned(),
        format!("namespace.rpc.port={port}"),
        "namespace.backend.raft.port=1".to_owned(),
    ];
    let mut arguments = vec!["master"];
    for set in &sets[..4] {
        arguments.extend(["--set", set]);
    }
    assert_refused(&run("jindofs", &arguments), 1, &[&port, "namespace.rpc.port"]);
    assert!(!meta.exists(), "nothing was touched");
}

#[test]
fn a_meta_dir_in_use_is_refused_and_its_owner_is_not_disturbed() {
    let cluster = Cluster::start(1);
    let meta = cluster.meta_dir("master-0");
    let before = std::fs::read(meta.join("IDENTITY")).expect("read");
    let sets = [
        format!("namespace.meta-dir={}", meta.display()),
        "namespace.bind=127.0.0.1".to_owned(),
        "namespace.backend.raft.hostname=127.0.0.1".to_owned(),
        format!("namespace.rpc.port={}", free_port()),
        format!("namespace.backend.raft.port={}", free_port()),
        format!("namespace.http.port={}", free_port()),
    ];
    let mut arguments = vec!["master"];
    for set in &sets {
        arguments.extend(["--set", set]);
    }
    assert_refused(&run("jindofs", &arguments), 1, &["in use by another process"]);
    assert_eq!(std::fs::read(meta.join("IDENTITY")).expect("read"), before);
}

#[test]
fn a_meta_dir_of_another_cluster_is_refused() {
    let (one, other) = (Cluster::start(3), Cluster::start(3));
    let name = one.followers().remove(0);
    one.dev.kill(&name).expect("killed");
    other.dev.kill("master-1").expect("killed");
    one.dev.wipe_meta(&name).expect("wiped");
    let foreign = other.meta_dir("master-1");
    one.dev.set(&name, "namespace.meta-dir", foreign.to_str().expect("a path")).expect("set");
    one.dev.launch(&name).expect("launched");
    let ended = one.dev.wait_end(&name, crate::support::cluster::PATIENCE).expect("it refuses to run");
    assert_eq!(ended.code(), Some(1));
    assert!(one.log_of(&name).contains("belongs to another"), "{}", one.log_of(&name));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_paths_beyond_the_limits_are_refused_and_odd_bytes_are_kept() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    make_dir(&client, "/d").await;
    let long_name = format!("/d/{}", "n".repeat(256));
    let error = client.create(create_request(&long_name)).await.expect_err("256 bytes");
    assert_eq!(error.kind, ErrorKind::NameTooLong, "{error}");
    let long_path = "/abcd".repeat(1000);
    let error = client.lookup(at_path(&long_path)).await.expect_err("5,000 bytes");
    assert_eq!(error.kind, ErrorKind::NameTooLong, "{error}");
    let error = client.create(create_request("relative")).await.expect_err("relative");
    assert_eq!(error.kind, ErrorKind::InvalidArgument, "{error}");
    assert!(names(&client, "/d").await.is_empty(), "nothing was made");

    let odd = b"/d/\xff\xfe\x01".to_vec();
    let request = MkdirRequest { target: Some(at_path(&odd)), mode: 0o755, ..MkdirRequest::default() };
    let made = client.mkdir(request).await.expect("names are bytes");
    assert_eq!(client.lookup(at_path(&odd)).await.expect("found").inode, made.inode);
    let masters = cluster.dev.masters().join(",");
    let output = run("jindoctl", &["--masters", &masters, "fs", "ls", "/d", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("json");
    assert_eq!(json[0]["name"], "\\xff\\xfe\\x01");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_100_megabytes_is_refused_and_the_master_serves_on() {
    let cluster = Cluster::start(1);
    let address = format!("http://{}", cluster.dev.masters()[0]);
    let mut client = NamespaceClient::connect(address).await.expect("connected").max_encoding_message_size(256 << 20);
    let path = target::Target::Path(vec![b'x'; 100 << 20].into());
    let huge = LookupRequest { target: Some(Target { target: Some(path) }) };
    client.lookup(huge).await.expect_err("too large");
    make_dir(&cluster.client(), "/after").await;
}

#[test]
fn jindoctl_says_what_is_wrong_and_exits_with_the_documented_code() {
    let cluster = Cluster::start(1);
    let masters = cluster.dev.masters().join(",");
    let ctl = |arguments: &[&str]| run("jindoctl", &[&["--masters", &masters], arguments].concat());
    assert_refused(&ctl(&["fs", "stat", "/nothing"]), 3, &["/nothing"]);
    assert_refused(&ctl(&["fs", "mkdir", "relative"]), 2, &["not absolute"]);
    assert_refused(&ctl(&["fs", "nonsense"]), 2, &["nonsense"]);
    assert_eq!(ctl(&["cluster", "status"]).status.code(), Some(0));
    let status = ctl(&["cluster", "status", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&status.stdout).expect("json");
    assert_eq!(json["quorum"], true);
    assert_eq!(json["members"][0]["role"], "leader");
    cluster.dev.kill("master-0").expect("killed");
    let down = ctl(&["cluster", "status", "-o", "json"]);
    assert_eq!(down.status.code(), Some(4));
    let json: serde_json::Value = serde_json::from_slice(&down.stdout).expect("json also without masters");
    assert_eq!(json["unreachable"].as_array().map(Vec::len), Some(1));
    assert_refused(&ctl(&["--timeout", "2", "fs", "ls", "/"]), 4, &["127.0.0.1"]);
}
