//! Reconciles one Dataset and its JindoRuntime: brings the cluster from its observed to its desired state, in
//! idempotent steps.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::{DaemonSet, StatefulSet};
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Resource, ResourceExt};
use serde_json::json;

use super::apply::{FIELD_MANAGER, apply};
use super::claim_migration::{self, MigrationStage};
use super::masters::Masters;
use super::status::{NotReady, name_unsupported, set, unset};
use super::{Context, members, mounts, pod_diagnosis, report, workers};
use crate::crd::{
    DATASET_FINALIZER, Dataset, DatasetStatus, HcfsStatus, JindoRuntime, RUNTIME_FINALIZER, RuntimeRef, RuntimeStatus,
};
use crate::desired::{self, Input, MASTER_RPC, Names, Objects, Role};
use crate::events::EventMessage;

/// Pause while a step is in progress.
const SOON: Duration = Duration::from_secs(1);
/// Pause in the steady state: only the masters are asked, not Kubernetes.
const STEADY: Duration = Duration::from_secs(5);
/// How long a Dataset may be unavailable before that is reported: longer than an election.
const GRACE: Duration = Duration::from_secs(10);

/// Reconciles the Dataset and the JindoRuntime of one name.
pub(super) struct RuntimeReconciler {
    pub(super) context: Context,
    pub(super) namespace: String,
    pub(super) name: String,
    /// Since when a bound Dataset is unavailable.
    down_since: Option<Instant>,
    /// Progress of workers that are being drained.
    pub(super) drains: workers::DrainProgress,
}

/// Outcome of one pass.
struct Found {
    not_ready: Option<NotReady>,
    bound: bool,
}

impl RuntimeReconciler {
    pub(super) fn new(context: Context, namespace: String, name: String) -> RuntimeReconciler {
        RuntimeReconciler { context, namespace, name, down_since: None, drains: workers::DrainProgress::default() }
    }

    /// One pass. Returns when to reconcile again; `None` if nothing is left to reconcile.
    pub(super) async fn reconcile(&mut self) -> Result<Option<Duration>, kube::Error> {
        let (namespace, name) = (self.namespace.clone(), self.name.clone());
        let dataset = self.context.cache.get::<Dataset>(&namespace, &name);
        let runtime = self.context.cache.get::<JindoRuntime>(&namespace, &name);
        let leaving = runtime.as_ref().filter(|one| one.metadata.deletion_timestamp.is_some());
        let dataset_leaves = dataset.as_ref().is_some_and(|one| one.metadata.deletion_timestamp.is_some());
        if leaving.is_some() || dataset_leaves {
            let pause = self.release(dataset.as_deref(), leaving.map(|one| &**one)).await?;
            if let Some(dataset) = dataset.filter(|_| !dataset_leaves) {
                self.unbind(&dataset, &NotReady::passing("RuntimeDeleted", "its JindoRuntime is being deleted"))
                    .await?;
            }
            return Ok(Some(pause));
        }
        match (dataset, runtime) {
            (None, None) => Ok(None),
            (Some(dataset), None) => {
                let message =
                    format!("there is no JindoRuntime {name} in namespace {namespace} to serve it: create one");
                self.unbind(&dataset, &NotReady::passing("RuntimeNotFound", message)).await?;
                Ok(Some(Duration::from_secs(600)))
            }
            (None, Some(runtime)) => {
                let message = format!("there is no Dataset {name} in namespace {namespace} to serve: create one");
                let mut status = runtime.status.clone().unwrap_or_default();
                let not_ready = NotReady::passing("DatasetNotFound", message);
                let news = set(&mut status.conditions, "Ready", Err(&not_ready));
                let named = name_unsupported(&mut status.conditions, &desired::of_runtime(&runtime));
                self.write_runtime(&runtime, &status).await?;
                self.emit_all(&*runtime, news.into_iter().chain(named)).await;
                Ok(Some(Duration::from_secs(600)))
            }
            (Some(dataset), Some(runtime)) => self.serve(&dataset, &runtime).await.map(Some),
        }
    }

