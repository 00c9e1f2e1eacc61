//! Deletion of a Dataset or JindoRuntime. Nothing is deleted while pods use the Dataset.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;

use super::apply::gone;
use super::runtime_reconciler::RuntimeReconciler;
use super::status::{NotReady, set};
use crate::crd::{DATASET_FINALIZER, Dataset, JindoRuntime, RUNTIME_FINALIZER};
use crate::desired::{MANAGER, Names};
use crate::events::EventMessage;

/// Pause between two checks of what is being deleted.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

fn ours<K: Resource>(object: &K) -> bool {
    object.labels().get("app.kubernetes.io/managed-by").is_some_and(|manager| manager == MANAGER)
}

impl RuntimeReconciler {
    /// Deletes what belongs to the deleted object, once no pod uses it.
    pub(super) async fn release(
        &self,
        dataset: Option<&Dataset>,
        runtime: Option<&JindoRuntime>,
    ) -> Result<Duration, kube::Error> {
        let cache = &self.context.cache;
        let users: Vec<String> = cache.users(&self.namespace, &self.name).iter().map(|pod| pod.name_any()).collect();
        if !users.is_empty() {
            let message = format!("pods still use it: {}; it is deleted when they are gone", users.join(", "));
            self.hold(dataset, runtime, &NotReady::new("DatasetInUse", message)).await?;
            return Ok(Duration::from_secs(30));
        }
        if !self.delete_volume().await? {
            return Ok(POLL_INTERVAL);
        }
        if let Some(runtime) = runtime {
            for node in cache.nodes.state() {
                self.unlabel(&node, &self.node_label(dataset)).await?;
            }
            self.finalize(runtime, RUNTIME_FINALIZER, false).await?;
        }
        if let Some(dataset) = dataset.filter(|one| one.metadata.deletion_timestamp.is_some()) {
            self.finalize(dataset, DATASET_FINALIZER, false).await?;
        }
        Ok(POLL_INTERVAL)
    }

    /// Reports why the deletion has to wait.
    async fn hold(
        &self,
        dataset: Option<&Dataset>,
        runtime: Option<&JindoRuntime>,
        not_ready: &NotReady,
    ) -> Result<(), kube::Error> {
        if let Some(dataset) = dataset {
            let mut status = dataset.status.clone().unwrap_or_default();
            let news = set(&mut status.conditions, "Deletable", Err(not_ready));
            self.write_dataset(dataset, &status).await?;
            self.emit_all(dataset, news.into_iter()).await;
        } else if let Some(runtime) = runtime {
            let mut status = runtime.status.clone().unwrap_or_default();
            let news = set(&mut status.conditions, "Deletable", Err(not_ready));
            self.write_runtime(runtime, &status).await?;
            self.emit_all(runtime, news.into_iter()).await;
        }
        Ok(())
    }

    pub(super) async fn emit_all<K: Resource<DynamicType = ()>>(
        &self,
        about: &K,
        news: impl Iterator<Item = EventMessage>,
    ) {
        for one in news {
            self.context.emit(about, one).await;
        }
    }

    /// Deletes the claim and the volume. Returns true when both are gone.
    async fn delete_volume(&self) -> Result<bool, kube::Error> {
        let cache = &self.context.cache;
        let mut left = false;
        if let Some(claim) = cache.get::<PersistentVolumeClaim>(&self.namespace, &self.name).filter(|one| ours(&**one))
        {
            left = true;
            if claim.metadata.deletion_timestamp.is_none() {
                let api: Api<PersistentVolumeClaim> = Api::namespaced(cache.client.clone(), &self.namespace);
                gone(api.delete(&self.name, &DeleteParams::default()).await)?;
            }
        }
        let volume = Names { namespace: self.namespace.clone(), name: self.name.clone() }.volume();
        if let Some(found) = cache.get::<PersistentVolume>("", &volume).filter(|one| ours(&**one)) {
            left = true;
            if found.metadata.deletion_timestamp.is_none() {
                let api: Api<PersistentVolume> = Api::all(cache.client.clone());
                gone(api.delete(&volume, &DeleteParams::default()).await)?;
            }
        }
        Ok(!left)
    }

    /// Adds or removes our finalizer; writes only if it has to change.
    pub(super) async fn finalize<K>(&self, object: &K, finalizer: &str, wanted: bool) -> Result<(), kube::Error>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        let mut finalizers = object.finalizers().to_vec();
        if finalizers.iter().any(|one| one == finalizer) == wanted {
            return Ok(());
        }
        finalizers.retain(|one| one != finalizer);
        if wanted {
            finalizers.push(finalizer.to_owned());
        }
        // The API server refuses one of two concurrent writers.
        let version = object.resource_version();
        let patch = json!({"metadata": {"finalizers": finalizers, "resourceVersion": version}});
        let api: Api<K> = Api::namespaced(self.context.cache.client.clone(), &self.namespace);
        match api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            other => gone(other),
        }
    }

    pub(super) async fn unlabel(&self, node: &Node, label: &str) -> Result<(), kube::Error> {
        if node.labels().contains_key(label) {
            self.label(&node.name_any(), json!({ label: null })).await?;
        }
        Ok(())
    }

    pub(super) async fn label(&self, node: &str, labels: serde_json::Value) -> Result<(), kube::Error> {
        let api: Api<Node> = Api::all(self.context.cache.client.clone());
        let patch = json!({"metadata": {"labels": labels}});
        gone(api.patch(node, &PatchParams::default(), &Patch::Merge(patch)).await)
    }
}
