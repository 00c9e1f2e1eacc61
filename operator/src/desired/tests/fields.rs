//! Every field of Fluid's resources, set in turn: what is made of the resources changes, or the field is named.

use serde_json::{Value, json};

use super::*;
use crate::crd::DataLoad;

/// All fields: kind, path and type.
const FIELDS: &str = include_str!("../../crd/fluid-fields.txt");

/// Fields that change no object and are honoured nevertheless, each with where. Nothing may stand here that need not.
const ELSEWHERE: [(&str, &str); 9] = [
    ("Dataset .spec.owner.user", "the number beside it is what counts"),
    ("Dataset .spec.owner.group", "the number beside it is what counts"),
    ("JindoRuntime .spec.runAs.user", "the number beside it is what counts"),
    ("JindoRuntime .spec.runAs.group", "the number beside it is what counts"),
    ("DataLoad .spec.dataset.name", "the controller asks the masters of that Dataset"),
    ("DataLoad .spec.dataset.namespace", "the controller asks the masters of that Dataset"),
    ("DataLoad .spec.target[].path", "the controller asks the masters to load it"),
    ("DataLoad .spec.ttlSecondsAfterFinished", "the controller removes the DataLoad then"),
    ("JindoRuntime .spec.fuse.tolerations[]", "clients tolerate everything"),
];

/// Names that have to stand elsewhere too: without that, the resources are refused.
const REFERENCES: [&str; 3] = [
    "JindoRuntime .spec.volumes[].name",
    "JindoRuntime .spec.master.volumeMounts[].name",
    "JindoRuntime .spec.worker.volumeMounts[].name",
];

/// Values of fields that do not take any value of their type.
fn fitting(field: &str) -> Option<Value> {
    let value = match field {
        "Dataset .spec.accessModes[]" => json!("ReadWriteMany"),
        "Dataset .spec.mounts[].mountPoint" => json!("oss://other/data"),
        "Dataset .spec.mounts[].path" => json!("/data"),
        // Without it, and without accessModes, nothing can be written.
        "Dataset .spec.mounts[].readOnly" => json!(false),
        "JindoRuntime .spec.fuse.cleanPolicy" => json!("OnFuseChanged"),
        // They are always served.
        "JindoRuntime .spec.fuse.metrics.enabled" => json!(false),
        "JindoRuntime .spec.fuse.metrics.scrapeTarget" => json!("MountPod"),
        "JindoRuntime .spec.master.replicas" => json!(3),
        "JindoRuntime .spec.tieredstore.levels[].path" => json!("/mnt/cache"),
        "JindoRuntime .spec.tieredstore.levels[].quota" => json!("3Gi"),
        "JindoRuntime .spec.tieredstore.levels[].quotaList" => json!("3Gi"),
        "DataLoad .spec.policy" => json!("OnEvent"),
        _ => return None,
    };
    Some(value)
}

/// What an object or an entry of a list holds at least.
fn least(parent: &str) -> Value {
    let user = json!({"uid": 1, "gid": 1, "user": "u", "group": "g"});
    match parent {
        "Dataset .spec.owner" | "JindoRuntime .spec.runAs" => user,
        "Dataset .spec.sharedEncryptOptions[]" => {
            json!({"name": "fs.oss.securityToken", "valueFrom": {"secretKeyRef": {"name": "token"}}})
        }
        "JindoRuntime .spec.worker.volumeMounts[]" => json!({"name": "meta-vol", "mountPath": "/more"}),
        "DataLoad .spec.target[]" => json!({"path": "/"}),
        "DataLoad .spec.runAfter" | "DataLoad .spec.runAfter.affinityStrategy.dependOn" => {
            json!({"kind": "DataProcess", "name": "first"})
        }
        "DataLoad .spec.runAfter.affinityStrategy.prefers[]" => json!({"name": "n", "weight": 1}),
        "DataLoad .spec.runAfter.affinityStrategy.requires[]" => json!({"name": "n"}),
        _ => json!({}),
    }
}

