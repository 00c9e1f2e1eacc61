use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::*;
use crate::crd::{JindoRuntimeSpec, Mount};

mod fields;
mod fluid;

const GUIDE: &str = include_str!("../../../deploy/samples/dataset.yaml");

fn guide() -> (Dataset, JindoRuntime) {
    let (dataset, runtime) = GUIDE.split_once("\n---\n").expect("two documents");
    (serde_saphyr::from_str(dataset).expect("a Dataset"), serde_saphyr::from_str(runtime).expect("a JindoRuntime"))
}

/// Compares with a committed file; `JINDOFS_GOLDEN=1` writes it.
fn golden(name: &str, found: &str) {
    let path = format!("{}/src/desired/golden/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("JINDOFS_GOLDEN").is_some() {
        std::fs::write(&path, found).expect("written");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(expected == found, "{path} is not what is made now: look, then write it with JINDOFS_GOLDEN=1\n{found}");
}

#[test]
fn the_guide_gives_one_master_on_the_named_claim() {
    let (dataset, runtime) = guide();
    let objects = objects(&Input::new(&dataset, &runtime, "localhost/jindofs:dev")).expect("objects");
    golden("guide", &objects.yaml().expect("yaml"));
}

#[test]
fn three_masters_get_a_claim_each_like_the_named_one() {
    let (dataset, mut runtime) = guide();
    runtime.spec.master.replicas = Some(3);
    let claim: PersistentVolumeClaimSpec = serde_saphyr::from_str(
        "accessModes: [ReadWriteOnce]\nstorageClassName: fast\nresources: {requests: {storage: 5Gi}}\n",
    )
    .expect("a claim");
    let input = Input { claim: Some(&claim), ..Input::new(&dataset, &runtime, "localhost/jindofs:dev") };
    golden("three-masters", &objects(&input).expect("objects").yaml().expect("yaml"));
}

#[test]
fn the_client_of_a_dataset_that_can_be_written_writes_and_nobody_holds_its_mount() {
    let settings = |change: &dyn Fn(&mut Dataset, &mut JindoRuntime)| {
        let (mut dataset, mut runtime) = guide();
        change(&mut dataset, &mut runtime);
        let text = fuse::settings(&Input::new(&dataset, &runtime, "i"));
        (text["fuse.writable"].clone(), text.contains_key("fuse.handover.socket"))
    };
    assert_eq!(settings(&|_, _| {}), ("false".to_owned(), true));
    let written = |dataset: &mut Dataset, _: &mut JindoRuntime| {
        dataset.spec.access_modes = vec!["ReadWriteMany".to_owned()];
    };
    assert_eq!(settings(&written), ("true".to_owned(), false));
    let but_read = |dataset: &mut Dataset, runtime: &mut JindoRuntime| {
        written(dataset, runtime);
        runtime.spec.fuse.properties.insert("fuse.writable".to_owned(), "false".to_owned());
    };
    assert_eq!(settings(&but_read), ("false".to_owned(), true));
}

#[test]
fn without_a_volume_each_master_gets_a_claim_of_the_default_class() {
    let (dataset, mut runtime) = guide();
    runtime.spec = JindoRuntimeSpec::default();
    let made = objects(&Input::new(&dataset, &runtime, "i")).expect("objects");
    let spec = made.masters.spec.expect("a spec");
    let claims = spec.volume_claim_templates.expect("a template");
    let size =
        claims[0].spec.as_ref().and_then(|claim| claim.resources.as_ref()?.requests.as_ref()?.get("storage").cloned());
    assert_eq!(size.map(|size| size.0).as_deref(), Some("30Gi"));
    assert!(made.budget.is_none(), "one master could never be moved");
}

#[test]
fn a_secret_is_a_file_in_the_pods_and_its_value_is_nowhere() {
    let (dataset, runtime) = guide();
    let options = mount_table(&Input::new(&dataset, &runtime, "i")).remove(0).options;
    assert_eq!(options["fs.oss.accessKeySecret"], "file:/token/demo/fs.oss.accessKeySecret");
    assert_eq!(options["fs.oss.endpoint"], "<OSS_BUCKET_ENDPOINT>");
    let text = objects(&Input::new(&dataset, &runtime, "i")).expect("objects").yaml().expect("yaml");
    assert!(text.contains("path: demo/fs.oss.accessKeyId"), "{text}");
}

#[test]
fn only_a_change_of_settings_makes_other_pods() {
    let (dataset, mut runtime) = guide();
    let print = |runtime: &JindoRuntime| Input::new(&dataset, runtime, "i").fingerprint(Role::Master);
    let before = print(&runtime);
    runtime.spec.replicas = Some(5);
    assert_eq!(print(&runtime), before);
    runtime.spec.master.properties.insert("namespace.session.ttl".to_owned(), "30s".to_owned());
    assert_ne!(print(&runtime), before);
}

#[test]
fn what_is_wrong_is_named_with_what_to_write() {
    let reasons = |change: &dyn Fn(&mut Dataset, &mut JindoRuntime)| -> Vec<&'static str> {
        let (mut dataset, mut runtime) = guide();
        change(&mut dataset, &mut runtime);
        problems(&Input::new(&dataset, &runtime, "i")).into_iter().map(|problem| problem.reason).collect()
    };
    let mount =
        |uri: &str, path: &str| Mount { mount_point: uri.to_owned(), path: Some(path.to_owned()), ..Mount::default() };
    assert!(reasons(&|_, _| {}).is_empty());
    assert_eq!(reasons(&|_, runtime| runtime.spec.master.replicas = Some(2)), ["InvalidMasterReplicas"]);
    assert_eq!(reasons(&|_, runtime| runtime.spec.volumes.clear()), ["UnknownVolume"]);
    assert_eq!(reasons(&|dataset, _| dataset.spec.mounts = vec![mount("hdfs://n/x", "/")]), ["UnknownScheme"]);
    let with_keys = |dataset: &mut Dataset, _: &mut JindoRuntime| {
        dataset.spec.mounts = vec![mount("s3://id:hunter2@bucket", "/")];
    };
    assert_eq!(reasons(&with_keys), ["CredentialsInMountPoint"]);
    assert_eq!(
        reasons(&|dataset, _| dataset.spec.mounts = vec![mount("s3://a", "/a"), mount("s3://b", "/a/b")]),
        ["OverlappingMounts"]
    );
    let small: PersistentVolumeClaimSpec =
        serde_saphyr::from_str("resources: {requests: {storage: 1Mi}}").expect("a claim");
    let (dataset, runtime) = guide();
    let found = problems(&Input { claim: Some(&small), ..Input::new(&dataset, &runtime, "i") });
    assert!(found[0].reason == "ClaimTooSmall" && found[0].message.contains("demo-jindo-master-meta"), "{found:?}");
    let level = |change: &dyn Fn(&mut crate::crd::Level)| {
        reasons(&|_, runtime| change(&mut runtime.spec.tiered_store.as_mut().expect("levels").levels[0]))
    };
    assert_eq!(level(&|level| level.quota = None), ["InvalidTieredStore"]);
    assert_eq!(level(&|level| level.quota = Some(Quantity("1Mi".to_owned()))), ["InvalidTieredStore"]);
    assert_eq!(level(&|level| level.path = Some("relative".to_owned())), ["InvalidTieredStore"]);
    assert_eq!(level(&|level| level.quota_list = Some("1Gi,2Gi".to_owned())), ["InvalidTieredStore"]);
}
