//! What `df` is told: the room of the under-storage that a file lies in. The cache is no part of it: what it has no room
//! for is read and written all the same.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::runtime::lock;
use crate::ufs::Space;

use super::fs::Fs;

/// How long a figure serves.
const FRESH: Duration = Duration::from_secs(1);
/// How long an under-storage may take to tell.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Shown where nothing is known that limits it: 1 PiB, which every program can count.
const UNLIMITED: Space = Space { total: 1 << 50, free: 1 << 50, available: 1 << 50 };

/// Figures by mount.
#[derive(Debug)]
pub(super) struct Spaces {
    figures: Arc<Mutex<HashMap<u32, Figure>>>,
    timeout: Duration,
}

/// What is known of one mount.
#[derive(Debug, Default)]
struct Figure {
    /// The last answer, and when it came.
    last: Option<(Instant, Space)>,
    /// The request under way. There is one at a time: a disk that hangs costs one thread, however many ask.
    request: Option<Request>,
}

#[derive(Debug, Clone)]
struct Request {
    since: Instant,
    answer: watch::Receiver<Option<Space>>,
}

impl Default for Spaces {
    fn default() -> Spaces {
        Spaces { figures: Arc::default(), timeout: ANSWER_TIMEOUT }
    }
}

impl Spaces {
    /// Room of the under-storage of a mount, which `ask` asks for. If it does not answer in time, what it has told last: at once
    /// while a request of before is still not answered.
    async fn of(&self, mount_id: u32, ask: impl Future<Output = Option<Space>> + Send + 'static) -> Space {
        let (last, mut request) = {
            let mut figures = lock(&self.figures);
            let figure = figures.entry(mount_id).or_default();
            if let Some((since, space)) = figure.last
                && since.elapsed() < FRESH
            {
                return space;
            }
            let last = figure.last.map_or(UNLIMITED, |(_, space)| space);
            (last, figure.request.get_or_insert_with(|| self.request(mount_id, ask)).clone())
        };
        let left = self.timeout.saturating_sub(request.since.elapsed());
        if left.is_zero() {
            return request.answer.borrow().unwrap_or(last);
        }
        match tokio::time::timeout(left, request.answer.wait_for(Option::is_some)).await {
            Ok(Ok(space)) => space.unwrap_or(last),
            _ => last,
        }
    }

    fn request(&self, mount_id: u32, ask: impl Future<Output = Option<Space>> + Send + 'static) -> Request {
        let (answered, answer) = watch::channel(None);
        let figures = self.figures.clone();
        tokio::spawn(async move {
            let space = ask.await.unwrap_or(UNLIMITED);
            let figure = Figure { last: Some((Instant::now(), space)), request: None };
            lock(&figures).insert(mount_id, figure);
            answered.send_replace(Some(space));
        });
        Request { since: Instant::now(), answer }
    }
}

impl Fs {
    /// Room for what lies where this inode does.
    pub(super) async fn space(&self, inode: u64) -> Space {
        let mount_id = self.inodes.get(inode).map(|known| known.attr.mount_id);
        let mount = mount_id.filter(|id| *id != 0).and_then(|id| self.mounts.known(id));
        let Some(mount) = mount.or_else(|| self.mounts.rooted_at(inode)) else { return UNLIMITED };
        let (reader, mount_id) = (self.reader.clone(), mount.id);
        let ask = async move {
            reader.space(&mount).await.unwrap_or_else(|error| {
                tracing::debug!(%error, mount = mount_id, "the room of an under-storage is not known");
                None
            })
        };
        self.spaces.of(mount_id, ask).await
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use futures::FutureExt;

    use super::*;

    const SOME: Space = Space { total: 10, free: 5, available: 4 };

    #[tokio::test]
    async fn who_asks_a_disk_that_hangs_waits_once_and_the_others_not_at_all() {
        let spaces = Spaces { timeout: Duration::from_millis(50), ..Spaces::default() };
        let began = Instant::now();
        assert_eq!(spaces.of(1, pending()).await, UNLIMITED);
        assert!(began.elapsed() >= spaces.timeout);
        assert_eq!(spaces.of(1, pending()).now_or_never(), Some(UNLIMITED), "it has not answered who asked before");
        assert_eq!(spaces.of(2, ready(Some(SOME))).await, SOME, "another disk answers");
        assert_eq!(spaces.of(2, pending()).now_or_never(), Some(SOME), "the figure is fresh");
    }

    #[tokio::test]
    async fn a_disk_that_hangs_shows_what_it_has_told_last() {
        let spaces = Spaces { timeout: Duration::from_millis(50), ..Spaces::default() };
        assert_eq!(spaces.of(1, ready(Some(SOME))).await, SOME);
        if let Some(figure) = lock(&spaces.figures).get_mut(&1) {
            figure.last = Instant::now().checked_sub(FRESH).map(|since| (since, SOME));
        }
        assert_eq!(spaces.of(1, pending()).await, SOME);
    }
}
