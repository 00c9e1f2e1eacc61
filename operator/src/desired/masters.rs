//! Masters: a StatefulSet whose pods keep their names and, each, a volume of its own.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{
    StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec, StatefulSetUpdateStrategy,
};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimSpec, Service, ServicePort, ServiceSpec, Volume,
    VolumeResourceRequirements,
};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::Input;
use super::names::Role;
use super::pods::{self, Process, at, field, variable};
use super::settings::{MASTER_HTTP, MASTER_RAFT, MASTER_RPC, Settings, overlaid};

/// Selects the pods of the StatefulSet and no others: a pod that loses it is let go of, while the Service still finds it.
pub const OWNED: &str = "jindofs.io/stateful-set";
/// Where metadata lies if nobody says so.
const META_DIR: &str = "/var/lib/jindofs/meta";
/// Name of the volume nobody named.
const META_VOLUME: &str = "meta";
/// Size of a metadata volume nobody gave a size to.
const META_SIZE: &str = "30Gi";

/// How many masters are asked for.
pub fn replicas(input: &Input<'_>) -> i32 {
    input.runtime.spec.master.replicas.unwrap_or(1)
}

fn meta_dir(input: &Input<'_>) -> String {
    input.runtime.spec.master.properties.get("namespace.meta-dir").cloned().unwrap_or_else(|| META_DIR.to_owned())
}

pub(super) fn settings(input: &Input<'_>) -> Settings {
    let names = &input.names;
    let derived = [
        ("namespace.meta-dir", meta_dir(input)),
        ("namespace.backend.raft.initial-conf", names.masters(replicas(input), MASTER_RAFT)),
        ("namespace.rpc.port", MASTER_RPC.to_string()),
        ("namespace.backend.raft.port", MASTER_RAFT.to_string()),
        ("namespace.http.port", MASTER_HTTP.to_string()),
    ];
    let derived = derived.map(|(key, value)| (key.to_owned(), value)).into();
    overlaid(derived, [&input.of_role(Role::Master), &input.runtime.spec.master.properties])
}

