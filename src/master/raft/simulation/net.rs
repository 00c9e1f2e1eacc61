//! The simulated network: connections as TCP gives them, with delays, partitions, and machines that lose power.
//!
//! gRPC, HTTP/2 and the messages on it are the real ones: only the bytes travel here. What was sent on one connection arrives
//! in order; two connections are independent of each other.

mod socket;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::task::Waker;

use tokio::sync::oneshot;

pub(in crate::master::raft) use socket::Connector;
use socket::Socket;
pub(super) use socket::incoming;

use super::trace::Trace;
use crate::runtime::simulated::{self, Random};

pub(super) const US: u64 = 1_000;
pub(super) const MS: u64 = 1_000_000;
pub(super) const S: u64 = 1_000_000_000;

/// What happens at a time.
#[derive(Debug)]
pub(super) enum Event {
    /// A runtime has a timer then; outdated unless the number is the machine's newest.
    Timer(usize, u64),
    /// The oldest packet of a direction of a connection arrives.
    Packet(u64, usize),
    /// A request to connect arrives.
    Connect(usize, usize, Answer),
    /// An answer to a request to connect arrives.
    Connected(usize, Answer, Option<Socket>),
    /// For the simulation itself.
    Script(u64),
    /// For a client.
    Client(usize, u64),
}

type Answer = oneshot::Sender<io::Result<Socket>>;

#[derive(Debug)]
enum Packet {
    Data(Vec<u8>),
    End,
    Reset,
}

/// One direction of a connection; the index is that of the side that reads.
#[derive(Debug, Default)]
struct Pipe {
    arrived: VecDeque<u8>,
    ended: bool,
    reset: bool,
    travelling: VecDeque<Packet>,
    /// Packets that arrived at a partition.
    held: usize,
    last_arrival: u64,
    reader: Option<Waker>,
}

