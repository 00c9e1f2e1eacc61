//! `jindoctl bench meta`: what the masters do through the public gRPC API, one session per client.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use futures::StreamExt;
use futures::future::join_all;
use jindofs_proto::v1::{BatchOp, CreateRequest, MkdirRequest, batch_op};
use serde::Serialize;

use super::super::Common;
use super::super::output::print;
use crate::client::namespace::{Namespace, at_entry, at_path};
use crate::error::{Error, Result};
use crate::rpc::channel::MasterChannel;

/// Clients that share one connection to the masters.
const CLIENTS_PER_CONNECTION: usize = 64;

#[derive(Debug, Args)]
pub(in crate::cli) struct Arguments {
    /// Clients at the same time.
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// Operations to measure, in this order.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "create,stat,list,rename,delete")]
    ops: Vec<Op>,
    /// Creations per RPC.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Seconds per operation.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Do not remove what was created: removing it goes on behind the next measurement.
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Op {
    /// Empty files.
    Create,
    /// Directories.
    Mkdir,
    /// Attributes by path, linearizable, spread over all masters.
    Stat,
    /// One page of up to 100 names.
    List,
    /// Within the directory.
    Rename,
    /// Unlink.
    Delete,
}

#[derive(Debug, Serialize)]
struct Figures {
    op: String,
    clients: usize,
    batch: usize,
    ops: u64,
    ops_per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    errors: u64,
}

/// One client: its directory, and how many files it has made and removed there.
struct Client {
    namespace: Namespace,
    directory: u64,
    path: String,
    created: u64,
    renamed: u64,
    deleted: u64,
    made: u64,
}

pub(super) async fn run(common: &Common, arguments: Arguments) -> Result<()> {
    let Arguments { clients, ops, batch, seconds, keep } = arguments;
    if clients == 0 || seconds == 0 || batch == 0 || batch > crate::types::BATCH_MAX {
        return Err(Error::invalid("--clients and --seconds must be at least 1, --batch 1 to 1000"));
    }
    let root = format!("/bench-{}", uuid::Uuid::new_v4().simple());
    let mut all = prepare(common, &root, clients).await?;
    let mut figures = Vec::new();
    for op in ops {
        let batch = if op == Op::Create { batch } else { 1 };
        let (back, measured) = measure(all, op, batch, Duration::from_secs(seconds)).await?;
        all = back;
        figures.push(measured);
    }
    if let Some(client) = all.first().filter(|_| !keep) {
        client.namespace.rmdir(at_path(root), true).await?;
    }
    join_all(all.iter().map(|client| client.namespace.session().close())).await;
    print(
        common.output,
        &figures,
        &["OP", "CLIENTS", "BATCH", "OPS", "OPS/S", "P50 MS", "P99 MS", "MAX MS", "ERRORS"],
        |_| {
            let number = |value: f64| format!("{value:.2}");
            let row = |one: &Figures| {
                let counts = [one.op.clone(), one.clients.to_string(), one.batch.to_string(), one.ops.to_string()];
                let times =
                    [format!("{:.0}", one.ops_per_s), number(one.p50_ms), number(one.p99_ms), number(one.max_ms)];
                counts.into_iter().chain(times).chain([one.errors.to_string()]).collect()
            };
            figures.iter().map(row).collect()
        },
    )
}

async fn prepare(common: &Common, root: &str, clients: usize) -> Result<Vec<Client>> {
    let config = common.client()?;
    let channels: Vec<MasterChannel> =
        (0..clients.div_ceil(CLIENTS_PER_CONNECTION)).map(|_| MasterChannel::new(&config)).collect();
    let make = |number: usize| {
        let namespace = Namespace::with_channel(channels[number / CLIENTS_PER_CONNECTION].clone());
        async move {
            let path = format!("{root}/{number}");
            let request =
                MkdirRequest { target: Some(at_path(&path)), mode: 0o755, parents: true, ..MkdirRequest::default() };
            let directory = namespace.mkdir(request).await?.inode;
            Ok::<Client, Error>(Client { namespace, directory, path, created: 0, renamed: 0, deleted: 0, made: 0 })
        }
    };
    // The parent first, alone: then nobody races for it.
    let mut all = vec![make(0).await?];
    for made in join_all((1..clients).map(make)).await {
        all.push(made?);
    }
    Ok(all)
}

async fn measure(all: Vec<Client>, op: Op, batch: usize, time: Duration) -> Result<(Vec<Client>, Figures)> {
    let clients = all.len();
    let stop = Arc::new(AtomicBool::new(false));
    let began = Instant::now();
    let tasks: Vec<_> = all
        .into_iter()
        .map(|mut client| {
            let stop = stop.clone();
            tokio::spawn(async move {
                let (mut times, mut errors, mut done) = (Vec::new(), 0_u64, 0_u64);
                while !stop.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    match client.step(op, batch).await {
                        Ok(0) => break,
                        Ok(count) => {
                            done += count;
                            times.push(start.elapsed());
                        }
                        Err(error) => {
                            tracing::warn!(%error, "bench operation failed");
                            errors += 1;
                        }
                    }
                }
                (client, times, errors, done, Instant::now())
            })
        })
        .collect();
    tokio::time::sleep(time).await;
    stop.store(true, Ordering::Relaxed);
    let (mut back, mut times, mut errors, mut ops) = (Vec::new(), Vec::new(), 0, 0);
    let mut ended = began;
    for task in tasks {
        let (client, mine, failed, done, end) = task.await.map_err(|error| Error::internal(error.to_string()))?;
        back.push(client);
        times.extend(mine);
        errors += failed;
        ops += done;
        ended = ended.max(end);
    }
    times.sort_unstable();
    let at = |share: f64| {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let index = ((times.len() as f64 - 1.0) * share) as usize;
        times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
    };
    #[allow(clippy::cast_precision_loss)]
    let ops_per_s = ops as f64 / (ended - began).as_secs_f64().max(0.001);
    let name = op.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let (p50_ms, p99_ms, max_ms) = (at(0.5), at(0.99), at(1.0));
    Ok((back, Figures { op: name, clients, batch, ops, ops_per_s, p50_ms, p99_ms, max_ms, errors }))
}

