//! Dataset: which under-storages make up a namespace.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::NodeSelector;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CacheStates, Condition, EncryptOption, Mount, Tolerations, User};

/// Finalizer of Fluid's name, so that a Dataset can change hands.
pub const DATASET_FINALIZER: &str = "fluid-dataset-controller-finalizer";

/// What is cached. A JindoRuntime of the same name and namespace serves it.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "data.fluid.io",
    version = "v1alpha1",
    kind = "Dataset",
    namespaced,
    status = "DatasetStatus",
    derive = "PartialEq",
    shortname = "dataset",
    category = "fluid",
    printcolumn(name = "Ufs Total Size", type_ = "string", json_path = ".status.ufsTotal"),
    printcolumn(name = "Cached", type_ = "string", json_path = ".status.cacheStates.cached"),
    printcolumn(name = "Cache Capacity", type_ = "string", json_path = ".status.cacheStates.cacheCapacity"),
    printcolumn(name = "Cached Percentage", type_ = "string", json_path = ".status.cacheStates.cachedPercentage"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "HCFS URL", type_ = "string", json_path = ".status.hcfs.endpoint", priority = 10),
    printcolumn(name = "TOTAL FILES", type_ = "string", json_path = ".status.fileNum", priority = 11),
    printcolumn(
        name = "CACHE HIT RATIO",
        type_ = "string",
        json_path = ".status.cacheStates.cacheHitRatio",
        priority = 10
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", default)]
pub struct DatasetSpec {
    /// Under-storages and their places.
    #[schemars(length(min = 1))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Who owns the files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<User>,
    /// On which nodes it may be cached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_affinity: Option<CacheableNodeAffinity>,
    /// Taints that masters and workers tolerate.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Tolerations,
    /// How pods may mount it; ReadOnlyMany if nothing is given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub access_modes: Vec<String>,
    /// Runtimes that may serve it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub runtimes: Vec<RuntimeRef>,
    /// Whether workers of other datasets may run on the same nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// Where metadata is restored from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_restore_location: Option<DataRestoreLocation>,
    /// Options of every mount, unless the mount says otherwise.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub shared_options: BTreeMap<String, String>,
    /// Secret options of every mount.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shared_encrypt_options: Vec<EncryptOption>,
}

/// Hard constraints on nodes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CacheableNodeAffinity {
    /// Must be met.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub required: Option<NodeSelector>,
}

/// Who shares a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Placement {
    /// No other worker, of whatever dataset.
    Exclusive,
    /// As Shared.
    #[serde(rename = "")]
    Unset,
    /// Anybody.
    Shared,
}

/// Where metadata is restored from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DataRestoreLocation {
    /// `local://PATH` or `pvc://NAME/PATH`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The node of a `local://` path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
}

/// A runtime that serves a dataset.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RuntimeRef {
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Accelerate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// jindo.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
    /// Masters that run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub master_replicas: Option<i32>,
}

/// What is observed of a Dataset.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DatasetStatus {
    /// Mounts that are there now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Size of all under-storages, such as `531.89MiB`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ufs_total: Option<String>,
    /// NotBound, Bound, Failed, Updating or Pending.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Runtimes that serve it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub runtimes: Vec<RuntimeRef>,
    /// What is observed, by type.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// What is cached.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cache_states: CacheStates,
    /// Where masters are reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hcfs: Option<HcfsStatus>,
    /// Files in all under-storages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_num: Option<String>,
    /// Kept for older clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_load_ref: Option<String>,
    /// Kept for older clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_backup_ref: Option<String>,
    /// Operations that run, by kind.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub operation_ref: BTreeMap<String, String>,
    /// Datasets that mount this one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dataset_ref: Vec<String>,
}

/// Where masters are reached.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HcfsStatus {
    /// `jindo://host:port,...`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Kept for older clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub underlayer_file_system_version: Option<String>,
}