#[derive(Debug)]
struct Conn {
    hosts: [usize; 2],
    pipes: [Pipe; 2],
    /// The process of a side is gone, and its machine knows nothing of the connection.
    gone: [bool; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Power {
    Off,
    On,
    /// A process listens.
    Listening,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    cut: bool,
    delay_max: u64,
}

/// The network of one simulation.
#[derive(Debug)]
pub(super) struct Net {
    random: Random,
    events: BTreeMap<(u64, u64), Event>,
    serial: u64,
    conns: BTreeMap<u64, Conn>,
    accepted: Vec<(VecDeque<Socket>, Option<Waker>)>,
    links: Vec<Vec<Link>>,
    pub(super) power: Vec<Power>,
    /// Nothing leaves this machine any more.
    pub(super) muted: Vec<bool>,
    /// Machines with something to do now.
    pub(super) runnable: BTreeSet<usize>,
    /// The machine whose process runs now.
    pub(super) running: usize,
    pub(super) trace: Trace,
}

thread_local! {
    static NET: RefCell<Option<Net>> = const { RefCell::new(None) };
}

/// Uses the network of this thread.
pub(super) fn net<T>(work: impl FnOnce(&mut Net) -> T) -> T {
    NET.with_borrow_mut(|net| work(net.as_mut().expect("a simulation runs on this thread")))
}

const DELAY_MAX: u64 = 2 * MS;

impl Net {
    pub(super) fn install(seed: u64, hosts: usize, trace: Trace) {
        let link = Link { cut: false, delay_max: DELAY_MAX };
        let net = Net {
            random: Random::new(seed),
            events: BTreeMap::new(),
            serial: 0,
            conns: BTreeMap::new(),
            accepted: (0..hosts).map(|_| (VecDeque::new(), None)).collect(),
            links: vec![vec![link; hosts]; hosts],
            power: vec![Power::On; hosts],
            muted: vec![false; hosts],
            runnable: BTreeSet::new(),
            running: 0,
            trace,
        };
        NET.with_borrow_mut(|current| *current = Some(net));
    }

    pub(super) fn at(&mut self, time: u64, event: Event) {
        self.serial += 1;
        self.events.insert((time, self.serial), event);
    }

    pub(super) fn after(&mut self, delay: u64, event: Event) {
        self.at(simulated::now() + delay, event);
    }

    pub(super) fn next_event(&mut self) -> Option<(u64, Event)> {
        self.events.pop_first().map(|((time, _), event)| (time, event))
    }

    /// The delay of one packet.
    pub(super) fn delay(&mut self, from: usize, to: usize) -> u64 {
        let most = self.links[from][to].delay_max;
        // Now and then a packet waits in a queue.
        if self.random.chance(1) { self.random.between(most, most * 8) } else { self.random.between(100 * US, most) }
    }

    fn is_cut(&self, from: usize, to: usize) -> bool {
        self.links[from][to].cut
    }

    /// Cuts the way from one machine to another. What travels is kept and sent again later; some connections do not survive.
    pub(super) fn cut(&mut self, from: usize, to: usize) {
        self.links[from][to].cut = true;
        let ids: Vec<u64> = self.conns.keys().copied().collect();
        for id in ids {
            if self.conns[&id].hosts.contains(&from) && self.conns[&id].hosts.contains(&to) && self.random.chance(30) {
                self.reset(id);
            }
        }
    }

    /// A connection that both ends will find broken once they hear of each other.
    fn reset(&mut self, id: u64) {
        for side in 0..2 {
            self.send(id, side, Packet::Reset);
        }
    }

    pub(super) fn heal(&mut self, from: usize, to: usize) {
        self.links[from][to].cut = false;
        let ids: Vec<u64> = self.conns.keys().copied().collect();
        for id in ids {
            for reader in 0..2 {
                let conn = self.conns.get_mut(&id).expect("listed");
                if (conn.hosts[1 - reader], conn.hosts[reader]) != (from, to) {
                    continue;
                }
                let held = std::mem::take(&mut conn.pipes[reader].held);
                if held > 0 {
                    // Sent again by a timer of TCP that has backed off.
                    let delay = self.random.between(MS, S);
                    for _ in 0..held {
                        self.after(delay, Event::Packet(id, reader));
                    }
                }
            }
        }
    }

    pub(super) fn set_delay(&mut self, from: usize, to: usize, most: Option<u64>) {
        self.links[from][to].delay_max = most.unwrap_or(DELAY_MAX);
    }

    /// Sends to the side `reader` of a connection.
    fn send(&mut self, id: u64, reader: usize, packet: Packet) {
        let Some(conn) = self.conns.get(&id) else { return };
        let (from, to) = (conn.hosts[1 - reader], conn.hosts[reader]);
        let delay = self.delay(from, to);
        let conn = self.conns.get_mut(&id).expect("looked up");
        let pipe = &mut conn.pipes[reader];
        pipe.last_arrival = pipe.last_arrival.max(simulated::now() + delay);
        pipe.travelling.push_back(packet);
        let at = pipe.last_arrival;
        self.at(at, Event::Packet(id, reader));
    }

    pub(super) fn arrive(&mut self, id: u64, reader: usize) {
        let Some(conn) = self.conns.get(&id) else { return };
        let (from, to) = (conn.hosts[1 - reader], conn.hosts[reader]);
        let (cut, power) = (self.is_cut(from, to), self.power[to]);
        let conn = self.conns.get_mut(&id).expect("looked up");
        let pipe = &mut conn.pipes[reader];
        if cut {
            pipe.held += 1;
            return;
        }
        let Some(packet) = pipe.travelling.pop_front() else { return };
        if conn.gone[reader] {
            // A machine without power says nothing; one that has booted again does not know the connection.
            if power != Power::Off && !matches!(packet, Packet::Reset) {
                self.send(id, 1 - reader, Packet::Reset);
            }
            return;
        }
        // Neither content nor length: a manifest holds checksums of tables, and those hold names that RocksDB has drawn.
        let note = match &packet {
            Packet::Data(_) => "data",
            Packet::End => "end",
            Packet::Reset => "reset",
        };
        self.trace.note(format_args!("packet {from}>{to} #{id} {note}"));
        match packet {
            Packet::Data(data) => pipe.arrived.extend(data),
            Packet::End => pipe.ended = true,
            Packet::Reset => pipe.reset = true,
        }
        let other = conn.pipes[1 - reader].reader.take();
        let own = conn.pipes[reader].reader.take();
        for waker in own.into_iter().chain(other) {
            waker.wake();
        }
        self.runnable.insert(to);
        self.runnable.insert(from);
    }

    pub(super) fn connect_arrives(&mut self, from: usize, to: usize, answer: Answer) {
        if self.is_cut(from, to) || self.power[to] == Power::Off {
            // The caller gets no answer and gives up. Its channel stays open meanwhile.
            self.after(20 * S, Event::Connected(from, answer, None));
            return;
        }
        let delay = self.delay(to, from);
        if self.power[to] == Power::On {
            return self.after(delay, Event::Connected(from, answer, None));
        }
        self.serial += 1;
        let id = self.serial;
        let conn = Conn { hosts: [from, to], pipes: [Pipe::default(), Pipe::default()], gone: [false, false] };
        self.conns.insert(id, conn);
        self.trace.note(format_args!("connect {from}>{to} #{id}"));
        let (queue, waker) = &mut self.accepted[to];
        queue.push_back(Socket { conn: id, side: 1 });
        if let Some(waker) = waker.take() {
            waker.wake();
        }
        self.runnable.insert(to);
        self.after(delay, Event::Connected(from, answer, Some(Socket { conn: id, side: 0 })));
    }

    pub(super) fn connected(&mut self, to: usize, answer: Answer, socket: Option<Socket>) {
        let socket = socket.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionRefused));
        // One that has given up drops its socket, which ends the connection.
        let unwanted = answer.send(socket).err();
        self.runnable.insert(to);
        // Not here: its end is sent through this network.
        UNWANTED.with_borrow_mut(|all| all.extend(unwanted));
    }

    /// Ends the connections of a process that is gone. The caller drops the sockets that the process has not accepted.
    #[must_use]
    pub(super) fn forget(&mut self, host: usize) -> VecDeque<Socket> {
        for conn in self.conns.values_mut() {
            for side in 0..2 {
                conn.gone[side] |= conn.hosts[side] == host;
            }
        }
        self.conns.retain(|_, conn| conn.gone != [true, true]);
        std::mem::take(&mut self.accepted[host]).0
    }
}

thread_local! {
    static UNWANTED: RefCell<Vec<io::Result<Socket>>> = const { RefCell::new(Vec::new()) };
}

/// Drops the sockets whose callers have given up.
pub(super) fn drop_unwanted() {
    let unwanted = UNWANTED.with_borrow_mut(std::mem::take);
    drop(unwanted);
}

/// The address of a machine.
pub(super) fn address(host: usize) -> String {
    format!("10.0.0.{}", host + 1)
}

impl Net {
    /// How long the disk of a machine takes for a write and a sync.
    pub(super) fn sync_delay(&mut self, _host: usize) -> u64 {
        match self.random.below(200) {
            0 => self.random.between(100 * MS, 2 * S),
            1..6 => self.random.between(5 * MS, 100 * MS),
            _ => self.random.between(100 * US, 4 * MS),
        }
    }
}
