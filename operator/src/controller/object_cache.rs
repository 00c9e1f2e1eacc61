//! A cache of Kubernetes objects, kept up to date by watches: no requests while nothing changes.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::{DaemonSet, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Node, PersistentVolume, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::runtime::reflector::{self, Lookup, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::UnboundedSender;

use crate::crd::{DataLoad, Dataset, JindoRuntime};
use crate::desired::MANAGER;

/// What a change concerns.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// The Dataset and the JindoRuntime of a namespace and name.
    Runtime(String, String),
    /// A DataLoad.
    Load(String, String),
    /// All objects of a namespace.
    Namespace(String),
    /// All objects.
    All,
}

/// The cached objects, by kind.
#[derive(Clone)]
pub(super) struct ObjectCache {
    pub(super) client: Client,
    pub(super) datasets: Store<Dataset>,
    pub(super) runtimes: Store<JindoRuntime>,
    pub(super) loads: Store<DataLoad>,
    pub(super) sets: Store<StatefulSet>,
    pub(super) daemons: Store<DaemonSet>,
    pub(super) configs: Store<ConfigMap>,
    pub(super) services: Store<Service>,
    pub(super) budgets: Store<PodDisruptionBudget>,
    pub(super) policies: Store<NetworkPolicy>,
    pub(super) volumes: Store<PersistentVolume>,
    pub(super) claims: Store<PersistentVolumeClaim>,
    pub(super) pods: Store<Pod>,
    pub(super) nodes: Store<Node>,
}

/// The kinds of objects that are cached.
pub(super) trait Kept:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
    /// The store of this kind.
    fn store(cache: &ObjectCache) -> &Store<Self>;
}

macro_rules! kept {
    ($($kind:ty => $field:ident),* $(,)?) => {
        $(impl Kept for $kind {
            fn store(cache: &ObjectCache) -> &Store<Self> {
                &cache.$field
            }
        })*
    };
}

kept! {
    Dataset => datasets, JindoRuntime => runtimes, DataLoad => loads, StatefulSet => sets, DaemonSet => daemons,
    ConfigMap => configs, Service => services, PodDisruptionBudget => budgets, NetworkPolicy => policies, PersistentVolume => volumes,
    PersistentVolumeClaim => claims, Pod => pods, Node => nodes,
}

fn place<K: Resource>(object: &K) -> (String, String) {
    (ResourceExt::namespace(object).unwrap_or_default(), object.name_any())
}

/// The key of an object that belongs to a runtime, which carries its name.
fn release<K: Resource>(object: &K) -> Key {
    let (namespace, name) = place(object);
    Key::Runtime(namespace, object.labels().get("release").cloned().unwrap_or(name))
}

/// The key of a pod: the runtime it belongs to, or the Datasets it uses.
fn of_pod(pod: &Pod) -> Key {
    if pod.labels().get("app.kubernetes.io/managed-by").is_some_and(|manager| manager == MANAGER) {
        return release(pod);
    }
    Key::Namespace(place(pod).0)
}

/// Names of the claims that a pod uses.
pub(super) fn claims_of(pod: &Pod) -> impl Iterator<Item = &str> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| Some(volume.persistent_volume_claim.as_ref()?.claim_name.as_str()))
}

/// Drops the parts of a pod that are never read here and would use much memory.
fn slim_pod(pod: &mut Pod) {
    pod.metadata.managed_fields = None;
    pod.metadata.annotations = None;
    if let Some(spec) = pod.spec.as_mut() {
        spec.containers.clear();
        spec.init_containers = None;
        spec.ephemeral_containers = None;
        spec.affinity = None;
        spec.tolerations = None;
        spec.topology_spread_constraints = None;
        let volumes = spec.volumes.take().unwrap_or_default();
        spec.volumes = Some(volumes.into_iter().filter(|one| one.persistent_volume_claim.is_some()).collect());
    }
}

fn slim_node(node: &mut Node) {
    node.metadata.managed_fields = None;
    node.metadata.annotations = None;
    if let Some(status) = node.status.as_mut() {
        status.images = None;
        status.capacity = None;
        status.allocatable = None;
        status.volumes_attached = None;
        status.volumes_in_use = None;
        // The heartbeat changes every few minutes and is not used.
        status.conditions.iter_mut().flatten().for_each(|one| one.last_heartbeat_time = None);
    }
}

