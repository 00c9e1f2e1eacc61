//! The deterministic core: commands in, rows and outcomes out. It knows no clock, no chance, no I/O but [`Txn`].

pub mod txn;

pub use txn::{StoreError, Table, Txn, View};
