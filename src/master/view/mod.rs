//! Soft state of a master: what workers report and which sessions were renewed. Never in the log, rebuilt after a start.

mod progress;
mod sessions;
mod sizes;
mod workers;

pub use progress::Progress;
pub use sessions::Sessions;
pub use sizes::{Size, Sizes};
pub use workers::{Usage, Workers};
