//! From layered settings to the structs the roles take. Checks what only several values together can tell.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jindofs_packets::SOCKET_NAME_MAX;

use super::keys::Role;
use super::source::{Settings, Source, conflict};
use super::{ClientConfig, FuseConfig, MasterConfig, Medium, TierConfig, WorkerConfig, value};
use crate::error::Result;
use crate::runtime::host_name;
use crate::types::{BLOCK_SIZE, COMMAND_BYTES_MAX};

/// Reads typed values and collects what is wrong, so that all of it is told at once.
struct Reader<'a> {
    settings: &'a Settings,
    problems: Vec<String>,
}

impl<'a> Reader<'a> {
    fn new(settings: &'a Settings) -> Reader<'a> {
        Reader { settings, problems: settings.problems.clone() }
    }

    fn text(&self, name: &str) -> &'a str {
        self.settings.get(name).map_or("", |setting| setting.value.trim())
    }

    fn is_set(&self, name: &str) -> bool {
        self.settings.get(name).is_some_and(|setting| setting.source != Source::Default)
    }

    fn complain(&mut self, name: &str, problem: impl std::fmt::Display) {
        let source = self.settings.get(name).map(|setting| setting.source.to_string()).unwrap_or_default();
        self.problems.push(format!("{name} ({source}): {problem}"));
    }

    fn parse<T: Default>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> T {
        match parse(self.text(name)) {
            Ok(value) => value,
            // Form was checked when the value was read; only an emptied value comes here.
            Err(problem) => {
                self.complain(name, problem);
                T::default()
            }
        }
    }

    fn port(&mut self, name: &str) -> u16 {
        self.parse(name, value::port)
    }

    fn size(&mut self, name: &str) -> u64 {
        self.parse(name, value::size)
    }

    fn time(&mut self, name: &str) -> Duration {
        let time = self.parse(name, value::duration);
        if time.is_zero() {
            self.complain(name, "must be longer than zero");
        }
        time
    }

    fn flag(&mut self, name: &str) -> bool {
        self.parse(name, value::boolean)
    }

    fn host(&mut self, name: &str) -> String {
        self.parse(name, value::host)
    }

    /// The name of this machine, which stands in for a setting that is not set.
    fn machine_host(&mut self, name: &str, machine: &str) -> String {
        value::host(machine).unwrap_or_else(|problem| {
            self.complain(name, format!("the host name of this machine cannot stand in for it: {problem}"));
            String::new()
        })
    }

    fn addresses(&mut self, name: &str) -> Vec<String> {
        self.parse(name, value::addresses)
    }

    /// Refuses a quota in which nothing can be kept.
    fn at_least_a_block(&mut self, name: &str, bytes: u64) {
        if bytes < u64::from(BLOCK_SIZE) {
            self.complain(name, format!("{bytes} bytes are less than a block: give at least {} MiB", BLOCK_SIZE >> 20));
        }
    }

    fn required(&mut self, name: &str, example: &str) {
        if self.text(name).is_empty() {
            self.problems.push(format!(
                "{name} is required: set it in the config file, as {}, or with --set {name}={example}",
                super::keys::find(name).map(super::keys::Key::env).unwrap_or_default()
            ));
        }
    }

    fn different_ports(&mut self, names: &[&str], ports: &[u16]) {
        for (at, port) in ports.iter().enumerate() {
            if let Some(first) = ports[..at].iter().position(|other| other == port) {
                self.complain(names[at], format!("port {port} is also {}'s", names[first]));
            }
        }
    }

    fn finish<T>(self, value: T) -> Result<T> {
        if self.problems.is_empty() { Ok(value) } else { Err(conflict(self.problems)) }
    }
}

fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

fn port_of(address: &str) -> Option<u16> {
    address.rsplit_once(':').and_then(|(_, port)| port.parse().ok())
}

/// True if `host` is `machine`, or a longer or shorter form of its name.
fn names_machine(host: &str, machine: &str) -> bool {
    let first = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    host == machine || (first(host) == first(machine) && host.parse::<std::net::IpAddr>().is_err())
}

