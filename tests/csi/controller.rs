//! A controller for the conformance tests, which make volumes before they mount them: a volume is a directory of the cluster
//! with a file in it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use jindofs_proto::csi::controller_server::Controller;
use jindofs_proto::csi::controller_service_capability::rpc::Type as Capability;
use jindofs_proto::csi::controller_service_capability::{Rpc, Type};
use jindofs_proto::csi::validate_volume_capabilities_response::Confirmed;
use jindofs_proto::csi::{
    ControllerGetCapabilitiesRequest, ControllerGetCapabilitiesResponse, ControllerServiceCapability,
    CreateVolumeRequest, CreateVolumeResponse, DeleteVolumeRequest, DeleteVolumeResponse,
    ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse, Volume,
};
use tonic::{Request, Response, Status};

use super::{LOCAL, Site, volume_context};
use crate::support::cluster::PATIENCE;
use crate::support::wait_for;

pub struct TestController {
    local: PathBuf,
    mount: PathBuf,
    /// Capacity of each volume, by its id.
    volumes: Mutex<HashMap<String, i64>>,
}

impl TestController {
    pub fn new(site: &Site) -> TestController {
        TestController { local: site.local.clone(), mount: site.mounts[0].clone(), volumes: Mutex::default() }
    }

    /// Makes the directory and waits until the client shows it.
    async fn make(&self, name: &str) {
        let (made, shown) = (self.local.join(name), self.mount.join(LOCAL).join(name).join("file"));
        let make = move || {
            std::fs::create_dir_all(&made).expect("made");
            std::fs::write(made.join("file"), b"content").expect("written");
            wait_for("the volume is in the mount", PATIENCE, || std::fs::read(&shown).ok());
        };
        tokio::task::spawn_blocking(make).await.expect("no panic");
    }
}

#[tonic::async_trait]
impl Controller for TestController {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let request = request.into_inner();
        if request.name.is_empty() || request.name.contains('/') || request.volume_capabilities.is_empty() {
            return Err(Status::invalid_argument("a name and capabilities are needed"));
        }
        let range = request.capacity_range.unwrap_or_default();
        let known = self.volumes.lock().unwrap_or_else(PoisonError::into_inner).get(&request.name).copied();
        let capacity = match known {
            Some(known) if known < range.required_bytes || (range.limit_bytes > 0 && known > range.limit_bytes) => {
                return Err(Status::already_exists("a volume of this name has another size"));
            }
            Some(known) => known,
            None => range.required_bytes,
        };
        self.make(&request.name).await;
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner).insert(request.name.clone(), capacity);
        let volume_context = volume_context(&self.mount, &format!("{LOCAL}/{}", request.name));
        let volume = Volume { capacity_bytes: capacity, volume_id: request.name, volume_context };
        Ok(Response::new(CreateVolumeResponse { volume: Some(volume) }))
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let id = request.into_inner().volume_id;
        if id.is_empty() {
            return Err(Status::invalid_argument("volume_id is missing"));
        }
        if self.volumes.lock().unwrap_or_else(PoisonError::into_inner).remove(&id).is_some() {
            std::fs::remove_dir_all(self.local.join(id))?;
        }
        Ok(Response::new(DeleteVolumeResponse {}))
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        let ValidateVolumeCapabilitiesRequest { volume_id, volume_capabilities } = request.into_inner();
        if volume_id.is_empty() || volume_capabilities.is_empty() {
            return Err(Status::invalid_argument("volume_id and capabilities are needed"));
        }
        if !self.volumes.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&volume_id) {
            return Err(Status::not_found("there is no such volume"));
        }
        let confirmed = Some(Confirmed { volume_capabilities });
        Ok(Response::new(ValidateVolumeCapabilitiesResponse { confirmed }))
    }

    async fn controller_get_capabilities(
        &self,
        _request: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let one = ControllerServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: Capability::CreateDeleteVolume.into() })),
        };
        Ok(Response::new(ControllerGetCapabilitiesResponse { capabilities: vec![one] }))
    }
}
