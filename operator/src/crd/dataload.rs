//! DataLoad: cache before it is needed, once or by the clock.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, ResourceRequirements};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{OperationRef, OperationStatus, PodMetadata, Tolerations};

/// A load of a Dataset into its cache.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "data.fluid.io",
    version = "v1alpha1",
    kind = "DataLoad",
    plural = "dataloads",
    namespaced,
    status = "OperationStatus",
    derive = "PartialEq",
    shortname = "load",
    category = "fluid",
    printcolumn(name = "Dataset", type_ = "string", json_path = ".spec.dataset.name"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Duration", type_ = "string", json_path = ".status.duration")
)]
#[serde(rename_all = "camelCase", default)]
pub struct DataLoadSpec {
    /// The Dataset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset: Option<TargetDataset>,
    /// Read metadata anew first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_metadata: Option<bool>,
    /// Paths; all of the Dataset if none is given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub target: Vec<TargetPath>,
    /// Options of the load.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// Labels and annotations of pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_metadata: Option<PodMetadata>,
    /// Where it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Taints it tolerates.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Tolerations,
    /// Nodes it runs on.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Who places it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler_name: Option<String>,
    /// When it runs.
    #[schemars(extend("default" = "Once"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// Cron expression, for the policy Cron.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// The operation that has to end first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_after: Option<OperationRef>,
    /// Seconds after which an ended load is removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds_after_finished: Option<i32>,
    /// Resources of its pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
}

/// The Dataset of an operation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TargetDataset {
    /// Its name.
    pub name: String,
    /// Its namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// What to load.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TargetPath {
    /// Path in the namespace.
    pub path: String,
    /// Copies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
}

/// When an operation runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Policy {
    /// Once.
    Once,
    /// By the clock.
    Cron,
    /// When something happens.
    OnEvent,
}
