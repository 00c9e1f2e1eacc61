//! The Kubernetes side of JindoFS: the resources users write, and what is made of them.

pub mod crd;
pub mod desired;