    async fn unbind(&self, dataset: &Dataset, not_ready: &NotReady) -> Result<(), kube::Error> {
        let old = dataset.status.clone().unwrap_or_default();
        let mut status =
            DatasetStatus { conditions: old.conditions, operation_ref: old.operation_ref, ..Default::default() };
        status.phase = Some("NotBound".to_owned());
        let news = set(&mut status.conditions, "Ready", Err(not_ready));
        let named = name_unsupported(&mut status.conditions, &desired::of_dataset(dataset));
        self.write_dataset(dataset, &status).await?;
        self.emit_all(dataset, news.into_iter().chain(named)).await;
        Ok(())
    }

    async fn serve(&mut self, dataset: &Dataset, runtime: &JindoRuntime) -> Result<Duration, kube::Error> {
        self.finalize(dataset, DATASET_FINALIZER, true).await?;
        self.finalize(runtime, RUNTIME_FINALIZER, true).await?;
        let options = self.context.options.clone();
        let mut input = Input::new(dataset, runtime, &options.image);
        input.operator_namespace = &options.namespace;
        let live = self.context.cache.get::<StatefulSet>(&self.namespace, &input.names.of(Role::Master));
        let templates = live.as_ref().and_then(|set| set.spec.as_ref()?.volume_claim_templates.as_ref());
        input.own_claims = templates.is_some_and(|all| !all.is_empty());
        let claim = desired::named_claim(&input)
            .and_then(|claim| self.context.cache.get::<PersistentVolumeClaim>(&self.namespace, &claim));
        input.claim = claim.as_ref().and_then(|claim| claim.spec.as_ref());

        let mut own = runtime.status.clone().unwrap_or_default();
        let mut shown = dataset.status.clone().unwrap_or_default();
        let found = self.steps(&input, claim.is_some(), live.as_deref(), &mut own, &mut shown).await?;
        let mut news = Vec::new();
        self.conclude(&input, &found, &mut own, &mut shown, &mut news);
        news.extend(name_unsupported(&mut shown.conditions, &desired::of_dataset(dataset)));
        let named = name_unsupported(&mut own.conditions, &desired::of_runtime(runtime));
        self.write_runtime(runtime, &own).await?;
        self.write_dataset(dataset, &shown).await?;
        self.emit_all(runtime, named.into_iter()).await;
        self.emit_all(dataset, news.into_iter()).await;
        Ok(if found.bound && found.not_ready.is_none() { STEADY } else { SOON })
    }

