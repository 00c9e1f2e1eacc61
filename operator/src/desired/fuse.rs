//! The FUSE client: a DaemonSet on the nodes where pods use the Dataset, and the volume and claim those pods name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetUpdateStrategy};
use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, HostPathVolumeSource, ObjectReference, PersistentVolume, PersistentVolumeClaim,
    PersistentVolumeClaimSpec, PersistentVolumeSpec, Toleration, Volume, VolumeMount, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::names::Role;
use super::pods::{self, Process};
use super::settings::{FUSE_HTTP, MASTER_RPC, Settings, overlaid};
use super::{Input, masters, mounts};
use crate::crd::Component;

/// Directory of all mounts on a node, as Fluid has it.
pub const NODE_DIRECTORY: &str = "/runtime-mnt/jindo";
/// Name of a mount in its directory, as Fluid has it.
pub const MOUNT_NAME: &str = "jindofs-fuse";
/// In the directory of all mounts: where the node plugin has the socket at which it holds mounts while their pods are replaced.
const HANDOVER_DIRECTORY: &str = ".handover";
const HANDOVER_SOCKET: &str = "keeper.sock";
/// Where the pod sees it.
const POD_HANDOVER_DIRECTORY: &str = "/handover";
/// Where the pod sees the directory of its mount.
const POD_DIRECTORY: &str = "/jfs";
/// Where the pod keeps what was written and is not stored yet.
const STAGING: &str = "/staging";
/// Key that lets files be written through the mount: on where something below it can be.
const WRITABLE: &str = "fuse.writable";
/// Class of volumes that nobody provisions.
const CLASS: &str = "fluid";
/// No quota: what is shown is as large as the under-storage.
const SIZE: &str = "100Pi";
/// On a Dataset: another size to show.
const SIZE_ANNOTATION: &str = "pvc.fluid.io/resources.requests.storage";
/// Annotation of Fluid's for whoever collects metrics.
const SCRAPED: &str = "prometheus.fuse.fluid.io/scrape";
/// Label that no node has: a DaemonSet that selects by it runs nothing.
const NOWHERE: &str = "jindofs.io/disabled";

/// Socket at which the node plugin holds mounts, by the directory of all mounts.
pub fn handover_socket(mounts: &Path) -> PathBuf {
    mounts.join(HANDOVER_DIRECTORY).join(HANDOVER_SOCKET)
}

/// Directory on the node that holds the mount.
fn node_directory(input: &Input<'_>) -> String {
    format!("{NODE_DIRECTORY}/{}/{}", input.names.namespace, input.names.name)
}

pub(super) fn settings(input: &Input<'_>) -> Settings {
    let masters = input.names.masters(masters::replicas(input), MASTER_RPC);
    let derived = [
        ("fs.jindocache.namespace.rpc.address", masters),
        ("fuse.mount", format!("{POD_DIRECTORY}/{MOUNT_NAME}")),
        ("fuse.mount.create", "true".to_owned()),
        ("fuse.http.port", FUSE_HTTP.to_string()),
        ("fuse.staging.dir", STAGING.to_owned()),
        (WRITABLE, mounts::table(input).iter().any(|mount| !mount.read_only).to_string()),
    ];
    let derived = derived.map(|(key, value)| (key.to_owned(), value)).into();
    let mut settings = overlaid(derived, [&input.of_role(Role::Fuse), &input.runtime.spec.fuse.properties]);
    // What was written and is not stored yet could not be handed over.
    if settings[WRITABLE] != "true" {
        let socket = format!("{POD_HANDOVER_DIRECTORY}/{HANDOVER_SOCKET}");
        settings.entry("fuse.handover.socket".to_owned()).or_insert(socket);
    }
    settings
}

/// What the client shares with the other roles.
fn component(input: &Input<'_>) -> Component {
    let fuse = input.runtime.spec.fuse.clone();
    let mut node_selector = fuse.node_selector;
    node_selector.insert(input.node_label(), "true".to_owned());
    if fuse.disabled == Some(true) {
        node_selector.insert(NOWHERE.to_owned(), "true".to_owned());
    }
    let mut pod_metadata = fuse.pod_metadata.unwrap_or_default();
    let target = fuse.metrics.and_then(|metrics| metrics.scrape_target);
    if ["MountPod", "All"].contains(&target.as_deref().unwrap_or_default()) {
        pod_metadata.annotations.entry(SCRAPED.to_owned()).or_insert_with(|| "true".to_owned());
    }
    // A pod that uses the Dataset is there already: whatever it tolerates, its file system must follow.
    let anywhere = Toleration { operator: Some("Exists".to_owned()), ..Toleration::default() };
    Component {
        env: fuse.env,
        resources: fuse.resources,
        node_selector,
        tolerations: vec![anywhere],
        labels: fuse.labels,
        pod_metadata: Some(pod_metadata),
        image_pull_secrets: fuse.image_pull_secrets,
        ..Component::default()
    }
}

