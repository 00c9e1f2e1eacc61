//! Soft state of a master: what workers report and which sessions were renewed. Never in the log, rebuilt after a start.

mod drains;
mod progress;
mod sessions;
mod sizes;
mod workers;

pub use drains::Drains;
pub use progress::Progress;
pub use sessions::Sessions;
pub use sizes::{Size, Sizes};
pub use workers::{Held, Usage, Workers};
