//! Workers: a StatefulSet whose pods cache in the levels of the runtime's tiered store.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{
    Affinity, HostPathVolumeSource, NodeAffinity, PodAffinityTerm, ResourceRequirements, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use serde_json::json;

use super::Input;
use super::names::Role;
use super::pods::{self, Process, at, field, scratch};
use super::quantity::bytes;
use super::settings::{MASTER_RPC, Settings, WORKER_HTTP, WORKER_RPC, overlaid};
use crate::crd::{Level, Medium, Placement, VolumeType};

/// Directory of what a worker must remember while its caches are in memory.
const WORK_DIR: &str = "/var/lib/jindofs";
/// Cache of a worker for which no level is given.
const DEFAULT_QUOTA: &str = "1Gi";
/// Label of workers, as Fluid has it: what they cache.
const CACHES: &str = "fluid.io/dataset";
/// Label of workers, as Fluid has it: who may share their node.
const PLACEMENT: &str = "fluid.io/dataset-placement";

/// How many workers are asked for.
pub fn replicas(input: &Input<'_>) -> i32 {
    let spec = &input.runtime.spec;
    if spec.worker.disabled == Some(true) { 0 } else { spec.replicas.unwrap_or(1) }
}

/// One directory of one level.
struct Place {
    medium: Medium,
    kind: VolumeType,
    /// What the user provides it by instead.
    source: Option<Volume>,
    path: String,
    bytes: u64,
}

/// Directories with their quotas, fastest level first.
///
/// *Errors*: what is wrong, in words for the user.
fn places(input: &Input<'_>) -> Result<Vec<Place>, String> {
    let levels = input.runtime.spec.tiered_store.as_ref().map(|store| store.levels.clone()).unwrap_or_default();
    if levels.is_empty() {
        let bytes = bytes(DEFAULT_QUOTA)?;
        let path = "/dev/shm".to_owned();
        return Ok(vec![Place { medium: Medium::Mem, kind: VolumeType::EmptyDir, source: None, path, bytes }]);
    }
    let mut places = Vec::new();
    for (number, level) in levels.iter().enumerate() {
        let wrong = |what: String| format!("tieredstore.levels[{number}]: {what}");
        for (path, bytes) in level_places(level).map_err(wrong)? {
            let kind = level.volume_type.unwrap_or(VolumeType::HostPath);
            let source = source(level).map_err(wrong)?;
            places.push(Place { medium: level.medium_type, kind, source, path, bytes });
        }
    }
    Ok(places)
}

/// The volume that a level names, if it names one.
fn source(level: &Level) -> Result<Option<Volume>, String> {
    let Some(mut source) = level.volume_source.clone().filter(|one| *one != json!({})) else { return Ok(None) };
    if let Some(fields) = source.as_object_mut() {
        fields.insert("name".to_owned(), json!(""));
    }
    serde_json::from_value(source).map(Some).map_err(|error| format!("volumeSource is no volume: {error}"))
}

fn level_places(level: &Level) -> Result<Vec<(String, u64)>, String> {
    let paths: Vec<String> =
        level.path.as_deref().unwrap_or_default().split(',').map(|one| one.trim().to_owned()).collect();
    if paths.iter().any(|path| !path.starts_with('/')) {
        return Err("path must be one or more absolute directories, with commas between them".to_owned());
    }
    let quotas: Vec<u64> = match (&level.quota_list, &level.quota) {
        (Some(list), _) => list.split(',').map(bytes).collect::<Result<_, _>>()?,
        (None, Some(quota)) => vec![bytes(&quota.0)? / paths.len() as u64; paths.len()],
        (None, None) => return Err("quota is missing, as in quota: 12Gi".to_owned()),
    };
    if quotas.len() != paths.len() {
        return Err(format!("quotaList has {} values for {} directories", quotas.len(), paths.len()));
    }
    if let Some(small) = quotas.iter().find(|quota| **quota < super::BLOCK) {
        return Err(format!(
            "a quota of {small} bytes holds no block: give each directory at least {} bytes",
            super::BLOCK
        ));
    }
    Ok(paths.into_iter().zip(quotas).collect())
}

impl Place {
    fn data_dir(&self, input: &Input<'_>) -> String {
        format!("{}/{}/{}/jindofs", self.path.trim_end_matches('/'), input.names.namespace, input.names.name)
    }

    /// True if it belongs to root.
    fn of_node(&self) -> bool {
        self.source.as_ref().map_or(self.kind == VolumeType::HostPath, |source| source.host_path.is_some())
    }

    fn volume(&self, number: usize) -> Volume {
        let name = format!("tier-{number}");
        if let Some(source) = &self.source {
            return Volume { name, ..source.clone() };
        }
        match self.kind {
            VolumeType::EmptyDir if self.medium == Medium::Mem => scratch(&name, Some(&self.bytes.to_string())),
            VolumeType::EmptyDir => scratch(&name, None),
            VolumeType::HostPath => {
                let path =
                    HostPathVolumeSource { path: self.path.clone(), type_: Some("DirectoryOrCreate".to_owned()) };
                Volume { name, host_path: Some(path), ..Volume::default() }
            }
        }
    }
}

