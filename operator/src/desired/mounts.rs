//! The mount table that a Dataset asks for: what lies where in the namespace, and how it is reached.

use std::collections::BTreeMap;

use jindofs_proto::v1::{MetaPolicy, Mount};

use super::{Input, check, secrets};
use crate::crd;

/// When metadata is read anew.
pub(super) const META_POLICY: &str = "metaPolicy";
/// Options of a mount that say how it is cached, not how its storage is reached.
pub(super) const CACHE_OPTIONS: [&str; 5] =
    [META_POLICY, "cacheStrategy", "writePolicy", "readCacheReplica", "writeCacheReplica"];

/// True for directories of the workers' nodes, whose files have owners of their own.
pub(super) fn local(mount: &crd::Mount) -> bool {
    mount.mount_point.starts_with("local://")
}

/// Whom the files of an object store belong to, which knows no owners.
fn owners(input: &Input<'_>) -> BTreeMap<String, String> {
    let owner = input.dataset.spec.owner.iter();
    let options = owner.flat_map(|owner| [("fs.ufs.uid", owner.uid), ("fs.ufs.gid", owner.gid)]);
    options.map(|(name, number)| (name.to_owned(), number.to_string())).collect()
}

/// Every mount, in the order in which they are written.
pub fn table(input: &Input<'_>) -> Vec<Mount> {
    let read_only = input.dataset.spec.access_modes.iter().all(|mode| mode == "ReadOnlyMany");
    let each = input.dataset.spec.mounts.iter().enumerate().map(|(index, mount)| {
        let mut options = if local(mount) { BTreeMap::new() } else { owners(input) };
        options.extend(secrets::options(input.dataset, index, mount));
        let always = options.get(META_POLICY).is_some_and(|policy| policy.eq_ignore_ascii_case("ALWAYS"));
        options.retain(|key, _| !CACHE_OPTIONS.contains(&key.as_str()));
        Mount {
            path: check::path(mount).into_bytes().into(),
            ufs_uri: mount.mount_point.trim_end_matches('/').to_owned(),
            options,
            meta_policy: if always { MetaPolicy::Always } else { MetaPolicy::Once }.into(),
            read_only: mount.read_only.unwrap_or(read_only),
            ..Mount::default()
        }
    });
    each.collect()
}
