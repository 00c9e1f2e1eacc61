//! The settings of a role, from what Fluid gives its pod: upstream's file, variables and options of a mount.

use std::net::{ToSocketAddrs, UdpSocket};

use super::cfg::{CLIENT, Cfg, SERVER, WORKER};
use crate::config::keys::{self, Key};
use crate::config::source::FlagValue;
use crate::config::{Role, Settings};
use crate::error::{Error, Result};

/// Looks a variable up.
pub(super) type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Pods of several runtimes share the network of a node, on which Fluid sets aside one port for the masters and one for the
/// workers of each. Our further ports lie as far from those as its range is wide, which keeps all of them apart.
const RAFT_OFFSET: u16 = 2000;
const HTTP_OFFSET: u16 = 4000;
const CLIENT_OFFSET: u16 = 6000;

const MASTER_PORT: &str = "namespace.rpc.port";
const WORKER_PORT: &str = "storage.rpc.port";
const HOST: &str = "namespace.backend.raft.hostname";
const PEERS: &str = "namespace.backend.raft.initial-conf";
const MEMORY: &str = "storage.ram.cache.size";
const MASTERS: &str = "fs.jindocache.namespace.rpc.address";

/// A role with its settings.
#[derive(Debug)]
pub struct Launch {
    /// The role.
    pub role: Role,
    /// Its settings.
    pub settings: Settings,
}

/// Settings that a role takes over from the file; those that upstream has and we do not are left.
struct Taken(Vec<FlagValue>);

impl Taken {
    fn from(cfg: &Cfg, section: &str, role: Role, skip: impl Fn(&Key) -> bool) -> Taken {
        let mut taken = Taken(Vec::new());
        for key in keys::of_role(role).filter(|key| !skip(key)) {
            if let Some(value) = cfg.get(section, key.name) {
                taken.put(key.name, value);
            }
        }
        taken
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|one| one.key == name).map(|one| one.value.as_str())
    }

    /// Where a value came from is told as the file's.
    fn put(&mut self, name: &str, value: impl Into<String>) {
        self.remove(name);
        self.0.push(FlagValue { key: name.to_owned(), value: value.into(), flag: super::CFG.to_owned() });
    }

    fn remove(&mut self, name: &str) {
        self.0.retain(|one| one.key != name);
    }

    /// Puts a port beside another one, unless the file says which.
    fn beside(&mut self, name: &str, port: u16, offset: u16) -> Result<()> {
        if self.get(name).is_some() {
            return Ok(());
        }
        let sum = port.checked_add(offset);
        let sum =
            sum.ok_or_else(|| Error::invalid(format!("{name}: there is no port {offset} above {port}: set it")))?;
        self.put(name, sum.to_string());
        Ok(())
    }

    fn launch(self, role: Role, variables: Variables<'_>) -> Result<Launch> {
        let env = |name: &str| variables(name).map(Into::into);
        Ok(Launch { role, settings: Settings::load(role, None, &env, &self.0)? })
    }
}

fn port(text: Option<&str>, name: &str) -> Result<u16> {
    let text = text.ok_or_else(|| Error::invalid(format!("{}: {name} is missing", super::CFG)))?;
    text.parse().map_err(|_| Error::invalid(format!("{}: {name} = {text} is no port", super::CFG)))
}

/// True if a name is that of an address of this machine.
pub(super) fn is_local(host: &str) -> bool {
    let local = |address: std::net::SocketAddr| !address.ip().is_loopback() && UdpSocket::bind(address).is_ok();
    (host, 0).to_socket_addrs().is_ok_and(|mut all| all.any(local))
}

/// The name of this master among those of all.
///
/// *Errors*: `Unavailable` while none or several of them lead to this machine.
fn own_host(names: &str, machine: &str, local: &dyn Fn(&str) -> bool) -> Result<String> {
    let names: Vec<&str> = names.split(',').map(str::trim).filter(|one| !one.is_empty()).collect();
    if let [only] = names.as_slice() {
        return Ok((*only).to_owned());
    }
    let first = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    if let Some(own) = names.iter().find(|name| first(name) == first(machine)) {
        return Ok((*own).to_owned());
    }
    // On the network of its node a pod has the name of the node.
    let own: Vec<&&str> = names.iter().filter(|name| local(name)).collect();
    match own.as_slice() {
        [own] => Ok((**own).to_owned()),
        all => Err(Error::unavailable(format!(
            "{} of the names {} lead to an address of this machine, {machine}: one should",
            all.len(),
            names.join(", ")
        ))),
    }
}

