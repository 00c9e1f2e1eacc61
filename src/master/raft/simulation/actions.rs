//! What happens to a cluster: founding, then faults as the seed wants them, then their end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::super::handle::Handle;
use super::checks::expected;
use super::disk::{self, Fault};
use super::machine::{End, Machine};
use super::net::{Event, MS, S, net};
use super::run::{FOUNDERS, HOSTS};
use crate::runtime::simulated::{self, Random};

/// Something the script does at a time.
#[derive(Debug)]
pub(super) enum Step {
    /// Asks the first master to found the cluster.
    Found,
    /// Chooses the next action.
    Choose,
    /// Starts the process of a machine, with power if it had none.
    Start(usize),
    /// Lets the machines reach each other again.
    Heal(Vec<(usize, usize)>),
    /// Ends slow links.
    Hurry(Vec<(usize, usize)>),
    /// Lets masters join on the machines that have none.
    Add,
    /// Removes the masters of these machines.
    Remove([usize; 2]),
    /// Puts an empty disk into a machine.
    LoseDisk(usize),
    /// Kills the process of a machine, which starts again.
    Kill(usize),
    /// Copies the disk of a machine as soon as it asks a cluster to admit it.
    CopyUnadmitted(usize),
    /// Puts the copy back into its machine.
    PutCopyBack,
    /// Configures the masters on these machines with each other and with nobody else, each with an empty disk.
    SetUp([usize; 3]),
    /// Asks the first of these masters to found a cluster that was not there before.
    FoundAnew([usize; 3]),
    /// Starts the masters on these machines with empty disks, and does at once what [`Step::FoundAnew`] does.
    StartAndFound([usize; 3]),
}

/// The cluster that every run begins with.
const FIRST_CLUSTER: [u8; 16] = [9; 16];
/// The one that a plan may found in its place.
const SECOND_CLUSTER: [u8; 16] = [8; 16];

/// What is done when, in nanoseconds since the start.
pub(super) type Plan = Vec<(u64, Step)>;

/// See the module.
pub(super) struct Script {
    random: Random,
    plan: Option<Plan>,
    steps: BTreeMap<u64, Step>,
    next: u64,
    over: bool,
    /// Machines whose disk was changed by hand, until they are sound again: others must not be changed meanwhile.
    altered: [bool; HOSTS],
    /// An older copy of a disk: of which machine, and where.
    copy: Option<(usize, PathBuf)>,
    copies: u64,
    log: Vec<String>,
    /// Masters on other machines than the founders' were let in.
    grown: bool,
}

