//! The S3 server of the tests, for the demo and the bench: serves a bucket until it is killed.
//!
//! `s3-test-server DIRECTORY BUCKET [UPLOAD [OSS-ADDRESS]]`: objects lie below DIRECTORY; the files below UPLOAD are stored
//! first. Prints `endpoint URL`, `access-key KEY`, `secret-key KEY`, `ready`; with an address these are of an OSS that
//! listens there and serves the same bucket until standard input ends.

#[allow(dead_code, unreachable_pub, reason = "shared with the tests, which use all of it")]
#[path = "support/s3.rs"]
mod s3;

#[allow(dead_code, unreachable_pub, reason = "shared with the tests, which use all of it")]
#[path = "support/oss.rs"]
mod oss;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, bucket, rest @ ..] = &arguments[..] else {
        return Err(std::io::Error::other("usage: s3-test-server DIRECTORY BUCKET [UPLOAD [OSS-ADDRESS]]"));
    };
    let root = PathBuf::from(directory);
    std::fs::create_dir_all(root.join(bucket))?;
    let server = s3::S3Server::start(&root, ([127, 0, 0, 1], 0).into()).await?;
    if let Some(from) = rest.first() {
        upload(&server.client(bucket), &PathBuf::from(from)).await?;
    }
    if let Some(address) = rest.get(1) {
        let oss = oss::OssServer::listen(&server, address.parse().map_err(std::io::Error::other)?).await?;
        println!("endpoint {}\naccess-key {}\nsecret-key {}\nready", oss.endpoint(), oss::ACCESS_KEY, oss::SECRET_KEY);
        // Nobody else would end it where it was started among other processes than the caller's.
        let ended = || std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        return tokio::task::spawn_blocking(ended).await?.map(drop);
    }
    println!("endpoint {}\naccess-key {}\nsecret-key {}\nready", server.endpoint(), s3::ACCESS_KEY, s3::SECRET_KEY);
    std::future::pending().await
}

/// Stores every file below `from` in a bucket, through S3.
async fn upload(client: &opendal::Operator, from: &Path) -> std::io::Result<()> {
    let mut waiting = vec![from.to_owned()];
    while let Some(directory) = waiting.pop() {
        for item in std::fs::read_dir(&directory)? {
            let path = item?.path();
            if path.is_dir() {
                waiting.push(path);
                continue;
            }
            let key = path.strip_prefix(from).map_err(std::io::Error::other)?.to_string_lossy().into_owned();
            client.write(&key, std::fs::read(&path)?).await.map_err(std::io::Error::other)?;
        }
    }
    Ok(())
}
