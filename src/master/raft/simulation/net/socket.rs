//! The ends of simulated connections, as gRPC uses them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::transport::server::Connected;

use super::{Event, Packet, net};

/// One end of a connection.
#[derive(Debug)]
pub(in crate::master::raft) struct Socket {
    pub(super) conn: u64,
    pub(super) side: usize,
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        net(|net| {
            let Some(conn) = net.conns.get_mut(&self.conn) else {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            };
            let pipe = &mut conn.pipes[self.side];
            if pipe.reset {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            if pipe.arrived.is_empty() && !pipe.ended {
                pipe.reader = Some(context.waker().clone());
                return Poll::Pending;
            }
            let count = pipe.arrived.len().min(into.remaining());
            let data: Vec<u8> = pipe.arrived.drain(..count).collect();
            into.put_slice(&data);
            Poll::Ready(Ok(()))
        })
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        net(|net| {
            let alive = net.conns.get(&self.conn).is_some_and(|conn| !conn.pipes[self.side].reset);
            if !alive {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let host = net.conns[&self.conn].hosts[self.side];
            if !net.muted[host] {
                net.send(self.conn, 1 - self.side, Packet::Data(data.to_vec()));
            }
            Poll::Ready(Ok(data.len()))
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        net(|net| {
            let host = net.conns.get(&self.conn).map(|conn| conn.hosts[self.side]);
            if host.is_some_and(|host| !net.muted[host]) {
                net.send(self.conn, 1 - self.side, Packet::End);
            }
        });
        Poll::Ready(Ok(()))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        net(|net| {
            let Some(conn) = net.conns.get_mut(&self.conn) else { return };
            let host = conn.hosts[self.side];
            conn.gone[self.side] = true;
            if conn.gone == [true, true] {
                net.conns.remove(&self.conn);
            } else if !net.muted[host] {
                net.send(self.conn, 1 - self.side, Packet::Reset);
            }
        });
    }
}

impl Connected for Socket {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

/// The sockets that a machine accepts.
pub(in super::super) fn incoming(host: usize) -> impl futures::Stream<Item = io::Result<Socket>> {
    futures::stream::poll_fn(move |context| {
        net(|net| match net.accepted[host].0.pop_front() {
            Some(socket) => Poll::Ready(Some(Ok(socket))),
            None => {
                net.accepted[host].1 = Some(context.waker().clone());
                Poll::Pending
            }
        })
    })
}

/// Connects from the machine that runs to the one that an address names.
#[derive(Debug, Clone, Copy)]
pub(in crate::master::raft) struct Connector;

impl Service<Uri> for Connector {
    type Response = TokioIo<Socket>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Socket>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let number = uri.host().and_then(|host| host.rsplit('.').next()?.parse::<usize>().ok()).unwrap_or(0);
        let (answer, wait) = oneshot::channel();
        net(|net| {
            let (from, to) = (net.running, number.saturating_sub(1));
            if to < net.power.len() && !net.muted[from] {
                let delay = net.delay(from, to);
                net.after(delay, Event::Connect(from, to, answer));
            }
        });
        Box::pin(async move {
            let socket = wait.await.map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))??;
            Ok(TokioIo::new(socket))
        })
    }
}