pub(super) fn daemon_set(input: &Input<'_>) -> DaemonSet {
    let names = &input.names;
    let on_node = |name: &str, path: String| Volume {
        name: name.to_owned(),
        host_path: Some(HostPathVolumeSource { path, type_: Some("DirectoryOrCreate".to_owned()) }),
        ..Volume::default()
    };
    let process = Process {
        ports: vec![("http", FUSE_HTTP)],
        http: FUSE_HTTP,
        volumes: vec![
            on_node("mounts", node_directory(input)),
            on_node("handover", format!("{NODE_DIRECTORY}/{HANDOVER_DIRECTORY}")),
            pods::scratch("staging", None),
        ],
        mounts: vec![
            VolumeMount {
                name: "mounts".to_owned(),
                mount_path: POD_DIRECTORY.to_owned(),
                mount_propagation: Some("Bidirectional".to_owned()),
                ..VolumeMount::default()
            },
            pods::at("handover", POD_HANDOVER_DIRECTORY),
            pods::at("staging", STAGING),
        ],
        root: true,
        privileged: true,
        grace: 60,
        ..Process::default()
    };
    let pods = pods::template(input, Role::Fuse, &component(input), process);
    DaemonSet {
        metadata: names.meta(names.of(Role::Fuse), Some(Role::Fuse)),
        spec: Some(DaemonSetSpec {
            selector: names.label_selector(Role::Fuse),
            // A restart makes readers wait, and on an older kernel takes the mount from them: when is for the user to say.
            update_strategy: Some(DaemonSetUpdateStrategy { type_: Some("OnDelete".to_owned()), rolling_update: None }),
            template: pods,
            ..DaemonSetSpec::default()
        }),
        ..DaemonSet::default()
    }
}

fn access_modes(input: &Input<'_>) -> Vec<String> {
    let asked = input.dataset.spec.access_modes.clone();
    if asked.is_empty() { vec!["ReadOnlyMany".to_owned()] } else { asked }
}

fn size(input: &Input<'_>) -> BTreeMap<String, Quantity> {
    let notes = input.dataset.metadata.annotations.as_ref();
    let size = notes.and_then(|notes| notes.get(SIZE_ANNOTATION)).map_or(SIZE, String::as_str);
    [("storage".to_owned(), Quantity(size.to_owned()))].into()
}

/// What volume and claim carry beside the usual labels: by these Fluid's webhooks and scripts know them.
fn offered(input: &Input<'_>, name: String) -> ObjectMeta {
    let mut metadata = input.names.meta(name, None);
    metadata.annotations = Some([("CreatedBy".to_owned(), "fluid".to_owned())].into());
    let label = input.names.dataset_label(input.dataset.metadata.uid.as_deref());
    metadata.labels.get_or_insert_default().insert(label, "true".to_owned());
    metadata
}

/// The volume that the node plugin mounts.
pub fn volume(input: &Input<'_>, driver: &str) -> PersistentVolume {
    let (names, label) = (&input.names, input.node_label());
    let attributes = [
        ("fluid_path", format!("{}/{MOUNT_NAME}", node_directory(input))),
        ("mount_type", "jindo".to_owned()),
        ("runtime_namespace", names.namespace.clone()),
        ("runtime_name", names.name.clone()),
        ("mount_pod_node_selector_key", label),
    ];
    let metadata = ObjectMeta { namespace: None, ..offered(input, names.volume()) };
    PersistentVolume {
        metadata,
        spec: Some(PersistentVolumeSpec {
            access_modes: Some(access_modes(input)),
            capacity: Some(size(input)),
            claim_ref: Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("PersistentVolumeClaim".to_owned()),
                namespace: Some(names.namespace.clone()),
                name: Some(names.name.clone()),
                ..ObjectReference::default()
            }),
            csi: Some(CSIPersistentVolumeSource {
                driver: driver.to_owned(),
                volume_handle: input.names.volume(),
                fs_type: Some("fuse".to_owned()),
                volume_attributes: Some(attributes.map(|(key, value)| (key.to_owned(), value)).into()),
                ..CSIPersistentVolumeSource::default()
            }),
            persistent_volume_reclaim_policy: Some("Retain".to_owned()),
            storage_class_name: Some(CLASS.to_owned()),
            ..PersistentVolumeSpec::default()
        }),
        ..PersistentVolume::default()
    }
}

/// The claim that pods name: it is called as the Dataset.
pub fn claim(input: &Input<'_>) -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        metadata: offered(input, input.names.name.clone()),
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(access_modes(input)),
            resources: Some(VolumeResourceRequirements { requests: Some(size(input)), limits: None }),
            storage_class_name: Some(CLASS.to_owned()),
            volume_name: Some(input.names.volume()),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}
