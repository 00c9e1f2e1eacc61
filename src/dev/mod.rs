//! The local cluster: every role its own process on this machine, so that `kill -9` is real. `jindofs dev` and the tests
//! share it.
//!
//! What lies in the directory of a cluster: `dev.json` (what runs where; replaced atomically on every change),
//! `cluster-uuid` (stored before the cluster is founded), `dev.log` (what a cluster in the background says), `NAME.toml` and
//! `NAME.log` of every process, and the directories of the masters and workers. Addresses in `dev.json` are `host:port`; `pid` is null while a process is
//! down; `data` of a worker is the Unix socket on which it hands out file descriptors.
//!
//! A cluster in the foreground ends with its `dev` process, however that ends: masters and workers are killed by the
//! kernel, the FUSE client is asked to unmount first.

mod children;
mod cluster;
pub mod command;
mod control;
mod detach;
mod file;
mod launch;
mod options;
mod ports;
mod rpc;
mod specs;

pub use cluster::DevCluster;
pub use file::{DevFile, DevProcess};
pub use launch::die_with_parent;
pub use options::{DevOptions, UfsMount};

use crate::error::Error;

/// An I/O error with the path it is about.
fn at(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.display().to_string();
    move |error| Error::from(error).context(path)
}
