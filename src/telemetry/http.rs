//! The HTTP port of every role: livez, readyz with what is missing, and metrics in Prometheus' text format.

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;

use super::series;
use crate::error::{Error, Result};
use crate::runtime::Shutdown;

/// What a role answers with.
pub trait Probe: Send + Sync + 'static {
    /// What it does, if it is ready; what is missing, if not.
    fn ready(&self) -> Result<String, String>;
    /// Further metrics, as text; counters of the process are added to it.
    fn figures(&self) -> String {
        String::new()
    }
}

fn registry() -> &'static PrometheusHandle {
    static REGISTRY: OnceLock<PrometheusHandle> = OnceLock::new();
    REGISTRY.get_or_init(|| {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        // Fails if there is one already; then this one stays empty.
        let _ = metrics::set_global_recorder(recorder);
        handle
    })
}

/// Starts counting. Counters made before are lost.
pub fn init_metrics() {
    registry();
}

/// Serves until `stop`.
///
/// *Errors*: when the transport fails.
pub async fn serve(listener: TcpListener, probe: Arc<dyn Probe>, stop: Shutdown) -> Result<()> {
    let (ready, figures) = (probe.clone(), probe);
    let router = Router::new()
        // The process answers: that is all liveness may depend on.
        .route("/livez", get(|| async { "ok\n" }))
        .route(
            "/readyz",
            get(|| async move {
                match ready.ready() {
                    Ok(phase) => (StatusCode::OK, format!("ok: {phase}\n")),
                    Err(missing) => (StatusCode::SERVICE_UNAVAILABLE, format!("{missing}\n")),
                }
            }),
        )
        .route("/metrics", get(|| async move { figures.figures() + &series::render() + &registry().render() }));
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
        .map_err(|error| Error::internal(format!("the HTTP server has failed: {error}")))
}
