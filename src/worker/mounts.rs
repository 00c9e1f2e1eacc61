//! The mount table as last heard, kept on disk so that a worker fills without a master, also after a restart.

use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use jindofs_proto::v1::{ListMountsRequest, ListMountsResponse, Mount};
use prost::Message;

use crate::error::{Error, ErrorKind, Result};
use crate::rpc::channel::{MasterChannel, namespace};
use crate::runtime::{read_lock, write_durably, write_lock};

/// How long masters are asked for a mount that is not known yet.
const ASK: Duration = Duration::from_secs(3);

/// The table, and where it is kept.
#[derive(Debug)]
pub(super) struct Mounts {
    path: PathBuf,
    channel: MasterChannel,
    table: RwLock<Arc<ListMountsResponse>>,
}

impl Mounts {
    pub(super) fn open(dir: &Path, channel: MasterChannel) -> Result<Mounts> {
        let path = dir.join("mounts");
        let table = match std::fs::read(&path) {
            // A damaged table is as good as none: masters tell it again.
            Ok(bytes) => ListMountsResponse::decode(&bytes[..]).unwrap_or_default(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => ListMountsResponse::default(),
            Err(error) => return Err(Error::from(error).context(path.display())),
        };
        Ok(Mounts { path, channel, table: RwLock::new(Arc::new(table)) })
    }

    fn table(&self) -> Arc<ListMountsResponse> {
        read_lock(&self.table).clone()
    }

    /// Version of the table; 0 before the first.
    pub(super) fn version(&self) -> u64 {
        self.table().version
    }

    /// Takes over a newer table; older ones come from masters that lag.
    pub(super) fn learn(&self, version: u64, mounts: Vec<Mount>) -> Result<()> {
        let mut table = write_lock(&self.table);
        if version <= table.version {
            return Ok(());
        }
        let newer = ListMountsResponse { mounts, version };
        write_durably(&self.path, &newer.encode_to_vec())
            .map_err(|error| Error::from(error).context(self.path.display()))?;
        *table = Arc::new(newer);
        Ok(())
    }

    /// The mount with this id; masters are asked if it is not known.
    ///
    /// *Errors*: `Stale` when it does not exist; those of the channel.
    pub(super) async fn get(&self, id: u32) -> Result<Mount> {
        let find = |table: &ListMountsResponse| table.mounts.iter().find(|mount| mount.id == id).cloned();
        if let Some(mount) = find(&self.table()) {
            return Ok(mount);
        }
        let send = |to| async move { namespace(to).list_mounts(ListMountsRequest {}).await };
        let news = self.channel.with_timeout(ASK).call_any("list mounts", send).await?;
        let found = find(&news);
        self.learn(news.version, news.mounts)?;
        found.ok_or_else(|| Error::new(ErrorKind::Stale, format!("mount {id} of the file does not exist any more")))
    }
}
