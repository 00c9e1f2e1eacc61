//! Fields that are set and have no effect: each is named, with what to write instead. What is honoured in part is named
//! for the part that is not; a field that asks for what is so anyway is not worth a word.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde_json::json;

use super::mounts::{META_POLICY, is_interval, local};
use super::settings::{FIXED, role_of};
use crate::crd::{Component, DataLoad, Dataset, Fuse, JindoRuntime, Level, Mount, Policy, RuntimeRef};

/// A field without effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsupported {
    /// Where it stands, as in `spec.mounts[0].shared`.
    pub path: String,
    /// What is so instead, and what to do.
    pub advice: &'static str,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} has no effect: {}", self.path, self.advice)
    }
}

/// Collects what is set.
#[derive(Default)]
struct Found(Vec<Unsupported>);

impl Found {
    fn add(&mut self, set: bool, path: impl Into<String>, advice: &'static str) {
        if set {
            self.0.push(Unsupported { path: path.into(), advice });
        }
    }
}

/// Path of an entry of a map. A dot in its name would be read as one of the path's.
pub(super) fn entry(map: &str, key: &str) -> String {
    if key.contains('.') { format!("{map}[{key:?}]") } else { format!("{map}.{key}") }
}

/// True if there is text.
fn said(text: Option<&String>) -> bool {
    text.is_some_and(|text| !text.is_empty())
}

/// True if an object has any field set.
fn any<T: Serialize>(object: Option<&T>) -> bool {
    object.and_then(|object| serde_json::to_value(object).ok()).is_some_and(|value| value != json!({}))
}

/// Fields of a Dataset.
pub fn of_dataset(dataset: &Dataset) -> Vec<Unsupported> {
    let (spec, mut found) = (&dataset.spec, Found::default());
    for (index, mount) in spec.mounts.iter().enumerate() {
        of_mount(mount, &format!("spec.mounts[{index}]"), &mut found);
    }
    of_options(&spec.shared_options, "spec.sharedOptions", &mut found);
    found.add(
        spec.owner.is_some() && spec.mounts.iter().any(local),
        "spec.owner",
        "files of local:// mounts keep the owners they have: change them there, and leave it out",
    );
    found.add(
        any(spec.data_restore_location.as_ref()),
        "spec.dataRestoreLocation",
        "metadata is restored from no other place: leave it out",
    );
    for (index, wanted) in spec.runtimes.iter().enumerate() {
        found.add(
            !serves(wanted, dataset),
            format!("spec.runtimes[{index}]"),
            "the JindoRuntime of the same name and namespace serves it: leave it out",
        );
    }
    found.0
}

