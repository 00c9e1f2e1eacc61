//! The service on the wire. Events are encoded once, when they are published; the generated server would encode them
//! once for each subscriber.

use std::convert::Infallible;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes};
use futures::stream::BoxStream;
use jindofs_proto::v1::SubscribeRequest;
use jindofs_proto::v1::invalidation_server::SERVICE_NAME;
use prost::Message;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{BoxFuture, Service};
use tonic::server::{Grpc, NamedService, ServerStreamingService};
use tonic::{Code, Status};

use super::InvalidationService;
use crate::types::MESSAGE_BYTES_MAX;

const SUBSCRIBE: &str = "/jindofs.v1.Invalidation/Subscribe";

/// An encoded `InvalidationEvent`, in parts: encodings of one message type after each other are the encoding of the
/// merged message.
#[derive(Debug, Default)]
pub(in crate::master::service) struct EncodedEvent(pub(super) Vec<Bytes>);

/// Serves [`InvalidationService`].
#[derive(Debug, Clone)]
pub(in crate::master::service) struct InvalidationServer(pub(in crate::master::service) InvalidationService);

impl NamedService for InvalidationServer {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<Request<Body>> for InvalidationServer {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let service = self.0.clone();
        Box::pin(async move {
            if request.uri().path() != SUBSCRIBE {
                return Ok(Status::new(Code::Unimplemented, "").into_http());
            }
            let mut grpc =
                Grpc::new(EventCodec).apply_max_message_size_config(Some(MESSAGE_BYTES_MAX), Some(MESSAGE_BYTES_MAX));
            Ok(grpc.server_streaming(service, request).await)
        })
    }
}

impl ServerStreamingService<SubscribeRequest> for InvalidationService {
    type Response = EncodedEvent;
    type ResponseStream = BoxStream<'static, Result<EncodedEvent, Status>>;
    type Future = BoxFuture<tonic::Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: tonic::Request<SubscribeRequest>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move { service.answer(request.into_inner()).await.map(tonic::Response::new) })
    }
}

struct EventCodec;

impl Codec for EventCodec {
    type Encode = EncodedEvent;
    type Decode = SubscribeRequest;
    type Encoder = EventCodec;
    type Decoder = EventCodec;

    fn encoder(&mut self) -> EventCodec {
        EventCodec
    }

    fn decoder(&mut self) -> EventCodec {
        EventCodec
    }
}

impl Encoder for EventCodec {
    type Item = EncodedEvent;
    type Error = Status;

    fn encode(&mut self, event: EncodedEvent, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        event.0.into_iter().for_each(|part| to.put(part));
        Ok(())
    }
}

impl Decoder for EventCodec {
    type Item = SubscribeRequest;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<SubscribeRequest>, Status> {
        let request = SubscribeRequest::decode(from);
        request.map(Some).map_err(|error| Status::internal(format!("the request does not decode: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_that_of_the_contract() {
        assert_eq!(SUBSCRIBE, format!("/{SERVICE_NAME}/Subscribe"));
    }
}
