//! The client library: namespace, sessions and the data path. Used by FUSE, the command line, the tests and the bench.

pub mod admin;
pub mod batcher;
pub mod invalidations;
pub mod layout_cache;
pub mod local;
pub mod locks;
pub mod mounts;
pub mod namespace;
pub mod readahead;
pub mod reader;
pub mod refresh;
pub mod session;
pub mod workers;
pub mod writer;

pub use batcher::Batcher;
pub use namespace::{Namespace, at_entry, at_inode, at_path};
pub use reader::{OpenFile, Reader};
pub use session::{OpGuard, Session};
pub use writer::Writer;
