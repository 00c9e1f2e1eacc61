//! The image: the same bytes each time, and nothing missing in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::ROOT;
use crate::support::cluster::binary;

fn pack(archive: &Path, arguments: &[&str]) -> Output {
    let binaries = binary("jindofs").parent().expect("a directory").to_owned();
    Command::new(format!("{ROOT}/deploy/image/pack"))
        .arg(binaries)
        .arg(archive)
        .args(arguments)
        .output()
        .expect("python3 runs")
}

/// Unpacks the one layer of an archive.
fn unpack(archive: &Path, root: &Path) -> serde_json::Value {
    let parts = root.join("parts");
    let rootfs = root.join("rootfs");
    for made in [&parts, &rootfs] {
        std::fs::create_dir_all(made).expect("mkdir");
    }
    let tar = |arguments: &[&std::ffi::OsStr]| {
        assert!(Command::new("tar").args(arguments).status().expect("tar runs").success());
    };
    tar(&["-xf".as_ref(), archive.as_os_str(), "-C".as_ref(), parts.as_os_str()]);
    let read = |path: PathBuf| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(path).expect("read")).expect("JSON")
    };
    let blob = |digest: &serde_json::Value| {
        parts.join("blobs/sha256").join(digest.as_str().and_then(|one| one.split_once(':')).expect("a digest").1)
    };
    let index = read(parts.join("index.json"));
    let manifest = read(blob(&index["manifests"][0]["digest"]));
    let layer = blob(&manifest["layers"][0]["digest"]);
    tar(&["-xzf".as_ref(), layer.as_os_str(), "-C".as_ref(), rootfs.as_os_str()]);
    read(blob(&manifest["config"]["digest"]))
}

#[test]
fn the_image_is_the_same_each_time_and_its_programs_start_with_nothing_else_there() {
    let dir = tempfile::tempdir().expect("tempdir");
    let [one, two] = ["one.tar", "two.tar"].map(|name| dir.path().join(name));
    for archive in [&one, &two] {
        let output = pack(archive, &["example.test/jindofs:v1"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(std::fs::read(&one).expect("read") == std::fs::read(&two).expect("read"), "two different images");
    let config = unpack(&one, dir.path());
    assert_eq!(config["config"]["User"], "10001:10001");
    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: starting the programs of the image needs root");
        return;
    }
    for program in ["jindofs", "jindoctl", "jindofs-operator"] {
        let mut command = Command::new("chroot");
        command.args(["--userspec=10001:10001".as_ref(), dir.path().join("rootfs").as_os_str()]);
        let output = command.arg(format!("/usr/local/bin/{program}")).arg("--version").output().expect("chroot runs");
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn an_image_of_a_bad_name_is_refused_and_not_written() {
    let dir = tempfile::tempdir().expect("tempdir");
    let archive = dir.path().join("image.tar");
    let output = pack(&archive, &["Not An Image"]);
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("HOST/PATH:TAG"));
    assert!(!archive.exists());
}
