//! What each process of a local cluster is started with.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::DevOptions;
use super::launch::Spec;
use super::ports::Port;
use crate::config::Role;
use crate::config::keys::KEYS;
use crate::error::Result;
use crate::types::BLOCK_SIZE;

/// Share of a worker's cache that lies in memory, and the most of it.
const MEMORY_SHARE: u64 = 8;
const MEMORY_MAX: u64 = 128 << 20;

/// Every process: masters, then workers, then FUSE clients.
pub(super) fn all(options: &DevOptions) -> Result<Vec<Spec>> {
    let mut next = options.first_port;
    let mut port = || match &mut next {
        Some(number) => {
            let port = Port::exactly(*number);
            *number += 1;
            port
        }
        None => Port::any(),
    };
    let mut ports = Vec::new();
    for _ in 0..options.masters {
        ports.push((port()?, port()?, port()?));
    }
    let peers: Vec<String> = ports.iter().map(|(_, raft, _)| raft.address()).collect();
    let peers = peers.join(",");
    let mut clients: Vec<String> = ports.iter().map(|(grpc, _, _)| grpc.address()).collect();
    clients.extend(options.more_masters.iter().cloned());
    let clients = clients.join(",");
    let made = ports.into_iter().enumerate();
    let mut specs: Vec<Spec> =
        made.map(|(number, (grpc, raft, http))| master(options, number, &peers, grpc, raft, http)).collect();
    for number in 0..options.workers {
        specs.push(worker(options, number, &clients, port()?, port()?));
    }
    for (number, mount) in options.mounts.iter().enumerate() {
        specs.push(fuse(options, number, &clients, mount.clone(), port()?));
    }
    Ok(specs)
}

/// One more master, which joins where `peers` are once it is expected there.
pub(super) fn one_more_master(options: &DevOptions, number: usize, peers: &[String]) -> Result<Spec> {
    let (grpc, raft, http) = (Port::any()?, Port::any()?, Port::any()?);
    let peers: Vec<String> = peers.iter().cloned().chain([raft.address()]).collect();
    Ok(master(options, number, &peers.join(","), grpc, raft, http))
}

/// Where the memory level of a worker lies.
pub(super) fn memory_dir(options: &DevOptions, number: usize) -> PathBuf {
    let place = crate::types::version_of(options.dir.as_os_str().as_encoded_bytes());
    PathBuf::from(format!("/dev/shm/jindofs-dev-{place:016x}-{number}"))
}

fn spec(options: &DevOptions, role: Role, number: usize, settings: Vec<(&str, String)>, http: Port) -> Spec {
    let name = format!("{}-{number}", role.name());
    let mut settings: BTreeMap<String, String> =
        settings.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let of_role = |key: &str| KEYS.iter().any(|known| known.name == key && known.roles.contains(&role));
    // A key nobody knows goes to the masters, which refuse it by name.
    let takes = |key: &str| of_role(key) || (role == Role::Master && !KEYS.iter().any(|known| known.name == key));
    settings.extend(options.settings.iter().filter(|(key, _)| takes(key)).cloned());
    Spec {
        log: options.dir.join(format!("{name}.log")),
        config: options.dir.join(format!("{name}.toml")),
        env: options.env.get(&name).cloned().unwrap_or_default(),
        data: options.dir.join(&name),
        name,
        role,
        grpc: None,
        raft: None,
        http,
        mount: None,
        socket: None,
        settings,
    }
}

fn master(options: &DevOptions, number: usize, peers: &str, grpc: Port, raft: Port, http: Port) -> Spec {
    let own = options.dir.join(format!("master-{number}"));
    let data = options.meta_dirs.get(&number).cloned().unwrap_or(own);
    let settings = vec![
        ("namespace.meta-dir", data.display().to_string()),
        ("namespace.backend.raft.initial-conf", peers.to_owned()),
        ("namespace.backend.raft.hostname", "127.0.0.1".to_owned()),
        ("namespace.bind", "127.0.0.1".to_owned()),
        ("namespace.rpc.port", grpc.number().to_string()),
        ("namespace.backend.raft.port", raft.number().to_string()),
        ("namespace.http.port", http.number().to_string()),
        ("namespace.backend.raft.fast-elections", options.fast_elections.to_string()),
        // All masters of this directory are at hand: there is no cluster elsewhere to listen for.
        ("namespace.backend.raft.listen-before-founding", "false".to_owned()),
        // Several masters share one disk of a developer.
        ("namespace.meta-dir.ballast", "8MiB".to_owned()),
    ];
    let made = spec(options, Role::Master, number, settings, http);
    Spec { data, grpc: Some(grpc), raft: Some(raft), ..made }
}

fn worker(options: &DevOptions, number: usize, masters: &str, grpc: Port, http: Port) -> Spec {
    let dir = options.dir.join(format!("worker-{number}"));
    let socket = dir.join("worker.sock");
    let share = (options.worker_quota / MEMORY_SHARE).min(MEMORY_MAX);
    let memory = if share < u64::from(BLOCK_SIZE) { 0 } else { share };
    let settings = vec![
        ("storage.namespace.rpc.address", masters.to_owned()),
        ("storage.data-dirs", dir.join("cache").display().to_string()),
        ("storage.data-dirs.capacities", (options.worker_quota - memory).to_string()),
        ("storage.data-dirs.mediums", "SSD".to_owned()),
        ("storage.ram.cache.size", memory.to_string()),
        ("storage.ram.cache.dir", memory_dir(options, number).display().to_string()),
        ("storage.work-dir", dir.display().to_string()),
        ("storage.address", "127.0.0.1".to_owned()),
        ("storage.bind", "127.0.0.1".to_owned()),
        ("storage.rpc.port", grpc.number().to_string()),
        ("storage.http.port", http.number().to_string()),
        ("storage.socket", socket.display().to_string()),
    ];
    Spec { grpc: Some(grpc), socket: Some(socket), ..spec(options, Role::Worker, number, settings, http) }
}

fn fuse(options: &DevOptions, number: usize, masters: &str, mount: PathBuf, http: Port) -> Spec {
    let mut settings = vec![
        ("fs.jindocache.namespace.rpc.address", masters.to_owned()),
        ("fuse.mount", mount.display().to_string()),
        ("fuse.bind", "127.0.0.1".to_owned()),
        ("fuse.http.port", http.number().to_string()),
    ];
    if options.writable {
        let staging = options.dir.join(format!("fuse-{number}")).join("staging");
        settings.push(("fuse.writable", true.to_string()));
        settings.push(("fuse.staging.dir", staging.display().to_string()));
    }
    Spec { mount: Some(mount), ..spec(options, Role::Fuse, number, settings, http) }
}