fn master_host(reader: &mut Reader<'_>, peers: &[String], machine: &str) -> String {
    // Upstream puts the name of every master there, sometimes with a port.
    let given = reader.parse("namespace.backend.raft.hostname", value::hosts);
    match given.as_slice() {
        [only] => return only.clone(),
        [] => {}
        several => {
            if let Some(mine) = several.iter().find(|host| names_machine(host, machine)) {
                return mine.clone();
            }
            let problem = format!("none of these hosts is named like this machine, {machine}");
            reader.complain("namespace.backend.raft.hostname", problem);
        }
    }
    let mine = peers.iter().map(|peer| host_of(peer)).find(|host| peers.len() == 1 || names_machine(host, machine));
    match mine {
        Some(mine) => mine.to_owned(),
        None => reader.machine_host("namespace.backend.raft.hostname", machine),
    }
}

impl MasterConfig {
    /// The settings of a master.
    ///
    /// *Errors*: `InvalidArgument` with every problem there is.
    pub fn from_settings(settings: &Settings) -> Result<MasterConfig> {
        let mut r = Reader::new(settings);
        r.required("namespace.meta-dir", "/var/lib/jindofs/meta");
        let mut peers = r.addresses("namespace.backend.raft.initial-conf");
        let host = master_host(&mut r, &peers, &host_name());
        let raft_port = raft_port(&mut r, &peers, &host);
        if peers.is_empty() {
            peers.push(format!("{host}:{raft_port}"));
        }
        if r.text("namespace.backend.type") == "rocksdb" && peers.len() > 1 {
            let problem = format!("rocksdb is one master, but initial-conf lists {}: set it to raft", peers.len());
            r.complain("namespace.backend.type", problem);
        }
        let config = MasterConfig {
            meta_dir: PathBuf::from(r.text("namespace.meta-dir")),
            peers,
            host,
            bind: r.host("namespace.bind"),
            grpc_port: r.port("namespace.rpc.port"),
            raft_port,
            http_port: r.port("namespace.http.port"),
            heartbeat: r.time("namespace.backend.raft.heartbeat"),
            election_min: r.time("namespace.backend.raft.election-min"),
            election_max: r.time("namespace.backend.raft.election-max"),
            auto_replace: r.flag("namespace.backend.raft.auto-replace"),
            listen_before_founding: r.flag("namespace.backend.raft.listen-before-founding"),
            snapshot_log_bytes: r.size("namespace.backend.raft.snapshot-log-size"),
            keep_log_bytes: r.size("namespace.backend.raft.keep-log-size"),
            keep_log_for_learners_bytes: r.size("namespace.backend.keep-log-for-learners-bytes"),
            snapshot_send_bytes_per_second: r.size("namespace.backend.snapshot-send-bytes-per-second"),
            scrub_bytes_per_second: r.size("namespace.backend.scrub-bytes-per-second"),
            scrub_interval: r.time("namespace.backend.scrub-interval"),
            inflight_bytes: r.size("namespace.backend.raft.inflight-size"),
            clock_skew_max: r.time("namespace.backend.raft.max-clock-skew"),
            disk_reserve_bytes: r.size("namespace.meta-dir.reserve"),
            ballast_bytes: r.size("namespace.meta-dir.ballast"),
            block_cache_bytes: r.size("namespace.backend.rocksdb.block-cache-size"),
            write_buffer_bytes: r.size("namespace.backend.rocksdb.write-buffer-size"),
            session_ttl: r.time("namespace.session.ttl"),
            worker_timeout: r.time("namespace.worker.timeout"),
        };
        check_master(&mut r, &config);
        r.finish(config)
    }
}

fn raft_port(r: &mut Reader<'_>, peers: &[String], host: &str) -> u16 {
    let name = "namespace.backend.raft.port";
    let mut mine = peers.iter().filter(|peer| host_of(peer) == host).filter_map(|peer| port_of(peer));
    match (r.is_set(name), mine.next(), mine.next()) {
        (false, Some(port), None) => port,
        _ => r.port(name),
    }
}

fn check_master(r: &mut Reader<'_>, config: &MasterConfig) {
    if config.election_min < config.heartbeat * 2 {
        r.complain("namespace.backend.raft.election-min", "must be at least twice the heartbeat");
    }
    if config.election_max <= config.election_min {
        r.complain("namespace.backend.raft.election-max", "must be longer than election-min");
    }
    if config.clock_skew_max < Duration::from_secs(1) {
        r.complain(
            "namespace.backend.raft.max-clock-skew",
            "must be at least 1s, more than asking another clock takes",
        );
    }
    if config.inflight_bytes < 2 * COMMAND_BYTES_MAX as u64 {
        r.complain("namespace.backend.raft.inflight-size", "must be at least 2MiB, two of the largest commands");
    }
    if config.snapshot_log_bytes == 0 {
        r.complain("namespace.backend.raft.snapshot-log-size", "must be more than zero");
    }
    r.different_ports(
        &["namespace.rpc.port", "namespace.backend.raft.port", "namespace.http.port"],
        &[config.grpc_port, config.raft_port, config.http_port],
    );
}

