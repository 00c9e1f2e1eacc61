//! Upstream's commands, as far as Fluid's controllers and the jobs they make run them.

use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use jindofs_proto::v1::{ChangeMountRequest, FileType, JobInfo, JobState, MetaPolicy, Mount, WorkerState};

use super::cacheset::{FILE, Policies};
use super::cfg::{Cfg, WORKER};
use super::{launch, storage, variable};
use crate::cli::fs::totals;
use crate::client::namespace::{Namespace, at_path};
use crate::client::refresh::refresh;
use crate::config::ClientConfig;
use crate::config::meta_policy::{META_POLICY, RefreshPolicy};
use crate::error::{Error, ErrorKind, Result};
use crate::runtime::stdio;

/// Pause between two looks at a job.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Beginning of the paths of our namespace.
const SCHEME: &str = "jindo://";

/// What commands need.
pub(super) struct Commands {
    cfg: Cfg,
    namespace: Namespace,
    masters: Vec<String>,
}

impl Commands {
    /// *Errors*: settings that are missing or wrong.
    pub(super) fn new(cfg: &Cfg) -> Result<Commands> {
        let config = ClientConfig::from_settings(&launch::command(cfg, &variable)?)?;
        Ok(Commands { cfg: cfg.clone(), namespace: Namespace::new(&config), masters: config.masters })
    }

    /// Runs `jindocache` or `jindo` with these arguments.
    ///
    /// *Errors*: a command that is not one of those that are known; what the masters say.
    pub(super) async fn run(&self, name: &str, arguments: &[String]) -> Result<()> {
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let outcome = match (name, words.as_slice()) {
            ("jindocache", ["-report"]) => self.report().await,
            ("jindocache", ["-mount"]) => self.list_mounts().await,
            ("jindocache", ["-mount", path, uri]) => self.mount(path, uri).await,
            ("jindocache", ["-unmount", path]) => self.namespace.remove_mount(path.as_bytes()).await,
            ("jindocache", ["-listCacheSet"]) => self.list_policies().await,
            ("jindocache", ["-refreshCacheSet", "-path", file]) => self.refresh(Path::new(file)).await,
            ("jindocache", ["-load", rest @ ..]) => self.load(rest).await,
            ("jindocache", ["-formatCache"]) => Err(Error::new(
                ErrorKind::Unsupported,
                "-formatCache is not supported: what workers hold goes with their directories",
            )),
            ("jindocache", ["-version"]) => stdio::write_line(env!("CARGO_PKG_VERSION")),
            ("jindo", ["fs", "-ls", path]) => self.list(path).await,
            ("jindo", ["fs", "-count", path]) => self.count(path).await,
            _ => Err(Error::invalid(format!("{name} {}: not one of the commands that Fluid runs", words.join(" ")))),
        };
        self.namespace.session().close().await;
        outcome
    }

    /// Fluid reads bytes of the one label or of the other, by the medium of the cache: all levels have the same there.
    async fn report(&self) -> Result<()> {
        let workers = self.namespace.usage().await?.workers;
        let live: Vec<_> = workers.iter().filter(|one| one.state() == WorkerState::Live).collect();
        let (total, used): (u64, u64) =
            (live.iter().map(|one| one.capacity_bytes).sum(), live.iter().map(|one| one.used_bytes).sum());
        let in_memory = self.cfg.get(WORKER, "storage.ram.cache.size").is_some();
        let (memory, disk) = if in_memory { ((total, used), (0, 0)) } else { ((0, 0), (total, used)) };
        stdio::write_line(format_args!("Namespace Address: {}", self.masters.join(",")))?;
        stdio::write_line(format_args!("Total Nodes: {}", workers.len()))?;
        stdio::write_line(format_args!("Live Nodes: {}", live.len()))?;
        stdio::write_line(format_args!("Total Disk Capacity: {}B", disk.0))?;
        stdio::write_line(format_args!("Used Disk Capacity: {}B", disk.1))?;
        stdio::write_line(format_args!("Total MEM Capacity: {}B", memory.0))?;
        stdio::write_line(format_args!("Used MEM Capacity: {}B", memory.1))
    }

    async fn mounts(&self) -> Result<Vec<Mount>> {
        Ok(self.namespace.mounts().await?.mounts)
    }

    async fn list_mounts(&self) -> Result<()> {
        for mount in self.mounts().await? {
            stdio::write_line(format_args!("{} on {}", mount.ufs_uri, String::from_utf8_lossy(&mount.path)))?;
        }
        Ok(())
    }

    async fn mount(&self, path: &str, uri: &str) -> Result<()> {
        let uri = uri.trim_end_matches('/');
        let policy = Policies::read(Path::new(FILE))?.of(uri).unwrap_or(MetaPolicy::Once);
        let mount = Mount {
            path: path.as_bytes().to_vec().into(),
            ufs_uri: uri.to_owned(),
            options: storage::options(&self.cfg, uri)?,
            meta_policy: policy.into(),
            ..Mount::default()
        };
        match self.namespace.add_mount(mount).await {
            Ok(_) => stdio::write_line(format_args!("{uri} is mounted on {path}"))?,
            Err(error) if error.kind == ErrorKind::AlreadyExists => {
                let mounts = self.mounts().await?;
                if !mounts.iter().any(|one| one.path == path.as_bytes() && one.ufs_uri == uri) {
                    return Err(error.context(path));
                }
                stdio::write_line(format_args!("Mount point already exists: {path}"))?;
            }
            Err(error) => return Err(error.context(path)),
        }
        Ok(())
    }

