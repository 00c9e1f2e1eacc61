//! Deterministic simulation of the masters: one seed, one run.
//!
//! Real are the log, the snapshots, identity and membership, the start and the life of a member, openraft, RocksDB, tonic
//! and every message between the masters. Simulated are time, random numbers, the network below gRPC, what a disk keeps when
//! its power fails, and the order in which the processes run: all of them on one thread, each in a runtime of its own. A run
//! is a process, so that nothing of one run is left in the next.

mod actions;
mod checks;
mod clients;
mod disk;
mod log;
mod machine;
mod net;
mod planned;
mod run;
mod seeds;
mod trace;

pub(in crate::master::raft) use machine::{config as master_config, sync_delay as disk_delay};
pub(in crate::master::raft) use net::Connector;
