//! The one integration-test binary: real processes, real disks, recorded histories.

#![allow(unreachable_pub)]

mod faults;
mod support;
