use super::super::source::FlagValue;
use super::*;

fn settings(role: Role, values: &[&str]) -> Settings {
    let flags: Vec<_> = values.iter().map(|text| FlagValue::from_set(text).expect("KEY=VALUE")).collect();
    Settings::load(role, None, &|_| None, &flags).expect("loads")
}

fn master(values: &[&str]) -> Result<MasterConfig> {
    MasterConfig::from_settings(&settings(Role::Master, values))
}

#[test]
fn one_master_needs_a_meta_dir_only() {
    let config = master(&["namespace.meta-dir=/m", "namespace.backend.raft.hostname=me"]).expect("valid");
    assert_eq!(config.peers, ["me:8103"]);
    assert_eq!((config.grpc_port, config.raft_port, config.http_port), (8101, 8103, 8104));
    assert_eq!((config.heartbeat.as_millis(), config.election_max.as_millis()), (200, 1200));
    let error = master(&[]).expect_err("refused");
    assert!(error.message.contains("namespace.meta-dir is required") && error.message.contains("NAMESPACE_META_DIR"));
}

#[test]
fn initial_conf_gives_the_own_raft_port() {
    let conf = "namespace.backend.raft.initial-conf=a:14728:0,b:14729:0,c:14730:0";
    let config = master(&["namespace.meta-dir=/m", conf, "namespace.backend.raft.hostname=b"]).expect("valid");
    assert_eq!((config.raft_port, config.peers.len()), (14729, 3));
    let local = "namespace.backend.raft.initial-conf=127.0.0.1:1,127.0.0.1:2";
    let host = "namespace.backend.raft.hostname=127.0.0.1";
    let config = master(&["namespace.meta-dir=/m", local, host, "namespace.backend.raft.port=2"]).expect("valid");
    assert_eq!(config.raft_port, 2);
}

#[test]
fn every_problem_is_told_at_once() {
    let bad = ["namespace.rpc.port=8103", "namespace.backend.raft.election-min=100ms", "namespace.session.ttl=0s"];
    let message = master(&bad).expect_err("refused").message;
    for part in ["meta-dir is required", "also namespace.rpc.port's", "twice the heartbeat", "longer than zero"] {
        assert!(message.contains(part), "{part} in {message}");
    }
}

#[test]
fn several_masters_cannot_be_rocksdb() {
    let conf = "namespace.backend.raft.initial-conf=a:1,b:1,c:1";
    let message = master(&["namespace.meta-dir=/m", conf, "namespace.backend.type=rocksdb"]).expect_err("no").message;
    assert!(message.contains("one master"), "{message}");
}

#[test]
fn a_worker_has_tiers_by_medium_and_one_capacity_for_all() {
    let config = WorkerConfig::from_settings(&settings(
        Role::Worker,
        &[
            "storage.namespace.rpc.address=a:1",
            "storage.data-dirs=/ssd,/dev/shm/x",
            "storage.data-dirs.capacities=12g",
            "storage.watermark.high.ratio=99%",
        ],
    ))
    .expect("valid");
    let seen: Vec<_> = config.tiers.iter().map(|tier| (tier.medium, tier.quota_bytes >> 30)).collect();
    assert_eq!(seen, [(Medium::Mem, 12), (Medium::Ssd, 12)]);
    assert_eq!((config.tiers[0].high_percent, config.tiers[0].low_percent), (99, 85));
    assert_eq!(config.socket, Path::new("/ssd/worker/worker.sock"));
}

#[test]
fn capacities_must_match_directories_and_sockets_must_fit() {
    let long = format!("storage.socket=/{}", "x".repeat(120));
    let error = WorkerConfig::from_settings(&settings(
        Role::Worker,
        &[
            "storage.namespace.rpc.address=a:1",
            "storage.data-dirs=/a,/b,/c",
            "storage.data-dirs.capacities=1g,2g",
            &long,
        ],
    ))
    .expect_err("refused");
    assert!(error.message.contains("has 2 values") && error.message.contains("120 bytes"), "{}", error.message);
}

#[test]
fn jindoctl_gives_up_after_ten_seconds_and_a_mount_after_two_minutes() {
    let masters = "fs.jindocache.namespace.rpc.address=a:1";
    let ctl = ClientConfig::from_settings(&settings(Role::Ctl, &[masters])).expect("valid");
    let fuse = FuseConfig::from_settings(&settings(Role::Fuse, &[masters, "fuse.mount=/m"])).expect("valid");
    assert_eq!((ctl.rpc_timeout.as_secs(), fuse.client.rpc_timeout.as_secs()), (10, 120));
    let set = settings(Role::Ctl, &[masters, "fs.jindocache.rpc.timeout=30000"]);
    assert_eq!(ClientConfig::from_settings(&set).expect("valid").rpc_timeout.as_secs(), 30);
}

#[test]
fn a_writable_mount_stages_in_a_directory_of_its_own_and_cannot_be_handed_over() {
    let (masters, mount) = ("fs.jindocache.namespace.rpc.address=a:1", "fuse.mount=/m");
    let fuse =
        |more: &[&str]| FuseConfig::from_settings(&settings(Role::Fuse, &[&[masters, mount][..], more].concat()));
    let config = fuse(&[]).expect("valid");
    assert!(!config.writable && !config.shared_locks, "what cannot be written is not locked for others");
    assert!(config.staging_dir.to_string_lossy().contains("jindofs-staging-"));
    assert_eq!(config.staging_bytes, 10 << 30);
    let config = fuse(&["fuse.writable=true", "fuse.staging.dir=/s", "fuse.staging.size=8Mi"]).expect("valid");
    assert!(config.writable && config.shared_locks);
    assert!(!fuse(&["fuse.writable=true", "fuse.locks=local"]).expect("valid").shared_locks);
    assert_eq!((config.staging_dir.as_path(), config.staging_bytes), (Path::new("/s"), 8 << 20));
    let error = fuse(&["fuse.writable=true", "fuse.handover.socket=/h", "fuse.staging.size=0"]).expect_err("no");
    assert!(error.message.contains("cannot be combined") && error.message.contains("less than a block"), "{error}");
}