/// True if the runtime asked for is the one that serves the Dataset anyway.
fn serves(wanted: &RuntimeRef, dataset: &Dataset) -> bool {
    let is = |asked: &Option<String>, real: Option<&str>| asked.as_deref().is_none_or(|asked| Some(asked) == real);
    let own = &dataset.metadata;
    is(&wanted.name, own.name.as_deref())
        && is(&wanted.namespace, own.namespace.as_deref())
        && is(&wanted.category, Some("Accelerate"))
        && is(&wanted.r#type, Some("jindo"))
        && wanted.master_replicas.is_none()
}

fn of_mount(mount: &Mount, path: &str, found: &mut Found) {
    of_options(&mount.options, &format!("{path}.options"), found);
    found.add(
        mount.shared == Some(true),
        format!("{path}.shared"),
        "each Dataset has a cache of its own: leave it out, and use the Dataset's claim in every pod that shares it",
    );
}

/// Options that say how a mount is cached, where it is cached otherwise.
fn of_options(options: &BTreeMap<String, String>, path: &str, found: &mut Found) {
    let is_policy = |text: &str| is_interval(text) || ["once", "always"].contains(&&*text.trim().to_ascii_lowercase());
    found.add(
        options.get(META_POLICY).is_some_and(|policy| !is_policy(policy)),
        entry(path, META_POLICY),
        "it is neither ONCE, ALWAYS nor a time as 30s or 10m, and taken for ONCE: write one of them",
    );
    let copies = "each block is cached once: leave it out";
    let known = [
        ("cacheStrategy", &["DISTRIBUTED"][..], "blocks are always placed by DISTRIBUTED: leave it out"),
        ("readCacheReplica", &["1"], copies),
        ("writeCacheReplica", &["1"], copies),
        ("writePolicy", &[], "files cannot be written through the mount yet: leave it out"),
    ];
    for (name, honoured, advice) in known {
        let other = |value: &String| !honoured.iter().any(|one| one.eq_ignore_ascii_case(value));
        found.add(options.get(name).is_some_and(other), entry(path, name), advice);
    }
}

/// Fields of a JindoRuntime.
pub fn of_runtime(runtime: &JindoRuntime) -> Vec<Unsupported> {
    let (spec, mut found) = (&runtime.spec, Found::default());
    of_component(&spec.master, "spec.master", &mut found);
    found.add(
        spec.master.disabled == Some(true),
        "spec.master.disabled",
        "nothing can be read without masters: leave it out; worker.disabled is for a cluster without a cache",
    );
    of_component(&spec.worker, "spec.worker", &mut found);
    found.add(
        spec.worker.replicas.is_some_and(|count| count != spec.replicas.unwrap_or(1)),
        "spec.worker.replicas",
        "the number of workers is spec.replicas: write it there",
    );
    of_fuse(&spec.fuse, &mut found);
    for key in spec.properties.keys() {
        let advice =
            "no role reads this key: its name begins with namespace., storage., fs. or fuse. for one that does";
        found.add(role_of(key).is_none(), entry("spec.properties", key), advice);
    }
    fixed(&spec.properties, "spec.properties", &mut found);
    of_levels(runtime, &mut found);
    for (index, volume) in spec.volumes.iter().enumerate() {
        let mut mounts = spec.master.volume_mounts.iter().chain(&spec.worker.volume_mounts);
        found.add(
            !mounts.any(|mount| mount.name == volume.name),
            format!("spec.volumes[{index}]"),
            "neither master.volumeMounts nor worker.volumeMounts names it: mount it, or leave it out",
        );
    }
    of_whole(runtime, &mut found);
    found.0
}

/// Fields of the runtime that belong to no role.
fn of_whole(runtime: &JindoRuntime, found: &mut Found) {
    let spec = &runtime.spec;
    found.add(
        said(spec.user.as_ref()),
        "spec.user",
        "requests carry no user name, as nobody asks for one yet: leave it out",
    );
    found.add(said(spec.hadoop_config.as_ref()), "spec.hadoopConfig", "hdfs:// cannot be mounted: leave it out");
    found.add(
        said(spec.secret.as_ref()),
        "spec.secret",
        "keys come from encryptOptions of the Dataset's mounts, and are read again when they change: name its keys there",
    );
    found.add(
        !spec.log_config.is_empty(),
        "spec.logConfig",
        "logs go to the output of the containers: set JINDOFS_LOG in env of master and worker, as in info,jindofs=debug",
    );
    found.add(
        any(spec.clean_cache_policy.as_ref()),
        "spec.cleanCachePolicy",
        "a cache in an emptyDir goes with its pod, one in a hostPath stays on its node: leave it out, and remove the directory there",
    );
}

/// What masters and workers have in common.
fn of_component(component: &Component, path: &str, found: &mut Found) {
    found.add(
        !component.ports.is_empty(),
        format!("{path}.ports"),
        "ports are fixed, as every pod has an address of its own: leave it out",
    );
    claims(component.resources.as_ref(), path, found);
    fixed(&component.properties, &format!("{path}.properties"), found);
}

fn claims(resources: Option<&k8s_openapi::api::core::v1::ResourceRequirements>, path: &str, found: &mut Found) {
    found.add(
        resources.is_some_and(|all| all.claims.as_ref().is_some_and(|claims| !claims.is_empty())),
        format!("{path}.resources.claims"),
        "there is no field for the claims of the pod that it names: leave it out",
    );
}

fn fixed(properties: &BTreeMap<String, String>, path: &str, found: &mut Found) {
    for key in properties.keys() {
        let advice = "it follows from what else is made, and Services and probes count on it: leave it out";
        found.add(FIXED.contains(&key.as_str()), entry(path, key), advice);
    }
}

fn of_fuse(fuse: &Fuse, found: &mut Found) {
    found.add(
        !fuse.args.is_empty(),
        "spec.fuse.args",
        "there are no mount options: use fuse.properties, such as fuse.attr-ttl for attr_timeout and entry_timeout",
    );
    claims(fuse.resources.as_ref(), "spec.fuse", found);
    fixed(&fuse.properties, "spec.fuse.properties", found);
    let policy = fuse.clean_policy.as_deref().unwrap_or_default();
    found.add(
        !["", "OnRuntimeDeleted", "OnDemand"].contains(&policy),
        "spec.fuse.cleanPolicy",
        "clients are removed by OnRuntimeDeleted or OnDemand: write one of them",
    );
    found.add(
        !fuse.log_config.is_empty(),
        "spec.fuse.logConfig",
        "logs go to the output of the containers: set JINDOFS_LOG in fuse.env, as in info,jindofs=debug",
    );
    let metrics = fuse.metrics.clone().unwrap_or_default();
    found.add(
        metrics.enabled == Some(false),
        "spec.fuse.metrics.enabled",
        "metrics are always served, on port 10001: leave it out",
    );
    found.add(
        !["", "None", "MountPod", "All"].contains(&metrics.scrape_target.as_deref().unwrap_or_default()),
        "spec.fuse.metrics.scrapeTarget",
        "there are no sidecars: write MountPod or None",
    );
}

/// Watermarks are those of the first level for all.
fn of_levels(runtime: &JindoRuntime, found: &mut Found) {
    let levels = runtime.spec.tiered_store.iter().flat_map(|store| &store.levels);
    let first = levels.clone().next();
    for (index, level) in levels.enumerate() {
        let path = format!("spec.tieredstore.levels[{index}]");
        let mark =
            |of: fn(&Level) -> &Option<String>| of(level).is_some() && first.is_some_and(|one| of(one) != of(level));
        let advice = "it is that of the first level for all: write it there, and leave it out here";
        found.add(mark(|level| &level.high), format!("{path}.high"), advice);
        found.add(mark(|level| &level.low), format!("{path}.low"), advice);
        found.add(
            level.quota.is_some() && level.quota_list.is_some(),
            format!("{path}.quota"),
            "quotaList says it for each directory: leave out one of the two",
        );
    }
}

/// Fields of a DataLoad.
pub fn of_load(load: &DataLoad) -> Vec<Unsupported> {
    let (spec, mut found) = (&load.spec, Found::default());
    found.add(
        spec.policy == Some(Policy::OnEvent),
        "spec.policy",
        "nothing is waited for: leave it out, and create the DataLoad when it shall run",
    );
    found.add(
        said(spec.schedule.as_ref()) && spec.policy != Some(Policy::Cron),
        "spec.schedule",
        "without policy Cron a load runs once: leave it out",
    );
    found.add(
        spec.run_after.is_some(),
        "spec.runAfter",
        "it waits for no other operation: leave it out, and create the DataLoad when it shall run",
    );
    found.add(
        spec.load_metadata == Some(true),
        "spec.loadMetadata",
        "metadata is read as metaPolicy of the mount says: leave it out",
    );
    for (index, target) in spec.target.iter().enumerate() {
        let path = format!("spec.target[{index}].replicas");
        found.add(target.replicas.is_some_and(|count| count != 1), path, "each block is cached once: leave it out");
    }
    for key in spec.options.keys() {
        found.add(true, entry("spec.options", key), "a load has no options: leave it out");
    }
    let pods = "masters and workers load, there are no pods of its own: leave it out";
    found.add(any(spec.pod_metadata.as_ref()), "spec.podMetadata", pods);
    found.add(any(spec.affinity.as_ref()), "spec.affinity", pods);
    found.add(!spec.tolerations.is_empty(), "spec.tolerations", pods);
    found.add(!spec.node_selector.is_empty(), "spec.nodeSelector", pods);
    found.add(said(spec.scheduler_name.as_ref()), "spec.schedulerName", pods);
    found.add(any(spec.resources.as_ref()), "spec.resources", pods);
    found.0
}
