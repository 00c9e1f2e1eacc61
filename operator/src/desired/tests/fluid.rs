//! What we make, beside what Fluid makes of the same resources: each difference has a reason.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::*;

/// What Fluid makes.
const FLUID: &str = include_str!("../golden/fluid-facts.txt");

/// Facts that differ, with the reason. `*` stands for any text; `+` is ours alone, `-` is Fluid's alone.
const DIFFERENCES: &[(&[&str], &str)] = &[
    (
        &[
            "-* label heritage=*",
            "-* label chart=*",
            "-* annotation *helm.sh/*",
            "-* selector heritage=*",
            "-* selector chart=*",
        ],
        "no Helm chart stands behind them",
    ),
    (
        &["-* label app.kubernetes.io/managed-by=Helm", "+* label app.kubernetes.io/managed-by=jindofs-operator"],
        "who made it is who is to be asked about it",
    ),
    (&["-* label fluid.io/managed-by=fluid"], "Fluid's controllers would look after it, if they ever run here"),
    (
        &[
            "+Persistent* label app=jindofs",
            "+Persistent* label release=demo",
            "+Persistent* label app.kubernetes.io/*",
        ],
        "by these the operator knows which volumes and claims it may delete",
    ),
    (
        &["+NetworkPolicy demo-jindofs*"],
        "nobody but the runtime, the operator and clients is to call masters and workers",
    ),
    (
        &["+DaemonSet demo-jindofs-fuse * mount /handover", "+DaemonSet demo-jindofs-fuse volume handover *"],
        "the node plugin holds the mount while the client is replaced",
    ),
    (
        &["+DaemonSet demo-jindofs-fuse * mount /staging", "+DaemonSet demo-jindofs-fuse volume staging *"],
        "the client keeps there what was written and is not stored yet",
    ),
    (&["-ConfigMap demo-jindofs-client-config*"], "nothing reads it: clients find the masters in fuse.toml"),
    (
        &["-ConfigMap demo-jindofs-config file *", "+ConfigMap demo-jindofs-config file *"],
        "our processes read TOML, each its own",
    ),
    (&["-ConfigMap demo-jindofs-config label name=*"], "it repeats the name"),
    (
        &[
            "-* env CLIENT_NAMESPACE_RPC_ADDRESS",
            "-* env STORAGE_NAMESPACE_RPC_ADDRESS",
            "-* env NAMESPACE_BACKEND_RAFT_INITIAL_CONF",
        ],
        "in the config file, the list of masters can change and no pod is another one",
    ),
    (&["-DaemonSet * env FLUID_*"], "in fuse.toml"),
    (&["+* env POD_NAME"], "a master's host name is made of it"),
    (
        &[
            "-* volume bigboot-config *",
            "+* volume config configMap demo-jindofs-config",
            "+* mount /etc/jindofs",
            "-* mount /jindocache.cfg",
            "-* mount /jindosdk.cfg",
            "-* mount /cacheset.xml",
        ],
        "one directory of TOML files instead of three files of other forms",
    ),
    (&["-* mount /hdfs-3.2.1/*"], "there is no HDFS client"),
    (&["+* volume tmp emptyDir", "+* mount /tmp"], "the root file system cannot be written"),
    (
        &["-* pod network of the node"],
        "pods have a network of their own unless networkmode says otherwise: no port is taken from the node",
    ),
    (&["-StatefulSet * pod user 0", "+StatefulSet * pod user 10001"], "masters and workers need no root"),
    (
        &[
            "-* volume jindofs-fuse-device *",
            "-* mount /dev/fuse",
            "-* volume jindofs-fuse-mount *",
            "+DaemonSet * volume mounts hostPath *",
        ],
        "a privileged container sees all devices",
    ),
    (&["+* port http *"], "metrics and probes"),
    (
        &["+StatefulSet demo-jindofs-master container * port raft 8103", "+Service * port raft 8103"],
        "one master is a group of one: it can become three",
    ),
    (
        &[
            "-Service demo-jindofs-master-0*",
            "+Service demo-jindofs-master",
            "+Service demo-jindofs-master *",
            "-StatefulSet demo-jindofs-master service jindofs-master",
            "+StatefulSet demo-jindofs-master service demo-jindofs-master",
        ],
        "one Service gives every master its name, NAME.demo-jindofs-master, however many there are; Fluid's StatefulSet names one that is not there",
    ),
    (
        &[
            "+StatefulSet demo-jindofs-master * jindofs.io/stateful-set=*",
            "+StatefulSet demo-jindofs-master selector release=demo",
            "-StatefulSet demo-jindofs-master selector name=demo-jindofs-master",
        ],
        "a pod that loses this label is let go of and still served, when one master becomes three",
    ),
    (
        &["-StatefulSet demo-jindofs-master start OrderedReady", "+StatefulSet demo-jindofs-master start Parallel"],
        "in order, masters that start again would wait for a quorum before the second starts",
    ),
    (
        &["-StatefulSet demo-jindofs-master * /dev/shm/*", "-StatefulSet demo-jindofs-master volume datavolume-1 *"],
        "metadata is never kept in memory",
    ),
    (
        &[
            "+StatefulSet demo-jindofs-master template meta",
            "+StatefulSet demo-jindofs-master * mount /var/lib/jindofs/meta",
        ],
        "every master has a volume of its own, also where none is named",
    ),
    (&["+PodDisruptionBudget demo-jindofs-master*"], "a drain must not take the quorum"),
    (
        &["-StatefulSet demo-jindofs-worker volume datavolume-1 *", "+StatefulSet demo-jindofs-worker volume tier-0 *"],
        "they are numbered as the levels are",
    ),
    (
        &["+StatefulSet demo-jindofs-worker volume work emptyDir", "+* mount /var/lib/jindofs"],
        "a worker remembers who it is while its cache is in memory",
    ),
    (
        &[
            "-StatefulSet demo-jindofs-worker * fluid.io/dataset-placement=Exclusive",
            "+StatefulSet demo-jindofs-worker * fluid.io/dataset-placement=Shared",
        ],
        "a node is kept for one worker only where placement says so",
    ),
    (
        &["-StatefulSet demo-jindofs-worker update OnDelete", "+StatefulSet demo-jindofs-worker update RollingUpdate"],
        "new settings reach the workers without anybody deleting pods",
    ),
    (&["+* annotation jindofs.io/settings=*"], "a pod with other settings is another pod"),
    (&["+PersistentVolume * type fuse"], "it is what is mounted"),
];

