//! Faults of masters, each with what must hold.

mod bad_input;
mod disks;
mod founding;
mod leaders;
mod members;
mod network;
mod power;
mod retries;
