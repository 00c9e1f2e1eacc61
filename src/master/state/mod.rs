//! The deterministic core: commands in, rows and outcomes out. It knows no clock, no chance, no I/O but [`Txn`].
//!
//! [`apply()`] is the only writer. Two replicas that apply the same commands hold the same bytes, row for row, whatever
//! way the commands were grouped into transactions; digests compare them. [`query`] is the read side.

mod apply;
pub mod changes;
mod content;
mod context;
mod fault;
mod intent;
mod job;
pub mod keys;
pub mod lineage;
mod load;
mod lock;
mod member;
mod mount;
mod namespace;
pub mod plan;
mod purge;
pub mod query;
pub mod refusal;
mod reply;
mod reserved;
mod resolve;
mod rows;
mod session;
pub mod txn;
mod worker;

pub use apply::apply;
pub use fault::{Fault, Step};
pub use refusal::Refusal;
pub use session::WINDOW;
pub use txn::{StoreError, Table, Txn, View};
