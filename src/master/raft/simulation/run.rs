//! One run: events in the order of their time, until the faults are over and the cluster has recovered.

use std::sync::Mutex;

use super::actions::{Plan, Script, Step};
use super::checks::{self, Checks};
use super::clients::{Client, send_replies};
use super::disk;
use super::machine::{End, Machine};
use super::net::{Event, MS, Net, S, drop_unwanted, net};
use super::trace::Trace;
use crate::runtime::simulated::{self, Random};

/// Machines; the first of them found the cluster, the others join it later, if at all.
pub(super) const HOSTS: usize = 5;
pub(super) const FOUNDERS: usize = 3;
const CLIENTS: usize = 2;
/// How long faults go on.
const FAULTS: u64 = 30 * S;
/// How long the cluster may take to recover once they are over.
const RECOVERY: u64 = 180 * S;
const CHECK_INTERVAL: u64 = 500 * MS;

static PANICKED: Mutex<Option<String>> = Mutex::new(None);

/// What a run came to.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) hash: u64,
    pub(super) events: u64,
    pub(super) acknowledged: usize,
    pub(super) applied: u64,
    pub(super) simulated_ns: u64,
    pub(super) actions: String,
}

pub(super) struct Run {
    pub(super) machines: Vec<Machine>,
    clients: Vec<Client>,
    pub(super) checks: Checks,
    script: Script,
    random: Random,
    settled: bool,
}

/// Runs a seed in the current directory, on a thread that runs nothing else. A plan says which faults there are; without one the
/// seed does.
///
/// Panics with what must not happen.
pub(super) fn run(seed: u64, plan: Option<Plan>) -> Report {
    let mut random = Random::new(seed);
    simulated::enter(random.next());
    disk::install(random.next(), random.chance(50));
    let trace = Trace::new();
    Net::install(random.next(), HOSTS, trace);
    // What one cluster has acknowledged is not in another one that is founded in its place.
    let is_refounded =
        |plan: &Plan| plan.iter().any(|(_, step)| matches!(step, Step::FoundAnew(_) | Step::StartAndFound(_)));
    let clients = if plan.as_ref().is_some_and(is_refounded) { 0 } else { CLIENTS };
    let mut run = Run {
        machines: (0..HOSTS).map(|host| Machine::new(host, (0..FOUNDERS).collect())).collect(),
        clients: (0..clients).map(Client::new).collect(),
        checks: Checks::default(),
        script: Script::new(random.next(), plan),
        random: Random::new(random.next()),
        settled: false,
    };
    std::panic::set_hook(Box::new(|info| {
        let mut first = PANICKED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        eprintln!("{info}");
        first.get_or_insert_with(|| info.to_string());
    }));
    run.go();
    let (hash, events) = net(|net| {
        net.trace.flush();
        (net.trace.hash(), net.trace.events)
    });
    Report {
        hash,
        events,
        acknowledged: run.clients.iter().map(|client| client.acknowledged.len()).sum(),
        applied: run.checks.applied(),
        simulated_ns: simulated::now(),
        actions: run.script.log(),
    }
}

/// Number of the event that checks; those of the script have others.
pub(super) const CHECK: u64 = 0;

impl Run {
    fn go(&mut self) {
        for machine in self.machines.iter_mut().take(FOUNDERS) {
            machine.start();
        }
        let clients = self.clients.len();
        net(|net| {
            net.after(CHECK_INTERVAL, Event::Script(CHECK));
            (0..clients).for_each(|client| net.after(3 * S, Event::Client(client, 0)));
        });
        self.script.begin(&self.machines);
        while !self.settled {
            self.run_machines();
            let Some((time, event)) = net(Net::next_event) else { panic!("nothing happens any more") };
            simulated::set_now(time.max(simulated::now()));
            self.handle(event);
        }
    }

    fn run_machines(&mut self) {
        while let Some(host) = net(|net| net.runnable.pop_first()) {
            let end = self.machines[host].step();
            if let Some(why) = PANICKED.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone() {
                net(|net| net.trace.flush());
                panic!("the process of machine {host} has panicked: {why}");
            }
            self.checks.check_leader(&self.machines[host]);
            send_replies(&mut self.clients, &mut self.random);
            if let Some(end) = end {
                self.end(host, end);
            }
        }
    }

    fn end(&mut self, host: usize, end: End) {
        net(|net| net.trace.note(format_args!("end {host}")));
        match &end {
            End::PowerCut => {
                let seed = self.random.next();
                self.machines[host].cut_power(seed);
            }
            End::Stopped | End::Refused(_) | End::Died(_) => self.machines[host].kill(),
        }
        self.script.ended(&mut self.machines[host], end);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Timer(host, timer) => {
                if self.machines[host].is_due(timer) {
                    net(|net| net.runnable.insert(host));
                }
            }
            Event::Packet(conn, side) => net(|net| net.arrive(conn, side)),
            Event::Connect(from, to, answer) => net(|net| net.connect_arrives(from, to, answer)),
            Event::Connected(to, answer, socket) => {
                net(|net| net.connected(to, answer, socket));
                drop_unwanted();
            }
            Event::Client(client, attempt) => {
                self.clients[client].wake(attempt, &self.machines, &mut self.random);
            }
            Event::Script(CHECK) => self.check(),
            Event::Script(number) => self.script.act(number, &mut self.machines),
        }
    }

    fn check(&mut self) {
        self.checks.check_history(&self.machines);
        let now = simulated::now();
        if now > FAULTS && !self.script.is_over() {
            self.script.finish(&mut self.machines);
        }
        if now > FAULTS + 3 * S {
            self.clients.iter_mut().for_each(|client| client.is_done = true);
        }
        if now > FAULTS + 4 * S {
            match checks::check_settled(&self.machines, &self.clients) {
                None => self.settled = true,
                Some(why) if now > FAULTS + RECOVERY => panic!("the cluster does not recover: {why}"),
                Some(_) => {}
            }
        }
        net(|net| net.after(CHECK_INTERVAL, Event::Script(CHECK)));
    }
}
