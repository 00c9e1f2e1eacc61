//! Settings, as usable values. Where they come from (TOML file, environment, flags) is the affair of
//! [`source`]; which there are, of [`keys`].

mod build;
pub mod explain;
pub mod flags;
pub mod keys;
pub mod meta_policy;
pub mod source;
pub mod value;

use std::path::PathBuf;
use std::time::Duration;

pub use keys::Role;
pub use source::Settings;

/// Settings of a master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MasterConfig {
    /// `namespace.meta-dir`: identity, Raft log, state machine and snapshots; the volume of the master.
    pub meta_dir: PathBuf,
    /// `namespace.backend.raft.initial-conf`: Raft `host:port` of every master, in order; the first one founds.
    pub peers: Vec<String>,
    /// Host name or address others reach this master at.
    pub host: String,
    /// Address to bind all ports on.
    pub bind: String,
    /// Client gRPC port (8101).
    pub grpc_port: u16,
    /// Raft port (8103).
    pub raft_port: u16,
    /// HTTP port (8104): metrics, livez, readyz.
    pub http_port: u16,
    /// Interval of the leader's heartbeats.
    pub heartbeat: Duration,
    /// Shortest election timeout.
    pub election_min: Duration,
    /// Longest election timeout; also the leader's lease.
    pub election_max: Duration,
    /// Replace a member whose disk is gone without being asked.
    pub auto_replace: bool,
    /// Let an empty disk listen for a cluster that misses it before it founds one.
    pub listen_before_founding: bool,
    /// Bytes of log after the last snapshot that trigger the next one.
    pub snapshot_log_bytes: u64,
    /// Bytes of log kept behind a snapshot for followers that lag.
    pub keep_log_bytes: u64,
    /// Most bytes of log kept for members that lag, or that receive a snapshot.
    pub keep_log_for_learners_bytes: u64,
    /// Bytes per second of all snapshots being sent; 0 for no bound.
    pub snapshot_send_bytes_per_second: u64,
    /// Bytes per second the scrub reads; 0 for no scrub.
    pub scrub_bytes_per_second: u64,
    /// Pause between two rounds of the scrub.
    pub scrub_interval: Duration,
    /// Most bytes of proposals in flight; beyond that clients are told to retry.
    pub inflight_bytes: u64,
    /// How far the clock of a leader may differ from the median of the voters.
    pub clock_skew_max: Duration,
    /// Free bytes on the disk of `meta_dir` below which it counts as full; 0 for none.
    pub disk_reserve_bytes: u64,
    /// Bytes kept aside on it for a disk that is full; 0 for none.
    pub ballast_bytes: u64,
    /// Bytes of the state's blocks, indexes and filters kept in memory; 0: by the memory there is.
    pub block_cache_bytes: u64,
    /// Bytes of changes of the state kept in memory until they are flushed; 0: by the memory and the disk there is.
    pub write_buffer_bytes: u64,
    /// Time without renewal after which a client session expires.
    pub session_ttl: Duration,
    /// Time without heartbeat after which a worker counts as lost.
    pub worker_timeout: Duration,
}

/// Settings of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerConfig {
    /// Client gRPC `host:port` of the masters.
    pub masters: Vec<String>,
    /// Cache levels, fastest first.
    pub tiers: Vec<TierConfig>,
    /// Directory of the worker's identity and the mount table it last saw.
    pub data_dir: PathBuf,
    /// Host name or address others reach this worker at.
    pub host: String,
    /// Address to bind all ports on.
    pub bind: String,
    /// gRPC port (6101).
    pub grpc_port: u16,
    /// HTTP port (6104).
    pub http_port: u16,
    /// Unix socket for passing file descriptors to local readers.
    pub socket: PathBuf,
    /// Interval of heartbeats to every master.
    pub heartbeat: Duration,
}

/// One cache level on one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TierConfig {
    /// What the level is made of.
    pub medium: Medium,
    /// Directory; for `Mem` it should lie on tmpfs.
    pub path: PathBuf,
    /// Bytes the cache may use.
    pub quota_bytes: u64,
    /// Fraction of the quota, in percent, at which eviction starts.
    pub high_percent: u8,
    /// Fraction of the quota, in percent, at which eviction stops.
    pub low_percent: u8,
}

/// Medium of a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Medium {
    /// tmpfs.
    Mem,
    /// Flash.
    Ssd,
    /// Spinning disk.
    Hdd,
}

/// Settings of any client of the masters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientConfig {
    /// Client gRPC `host:port` of masters to start with; the rest is learned from the cluster.
    pub masters: Vec<String>,
    /// `fs.jindocache.rpc.timeout`: how long one operation is retried before it fails (120 s; `jindoctl` 10 s).
    pub rpc_timeout: Duration,
    /// Wait for ever instead of failing.
    pub hard: bool,
}

/// Settings of the FUSE client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FuseConfig {
    /// How to reach the masters.
    pub client: ClientConfig,
    /// Where to mount.
    pub mount: PathBuf,
    /// Make the directory to mount at where it is missing.
    pub create_mount: bool,
    /// Mount over a directory that is not empty.
    pub mount_nonempty: bool,
    /// Socket of who holds the mount while this process is replaced.
    pub handover_socket: Option<PathBuf>,
    /// Let other users in (allow_other).
    pub allow_other: bool,
    /// How long the kernel may keep attributes and names of a mount that others change.
    pub attr_ttl: Duration,
    /// How long cached attributes and layouts serve while no master answers (`fuse.offline-max-staleness`).
    pub offline_max_staleness: Duration,
    /// Let files and names be changed through the mount.
    pub writable: bool,
    /// Directory of what is written and not stored yet.
    pub staging_dir: PathBuf,
    /// Most bytes there.
    pub staging_bytes: u64,
    /// Locks hold among all mounts, not only here.
    pub shared_locks: bool,
    /// How long a lock is waited for at most by somebody whose signals are not seen.
    pub lock_wait_max: Duration,
    /// Smallest file, bytes, that is read past the page cache once it is wholly on this host; 0 for none.
    pub direct_io_min_size: u64,
    /// Threads that answer the kernel.
    pub threads: usize,
    /// HTTP port for metrics (10001).
    pub http_port: u16,
    /// Address to bind the HTTP port on.
    pub bind: String,
}
