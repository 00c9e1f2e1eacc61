//! Packets over a Unix socket of this host (`SOCK_SEQPACKET`), each with a few file descriptors at most (`SCM_RIGHTS`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, recvmsg, sendmsg,
    socket_with,
};
use tokio::io::unix::AsyncFd;

/// Largest packet.
pub const PACKET_MAX: usize = 96 << 10;
/// Most descriptors of a packet.
pub const DESCRIPTORS_MAX: usize = 2;

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

fn watched(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the value that watches it, and stays open and the same as long as that lives.
    unsafe { AsyncFd::register(socket) }.map_err(Into::into)
}

/// One end of a connection. May be used by several tasks at once: packets are whole.
#[derive(Debug)]
pub struct Packets(AsyncFd<OwnedFd>);

impl Packets {
    /// Connects to the socket at `path`.
    ///
    /// *Errors*: the system's; `ConnectionRefused` or `NotFound` when nobody listens.
    pub fn connect(path: &Path) -> io::Result<Packets> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Packets(watched(socket)?))
    }

    /// Sends one packet.
    ///
    /// *Errors*: when the other end is gone, the packet is too large, or has more than [`DESCRIPTORS_MAX`] descriptors.
    /// *Cancel-safe*: it is sent whole or not at all.
    pub async fn send(&self, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        loop {
            let mut ready = self.0.writable().await?;
            let sent = ready.try_io(|socket| {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one packet"));
                }
                Ok(sendmsg(socket, &[IoSlice::new(packet)], &mut ancillary, SendFlags::NOSIGNAL)?)
            });
            match sent {
                Ok(done) => return done.map(drop),
                Err(_would_block) => {}
            }
        }
    }

    /// Receives one packet into `buffer`; its length and descriptors, or `None` when the other end is gone.
    ///
    /// *Errors*: the system's; `InvalidData` for a packet that is longer than the buffer. *Cancel-safe*.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<(usize, Vec<OwnedFd>)>> {
        loop {
            let mut ready = self.0.readable().await?;
            let received = ready.try_io(|socket| {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
                let mut ancillary = RecvAncillaryBuffer::new(&mut space);
                let packet = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
                let mut descriptors = Vec::new();
                for message in ancillary.drain() {
                    if let RecvAncillaryMessage::ScmRights(some) = message {
                        descriptors.extend(some);
                    }
                }
                if packet.flags.contains(rustix::net::ReturnFlags::TRUNC) {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a packet is longer than allowed"));
                }
                Ok((packet.bytes, descriptors))
            });
            match received {
                Ok(Ok((0, _))) => return Ok(None),
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Ok(done) => return done.map(Some),
                Err(_would_block) => {}
            }
        }
    }
}

/// A socket that is listened on.
#[derive(Debug)]
pub struct PacketListener(AsyncFd<OwnedFd>);

impl PacketListener {
    /// Listens at `path`, in the place of a socket that an ended process left there.
    ///
    /// *Errors*: the system's; `AddrInUse` when somebody listens.
    pub fn bind(path: &Path) -> io::Result<PacketListener> {
        if Packets::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"));
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        listen(&socket, 1024)?;
        Ok(PacketListener(watched(socket)?))
    }

    /// The next connection.
    pub async fn accept(&self) -> io::Result<Packets> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|socket| Ok(accept_with(socket, FLAGS)?)) {
                Ok(Ok(accepted)) => return Ok(Packets(watched(accepted)?)),
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;

    use super::*;

    #[tokio::test]
    async fn packets_keep_their_borders_and_bring_their_descriptors() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("s");
        let listener = PacketListener::bind(&path).expect("bind");
        assert!(PacketListener::bind(&path).is_err(), "somebody listens");
        drop(listener.accept().await.expect("the second listener's knock"));
        let client = Packets::connect(&path).expect("connect");
        let server = listener.accept().await.expect("accept");
        let file = dir.path().join("f");
        std::fs::write(&file, b"content").expect("write");
        let file = std::fs::File::open(&file).expect("open");
        let dir = std::fs::File::open(dir.path()).expect("open");
        client.send(b"one", &[]).await.expect("send");
        client.send(b"two", &[file.as_fd(), dir.as_fd()]).await.expect("send");
        let mut buffer = [0; 16];
        let (length, descriptors) = server.receive(&mut buffer).await.expect("receive").expect("a packet");
        assert_eq!((&buffer[..length], descriptors.len()), (&b"one"[..], 0));
        let (length, mut descriptors) = server.receive(&mut buffer).await.expect("receive").expect("a packet");
        assert_eq!(&buffer[..length], b"two");
        let mut content = String::new();
        assert_eq!(descriptors.len(), 2);
        std::fs::File::from(descriptors.remove(0)).read_to_string(&mut content).expect("read");
        assert_eq!(content, "content");
        client.send(&[7; 17], &[]).await.expect("send");
        assert!(server.receive(&mut buffer).await.is_err(), "too long");
        drop(client);
        assert!(server.receive(&mut buffer).await.expect("receive").is_none());
    }
}
