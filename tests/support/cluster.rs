//! A cluster of real master processes in a temporary directory, and the conditions tests wait for.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use jindofs::client::namespace::Namespace;
use jindofs::config::ClientConfig;
use jindofs::dev::{DevCluster, DevOptions};
use jindofs_proto::v1::{DigestResponse, Role, StatusResponse};

use super::wait_for;

/// Longest wait for anything that should happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Cluster {
    pub dev: DevCluster,
    pub dir: tempfile::TempDir,
}

/// A program of ours, which `make` builds before the tests: two directories above them.
pub fn binary(name: &str) -> PathBuf {
    let tests = std::env::current_exe().expect("the path of the tests");
    let path = tests.ancestors().nth(2).expect("a build directory").join(name);
    assert!(path.exists(), "{} is not built: make build", path.display());
    path
}

pub fn options(dir: &tempfile::TempDir, masters: usize) -> DevOptions {
    let mut options = DevOptions::new(dir.path().join("cluster"));
    options.binary = Some(binary("jindofs"));
    options.masters = masters;
    options.fast_elections = true;
    options
}

impl Cluster {
    pub fn start(masters: usize) -> Cluster {
        Cluster::start_with(masters, |_| {})
    }

    pub fn start_with(masters: usize, change: impl FnOnce(&mut DevOptions)) -> Cluster {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut options = options(&dir, masters);
        change(&mut options);
        let dev = DevCluster::start(options).expect("the cluster starts");
        Cluster { dev, dir }
    }

    /// Names of the masters.
    pub fn names(&self) -> Vec<String> {
        let masters = self.dev.file().processes.into_iter().filter(|process| process.role == "master");
        masters.map(|process| process.name).collect()
    }

    /// A client with a session of its own that retries for as long as a fault may last.
    pub fn client(&self) -> Namespace {
        self.client_waiting(Duration::from_secs(60))
    }

    pub fn client_waiting(&self, rpc_timeout: Duration) -> Namespace {
        Namespace::new(&ClientConfig { masters: self.dev.masters(), rpc_timeout, hard: false })
    }

    /// A client that only knows one master.
    pub fn client_of(&self, name: &str) -> Namespace {
        let address = self.dev.process(name).expect("a process").grpc.expect("an address");
        let rpc_timeout = Duration::from_secs(10);
        Namespace::new(&ClientConfig { masters: vec![address], rpc_timeout, hard: false })
    }

    pub fn statuses(&self) -> BTreeMap<String, StatusResponse> {
        let all = self.names().into_iter();
        all.filter_map(|name| self.dev.status(&name).ok().map(|status| (name, status))).collect()
    }

    /// Name and term of the leader that a quorum confirms.
    pub fn leader(&self) -> Option<(String, u64)> {
        let statuses = self.statuses().into_iter();
        statuses.filter(|(_, one)| one.quorum).max_by_key(|(_, one)| one.term).map(|(name, one)| (name, one.term))
    }

    pub fn wait_leader(&self) -> (String, u64) {
        wait_for("a leader with a quorum", PATIENCE, || self.leader())
    }

    pub fn followers(&self) -> Vec<String> {
        let (leader, _) = self.wait_leader();
        self.names().into_iter().filter(|name| *name != leader).collect()
    }

    /// Ids of the voters, once every process is a serving voter of the same configuration.
    pub fn wait_whole(&self) -> Vec<u64> {
        let count = self.names().len();
        wait_for("every master is a serving voter", PATIENCE, || {
            let statuses = self.statuses();
            let (_, leader) = statuses.iter().filter(|(_, one)| one.quorum).max_by_key(|(_, one)| one.term)?;
            let voters: Vec<u64> = leader.members.iter().filter(|m| m.role() as i32 != 3).map(|m| m.id).collect();
            let own = statuses.values().filter_map(|one| one.self_.as_ref());
            let serving = own.filter(|own| own.state == "serving" && voters.contains(&own.id)).count();
            (serving == count && voters.len() == count && leader.members.len() == count).then_some(voters)
        })
    }

    /// Waits until exactly these masters are voters and nobody else is in the group. Their ids, as the leader has them.
    pub fn wait_voters(&self, names: &[String]) -> Vec<u64> {
        let raft = |name: &String| self.dev.process(name).expect("a process").raft.expect("a master");
        let wanted: BTreeSet<String> = names.iter().map(raft).collect();
        wait_for(&format!("the voters are {names:?}"), PATIENCE, || {
            let (leader, _) = self.leader()?;
            let members = self.dev.status(&leader).ok()?.members;
            let voters = members.iter().filter(|member| member.role() != Role::Learner);
            let found: BTreeSet<String> = voters.map(|member| member.raft_address.clone()).collect();
            (found == wanted && members.len() == wanted.len()).then(|| members.iter().map(|member| member.id).collect())
        })
    }

