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

/// True for a policy that is a time, as masters take it: a whole number with ms, s, m or h, in either case.
pub(super) fn is_interval(policy: &str) -> bool {
    let policy = policy.trim().to_ascii_lowercase();
    let digits = policy.find(|c: char| !c.is_ascii_digit()).unwrap_or(policy.len());
    let unit = match policy[digits..].trim() {
        "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return false,
    };
    policy[..digits].parse::<u64>().is_ok_and(|number| number.checked_mul(unit).is_some())
}

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
        let policy = options.get(META_POLICY).cloned().unwrap_or_default();
        options.retain(|key, _| !CACHE_OPTIONS.contains(&key.as_str()));
        // ONCE and ALWAYS are a field of the mount; an interval is an option, with ALWAYS in the field.
        let interval = is_interval(&policy);
        let always = interval || policy.trim().eq_ignore_ascii_case("ALWAYS");
        if interval {
            options.insert(META_POLICY.to_owned(), policy);
        }
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
