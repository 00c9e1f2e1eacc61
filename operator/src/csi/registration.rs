//! How the kubelet gets to know the plugin, without a sidecar.
//!
//! The kubelet dials the registration socket with the path of the socket as its authority, which is no authority, and every
//! HTTP/2 library for Rust refuses it. Two calls with tiny messages are all that is ever made: this answers them frame by
//! frame and never looks at headers. The calls are told apart by their message, which is empty only in the first.

use std::path::Path;

use jindofs_proto::registration::{PluginInfo, RegistrationStatus};
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixListener;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Nothing the kubelet sends is larger.
const FRAME_MAX: usize = 64 << 10;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

/// Of DATA and HEADERS; the same bit says "acknowledged" of SETTINGS and PING.
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

/// `:status: 200` from the static table, and the content type as a literal (RFC 7541).
const ANSWER: &[u8] = b"\x88\x0f\x10\x10application/grpc";
const TRAILER: &[u8] = b"\x00\x0bgrpc-status\x010";

/// What the kubelet is told.
pub(super) fn info(driver: &str, socket: &Path) -> PluginInfo {
    PluginInfo {
        r#type: "CSIPlugin".to_owned(),
        name: driver.to_owned(),
        endpoint: socket.display().to_string(),
        supported_versions: vec!["1.0.0".to_owned()],
    }
}

/// Answers every caller.
pub(super) async fn serve(listener: UnixListener, plugin: PluginInfo) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let plugin = plugin.clone();
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, &plugin).await
                        && error.kind() != std::io::ErrorKind::UnexpectedEof
                    {
                        tracing::warn!(%error, "a conversation about registration broke off");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the registration socket");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        }
    }
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

async fn read(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Frame> {
    let mut head = [0; 9];
    from.read_exact(&mut head).await?;
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    if length > FRAME_MAX {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, format!("a frame of {length} bytes")));
    }
    let mut payload = vec![0; length];
    from.read_exact(&mut payload).await?;
    let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
    Ok(Frame { kind: head[3], flags: head[4], stream, payload })
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    // Everything we send is far below the 16 MiB that three bytes can say.
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// What is in a DATA frame beside its padding.
fn unpadded(frame: &Frame) -> &[u8] {
    if frame.flags & PADDED == 0 {
        return &frame.payload;
    }
    let padding = frame.payload.first().copied().map_or(0, usize::from);
    let end = frame.payload.len().saturating_sub(padding);
    frame.payload.get(1..end).unwrap_or_default()
}

async fn converse(mut stream: impl AsyncRead + AsyncWrite + Unpin, plugin: &PluginInfo) -> std::io::Result<()> {
    let mut preface = [0; PREFACE.len()];
    stream.read_exact(&mut preface).await?;
    if preface != PREFACE {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "this is not HTTP/2"));
    }
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    let mut message: Vec<u8> = Vec::new();
    loop {
        let got = read(&mut stream).await?;
        match got.kind {
            SETTINGS if got.flags & ACK == 0 => stream.write_all(&frame(SETTINGS, ACK, 0, &[])).await?,
            PING if got.flags & ACK == 0 => stream.write_all(&frame(PING, ACK, 0, &got.payload)).await?,
            GOAWAY => return Ok(()),
            HEADERS => message.clear(),
            DATA => {
                message.extend(unpadded(&got));
                if message.len() > FRAME_MAX {
                    return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "a message without an end"));
                }
            }
            _ => {}
        }
        if matches!(got.kind, DATA | HEADERS) && got.flags & END_STREAM != 0 {
            stream.write_all(&answer(got.stream, &message, plugin)).await?;
        }
    }
}

/// The whole answer to a call: headers, message, trailers.
fn answer(stream: u32, asked: &[u8], plugin: &PluginInfo) -> Vec<u8> {
    // A gRPC message stands behind one byte for its compression and four for its length.
    let body = asked.get(5..).unwrap_or_default();
    let reply = if body.is_empty() {
        plugin.encode_to_vec()
    } else {
        match RegistrationStatus::decode(body) {
            Ok(status) if status.plugin_registered => tracing::info!("the kubelet has registered the plugin"),
            Ok(status) => tracing::error!(error = status.error, "the kubelet does not register the plugin"),
            Err(error) => {
                tracing::warn!(%error, "the kubelet said something else than whether it registered the plugin")
            }
        }
        Vec::new()
    };
    let length = u32::try_from(reply.len()).unwrap_or(0).to_be_bytes();
    let data = [&[0][..], &length, &reply].concat();
    let mut bytes = frame(HEADERS, END_HEADERS, stream, ANSWER);
    bytes.extend(frame(DATA, 0, stream, &data));
    bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, TRAILER));
    bytes
}

#[cfg(test)]
mod tests {
    use jindofs_proto::registration::InfoRequest;
    use jindofs_proto::registration::registration_client::RegistrationClient;
    use tonic::transport::Endpoint;

    use super::*;

    #[tokio::test]
    async fn a_real_grpc_client_is_told_who_we_are() {
        let directory = std::env::temp_dir().join(format!("jindofs-registration-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&directory).expect("made");
        let socket = directory.join("reg.sock");
        let listener = UnixListener::bind(&socket).expect("bound");
        tokio::spawn(serve(listener, info("fuse.csi.fluid.io", Path::new("/plugins/csi.sock"))));
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).expect("a uri");
        let mut client = RegistrationClient::new(endpoint.connect().await.expect("connected"));
        for _ in 0..2 {
            let pod_events = client.get_info(InfoRequest {}).await.expect("answered").into_inner();
            assert_eq!(pod_events.endpoint, "/plugins/csi.sock");
            let status = RegistrationStatus { plugin_registered: true, error: String::new() };
            client.notify_registration_status(status).await.expect("answered");
        }
        std::fs::remove_dir_all(&directory).expect("removed");
    }

    #[tokio::test]
    async fn what_is_not_http2_or_has_no_end_is_hung_up_on() {
        let plugin = info("d", Path::new("/s"));
        let huge = [PREFACE, &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat();
        for said in [&b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..], &huge] {
            let (mut near, far) = tokio::io::duplex(1 << 16);
            near.write_all(said).await.expect("said");
            let error = converse(far, &plugin).await.expect_err("hung up");
            assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
        }
    }
}
