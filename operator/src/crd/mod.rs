//! The resources users write, `data.fluid.io/v1alpha1`: the fields, names and columns of Fluid's Dataset, JindoRuntime
//! and DataLoad, so that the same YAML works here. What we do not know is kept, what we do not honour is said in a
//! condition.

mod common;
// Printed columns are attributes that differ only in some of their parts.
#[allow(clippy::duplicated_attributes)]
mod dataload;
#[allow(clippy::duplicated_attributes)]
mod dataset;
#[allow(clippy::duplicated_attributes)]
mod runtime;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

pub use common::*;
pub use dataload::*;
pub use dataset::*;
pub use runtime::*;

/// Every definition, as `jindofs-operator crd` prints them.
pub fn all() -> Vec<CustomResourceDefinition> {
    let mut all = vec![Dataset::crd(), JindoRuntime::crd(), DataLoad::crd()];
    for crd in &mut all {
        for version in &mut crd.spec.versions {
            if let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) {
                schema::keep_unknown(schema);
                schema::shorten(schema);
                schema::no_empty_defaults(schema);
            }
        }
    }
    all
}

/// The definitions as YAML documents.
///
/// *Errors*: none are known; the types serialise.
pub fn yaml() -> Result<String, serde_saphyr::ser::Error> {
    let mut text = String::from("# Made by `jindofs-operator crd`.\n");
    for crd in all() {
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(&crd)?);
    }
    Ok(text)
}

mod schema {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
        JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
    };

    /// Fields of Kubernetes' own types. `kubectl explain pod.spec` says what is in them; with those texts the definition
    /// would be longer than `kubectl apply` can handle.
    const FROM_KUBERNETES: [&str; 9] = [
        "affinity",
        "cacheAffinity",
        "imagePullSecrets",
        "nodeAffinity",
        "required",
        "resources",
        "tolerations",
        "volumeMounts",
        "volumes",
    ];

    /// Drops what Kubernetes says about its own types.
    pub(super) fn shorten(schema: &mut JSONSchemaProps) {
        for (name, field) in schema.properties.iter_mut().flatten() {
            if FROM_KUBERNETES.contains(&name.as_str()) && field.type_.as_deref() != Some("string") {
                each_below(field, &mut |below| below.description = None);
            } else {
                shorten(field);
            }
        }
        if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
            shorten(items);
        }
    }

    fn each_below(schema: &mut JSONSchemaProps, change: &mut impl FnMut(&mut JSONSchemaProps)) {
        let fields = schema.properties.iter_mut().flat_map(|fields| fields.values_mut());
        let items = schema.items.iter_mut().filter_map(|items| match items {
            JSONSchemaPropsOrArray::Schema(items) => Some(items.as_mut()),
            JSONSchemaPropsOrArray::Schemas(_) => None,
        });
        let values = schema.additional_properties.iter_mut().filter_map(|values| match values {
            JSONSchemaPropsOrBool::Schema(values) => Some(values.as_mut()),
            JSONSchemaPropsOrBool::Bool(_) => None,
        });
        for below in fields.chain(items).chain(values) {
            change(below);
            each_below(below, change);
        }
    }

    /// Drops defaults that only say "nothing": the API server would write them into every object. Those of Fluid's stay.
    pub(super) fn no_empty_defaults(schema: &mut JSONSchemaProps) {
        let drop_empty = |schema: &mut JSONSchemaProps| {
            let says = |value: &serde_json::Value| value.as_str().is_some_and(|text| !text.is_empty());
            schema.default = schema.default.take().filter(|default| says(&default.0));
        };
        drop_empty(schema);
        each_below(schema, &mut { drop_empty });
    }

    /// Below `spec`, an object may have fields that this release does not know: they belong to another release, or to
    /// Fluid, and must not be pruned.
    pub(super) fn keep_unknown(root: &mut JSONSchemaProps) {
        if let Some(spec) = root.properties.as_mut().and_then(|fields| fields.get_mut("spec")) {
            open(spec);
        }
    }

    fn open(schema: &mut JSONSchemaProps) {
        let mut keep = |schema: &mut JSONSchemaProps| {
            if schema.properties.is_some() {
                schema.x_kubernetes_preserve_unknown_fields = Some(true);
            }
        };
        keep(schema);
        each_below(schema, &mut keep);
    }
}

#[cfg(test)]
mod tests;