/// Settings of a master.
///
/// *Errors*: `Unavailable` while it is not known which of the masters this is; those of the settings.
pub(super) fn master(
    cfg: &Cfg,
    variables: Variables<'_>,
    machine: &str,
    local: &dyn Fn(&str) -> bool,
) -> Result<Launch> {
    // Names in the variables are whole, those of the file lack the namespace.
    let mut taken = Taken::from(cfg, SERVER, Role::Master, |key| variables(&key.env()).is_some());
    let rpc = port(taken.get(MASTER_PORT), MASTER_PORT)?;
    if let Some(names) = variables("NAMESPACE_BACKEND_RAFT_HOSTNAME") {
        taken.put(HOST, own_host(&names, machine, local)?);
    }
    if taken.get(PEERS).is_none() && variables("NAMESPACE_BACKEND_RAFT_INITIAL_CONF").is_none() {
        taken.beside("namespace.backend.raft.port", rpc, RAFT_OFFSET)?;
    }
    taken.beside("namespace.http.port", rpc, HTTP_OFFSET)?;
    taken.launch(Role::Master, variables)
}

/// Settings of a worker.
///
/// *Errors*: those of the settings.
pub(super) fn worker(cfg: &Cfg, variables: Variables<'_>) -> Result<Launch> {
    let mut taken = Taken::from(cfg, WORKER, Role::Worker, |key| variables(&key.env()).is_some());
    let rpc = port(taken.get(WORKER_PORT), WORKER_PORT)?;
    if taken.get("storage.address") == Some("localhost") {
        taken.remove("storage.address");
    }
    // Upstream says the size of a cache in memory twice: here it would be two of them.
    if taken.get("storage.data-dirs").is_some() && taken.get(MEMORY).is_some() {
        taken.remove(MEMORY);
        let dirs = taken.get("storage.data-dirs").unwrap_or_default().split(',').count();
        taken.put("storage.data-dirs.mediums", vec!["MEM"; dirs].join(","));
    }
    taken.beside("storage.http.port", rpc, HTTP_OFFSET)?;
    taken.launch(Role::Worker, variables)
}

/// Settings of a client that mounts at `mount`.
///
/// *Errors*: an option that asks for another file system than the whole one; those of the settings.
pub(super) fn client(cfg: &Cfg, mount: &str, arguments: &[String]) -> Result<Launch> {
    let mut taken = Taken::from(cfg, CLIENT, Role::Fuse, |_| false);
    taken.put("fuse.mount", mount);
    taken.put("fuse.mount.create", "true");
    let mut seconds: Option<u64> = None;
    for option in arguments.iter().flat_map(|one| one.trim_start_matches("-o").split(',')).map(str::trim) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        match name {
            "attr_timeout" | "entry_timeout" => {
                let given: u64 =
                    value.parse().map_err(|_| Error::invalid(format!("-o{option}: write whole seconds")))?;
                seconds = Some(seconds.map_or(given, |other| other.min(given)));
            }
            "metrics_port" if value != "0" => taken.put("fuse.http.port", port(Some(value), name)?.to_string()),
            "uri" if !["jindo://", "jindo:///"].contains(&value) => {
                return Err(Error::invalid(format!("-o{option}: the whole namespace is mounted: leave it out")));
            }
            // How the kernel caches follows from the mounts and their policies.
            _ => {}
        }
    }
    if let Some(seconds) = seconds {
        taken.put("fuse.attr-ttl", format!("{seconds}s"));
    }
    let worker = port(cfg.get(CLIENT, "fs.jindocache.storage.rpc.port"), "fs.jindocache.storage.rpc.port")?;
    taken.beside("fuse.http.port", worker, CLIENT_OFFSET)?;
    // The file lists all masters, the variable only the first.
    taken.launch(Role::Fuse, &|_| None)
}