    async fn list_policies(&self) -> Result<()> {
        for mount in self.mounts().await? {
            let (policy, uri) = (RefreshPolicy::of_mount(&mount), mount.ufs_uri);
            stdio::write_line(format_args!("path: {uri}, cacheStrategy: DISTRIBUTED, metaPolicy: {policy}"))?;
        }
        Ok(())
    }

    /// Gives mounts the policies of a file.
    async fn refresh(&self, file: &Path) -> Result<()> {
        let policies = Policies::read(file)?;
        for mount in self.mounts().await? {
            let now = RefreshPolicy::of_mount(&mount);
            let Some(policy) = policies.of(&mount.ufs_uri).filter(|policy| RefreshPolicy::from(*policy) != now) else {
                continue;
            };
            let path = String::from_utf8_lossy(&mount.path).into_owned();
            let mut options = mount.options;
            // It would take precedence over the field.
            options.remove(META_POLICY);
            let change = ChangeMountRequest {
                path: mount.path,
                options,
                meta_policy: policy.into(),
                read_only: mount.read_only,
                ..ChangeMountRequest::default()
            };
            self.namespace.change_mount(change).await.map_err(|error| error.context(path))?;
        }
        Ok(())
    }

    async fn load(&self, arguments: &[&str]) -> Result<()> {
        let asked = Load::parse(arguments)?;
        if asked.names_only {
            return refresh(&self.namespace, asked.path.as_bytes(), true).await.map(drop);
        }
        let job = self.namespace.submit_load(asked.path.as_bytes()).await?;
        let tell = |job: &JobInfo| {
            stdio::write_line(format_args!(
                "{} of {} files, {} of {} bytes",
                job.files_done, job.files_total, job.bytes_done, job.bytes_total
            ))
        };
        let job = self.namespace.follow_job(job, POLL_INTERVAL, tell).await?;
        match job.state() {
            JobState::Done => Ok(()),
            _ => Err(Error::internal(format!("{}: {}", asked.path, job.message))),
        }
    }

    async fn list(&self, path: &str) -> Result<()> {
        let path = of_namespace(path)?;
        let attr = match self.namespace.lookup(at_path(path.as_bytes())).await {
            // Fluid looks for these words in the output.
            Err(error) if error.kind == ErrorKind::NotFound => {
                stdio::write_line(format_args!("{path}: No such file or directory"))?;
                return Err(error.context(path));
            }
            other => other?,
        };
        if attr.r#type() != FileType::Directory {
            return stdio::write_line(format_args!("{}\t{path}", attr.size));
        }
        let mut entries = std::pin::pin!(self.namespace.list(at_path(path.as_bytes())));
        while let Some(entry) = entries.next().await {
            let entry = entry?;
            let size = entry.attr.unwrap_or_default().size;
            stdio::write_line(format_args!("{size}\t{}", String::from_utf8_lossy(&entry.name)))?;
        }
        Ok(())
    }

    /// Directories, files, bytes: Fluid reads the third.
    async fn count(&self, path: &str) -> Result<()> {
        let path = of_namespace(path)?;
        let totals = totals(&self.namespace, path.clone().into_bytes()).await?;
        stdio::write_line(format_args!("{} {} {} {path}", totals.directories, totals.files, totals.bytes))
    }
}

/// A path of ours, with or without the scheme.
fn of_namespace(path: &str) -> Result<String> {
    let path = path.strip_prefix(SCHEME).unwrap_or(path);
    match path {
        "" => Ok("/".to_owned()),
        path if path.starts_with('/') => Ok(path.to_owned()),
        other => Err(Error::invalid(format!("{other}: write {SCHEME}/PATH"))),
    }
}

/// What `-load` asks for.
#[derive(Debug, PartialEq, Eq)]
struct Load {
    path: String,
    /// Only what lies where.
    names_only: bool,
}

impl Load {
    fn parse(arguments: &[&str]) -> Result<Load> {
        let (mut path, mut data, mut names) = (None, false, false);
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            match *word {
                "-data" => data = true,
                "-meta" => names = true,
                // Waiting, recursion and memory or disk are so anyway; a block is cached once, by as many threads as fit.
                "-s" | "-R" | "-m" | "-f" => {}
                "-replica" | "-thread" => drop(words.next()),
                "-atomic" | "-dryrun" | "-filter" => {
                    let message = format!("-load {word} is not supported: leave it out of the options of the DataLoad");
                    return Err(Error::new(ErrorKind::Unsupported, message));
                }
                option if option.starts_with('-') => {
                    return Err(Error::invalid(format!("-load {option}: no such option")));
                }
                given => path = Some(of_namespace(given)?),
            }
        }
        let path = path.ok_or_else(|| Error::invalid("-load: the path is missing"))?;
        Ok(Load { path, names_only: names && !data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_understood_as_fluid_writes_it_and_what_it_cannot_do_is_said() {
        let all = ["-data", "-s", "-R", "-replica", "1", "jindo:///spark"];
        assert_eq!(Load::parse(&all).expect("good"), Load { path: "/spark".to_owned(), names_only: false });
        assert!(Load::parse(&["-meta", "-s", "-R", "jindo://"]).expect("good").names_only);
        for (bad, word) in
            [(&["-dryrun", "jindo:///"][..], "not supported"), (&["-x"], "no such"), (&["-s"], "missing")]
        {
            let error = Load::parse(bad).expect_err("refused");
            assert!(error.message.contains(word), "{error}");
        }
        assert!(of_namespace("oss://b").is_err());
    }
}
