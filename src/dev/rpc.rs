//! What `jindofs dev` asks the masters, from threads without a runtime of their own.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use jindofs_proto::v1::{Mount, StatusResponse};

use super::UfsMount;
use crate::client::{Namespace, admin};
use crate::config::ClientConfig;
use crate::error::{Error, Result};
use crate::rpc::channel::MasterChannel;
use crate::types::address::without_credentials;

/// Longest wait for one answer.
const BUDGET: Duration = Duration::from_secs(2);

/// Runs a future to its end on a thread of its own, so that it may be called from inside a runtime too.
fn run<T: Send>(future: impl Future<Output = Result<T>> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(future)
        });
        thread.join().unwrap_or_else(|_| Err(Error::internal("a request to a master has panicked")))
    })
}

fn channel(address: &str, timeout: Duration) -> MasterChannel {
    MasterChannel::new(&ClientConfig { masters: vec![address.to_owned()], rpc_timeout: timeout, hard: false })
}

/// What the master at `address` says of itself and the cluster.
pub(super) fn status(address: &str) -> Result<StatusResponse> {
    run(async { admin::status(&channel(address, BUDGET), address, BUDGET).await })
}

/// Founds the cluster at the first master; returns its voters.
pub(super) fn provision(address: &str, uuid: [u8; 16], patience: Duration) -> Result<Vec<u64>> {
    run(async {
        admin::provision(&channel(address, patience), address, uuid, patience).await.map(|answer| answer.voters)
    })
}

/// Mounts what is not mounted yet.
pub(super) fn add_mounts(
    masters: Vec<String>,
    ufs: &[UfsMount],
    options: &BTreeMap<String, String>,
    patience: Duration,
) -> Result<()> {
    run(async {
        let client = Namespace::new(&ClientConfig { masters, rpc_timeout: patience, hard: false });
        let known = client.mounts().await?.mounts;
        for one in ufs.iter().filter(|one| !known.iter().any(|mount| mount.path == one.path.as_bytes())) {
            // Each takes the options of its scheme.
            let scheme = one.uri.split("://").next().unwrap_or_default();
            let takes = |key: &str| scheme != "local" || key.starts_with("fs.local.");
            let mount = Mount {
                path: one.path.clone().into_bytes().into(),
                ufs_uri: one.uri.clone(),
                options: options.iter().filter(|(key, _)| takes(key)).map(|(k, v)| (k.clone(), v.clone())).collect(),
                ..Mount::default()
            };
            client
                .add_mount(mount)
                .await
                .map_err(|error| error.context(format!("--ufs {}", without_credentials(&one.uri))))?;
        }
        client.session().close().await;
        Ok(())
    })
}

/// True if the process with this HTTP address says that it is ready.
pub(super) fn is_ready(http: &str) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(http)?;
        stream.set_read_timeout(Some(BUDGET))?;
        stream.write_all(format!("GET /readyz HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}
