//! `csi.v1.Node`: the calls of the kubelet for a pod. Every call is idempotent; of two concurrent calls for one volume
//! the second is refused and retried.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jindofs_proto::csi::node_server::Node;
use jindofs_proto::csi::node_service_capability::rpc::Type as Capability;
use jindofs_proto::csi::node_service_capability::{Rpc, Type};
use jindofs_proto::csi::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse,
    NodeGetInfoRequest, NodeGetInfoResponse, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse,
    NodePublishVolumeRequest, NodePublishVolumeResponse, NodeServiceCapability, NodeStageVolumeRequest,
    NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse, NodeUnstageVolumeRequest,
    NodeUnstageVolumeResponse, VolumeCondition,
};
use tonic::{Request, Response, Status};

use super::Options;
use super::health::{self, Health};
use super::keyed_lock::{KeyedLock, KeyedLockGuard};
use super::mounts::{Mounted, table, top};
use super::pod_events::Pod;
use super::published::{Published, Volume};
use super::request::{below, given, reads_only, source, target};

/// How long one call waits for a client to mount; the kubelet retries.
const WAIT: Duration = Duration::from_secs(60);
/// Pause between two checks of the mount table.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The service.
#[derive(Debug)]
pub(super) struct NodeService {
    options: Options,
    published: Arc<Published>,
    key_locks: KeyedLock,
    health: Health,
}

fn is_mounted(path: &Path) -> bool {
    table().is_ok_and(|table| top(&table, path).is_some_and(Mounted::is_fuse))
}

/// The lock is released when the work ends, not when the caller gives up.
async fn blocking(
    guard: KeyedLockGuard,
    work: impl FnOnce() -> Result<(), Status> + Send + 'static,
) -> Result<(), Status> {
    let work = move || {
        let _guard = guard;
        work()
    };
    tokio::task::spawn_blocking(work).await.map_err(|error| Status::internal(error.to_string()))?
}

impl NodeService {
    pub(super) fn new(
        options: Options,
        published: Arc<Published>,
        key_locks: KeyedLock,
        health: Health,
    ) -> NodeService {
        NodeService { options, published, key_locks, health }
    }

    fn guard(&self, key: impl Into<String>) -> Result<KeyedLockGuard, Status> {
        let key = key.into();
        let taken = self.key_locks.try_lock(key.clone());
        taken.ok_or_else(|| Status::aborted(format!("another call for {key} is under way")))
    }

    /// Waits until the client on this node has mounted and answers.
    async fn mounted(&self, path: &Path) -> Result<(), Status> {
        let mut why = "nothing is mounted there yet: look at the FUSE pod of this node".to_owned();
        let found = tokio::time::timeout(WAIT, async {
            loop {
                if is_mounted(path) {
                    match self.health.usage(path).await {
                        Ok(_) => return,
                        Err(error) => why = error,
                    }
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        });
        found.await.map_err(|_| Status::unavailable(format!("{}: {why}", path.display())))
    }
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let request = request.into_inner();
        let _guard = self.guard(given(&request.volume_id, "volume_id")?)?;
        given(&request.staging_target_path, "staging_target_path")?;
        reads_only(request.volume_capability.as_ref())?;
        self.mounted(&source(&request.volume_context, &self.options.mounts)?).await?;
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let request = request.into_inner();
        let _guard = self.guard(given(&request.volume_id, "volume_id")?)?;
        given(&request.staging_target_path, "staging_target_path")?;
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let volume = given(&request.volume_id, "volume_id")?.to_owned();
        let target = target(&request.target_path, &self.options.kubelet)?;
        let read_only = reads_only(request.volume_capability.as_ref())? || request.readonly;
        let source = source(&request.volume_context, &self.options.mounts)?;
        let (directory, pod) = (below(&request.volume_context)?, Pod::of(&request.volume_context));
        let guard = self.guard(target.display().to_string())?;
        // After a restart of the node nothing is staged, and the kubelet may not stage again.
        self.mounted(&source).await?;
        let published = self.published.clone();
        let volume = Volume { volume, target, source, directory, read_only, pod };
        blocking(guard, move || published.publish(volume)).await?;
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        given(&request.volume_id, "volume_id")?;
        let target = target(&request.target_path, &self.options.kubelet)?;
        let guard = self.guard(target.display().to_string())?;
        let published = self.published.clone();
        blocking(guard, move || published.unpublish(&target)).await?;
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        let volume = given(&request.volume_id, "volume_id")?;
        let path = PathBuf::from(given(&request.volume_path, "volume_path")?);
        let published = self.published.at(&path).is_some_and(|known| known.volume == volume);
        if !published || !table().is_ok_and(|table| top(&table, &path).is_some()) {
            return Err(Status::not_found(format!("the volume {volume} is not published at {}", path.display())));
        }
        let (usage, condition) = match self.health.usage(&path).await {
            Ok(usage) => (usage, VolumeCondition { abnormal: false, message: "mounted".to_owned() }),
            Err(why) => (health::unknown(), VolumeCondition { abnormal: true, message: why }),
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
        Ok(Response::new(NodeGetInfoResponse { node_id: self.options.node.clone(), max_volumes_per_node: 0 }))
    }
}
