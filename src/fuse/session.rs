//! The session with the kernel: of a new mount, or of one that another process has left.
//!
//! fuser serves requests only after FUSE_INIT, which the kernel sends once per mount. For a mount that is taken over
//! this process repeats FUSE_INIT itself, through a socket in the place of `/dev/fuse`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use fuser::{BackgroundSession, Config, InitFlags, MountOption, Session, SessionACL};
use jindofs_packets::resend_requests;
use rustix::io::DupFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::config::FuseConfig;
use crate::error::{Error, ErrorKind, Result};

use super::adapter::Adapter;
use super::fs::Fs;
use super::handover_state::{HandoverState, Negotiated, OpenHandle};
use super::mountpoint::{self, CLIENT, Detached, MountTarget, make_client};

/// `FUSE_INIT`.
const INIT: u32 = 26;

/// What another process needs to serve this mount.
#[derive(Debug)]
pub(super) struct Handover {
    /// Device number of the mount, "major:minor".
    pub(super) device: String,
    pub(super) fuse: OwnedFd,
    pub(super) handover_state: Arc<HandoverState>,
}

/// A mount that is being served.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) session: BackgroundSession,
    /// `None` if the mount cannot be handed over: no mount holder is configured, or the kernel does not support it.
    pub(super) handover: Option<Handover>,
}

fn options(config: &FuseConfig) -> Config {
    let mut options = Config::default();
    // The kernel checks permissions, refuses writes on a read-only mount, and shows the name of the client.
    options.mount_options = vec![
        MountOption::FSName(CLIENT.to_owned()),
        MountOption::Subtype(CLIENT.to_owned()),
        if config.writable { MountOption::RW } else { MountOption::RO },
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::DefaultPermissions,
    ];
    options.acl = if config.allow_other { SessionACL::All } else { SessionACL::Owner };
    options.n_threads = Some(config.threads);
    // Requests that were read from a clone of the descriptor fail when the clone is closed, even if the original is
    // held.
    options.clone_fd = config.handover_socket.is_none();
    options
}

/// Mounts at `place` and negotiates with the kernel.
fn begin(config: &FuseConfig, place: &MountTarget, adapter: Adapter) -> Result<Session<Adapter>> {
    let options = options(config);
    let failed = |error: std::io::Error| {
        let hint = match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => ": run it as root, or set user_allow_other in /etc/fuse.conf",
            Some(libc::ENODEV | libc::ENOENT) => ": is /dev/fuse there?",
            _ => "",
        };
        Error::from(error).context(format!("cannot mount at {}{hint}", place.path().display()))
    };
    match make_client(config.writable, config.allow_other) {
        Ok(Detached { fuse, mount }) => {
            let session = Session::from_fd(adapter, fuse, options.acl, options).map_err(failed)?;
            // Last, so that the mount is served as soon as it is visible.
            place.mount(mount.as_fd())?;
            Ok(session)
        }
        // Unprivileged users mount through fusermount3, which needs an empty mount point.
        Err(error) => {
            tracing::info!(%error, "mounts by the older interface of the kernel, or by fusermount3");
            place.clear()?;
            Session::new(adapter, place.path(), &options).map_err(failed)
        }
    }
}

/// Creates a new mount.
///
/// *Errors*: those of the system, with a hint.
pub(super) fn mount(config: &FuseConfig, place: &MountTarget, fs: &Arc<Fs>) -> Result<Served> {
    let adapter = Adapter::new(fs.clone(), tokio::runtime::Handle::current());
    let negotiated = adapter.negotiated();
    let session = begin(config, place, adapter)?;
    fs.kernel.tell_through(session.notifier(), session.as_fd().try_clone_to_owned()?);
    let mut handover = None;
    if config.handover_socket.is_some()
        && let Some(negotiated) = negotiated.get()
    {
        if negotiated.capabilities & InitFlags::FUSE_HAS_RESEND.bits() == 0 {
            tracing::warn!("this kernel cannot repeat requests (Linux 6.9 can): the mount ends with this process");
        } else {
            let handover_state = Arc::new(HandoverState::new(*negotiated)?);
            fs.handles.attach_state(handover_state.clone(), HashMap::new());
            let device = mountpoint::device(place.path())
                .ok_or_else(|| Error::internal(format!("{} was unmounted at once", place.path().display())))?;
            handover = Some(Handover { device, fuse: session.as_fd().try_clone_to_owned()?, handover_state });
        }
    }
    Ok(Served { session: session.spawn()?, handover })
}

