//! Every setting there is: its name, meaning, unit and default. Files, environment, flags and help text all come from
//! this one table. Names are upstream's where upstream has one.

/// A role of the `jindofs` binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Holds the namespace.
    Master,
    /// Holds cached blocks.
    Worker,
    /// Serves a kernel mount.
    Fuse,
    /// `jindoctl`.
    Ctl,
}

impl Role {
    /// Lower-case name, as in `jindofs master`.
    pub fn name(self) -> &'static str {
        match self {
            Role::Master => "master",
            Role::Worker => "worker",
            Role::Fuse => "fuse",
            Role::Ctl => "jindoctl",
        }
    }
}

/// Form of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// Directory or file.
    Path,
    /// Comma-separated directories.
    Paths,
    /// Bytes: `12Gi`, `4MiB`, `1g`, `4096`; every suffix is a power of 1,024.
    Size,
    /// Comma-separated sizes.
    Sizes,
    /// `200ms`, `60s`, `2m`, `1h`; a bare number is milliseconds.
    Duration,
    /// `true` or `false`.
    Bool,
    /// TCP port, 1 to 65,535.
    Port,
    /// A whole number.
    Count,
    /// Comma-separated `host:port`; a third field, as in `host:port:0`, is dropped.
    Addresses,
    /// Name or IP address of a host.
    Host,
    /// Comma-separated hosts; a port behind one is dropped.
    Hosts,
    /// `0.8` or `80%`.
    Ratio,
    /// Comma-separated `MEM`, `SSD`, `HDD`.
    Mediums,
    /// One word of a fixed set.
    Choice(&'static [&'static str]),
}

impl Kind {
    /// For help texts.
    pub fn form(self) -> &'static str {
        match self {
            Kind::Text => "TEXT",
            Kind::Path => "PATH",
            Kind::Paths => "PATH,...",
            Kind::Size => "SIZE",
            Kind::Sizes => "SIZE,...",
            Kind::Duration => "DURATION",
            Kind::Bool => "true|false",
            Kind::Port => "PORT",
            Kind::Count => "NUMBER",
            Kind::Addresses => "HOST:PORT,...",
            Kind::Host => "HOST",
            Kind::Hosts => "HOST,...",
            Kind::Ratio => "RATIO",
            Kind::Mediums => "MEM|SSD|HDD,...",
            Kind::Choice(_) => "WORD",
        }
    }
}

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Dotted name, as in the file and in `--set`.
    pub name: &'static str,
    /// Who reads it.
    pub roles: &'static [Role],
    /// Form of the value.
    pub kind: Kind,
    /// Default, written as in a file; empty when there is none or when `doc` says how it is derived.
    pub default: &'static str,
    /// Meaning, for people.
    pub doc: &'static str,
    /// Flag of its own, without the dashes.
    pub flag: &'static str,
    /// Further environment variables that set it, weaker than the one made from the name.
    pub env_aliases: &'static [&'static str],
}

impl Key {
    /// The environment variable: upper case, with `.` and `-` as `_`.
    pub fn env(&self) -> String {
        self.name.to_ascii_uppercase().replace(['.', '-'], "_")
    }
}

const MASTER: &[Role] = &[Role::Master];
const WORKER: &[Role] = &[Role::Worker];
const FUSE: &[Role] = &[Role::Fuse];
const CLIENT: &[Role] = &[Role::Fuse, Role::Ctl];

const fn key(
    name: &'static str,
    roles: &'static [Role],
    kind: Kind,
    default: &'static str,
    flag: &'static str,
    doc: &'static str,
) -> Key {
    Key { name, roles, kind, default, doc, flag, env_aliases: &[] }
}

