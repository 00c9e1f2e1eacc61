//! Soft state of a master: what workers report and which sessions were renewed. Never in the log, rebuilt after a start.

mod progress;
mod sessions;
mod workers;

pub use progress::Progress;
pub use sessions::Sessions;
pub use workers::{Usage, Workers};
