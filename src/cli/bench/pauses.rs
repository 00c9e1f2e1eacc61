//! `jindoctl bench pauses`: what a failover, a restart or a rolling update looks like to those who write.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use futures::StreamExt;
use futures::future::join_all;
use jindofs_proto::v1::{CreateRequest, MkdirRequest};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::super::Common;
use super::super::output::print;
use crate::client::namespace::{Namespace, at_entry, at_path};
use crate::error::{Error, ErrorKind, Result};
use crate::runtime::{Shutdown, stdio};

/// One in so many names is removed again.
const REMOVED: u64 = 4;

#[derive(Debug, Args)]
pub(in crate::cli) struct Arguments {
    /// Writers at the same time, each with a directory of its own.
    #[arg(long, default_value_t = 2)]
    clients: usize,
    /// Ends by itself after so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Pauses from this length on are told when they end, milliseconds.
    #[arg(long, default_value_t = 200)]
    tell: u64,
    /// Wait of each writer between two changes, milliseconds.
    #[arg(long, default_value_t = 5)]
    every: u64,
}

/// What was found; also what is printed for programs.
#[derive(Debug, Default, Serialize)]
struct Figures {
    acknowledged: u64,
    longest_pause_ms: u64,
    errors: u64,
    lost: u64,
}

/// A pause, told as it ends: a line of JSON on stdout, for logs.
#[derive(Debug, Serialize)]
struct Pause {
    pause_ms: u64,
    ended_unix_ms: u64,
}

/// One writer: what it was told is done.
struct Writer {
    namespace: Namespace,
    directory: u64,
    path: String,
    present: BTreeSet<String>,
    absent: BTreeSet<String>,
    figures: Figures,
}

pub(super) async fn run(common: &Common, arguments: Arguments) -> Result<ExitCode> {
    if arguments.clients == 0 {
        return Err(Error::invalid("--clients must be at least 1"));
    }
    let root = format!("/bench-{}", uuid::Uuid::new_v4().simple());
    let stop = Shutdown::new();
    let mut tasks = Vec::new();
    for number in 0..arguments.clients {
        let mut writer = Writer::new(common, format!("{root}/{number}")).await?;
        let (stop, tell) = (stop.clone(), Duration::from_millis(arguments.tell));
        let every = Duration::from_millis(arguments.every);
        tasks.push(tokio::spawn(async move {
            let written = writer.write(&stop, tell, every).await;
            // Without somebody who reads the pauses there is nothing to go on for.
            if written.is_err() {
                stop.cancel();
            }
            written.map(|()| writer)
        }));
    }
    stdio::write_line(format_args!("writing below {root}"))?;
    wait(arguments.seconds, &stop).await?;
    stop.cancel();
    let mut all = Figures::default();
    let mut writers = Vec::new();
    for task in tasks {
        let mut writer = task.await.map_err(|error| Error::internal(error.to_string()))??;
        writer.look().await?;
        all.acknowledged += writer.figures.acknowledged;
        all.longest_pause_ms = all.longest_pause_ms.max(writer.figures.longest_pause_ms);
        all.errors += writer.figures.errors;
        all.lost += writer.figures.lost;
        writers.push(writer);
    }
    if all.lost == 0
        && let Some(writer) = writers.first()
    {
        writer.namespace.rmdir(at_path(&root), true).await?;
    }
    join_all(writers.iter().map(|writer| writer.namespace.session().close())).await;
    let row = [all.acknowledged, all.longest_pause_ms, all.errors, all.lost].map(|figure| figure.to_string());
    print(common.output, &all, &["ACKNOWLEDGED", "LONGEST PAUSE MS", "ERRORS", "LOST"], |_| vec![row.into()])?;
    if all.lost > 0 {
        return Err(Error::new(ErrorKind::Internal, format!("{} acknowledged changes are lost, see {root}", all.lost)));
    }
    Ok(ExitCode::SUCCESS)
}

/// Until the time is up, or somebody wants an end.
async fn wait(seconds: Option<u64>, stop: &Shutdown) -> Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let time = async {
        match seconds {
            Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = time => {}
        () = stop.cancelled() => {}
        _ = term.recv() => {}
        done = tokio::signal::ctrl_c() => done?,
    }
    Ok(())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Figures {
    /// Does something, and tells if it took long. True if it was acknowledged.
    ///
    /// *Errors*: when the pause cannot be told.
    async fn timed(&mut self, path: &str, tell: Duration, work: impl Future<Output = Result<()>>) -> Result<bool> {
        let began = Instant::now();
        let done = work.await;
        let pause = began.elapsed();
        self.longest_pause_ms = self.longest_pause_ms.max(millis(pause));
        if pause >= tell {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let pause = Pause { pause_ms: millis(pause), ended_unix_ms: millis(now) };
            stdio::write_line(serde_json::json!(pause))?;
        }
        match done {
            Ok(()) => {
                self.acknowledged += 1;
                Ok(true)
            }
            Err(error) => {
                stdio::complain(format_args!("error: {path}: {error}"));
                self.errors += 1;
                Ok(false)
            }
        }
    }
}

impl Writer {
    async fn new(common: &Common, path: String) -> Result<Writer> {
        let namespace = common.namespace()?;
        let request =
            MkdirRequest { target: Some(at_path(&path)), mode: 0o755, parents: true, ..MkdirRequest::default() };
        let directory = namespace.mkdir(request).await?.inode;
        let (present, absent) = (BTreeSet::new(), BTreeSet::new());
        Ok(Writer { namespace, directory, path, present, absent, figures: Figures::default() })
    }

    /// Makes names, and removes some of them again, one after another.
    async fn write(&mut self, stop: &Shutdown, tell: Duration, every: Duration) -> Result<()> {
        let mut number = 0_u64;
        while !stop.is_cancelled() {
            number += 1;
            let name = format!("f{number:08}");
            let target = at_entry(self.directory, &name);
            let request = CreateRequest {
                target: Some(target.clone()),
                mode: 0o644,
                exclusive: true,
                ..CreateRequest::default()
            };
            let create = async { self.namespace.create(request).await.map(drop) };
            if !self.figures.timed(&self.path, tell, create).await? {
                // It may be there or not: both are right.
            } else if !number.is_multiple_of(REMOVED) {
                self.present.insert(name);
            } else if self.figures.timed(&self.path, tell, self.namespace.unlink(target)).await? {
                self.absent.insert(name);
            }
            tokio::time::sleep(every).await;
        }
        Ok(())
    }

    /// Compares what was acknowledged with what is there.
    async fn look(&mut self) -> Result<()> {
        let mut found = BTreeSet::new();
        let mut entries = std::pin::pin!(self.namespace.list(at_path(&self.path)));
        while let Some(entry) = entries.next().await {
            found.insert(String::from_utf8_lossy(&entry?.name).into_owned());
        }
        let missing = self.present.difference(&found).map(|name| (name, "made, and is not there"));
        let back = self.absent.intersection(&found).map(|name| (name, "removed, and is there"));
        for (name, what) in missing.chain(back) {
            stdio::complain(format_args!("lost: {}/{name} was {what}", self.path));
            self.figures.lost += 1;
        }
        Ok(())
    }
}
