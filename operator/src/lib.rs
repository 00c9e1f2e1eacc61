//! The Kubernetes side of JindoFS: the resources users write, what is made of them, and the plugin that mounts it on nodes.

pub mod controller;
pub mod crd;
pub mod csi;
pub mod desired;
mod events;
pub mod fingerprint;
pub mod http;
pub mod output;
mod sync;
