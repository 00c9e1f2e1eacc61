//! Drains: has others take what a worker holds that has to leave. A worker is drained for as long as its record says so; a
//! new leader begins anew, and what was moved already costs it nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use jindofs_proto::v1::{DrainState, FileSource, FillRequest, WorkerInfo, WorkerState};
use tokio::task::JoinHandle;

use crate::error::{Error, Result};
use crate::master::service::Parts;
use crate::master::state::query;
use crate::master::view::Held;
use crate::rpc::remote::Remotes;
use crate::runtime::Shutdown;
use crate::types::BLOCK_SIZE;
use crate::types::placement::{piece_of, rank};

/// Pause between two looks while something is on its way.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Pause before what could not move is tried again.
const RETRY_DELAY: Duration = Duration::from_secs(10);
/// Files of one worker moved at the same time.
const FILES: usize = 4;
/// Most blocks asked for in one call.
const BLOCKS: u32 = 8;

pub(super) async fn run(parts: Parts, stop: Shutdown) {
    let drainer = Arc::new(Drainer { parts: parts.clone(), remotes: Remotes::default() });
    let mut running: HashMap<String, JoinHandle<()>> = HashMap::new();
    while !stop.is_cancelled() {
        let due = due(&parts);
        running.retain(|id, task| {
            let keep = due.contains(id);
            if !keep {
                task.abort();
                parts.drains.forget(id);
            }
            keep && !task.is_finished()
        });
        for id in due {
            let drainer = drainer.clone();
            running.entry(id.clone()).or_insert_with(|| tokio::spawn(async move { drainer.drain(&id).await }));
        }
        tokio::select! { () = stop.cancelled() => {}, () = tokio::time::sleep(POLL_INTERVAL) => {} }
    }
    running.into_values().for_each(|task| task.abort());
}

/// Ids of the workers this master should be draining.
fn due(parts: &Parts) -> Vec<String> {
    let Some(store) = parts.handle.store().filter(|_| parts.handle.is_leader()) else { return Vec::new() };
    match query::workers(&store.view()).map_err(Error::from) {
        Ok(rows) => rows.into_iter().filter(|row| row.draining).map(|row| row.id).collect(),
        Err(error) => {
            tracing::error!(%error, "workers cannot be read");
            Vec::new()
        }
    }
}

struct Drainer {
    parts: Parts,
    remotes: Remotes,
}

/// What could not move, and why.
#[derive(Debug, Default, PartialEq, Eq)]
struct Stuck {
    bytes: u64,
    why: String,
}

impl Drainer {
    async fn drain(&self, id: &str) {
        // File versions whose bytes are where they belong.
        let mut settled: HashMap<(u64, u64), u64> = HashMap::new();
        let mut done = false;
        loop {
            match self.round(id, done, &mut settled).await {
                Ok(state) => done = state == DrainState::Done,
                Err(error) => tracing::info!(worker = id, %error, "a drain does not go on"),
            }
            tokio::time::sleep(if done { RETRY_DELAY } else { POLL_INTERVAL }).await;
        }
    }

    /// Moves everything that can move, and says how far it came. A drain that was `done` is shown as done while what was
    /// stuck is tried again.
    async fn round(&self, id: &str, done: bool, settled: &mut HashMap<(u64, u64), u64>) -> Result<DrainState> {
        let (workers, _) = self.workers()?;
        let Some(worker) = workers.into_iter().find(|worker| worker.id == id) else { return Ok(DrainState::Done) };
        let mut drain = worker.drain.clone().unwrap_or_default();
        let waits = match (worker.state(), drain.state(), self.parts.workers.held_by(id)) {
            (WorkerState::Live, DrainState::Announced, _) => Err("the other workers are being told"),
            (WorkerState::Live, _, Some(held)) => Ok(held),
            (WorkerState::Live, _, None) => Err("it has not told yet what it holds"),
            _ => Err("it is not heard of: what it holds cannot be moved"),
        };
        let held = match waits {
            Ok(held) => held,
            Err(why) => {
                why.clone_into(&mut drain.message);
                let state = drain.state();
                self.parts.drains.note(id, drain);
                return Ok(state);
            }
        };
        let key = |file: &Held| (file.file_id, file.version);
        let open: Vec<Held> =
            held.iter().filter(|file| settled.get(&key(file)) != Some(&file.bytes)).copied().collect();
        if open.len() == held.len() {
            tracing::info!(worker = id, files = held.len(), "a drain begins");
        }
        // Only what is still there is worth being remembered.
        *settled = held.iter().filter_map(|file| settled.remove_entry(&key(file))).collect();
        drain.left_bytes = open.iter().fold(0, |sum: u64, file| sum.saturating_add(file.bytes));
        if !done {
            self.parts.drains.note(id, drain.clone());
        }

        let mut failed = None;
        let from = &worker;
        let moves = open.into_iter().map(|file| async move { (file, self.file(from, file).await) });
        let mut moves = futures::stream::iter(moves).buffer_unordered(FILES);
        while let Some((file, moved)) = moves.next().await {
            match moved {
                Ok(Stuck { bytes: 0, .. }) => {
                    settled.insert(key(&file), file.bytes);
                    drain.left_bytes = drain.left_bytes.saturating_sub(file.bytes);
                }
                Ok(stuck) => {
                    let moved = file.bytes.saturating_sub(stuck.bytes);
                    drain.left_bytes = drain.left_bytes.saturating_sub(moved);
                    drain.stuck_bytes = drain.stuck_bytes.saturating_add(stuck.bytes);
                    drain.message = stuck.why;
                }
                Err(error) => {
                    tracing::info!(worker = id, file = file.file_id, %error, "a file does not move yet");
                    drain.message = error.message.clone();
                    failed = Some(error);
                }
            }
            if !done {
                self.parts.drains.note(id, drain.clone());
            }
        }
        drop(moves);
        drain.set_state(if failed.is_none() { DrainState::Done } else { DrainState::Moving });
        if failed.is_none() && drain.stuck_bytes == 0 {
            drain.message = "others hold everything".to_owned();
        }
        let state = drain.state();
        self.parts.drains.note(id, drain);
        Ok(state)
    }

