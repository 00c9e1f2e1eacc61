//! FUSE_INIT: the negotiation with the kernel before the first request.

use fuser::{InitFlags, KernelConfig};

use super::handover_state::Negotiated;

/// Read-ahead of the kernel, in bytes.
const READ_AHEAD: u32 = 4 << 20;
/// Most background requests of the kernel, which it uses for read-ahead.
const BACKGROUND: u16 = 64;
/// Largest write request, in bytes.
const WRITE_MAX: u32 = 1 << 20;

/// Requests the capabilities we want and returns those that the kernel grants. With `locks` the kernel is asked to send
/// lock requests.
pub(super) fn negotiate(config: &mut KernelConfig, writable: bool, locks: bool) -> Negotiated {
    let wanted = [
        InitFlags::FUSE_DO_READDIRPLUS,
        InitFlags::FUSE_PARALLEL_DIROPS,
        InitFlags::FUSE_CACHE_SYMLINKS,
        InitFlags::FUSE_MAX_PAGES,
        InitFlags::FUSE_ASYNC_DIO,
        // Allows `mmap` of files that bypass the page cache.
        InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        // Lets the next process receive the requests that a dead process had read and not answered.
        InitFlags::FUSE_HAS_RESEND,
    ];
    // fuser requests these two itself.
    let mut agreed = config.capabilities() & (InitFlags::FUSE_ASYNC_READ | InitFlags::FUSE_BIG_WRITES);
    let locked = [InitFlags::FUSE_POSIX_LOCKS, InitFlags::FUSE_FLOCK_LOCKS].into_iter().filter(|_| locks);
    // `O_TRUNC` arrives with the open: the truncation is stored with the next write, not by itself.
    let cut = writable.then_some(InitFlags::FUSE_ATOMIC_O_TRUNC);
    for flag in wanted.into_iter().chain(cut).chain(locked) {
        match config.add_capabilities(flag) {
            Ok(()) => agreed |= flag,
            Err(_) => tracing::info!(?flag, "the kernel does not know this capability, it is left out"),
        }
    }
    let version = config.kernel_abi();
    // If the kernel allows less, the largest value that it allows is set.
    let max_readahead = match config.set_max_readahead(READ_AHEAD) {
        Ok(_) => READ_AHEAD,
        Err(most) => config.set_max_readahead(most).map_or(0, |_| most),
    };
    let capabilities = agreed.bits();
    let _ = config.set_max_background(BACKGROUND);
    if writable && let Err(most) = config.set_max_write(WRITE_MAX) {
        let _ = config.set_max_write(most);
    }
    Negotiated { version: (version.0, version.1), capabilities, max_readahead }
}
