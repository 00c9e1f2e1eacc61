//! What a member knows of damage on its own disk.
//!
//! Damage is found by reads of the state, by the verification before a snapshot is sealed, by the sender of a snapshot
//! and by the scrub. A damaged member sends no snapshot and hands leadership over; `repair` replaces its state.

use std::sync::atomic::AtomicU64;

use tokio::sync::watch;

/// Shared by the state machine, the network and the handle.
#[derive(Debug)]
pub(crate) struct Integrity {
    damage: watch::Sender<Option<String>>,
    /// States replaced since the process started.
    pub(crate) repairs: AtomicU64,
    /// Bytes the scrub has read.
    pub(crate) scrubbed: AtomicU64,
}

impl Default for Integrity {
    fn default() -> Integrity {
        Integrity { damage: watch::Sender::new(None), repairs: AtomicU64::new(0), scrubbed: AtomicU64::new(0) }
    }
}

impl Integrity {
    /// Notes damage; the first report counts until it is repaired.
    pub(crate) fn report(&self, message: impl Into<String>) {
        let message = message.into();
        self.damage.send_if_modified(|damage| {
            let first = damage.is_none();
            if first {
                tracing::error!(
                    damage = message,
                    "this disk holds damaged data: it is no source of snapshots any more"
                );
                *damage = Some(message);
            }
            first
        });
    }

    /// The damage that is not repaired yet.
    pub(crate) fn damage(&self) -> Option<String> {
        self.damage.borrow().clone()
    }

    /// Follows the damage.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<String>> {
        self.damage.subscribe()
    }

    /// Everything was verified or replaced.
    pub(crate) fn clear(&self) {
        self.damage.send_replace(None);
    }
}
