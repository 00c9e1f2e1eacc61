//! What a local cluster is made of.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::types::BLOCK_SIZE;

/// Where a single `--ufs URI` is mounted. Not `/`: metadata without under-storage lives beside the mounts.
const DEFAULT_MOUNT_PATH: &str = "/data";

/// Under-storage and its place in the namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UfsMount {
    /// Absolute path in the namespace.
    pub path: String,
    /// `local:///dir`, `s3://bucket/prefix`, ...
    pub uri: String,
}

impl UfsMount {
    /// Parses `URI` (mounted at `/data`) or `/PATH=URI`.
    pub fn parse(text: &str) -> UfsMount {
        match text.split_once('=') {
            Some((path, uri)) if path.starts_with('/') => UfsMount { path: path.to_owned(), uri: uri.to_owned() },
            _ => UfsMount { path: DEFAULT_MOUNT_PATH.to_owned(), uri: text.to_owned() },
        }
    }
}

/// How to start a [`DevCluster`](super::DevCluster).
#[derive(Debug, Clone)]
pub struct DevOptions {
    /// The `jindofs` binary; this very program unless set.
    pub binary: Option<PathBuf>,
    /// Directory of the cluster; created if missing, its data re-used if there is some.
    pub dir: PathBuf,
    /// Number of masters.
    pub masters: usize,
    /// Number of workers.
    pub workers: usize,
    /// FUSE clients, by mount point.
    pub mounts: Vec<PathBuf>,
    /// Let files be written through them.
    pub writable: bool,
    /// Under-storage to mount in the namespace.
    pub ufs: Vec<UfsMount>,
    /// Options of every one of them, in Fluid's names.
    pub ufs_options: BTreeMap<String, String>,
    /// Heartbeat 100 ms, election 300 to 600 ms.
    pub fast_elections: bool,
    /// Restart processes that end by themselves or are killed.
    pub supervise: bool,
    /// Cache of each worker, bytes.
    pub worker_quota: u64,
    /// Further settings; each process takes those of its role.
    pub settings: Vec<(String, String)>,
    /// Metadata directories other than `DIR/master-N`, by number of the master.
    pub meta_dirs: BTreeMap<usize, PathBuf>,
    /// Environment of single processes, by name.
    pub env: BTreeMap<String, BTreeMap<String, String>>,
    /// Found the cluster and wait for it. Without it nothing but the masters and workers is started, unfounded.
    pub provision: bool,
    /// First of consecutive ports; free ones are chosen without it.
    pub first_port: Option<u16>,
    /// Client addresses given to workers and FUSE clients besides the masters' own.
    pub more_masters: Vec<String>,
    /// Longest wait for each step of the start.
    pub patience: Duration,
    /// Once true, a start that is under way is given up.
    pub interrupt: Option<Arc<AtomicBool>>,
    /// Told about each step, for people.
    pub progress: Option<fn(&str)>,
}

impl DevOptions {
    /// Three masters in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> DevOptions {
        DevOptions {
            binary: None,
            dir: dir.into(),
            masters: 3,
            workers: 0,
            mounts: Vec::new(),
            writable: false,
            ufs: Vec::new(),
            ufs_options: BTreeMap::new(),
            fast_elections: false,
            supervise: false,
            worker_quota: 1 << 30,
            settings: Vec::new(),
            meta_dirs: BTreeMap::new(),
            env: BTreeMap::new(),
            provision: true,
            first_port: None,
            more_masters: Vec::new(),
            patience: Duration::from_secs(60),
            interrupt: None,
            progress: None,
        }
    }

    /// Parses one `--ufs-option`: `K=V` or `K=file:PATH`, whose path is made absolute.
    ///
    /// *Errors*: `InvalidArgument` without a `=`.
    pub fn add_ufs_option(&mut self, text: &str) -> Result<()> {
        let (key, value) =
            text.split_once('=').ok_or_else(|| Error::invalid(format!("--ufs-option {text}: write KEY=VALUE")))?;
        let value = match value.strip_prefix("file:") {
            Some(path) => format!("file:{}", std::path::absolute(Path::new(path))?.display()),
            None => value.to_owned(),
        };
        self.ufs_options.insert(key.to_owned(), value);
        Ok(())
    }

    pub(super) fn is_interrupted(&self) -> bool {
        self.interrupt.as_ref().is_some_and(|interrupt| interrupt.load(Ordering::Acquire))
    }

    pub(super) fn say(&self, text: &str) {
        if let Some(tell) = self.progress {
            tell(text);
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        if ![1, 3, 5, 7].contains(&self.masters) {
            return Err(Error::invalid(format!(
                "--masters {}: choose 1, 3, 5 or 7, as an even number survives no more losses than the odd one below it",
                self.masters
            )));
        }
        if self.workers > 0 && self.worker_quota < u64::from(BLOCK_SIZE) {
            let (quota, least) = (self.worker_quota, BLOCK_SIZE >> 20);
            return Err(Error::invalid(format!(
                "--worker-quota: {quota} bytes are less than a block: give at least {least} MiB"
            )));
        }
        if self.workers > 64 {
            return Err(Error::invalid(format!("{} workers: choose at most 64", self.workers)));
        }
        if self.mounts.is_empty() && self.workers == 0 && !self.ufs.is_empty() {
            return Err(Error::invalid("--ufs without a worker: nothing could read it"));
        }
        for (at, one) in self.ufs.iter().enumerate() {
            if self.ufs[..at].iter().any(|other| other.path == one.path) {
                return Err(Error::invalid(format!("two --ufs at {}: write them as /PATH=URI", one.path)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_uri_is_mounted_at_data_and_a_path_before_it_wins() {
        let parse = |text| {
            let mount = UfsMount::parse(text);
            (mount.path, mount.uri)
        };
        assert_eq!(parse("local:///x"), ("/data".into(), "local:///x".into()));
        assert_eq!(parse("s3://b/k=v"), ("/data".into(), "s3://b/k=v".into()));
        assert_eq!(parse("/a=s3://b/k=v"), ("/a".into(), "s3://b/k=v".into()));
    }

    #[test]
    fn secret_files_get_absolute_paths() {
        let mut options = DevOptions::new("/d");
        options.add_ufs_option("fs.s3.accessKeySecret=file:key").expect("valid");
        options.add_ufs_option("fs.s3.endpoint=http://a=b").expect("valid");
        assert!(options.ufs_options["fs.s3.accessKeySecret"].starts_with("file:/"));
        assert_eq!(options.ufs_options["fs.s3.endpoint"], "http://a=b");
        assert!(options.add_ufs_option("nothing").is_err());
    }
}
