//! What is agreed with the kernel before it asks for anything.

use fuser::{InitFlags, KernelConfig};

use super::handover_state::Negotiated;

/// Read-ahead of the kernel, bytes.
const READ_AHEAD: u32 = 4 << 20;
/// Requests the kernel keeps under way for reading ahead.
const BACKGROUND: u16 = 64;
/// Most bytes of one write.
const WRITE_MAX: u32 = 1 << 20;

/// Asks the kernel for what we want, and takes what it allows. `locks`: it is to ask us for locks.
pub(super) fn negotiate(config: &mut KernelConfig, writable: bool, locks: bool) -> Negotiated {
    let wanted = [
        InitFlags::FUSE_DO_READDIRPLUS,
        InitFlags::FUSE_PARALLEL_DIROPS,
        InitFlags::FUSE_CACHE_SYMLINKS,
        InitFlags::FUSE_MAX_PAGES,
        InitFlags::FUSE_ASYNC_DIO,
        // Files past the page cache can still be mapped.
        InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        // Requests that a process took with it when it died can be had again.
        InitFlags::FUSE_HAS_RESEND,
    ];
    // These two fuser asks for by itself.
    let mut agreed = config.capabilities() & (InitFlags::FUSE_ASYNC_READ | InitFlags::FUSE_BIG_WRITES);
    let locked = [InitFlags::FUSE_POSIX_LOCKS, InitFlags::FUSE_FLOCK_LOCKS].into_iter().filter(|_| locks);
    // A file that is opened to be overwritten is cut off by its handle: stored with what comes next, not by itself.
    let cut = writable.then_some(InitFlags::FUSE_ATOMIC_O_TRUNC);
    for flag in wanted.into_iter().chain(cut).chain(locked) {
        match config.add_capabilities(flag) {
            Ok(()) => agreed |= flag,
            Err(_) => tracing::info!(?flag, "the kernel does not know this capability, it is left out"),
        }
    }
    let version = config.kernel_abi();
    // The kernel may allow less: then the most it allows is set.
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
