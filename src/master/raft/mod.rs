//! Raft: the only place that names openraft. Identity and membership, the log, snapshots, the wire between masters.

mod founding;
mod handle;
mod identity;
mod life;
mod membership;
mod network;
mod node;
mod operate;
mod peers;
mod read_gate;
mod server;
mod snapshot;
mod state_machine;
#[cfg(test)]
mod suite_test;
mod types;
mod wal;
mod wire;
mod witness;

pub use handle::Handle;
pub(crate) use server::RaftService;
