//! What every gRPC client and server of ours shares: the status table, and later channels and servers.

pub mod status;