impl Client {
    fn file(&self, number: u64) -> String {
        format!("f{number:08}")
    }

    fn create_request(&mut self) -> CreateRequest {
        let target = Some(at_entry(self.directory, self.file(self.created)));
        self.created += 1;
        CreateRequest { target, mode: 0o644, exclusive: true, ..CreateRequest::default() }
    }

    /// One RPC; how many operations it carried, 0 when there is nothing left to do them on.
    async fn step(&mut self, op: Op, batch: usize) -> Result<u64> {
        match op {
            Op::Create if batch > 1 => {
                let ops =
                    (0..batch).map(|_| BatchOp { op: Some(batch_op::Op::Create(self.create_request())) }).collect();
                let results = self.namespace.batch(ops).await?;
                results.into_iter().map(|result| result.map(|_| 1)).sum()
            }
            Op::Create => {
                let request = self.create_request();
                self.namespace.create(request).await.map(|_| 1)
            }
            Op::Mkdir => {
                let target = Some(at_entry(self.directory, format!("d{:08}", self.made)));
                self.made += 1;
                self.namespace.mkdir(MkdirRequest { target, mode: 0o755, ..MkdirRequest::default() }).await.map(|_| 1)
            }
            Op::Stat if self.created == 0 => self.namespace.lookup(at_path(&self.path)).await.map(|_| 1),
            Op::Stat => {
                let number = rand::random_range(0..self.created);
                self.namespace.lookup(at_path(format!("{}/{}", self.path, self.file(number)))).await.map(|_| 1)
            }
            Op::List => {
                let mut page = std::pin::pin!(self.namespace.list(at_path(&self.path)).take(100));
                while let Some(entry) = page.next().await {
                    entry?;
                }
                Ok(1)
            }
            Op::Rename if self.renamed == self.created => Ok(0),
            Op::Rename => {
                let from = at_entry(self.directory, self.file(self.renamed));
                let to = at_entry(self.directory, format!("r{:08}", self.renamed));
                self.renamed += 1;
                self.namespace.rename(from, to, false).await.map(|_| 1)
            }
            Op::Delete if self.deleted == self.created => Ok(0),
            Op::Delete => {
                let letter = if self.deleted < self.renamed { 'r' } else { 'f' };
                let target = at_entry(self.directory, format!("{letter}{:08}", self.deleted));
                self.deleted += 1;
                self.namespace.unlink(target).await.map(|()| 1)
            }
        }
    }
}
