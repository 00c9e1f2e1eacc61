//! Faults of masters, each with what must hold.

mod bad_input;
mod disks;
mod founding;
mod leaders;
mod power;
mod retries;
