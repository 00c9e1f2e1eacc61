//! What all pods share: one container, an image, probes, and as few rights as possible.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvVar,
    EnvVarSource, HTTPGetAction, LocalObjectReference, ObjectFieldSelector, PodAffinityTerm, PodAntiAffinity,
    PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ResourceRequirements, SeccompProfile, SecurityContext,
    Toleration, Volume, VolumeMount, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::names::{Names, Role};
use super::{Input, settings};
use crate::crd::{Component, JindoRuntimeSpec, PodMetadata};

/// User and group of the image.
pub(super) const USER: i64 = 10_001;

/// One container, as far as the roles differ.
#[derive(Debug, Default)]
pub(super) struct Process {
    /// Ports by name.
    pub(super) ports: Vec<(&'static str, u16)>,
    /// Port of livez and readyz.
    pub(super) http: u16,
    /// Variables that name the pod: name, and value or field.
    pub(super) env: Vec<EnvVar>,
    /// Volumes beside the config, the secrets and `/tmp`.
    pub(super) volumes: Vec<Volume>,
    /// Where they are mounted.
    pub(super) mounts: Vec<VolumeMount>,
    /// Resources of the container.
    pub(super) resources: Option<ResourceRequirements>,
    /// Runs as root, without any capability unless it is privileged.
    pub(super) root: bool,
    /// May mount, for the node to see.
    pub(super) privileged: bool,
    /// Labels of this role's pods beside those of all.
    pub(super) labels: BTreeMap<String, String>,
    /// Seconds a stop may take.
    pub(super) grace: i64,
}

/// A variable whose value is a field of the pod.
pub(super) fn field(name: &str, path: &str) -> EnvVar {
    let field = ObjectFieldSelector { field_path: path.to_owned(), api_version: None };
    let from = EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() };
    EnvVar { name: name.to_owned(), value_from: Some(from), value: None }
}

/// A variable.
pub(super) fn variable(name: &str, value: String) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value), value_from: None }
}

/// A directory that is gone with the pod; in memory if it says so.
pub(super) fn scratch(name: &str, memory: Option<&str>) -> Volume {
    let size = memory.map(|size| k8s_openapi::apimachinery::pkg::api::resource::Quantity(size.to_owned()));
    let source = EmptyDirVolumeSource { medium: memory.map(|_| "Memory".to_owned()), size_limit: size };
    Volume { name: name.to_owned(), empty_dir: Some(source), ..Volume::default() }
}

/// A volume mounted at `path`.
pub(super) fn at(name: &str, path: &str) -> VolumeMount {
    VolumeMount { name: name.to_owned(), mount_path: path.to_owned(), ..VolumeMount::default() }
}

