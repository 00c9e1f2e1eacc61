//! Packets over a Unix socket of this host (`SOCK_SEQPACKET`), each with a few file descriptors at most (`SCM_RIGHTS`), and
//! what those who hand a FUSE mount over in them say to the kernel.

mod mountinfo;
mod resend;

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, recvmsg, sendmsg,
    socket_with,
};
use tokio::io::unix::AsyncFd;

pub use mountinfo::unescape_mount_field;
pub use resend::resend_requests;

/// Largest packet.
pub const PACKET_MAX: usize = 96 << 10;
/// Most descriptors of a packet.
pub const DESCRIPTORS_MAX: usize = 2;

/// Longest path that the address of a Unix socket holds, bytes.
const ADDRESS_MAX: usize = 107;
/// Longest last name of the path of a socket, bytes.
pub const SOCKET_NAME_MAX: usize = 80;

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// Path of a Unix socket in a form that its address can hold. A directory with a long path is reached through a descriptor of
/// it, which is why the value must live until the socket is bound or connected.
#[derive(Debug)]
pub struct SocketPath {
    path: PathBuf,
    _directory: Option<OwnedFd>,
}

impl SocketPath {
    /// The form of `path`.
    ///
    /// *Errors*: the system's, when the directory cannot be opened; `InvalidInput` for a last name of more than
    /// [`SOCKET_NAME_MAX`] bytes.
    pub fn of(path: &Path) -> io::Result<SocketPath> {
        if path.as_os_str().len() <= ADDRESS_MAX {
            return Ok(SocketPath { path: path.to_owned(), _directory: None });
        }
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it names no socket"));
        };
        if name.len() > SOCKET_NAME_MAX {
            let message = format!("the last name has {} bytes, at most {SOCKET_NAME_MAX} are allowed", name.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(directory, flags, Mode::empty())?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
        Ok(SocketPath { path, _directory: Some(directory) })
    }

    /// The path to bind or to connect to.
    pub fn as_path(&self) -> &Path {
        &self.path
    }

    fn address(&self) -> io::Result<SocketAddrUnix> {
        Ok(SocketAddrUnix::new(&self.path)?)
    }
}

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
        connect(&socket, &SocketPath::of(path)?.address()?)?;
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
        bind(&socket, &SocketPath::of(path)?.address()?)?;
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
    async fn a_socket_in_a_directory_with_a_long_path_is_bound_and_connected_to() {
        let dir = tempfile::tempdir().expect("tempdir");
        let long = dir.path().join("d".repeat(200)).join("e".repeat(200));
        std::fs::create_dir_all(&long).expect("mkdir");
        let path = long.join("s");
        let listener = PacketListener::bind(&path).expect("bind");
        let client = Packets::connect(&path).expect("connect");
        let server = listener.accept().await.expect("accept");
        client.send(b"one", &[]).await.expect("send");
        let mut buffer = [0; 16];
        assert_eq!(server.receive(&mut buffer).await.expect("receive").expect("a packet").0, 3);
        assert!(path.exists());
        let named = SocketPath::of(&long.join("n".repeat(SOCKET_NAME_MAX + 1))).expect_err("a long name");
        assert_eq!(named.kind(), io::ErrorKind::InvalidInput);
        assert_eq!(Packets::connect(&long.join("gone")).expect_err("nobody").kind(), io::ErrorKind::NotFound);
    }

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
