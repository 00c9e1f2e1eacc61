//! JindoFS-HA: a distributed cache for object storage whose master never loses anything.
#![doc = include_str!("docs/ARCHITECTURE.md")]

pub mod cli;
pub mod client;
pub mod config;
pub mod dev;
pub mod docs;
pub mod error;
pub mod fluid;
pub mod fuse;
pub mod master;
pub mod rpc;
pub mod runtime;
pub mod telemetry;
pub mod types;
pub mod ufs;
pub mod worker;
