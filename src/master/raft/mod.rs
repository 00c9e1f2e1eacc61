//! Raft: the only place that names openraft. Identity and membership, the log, snapshots, the wire between masters.

mod announce;
mod confirm;
mod current;
mod disk_parts;
mod founding;
mod handle;
mod identity;
mod inspection;
mod life;
mod membership;
mod network;
mod node;
mod operate;
mod peers;
mod progress;
mod quorum;
mod read_gate;
mod reconcile;
mod server;
mod slow_disk;
mod snapshot;
mod state_machine;
mod status;
#[cfg(test)]
mod suite_test;
mod types;
mod wal;
mod wall_clock;
mod wire;
mod witness;

pub use handle::Handle;
pub(crate) use server::RaftService;
