//! What every gRPC client and server of ours shares: the status table, and the channel that follows the leader.

pub mod channel;
pub mod server;
pub mod source;
pub mod status;

pub use jindofs_packets as packets;