/// Fluid's facts: of one master or of three.
fn fluid(masters: i32) -> BTreeSet<String> {
    let (mut object, mut facts) = ("", BTreeSet::new());
    for line in FLUID.lines().filter(|line| !line.starts_with('#')) {
        let Some(fact) = line.strip_prefix("  ") else {
            object = line;
            facts.insert(object.to_owned());
            continue;
        };
        let (only, fact) = match fact.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
            Some((only, fact)) => (only.parse().ok(), fact),
            None => (None, fact),
        };
        if only.is_none_or(|only: i32| only == masters) {
            facts.insert(format!("{object} {fact}"));
        }
    }
    facts
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn each(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// Facts about one object, collected below its kind and name.
struct Facts<'a> {
    about: String,
    all: &'a mut BTreeSet<String>,
}

impl Facts<'_> {
    fn add(&mut self, fact: &str) {
        self.all.insert(format!("{} {fact}", self.about));
    }

    fn pairs(&mut self, what: &str, map: &Value) {
        for (key, value) in map.as_object().into_iter().flatten() {
            self.add(&format!("{what} {key}={}", text(value)));
        }
    }

    fn value(&mut self, what: &str, value: &Value) {
        if !value.is_null() {
            self.add(&format!("{what} {}", text(value)));
        }
    }

    fn pods(&mut self, template: &Value) {
        self.pairs("pod label", &template["metadata"]["labels"]);
        self.pairs("pod annotation", &template["metadata"]["annotations"]);
        let pod = &template["spec"];
        self.pairs("pod node", &pod["nodeSelector"]);
        self.value("pod user", &pod["securityContext"]["runAsUser"]);
        if pod["hostNetwork"] == true {
            self.add("pod network of the node");
        }
        if each(&pod["tolerations"]).any(|one| *one == serde_json::json!({"operator": "Exists"})) {
            self.add("pod tolerates everything");
        }
        for volume in each(&pod["volumes"]) {
            self.volume(volume);
        }
        for container in each(&pod["containers"]) {
            self.container(container);
        }
    }

    fn volume(&mut self, volume: &Value) {
        let source = volume.as_object().into_iter().flatten().find(|(key, _)| *key != "name");
        let (kind, source) = source.expect("a source");
        let name = ["name", "claimName", "path"].iter().find_map(|key| source[key].as_str()).unwrap_or_default();
        self.add(format!("volume {} {kind} {name}", text(&volume["name"])).trim_end());
    }

    fn container(&mut self, container: &Value) {
        let name = format!("container {}", text(&container["name"]));
        self.add(&name);
        each(&container["env"]).for_each(|one| self.value(&format!("{name} env"), &one["name"]));
        each(&container["volumeMounts"]).for_each(|one| self.value(&format!("{name} mount"), &one["mountPath"]));
        for port in each(&container["ports"]) {
            self.add(&format!("{name} port {} {}", text(&port["name"]), port["containerPort"]));
        }
        if container["securityContext"]["privileged"] == true {
            self.add(&format!("{name} privileged"));
        }
    }

    fn set(&mut self, spec: &Value) {
        self.pairs("selector", &spec["selector"]["matchLabels"]);
        self.value("service", &spec["serviceName"]);
        let update = &spec["updateStrategy"]["type"];
        self.add(&format!("update {}", update.as_str().unwrap_or("RollingUpdate")));
        self.value("start", &spec["podManagementPolicy"]);
        each(&spec["volumeClaimTemplates"]).for_each(|claim| self.value("template", &claim["metadata"]["name"]));
        self.pods(&spec["template"]);
    }

    fn offered(&mut self, spec: &Value) {
        let csi = &spec["csi"];
        self.value("driver", &csi["driver"]);
        self.value("handle", &csi["volumeHandle"]);
        self.value("type", &csi["fsType"]);
        self.pairs("attribute", &csi["volumeAttributes"]);
        self.value("class", &spec["storageClassName"]);
        self.value("volume", &spec["volumeName"]);
        self.value("reclaim", &spec["persistentVolumeReclaimPolicy"]);
        self.value("size", &spec["capacity"]["storage"]);
        self.value("size", &spec["resources"]["requests"]["storage"]);
        each(&spec["accessModes"]).for_each(|mode| self.value("mode", mode));
        if spec["claimRef"].is_object() {
            self.add(&format!("claim {}/{}", text(&spec["claimRef"]["namespace"]), text(&spec["claimRef"]["name"])));
        }
    }
}

