//! Files that are stored and not recorded as such yet: their writers are answered as soon as the under-storage has them.
//!
//! The masters know that they are being stored, and whoever asks for one waits for the record. What changes it here does too.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use jindofs_proto::v1::Attr;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::client::writer::End;
use crate::runtime::lock;

use super::fs::Fs;

/// Most records on their way: beyond that writers wait for theirs.
const MOST: usize = 256;

/// One record on its way; dropped when it has arrived.
type OnItsWay = (u64, watch::Sender<()>);

/// All of them, with the directory of each.
#[derive(Debug, Default)]
pub(super) struct Endings {
    inodes: Mutex<HashMap<u64, OnItsWay>>,
    count: AtomicUsize,
}

impl Endings {
    fn inodes(&self) -> MutexGuard<'_, HashMap<u64, OnItsWay>> {
        lock(&self.inodes)
    }

    /// True if one more may be on its way.
    pub(super) fn have_room(&self) -> bool {
        self.count.load(Ordering::Acquire) < MOST
    }

    /// True while any is on its way.
    pub(super) fn is_busy(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    fn add(&self, inode: u64, directory: u64) {
        let mut inodes = self.inodes();
        inodes.insert(inode, (directory, watch::Sender::new(())));
        self.count.store(inodes.len(), Ordering::Release);
    }

    fn arrived(&self, inode: u64) {
        let mut inodes = self.inodes();
        inodes.remove(&inode);
        self.count.store(inodes.len(), Ordering::Release);
    }

    /// Those on their way that are `wanted`, by inode and directory.
    fn on_their_way(&self, wanted: impl Fn(u64, u64) -> bool) -> Vec<Arrival> {
        if !self.is_busy() {
            return Vec::new();
        }
        let inodes = self.inodes();
        let wanted = inodes.iter().filter(|(inode, (directory, _))| wanted(**inode, *directory));
        wanted.map(|(_, (_, arrived))| Arrival(arrived.subscribe())).collect()
    }
}

/// What somebody waits for.
struct Arrival(watch::Receiver<()>);

impl Arrival {
    async fn wait(mut self) {
        // Nothing is ever sent: it ends with its sender.
        while self.0.changed().await.is_ok() {}
    }
}

impl Endings {
    /// True if a file was stored here, and the masters are still to be told.
    pub(super) fn is_on_its_way(&self, inode: u64) -> bool {
        !self.on_their_way(|ended, _| ended == inode).is_empty()
    }
}

impl Fs {
    /// True if a file was made or stored here and the masters are still to be told: nobody else can have stored it since.
    pub(super) fn is_unrecorded(&self, inode: u64) -> bool {
        self.creates.get(inode).is_some() || self.endings.is_on_its_way(inode)
    }

    /// Waits until the record of a file that was stored here is at the masters, if it is on its way.
    pub(super) async fn recorded(&self, inode: u64) {
        self.wait_for(self.endings.on_their_way(|ended, _| ended == inode)).await;
    }

    /// Waits until everything is at the masters that is on its way into a directory.
    pub(super) async fn settled(&self, directory: u64) {
        let creates = self.creates.bound_for(directory);
        if !creates.is_empty() {
            self.batches.hurry(&Handle::current());
        }
        for making in creates {
            // Whoever has it open is told of an error.
            let _ = making.done().await;
        }
        self.wait_for(self.endings.on_their_way(|_, into| into == directory)).await;
    }

    async fn wait_for(&self, arrivals: Vec<Arrival>) {
        if !arrivals.is_empty() {
            self.batches.hurry(&Handle::current());
        }
        for arrival in arrivals {
            arrival.wait().await;
        }
    }

    /// Has recorded what was `stored`. Whoever wrote it does not wait for it.
    pub(super) fn record_behind(self: &Arc<Self>, stored: &Attr, end: End) {
        let (this, inode) = (self.clone(), stored.inode);
        self.endings.add(inode, stored.parent);
        end.record(move |outcome| {
            match outcome {
                Ok(attr) => this.news(attr),
                Err(error) => {
                    tracing::error!(inode, %error, "a file that was stored is not known to the masters");
                    this.inodes.expire(inode);
                }
            }
            this.endings.arrived(inode);
        });
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn who_changes_a_file_or_its_directory_waits_for_its_record_and_nobody_else_does() {
        let endings = Endings::default();
        endings.add(7, 1);
        assert!(endings.on_their_way(|inode, _| inode == 8).is_empty());
        assert!(endings.on_their_way(|_, directory| directory == 2).is_empty());
        let mut waited = endings.on_their_way(|_, directory| directory == 1);
        let mut waiting = Box::pin(waited.pop().expect("on its way").wait());
        assert!((&mut waiting).now_or_never().is_none() && endings.is_busy());
        endings.arrived(7);
        assert!(waiting.now_or_never().is_some() && !endings.is_busy());
    }
}