/// Settings of a command in the pod of a master.
///
/// *Errors*: those of the settings.
pub(super) fn command(cfg: &Cfg, variables: Variables<'_>) -> Result<Settings> {
    let named = variables("CLIENT_NAMESPACE_RPC_ADDRESS").is_some();
    Taken::from(cfg, CLIENT, Role::Ctl, |key| key.name != MASTERS || named)
        .launch(Role::Ctl, variables)
        .map(|launch| launch.settings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{FuseConfig, MasterConfig, Medium, WorkerConfig};

    const FILE: &str = include_str!("../../tests/fixtures/fluid/jindocache.cfg");

    fn cfg() -> Cfg {
        Cfg::parse(FILE).expect("good")
    }

    fn variables(pairs: &'static [(&'static str, &'static str)]) -> impl Fn(&str) -> Option<String> {
        move |name| pairs.iter().find(|(one, _)| *one == name).map(|(_, value)| (*value).to_owned())
    }

    const NAMES: &[(&str, &str)] = &[
        ("CLIENT_NAMESPACE_RPC_ADDRESS", "demo-0.default:15980,demo-1.default:15980,demo-2.default:15980"),
        ("NAMESPACE_BACKEND_RAFT_INITIAL_CONF", "demo-0.default:14728:0,demo-1.default:14728:0,demo-2.default:14728:0"),
        ("NAMESPACE_BACKEND_RAFT_HOSTNAME", "demo-0.default,demo-1.default,demo-2.default"),
        ("STORAGE_NAMESPACE_RPC_ADDRESS", "demo-0.default:15980"),
        ("STORAGE_ADDRESS", "10.0.0.9"),
    ];

    #[test]
    fn a_master_on_the_network_of_its_node_finds_its_name_by_address_and_keeps_its_ports_apart() {
        let local = |name: &str| name.starts_with("demo-1");
        let launch = master(&cfg(), &variables(NAMES), "node-7", &local).expect("launched");
        let config = MasterConfig::from_settings(&launch.settings).expect("settings");
        assert_eq!((config.host.as_str(), config.raft_port, config.grpc_port), ("demo-1.default", 14728, 15980));
        assert_eq!((config.http_port, config.peers[0].as_str()), (19980, "demo-0.default:14728"));
        assert_eq!(config.meta_dir, std::path::Path::new("/dev/shm/default/demo/jindocache/server"));
    }

    #[test]
    fn a_master_whose_name_leads_nowhere_yet_is_told_to_wait() {
        for local in [&(|_: &str| false) as &dyn Fn(&str) -> bool, &|_| true] {
            let error = master(&cfg(), &variables(NAMES), "node-7", local).expect_err("not known");
            assert_eq!(error.kind, crate::error::ErrorKind::Unavailable, "{error}");
        }
        let by_name = master(&cfg(), &variables(NAMES), "demo-2", &|_| false).expect("launched");
        assert_eq!(MasterConfig::from_settings(&by_name.settings).expect("settings").host, "demo-2.default");
    }

    #[test]
    fn a_worker_has_one_cache_in_memory_and_the_address_of_its_node() {
        let launch = worker(&cfg(), &variables(NAMES)).expect("launched");
        let config = WorkerConfig::from_settings(&launch.settings).expect("settings");
        let tiers: Vec<_> = config.tiers.iter().map(|tier| (tier.medium, tier.quota_bytes)).collect();
        assert_eq!(tiers, [(Medium::Mem, 1 << 30)]);
        assert_eq!((config.host.as_str(), config.grpc_port, config.http_port), ("10.0.0.9", 14909, 18909));
        assert_eq!(config.masters, ["demo-0.default:15980"]);
    }

    #[test]
    fn a_client_knows_all_masters_and_takes_the_shorter_time_of_its_options() {
        let options = ["-okernel_cache", "-oro", "-oattr_timeout=7200", "-oentry_timeout=60", "-ometrics_port=0"];
        let launch = client(&cfg(), "/jfs/jindofs-fuse", &options.map(str::to_owned)).expect("launched");
        let config = FuseConfig::from_settings(&launch.settings).expect("settings");
        assert_eq!((config.client.masters.len(), config.attr_ttl.as_secs(), config.http_port), (3, 60, 20909));
        assert!(config.create_mount && config.mount == std::path::Path::new("/jfs/jindofs-fuse"));
        for bad in ["-ouri=oss://b/", "-oattr_timeout=x", "-ometrics_port=99999"] {
            client(&cfg(), "/m", &[bad.to_owned()]).expect_err(bad);
        }
    }
}