/// The Service that gives pods their host names, also before they are ready: a member must reach the others to become it.
pub(super) fn service(input: &Input<'_>) -> Service {
    let names = &input.names;
    let port = |(name, number): (&str, u16)| ServicePort {
        name: Some(name.to_owned()),
        port: i32::from(number),
        ..ServicePort::default()
    };
    let ports = [("rpc", MASTER_RPC), ("raft", MASTER_RAFT), ("http", MASTER_HTTP)].map(port);
    Service {
        metadata: names.meta(names.of(Role::Master), Some(Role::Master)),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(names.selector(Role::Master)),
            ports: Some(ports.to_vec()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// What must stay up while nodes are drained; none for one master, which could never be moved then.
pub(super) fn budget(input: &Input<'_>) -> Option<PodDisruptionBudget> {
    let replicas = replicas(input);
    (replicas > 1).then(|| PodDisruptionBudget {
        metadata: input.names.meta(input.names.of(Role::Master), Some(Role::Master)),
        spec: Some(PodDisruptionBudgetSpec {
            min_available: Some(IntOrString::Int(replicas / 2 + 1)),
            selector: Some(input.names.label_selector(Role::Master)),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    })
}

/// The volume of the user that metadata lies on, if one is mounted there.
fn named<'a>(input: &Input<'a>) -> Option<&'a Volume> {
    let spec = &input.runtime.spec;
    let dir = meta_dir(input);
    let above = |path: &str| {
        let path = path.trim_end_matches('/');
        dir == path || dir.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'))
    };
    let mount = spec.master.volume_mounts.iter().filter(|mount| above(&mount.mount_path));
    let mount = mount.max_by_key(|mount| mount.mount_path.len())?;
    spec.volumes.iter().find(|volume| volume.name == mount.name)
}

/// The claim of the user that metadata lies on, or would lie on with one master.
pub fn named_claim(input: &Input<'_>) -> Option<String> {
    Some(named(input)?.persistent_volume_claim.as_ref()?.claim_name.clone())
}

/// Names of the claims that the masters keep their metadata on, by ordinal; empty where it is on no claim.
pub fn metadata_claims(input: &Input<'_>) -> Vec<String> {
    let set = input.names.of(Role::Master);
    match template(input).and_then(|claim| claim.metadata.name) {
        Some(name) => (0..replicas(input)).map(|one| format!("{name}-{set}-{one}")).collect(),
        None => named_claim(input).into_iter().collect(),
    }
}

/// Name and claim of the volume that each master gets for itself; none where the user's volume is used as it is.
fn template(input: &Input<'_>) -> Option<PersistentVolumeClaim> {
    let (name, claimed) = match named(input) {
        Some(volume) if volume.persistent_volume_claim.is_some() && (replicas(input) > 1 || input.own_claims) => {
            (volume.name.as_str(), input.claim)
        }
        Some(_) => return None,
        None => (META_VOLUME, None),
    };
    let size = [("storage".to_owned(), Quantity(META_SIZE.to_owned()))].into();
    let mut spec = PersistentVolumeClaimSpec {
        access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
        resources: Some(VolumeResourceRequirements { requests: Some(size), limits: None }),
        ..PersistentVolumeClaimSpec::default()
    };
    if let Some(claimed) = claimed {
        spec.storage_class_name.clone_from(&claimed.storage_class_name);
        spec.volume_mode.clone_from(&claimed.volume_mode);
        spec.access_modes = claimed.access_modes.clone().or(spec.access_modes);
        spec.resources = claimed.resources.clone().or(spec.resources);
    }
    Some(PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(input.names.labels(Some(Role::Master))),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        ..PersistentVolumeClaim::default()
    })
}

pub(super) fn stateful_set(input: &Input<'_>) -> StatefulSet {
    let (names, spec) = (&input.names, &input.runtime.spec);
    let own = template(input);
    let own_name = own.as_ref().and_then(|claim| claim.metadata.name.clone());
    let mut mounts = spec.master.volume_mounts.clone();
    if own_name.as_deref() == Some(META_VOLUME) {
        mounts.push(at(META_VOLUME, &meta_dir(input)));
    }
    let used = |volume: &&Volume| mounts.iter().any(|mount| mount.name == volume.name);
    let volumes = spec.volumes.iter().filter(used).filter(|volume| Some(&volume.name) != own_name.as_ref());
    let host = format!("$(POD_NAME).{}.{}.svc", names.of(Role::Master), names.namespace);
    let called: BTreeMap<String, String> = [("name".to_owned(), names.of(Role::Master))].into();
    let process = Process {
        ports: vec![("rpc", MASTER_RPC), ("raft", MASTER_RAFT), ("http", MASTER_HTTP)],
        http: MASTER_HTTP,
        env: vec![field("POD_NAME", "metadata.name"), variable("NAMESPACE_BACKEND_RAFT_HOSTNAME", host)],
        volumes: volumes.cloned().collect(),
        mounts,
        labels: called.clone(),
        grace: 30,
        ..Process::default()
    };
    let mut pods = pods::template(input, Role::Master, &spec.master, process);
    let owner = [(OWNED.to_owned(), names.of(Role::Master))];
    pods.metadata.get_or_insert_default().labels.get_or_insert_default().extend(owner.clone());
    let selector = names.selector(Role::Master).into_iter().chain(owner).collect();
    let mut metadata = names.meta(names.of(Role::Master), Some(Role::Master));
    metadata.labels.get_or_insert_default().extend(called);
    StatefulSet {
        metadata,
        spec: Some(StatefulSetSpec {
            replicas: Some(replicas(input)),
            service_name: Some(names.of(Role::Master)),
            // In order, a full restart would wait for a quorum before it starts the second.
            pod_management_policy: Some("Parallel".to_owned()),
            // Who is restarted when is decided by who leads and who has caught up.
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("OnDelete".to_owned()),
                rolling_update: None,
            }),
            selector: LabelSelector { match_labels: Some(selector), ..LabelSelector::default() },
            template: pods,
            volume_claim_templates: own.map(|claim| vec![claim]),
            persistent_volume_claim_retention_policy: Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
                when_deleted: Some("Retain".to_owned()),
                when_scaled: Some("Delete".to_owned()),
            }),
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    }
}
