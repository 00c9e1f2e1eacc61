//! Secret options of mounts: files in the pods, never values in an object.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    KeyToPath, ProjectedVolumeSource, SecretProjection, Volume, VolumeMount, VolumeProjection,
};

use crate::crd::{Dataset, EncryptOption, Mount};

/// Where the files lie in every pod.
const DIRECTORY: &str = "/token";
/// Name of the volume.
const VOLUME: &str = "jindofs-secret-token";

/// Directory of a mount's files: its name, else its place in the list.
fn directory(index: usize, mount: &Mount) -> String {
    match mount.name.as_deref() {
        Some(name) if !name.is_empty() && !name.contains('/') => name.to_owned(),
        _ => format!("mount-{index}"),
    }
}

/// Secret options of a mount: the Dataset's, unless the mount has its own.
fn options_of<'a>(dataset: &'a Dataset, mount: &'a Mount) -> Vec<&'a EncryptOption> {
    let own = |option: &&EncryptOption| !mount.encrypt_options.iter().any(|one| one.name == option.name);
    dataset.spec.shared_encrypt_options.iter().filter(own).chain(&mount.encrypt_options).collect()
}

/// All options of a mount as masters and workers take them: secrets as `file:PATH`.
pub(super) fn options(dataset: &Dataset, index: usize, mount: &Mount) -> BTreeMap<String, String> {
    let mut all = dataset.spec.shared_options.clone();
    all.extend(mount.options.clone());
    for option in options_of(dataset, mount) {
        let file = format!("file:{DIRECTORY}/{}/{}", directory(index, mount), option.name);
        all.insert(option.name.clone(), file);
    }
    all
}

/// The volume that holds every secret option of a Dataset; none if it has none.
pub(super) fn volume(dataset: &Dataset) -> Option<Volume> {
    let mut sources = Vec::new();
    for (index, mount) in dataset.spec.mounts.iter().enumerate() {
        for option in options_of(dataset, mount) {
            let Some(from) = option.value_from.as_ref().and_then(|from| from.secret_key_ref.as_ref()) else { continue };
            let path = format!("{}/{}", directory(index, mount), option.name);
            let key = from.key.clone().unwrap_or_else(|| option.name.clone());
            let items = Some(vec![KeyToPath { key, path, mode: None }]);
            let secret = SecretProjection { name: from.name.clone(), items, optional: None };
            sources.push(VolumeProjection { secret: Some(secret), ..VolumeProjection::default() });
        }
    }
    let projected = ProjectedVolumeSource { sources: Some(sources), default_mode: Some(0o440) };
    let some = projected.sources.as_ref().is_some_and(|sources| !sources.is_empty());
    some.then(|| Volume { name: VOLUME.to_owned(), projected: Some(projected), ..Volume::default() })
}

/// Where pods see that volume.
pub(super) fn mount() -> VolumeMount {
    VolumeMount {
        name: VOLUME.to_owned(),
        mount_path: DIRECTORY.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    }
}