/// Name of an entry of a map.
fn key(map: &str) -> &'static str {
    match map {
        "JindoRuntime .spec.properties" | "JindoRuntime .spec.master.properties" => "namespace.session.ttl",
        "JindoRuntime .spec.worker.properties" => "storage.heartbeat",
        "JindoRuntime .spec.fuse.properties" => "fuse.attr-ttl",
        _ => "k",
    }
}

/// A value of the type, other than the one that is there.
fn value(field: &str, kind: &str, now: &Value) -> Value {
    if let Some(value) = fitting(field) {
        return value;
    }
    let (kind, values) = kind.split_once(' ').unwrap_or((kind, ""));
    if let Some(value) = values.split('|').find(|value| !value.is_empty() && *now != **value) {
        return json!(value);
    }
    match kind {
        "string" => json!("x"),
        "integer" => json!(7),
        "int-or-string" => json!("3"),
        "boolean" => json!(true),
        "object" => json!({"labels": {"k": "x"}}),
        other => panic!("{field}: no value of type {other}"),
    }
}

/// The place of a field in a document, made where it is missing, and its path as a user writes it.
fn place<'a>(document: &'a mut Value, field: &str) -> (&'a mut Value, String) {
    let (kind, path) = field.split_once(' ').expect("kind and path");
    let (mut at, mut seen, mut written) = (document, format!("{kind} "), String::new());
    let steps = path.replace("[]", ".[]").replace("{}", ".{}");
    let steps: Vec<&str> = steps.split('.').skip(1).collect();
    for (number, step) in steps.iter().enumerate() {
        let name = match *step {
            "[]" | "{}" => step.to_string(),
            name => format!(".{name}"),
        };
        let parent = seen.clone();
        seen.push_str(&name);
        let last = number + 1 == steps.len();
        at = match *step {
            "[]" => {
                written.push_str("[0]");
                let list = at.as_array_mut().expect("a list");
                if list.is_empty() {
                    list.push(Value::Null);
                }
                &mut list[0]
            }
            "{}" => {
                let key = key(&parent);
                written.push_str(&unsupported::entry("", key));
                &mut at[key]
            }
            name => {
                written.push_str(&format!(".{name}"));
                &mut at[name]
            }
        };
        if !last && at.is_null() {
            *at = if steps[number + 1] == "[]" { json!([]) } else { least(&seen) };
        }
    }
    (at, written.trim_start_matches('.').to_owned())
}

/// The resource of a kind that the field is set in.
fn documents(kind: &str) -> Value {
    let (dataset, runtime) = guide();
    match kind {
        "Dataset" => serde_json::to_value(dataset),
        "JindoRuntime" => serde_json::to_value(runtime),
        _ => Ok(json!({"metadata": {"name": "demo"}, "spec": {"dataset": {"name": "demo"}}})),
    }
    .expect("json")
}

/// What is made of the resources, one of which is `document`, and the fields of it that are named.
fn made(kind: &str, document: &Value) -> (Result<String, Problem>, Vec<Unsupported>) {
    let read = |what| format!("{what}: {document}");
    let (mut dataset, mut runtime) = guide();
    let named = match kind {
        "Dataset" => {
            dataset = serde_json::from_value(document.clone()).unwrap_or_else(|error| panic!("{}", read(error)));
            of_dataset(&dataset)
        }
        "JindoRuntime" => {
            runtime = serde_json::from_value(document.clone()).unwrap_or_else(|error| panic!("{}", read(error)));
            of_runtime(&runtime)
        }
        _ => {
            let load: DataLoad =
                serde_json::from_value(document.clone()).unwrap_or_else(|error| panic!("{}", read(error)));
            return (Ok(String::new()), of_load(&load));
        }
    };
    let input = Input::new(&dataset, &runtime, "localhost/jindofs:dev");
    let all = objects(&input).map(|objects| {
        let offered = json!([volume(&input, "driver"), claim(&input)]);
        format!("{}{offered}{:?}", objects.yaml().expect("yaml"), mount_table(&input))
    });
    (all, named)
}

