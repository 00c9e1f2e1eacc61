//! Server-side apply, only of what differs from what is there.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Patch, PatchParams};
use kube::runtime::reflector::Lookup;
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde_json::Value;

use super::object_cache::{Kept, ObjectCache};
use crate::fingerprint::fingerprint;

/// Who owns the fields that are applied.
pub(super) const FIELD_MANAGER: &str = "jindofs-operator";
/// On every object: what was applied last, so that fields which are asked for no more are noticed.
const APPLIED: &str = "jindofs.io/applied";

/// Kubernetes leaves out what is empty.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// True if `live` holds everything in `wanted`; it may hold more, which others have set.
fn holds(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => {
            wanted.iter().all(|(key, value)| live.get(key).map_or(is_empty(value), |found| holds(found, value)))
        }
        (Value::Array(live), Value::Array(wanted)) => {
            live.len() == wanted.len() && live.iter().zip(wanted).all(|(live, wanted)| holds(live, wanted))
        }
        _ => live == wanted,
    }
}

/// Makes the object be as `wanted`. True if something had to be changed.
pub(super) async fn apply<K>(
    cache: &ObjectCache,
    api: Api<K>,
    mut wanted: K,
    owner: Option<OwnerReference>,
) -> Result<bool, kube::Error>
where
    K: Kept + Serialize + Lookup<DynamicType = ()>,
{
    wanted.meta_mut().owner_references = owner.map(|owner| vec![owner]);
    let mut value = serde_json::to_value(&wanted).map_err(kube::Error::SerdeError)?;
    value["metadata"]["annotations"][APPLIED] = fingerprint(value.to_string().into_bytes()).into();
    let (namespace, name) = (ResourceExt::namespace(&wanted).unwrap_or_default(), wanted.name_any());
    if let Some(live) = cache.get::<K>(&namespace, &name)
        && holds(&serde_json::to_value(&*live).map_err(kube::Error::SerdeError)?, &value)
    {
        return Ok(false);
    }
    api.patch(&name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&value)).await?;
    let kind: &str = &<K as Resource>::kind(&());
    tracing::info!(kind, namespace, name, "applied");
    Ok(true)
}

/// Takes `error` for success if it says that the object is not there.
pub(super) fn gone<T>(done: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match done {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_others_have_added_is_no_difference_and_what_was_changed_is() {
        let wanted = json!({"spec": {"replicas": 3, "ports": [{"port": 1}]}});
        assert!(holds(
            &json!({"spec": {"replicas": 3, "ports": [{"port": 1, "protocol": "TCP"}]}, "status": {}}),
            &wanted
        ));
        assert!(!holds(&json!({"spec": {"replicas": 2, "ports": [{"port": 1}]}}), &wanted));
        assert!(!holds(&json!({"spec": {"replicas": 3, "ports": [{"port": 1}, {"port": 2}]}}), &wanted));
        assert!(!holds(&json!({"spec": {"replicas": 3}}), &wanted));
        assert!(holds(&json!({}), &json!({"env": [], "labels": {}, "name": null})), "what is empty is left out");
    }
}
