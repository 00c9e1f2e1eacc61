//! Faults of masters, each with what must hold.

mod alone;
mod bad_input;
mod clocks;
mod disk_parts;
mod disk_random;
mod disks;
mod founding;
mod full;
mod ghosts;
mod grown;
mod impostors;
mod leaders;
mod lost_syncs;
mod members;
mod network;
mod pauses;
mod power;
mod readiness;
mod retries;
mod rot;
mod transfers;