impl WorkerConfig {
    /// The settings of a worker.
    ///
    /// *Errors*: `InvalidArgument` with every problem there is.
    pub fn from_settings(settings: &Settings) -> Result<WorkerConfig> {
        let mut r = Reader::new(settings);
        r.required("storage.namespace.rpc.address", "master-0:8101,master-1:8101,master-2:8101");
        let grpc_port = r.port("storage.rpc.port");
        let tiers = tiers(&mut r, grpc_port);
        let first = tiers.iter().find(|tier| tier.medium != Medium::Mem).or(tiers.first());
        let or = |text: &str, default: PathBuf| if text.is_empty() { default } else { PathBuf::from(text) };
        let beside = first.map(|tier| tier.path.join("worker")).unwrap_or_default();
        let data_dir = or(r.text("storage.work-dir"), beside);
        let socket = or(r.text("storage.socket"), data_dir.join("worker.sock"));
        check_socket(&mut r, "storage.socket", &socket);
        let host = match r.text("storage.address") {
            "" => r.machine_host("storage.address", &host_name()),
            _ => r.host("storage.address"),
        };
        let config = WorkerConfig {
            masters: r.addresses("storage.namespace.rpc.address"),
            tiers,
            data_dir,
            host,
            bind: r.host("storage.bind"),
            grpc_port,
            http_port: r.port("storage.http.port"),
            socket,
            heartbeat: r.time("storage.heartbeat"),
        };
        r.different_ports(&["storage.rpc.port", "storage.http.port"], &[config.grpc_port, config.http_port]);
        r.finish(config)
    }
}

fn check_socket(r: &mut Reader<'_>, name: &str, socket: &Path) {
    let length = socket.file_name().map_or(0, |last| last.len());
    if length > SOCKET_NAME_MAX {
        let socket = socket.display();
        let most = format!("the last name can have {SOCKET_NAME_MAX}: set a shorter one");
        r.complain(name, format!("the last name of {socket} has {length} bytes; {most}"));
    }
}

fn tiers(r: &mut Reader<'_>, grpc_port: u16) -> Vec<TierConfig> {
    let (high, low) = (
        r.parse("storage.watermark.high.ratio", value::percent),
        r.parse("storage.watermark.low.ratio", value::percent),
    );
    if low > high {
        r.complain("storage.watermark.low.ratio", "must not be above storage.watermark.high.ratio");
    }
    let tier =
        |medium, path, quota_bytes| TierConfig { medium, path, quota_bytes, high_percent: high, low_percent: low };
    let mut tiers = Vec::new();
    let memory = r.size("storage.ram.cache.size");
    if memory > 0 {
        r.at_least_a_block("storage.ram.cache.size", memory);
        let dir = r.text("storage.ram.cache.dir");
        let default = || PathBuf::from(format!("/dev/shm/jindofs-{grpc_port}"));
        tiers.push(tier(Medium::Mem, if dir.is_empty() { default() } else { PathBuf::from(dir) }, memory));
    }
    let dirs: Vec<PathBuf> = value::list(r.text("storage.data-dirs")).into_iter().map(PathBuf::from).collect();
    if dirs.is_empty() && memory == 0 {
        r.required("storage.data-dirs", "/mnt/cache");
    }
    let sizes = per_dir(r, "storage.data-dirs.capacities", dirs.len(), value::sizes);
    if !dirs.is_empty() && sizes.is_empty() {
        r.required("storage.data-dirs.capacities", "12Gi");
    }
    sizes.iter().for_each(|size| r.at_least_a_block("storage.data-dirs.capacities", *size));
    let mediums = per_dir(r, "storage.data-dirs.mediums", dirs.len(), value::mediums);
    for (at, dir) in dirs.iter().enumerate() {
        let guess = if dir.starts_with("/dev/shm") { Medium::Mem } else { Medium::Ssd };
        let quota = sizes.get(at).copied().unwrap_or_default();
        tiers.push(tier(mediums.get(at).copied().unwrap_or(guess), dir.clone(), quota));
    }
    for (at, one) in tiers.iter().enumerate() {
        if tiers[..at].iter().any(|other| other.path == one.path) {
            r.complain("storage.data-dirs", format!("{} is listed twice", one.path.display()));
        }
    }
    tiers.sort_by_key(|tier| tier.medium);
    tiers
}

