//! The master.

pub mod duties;
pub mod http;
pub mod raft;
pub mod service;
pub mod state;
pub mod store;
pub mod view;
