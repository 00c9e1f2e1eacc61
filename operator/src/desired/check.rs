//! What is wrong with a Dataset or its runtime, found before anything is made of them.

use super::quantity::bytes;
use super::{Input, masters, workers};
use crate::crd::Mount;

/// Most masters.
const MASTERS_MAX: i32 = 7;
/// Schemes that can be mounted.
const SCHEMES: [&str; 3] = ["local://", "oss://", "s3://"];

/// Least bytes for the metadata of a master: the log alone keeps more than half of it.
const META_MIN: u64 = 256 << 20;

/// Something the user has to correct.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// One word, the reason of a condition.
    pub reason: &'static str,
    /// What is wrong, where, and what to write instead.
    pub message: String,
}

impl Problem {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Problem {
        Problem { reason, message: message.into() }
    }
}

/// Path of a mount in the namespace.
pub(super) fn path(mount: &Mount) -> String {
    match (&mount.path, &mount.name) {
        (Some(path), _) if path.starts_with('/') => path.clone(),
        (_, Some(name)) => format!("/{name}"),
        _ => "/".to_owned(),
    }
}

/// True for a uri that is never to be shown: `scheme://ID:SECRET@bucket/...`.
fn holds_credentials(uri: &str) -> bool {
    let Some((scheme, rest)) = uri.split_once("://") else { return uri.contains('@') };
    let authority = rest.split('/').next().unwrap_or_default();
    // A secret may hold a '/'; a bucket's name holds no ':'.
    let bucket = authority.split('.').next().unwrap_or_default();
    authority.contains('@') || matches!(scheme, "s3" | "oss") && bucket.contains(':')
}

/// Everything that is wrong, the most important first.
pub fn problems(input: &Input<'_>) -> Vec<Problem> {
    let mut found = Vec::new();
    let masters = masters::replicas(input);
    if !(1..=MASTERS_MAX).contains(&masters) || masters % 2 == 0 {
        found.push(Problem::new(
            "InvalidMasterReplicas",
            format!("master.replicas is {masters}: write 1, 3, 5 or 7, as an even number survives no more losses than the odd one below it"),
        ));
    }
    for (role, component) in [("master", &input.runtime.spec.master), ("worker", &input.runtime.spec.worker)] {
        for mount in &component.volume_mounts {
            if !input.runtime.spec.volumes.iter().any(|volume| volume.name == mount.name) {
                found.push(Problem::new(
                    "UnknownVolume",
                    format!("{role}.volumeMounts names the volume {:?}, which is not in volumes", mount.name),
                ));
            }
        }
    }
    let asked = input.claim.and_then(|claim| claim.resources.as_ref()?.requests.as_ref()?.get("storage"));
    if let Some(asked) = asked.filter(|asked| bytes(&asked.0).is_ok_and(|asked| asked < META_MIN)) {
        let claim = masters::named_claim(input).unwrap_or_default();
        found.push(Problem::new(
            "ClaimTooSmall",
            format!("the claim {claim} asks for {}: the log and the snapshots of a master need 256Mi or more", asked.0),
        ));
    }
    if let Err(why) = workers::settings(input) {
        found.push(Problem::new("InvalidTieredStore", why));
    }
    let mounts = &input.dataset.spec.mounts;
    for (number, mount) in mounts.iter().enumerate() {
        if holds_credentials(&mount.mount_point) {
            found.push(Problem::new(
                "CredentialsInMountPoint",
                format!("mounts[{number}].mountPoint holds credentials: put them into a Secret and name it in encryptOptions"),
            ));
        } else if !SCHEMES.iter().any(|scheme| mount.mount_point.starts_with(scheme)) {
            found.push(Problem::new(
                "UnknownScheme",
                format!(
                    "mountPoint {:?} cannot be mounted: it must begin with one of {}",
                    mount.mount_point,
                    SCHEMES.join(", ")
                ),
            ));
        }
    }
    for (number, mount) in mounts.iter().enumerate() {
        let inside =
            |a: &str, b: &str| a == b || b == "/" || a.strip_prefix(b).is_some_and(|rest| rest.starts_with('/'));
        let (own, before) = (path(mount), &mounts[..number]);
        if let Some(other) = before.iter().map(path).find(|other| inside(&own, other) || inside(other, &own)) {
            found.push(Problem::new(
                "OverlappingMounts",
                format!("mounts at {own} and {other}: no mount may lie at or below another one's path"),
            ));
        }
    }
    found
}