pub(super) fn settings(input: &Input<'_>) -> Result<Settings, String> {
    let places = places(input)?;
    let list = |each: &dyn Fn(&Place) -> String| places.iter().map(each).collect::<Vec<_>>().join(",");
    let medium = |place: &Place| match place.medium {
        Medium::Mem => "MEM".to_owned(),
        Medium::Ssd => "SSD".to_owned(),
        Medium::Hdd => "HDD".to_owned(),
    };
    let masters = input.names.masters(super::masters::replicas(input), MASTER_RPC);
    let mut derived: Settings = [
        ("storage.namespace.rpc.address", masters),
        ("storage.data-dirs", list(&|place| place.data_dir(input))),
        ("storage.data-dirs.capacities", list(&|place| place.bytes.to_string())),
        ("storage.data-dirs.mediums", list(&medium)),
        ("storage.rpc.port", WORKER_RPC.to_string()),
        ("storage.http.port", WORKER_HTTP.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    if places.iter().all(|place| place.medium == Medium::Mem) {
        derived.insert("storage.work-dir".to_owned(), WORK_DIR.to_owned());
    }
    let first = input.runtime.spec.tiered_store.as_ref().and_then(|store| store.levels.first());
    let marks = first.map(|level| [("high", level.high.clone()), ("low", level.low.clone())]).into_iter().flatten();
    for (name, mark) in marks {
        derived.extend(mark.map(|mark| (format!("storage.watermark.{name}.ratio"), mark)));
    }
    Ok(overlaid(derived, [&input.of_role(Role::Worker), &input.runtime.spec.worker.properties]))
}

/// What the user asks for, and at least the memory that is promised to the cache.
fn resources(input: &Input<'_>, places: &[Place]) -> Option<ResourceRequirements> {
    let mut resources = input.runtime.spec.worker.resources.clone().unwrap_or_default();
    let memory: u64 = places.iter().filter(|place| place.medium == Medium::Mem).map(|place| place.bytes).sum();
    let asked = resources.requests.as_ref().and_then(|all| all.get("memory")).and_then(|one| bytes(&one.0).ok());
    if memory > asked.unwrap_or(0) {
        let requests = resources.requests.get_or_insert_default();
        requests.insert("memory".to_owned(), Quantity(memory.to_string()));
    }
    Some(resources)
}

/// True if a node shall hold one worker and no other one, of whatever Dataset. That has to be asked for: workers have
/// addresses and memory of their own, and one that waits for a node of its own caches nothing.
fn exclusive(input: &Input<'_>) -> bool {
    input.dataset.spec.placement == Some(Placement::Exclusive)
}

/// The nodes that the Dataset may be cached on.
fn place(input: &Input<'_>, affinity: &mut Affinity) {
    if let Some(required) = input.dataset.spec.node_affinity.as_ref().and_then(|one| one.required.clone()) {
        affinity.node_affinity = Some(NodeAffinity {
            required_during_scheduling_ignored_during_execution: Some(required),
            ..NodeAffinity::default()
        });
    }
    if exclusive(input) {
        let any = LabelSelectorRequirement { key: CACHES.to_owned(), operator: "Exists".to_owned(), values: None };
        let alone = PodAffinityTerm {
            topology_key: "kubernetes.io/hostname".to_owned(),
            label_selector: Some(LabelSelector { match_expressions: Some(vec![any]), match_labels: None }),
            // Of all namespaces.
            namespace_selector: Some(LabelSelector::default()),
            ..PodAffinityTerm::default()
        };
        affinity.pod_anti_affinity.get_or_insert_default().required_during_scheduling_ignored_during_execution =
            Some(vec![alone]);
    }
}

pub(super) fn stateful_set(input: &Input<'_>) -> Result<StatefulSet, String> {
    let (names, spec) = (&input.names, &input.runtime.spec);
    let places = places(input)?;
    let mut mounts: Vec<VolumeMount> = spec.worker.volume_mounts.clone();
    mounts.push(at("work", WORK_DIR));
    mounts.extend(places.iter().enumerate().map(|(number, place)| at(&format!("tier-{number}"), &place.path)));
    let used = |volume: &&Volume| mounts.iter().any(|mount| mount.name == volume.name);
    let mut volumes: Vec<Volume> = spec.volumes.iter().filter(used).cloned().collect();
    volumes.push(scratch("work", None));
    volumes.extend(places.iter().enumerate().map(|(number, place)| place.volume(number)));
    let labels: BTreeMap<String, String> = [
        (CACHES.to_owned(), names.id()),
        (PLACEMENT.to_owned(), if exclusive(input) { "Exclusive" } else { "Shared" }.to_owned()),
    ]
    .into();
    let process = Process {
        ports: vec![("rpc", WORKER_RPC), ("http", WORKER_HTTP)],
        http: WORKER_HTTP,
        env: vec![field("STORAGE_ADDRESS", "status.podIP")],
        volumes,
        mounts,
        resources: resources(input, &places),
        // A directory of the node belongs to root.
        privileged: false,
        root: places.iter().any(Place::of_node),
        labels: labels.clone(),
        grace: 30,
    };
    let mut pods = pods::template(input, Role::Worker, &spec.worker, process);
    place(input, pods.spec.get_or_insert_default().affinity.get_or_insert_default());
    let mut metadata = names.meta(names.of(Role::Worker), Some(Role::Worker));
    metadata.labels.get_or_insert_default().extend(labels);
    Ok(StatefulSet {
        metadata,
        spec: Some(StatefulSetSpec {
            replicas: Some(replicas(input)),
            service_name: Some(names.of(Role::Worker)),
            pod_management_policy: Some("Parallel".to_owned()),
            selector: names.label_selector(Role::Worker),
            template: pods,
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    })
}
