//! What a Dataset and its JindoRuntime ask of Kubernetes, as objects. Pure: the same input gives the same objects, and
//! nothing is asked or changed.

mod check;
mod fuse;
mod images;
mod masters;
mod mounts;
mod names;
mod network;
mod pods;
mod quantity;
mod secrets;
mod settings;
mod unsupported;
mod workers;

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{DaemonSet, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaimSpec, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

pub use check::{Problem, problems};
pub use fuse::{MOUNT_NAME, NODE_DIRECTORY, claim, handover_socket, volume};
pub use masters::{OWNED, metadata_claims, named_claim, replicas};
pub use mounts::table as mount_table;
pub use names::{MANAGER, Names, Role};
pub use settings::{MASTER_RAFT, MASTER_RPC};
pub use unsupported::{Unsupported, of_dataset, of_load, of_runtime};
pub use workers::replicas as workers;

use crate::crd::{Dataset, JindoRuntime, NetworkMode};
use crate::fingerprint::fingerprint;

/// Bytes of a block: no cache directory can be smaller.
const BLOCK: u64 = 4 << 20;

/// All that the objects follow from.
#[derive(Debug)]
pub struct Input<'a> {
    /// The Dataset.
    pub dataset: &'a Dataset,
    /// Its runtime.
    pub runtime: &'a JindoRuntime,
    /// What everything is called.
    pub names: Names,
    /// The claim that the runtime names for metadata, if it exists: with several masters each gets one like it.
    pub claim: Option<&'a PersistentVolumeClaimSpec>,
    /// Image of a runtime that names none.
    pub default_image: &'a str,
    /// Namespace that the operator runs in.
    pub operator_namespace: &'a str,
    /// The masters have claims of their own already: they keep them, also when only one is left.
    pub own_claims: bool,
}

/// The objects of one runtime.
#[derive(Debug, Clone, PartialEq)]
pub struct Objects {
    /// Settings of all roles.
    pub config: ConfigMap,
    /// Host names of the masters.
    pub service: Service,
    /// Masters.
    pub masters: StatefulSet,
    /// How many masters must stay up.
    pub budget: Option<PodDisruptionBudget>,
    /// Workers.
    pub workers: StatefulSet,
    /// Clients on the nodes.
    pub fuse: DaemonSet,
    /// Who may reach the pods.
    pub policy: Option<NetworkPolicy>,
}

impl<'a> Input<'a> {
    /// The input for a runtime and its Dataset.
    pub fn new(dataset: &'a Dataset, runtime: &'a JindoRuntime, default_image: &'a str) -> Input<'a> {
        let namespace = runtime.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let names = Names { namespace, name: runtime.metadata.name.clone().unwrap_or_default() };
        Input {
            dataset,
            runtime,
            names,
            claim: None,
            default_image,
            operator_namespace: "jindofs-system",
            own_claims: false,
        }
    }

    /// Label of the nodes that shall run the client.
    pub fn node_label(&self) -> String {
        self.names.node_label(self.dataset.metadata.uid.as_deref())
    }

    /// Image and pull policy of a role.
    fn image(&self, role: Role) -> (String, Option<String>) {
        let (fuse, version) = (&self.runtime.spec.fuse, self.runtime.spec.jindo_version.clone().unwrap_or_default());
        let image = images::chosen(self.default_image.to_owned(), version.image.as_ref(), version.image_tag.as_ref());
        if role != Role::Fuse {
            return (image, version.image_pull_policy);
        }
        let image = images::chosen(image, fuse.image.as_ref(), fuse.image_tag.as_ref());
        (image, fuse.image_pull_policy.clone().or(version.image_pull_policy))
    }

    /// Settings of the whole runtime that a role understands by their prefix.
    fn of_role(&self, role: Role) -> BTreeMap<String, String> {
        let mut all = self.runtime.spec.properties.clone();
        all.retain(|key, _| settings::role_of(key) == Some(role));
        all
    }

    /// Config file of a role; empty if it cannot be made, which [`problems`] says.
    fn file(&self, role: Role) -> String {
        match role {
            Role::Master => settings::toml(&masters::settings(self)),
            Role::Worker => workers::settings(self).map(|all| settings::toml(&all)).unwrap_or_default(),
            Role::Fuse => settings::toml(&fuse::settings(self)),
        }
    }

    /// Changes with the settings of a role, and with nothing else; the list of masters only says where to begin, and
    /// another one is no reason to restart.
    fn fingerprint(&self, role: Role) -> String {
        let file = self.file(role);
        let lines = file.lines().filter(|line| !settings::MASTER_LISTS.iter().any(|key| line.contains(key)));
        fingerprint(lines.flat_map(str::bytes))
    }
}

/// The pods are on the network of their nodes.
fn on_host(input: &Input<'_>) -> bool {
    input.runtime.spec.network_mode == Some(NetworkMode::HostNetwork)
}

/// The objects.
///
/// *Errors*: what keeps them from being made; [`problems`] finds more than the first.
pub fn objects(input: &Input<'_>) -> Result<Objects, Problem> {
    if let Some(problem) = problems(input).into_iter().next() {
        return Err(problem);
    }
    let workers = workers::stateful_set(input).map_err(|why| Problem::new("InvalidTieredStore", why))?;
    let files =
        [Role::Master, Role::Worker, Role::Fuse].map(|role| (format!("{}.toml", role.word()), input.file(role)));
    let config = ConfigMap {
        metadata: input.names.meta(input.names.config(), None),
        data: Some(files.into()),
        ..ConfigMap::default()
    };
    Ok(Objects {
        config,
        service: masters::service(input),
        masters: masters::stateful_set(input),
        budget: masters::budget(input),
        workers,
        fuse: fuse::daemon_set(input),
        policy: network::policy(input),
    })
}

impl Objects {
    /// As YAML documents, in the order they are made in.
    ///
    /// *Errors*: none are known; the types serialise.
    pub fn yaml(&self) -> Result<String, serde_saphyr::ser::Error> {
        let mut text = String::new();
        let mut add = |document: Result<String, serde_saphyr::ser::Error>| {
            text.push_str("---\n");
            document.map(|document| text.push_str(&document))
        };
        add(serde_saphyr::to_string(&self.config))?;
        add(serde_saphyr::to_string(&self.service))?;
        add(serde_saphyr::to_string(&self.masters))?;
        if let Some(budget) = &self.budget {
            add(serde_saphyr::to_string(budget))?;
        }
        add(serde_saphyr::to_string(&self.workers))?;
        add(serde_saphyr::to_string(&self.fuse))?;
        if let Some(policy) = &self.policy {
            add(serde_saphyr::to_string(policy))?;
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod confined_tests;