/// What one object says.
fn facts_of(object: &Value, all: &mut BTreeSet<String>) {
    let kind = text(&object["kind"]);
    let about = format!("{kind} {}", text(&object["metadata"]["name"]));
    all.insert(about.clone());
    let (mut facts, spec) = (Facts { about, all }, &object["spec"]);
    facts.pairs("label", &object["metadata"]["labels"]);
    facts.pairs("annotation", &object["metadata"]["annotations"]);
    for file in object["data"].as_object().into_iter().flatten() {
        facts.add(&format!("file {}", file.0));
    }
    match kind.as_str() {
        "StatefulSet" | "DaemonSet" => facts.set(spec),
        "PersistentVolume" | "PersistentVolumeClaim" => facts.offered(spec),
        "Service" => {
            facts.pairs("selector", &spec["selector"]);
            if spec["clusterIP"] == "None" {
                facts.add("headless");
            }
            for port in each(&spec["ports"]) {
                facts.add(&format!("port {} {}", text(&port["name"]), port["port"]));
            }
        }
        _ => {}
    }
}

/// What we make.
fn ours(runtime: &JindoRuntime) -> BTreeSet<String> {
    let (dataset, _) = guide();
    let input = Input::new(&dataset, runtime, "localhost/jindofs:dev");
    let made = objects(&input).expect("objects");
    let mut all = BTreeSet::new();
    for document in made.yaml().expect("yaml").split("---\n").filter(|document| !document.is_empty()) {
        facts_of(&serde_saphyr::from_str(document).expect("yaml"), &mut all);
    }
    for object in [serde_json::to_value(volume(&input, "fuse.csi.fluid.io")), serde_json::to_value(claim(&input))] {
        facts_of(&object.expect("json"), &mut all);
    }
    all
}

/// True if `text` is what `pattern` says, in which `*` is any text.
fn like(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text.strip_prefix(before).is_some_and(|rest| {
            rest.char_indices().map(|(at, _)| at).chain([rest.len()]).any(|at| like(after, &rest[at..]))
        }),
    }
}

#[test]
fn what_differs_from_fluid_is_listed_with_its_reason_and_what_is_listed_differs() {
    let (_, guide) = guide();
    let mut three = guide.clone();
    three.spec.volumes.clear();
    three.spec.master = Default::default();
    three.spec.master.replicas = Some(3);
    let mut found = BTreeSet::new();
    for (masters, runtime) in [(1, &guide), (3, &three)] {
        let (fluid, ours) = (fluid(masters), ours(runtime));
        found.extend(ours.difference(&fluid).map(|fact| format!("+{fact}")));
        found.extend(fluid.difference(&ours).map(|fact| format!("-{fact}")));
    }
    let mut used: BTreeMap<&str, usize> = BTreeMap::new();
    let patterns: Vec<&str> = DIFFERENCES.iter().flat_map(|(patterns, _)| patterns.iter().copied()).collect();
    let mut unexplained = Vec::new();
    for fact in &found {
        let reasons: Vec<&str> = patterns.iter().copied().filter(|pattern| like(pattern, fact)).collect();
        for pattern in &reasons {
            *used.entry(*pattern).or_default() += 1;
        }
        if reasons.is_empty() {
            unexplained.push(fact.as_str());
        }
    }
    let unused: Vec<&str> = patterns.into_iter().filter(|pattern| !used.contains_key(pattern)).collect();
    assert!(unexplained.is_empty(), "no reason is given for\n{}", unexplained.join("\n"));
    assert!(unused.is_empty(), "listed, and no difference any more:\n{}", unused.join("\n"));
}

#[test]
fn a_star_is_any_text() {
    for (pattern, text, is) in [
        ("a*c", "abc", true),
        ("a*c", "ac", true),
        ("a*c", "acd", false),
        ("*b", "aab", true),
        ("a*b*c", "a-b-b-c", true),
        ("abc", "abcd", false),
        ("*", "", true),
    ] {
        assert_eq!(like(pattern, text), is, "{pattern} {text}");
    }
}