/// All settings, in the order in which they are explained.
#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    key("namespace.meta-dir", MASTER, Kind::Path, "", "meta-dir",
        "Directory of identity, Raft log, state and snapshots: the volume of the master. Required."),
    key("namespace.meta-dir.reserve", MASTER, Kind::Size, "256MiB", "",
        "Free bytes on the disk of namespace.meta-dir below which it counts as full: commands that grow the state are \
         refused once no quorum of the masters has room; reads and removals go on. At most a tenth of the disk, or 40MiB \
         if that is more. 0 for none."),
    key("namespace.meta-dir.ballast", MASTER, Kind::Size, "192MiB", "",
        "Bytes taken in namespace.meta-dir to be given back when the disk is full, a part of them only to a start. At \
         most a twentieth of the disk. 0 for none."),
    key("namespace.backend.type", MASTER, Kind::Choice(&["raft", "rocksdb"]), "raft", "",
        "Upstream's name for one master (rocksdb) or several (raft). Here one master is a Raft group of one, so both \
         mean the same; rocksdb is refused with several masters."),
    key("namespace.backend.raft.initial-conf", MASTER, Kind::Addresses, "", "initial-conf",
        "Raft host:port of every master, in order; the first one founds. Default: this master alone."),
    key("namespace.backend.raft.hostname", MASTER, Kind::Hosts, "", "host",
        "Host name or address others reach this master at; of a comma-separated list the entry named like this \
         machine. Default: this machine's entry of initial-conf, else its host name."),
    key("namespace.bind", MASTER, Kind::Host, "0.0.0.0", "bind", "Address to bind all ports of the master on."),
    key("namespace.rpc.port", MASTER, Kind::Port, "8101", "rpc-port", "Port of the client gRPC services."),
    key("namespace.backend.raft.port", MASTER, Kind::Port, "8103", "raft-port",
        "Port of the Raft transport. Unless set, this master's entry of initial-conf decides."),
    key("namespace.http.port", MASTER, Kind::Port, "8104", "http-port", "Port of metrics, livez and readyz."),
    key("namespace.backend.raft.fast-elections", MASTER, Kind::Bool, "false", "",
        "For short fail-over on a quiet network: heartbeat 100 ms, election 300 to 600 ms, unless those are set."),
    key("namespace.backend.raft.heartbeat", MASTER, Kind::Duration, "200ms", "",
        "Interval of the leader's heartbeats."),
    key("namespace.backend.raft.election-min", MASTER, Kind::Duration, "600ms", "",
        "Shortest election timeout; at least twice the heartbeat."),
    key("namespace.backend.raft.election-max", MASTER, Kind::Duration, "1200ms", "",
        "Longest election timeout, and the leader's lease."),
    key("namespace.backend.raft.auto-replace", MASTER, Kind::Bool, "true", "",
        "Replace a master whose disk is gone without being asked."),
    key("namespace.backend.raft.listen-before-founding", MASTER, Kind::Bool, "true", "",
        "Let a master with an empty disk listen for a cluster that misses this disk, for three seconds and longer if one is \
         heard, before it founds another cluster."),
    key("namespace.backend.raft.snapshot-log-size", MASTER, Kind::Size, "128MiB", "",
        "Bytes of log after the last snapshot that trigger the next one."),
    key("namespace.backend.raft.keep-log-size", MASTER, Kind::Size, "256MiB", "",
        "Bytes of log kept behind a snapshot for followers that lag."),
    key("namespace.backend.keep-log-for-learners-bytes", MASTER, Kind::Size, "1GiB", "",
        "Most bytes of log that a master keeps for others that lag behind, or that a snapshot is being sent to."),
    key("namespace.backend.snapshot-send-bytes-per-second", MASTER, Kind::Size, "256MiB", "",
        "Bytes per second that a master sends of snapshots, all transfers together; 0 for no bound."),
    key("namespace.backend.scrub-bytes-per-second", MASTER, Kind::Size, "8MiB", "",
        "Bytes per second that a master reads of its own state and snapshot to find damage; 0 turns the scrub off."),
    key("namespace.backend.scrub-interval", MASTER, Kind::Duration, "10m", "",
        "Pause between two rounds of the scrub."),
    key("namespace.backend.raft.inflight-size", MASTER, Kind::Size, "64MiB", "",
        "Most bytes of proposals in flight; beyond that clients are told to retry. At least 2MiB."),
    key("namespace.backend.raft.max-clock-skew", MASTER, Kind::Duration, "10s", "",
        "How far a master's clock may differ from the median of the voters. A leader beyond that hands over; a step of a \
         sole master's clock beyond that is held back for a minute."),
    key("namespace.backend.rocksdb.block-cache-size", MASTER, Kind::Size, "0", "",
        "Bytes of the state's blocks, indexes and filters kept in memory. 0: an eighth of the memory this process \
         may use, 64MiB to 4GiB."),
    key("namespace.backend.rocksdb.write-buffer-size", MASTER, Kind::Size, "0", "",
        "Bytes of changes of the state kept in memory until they are flushed. 0: a thirty-second of the memory this \
         process may use, 8MiB to 64MiB, and at most three eighths of the ballast, so that a flush finds room in it."),
    key("namespace.session.ttl", MASTER, Kind::Duration, "60s", "",
        "Time without renewal after which a client session expires."),
    key("namespace.worker.timeout", MASTER, Kind::Duration, "10s", "",
        "Time without heartbeat after which a worker counts as lost."),

    key("storage.namespace.rpc.address", WORKER, Kind::Addresses, "", "masters",
        "Client gRPC host:port of the masters. Required."),
    key("storage.data-dirs", WORKER, Kind::Paths, "", "data-dirs",
        "Cache directories, fastest first. Required unless storage.ram.cache.size is set."),
    key("storage.data-dirs.capacities", WORKER, Kind::Sizes, "", "capacities",
        "Bytes the cache may use in each of storage.data-dirs, in the same order; one value serves all. Required with \
         storage.data-dirs."),
    key("storage.data-dirs.mediums", WORKER, Kind::Mediums, "", "",
        "Medium of each of storage.data-dirs. Default: MEM below /dev/shm, SSD elsewhere."),
    key("storage.ram.cache.size", WORKER, Kind::Size, "0", "",
        "Bytes of a further MEM level before storage.data-dirs; 0 for none."),
    key("storage.ram.cache.dir", WORKER, Kind::Path, "", "",
        "Directory of that level, on tmpfs. Default: /dev/shm/jindofs-PORT with the port of gRPC."),
    key("storage.watermark.high.ratio", WORKER, Kind::Ratio, "0.95", "",
        "Share of a quota at which eviction starts."),
    key("storage.watermark.low.ratio", WORKER, Kind::Ratio, "0.85", "",
        "Share of a quota at which eviction stops."),
    key("storage.work-dir", WORKER, Kind::Path, "", "work-dir",
        "Directory of the worker's identity and of the mount table it last saw. Default: `worker` in the first of \
         storage.data-dirs."),
    key("storage.address", WORKER, Kind::Host, "", "host",
        "Host name or address others reach this worker at. Default: the machine's host name."),
    key("storage.bind", WORKER, Kind::Host, "0.0.0.0", "bind", "Address to bind all ports of the worker on."),
    key("storage.rpc.port", WORKER, Kind::Port, "6101", "rpc-port", "Port of the gRPC services."),
    key("storage.http.port", WORKER, Kind::Port, "6104", "http-port", "Port of metrics, livez and readyz."),
    key("storage.socket", WORKER, Kind::Path, "", "socket",
        "Unix socket that hands file descriptors to readers on this host; its last name has at most 80 \
         bytes. Default: `worker.sock` in storage.work-dir."),
    key("storage.heartbeat", WORKER, Kind::Duration, "1s", "", "Interval of heartbeats to every master."),

    Key {
        name: "fs.jindocache.namespace.rpc.address", roles: CLIENT, kind: Kind::Addresses, default: "", flag: "masters",
        doc: "Client gRPC host:port of masters to start with; the rest is learned from the cluster. Required.",
        env_aliases: &["JINDOFS_MASTERS", "CLIENT_NAMESPACE_RPC_ADDRESS"],
    },
    key("fs.jindocache.rpc.timeout", CLIENT, Kind::Duration, "120s", "",
        "How long one operation is retried before it fails; a bare number is milliseconds. jindoctl: 10 s unless set."),
    key("fs.jindocache.hard", CLIENT, Kind::Bool, "false", "",
        "Wait for the masters for ever instead of failing after fs.jindocache.rpc.timeout."),
    key("fuse.mount", FUSE, Kind::Path, "", "mount", "Directory to mount at. Required."),
    key("fuse.mount.create", FUSE, Kind::Bool, "false", "",
        "Make the directory to mount at, and those above it, where they are missing."),
    key("fuse.mount.nonempty", FUSE, Kind::Bool, "false", "",
        "Mount over a directory that is not empty. What is in it cannot be reached while the client runs."),
    key("fuse.handover.socket", FUSE, Kind::Path, "", "",
        "Unix socket of the CSI node plugin on this host. The plugin holds the mount while this process is replaced, so \
         that readers wait instead of failing (Linux 6.9). Unset: the mount ends with the process."),
    key("fuse.allow-other", FUSE, Kind::Bool, "true", "",
        "Let other users than the one who mounts see the file system; permissions are checked by the kernel."),
    key("fuse.attr-ttl", FUSE, Kind::Duration, "1s", "",
        "How long the kernel may keep names and attributes that others may change. A mount that cannot be written is told of \
         changes by the masters at once, and keeps nothing of what they name."),
    key("fuse.offline-max-staleness", FUSE, Kind::Duration, "1h", "",
        "How long names, attributes and layouts seen before serve while no master answers."),
    key("fuse.writable", FUSE, Kind::Bool, "false", "",
        "Let files be written and names be changed through the mount. Content is stored when a file is closed or synced. \
         Cannot be combined with fuse.handover.socket: what is not stored yet could not be handed over."),
    key("fuse.staging.dir", FUSE, Kind::Path, "", "",
        "Directory of what is written and not stored yet; its files have no names and vanish with the process. Default: \
         jindofs-staging-PID in the system's directory for temporary files."),
    key("fuse.staging.size", FUSE, Kind::Size, "10Gi", "",
        "Most bytes that are written and not stored yet, over all open files; whoever writes more is told that there is \
         no space."),
    key("fuse.locks", FUSE, Kind::Choice(&["master", "local"]), "master", "",
        "Where locks (flock, fcntl) hold. master: among all mounts that can be written. local: among the processes of this \
         mount, as on every mount that cannot be written."),
    key("fuse.lock-wait-max", FUSE, Kind::Duration, "30s", "",
        "How long a process of another PID namespace waits for a lock at most (ETIMEDOUT): a signal to it is not seen, \
         so it cannot be ended meanwhile. Processes that are seen wait until they have it or are interrupted."),
    key("fuse.direct-io-min-size", FUSE, Kind::Size, "64MiB", "",
        "Files from this size on that are wholly cached on this host are read past the kernel's page cache: large reads \
         are twice as fast and memory is not used twice, reads below 32 KiB are slower. 0 turns it off."),
    key("fuse.threads", FUSE, Kind::Count, "8", "", "Threads that answer the kernel, 1 to 256."),
    key("fuse.http.port", FUSE, Kind::Port, "10001", "http-port", "Port of metrics, livez and readyz."),
    key("fuse.bind", FUSE, Kind::Host, "0.0.0.0", "bind", "Address to bind the HTTP port on."),
];

