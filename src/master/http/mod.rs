//! The HTTP port: livez, readyz with what is missing, and metrics in Prometheus' text format.

use std::fmt::Write as _;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::error::{Error, Result};
use crate::master::raft::Handle;
use crate::runtime::Shutdown;

/// Serves until `stop`.
///
/// *Errors*: when the transport fails.
pub async fn serve(listener: TcpListener, handle: Handle, stop: Shutdown) -> Result<()> {
    let router = Router::new()
        // The process answers: that is all liveness may depend on.
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(handle);
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
        .map_err(|error| Error::internal(format!("the HTTP server has failed: {error}")))
}

async fn ready(State(handle): State<Handle>) -> (StatusCode, String) {
    match handle.readiness() {
        Ok(()) => (StatusCode::OK, format!("ok: {}\n", handle.phase())),
        Err(missing) => (StatusCode::SERVICE_UNAVAILABLE, format!("{missing}\n")),
    }
}

/// Name, help, type and value of every metric.
fn figures(handle: &Handle) -> Vec<(&'static str, &'static str, u64)> {
    let status = handle.status();
    let own = status.self_.unwrap_or_default();
    vec![
        ("jindofs_master_member_id", "Id of this member, 0 before it is admitted.", own.id),
        ("jindofs_master_leader_id", "Id of the leader this member knows, 0 for none.", status.leader_id),
        ("jindofs_master_term", "Raft term.", status.term),
        ("jindofs_master_ready", "1 when readyz answers 200.", u64::from(handle.is_ready())),
        ("jindofs_master_last_log_index", "Index of the last entry in the log.", own.last_log),
        ("jindofs_master_committed_index", "Index of the last entry known to be committed.", status.committed),
        ("jindofs_master_applied_index", "Index of the last entry applied.", own.applied),
        ("jindofs_master_snapshot_index", "Index of the newest snapshot.", own.snapshot),
        ("jindofs_master_boots", "Starts of this disk.", own.boot),
        ("jindofs_master_meta_dir_used_bytes", "Bytes used by the metadata directory.", own.disk_used_bytes),
        ("jindofs_master_meta_dir_free_bytes", "Bytes free on its file system.", own.disk_free_bytes),
    ]
}

async fn metrics(State(handle): State<Handle>) -> String {
    let mut text = String::new();
    for (name, help, value) in figures(&handle) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
    }
    text
}
