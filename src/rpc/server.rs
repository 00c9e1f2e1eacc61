//! What every gRPC server of ours shares: limits, health, reflection, and an end that waits for what is under way.

use std::convert::Infallible;
use std::time::Duration;

use tokio::net::TcpListener;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::error::{Error, Result};
use crate::runtime::Shutdown;

/// How long requests under way may take to end once the server is told to stop.
const DRAIN: Duration = Duration::from_secs(3);

/// Binds a port.
///
/// *Errors*: names the address and the setting it comes from.
pub async fn bind(address: &str, setting: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        Error::from(error)
            .context(format!("cannot listen on {address} ({setting}): stop who uses it or choose another port"))
    })
}

/// The routes of a server: its services, grpc.health.v1 and reflection.
///
/// *Errors*: when the descriptors compiled in do not load.
pub async fn routes<S>(first: S) -> Result<Routes>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + NamedService,
    S: Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(jindofs_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|error| Error::internal(format!("reflection: {error}")))?;
    Ok(Routes::new(first).add_service(health).add_service(reflection))
}

/// Serves until `stop`, then gives what is under way a moment.
///
/// *Errors*: when the transport fails.
pub async fn serve(listener: TcpListener, routes: Routes, stop: Shutdown) -> Result<()> {
    // A small answer must not wait for the peer's delayed acknowledgement.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = Server::builder()
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
    let drained = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        served = server => served.map_err(|error| Error::internal(format!("the gRPC server has failed: {error}"))),
        () = drained => Ok(()),
    }
}
