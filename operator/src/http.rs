//! Probes and metrics of the operator and of the node plugin.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusBuilder;

/// Says that everything a process needs is there.
#[derive(Debug, Clone, Default)]
pub struct Ready(Arc<AtomicBool>);

impl Ready {
    /// From now on it is.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Serves `/livez`, `/readyz` and `/metrics` for as long as the process lives.
///
/// *Errors*: when the port cannot be had.
pub async fn serve(port: u16, ready: Ready) -> Result<(), String> {
    let recorder = PrometheusBuilder::new().build_recorder();
    let figures = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|error| error.to_string())?;
    let listener = tokio::net::TcpListener::bind(("0.0.0.0", port))
        .await
        .map_err(|error| format!("port {port} cannot be had: {error}; choose another with --http-port"))?;
    let readyz = move || {
        let ready = ready.0.load(Ordering::Acquire);
        async move { if ready { (StatusCode::OK, "ready\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "starting\n") } }
    };
    let routes = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(move || async move { figures.render() }));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!(%error, "probes and metrics are not served any more");
        }
    });
    Ok(())
}
