//! What `jindofs dev` asks the masters, from threads without a runtime of their own.

use std::future::Future;
use std::time::Duration;

use jindofs_proto::v1::StatusResponse;

use crate::client::admin;
use crate::config::ClientConfig;
use crate::error::{Error, Result};
use crate::rpc::channel::MasterChannel;

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
