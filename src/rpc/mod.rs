//! What every gRPC client and server of ours shares: the status table, the channel that follows
//! the leader, and calls to workers.

pub mod channel;
pub mod remote;
pub mod server;
pub mod source;
pub mod status;
