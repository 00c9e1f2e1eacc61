use std::collections::BTreeMap;

use super::*;

/// Path and type of every field of a schema, with the values of an enum.
fn fields(schema: &serde_json::Value, path: &str, found: &mut BTreeMap<String, String>) {
    let int_or_string = schema["x-kubernetes-int-or-string"] == true;
    let kind = schema["type"].as_str().map_or(if int_or_string { "int-or-string" } else { "any" }, |kind| kind);
    let values = schema["enum"]
        .as_array()
        .map(|values| values.iter().map(|value| value.as_str().unwrap_or_default()).collect::<Vec<_>>().join("|"));
    let kind = values.map_or_else(|| kind.to_owned(), |values| format!("{kind} {values}"));
    found.insert(path.to_owned(), kind);
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        fields(field, &format!("{path}.{name}"), found);
    }
    if schema["items"].is_object() {
        fields(&schema["items"], &format!("{path}[]"), found);
    }
    if schema["additionalProperties"].is_object() {
        fields(&schema["additionalProperties"], &format!("{path}{{}}"), found);
    }
}

fn sorted(kind: &str) -> String {
    let (kind, values) = kind.split_once(' ').unwrap_or((kind, ""));
    let mut values: Vec<&str> = values.split('|').collect();
    values.sort_unstable();
    format!("{kind} {}", values.join("|"))
}

#[test]
fn every_field_of_fluid_is_ours_with_the_same_type() {
    let mut ours = BTreeMap::new();
    for crd in all() {
        let json = serde_json::to_value(&crd.spec.versions[0].schema).expect("json");
        let mut found = BTreeMap::new();
        fields(&json["openAPIV3Schema"], "", &mut found);
        ours.extend(found.into_iter().map(|(path, kind)| (format!("{} {path}", crd.spec.names.kind), kind)));
    }
    let mut wrong = Vec::new();
    for line in include_str!("fluid-fields.txt").lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.splitn(3, ' ');
        let (kind, path, wanted) = (words.next().unwrap_or(""), words.next().unwrap_or(""), words.next().unwrap_or(""));
        // Any volume source is taken as it is: the API server checks it where it is used.
        if path.contains(".volumeSource.") {
            continue;
        }
        match ours.get(&format!("{kind} {path}")) {
            Some(found) if sorted(found) == sorted(wanted) => {}
            found => wrong.push(format!("{kind} {path}: {wanted}, ours: {found:?}")),
        }
    }
    assert!(wrong.is_empty(), "{} fields differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_committed_definitions_are_those_the_program_prints() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/crd.yaml");
    let printed = yaml().expect("yaml");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(committed == printed, "deploy/crd.yaml is not what `jindofs-operator crd` prints: run `make fix`");
}

#[test]
fn each_definition_is_short_enough_for_kubectl_apply() {
    for crd in all() {
        let bytes = serde_json::to_vec(&crd).expect("json").len();
        // kubectl keeps what it applied in an annotation; all annotations together have 256 KiB.
        assert!(bytes < 200 << 10, "{}: {bytes} bytes", crd.spec.names.kind);
    }
}

#[test]
fn nothing_is_written_into_an_object_that_fluid_would_not_write() {
    let mut defaults = Vec::new();
    fn find(value: &serde_json::Value, path: &str, found: &mut Vec<String>) {
        if let Some(default) = value.get("default").filter(|_| value.get("type").is_some()) {
            found.push(format!("{path}={default}"));
        }
        for (name, field) in value["properties"].as_object().into_iter().flatten() {
            find(field, &format!("{path}.{name}"), found);
        }
        if value["items"].is_object() {
            find(&value["items"], &format!("{path}[]"), found);
        }
    }
    for crd in all() {
        let json = serde_json::to_value(&crd.spec.versions[0].schema).expect("json");
        find(&json["openAPIV3Schema"], "", &mut defaults);
    }
    assert_eq!(defaults, [r#".spec.tieredstore.levels[].volumeType="hostPath""#, r#".spec.policy="Once""#]);
}

#[test]
fn a_field_nobody_knows_is_kept_at_any_depth_of_the_spec() {
    for crd in all() {
        let json = serde_json::to_value(&crd.spec.versions[0].schema).expect("json");
        let spec = &json["openAPIV3Schema"]["properties"]["spec"];
        assert_eq!(spec["x-kubernetes-preserve-unknown-fields"], true, "{}", crd.spec.names.kind);
        assert!(json["openAPIV3Schema"]["properties"]["status"]["x-kubernetes-preserve-unknown-fields"].is_null());
    }
    let json = serde_json::to_value(Dataset::crd()).expect("json");
    assert_eq!(json["spec"]["names"]["shortNames"], serde_json::json!(["dataset"]));
}

#[test]
fn the_columns_of_kubectl_get_dataset_are_those_of_the_guide() {
    let crd = Dataset::crd();
    let columns = crd.spec.versions[0].additional_printer_columns.clone().unwrap_or_default();
    let narrow: Vec<String> = columns
        .iter()
        .filter(|column| column.priority.unwrap_or(0) == 0)
        .map(|column| column.name.to_uppercase())
        .collect();
    assert_eq!(narrow, ["UFS TOTAL SIZE", "CACHED", "CACHE CAPACITY", "CACHED PERCENTAGE", "PHASE", "AGE"]);
}

#[test]
fn the_resources_of_the_guide_are_understood_whole() {
    let mut found = Vec::new();
    for document in include_str!("../../../deploy/samples/dataset.yaml").split("\n---\n") {
        let value: serde_json::Value = serde_saphyr::from_str(document).expect("yaml");
        let kind = value["kind"].as_str().unwrap_or_default().to_owned();
        let spec = value["spec"].clone();
        let back = match kind.as_str() {
            "Dataset" => serde_json::from_value::<DatasetSpec>(spec.clone()).map(serde_json::to_value),
            "JindoRuntime" => serde_json::from_value::<JindoRuntimeSpec>(spec.clone()).map(serde_json::to_value),
            other => panic!("{other}"),
        };
        let back = back.expect("understood").expect("json");
        let lost = lost("", &spec, &back);
        assert!(lost.is_empty(), "{kind}: {lost:?}");
        found.push(kind);
    }
    assert_eq!(found, ["Dataset", "JindoRuntime"]);
}

/// What is in `from` and not in `to`.
fn lost(path: &str, from: &serde_json::Value, to: &serde_json::Value) -> Vec<String> {
    match (from, to) {
        (serde_json::Value::Object(from), serde_json::Value::Object(to)) => from
            .iter()
            .flat_map(|(name, value)| {
                lost(&format!("{path}.{name}"), value, to.get(name).unwrap_or(&serde_json::Value::Null))
            })
            .collect(),
        (serde_json::Value::Array(from), serde_json::Value::Array(to)) if from.len() == to.len() => {
            from.iter().zip(to).flat_map(|(from, to)| lost(&format!("{path}[]"), from, to)).collect()
        }
        (from, to) if from == to => Vec::new(),
        _ => vec![path.to_owned()],
    }
}
