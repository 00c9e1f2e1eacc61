//! How long writes stand still when the leader is killed, and when it hands over.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jindofs::client::namespace::{Namespace, at_path};
use jindofs::config::ClientConfig;
use jindofs::dev::DevCluster;
use jindofs_proto::v1::{CreateRequest, MkdirRequest, StatusResponse};
use tokio::task::JoinHandle;

use super::table::{Bar, Table};
use super::{Arguments, Outcome, cluster, go_on, jindoctl, masters, say};

const WRITERS: usize = 8;
const PATIENCE: Duration = Duration::from_secs(30);

/// Clients that create one file after the other.
struct Writers {
    stop: Arc<AtomicBool>,
    /// Longest single create since it was last asked for, microseconds.
    longest: Arc<AtomicU64>,
    done: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<Result<(), jindofs::error::Error>>>,
}

impl Writers {
    async fn start(cluster: &DevCluster) -> Outcome<Writers> {
        let config = ClientConfig { masters: cluster.masters(), rpc_timeout: Duration::from_secs(60), hard: false };
        let setup = Namespace::new(&config);
        let request = MkdirRequest { target: Some(at_path("/w")), mode: 0o755, ..MkdirRequest::default() };
        setup.mkdir(request).await?;
        let mut writers =
            Writers { stop: Arc::default(), longest: Arc::default(), done: Arc::default(), tasks: Vec::new() };
        for writer in 0..WRITERS {
            let (stop, longest, done) = (writers.stop.clone(), writers.longest.clone(), writers.done.clone());
            let client = Namespace::new(&config);
            writers.tasks.push(tokio::spawn(async move {
                let mut number = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    let target = Some(at_path(format!("/w/{writer}-{number}")));
                    let began = Instant::now();
                    client.create(CreateRequest { target, mode: 0o644, ..CreateRequest::default() }).await?;
                    let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                    longest.fetch_max(micros, Ordering::Relaxed);
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            }));
        }
        Ok(writers)
    }

    async fn more(&self, count: u64) -> Outcome<()> {
        let (deadline, want) = (Instant::now() + PATIENCE, self.done.load(Ordering::Relaxed) + count);
        while self.done.load(Ordering::Relaxed) < want {
            if Instant::now() > deadline || self.tasks.iter().any(JoinHandle::is_finished) {
                return Err("writes have stopped".into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// The longest create since the last call, seconds.
    fn longest(&self) -> f64 {
        Duration::from_micros(self.longest.swap(0, Ordering::Relaxed)).as_secs_f64()
    }

    async fn stop(self) -> Outcome<()> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await??;
        }
        Ok(())
    }
}

/// The leader, once every master serves.
async fn whole(cluster: &DevCluster) -> Outcome<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let statuses: Vec<_> = masters(cluster).into_iter().map(|name| (cluster.status(&name).ok(), name)).collect();
        let serves = |status: &Option<StatusResponse>| {
            status.as_ref().and_then(|one| one.self_.as_ref()).is_some_and(|own| own.state == "serving")
        };
        let leads = |status: &Option<StatusResponse>| status.as_ref().is_some_and(|one| one.quorum);
        if statuses.iter().all(|(status, _)| serves(status))
            && let Some((_, name)) = statuses.into_iter().find(|(status, _)| leads(status))
        {
            return Ok(name);
        }
        if Instant::now() > deadline {
            return Err("the masters are not whole again".into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) async fn run(arguments: &Arguments, dir: &Path, table: &mut Table) -> Outcome<()> {
    say("killing leaders under load");
    let cluster = cluster(dir, |options| options.fast_elections = true)?;
    let writers = Writers::start(&cluster).await?;
    let mut gaps = Vec::new();
    for _ in 0..arguments.kills {
        go_on()?;
        let name = whole(&cluster).await?;
        writers.more(100).await?;
        writers.longest();
        cluster.kill(&name)?;
        writers.more(100).await?;
        gaps.push(writers.longest());
        cluster.restart(&name)?;
    }
    let worst = gaps.iter().copied().fold(0.0, f64::max);
    table.figure("write gap after SIGKILL of the leader, worst", &gaps, "s", worst, Bar::AtMost(1.5));
    let mut gaps = Vec::new();
    for _ in 0..arguments.kills {
        go_on()?;
        whole(&cluster).await?;
        writers.more(100).await?;
        writers.longest();
        jindoctl(&cluster, &["cluster", "transfer-leader"])?;
        writers.more(100).await?;
        gaps.push(writers.longest() * 1000.0);
    }
    let worst = gaps.iter().copied().fold(0.0, f64::max);
    table.figure("write gap of a transfer, worst", &gaps, "ms", worst, Bar::AtMost(100.0));
    writers.stop().await
}