fn probe(path: &str, port: u16, period: i32, failures: i32) -> Probe {
    let get = HTTPGetAction {
        path: Some(path.to_owned()),
        port: IntOrString::Int(i32::from(port)),
        ..HTTPGetAction::default()
    };
    Probe {
        http_get: Some(get),
        period_seconds: Some(period),
        timeout_seconds: Some(2),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

fn container(input: &Input<'_>, role: Role, component: &Component, process: &Process) -> Container {
    let (image, policy) = input.image(role);
    let user = component.env.iter().map(|(name, value)| variable(name, value.clone()));
    let mut mounts = vec![at("config", settings::DIRECTORY), at("tmp", "/tmp")];
    mounts.extend(super::secrets::volume(input.dataset).map(|_| super::secrets::mount()));
    mounts.extend(process.mounts.iter().cloned());
    let ports = process.ports.iter().map(|(name, port)| ContainerPort {
        name: Some((*name).to_owned()),
        container_port: i32::from(*port),
        ..ContainerPort::default()
    });
    Container {
        name: format!("jindofs-{}", role.word()),
        image: Some(image),
        image_pull_policy: policy,
        args: Some(vec![
            role.word().to_owned(),
            "--config".to_owned(),
            format!("{}/{}.toml", settings::DIRECTORY, role.word()),
        ]),
        env: Some(process.env.iter().cloned().chain(user).collect()),
        ports: Some(ports.collect()),
        resources: process.resources.clone().or_else(|| component.resources.clone()).map(without_claims),
        volume_mounts: Some(mounts),
        // Recovering a large log takes its time; being slow is no reason to be killed.
        startup_probe: Some(probe("/livez", process.http, 2, 450)),
        liveness_probe: Some(probe("/livez", process.http, 10, 6)),
        readiness_probe: Some(probe("/readyz", process.http, 2, 2)),
        security_context: Some(security(process)),
        ..Container::default()
    }
}

/// A claim is one of the pod's, and there is no field to name those: with it no pod would be accepted.
fn without_claims(resources: ResourceRequirements) -> ResourceRequirements {
    ResourceRequirements { claims: None, ..resources }
}

/// User and group of the processes, and the group that may read their volumes. Who mounts must be root; else the user
/// may say who they are.
fn identity(spec: &JindoRuntimeSpec, process: &Process) -> (i64, i64, i64) {
    match &spec.run_as {
        Some(user) if !process.privileged => (user.uid, user.gid, user.gid),
        _ if process.root => (0, 0, USER),
        _ => (USER, USER, USER),
    }
}

fn security(process: &Process) -> SecurityContext {
    let none = Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None };
    SecurityContext {
        privileged: process.privileged.then_some(true),
        // Kubernetes takes the one for the other's opposite.
        allow_privilege_escalation: (!process.privileged).then_some(false),
        read_only_root_filesystem: Some(true),
        capabilities: (!process.privileged).then_some(none),
        ..SecurityContext::default()
    }
}

/// Pods of a role.
pub(super) fn template(input: &Input<'_>, role: Role, component: &Component, process: Process) -> PodTemplateSpec {
    let spec = &input.runtime.spec;
    let names = &input.names;
    // A proxy between these processes would see connections it does not understand, and has to start before them.
    let mut annotations: BTreeMap<String, String> = [("sidecar.istio.io/inject".to_owned(), "false".to_owned())].into();
    let mut labels = BTreeMap::new();
    for own in [spec.pod_metadata.as_ref(), component.pod_metadata.as_ref()].into_iter().flatten() {
        let PodMetadata { labels: more, annotations: notes } = own.clone();
        labels.extend(more);
        annotations.extend(notes);
    }
    labels.extend(spec.labels.clone());
    labels.extend(component.labels.clone());
    // Ours last: what selects a pod must not be changed.
    labels.extend(process.labels.clone());
    labels.extend(names.labels(Some(role)));
    // A pod whose settings have changed is another pod.
    annotations.insert("jindofs.io/settings".to_owned(), input.fingerprint(role));
    let config = ConfigMapVolumeSource { name: names.config(), ..ConfigMapVolumeSource::default() };
    let config = Volume { name: "config".to_owned(), config_map: Some(config), ..Volume::default() };
    let mut volumes = vec![config, scratch("tmp", None)];
    volumes.extend(super::secrets::volume(input.dataset));
    volumes.extend(process.volumes.iter().cloned());
    let pull: Vec<LocalObjectReference> =
        spec.image_pull_secrets.iter().chain(&component.image_pull_secrets).cloned().collect();
    let of_dataset = input.dataset.spec.tolerations.iter().filter(|_| role != Role::Fuse);
    let tolerations: Vec<Toleration> = of_dataset.chain(&component.tolerations).cloned().collect();
    let (user, group, readers) = identity(spec, &process);
    let on_node = super::on_host(input);
    PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(labels), annotations: Some(annotations), ..ObjectMeta::default() }),
        spec: Some(PodSpec {
            containers: vec![container(input, role, component, &process)],
            volumes: Some(volumes),
            image_pull_secrets: some(pull),
            tolerations: some(tolerations),
            node_selector: Some(component.node_selector.clone()).filter(|one| !one.is_empty()),
            host_network: on_node.then_some(true),
            // With the node's own the masters' names would not be found.
            dns_policy: on_node.then(|| "ClusterFirstWithHostNet".to_owned()),
            termination_grace_period_seconds: Some(process.grace),
            affinity: (role != Role::Fuse).then(|| apart(names, role)),
            // Nothing in it talks to Kubernetes.
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            security_context: Some(PodSecurityContext {
                run_as_user: Some(user),
                run_as_group: Some(group),
                run_as_non_root: Some(user != 0),
                fs_group: Some(readers),
                // Walking over a large volume at each start would take longer than recovering it.
                fs_group_change_policy: Some("OnRootMismatch".to_owned()),
                seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
                ..PodSecurityContext::default()
            }),
            ..PodSpec::default()
        }),
    }
}

/// One node, and one zone, should not hold two of a role where there is another. Not by topology spread constraints: where
/// nodes have no zone, the scheduler ignores all of them.
fn apart(names: &Names, role: Role) -> Affinity {
    let over = |key: &str, weight: i32| WeightedPodAffinityTerm {
        weight,
        pod_affinity_term: PodAffinityTerm {
            topology_key: key.to_owned(),
            label_selector: Some(names.label_selector(role)),
            ..PodAffinityTerm::default()
        },
    };
    let terms = vec![over("kubernetes.io/hostname", 100), over("topology.kubernetes.io/zone", 50)];
    let apart = PodAntiAffinity {
        preferred_during_scheduling_ignored_during_execution: Some(terms),
        ..PodAntiAffinity::default()
    };
    Affinity { pod_anti_affinity: Some(apart), ..Affinity::default() }
}

/// A list, unless it is empty.
pub(super) fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    Some(list).filter(|list| !list.is_empty())
}