/// A field of a spec that holds a value, not other fields.
struct Field {
    kind: &'static str,
    name: String,
    of: &'static str,
}

fn fields() -> Vec<Field> {
    let lines = FIELDS.lines().filter(|line| !line.starts_with('#'));
    let all: Vec<(&str, &str, &str)> = lines
        .map(|line| {
            let mut words = line.splitn(3, ' ');
            let mut word = || words.next().unwrap_or_default();
            (word(), word(), word())
        })
        .filter(|(_, path, _)| path.starts_with(".spec."))
        .collect();
    let below = |kind: &str, path: &str| {
        let inside = |other: &str| other.strip_prefix(path).is_some_and(|rest| rest.starts_with(['.', '[', '{']));
        all.iter().any(|(of, other, _)| *of == kind && inside(other))
    };
    let leaves = all.iter().filter(|(kind, path, _)| !below(kind, path));
    leaves.map(|&(kind, path, of)| Field { kind, name: format!("{kind} {path}"), of }).collect()
}

/// How a field is honoured: objects differ, it is named, or neither.
#[derive(Debug, PartialEq)]
enum Honoured {
    Made,
    Named,
    No,
}

/// Sets a field, and nothing else, on the guide's resources.
///
/// *Errors*: what contradicts itself.
fn honoured(field: &Field) -> Result<Honoured, String> {
    let mut without = documents(field.kind);
    let (at, path) = place(&mut without, &field.name);
    let (before, value) = (at.clone(), value(&field.name, field.of, at));
    let mut with = without.clone();
    *place(&mut with, &field.name).0 = value;
    assert_ne!(without, with, "{} is {before} already", field.name);
    remove_null(&mut without);
    let ((old, _), (new, named)) = (made(field.kind, &without), made(field.kind, &with));
    if let Some(refused) = [&old, &new].into_iter().find_map(|made| made.as_ref().err()) {
        let expected = REFERENCES.contains(&field.name.as_str());
        return if expected { Ok(Honoured::Made) } else { Err(format!("{}: refused: {refused:?}", field.name)) };
    }
    let covers = |one: &Unsupported| {
        path.strip_prefix(&one.path).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    match (old != new, named.iter().any(covers)) {
        (true, true) => Err(format!("{}: it is named, and it changes what is made", field.name)),
        (true, false) => Ok(Honoured::Made),
        (false, true) => Ok(Honoured::Named),
        (false, false) => Ok(Honoured::No),
    }
}

/// Drops what [`place`] has only looked for.
fn remove_null(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(remove_null);
        }
        Value::Array(list) => {
            list.retain(|one| !one.is_null());
            list.iter_mut().for_each(remove_null);
        }
        _ => {}
    }
}

#[test]
fn every_field_of_fluid_changes_what_is_made_or_is_named() {
    let (mut wrong, mut needed) = (Vec::new(), Vec::new());
    let (mut made, mut named) = (0, 0);
    for field in fields() {
        let listed = ELSEWHERE.iter().find(|(name, _)| {
            field.name.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        });
        match honoured(&field) {
            Err(why) => wrong.push(why),
            Ok(Honoured::No) => match listed {
                Some((name, _)) => needed.push(*name),
                None => wrong.push(format!("{}: it is ignored without a word", field.name)),
            },
            Ok(how) => {
                if how == Honoured::Made {
                    made += 1
                } else {
                    named += 1
                }
                if listed.is_some() {
                    wrong.push(format!("{}: it is listed as honoured elsewhere, and need not be", field.name));
                }
            }
        }
    }
    let unneeded = ELSEWHERE.iter().filter(|(name, _)| !needed.contains(name));
    wrong.extend(unneeded.map(|(name, _)| format!("{name}: there is no such field")));
    println!("{made} fields change what is made, {named} are named, {} are honoured elsewhere", needed.len());
    assert!(wrong.is_empty(), "{} fields:\n{}", wrong.len(), wrong.join("\n"));
    assert!(made > 400 && named > 100, "the list of fields is not whole: {made} and {named}");
}