/// Takes over a mount that another process has left; `fuse` and `state` are its descriptors.
///
/// *Errors*: `Unsupported` if that process negotiated capabilities that we do not have; `Corrupted` if it was of
/// another release.
pub(super) fn take_over(
    config: &FuseConfig,
    fs: &Arc<Fs>,
    device: String,
    fuse: OwnedFd,
    state: OwnedFd,
) -> Result<Served> {
    let (handover_state, open) = HandoverState::take(state)?;
    let negotiated = handover_state.negotiated();
    let (near, far) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(std::io::Error::from)?;
    let mut far = File::from(far);
    far.write_all(&request(&negotiated))?;
    let options = options(config);
    let adapter = Adapter::new(fs.clone(), tokio::runtime::Handle::current());
    let session = Session::from_fd(adapter, near, options.acl, options)?;
    let mut reply = [0; 128];
    let length = far.read(&mut reply)?;
    let ours = capabilities(&reply[..length]);
    if ours != negotiated.capabilities {
        let message = format!("it was mounted with the capabilities {:#x}, we have {ours:#x}", negotiated.capabilities);
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    // SAFETY: the session owns this descriptor and keeps it open; we never close it, and `dup3` replaces what it refers
    // to.
    let mut place = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(session.as_fd().as_raw_fd()) });
    rustix::io::dup3(&fuse, &mut place, DupFlags::CLOEXEC).map_err(std::io::Error::from)?;
    // Before the first read: what is read afterwards is answered by this process.
    resend_requests(&fuse)?;
    tracing::info!(device, handles = open.len(), "goes on with the mount of the process before");
    for (number, one) in &open {
        if let OpenHandle::File { node, version, writes } = one {
            fs.nodes.adopt(*node, *number, *version, *writes);
        }
    }
    fs.kernel.tell_through(session.notifier(), session.as_fd().try_clone_to_owned()?);
    let handover_state = Arc::new(handover_state);
    fs.handles.attach_state(handover_state.clone(), open);
    Ok(Served { session: session.spawn()?, handover: Some(Handover { device, fuse, handover_state }) })
}

/// The FUSE_INIT request as the kernel sent it.
fn request(negotiated: &Negotiated) -> Vec<u8> {
    let capabilities = negotiated.capabilities | InitFlags::FUSE_INIT_EXT.bits();
    let mut bytes = Vec::with_capacity(104);
    bytes.extend(104_u32.to_ne_bytes());
    bytes.extend(INIT.to_ne_bytes());
    // Number of the request; inode, user, group, process and padding are zero.
    bytes.extend(1_u64.to_ne_bytes());
    bytes.extend([0; 24]);
    for word in [negotiated.version.0, negotiated.version.1, negotiated.max_readahead] {
        bytes.extend(word.to_ne_bytes());
    }
    for half in [capabilities & u64::from(u32::MAX), capabilities >> 32] {
        bytes.extend(u32::try_from(half).unwrap_or(0).to_ne_bytes());
    }
    bytes.extend([0; 44]);
    bytes
}

/// The capabilities in a reply to FUSE_INIT.
fn capabilities(reply: &[u8]) -> u64 {
    let word = |at: usize| {
        let bytes = reply.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        u64::from(bytes.map_or(0, u32::from_ne_bytes))
    };
    // After a header of 16 bytes: major, minor, read-ahead, flags; flags2 after 16 more bytes.
    (word(28) | word(48) << 32) & !InitFlags::FUSE_INIT_EXT.bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greeting_is_as_long_as_it_says_and_an_answer_is_read_where_the_kernel_reads_it() {
        let capabilities = InitFlags::FUSE_HAS_RESEND.bits() | 1;
        let said = request(&Negotiated { version: (7, 45), capabilities, max_readahead: 9 });
        assert_eq!((said.len(), &said[..4]), (104, &104_u32.to_ne_bytes()[..]));
        assert_eq!(said[52..56], (1_u32 | 1 << 30).to_ne_bytes(), "low half, with the mark that a high one follows");
        assert_eq!(said[56..60], (1_u32 << 7).to_ne_bytes());
        let mut reply = [0; 80];
        reply[28..32].copy_from_slice(&(1_u32 | 1 << 30).to_ne_bytes());
        reply[48..52].copy_from_slice(&(1_u32 << 7).to_ne_bytes());
        assert_eq!(super::capabilities(&reply), capabilities);
    }
}
