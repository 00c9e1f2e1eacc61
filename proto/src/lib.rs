//! The contract of JindoFS: what travels between its processes and what its masters write to disk.
//!
//! Generated from the `.proto` files beside this crate; nothing here is written by hand.
#![allow(missing_docs, clippy::all, clippy::unwrap_used, rustdoc::all)]

/// Services for clients, workers and operators.
pub mod v1 {
    tonic::include_proto!("jindofs.v1");
}

/// Raft transport between masters, and the stored form of its types.
pub mod raft {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("jindofs.raft.v1");
    }
}

/// Commands, outcomes and rows on a master's disk.
pub mod store {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("jindofs.store.v1");
    }
}

/// The parts of the Container Storage Interface that a node plugin serves, and what its tests need beside it.
pub mod csi {
    tonic::include_proto!("csi.v1");
}

/// How a plugin registers itself with a kubelet.
pub mod registration {
    tonic::include_proto!("pluginregistration");
}

/// Encoded `FileDescriptorSet` of all files, for gRPC server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
