//! `jindoctl`: the cluster, for people.

fn main() {}
