//! Compiles the contract with protox, so that no protoc has to be installed.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};

use prost::Message;

const FILES: [&str; 13] = [
    "jindofs/v1/common.proto",
    "jindofs/v1/namespace.proto",
    "jindofs/v1/block.proto",
    "jindofs/v1/handover.proto",
    "jindofs/v1/invalidation.proto",
    "jindofs/v1/worker.proto",
    "jindofs/v1/job.proto",
    "jindofs/v1/admin.proto",
    "jindofs/raft/v1/raft.proto",
    "jindofs/store/v1/store.proto",
    "kubernetes/csi.proto",
    "kubernetes/csi_controller.proto",
    "kubernetes/registration.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=jindofs");
    println!("cargo:rerun-if-changed=kubernetes");
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let descriptors = protox::compile(FILES, [&root])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    std::fs::write(Path::new(&out).join("descriptors.bin"), descriptors.encode_to_vec())?;
    let mut config = tonic_prost_build::Config::new();
    // Payloads travel from the socket to the log without a copy, and replicas must encode maps in one order.
    config.bytes(["."]).btree_map(["."]);
    tonic_prost_build::configure().build_transport(true).compile_fds_with_config(descriptors, config)?;
    Ok(())
}
