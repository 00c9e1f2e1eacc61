//! The deterministic core against a model of it, on real stores, without processes.

mod batches;
mod changes;
mod emptied;
mod format;
mod intents;
mod locks;
mod members;
mod model;
mod replicas;
mod workers;
