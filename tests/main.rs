//! The one integration-test binary: real processes, real disks, recorded histories.
#![allow(unreachable_pub, reason = "a test binary has no outside")]

mod commands;
mod csi;
mod data;
mod faults;
mod image;
mod kube;
mod operator;
mod state;
mod support;
mod tidy;