    /// All steps up to the first one that has to wait.
    async fn steps(
        &self,
        input: &Input<'_>,
        claim_exists: bool,
        live: Option<&StatefulSet>,
        own: &mut RuntimeStatus,
        shown: &mut DatasetStatus,
    ) -> Result<Found, kube::Error> {
        let stop = |not_ready: NotReady| Ok(Found { not_ready: Some(not_ready), bound: false });
        if let Some(problem) = desired::problems(input).into_iter().next() {
            return stop(NotReady::new(problem.reason, problem.message));
        }
        if let Err(not_ready) = self.check_cluster_kept(input, own) {
            return stop(not_ready);
        }
        if let Err(not_ready) = self.check_not_superseded(input) {
            return stop(not_ready);
        }
        if let Some(claim) = desired::named_claim(input).filter(|_| !claim_exists && desired::replicas(input) == 1) {
            let message = format!("the claim {claim} for the metadata of the master does not exist: create it");
            return stop(NotReady::new("ClaimNotFound", message));
        }
        let mut objects = match desired::objects(input) {
            Ok(objects) => objects,
            Err(problem) => return stop(NotReady::new(problem.reason, problem.message)),
        };
        let pods = self.pods(Role::Master);
        let masters = Masters::ask(&addresses(&pods)).await;
        let recorded = own.cluster.as_ref().and_then(|cluster| cluster.uuid.as_deref());
        let on_named = self.on_named_claim(input, recorded);
        let stage = claim_migration::stage(input, live, on_named, &pods, &masters);
        let mut converting = None;
        match stage {
            MigrationStage::Leave => {
                return self.leave(input).await.map(|not_ready| Found { not_ready: Some(not_ready), bound: true });
            }
            MigrationStage::Settled => {
                let size = members::set_size(input, live, &masters);
                objects.masters.spec.get_or_insert_default().replicas = Some(size);
            }
            MigrationStage::Beside | MigrationStage::Over => {
                let (not_ready, go_on) = self.convert(input, stage, &pods, &masters).await?;
                let settles = stage == MigrationStage::Over && go_on;
                if !go_on {
                    return Ok(Found { not_ready: Some(not_ready), bound: true });
                }
                if !settles {
                    claim_migration::beside(&mut objects.masters, desired::replicas(input));
                }
                converting = Some(not_ready);
            }
        }
        let (size, draining) = self.workers_size(input, &masters).await;
        objects.workers.spec.get_or_insert_default().replicas = Some(size);
        self.apply_all(input, objects).await?;
        if let Some(live) = live.filter(|_| stage == MigrationStage::Settled && masters.leader().is_none())
            && let Some(doing) = self.roll(input, live, &pods, &masters).await?
        {
            tracing::info!(name = self.name, doing, "no master leads");
        }
        if let Err(not_ready) = self.found(input, input.runtime, own, &masters).await? {
            report::cluster(&masters, own.cluster.get_or_insert_default());
            let blocked = if not_ready.passing { self.blocked(&pods).await? } else { None };
            return stop(blocked.unwrap_or(not_ready));
        }
        report::cluster(&masters, own.cluster.get_or_insert_default());
        if masters.leader().is_none() {
            let blocked = self.blocked(&pods).await?;
            let answer = masters.answers().count();
            let message = format!("{answer} of {} masters answer, and none leads", desired::replicas(input));
            // Before the cluster first served, its masters are only electing their first leader.
            let served = shown.phase.as_deref().is_some_and(|phase| phase != "NotBound");
            let lost = NotReady { passing: !served, ..NotReady::new("QuorumLost", message) };
            return stop(blocked.unwrap_or(lost));
        }
        let mut not_ready = converting.or(draining);
        if let Err(why) = members::set_members(input, &masters).await {
            not_ready = Some(NotReady::passing("MembersChanging", why));
        }
        if let Err(mount) = mounts::apply(input, &masters).await {
            return Ok(Found { not_ready: Some(mount), bound: false });
        }
        let usage = match masters.usage().await {
            Ok(usage) => usage,
            Err(why) => return stop(NotReady::passing("MastersNotReady", why)),
        };
        report::data(&usage, shown);
        if let Err(why) = self.tend_workers(input, &masters, &usage).await {
            not_ready = not_ready.or(Some(NotReady::passing("WorkersChanging", why)));
        }
        if desired::workers(input) > 0 && !report::any_worker(&usage) {
            let blocked = self.blocked(&self.pods(Role::Worker)).await?;
            return stop(blocked.unwrap_or_else(|| NotReady::passing("WorkersStarting", "no worker has reported yet")));
        }
        self.offer(input).await?;
        if not_ready.is_none() {
            not_ready = self.blocked(&pods).await?;
        }
        if stage == MigrationStage::Settled {
            let claim = self.exchange_claim(input, &pods, &masters).await?;
            // A sole master must keep its claim, but its pod may be updated.
            let waits = claim.is_some() && desired::replicas(input) > 1;
            let rolled = match live {
                Some(live) if !waits => self.roll(input, live, &pods, &masters).await?,
                _ => None,
            };
            not_ready = not_ready.or_else(|| rolled.or(claim).map(|doing| NotReady::passing("Updating", doing)));
        }
        Ok(Found { not_ready, bound: true })
    }

    /// Asks each master for its status.
    pub(super) async fn masters(&self) -> Masters {
        Masters::ask(&addresses(&self.pods(Role::Master))).await
    }