    /// Runs `jindoctl` against all masters.
    pub fn jindoctl(&self, arguments: &[&str]) -> Output {
        let masters = self.dev.masters().join(",");
        let mut command = Command::new(binary("jindoctl"));
        command.args(["--masters", &masters]).args(arguments).output().expect("jindoctl runs")
    }

    /// Member id a running master has now.
    pub fn member_id(&self, name: &str) -> u64 {
        self.dev.status(name).ok().and_then(|status| status.self_).map_or(0, |own| own.id)
    }

    pub fn meta_dir(&self, name: &str) -> PathBuf {
        self.dev.process(name).expect("a process").meta_dir.expect("a master")
    }

    pub fn log_of(&self, name: &str) -> String {
        let path = self.dev.process(name).expect("a process").log;
        String::from_utf8_lossy(&std::fs::read(path).expect("a log")).into_owned()
    }

    /// Hands leadership to a member, which must be caught up, unless it leads.
    pub fn transfer_leader(&self, name: &str) {
        if self.wait_leader().0 == name {
            return;
        }
        let done = self.jindoctl(&["cluster", "transfer-leader", &self.member_id(name).to_string()]);
        assert!(done.status.success(), "{name} does not lead: {}", String::from_utf8_lossy(&done.stderr));
    }

    /// A metric as a running master shows it.
    pub fn metric(&self, name: &str, metric: &str) -> u64 {
        let http = self.dev.process(name).expect("a process").http;
        let mut stream = TcpStream::connect(&http).expect("connected");
        let request = format!("GET /metrics HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("asked");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("answered");
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{metric} ")));
        line.unwrap_or_else(|| panic!("no {metric} in {text}")).trim().parse().expect("a number")
    }

    /// C3: the members of the group have equal checksums at an equal index. Clients must have paused.
    pub async fn assert_digests_equal(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (leader, _) = self.wait_leader();
            let members = self.dev.status(&leader).map(|status| status.members).unwrap_or_default();
            let members: Vec<String> = members.into_iter().map(|member| member.address).collect();
            let digests = self.digests(&members).await;
            let newest = digests.iter().map(|one| one.index).max().unwrap_or(0);
            if !digests.is_empty() && digests.len() == members.len() && digests.iter().all(|one| one.index == newest) {
                for one in &digests[1..] {
                    assert_eq!(one.tables, digests[0].tables, "members {} and {}", digests[0].member_id, one.member_id);
                }
                return;
            }
            let seen: Vec<(u64, u64)> = digests.iter().map(|one| (one.member_id, one.index)).collect();
            assert!(Instant::now() < deadline, "the replicas {members:?} were never at one index: {seen:?}");
        }
    }

    async fn digests(&self, members: &[String]) -> Vec<DigestResponse> {
        let channel = self.client().channel().clone();
        let mut digests = Vec::new();
        for address in members {
            match jindofs::client::admin::digest(&channel, address, 0, Duration::from_secs(10)).await {
                Ok(digest) => digests.push(digest),
                Err(error) => println!("no digest of {address}: {error}"),
            }
        }
        digests
    }

    /// Builds a snapshot on every master and purges its log, so that a new member can only be caught up by a snapshot.
    pub async fn snapshot_and_purge(&self) {
        self.snapshot_and_purge_on(&self.names()).await;
    }

    /// As [`Cluster::snapshot_and_purge`], on some masters.
    pub async fn snapshot_and_purge_on(&self, names: &[String]) {
        let channel = self.client().channel().clone();
        for name in names {
            let address = self.dev.process(name).expect("a process").grpc.expect("a master");
            let built = jindofs::client::admin::snapshot(&channel, &address, true, Duration::from_secs(60)).await;
            built.expect("a snapshot");
        }
    }

    /// After the fault: nobody may have panicked.
    pub fn assert_no_panic(&self) {
        for name in self.names() {
            let log = self.log_of(&name);
            assert!(!log.contains("panicked"), "{name} has panicked:\n{}", tail(&log));
        }
    }
}

/// The last lines of a log, for failures.
pub fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