impl Script {
    pub(super) fn new(seed: u64, plan: Option<Plan>) -> Script {
        Script {
            random: Random::new(seed),
            plan,
            steps: BTreeMap::new(),
            next: 1,
            over: false,
            altered: [false; HOSTS],
            copy: None,
            copies: 0,
            log: Vec::new(),
            grown: false,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    pub(super) fn log(&self) -> String {
        self.log.join("; ")
    }

    fn after(&mut self, delay: u64, step: Step) {
        let number = self.next;
        self.next += 1;
        self.steps.insert(number, step);
        net(|net| net.after(delay, Event::Script(number)));
    }

    fn note(&mut self, what: String) {
        net(|net| net.trace.note(format_args!("action {what}")));
        let seconds = simulated::now() / MS;
        if std::env::var_os("SIMULATION_LOG").is_some() {
            eprintln!("{seconds} ms: {what}");
        }
        self.log.push(format!("{seconds} ms {what}"));
    }

    pub(super) fn begin(&mut self, _machines: &[Machine]) {
        self.after(S / 2, Step::Found);
        if let Some(plan) = self.plan.take() {
            return plan.into_iter().for_each(|(at, step)| self.after(at, step));
        }
        let first = self.random.between(3 * S, 10 * S);
        self.after(first, Step::Choose);
    }

    /// A machine on which a master may run.
    fn host(&mut self) -> usize {
        let most = if self.grown { HOSTS } else { FOUNDERS };
        usize::try_from(self.random.below(most as u64)).unwrap_or(0)
    }

    /// A step is due.
    pub(super) fn act(&mut self, number: u64, machines: &mut [Machine]) {
        match self.steps.remove(&number) {
            Some(Step::Found) => self.found(machines, 0, FIRST_CLUSTER, Step::Found),
            Some(Step::FoundAnew(hosts)) => self.found(machines, hosts[0], SECOND_CLUSTER, Step::FoundAnew(hosts)),
            Some(Step::SetUp(hosts)) => self.set_up(machines, hosts),
            Some(Step::StartAndFound(hosts)) => self.start_and_found(machines, hosts),
            Some(Step::Choose) if self.over => {}
            Some(Step::Choose) => {
                self.choose(machines);
                let pause = self.random.between(200 * MS, 5 * S);
                self.after(pause, Step::Choose);
            }
            Some(Step::Start(host)) if !machines[host].is_running() => {
                machines[host].power_on();
                machines[host].start();
            }
            Some(Step::Add) => self.add(machines),
            Some(Step::Remove(leaving)) => self.remove(machines, leaving),
            Some(Step::LoseDisk(host)) => self.lose_disk(machines, host),
            Some(Step::Kill(host)) => self.kill(machines, host, false),
            Some(Step::CopyUnadmitted(host)) => {
                let identity = machines[host].handle().and_then(|handle| handle.identity());
                if identity.is_some_and(|identity| identity.is_unadmitted()) {
                    self.copy_disk(machines, host);
                } else {
                    self.after(MS, Step::CopyUnadmitted(host));
                }
            }
            Some(Step::PutCopyBack) => {
                if let Some((of, path)) = self.copy.take() {
                    self.put_copy_back(machines, of, &path);
                }
            }
            Some(Step::Start(_)) | None => {}
            Some(Step::Heal(links)) => links.into_iter().for_each(|(from, to)| net(|net| net.heal(from, to))),
            Some(Step::Hurry(links)) => {
                links.into_iter().for_each(|(from, to)| net(|net| net.set_delay(from, to, None)));
            }
        }
    }

    /// Asks a master to found a cluster, and again with the step `again` until it is a member.
    fn found(&mut self, machines: &[Machine], host: usize, cluster: [u8; 16], again: Step) {
        let Some(handle) = machines[host].handle() else { return self.after(S, again) };
        let is_member = handle.member_id() != 0 && handle.store().is_some() && handle.running().is_some();
        if is_member && handle.cluster_uuid() == Some(cluster) {
            if cluster == SECOND_CLUSTER {
                self.note(format!("founded anew on {host}"));
            }
            return;
        }
        machines[host].spawn(async move {
            let _ = handle.provision(cluster).await;
        });
        self.after(3 * S, again);
    }

    fn set_up(&mut self, machines: &mut [Machine], hosts: [usize; 3]) {
        self.note(format!("set up {hosts:?} anew"));
        for host in hosts {
            self.stop_and_wipe(&mut machines[host]);
            machines[host].peers = hosts.to_vec();
            // Until then a leader that was left alone has noticed that no quorum answers it.
            let delay = self.random.between(4 * S, 6 * S);
            self.after(delay, Step::Start(host));
        }
    }

    /// Leaves an empty disk in a machine that does not run.
    fn stop_and_wipe(&mut self, machine: &mut Machine) {
        self.altered[machine.host] = true;
        if machine.is_running() {
            machine.kill();
        }
        machine.wipe();
    }

    fn start_and_found(&mut self, machines: &mut [Machine], hosts: [usize; 3]) {
        self.note(format!("start {hosts:?} anew"));
        for host in hosts {
            self.stop_and_wipe(&mut machines[host]);
            self.after(100 * MS, Step::Start(host));
        }
        self.after(110 * MS, Step::FoundAnew(hosts));
    }

    /// All members run and are ready, and no disk was changed by hand since: one may be changed.
    fn is_sound(&mut self, machines: &[Machine]) -> bool {
        let Some(expected) = expected(machines) else { return false };
        let machines: Vec<&Machine> = machines.iter().filter(|m| expected.contains(&m.raft_address())).collect();
        let is_ready = |machine: &&Machine| machine.handle().is_some_and(|handle| handle.is_ready());
        let leads = machines.iter().any(|m| m.handle().is_some_and(|handle| handle.has_quorum()));
        let ids: std::collections::BTreeSet<u64> =
            machines.iter().filter_map(|m| m.handle().map(|handle| handle.member_id())).collect();
        let voters = machines.iter().filter_map(|m| m.handle()).find(|handle| handle.is_leader()).and_then(|handle| {
            let running = handle.running()?;
            Some(running.look(|m| m.membership_config.membership().get_joint_config().clone()))
        });
        let sound = machines.iter().all(is_ready) && leads && voters.is_some_and(|sets| sets == [ids]);
        if sound {
            self.altered = [false; HOSTS];
        }
        sound
    }

    fn kill(&mut self, machines: &mut [Machine], host: usize, with_power: bool) {
        if !machines[host].is_running() {
            return;
        }
        if with_power {
            let seed = self.random.next();
            machines[host].cut_power(seed);
        } else {
            machines[host].kill();
        }
        let delay = self.random.between(100 * MS, 6 * S);
        self.after(delay, Step::Start(host));
    }

    fn choose(&mut self, machines: &mut [Machine]) {
        let host = self.host();
        match self.random.below(24) {
            0 => {
                self.note(format!("kill {host}"));
                self.kill(machines, host, false);
            }
            1 | 2 => {
                self.note(format!("power cut {host}"));
                self.kill(machines, host, true);
            }
            3 | 4 => {
                let syncs = u32::try_from(self.random.below(40)).unwrap_or(0);
                self.note(format!("power cut {host} after {syncs} syncs"));
                disk::break_disk(host, Fault::PowerCut(syncs));
            }
            5 => {
                let some = self.random.chance(50);
                self.note(format!("power cut {}", if some { "of two" } else { "of all" }));
                for at in 0..HOSTS {
                    if (!some || at != host) && machines[at].is_running() {
                        self.kill(machines, at, true);
                    }
                }
            }
            6 | 7 => self.partition(host),
            8 => {
                let time = self.random.between(100 * MS, 8 * S);
                self.note(format!("pause {host} for {} ms", time / MS));
                machines[host].paused_until = simulated::now() + time;
            }
            9 => self.slow_down(host),
            10 | 11 => {
                let fault = if self.random.chance(60) { Fault::Sync } else { Fault::Write };
                self.note(format!("{fault:?} error at {host}"));
                disk::break_disk(host, fault);
            }
            12 => {
                let writes = u32::try_from(self.random.between(1, 40)).unwrap_or(1);
                self.note(format!("disk of {host} full for {writes} writes"));
                disk::break_disk(host, Fault::Full(writes));
            }
            13 | 14 => {
                self.note(format!("snapshot {host}"));
                if let Some(handle) = machines[host].handle() {
                    machines[host].spawn(async move { drop(handle.snapshot(true).await) });
                }
            }
            15 | 16 => {
                self.note("hand over".to_owned());
                for machine in machines.iter() {
                    if let Some(handle) = machine.handle().filter(|handle| handle.is_leader()) {
                        machine.spawn(async move { drop(handle.transfer_leader(0).await) });
                    }
                }
            }
            17 => {
                self.note(format!("stop {host}"));
                machines[host].stop();
            }
            18 => {
                let day = 86_400 * S.cast_signed();
                let skew = self.random.below(10 * 86_400 * S).cast_signed() - 5 * day;
                self.note(format!("clock of {host} off by {} s", skew / S.cast_signed()));
                machines[host].skew_ns = skew;
            }
            19 | 20 => self.change_members(machines),
            _ => self.alter(machines, host),
        }
    }

    fn partition(&mut self, host: usize) {
        let one_way = self.random.chance(40);
        let most = if self.grown { HOSTS } else { FOUNDERS };
        let mut links = vec![(host, (host + 1) % most)];
        for step in 2..most {
            if self.random.chance(60) {
                links.push((host, (host + step) % most));
            }
        }
        if !one_way {
            links.extend(links.clone().into_iter().map(|(from, to)| (to, from)));
        }
        self.note(format!("partition {links:?}"));
        links.iter().for_each(|(from, to)| net(|net| net.cut(*from, *to)));
        let time = self.random.between(300 * MS, 10 * S);
        self.after(time, Step::Heal(links));
    }

    /// Lets two more masters in, or takes two out.
    fn change_members(&mut self, machines: &mut [Machine]) {
        if !self.is_sound(machines) {
            return;
        }
        if expected(machines).unwrap_or_default().len() > FOUNDERS {
            let first = self.host();
            let second = (first + 1 + self.host() % (HOSTS - 1)) % HOSTS;
            return self.remove(machines, [first, second]);
        }
        self.add(machines);
    }

    fn remove(&mut self, machines: &[Machine], leaving: [usize; 2]) {
        let Some((host, handle)) = leader(machines) else { return };
        let leaving: Vec<String> = leaving.iter().map(|host| machines[*host].raft_address()).collect();
        self.note(format!("remove {leaving:?}"));
        machines[host].spawn(async move { drop(handle.remove_members(Vec::new(), leaving).await) });
    }

    fn add(&mut self, machines: &[Machine]) {
        let Some((host, handle)) = leader(machines) else { return };
        let expected = expected(machines).unwrap_or_default();
        self.grown = true;
        let joining: Vec<usize> = (0..HOSTS).filter(|at| !expected.contains(&machines[*at].raft_address())).collect();
        self.note(format!("add {joining:?}"));
        let addresses = joining.iter().map(|host| machines[*host].raft_address()).collect();
        machines[host].spawn(async move { drop(handle.add_members(addresses, false).await) });
        for host in joining {
            let delay = self.random.between(MS, 2 * S);
            self.after(delay, Step::Start(host));
        }
    }

    fn slow_down(&mut self, host: usize) {
        let most = self.random.between(10 * MS, 400 * MS);
        let others = (0..HOSTS).filter(|at| *at != host);
        let links: Vec<_> = others.flat_map(|at| [(host, at), (at, host)]).collect();
        self.note(format!("links of {host} with up to {} ms", most / MS));
        links.iter().for_each(|(from, to)| net(|net| net.set_delay(*from, *to, Some(most))));
        let time = self.random.between(S, 8 * S);
        self.after(time, Step::Hurry(links));
    }

    /// Does to a disk what only people and broken hardware do. The others hold all of it.
    fn alter(&mut self, machines: &mut [Machine], host: usize) {
        if !self.is_sound(machines) {
            return;
        }
        if self.random.chance(30) && self.copy.is_none() {
            return self.copy_disk(machines, host);
        }
        if let Some((of, path)) = self.copy.take().filter(|_| self.random.chance(70)) {
            return self.put_copy_back(machines, of, &path);
        }
        self.altered[host] = true;
        self.kill(machines, host, false);
        let part = self.random.below(8);
        let name = ["wal", "state", "snapshots", "IDENTITY"].get(usize::try_from(part).unwrap_or(9));
        let Some(name) = name else { return self.lose_disk(machines, host) };
        self.note(format!("lose {name} of {host}"));
        let path = machines[host].dir().join(name);
        let _ = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        disk::settle(&machines[host].dir());
    }

    /// Copies a disk, to be put back later.
    fn copy_disk(&mut self, machines: &mut [Machine], host: usize) {
        self.copies += 1;
        let path = PathBuf::from(format!("copies/{}", self.copies));
        self.note(format!("copy the disk of {host}"));
        self.kill(machines, host, false);
        disk::copy(&machines[host].dir(), &path);
        self.copy = Some((host, path));
    }

    fn put_copy_back(&mut self, machines: &mut [Machine], of: usize, path: &Path) {
        self.note(format!("put an older copy of the disk of {of} back"));
        self.altered[of] = true;
        self.kill(machines, of, false);
        machines[of].wipe();
        disk::copy(path, &machines[of].dir());
        disk::settle(&machines[of].dir());
    }

    fn lose_disk(&mut self, machines: &mut [Machine], host: usize) {
        self.altered[host] = true;
        self.kill(machines, host, false);
        self.note(format!("lose the disk of {host}"));
        machines[host].wipe();
    }

    /// The process of a machine ended by itself.
    pub(super) fn ended(&mut self, machine: &mut Machine, end: End) {
        let host = machine.host;
        self.note(format!("ended {host}: {end:?}"));
        match end {
            End::Stopped | End::PowerCut | End::Died(_) => {}
            // The disk failed at a start: the next one may succeed.
            End::Refused(why) if is_disk_error(&why) => {}
            End::Refused(why) => {
                assert!(self.altered[host], "machine {host} refuses a disk that nobody has changed: {why}");
                // People put an empty disk in.
                machine.wipe();
            }
        }
        let delay = self.random.between(100 * MS, 5 * S);
        self.after(delay, Step::Start(host));
    }

    /// Ends all faults.
    pub(super) fn finish(&mut self, machines: &mut [Machine]) {
        self.note("the faults end".to_owned());
        self.over = true;
        for from in 0..HOSTS {
            for to in (0..HOSTS).filter(|to| *to != from) {
                net(|net| {
                    net.set_delay(from, to, None);
                    net.heal(from, to);
                });
            }
        }
        for machine in machines.iter_mut() {
            disk::repair(machine.host);
            machine.skew_ns = 0;
            machine.paused_until = 0;
            let delay = self.random.between(MS, 2 * S);
            if machine.starts > 0 {
                self.after(delay, Step::Start(machine.host));
            }
        }
    }
}

/// The machine whose master leads, and its handle.
fn leader(machines: &[Machine]) -> Option<(usize, Handle)> {
    let mut handles = machines.iter().filter_map(|machine| Some((machine.host, machine.handle()?)));
    handles.find(|(_, handle)| handle.is_leader())
}

fn is_disk_error(why: &str) -> bool {
    why.contains("(os error 5)") || why.contains("(os error 28)")
}
