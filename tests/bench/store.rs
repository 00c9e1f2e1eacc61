//! Memory and reads of a master's state store by the size of its cache. Without Raft, so that it can hold tens of millions
//! of inodes within minutes: `bench store --inodes 30000000`.

use std::path::Path;
use std::time::Instant;

use jindofs::client::namespace::{at_entry, at_path};
use jindofs::error::Error;
use jindofs::master::state::{self, query};
use jindofs::master::store::{Store, StoreOptions};
use jindofs::runtime::memory_bytes;
use jindofs_proto::store::v1::Command;
use jindofs_proto::store::v1::command::Command as Body;
use jindofs_proto::v1::{BatchOp, BatchRequest, CreateRequest, MkdirRequest, batch_op};

use super::table::{Bar, Table};
use super::{Arguments, Outcome, go_on, say};

const BATCH: u64 = 1000;
const PER_DIRECTORY: u64 = 10_000;
const STATS: u64 = 200_000;
/// Memory beside the cache: buffers of changes, and of the process itself.
const OTHER_MB: f64 = 250.0;

pub(crate) fn run(arguments: &Arguments, dir: &Path, table: &mut Table) -> Outcome<()> {
    let inodes = arguments.inodes;
    let fitting = StoreOptions::fitting(memory_bytes(), None);
    let smallest = StoreOptions { block_cache_bytes: 64 << 20, ..fitting };
    fill(&Store::open(dir, &fitting)?, inodes)?;
    let (mut rates, mut small_rates, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..arguments.rounds {
        go_on()?;
        small_rates.push(stats(dir, &smallest, inodes)?.0);
        let (rate, resident) = stats(dir, &fitting, inodes)?;
        rates.push(rate);
        memory.push(resident);
    }
    let (cache_mb, what) = (fitting.block_cache_bytes >> 20, format!("{inodes} inodes"));
    table.ratio(
        &format!("stats of {what}, cache of {cache_mb} MiB / of 64 MiB"),
        &rates,
        &small_rates,
        "/s",
        Bar::AtLeast(1.0),
    );
    let worst = memory.iter().copied().fold(0.0, f64::max);
    let bound = fitting.block_cache_bytes as f64 / 1e6 + OTHER_MB;
    table.figure(&format!("memory of a store, {what}"), &memory, "MB", worst, Bar::AtMost(bound.round()));
    Ok(())
}

fn fill(store: &Store, inodes: u64) -> Outcome<()> {
    say(&format!("a store of {inodes} inodes"));
    let began = Instant::now();
    let (mut index, mut directory) = (0, 0);
    for number in 0..inodes.div_ceil(BATCH) {
        let first = number * BATCH;
        if first.is_multiple_of(PER_DIRECTORY) {
            go_on()?;
            let path = directory_of(first);
            index += 1;
            apply(
                store,
                index,
                Body::Mkdir(MkdirRequest { target: Some(at_path(&path)), mode: 0o755, ..MkdirRequest::default() }),
            )?;
            directory = query::lookup(&store.view(), &at_path(&path)).map_err(Error::from)?.inode;
        }
        let create = |number: u64| {
            let target = Some(at_entry(directory, name_of(number)));
            let request = CreateRequest { target, mode: 0o644, exclusive: true, ..CreateRequest::default() };
            BatchOp { op: Some(batch_op::Op::Create(request)) }
        };
        index += 1;
        let ops = (first..(first + BATCH).min(inodes)).map(create).collect();
        apply(store, index, Body::Batch(BatchRequest { op: None, ops }))?;
    }
    store.flush()?;
    say(&format!("filled after {:.1} s", began.elapsed().as_secs_f64()));
    Ok(())
}

fn apply(store: &Store, index: u64, body: Body) -> Outcome<()> {
    let mut txn = store.begin();
    state::apply(&mut txn, index, &Command { command: Some(body), ..Command::default() })?;
    Ok(store.commit(txn)?)
}

fn directory_of(number: u64) -> String {
    format!("/{}", number / PER_DIRECTORY)
}

fn name_of(number: u64) -> String {
    format!("f{number:08}")
}

/// Opens the store; stats per second of random files, and what that added to the resident memory, MB.
fn stats(dir: &Path, options: &StoreOptions, inodes: u64) -> Outcome<(f64, f64)> {
    let before = resident_mb()?;
    let store = Store::open(dir, options)?;
    let stat = |_| {
        let number = rand::random_range(0..inodes);
        let path = format!("{}/{}", directory_of(number), name_of(number));
        query::lookup(&store.view(), &at_path(path)).map_err(Error::from)
    };
    // As many before as are measured: a cache is measured warm.
    (0..STATS).try_for_each(|number| stat(number).map(|_| ()))?;
    let began = Instant::now();
    (0..STATS).try_for_each(|number| stat(number).map(|_| ()))?;
    let rate = STATS as f64 / began.elapsed().as_secs_f64();
    Ok((rate, (resident_mb()? - before).max(0.0)))
}

fn resident_mb() -> Outcome<f64> {
    super::inodes::resident_mb(std::process::id())
}
