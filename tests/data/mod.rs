//! Reading real files: under-storage, workers and a kernel mount, and what must hold while parts of it are gone.

mod ahead;
mod bad_input;
mod behind;
mod cache;
mod conformance;
mod crashes;
mod directories;
mod drain;
mod empty;
mod endings;
mod far_times;
mod faults;
mod fresh_names;
mod full;
mod handover;
mod invalidated;
mod leaders;
mod listings;
mod locks;
mod metadata;
mod mount;
mod moves;
mod offline;
mod oss;
mod prefixes;
mod programs;
mod refreshed;
mod refused;
mod registers;
mod remount;
mod requests;
mod rivals;
mod sessions;
mod silent;
mod space;
mod start;
mod storms;
mod tree;
mod unsaved;
mod vanished;
mod versions;
mod writes;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use jindofs::dev::{DevOptions, UfsMount};

use crate::support::cluster::{Cluster, PATIENCE, binary};
use crate::support::s3::{ACCESS_KEY, S3Server, SECRET_KEY};
use crate::support::wait_for;

/// Bytes of a block.
const BLOCK: usize = 4 << 20;

/// A cluster over a local directory at `/local` and a bucket at `/s3`, with a mount.
struct Site {
    cluster: Cluster,
    s3: S3Server,
    bucket: opendal::Operator,
    mnt: PathBuf,
    local: PathBuf,
    secret: PathBuf,
    dir: tempfile::TempDir,
}

/// Starts masters and two workers; the change may do more.
async fn start(masters: usize, change: impl FnOnce(&mut DevOptions) + Send) -> Site {
    let dir = tempfile::tempdir().expect("tempdir");
    let [mnt, local, s3] = ["mnt", "local", "s3"].map(|name| dir.path().join(name));
    for made in [&mnt, &local, &s3.join("bucket")] {
        std::fs::create_dir_all(made).expect("mkdir");
    }
    let secret = dir.path().join("secret");
    std::fs::write(&secret, SECRET_KEY).expect("written");
    let s3 = S3Server::start(&s3, ([127, 0, 0, 1], 0).into()).await.expect("an S3 server");
    let bucket = s3.client("bucket");
    let options = s3_options(&s3, &secret);
    let cluster = Cluster::start_with(masters, |dev| {
        dev.workers = 2;
        dev.worker_quota = 256 << 20;
        dev.mounts = vec![mnt.clone()];
        dev.ufs = vec![
            UfsMount { path: "/local".into(), uri: format!("local://{}", local.display()) },
            UfsMount { path: "/s3".into(), uri: "s3://bucket".into() },
        ];
        for option in &options {
            dev.add_ufs_option(option).expect("an option");
        }
        change(dev);
    });
    Site { cluster, s3, bucket, mnt, local, secret, dir }
}

fn s3_options(s3: &S3Server, secret: &Path) -> Vec<String> {
    vec![
        format!("fs.s3.endpoint={}", s3.endpoint()),
        format!("fs.s3.accessKeyId={ACCESS_KEY}"),
        format!("fs.s3.accessKeySecret=file:{}", secret.display()),
    ]
}

impl Site {
    fn ctl(&self, arguments: &[&str]) -> Output {
        let masters = self.cluster.dev.masters().join(",");
        Command::new(binary("jindoctl")).args(["--masters", &masters]).args(arguments).output().expect("runs")
    }

    /// Output of a command that must succeed.
    fn ctl_ok(&self, arguments: &[&str]) -> Vec<u8> {
        let output = self.ctl(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// Puts an object through S3.
    async fn put(&self, key: &str, content: &[u8]) {
        self.bucket.write(key, content.to_vec()).await.expect("stored");
    }

    /// Reads a file of the mount, off the threads that serve S3.
    async fn read(&self, path: &str) -> std::io::Result<Vec<u8>> {
        let path = self.mnt.join(path);
        tokio::task::spawn_blocking(move || std::fs::read(path)).await.expect("no panic")
    }

    /// Names in a directory of the mount, sorted.
    async fn names(&self, path: &str) -> Vec<String> {
        let path = self.mnt.join(path);
        let list = move || -> std::io::Result<Vec<String>> {
            let mut names = Vec::new();
            for item in std::fs::read_dir(path)? {
                names.push(item?.file_name().to_string_lossy().into_owned());
            }
            names.sort();
            Ok(names)
        };
        tokio::task::spawn_blocking(list).await.expect("no panic").expect("listed")
    }

    /// Waits until the masters know of this many bytes cached.
    fn wait_cached(&self, bytes: u64) {
        wait_for("the workers have reported", PATIENCE, || {
            let report: serde_json::Value = serde_json::from_slice(&self.ctl_ok(&["report", "-o", "json"])).ok()?;
            let cached = report["mounts"].as_array()?.iter().filter_map(|mount| mount["cached_bytes"].as_u64());
            (cached.sum::<u64>() == bytes).then_some(())
        });
    }
}

/// Bytes that repeat nowhere near a block.
pub(crate) fn content(length: usize, salt: u32) -> Vec<u8> {
    let mut state = salt.wrapping_mul(2_654_435_761).max(1);
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// How long cached attributes may be old.
const TTL: Duration = Duration::from_secs(1);
