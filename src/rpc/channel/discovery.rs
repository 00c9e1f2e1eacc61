//! The background task of a channel: learns the members of the cluster, and detects when masters answer again.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use jindofs_proto::v1::{LookupRequest, StatusRequest, Target, target};

use crate::types::ROOT_INODE;

use super::{ChannelState, MasterChannel, admin, namespace};

/// A short-lived client, such as a single command, should not ask for what it will not use.
const FIRST: Duration = Duration::from_secs(1);
const INTERVAL: Duration = Duration::from_secs(10);
const WHILE_FAILING: Duration = Duration::from_millis(250);
const BUDGET: Duration = Duration::from_secs(2);

/// Starts the task at the first call. The task ends with the last clone of the channel.
pub(super) fn start(inner: &Arc<ChannelState>) {
    if !inner.discovering.swap(true, Ordering::Relaxed) {
        tokio::spawn(learn(Arc::downgrade(inner)));
    }
}

async fn learn(inner: Weak<ChannelState>) {
    let mut pause = FIRST;
    loop {
        tokio::time::sleep(pause).await;
        let Some(inner) = inner.upgrade() else { return };
        let channel = MasterChannel { inner, timeout: Some(BUDGET) };
        if channel.failing_since().is_some() {
            // A linearizable read, which only a quorum can answer: its success ends the failure state.
            let target = Target { target: Some(target::Target::Inode(ROOT_INODE)) };
            let request = LookupRequest { target: Some(target) };
            let probe = |to| {
                let request = request.clone();
                async move { namespace(to).lookup(request).await }
            };
            if channel.call_any("probe", probe).await.is_err() {
                pause = WHILE_FAILING;
                continue;
            }
        }
        refresh(&channel).await;
        pause = INTERVAL;
    }
}

async fn refresh(channel: &MasterChannel) {
    let status = channel.call_any("status", |to| async move { admin(to).status(StatusRequest {}).await }).await;
    let status = match status {
        Ok(status) => status,
        Err(error) => {
            tracing::debug!(%error, "members not learned");
            return;
        }
    };
    let addresses: Vec<_> =
        status.members.iter().map(|member| member.address.clone()).filter(|address| !address.is_empty()).collect();
    if !addresses.is_empty() {
        channel.inner.set_members(&status.cluster_uuid, &addresses);
    }
}
