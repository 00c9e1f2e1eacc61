//! The plugin and a controller as one endpoint, which is what the conformance tests ask for. Calls of the node service go
//! through as they are.

use std::convert::Infallible;
use std::future::poll_fn;
use std::path::Path;
use std::task::{Context, Poll};

use jindofs_proto::csi::controller_server::ControllerServer;
use jindofs_proto::csi::identity_client::IdentityClient;
use jindofs_proto::csi::identity_server::{Identity, IdentityServer};
use jindofs_proto::csi::plugin_capability::{Service as ServiceCapability, Type, service};
use jindofs_proto::csi::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    PluginCapability, ProbeRequest, ProbeResponse,
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};

use super::Site;
use super::controller::TestController;

/// Serves both at `socket` for as long as the runtime of the test lives.
pub async fn serve(site: &Site, socket: &Path) {
    let plugin = site.channel().await;
    let listener = UnixListener::bind(socket).expect("bound");
    let serve = Server::builder()
        .add_service(IdentityServer::new(Front { plugin: IdentityClient::new(plugin.clone()) }))
        .add_service(ControllerServer::new(TestController::new(site)))
        .add_service(NodeCalls { plugin })
        .serve_with_incoming(UnixListenerStream::new(listener));
    tokio::spawn(async move { serve.await.expect("served") });
}

/// The plugin's identity, and that there is a controller.
struct Front {
    plugin: IdentityClient<Channel>,
}

#[tonic::async_trait]
impl Identity for Front {
    async fn get_plugin_info(
        &self,
        request: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        self.plugin.clone().get_plugin_info(request.into_inner()).await
    }

    async fn get_plugin_capabilities(
        &self,
        request: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let mut told = self.plugin.clone().get_plugin_capabilities(request.into_inner()).await?;
        let controller = ServiceCapability { r#type: service::Type::ControllerService.into() };
        told.get_mut().capabilities.push(PluginCapability { r#type: Some(Type::Service(controller)) });
        Ok(told)
    }

    async fn probe(&self, request: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        self.plugin.clone().probe(request.into_inner()).await
    }
}

/// Hands requests on, whatever they are.
#[derive(Clone)]
struct NodeCalls {
    plugin: Channel,
}

impl NamedService for NodeCalls {
    const NAME: &'static str = "csi.v1.Node";
}

impl Service<http::Request<Body>> for NodeCalls {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let mut plugin = self.plugin.clone();
        Box::pin(async move {
            let answer = match poll_fn(|context| plugin.poll_ready(context)).await {
                Ok(()) => plugin.call(request).await,
                Err(error) => Err(error),
            };
            Ok(answer.unwrap_or_else(|error| Status::unavailable(error.to_string()).into_http()))
        })
    }
}
