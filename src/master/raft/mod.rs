//! Raft: the only place that names openraft. Identity and membership, the log, snapshots, the wire between masters.

mod admission;
mod announce;
mod announcers;
mod append;
mod apply;
mod ballast;
mod choice;
mod compaction;
mod confirm;
mod current;
mod discovery;
mod disk_parts;
mod disk_space;
mod founding;
mod handle;
mod identity;
mod inspection;
mod install;
mod integrity;
mod joining;
mod life;
mod listening;
mod membership;
mod network;
mod node;
mod operate;
mod peers;
mod progress;
mod promise;
mod queue;
mod quorum;
mod read_gate;
mod reconcile;
mod record_file;
mod repair;
mod server;
#[cfg(test)]
mod simulation;
mod slow_disk;
mod snapshot;
mod state_machine;
mod status;
#[cfg(test)]
mod suite_test;
mod transfer;
mod types;
mod wal;
mod wall_clock;
mod wire;
mod witness;

pub(crate) use admission::grows;
pub use handle::Handle;
pub(crate) use server::RaftService;
