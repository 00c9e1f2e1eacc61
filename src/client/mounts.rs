//! The mount table as this client knows it: with it sources of files are found without asking a master.

use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use jindofs_proto::v1::{ListMountsRequest, Mount};

use crate::error::Result;
use crate::rpc::channel::{MasterChannel, namespace};
use crate::runtime::{read_lock, write_lock};

/// Age at which the table is read again when it is next needed.
const FRESH: Duration = Duration::from_secs(10);
/// Time a refresh may take while an older table is there.
const REFRESH_BUDGET: Duration = Duration::from_secs(1);

/// The mount table; an old one is kept while no master answers.
#[derive(Debug)]
pub struct Mounts {
    channel: MasterChannel,
    known: RwLock<Option<(Instant, Arc<Vec<Mount>>)>>,
}

impl Mounts {
    /// An empty table; the first question fills it.
    pub fn new(channel: MasterChannel) -> Mounts {
        Mounts { channel, known: RwLock::new(None) }
    }

    /// The mount with this id as last known, without asking.
    pub fn known(&self, id: u32) -> Option<Mount> {
        let known = read_lock(&self.known);
        known.as_ref().and_then(|(_, mounts)| mounts.iter().find(|mount| mount.id == id).cloned())
    }

    /// The mount whose root is this inode, or the only one there is, as last known.
    pub fn rooted_at(&self, inode: u64) -> Option<Mount> {
        let known = read_lock(&self.known);
        let (_, mounts) = known.as_ref()?;
        let rooted = mounts.iter().find(|mount| mount.root_inode == inode);
        rooted.or(if let [only] = &mounts[..] { Some(only) } else { None }).cloned()
    }

    /// The mount with this id; reads the table again when it is not known or old. `None` when there is no such mount.
    ///
    /// *Errors*: those of the channel, when nothing is known about the mount.
    pub async fn get(&self, id: u32) -> Result<Option<Mount>> {
        let fresh = {
            let known = read_lock(&self.known);
            known.as_ref().is_some_and(|(since, _)| since.elapsed() < FRESH)
        };
        let mount = self.known(id);
        if mount.is_some() && (fresh || self.channel.failing_since().is_some()) {
            return Ok(mount);
        }
        let channel = if mount.is_some() { self.channel.with_timeout(REFRESH_BUDGET) } else { self.channel.clone() };
        match self.refresh(&channel).await {
            Ok(()) => Ok(self.known(id)),
            Err(error) if mount.is_none() => Err(error),
            Err(_) => Ok(mount),
        }
    }

    /// Reads the table again if it is old, or was never read; an old one stays while no master answers.
    pub async fn keep_fresh(&self) {
        let fresh = {
            let known = read_lock(&self.known);
            known.as_ref().is_some_and(|(since, _)| since.elapsed() < FRESH)
        };
        if !fresh && let Err(error) = self.refresh(&self.channel.with_timeout(REFRESH_BUDGET)).await {
            tracing::debug!(%error, "mount table not refreshed, the last one is kept");
        }
    }

    async fn refresh(&self, channel: &MasterChannel) -> Result<()> {
        let send = |to| async move { namespace(to).list_mounts(ListMountsRequest {}).await };
        let mounts = channel.call_any("list mounts", send).await?.mounts;
        *write_lock(&self.known) = Some((Instant::now(), Arc::new(mounts)));
        Ok(())
    }
}