    /// Pods of a role, by name.
    pub(super) fn pods(&self, role: Role) -> Vec<Arc<Pod>> {
        let wanted = Names { namespace: self.namespace.clone(), name: self.name.clone() }.selector(role);
        let fits = |pod: &Pod| wanted.iter().all(|(key, value)| pod.labels().get(key) == Some(value));
        let mut pods = self.context.cache.pods(&self.namespace, fits);
        pods.sort_by_key(|pod| pod.name_any());
        pods
    }

    /// Why the first pod that is not ready does not run.
    async fn blocked(&self, pods: &[Arc<Pod>]) -> Result<Option<NotReady>, kube::Error> {
        for pod in pods.iter().filter(|pod| !pod_diagnosis::ready(pod)) {
            if let Some(not_ready) = pod_diagnosis::why(&self.context, pod).await? {
                return Ok(Some(not_ready));
            }
        }
        Ok(None)
    }

    pub(super) fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.context.cache.client.clone(), &self.namespace)
    }

    async fn apply_all(&self, input: &Input<'_>, objects: Objects) -> Result<(), kube::Error> {
        let (cache, owner) = (&self.context.cache, owner(input.runtime));
        // Before the pods, so that their ports are restricted from the start.
        if let Some(policy) = objects.policy {
            apply(cache, self.api(), policy, owner.clone()).await?;
        }
        apply(cache, self.api(), objects.config, owner.clone()).await?;
        apply(cache, self.api(), objects.service, owner.clone()).await?;
        apply(cache, self.api(), objects.masters, owner.clone()).await?;
        if let Some(budget) = objects.budget {
            apply(cache, self.api(), budget, owner.clone()).await?;
        }
        apply(cache, self.api(), objects.workers, owner.clone()).await?;
        apply(cache, self.api(), objects.fuse, owner).await?;
        Ok(())
    }

    /// Creates the volume and the claim that pods refer to, and labels the nodes with such pods, so that they run a
    /// client.
    async fn offer(&self, input: &Input<'_>) -> Result<(), kube::Error> {
        let cache = &self.context.cache;
        let volume = desired::volume(input, &self.context.options.driver);
        apply(cache, Api::all(cache.client.clone()), volume, None).await?;
        apply(cache, self.api(), desired::claim(input), None).await?;
        let label = input.node_label();
        let users = cache.users(&self.namespace, &self.name);
        let mut nodes: Vec<&str> = users.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.as_deref()).collect();
        nodes.sort_unstable();
        nodes.dedup();
        for node in &nodes {
            let labelled = cache.get::<Node>("", node).is_some_and(|node| node.labels().contains_key(&label));
            if !labelled {
                self.label(node, json!({ label.as_str(): "true" })).await?;
            }
        }
        if input.runtime.spec.fuse.clean_policy.as_deref() == Some("OnDemand") {
            for node in cache.nodes.state().iter().filter(|node| !nodes.contains(&node.name_any().as_str())) {
                self.unlabel(node, &label).await?;
            }
        }
        Ok(())
    }

    pub(super) fn node_label(&self, dataset: Option<&Dataset>) -> String {
        let names = Names { namespace: self.namespace.clone(), name: self.name.clone() };
        names.node_label(dataset.and_then(|dataset| dataset.metadata.uid.as_deref()))
    }

    /// Sets phases and conditions from the outcome of a pass.
    fn conclude(
        &mut self,
        input: &Input<'_>,
        found: &Found,
        own: &mut RuntimeStatus,
        shown: &mut DatasetStatus,
        news: &mut Vec<EventMessage>,
    ) {
        let cache = &self.context.cache;
        let get = |role| cache.get::<StatefulSet>(&self.namespace, &input.names.of(role));
        let (masters, workers) = (get(Role::Master), get(Role::Worker));
        let fuse = cache.get::<DaemonSet>(&self.namespace, &input.names.of(Role::Fuse));
        let quorum = own.cluster.as_ref().is_some_and(|cluster| cluster.quorum == Some(true));
        let (masters_wanted, workers_wanted) = (desired::replicas(input), desired::workers(input));
        report::counts(
            (masters.as_deref(), masters_wanted),
            (workers.as_deref(), workers_wanted),
            fuse.as_deref(),
            quorum,
            own,
        );
        own.selector = Some(
            input.names.selector(Role::Worker).iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(","),
        );
        let was_bound = shown.phase.as_deref() == Some("Bound");
        shown.conditions.retain(|one| one.r#type != "Deletable");
        unset(&mut own.conditions, "Deletable");
        if found.bound {
            self.down_since = None;
            if own.setup_duration.is_none()
                && let Some(made) = &input.runtime.metadata.creation_timestamp
            {
                own.setup_duration = Some(format!("{}s", Timestamp::now().as_second() - made.0.as_second()));
            }
            shown.phase = Some("Bound".to_owned());
            shown.mounts.clone_from(&input.dataset.spec.mounts);
            own.mounts.clone_from(&input.dataset.spec.mounts);
            shown.hcfs = Some(HcfsStatus {
                endpoint: Some(format!("jindo://{}", input.names.masters(masters_wanted, MASTER_RPC))),
                ..HcfsStatus::default()
            });
            shown.runtimes = vec![RuntimeRef {
                name: Some(self.name.clone()),
                namespace: Some(self.namespace.clone()),
                category: Some("Accelerate".to_owned()),
                r#type: Some("jindo".to_owned()),
                master_replicas: Some(masters_wanted),
            }];
            own.cache_states.clone_from(&shown.cache_states);
        } else if was_bound || shown.phase.as_deref() == Some("Failed") {
            let since = *self.down_since.get_or_insert_with(Instant::now);
            if since.elapsed() < GRACE {
                return;
            }
            shown.phase = Some("Failed".to_owned());
        } else {
            shown.phase = Some("NotBound".to_owned());
        }
        let ready = Ok(("DatasetReady", "it is served"));
        let (bound, not_ready) = (found.bound, found.not_ready.as_ref());
        let state = if bound { ready } else { not_ready.map_or(ready, Err) };
        news.extend(set(&mut shown.conditions, "Ready", state));
        let _ = set(&mut own.conditions, "Ready", state);
        match not_ready.filter(|_| bound) {
            Some(not_ready) => news.extend(set(&mut own.conditions, "Settled", Err(not_ready))),
            None if bound => {
                drop(set(&mut own.conditions, "Settled", Ok(("AsAsked", "everything is as it was asked for"))))
            }
            None => unset(&mut own.conditions, "Settled"),
        }
    }

    pub(super) async fn write_dataset(&self, dataset: &Dataset, status: &DatasetStatus) -> Result<(), kube::Error> {
        if dataset.status.as_ref() == Some(status) {
            return Ok(());
        }
        self.write::<Dataset>(json!(status)).await
    }

    pub(super) async fn write_runtime(
        &self,
        runtime: &JindoRuntime,
        status: &RuntimeStatus,
    ) -> Result<(), kube::Error> {
        if runtime.status.as_ref() == Some(status) {
            return Ok(());
        }
        self.write::<JindoRuntime>(json!(status)).await
    }

    async fn write<K>(&self, status: serde_json::Value) -> Result<(), kube::Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        let object = json!({
            "apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": {"name": self.name}, "status": status,
        });
        let api: Api<K> = self.api();
        let params = PatchParams::apply(FIELD_MANAGER).force();
        super::apply::gone(api.patch_status(&self.name, &params, &Patch::Apply(object)).await)
    }
}

/// Addresses of pods, by pod name.
fn addresses(pods: &[Arc<Pod>]) -> BTreeMap<String, String> {
    let each = pods.iter().filter_map(|pod| Some((pod.name_any(), pod.status.as_ref()?.pod_ip.clone()?)));
    each.collect()
}

fn owner(runtime: &JindoRuntime) -> Option<OwnerReference> {
    runtime.controller_owner_ref(&())
}
