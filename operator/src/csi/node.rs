//! `csi.v1.Node`: what the kubelet asks for a pod. Every call may be repeated; of two for one volume the second is told to
//! come back.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jindofs_proto::csi::node_server::Node;
use jindofs_proto::csi::node_service_capability::rpc::Type as Capability;
use jindofs_proto::csi::node_service_capability::{Rpc, Type};
use jindofs_proto::csi::volume_capability::AccessType;
use jindofs_proto::csi::volume_usage::Unit;
use jindofs_proto::csi::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse,
    NodeGetInfoRequest, NodeGetInfoResponse, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse,
    NodePublishVolumeRequest, NodePublishVolumeResponse, NodeServiceCapability, NodeStageVolumeRequest,
    NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse, NodeUnstageVolumeRequest,
    NodeUnstageVolumeResponse, VolumeCapability, VolumeCondition, VolumeUsage,
};
use tonic::{Request, Response, Status};

use super::mounts::{table, top};
use super::published::{Published, Volume};
use crate::desired::NODE_DIRECTORY;

/// How long one call waits for a client to mount; the kubelet asks again.
const WAIT: Duration = Duration::from_secs(60);
/// Pause between two looks at the mount table.
const LOOK: Duration = Duration::from_millis(100);
/// How long a file system may take to say how full it is.
const STATS: Duration = Duration::from_secs(2);

/// The service.
#[derive(Debug)]
pub(super) struct NodeService {
    node: String,
    published: Arc<Published>,
    busy: Arc<Mutex<HashSet<String>>>,
}

/// One call at a time for a volume.
#[derive(Debug)]
struct Turn {
    busy: Arc<Mutex<HashSet<String>>>,
    key: String,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

fn given<'a>(value: &'a str, field: &str) -> Result<&'a str, Status> {
    if value.is_empty() { Err(Status::invalid_argument(format!("{field} is missing"))) } else { Ok(value) }
}

fn mountable(capability: Option<&VolumeCapability>) -> Result<(), Status> {
    match capability.map(|capability| &capability.access_type) {
        None => Err(Status::invalid_argument("volume_capability is missing")),
        Some(Some(AccessType::Block(_))) => {
            Err(Status::invalid_argument("a Dataset is mounted, not used as a block device"))
        }
        Some(_) => Ok(()),
    }
}

/// Mount of the client, as the volume's attributes say: nothing outside of the directory of all mounts.
fn source(context: &std::collections::BTreeMap<String, String>) -> Result<PathBuf, Status> {
    let path =
        PathBuf::from(given(context.get("fluid_path").map_or("", String::as_str), "volume_context[fluid_path]")?);
    if !path.starts_with(NODE_DIRECTORY) || path.components().any(|part| part == Component::ParentDir) {
        let message = format!("fluid_path {} is not below {NODE_DIRECTORY}", path.display());
        return Err(Status::invalid_argument(message));
    }
    Ok(path)
}

fn below(context: &std::collections::BTreeMap<String, String>) -> Result<PathBuf, Status> {
    let text = context.get("fluid_sub_path").map_or("", |text| text.trim_start_matches('/'));
    let path = PathBuf::from(text);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    if plain { Ok(path) } else { Err(Status::invalid_argument(format!("fluid_sub_path {text:?} leaves the volume"))) }
}

fn is_mounted(path: &Path) -> bool {
    table().is_ok_and(|table| top(&table, path).is_some_and(|one| one.kind.starts_with("fuse")))
}

/// Waits until the client on this node has mounted.
async fn mounted(path: &Path) -> Result<(), Status> {
    let found = tokio::time::timeout(WAIT, async {
        while !is_mounted(path) {
            tokio::time::sleep(LOOK).await;
        }
    });
    found.await.map_err(|_| {
        let message = format!("nothing is mounted at {} yet: look at the FUSE pod of this node", path.display());
        Status::unavailable(message)
    })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| Status::internal(error.to_string()))?;
    done.map_err(|error| Status::internal(error.to_string()))
}

impl NodeService {
    pub(super) fn new(node: String, published: Arc<Published>) -> NodeService {
        NodeService { node, published, busy: Arc::default() }
    }