#[test]
fn what_is_so_anyway_is_not_named() {
    let (mut dataset, mut runtime) = guide();
    assert_eq!((of_dataset(&dataset), of_runtime(&runtime)), (vec![], vec![]), "the guide");
    let mount = &mut dataset.spec.mounts[0];
    for (name, value) in [("metaPolicy", "ALWAYS"), ("cacheStrategy", "DISTRIBUTED"), ("readCacheReplica", "1")] {
        mount.options.insert(name.to_owned(), value.to_owned());
    }
    dataset.spec.shared_options.insert("metaPolicy".to_owned(), "10m".to_owned());
    mount.shared = Some(false);
    let own: crate::crd::RuntimeRef =
        serde_json::from_value(json!({"name": "demo", "category": "Accelerate", "type": "jindo"})).expect("a runtime");
    dataset.spec.runtimes = vec![own];
    assert_eq!(of_dataset(&dataset), Vec::new());
    let spec = json!({
        "master": {"disabled": false, "podMetadata": {}, "resources": {}}, "worker": {"replicas": 2}, "replicas": 2,
        "fuse": {"cleanPolicy": "OnDemand", "metrics": {"enabled": true, "scrapeTarget": "None"}, "args": []},
        "cleanCachePolicy": {}, "user": "", "secret": "", "logConfig": {},
        "tieredstore": {"levels": [
            {"mediumtype": "MEM", "path": "/dev/shm", "quota": "1Gi", "high": "0.9", "volumeSource": {}},
            {"mediumtype": "SSD", "path": "/ssd", "quota": "1Gi", "high": "0.9"},
        ]},
    });
    runtime.spec = serde_json::from_value(spec).expect("a spec");
    assert_eq!(of_runtime(&runtime), Vec::new());
}

#[test]
fn a_value_that_is_honoured_in_part_is_named_where_it_stands() {
    let (mut dataset, mut runtime) = guide();
    dataset.spec.shared_options.insert("writePolicy".to_owned(), "WRITE_BACK".to_owned());
    dataset.spec.mounts[0].options.insert("metaPolicy".to_owned(), "60".to_owned());
    dataset.spec.mounts[0].options.insert("readCacheReplica".to_owned(), "2".to_owned());
    let paths = |all: Vec<Unsupported>| all.into_iter().map(|one| one.path).collect::<Vec<_>>();
    assert_eq!(
        paths(of_dataset(&dataset)),
        [
            "spec.mounts[0].options.metaPolicy",
            "spec.mounts[0].options.readCacheReplica",
            "spec.sharedOptions.writePolicy"
        ]
    );
    dataset.spec.mounts[0].mount_point = "local:///data".to_owned();
    dataset.spec.owner = serde_json::from_value(json!({"uid": 5, "gid": 6, "user": "u", "group": "g"})).ok();
    assert!(paths(of_dataset(&dataset)).contains(&"spec.owner".to_owned()));
    let levels = json!({"levels": [
        {"mediumtype": "MEM", "path": "/dev/shm", "quota": "1Gi"},
        {"mediumtype": "SSD", "path": "/a,/b", "quota": "1Gi", "quotaList": "1Gi,2Gi", "high": "0.9"},
    ]});
    runtime.spec.tiered_store = serde_json::from_value(levels).ok();
    runtime.spec.properties.insert("logger.dir".to_owned(), "/logs".to_owned());
    runtime.spec.properties.insert("namespace.rpc.port".to_owned(), "1".to_owned());
    runtime.spec.worker.properties.insert("storage.http.port".to_owned(), "1".to_owned());
    runtime.spec.volumes.push(k8s_openapi::api::core::v1::Volume { name: "spare".to_owned(), ..Default::default() });
    assert_eq!(
        paths(of_runtime(&runtime)),
        [
            r#"spec.worker.properties["storage.http.port"]"#,
            r#"spec.properties["logger.dir"]"#,
            r#"spec.properties["namespace.rpc.port"]"#,
            "spec.tieredstore.levels[1].high",
            "spec.tieredstore.levels[1].quota",
            "spec.volumes[1]",
        ]
    );
}
