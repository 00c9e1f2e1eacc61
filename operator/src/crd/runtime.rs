//! JindoRuntime: the masters, workers and FUSE clients that serve a Dataset.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{LocalObjectReference, NodeAffinity, ResourceRequirements, Volume, VolumeMount};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use super::{CacheStates, Condition, Mount, PodMetadata, Tolerations, User, VersionSpec};

/// Finalizer of Fluid's name, so that a runtime can change hands.
pub const RUNTIME_FINALIZER: &str = "jindo-runtime-controller-finalizer";

/// The processes that serve the Dataset of the same name and namespace.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "data.fluid.io",
    version = "v1alpha1",
    kind = "JindoRuntime",
    namespaced,
    status = "RuntimeStatus",
    derive = "PartialEq",
    shortname = "jindo",
    category = "fluid",
    scale(spec_replicas_path = ".spec.replicas", status_replicas_path = ".status.currentWorkerNumberScheduled"),
    printcolumn(name = "Ready Masters", type_ = "integer", json_path = ".status.masterNumberReady", priority = 10),
    printcolumn(
        name = "Desired Masters",
        type_ = "integer",
        json_path = ".status.desiredMasterNumberScheduled",
        priority = 10
    ),
    printcolumn(name = "Master Phase", type_ = "string", json_path = ".status.masterPhase"),
    printcolumn(name = "Ready Workers", type_ = "integer", json_path = ".status.workerNumberReady", priority = 10),
    printcolumn(
        name = "Desired Workers",
        type_ = "integer",
        json_path = ".status.desiredWorkerNumberScheduled",
        priority = 10
    ),
    printcolumn(name = "Worker Phase", type_ = "string", json_path = ".status.workerPhase"),
    printcolumn(name = "Ready Fuses", type_ = "integer", json_path = ".status.fuseNumberReady", priority = 10),
    printcolumn(
        name = "Desired Fuses",
        type_ = "integer",
        json_path = ".status.desiredFuseNumberScheduled",
        priority = 10
    ),
    printcolumn(name = "Fuse Phase", type_ = "string", json_path = ".status.fusePhase"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", default)]
pub struct JindoRuntimeSpec {
    /// Image of masters and workers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jindo_version: Option<VersionSpec>,
    /// Masters.
    pub master: Component,
    /// Workers. Their number is `replicas` of the runtime.
    pub worker: Component,
    /// FUSE clients.
    pub fuse: Fuse,
    /// Settings of all roles.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
    /// Where workers cache.
    #[serde(rename = "tieredstore", skip_serializing_if = "Option::is_none")]
    pub tiered_store: Option<TieredStore>,
    /// Number of workers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Whom the processes run as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_as: Option<User>,
    /// User name that requests carry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// ConfigMap with HDFS settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hadoop_config: Option<String>,
    /// Secret mounted at `/token`, re-read when it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// Labels of all pods; `podMetadata` is the newer way.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Labels and annotations of all pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_metadata: Option<PodMetadata>,
    /// Settings of logs.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub log_config: BTreeMap<String, String>,
    /// Network of the pods.
    #[serde(rename = "networkmode", skip_serializing_if = "Option::is_none")]
    pub network_mode: Option<NetworkMode>,
    /// How caches are removed with the runtime.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clean_cache_policy: Option<CleanCachePolicy>,
    /// Volumes that `volumeMounts` of the roles name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// Secrets images are pulled with.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<LocalObjectReference>,
}

/// Masters or workers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Component {
    /// Number of masters: 1, 3, 5 or 7.
    #[schemars(range(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Settings of this role.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
    /// Ports by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, i64>,
    /// Resources of the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Environment of the container.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Nodes the pods run on.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints the pods tolerate.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Tolerations,
    /// Labels of the pods; `podMetadata` is the newer way.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Labels and annotations of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_metadata: Option<PodMetadata>,
    /// There are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
    /// Where volumes of the runtime are mounted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volume_mounts: Vec<VolumeMount>,
    /// Secrets images are pulled with.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<LocalObjectReference>,
}

/// FUSE clients.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Fuse {
    /// Image, without a tag if `imageTag` is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Tag of the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_tag: Option<String>,
    /// Always, IfNotPresent or Never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<String>,
    /// Secrets images are pulled with.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// Settings of this role.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
    /// Environment of the container.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Resources of the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Mount options.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Nodes the pods run on.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints the pods tolerate.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Tolerations,
    /// Labels of the pods; `podMetadata` is the newer way.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Labels and annotations of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_metadata: Option<PodMetadata>,
    /// OnRuntimeDeleted, OnDemand or OnFuseChanged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clean_policy: Option<String>,
    /// There are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
    /// Settings of logs.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub log_config: BTreeMap<String, String>,
    /// Metrics of FUSE clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<ClientMetrics>,
}