    fn turn(&self, key: impl Into<String>) -> Result<Turn, Status> {
        let key = key.into();
        if !self.busy.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone()) {
            return Err(Status::aborted(format!("another call for {key} is under way")));
        }
        Ok(Turn { busy: self.busy.clone(), key })
    }

    /// How full a mount is; what is wrong with it if it does not say.
    async fn usage(&self, path: PathBuf) -> Result<Vec<VolumeUsage>, String> {
        // One that hangs keeps its thread: no second one is spent on it.
        let turn =
            self.turn(format!("statistics of {}", path.display())).map_err(|_| "it does not answer".to_owned())?;
        let asked = tokio::task::spawn_blocking(move || {
            let answer = rustix::fs::statvfs(&path);
            drop(turn);
            answer
        });
        let answer = tokio::time::timeout(STATS, asked).await.map_err(|_| "it does not answer".to_owned())?;
        let stat = answer.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        let whole = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let bytes = |blocks: u64| whole(blocks.saturating_mul(stat.f_frsize));
        Ok(vec![
            VolumeUsage {
                available: bytes(stat.f_bavail),
                total: bytes(stat.f_blocks),
                used: bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
                unit: Unit::Bytes.into(),
            },
            VolumeUsage {
                available: whole(stat.f_ffree),
                total: whole(stat.f_files),
                used: whole(stat.f_files.saturating_sub(stat.f_ffree)),
                unit: Unit::Inodes.into(),
            },
        ])
    }
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let request = request.into_inner();
        let _turn = self.turn(given(&request.volume_id, "volume_id")?)?;
        given(&request.staging_target_path, "staging_target_path")?;
        mountable(request.volume_capability.as_ref())?;
        mounted(&source(&request.volume_context)?).await?;
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let request = request.into_inner();
        let _turn = self.turn(given(&request.volume_id, "volume_id")?)?;
        given(&request.staging_target_path, "staging_target_path")?;
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        given(&request.volume_id, "volume_id")?;
        let target = PathBuf::from(given(&request.target_path, "target_path")?);
        let _turn = self.turn(request.target_path.clone())?;
        mountable(request.volume_capability.as_ref())?;
        let source = source(&request.volume_context)?;
        // After a restart of the node nothing is staged, and the kubelet may not stage again.
        mounted(&source).await?;
        let directory = below(&request.volume_context)?;
        let published = self.published.clone();
        let volume = Volume { target, source, directory, read_only: request.readonly };
        blocking(move || published.publish(volume)).await?;
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        given(&request.volume_id, "volume_id")?;
        let target = PathBuf::from(given(&request.target_path, "target_path")?);
        let _turn = self.turn(request.target_path.clone())?;
        let published = self.published.clone();
        blocking(move || published.unpublish(&target)).await?;
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        given(&request.volume_id, "volume_id")?;
        let path = PathBuf::from(given(&request.volume_path, "volume_path")?);
        if !table().is_ok_and(|table| top(&table, &path).is_some()) {
            return Err(Status::not_found(format!("nothing is mounted at {}", path.display())));
        }
        let (usage, condition) = match self.usage(path).await {
            Ok(usage) => (usage, VolumeCondition { abnormal: false, message: "mounted".to_owned() }),
            Err(why) => (Vec::new(), VolumeCondition { abnormal: true, message: why }),
        };
        Ok(Response::new(NodeGetVolumeStatsResponse { usage, volume_condition: Some(condition) }))
    }

    async fn node_expand_volume(
        &self,
        _request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        Err(Status::unimplemented("a Dataset is as large as its under-storage"))
    }

    async fn node_get_capabilities(
        &self,
        _request: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let all = [Capability::StageUnstageVolume, Capability::GetVolumeStats, Capability::VolumeCondition];
        let capabilities =
            all.map(|one| NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: one.into() })) }).to_vec();
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _request: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        Ok(Response::new(NodeGetInfoResponse { node_id: self.node.clone(), max_volumes_per_node: 0 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(pairs: &[(&str, &str)]) -> std::collections::BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_volume_shows_nothing_but_mounts_of_clients() {
        assert!(source(&context(&[("fluid_path", "/runtime-mnt/jindo/default/demo/jindofs-fuse")])).is_ok());
        for bad in ["", "/etc", "/runtime-mnt/jindo/../../etc", "/runtime-mnt/jindofs"] {
            let refused = source(&context(&[("fluid_path", bad)])).expect_err(bad);
            assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        }
        assert_eq!(below(&context(&[("fluid_sub_path", "/a/b")])).expect("below"), Path::new("a/b"));
        below(&context(&[("fluid_sub_path", "a/../../b")])).expect_err("leaves the volume");
    }
}