/// Keys of upstream that configurations carry and that have no effect here; they are accepted with a warning.
pub const WITHOUT_EFFECT: &[&str] = &[
    "namespace.blocklet.cache.size",
    "namespace.blocklet.threads",
    "namespace.cluster.id",
    "namespace.delete.scan.batch.size",
    "namespace.delete.scan.interval.second",
    "namespace.filelet.atime.enable",
    "namespace.filelet.cache.size",
    "namespace.filelet.threads",
    "namespace.long-running.threads",
    "namespace.oss.copy.size",
    "namespace.permission.root.inode.perm.bits",
    "namespace.rpc.rdma.enable",
    "storage.cache.filelet.worker.threads",
    "storage.cluster.id",
    "storage.compaction.enable",
    "storage.compaction.period.minute",
    "storage.compaction.threshold",
    "storage.maintainence.period.minute",
    "storage.rpc.rdma.enable",
    "storage.slicelet.buffer.size",
    "fs.jindocache.client.metrics.enable",
    "fs.jindocache.data.cache.enable",
    "fs.jindocache.meta.cache.enable",
    "fs.jindocache.ram.cache.enable",
    "fs.jindocache.slice.cache.enable",
    "fs.jindocache.short.circuit.enable",
];

/// The setting called `name`.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The known key that is spelled most like `name`.
pub fn nearest(name: &str) -> &'static str {
    KEYS.iter().map(|key| key.name).min_by_key(|known| distance(known.as_bytes(), name.as_bytes())).unwrap_or_default()
}

/// Settings of one role.
pub fn of_role(role: Role) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(move |key| key.roles.contains(&role))
}

/// Levenshtein distance.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let best = (diagonal + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], best);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_variables_are_unique_and_every_key_is_explained() {
        let mut seen = std::collections::HashSet::new();
        for key in KEYS {
            assert!(seen.insert(key.env()), "{} twice", key.name);
            assert!(key.doc.ends_with('.'), "{} has no full sentence", key.name);
        }
    }

    #[test]
    fn flags_of_one_role_are_unique() {
        for role in [Role::Master, Role::Worker, Role::Fuse] {
            let mut seen = std::collections::HashSet::new();
            for key in of_role(role).filter(|key| !key.flag.is_empty()) {
                assert!(seen.insert(key.flag), "--{} twice in {}", key.flag, role.name());
            }
        }
    }

    #[test]
    fn a_misspelt_key_is_nearest_to_the_right_one() {
        assert_eq!(nearest("namespace.metadir"), "namespace.meta-dir");
        assert_eq!(nearest("storage.datadirs.capacity"), "storage.data-dirs.capacities");
    }
}