    /// Everyone on record, and whether anybody of them is to stay.
    fn workers(&self) -> Result<(Vec<WorkerInfo>, bool)> {
        let store = self.parts.handle.store().ok_or_else(|| self.parts.handle.not_leader())?;
        let rows = query::workers(&store.view())?;
        Ok((self.parts.workers.list(&rows), rows.iter().any(|row| !row.draining)))
    }

    /// Has the workers that readers ask from now on take what `from` holds of a file.
    ///
    /// *Errors*: what passes: a worker that does not answer.
    async fn file(&self, from: &WorkerInfo, file: Held) -> Result<Stuck> {
        let store = self.parts.handle.store().ok_or_else(|| self.parts.handle.not_leader())?;
        let source = query::known_source(&store.view(), file.file_id)?;
        drop(store);
        // Of a version that nobody can ask for any more nothing has to be kept.
        let Some(source) = source.filter(|source| source.version == file.version) else { return Ok(Stuck::default()) };
        let held = self.remotes.held(from, file.file_id, file.version).await?;
        let mut stuck = Stuck::default();
        for (first, count) in runs(&held, source.length) {
            let missing = self.run(&source, first, count).await?;
            if missing.bytes > 0 {
                stuck = Stuck { bytes: stuck.bytes + missing.bytes, why: missing.why };
            }
        }
        Ok(stuck)
    }

    /// Has one worker take a run of blocks: it knows itself whom to ask for them.
    async fn run(&self, source: &FileSource, first: u32, count: u32) -> Result<Stuck> {
        let bytes = bytes_of(source.length, first, count);
        let (mut workers, any_stays) = self.workers()?;
        // Not those either whose drain is only announced.
        workers.retain(|worker| worker.state() == WorkerState::Live && worker.drain.is_none());
        let piece = piece_of(source.length, u64::from(first) * u64::from(BLOCK_SIZE));
        let Some(to) = rank(&workers, |worker| &worker.id, source.file_id, piece).into_iter().next() else {
            return match any_stays {
                true => Err(Error::unavailable("no worker that stays is heard of")),
                false => Ok(Stuck { bytes, why: "no other worker is left to take it".to_owned() }),
            };
        };
        let request =
            FillRequest { source: Some(source.clone()), first_block: first, block_count: count, keep_others: true };
        let filled = self.remotes.fill_blocks(to, request).await;
        let filled = filled.map_err(|error| error.context(format!("worker {} at {}", to.id, to.address)))?;
        let missing = bytes.saturating_sub(filled.cached_bytes);
        let why = || format!("worker {} at {} has no room left", to.id, to.address);
        Ok(Stuck { bytes: missing, why: if missing > 0 { why() } else { String::new() } })
    }
}

/// Runs of set bits as first block and count: none longer than [`BLOCKS`], none across two pieces of the file.
fn runs(bits: &[u8], length: u64) -> Vec<(u32, u32)> {
    let size = u64::from(BLOCK_SIZE);
    let blocks = u32::try_from(length.div_ceil(size)).unwrap_or(u32::MAX);
    let is_set = |block: &u32| {
        let byte = bits.get(*block as usize / 8).copied().unwrap_or(0);
        byte & (1 << (*block % 8)) != 0
    };
    let piece = |block: u32| piece_of(length, u64::from(block) * size);
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for block in (0..blocks).filter(is_set) {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == block && *count < BLOCKS && piece(*first) == piece(block) => {
                *count += 1;
            }
            _ => runs.push((block, 1)),
        }
    }
    runs
}

/// Bytes of a run of blocks: the last block of a file may be short.
fn bytes_of(length: u64, first: u32, count: u32) -> u64 {
    let size = u64::from(BLOCK_SIZE);
    let start = u64::from(first) * size;
    length.min(start + u64::from(count) * size).saturating_sub(start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::placement::WHOLE_FILE_MAX;

    #[test]
    fn runs_end_at_gaps_at_the_bound_of_a_call_and_at_the_end_of_the_file() {
        let block = u64::from(BLOCK_SIZE);
        assert_eq!(runs(&[0b0000_1011], 4 * block), [(0, 2), (3, 1)]);
        assert_eq!(runs(&[0xff, 0xff], 9 * block + 1), [(0, 8), (8, 2)]);
        assert_eq!(runs(&[], block), []);
        assert_eq!(bytes_of(9 * block + 1, 8, 2), block + 1);
    }

    #[test]
    fn blocks_of_a_large_file_move_one_by_one_as_each_has_a_place_of_its_own() {
        assert_eq!(runs(&[0b0000_0111], WHOLE_FILE_MAX + 1), [(0, 1), (1, 1), (2, 1)]);
    }
}
