//! Names and labels of everything that belongs to one runtime. They are Fluid's, so that people and scripts find them.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use crate::fingerprint::fingerprint;

/// Who made an object.
pub const MANAGER: &str = "jindofs-operator";

/// Longest name part, and longest value, of a label that Kubernetes takes.
const LABEL_MAX: usize = 63;

/// What the objects of one runtime are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// Namespace of the runtime.
    pub namespace: String,
    /// Name of the runtime and of its Dataset.
    pub name: String,
}

/// What a pod does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Keeps the namespace.
    Master,
    /// Keeps cached data.
    Worker,
    /// Shows it as files.
    Fuse,
}

impl Role {
    /// Argument of `jindofs`, and the last part of names.
    pub fn word(self) -> &'static str {
        match self {
            Role::Master => "master",
            Role::Worker => "worker",
            Role::Fuse => "fuse",
        }
    }
}

impl Names {
    /// Namespace and name as a label's value, which must be short.
    pub fn id(&self) -> String {
        let id = format!("{}-{}", self.namespace, self.name);
        if id.len() > LABEL_MAX { fingerprint(id.bytes()) } else { id }
    }

    /// `NAME-jindofs-ROLE`.
    pub fn of(&self, role: Role) -> String {
        format!("{}-jindofs-{}", self.name, role.word())
    }

    /// The ConfigMap with the settings of all roles.
    pub fn config(&self) -> String {
        format!("{}-jindofs-config", self.name)
    }

    /// The NetworkPolicy of all its pods.
    pub fn policy(&self) -> String {
        format!("{}-jindofs", self.name)
    }

    /// Host name of a master, the same wherever its pod runs.
    pub fn master_host(&self, ordinal: i32) -> String {
        let service = self.of(Role::Master);
        format!("{service}-{ordinal}.{service}.{}.svc", self.namespace)
    }

    /// `host:port` of every master.
    pub fn masters(&self, replicas: i32, port: u16) -> String {
        let all: Vec<String> = (0..replicas).map(|one| format!("{}:{port}", self.master_host(one))).collect();
        all.join(",")
    }

    /// The volume that pods mount: it is not of a namespace.
    pub fn volume(&self) -> String {
        format!("{}-{}", self.namespace, self.name)
    }

    /// Label of the nodes that shall run the client of a runtime; `uid` is the Dataset's.
    pub fn node_label(&self, uid: Option<&str>) -> String {
        self.fluid_label("f", uid)
    }

    /// Label of a Dataset's volume and claim; `uid` is the Dataset's.
    pub fn dataset_label(&self, uid: Option<&str>) -> String {
        self.fluid_label("s", uid)
    }

    fn fluid_label(&self, kind: &str, uid: Option<&str>) -> String {
        let readable = format!("{kind}-{}-{}", self.namespace, self.name);
        match uid {
            Some(uid) if readable.len() > LABEL_MAX => format!("fluid.io/{kind}-{uid}"),
            _ => format!("fluid.io/{readable}"),
        }
    }

    /// Labels that select the pods of a role.
    pub fn selector(&self, role: Role) -> BTreeMap<String, String> {
        let role = format!("jindofs-{}", role.word());
        [("app", "jindofs"), ("release", &self.name), ("role", &role)].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
    }

    /// As [`Names::selector`], where Kubernetes wants it wrapped.
    pub fn label_selector(&self, role: Role) -> LabelSelector {
        LabelSelector { match_labels: Some(self.selector(role)), ..LabelSelector::default() }
    }

    /// All labels of a role's objects and pods; of the runtime's without a role.
    pub fn labels(&self, role: Option<Role>) -> BTreeMap<String, String> {
        let mut labels = role.map_or_else(BTreeMap::new, |role| self.selector(role));
        let id = self.id();
        let common = [
            ("app", "jindofs"),
            ("release", self.name.as_str()),
            ("app.kubernetes.io/name", "jindofs"),
            ("app.kubernetes.io/instance", self.name.as_str()),
            ("app.kubernetes.io/managed-by", MANAGER),
            ("fluid.io/dataset-id", id.as_str()),
        ];
        labels.extend(common.map(|(key, value)| (key.to_owned(), value.to_owned())));
        labels
    }

    /// Metadata of an object of a role, or of the runtime.
    pub fn meta(&self, name: String, role: Option<Role>) -> ObjectMeta {
        ObjectMeta {
            name: Some(name),
            namespace: Some(self.namespace.clone()),
            labels: Some(self.labels(role)),
            ..ObjectMeta::default()
        }
    }
}