/// Metrics of FUSE clients.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientMetrics {
    /// Whether they are shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// MountPod, Sidecar, All or None.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scrape_target: Option<String>,
}

/// Where workers cache, fastest level first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TieredStore {
    /// Levels.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub levels: Vec<Level>,
}

/// One level of the cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Level {
    /// What it is made of.
    #[serde(rename = "mediumtype")]
    pub medium_type: Medium,
    /// How it is provided; hostPath if nothing is given.
    #[schemars(extend("default" = "hostPath"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_type: Option<VolumeType>,
    /// The volume, where the type does not say enough.
    #[schemars(schema_with = "any_object")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_source: Option<serde_json::Value>,
    /// Directories, with commas.
    #[schemars(length(min = 1))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Bytes of all directories together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<Quantity>,
    /// Bytes of each directory, with commas.
    #[schemars(regex(
        pattern = r"^((\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?,)+((\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?)$"
    ))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_list: Option<String>,
    /// Share of the quota at which files begin to be removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high: Option<String>,
    /// Share of the quota at which that ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low: Option<String>,
}

fn any_object(_: &mut SchemaGenerator) -> Schema {
    schemars::json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// What a level is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Medium {
    /// Memory.
    Mem,
    /// Flash.
    Ssd,
    /// Disks.
    Hdd,
}

/// How a level is provided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum VolumeType {
    /// A directory of the node: outlives the pod.
    HostPath,
    /// A directory of the pod.
    EmptyDir,
}

/// Network of pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NetworkMode {
    /// The node's.
    HostNetwork,
    /// Not said.
    #[serde(rename = "")]
    Unset,
    /// Their own.
    ContainerNetwork,
}

/// How caches are removed with the runtime.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CleanCachePolicy {
    /// Seconds one attempt may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_period_seconds: Option<i32>,
    /// Attempts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_retry_attempts: Option<i32>,
}

/// What is observed of a JindoRuntime.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RuntimeStatus {
    /// ConfigMap with the settings of the processes.
    pub value_file: String,
    /// NotReady, PartialReady or Ready.
    pub master_phase: String,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub master_reason: Option<String>,
    /// NotReady, PartialReady or Ready.
    pub worker_phase: String,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker_reason: Option<String>,
    /// Workers wanted.
    pub desired_worker_number_scheduled: i32,
    /// Workers there.
    pub current_worker_number_scheduled: i32,
    /// Workers that serve.
    pub worker_number_ready: i32,
    /// Workers that have served for a while.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker_number_available: Option<i32>,
    /// Workers that do not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker_number_unavailable: Option<i32>,
    /// Masters wanted.
    pub desired_master_number_scheduled: i32,
    /// Masters there.
    pub current_master_number_scheduled: i32,
    /// Masters that serve.
    pub master_number_ready: i32,
    /// NotReady, PartialReady or Ready.
    pub fuse_phase: String,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fuse_reason: Option<String>,
    /// FUSE clients there.
    pub current_fuse_number_scheduled: i32,
    /// FUSE clients wanted.
    pub desired_fuse_number_scheduled: i32,
    /// FUSE clients that serve.
    pub fuse_number_ready: i32,
    /// FUSE clients that do not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fuse_number_unavailable: Option<i32>,
    /// FUSE clients that have served for a while.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fuse_number_available: Option<i32>,
    /// How long it took until everything served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub setup_duration: Option<String>,
    /// What is observed, by type.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// What is cached.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cache_states: CacheStates,
    /// Selector of the worker pods, for autoscalers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Kept for older clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_gateway: Option<ApiGateway>,
    /// When the mounts were put in place last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mount_time: Option<Time>,
    /// Mounts that are there now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Nodes that cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_affinity: Option<NodeAffinity>,
    /// The group of masters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterStatus>,
}

/// Kept for older clients.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ApiGateway {
    /// host:port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

/// The group of masters, as its leader sees it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterStatus {
    /// Uuid of the cluster, recorded before it is founded. Once it is here nothing is ever founded again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// It was founded: masters that are all empty have lost it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub founded: Option<bool>,
    /// A majority follows the leader.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quorum: Option<bool>,
    /// Pod of the leader.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// Term of the leader.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub term: Option<i64>,
    /// Masters in the group.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<MasterStatus>,
}

/// One master in the group.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MasterStatus {
    /// Member id.
    pub id: String,
    /// Its pod.
    pub pod: String,
    /// leader, voter or learner.
    pub role: String,
    /// Log entries it is behind.
    pub lag: i64,
}