/// Watches a kind and sends the key of every change to `wake`.
fn follow<K>(
    client: &Client,
    config: watcher::Config,
    slim: fn(&mut K),
    key: fn(&K) -> Key,
    wake: &UnboundedSender<Key>,
) -> Store<K>
where
    K: Resource<DynamicType = ()> + Lookup<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let wake = wake.clone();
    let kind = <K as Resource>::kind(&()).into_owned();
    let changes = watcher(Api::<K>::all(client.clone()), config).default_backoff().modify(slim);
    tokio::spawn(async move {
        let mut changes = std::pin::pin!(changes.reflect(writer).touched_objects());
        while let Some(change) = changes.next().await {
            match change {
                // The receiver is gone when the process ends.
                Ok(object) => drop(wake.send(key(&object))),
                Err(error) => tracing::warn!(kind, %error, "a watch was interrupted and is taken up again"),
            }
        }
    });
    store
}

impl ObjectCache {
    /// Starts all watches, and returns when each cache is filled.
    pub(super) async fn watch(client: Client, wake: &UnboundedSender<Key>) -> ObjectCache {
        let all = watcher::Config::default();
        let ours = all.clone().labels(&format!("app.kubernetes.io/managed-by={MANAGER}"));
        let cache = ObjectCache {
            datasets: follow(&client, all.clone(), |_| {}, |one| Key::Runtime(place(one).0, place(one).1), wake),
            runtimes: follow(&client, all.clone(), |_| {}, |one| Key::Runtime(place(one).0, place(one).1), wake),
            loads: follow(&client, all.clone(), |_| {}, |one| Key::Load(place(one).0, place(one).1), wake),
            sets: follow(&client, ours.clone(), |_| {}, release, wake),
            daemons: follow(&client, ours.clone(), |_| {}, release, wake),
            configs: follow(&client, ours.clone(), |_| {}, release, wake),
            services: follow(&client, ours.clone(), |_| {}, release, wake),
            budgets: follow(&client, ours.clone(), |_| {}, release, wake),
            policies: follow(&client, ours.clone(), |_| {}, release, wake),
            volumes: follow(&client, ours, |_| {}, |_| Key::All, wake),
            claims: follow(&client, all.clone(), |_| {}, |one| Key::Namespace(place(one).0), wake),
            pods: follow(&client, all.clone(), slim_pod, of_pod, wake),
            nodes: follow(&client, all, slim_node, |_| Key::All, wake),
            client,
        };
        cache.ready().await;
        cache
    }

    async fn ready(&self) {
        macro_rules! each {
            ($($field:ident),*) => { $( let _ = self.$field.wait_until_ready().await; )* };
        }
        each!(
            datasets, runtimes, loads, sets, daemons, configs, services, budgets, policies, volumes, claims, pods,
            nodes
        );
    }

    /// An object, as last seen.
    pub(super) fn get<K>(&self, namespace: &str, name: &str) -> Option<Arc<K>>
    where
        K: Kept + Lookup<DynamicType = ()>,
    {
        let mut at = ObjectRef::new(name);
        if !namespace.is_empty() {
            at = at.within(namespace);
        }
        K::store(self).get(&at)
    }

    /// Pods of a namespace that are not finished and match `is`.
    pub(super) fn pods(&self, namespace: &str, is: impl Fn(&Pod) -> bool) -> Vec<Arc<Pod>> {
        let over = |pod: &Pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            matches!(phase, Some("Succeeded" | "Failed"))
        };
        self.pods.state_filter(|pod| pod.metadata.namespace.as_deref() == Some(namespace) && !over(pod) && is(pod))
    }

    /// Pods of users that use a claim.
    pub(super) fn users(&self, namespace: &str, claim: &str) -> Vec<Arc<Pod>> {
        self.pods(namespace, |pod| claims_of(pod).any(|one| one == claim))
    }

    /// Keys of everything that has to be reconciled.
    pub(super) fn keys(&self, namespace: Option<&str>) -> Vec<Key> {
        let mut keys = HashMap::new();
        let within = |at: &(String, String)| namespace.is_none_or(|namespace| namespace == at.0);
        let pairs = self.datasets.state().iter().map(|one| place(&**one)).collect::<Vec<_>>();
        let runtimes = self.runtimes.state().iter().map(|one| place(&**one)).collect::<Vec<_>>();
        for at in pairs.into_iter().chain(runtimes).filter(within) {
            keys.insert(Key::Runtime(at.0, at.1), ());
        }
        for at in self.loads.state().iter().map(|one| place(&**one)).filter(within) {
            keys.insert(Key::Load(at.0, at.1), ());
        }
        keys.into_keys().collect()
    }
}