/// One value for each directory; a single one serves all.
fn per_dir<T: Clone>(
    r: &mut Reader<'_>,
    name: &str,
    dirs: usize,
    parse: impl Fn(&str) -> Result<Vec<T>, String>,
) -> Vec<T> {
    let values = r.parse(name, parse);
    match values.len() {
        1 => vec![values[0].clone(); dirs],
        count if count == 0 || count == dirs => values,
        count => {
            r.complain(name, format!("has {count} values, but storage.data-dirs has {dirs} directories"));
            values
        }
    }
}

impl ClientConfig {
    /// The settings of a client. `jindoctl` gives up sooner than a mount: 10 s unless set.
    ///
    /// *Errors*: `InvalidArgument` with every problem there is.
    pub fn from_settings(settings: &Settings) -> Result<ClientConfig> {
        let mut r = Reader::new(settings);
        let config = client(&mut r);
        r.finish(config)
    }
}

fn client(r: &mut Reader<'_>) -> ClientConfig {
    r.required("fs.jindocache.namespace.rpc.address", "master-0:8101,master-1:8101,master-2:8101");
    let name = "fs.jindocache.rpc.timeout";
    let patient = r.settings.role() != Role::Ctl || r.is_set(name);
    ClientConfig {
        masters: r.addresses("fs.jindocache.namespace.rpc.address"),
        rpc_timeout: if patient { r.time(name) } else { Duration::from_secs(10) },
        hard: r.flag("fs.jindocache.hard"),
    }
}

/// Where a FUSE client stages what is written; each process has a directory of its own unless told otherwise.
fn staging_dir(given: &str) -> PathBuf {
    match given {
        "" => std::env::temp_dir().join(format!("jindofs-staging-{}", std::process::id())),
        given => PathBuf::from(given),
    }
}

impl FuseConfig {
    /// The settings of a FUSE client.
    ///
    /// *Errors*: `InvalidArgument` with every problem there is.
    pub fn from_settings(settings: &Settings) -> Result<FuseConfig> {
        let mut r = Reader::new(settings);
        r.required("fuse.mount", "/mnt/jindofs");
        let threads = r.parse("fuse.threads", value::count);
        if !(1..=256).contains(&threads) {
            r.complain("fuse.threads", "must be from 1 to 256");
        }
        let name = "fuse.handover.socket";
        let handover_socket = Some(r.text(name)).filter(|text| !text.is_empty()).map(PathBuf::from);
        if let Some(socket) = &handover_socket {
            check_socket(&mut r, name, socket);
        }
        let writable = r.flag("fuse.writable");
        if writable && handover_socket.is_some() {
            let problem = "cannot be combined with fuse.handover.socket: what is written and not stored yet could not be \
                           handed over; unset one of them";
            r.complain("fuse.writable", problem);
        }
        let staging_bytes = r.size("fuse.staging.size");
        if writable {
            r.at_least_a_block("fuse.staging.size", staging_bytes);
        }
        let config = FuseConfig {
            client: client(&mut r),
            mount: PathBuf::from(r.text("fuse.mount")),
            create_mount: r.flag("fuse.mount.create"),
            mount_nonempty: r.flag("fuse.mount.nonempty"),
            handover_socket,
            allow_other: r.flag("fuse.allow-other"),
            attr_ttl: r.parse("fuse.attr-ttl", value::duration),
            offline_max_staleness: r.parse("fuse.offline-max-staleness", value::duration),
            writable,
            staging_dir: staging_dir(r.text("fuse.staging.dir")),
            staging_bytes,
            shared_locks: writable && r.text("fuse.locks") == "master",
            lock_wait_max: r.parse("fuse.lock-wait-max", value::duration),
            direct_io_min_size: r.parse("fuse.direct-io-min-size", value::size),
            threads,
            http_port: r.port("fuse.http.port"),
            bind: r.host("fuse.bind"),
        };
        r.finish(config)
    }
}

#[cfg(test)]
mod tests;
