//! Clients: each makes directories of names of its own, one after the other, and repeats what it has no answer to.

use std::cell::RefCell;
use std::collections::BTreeMap;

use jindofs_proto::store::v1::command::Command as Kind;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::store::v1::{Command, OpenSession, Outcome};
use jindofs_proto::v1::{MkdirRequest, OpId, Target, target};

use super::machine::Machine;
use super::net::{Event, MS, S, net};
use super::run::FOUNDERS;
use crate::error::{Error, ErrorKind, Result};
use crate::master::state::query;
use crate::runtime::simulated::{self, Random};

thread_local! {
    static REPLIES: RefCell<Vec<Reply>> = const { RefCell::new(Vec::new()) };
}

/// What a process answered.
struct Reply {
    client: usize,
    attempt: u64,
    host: usize,
    answer: Said,
}

enum Said {
    Wrote(Result<Outcome>),
    /// What was read of the name asked for: whether it is there.
    Read(Result<bool>),
}

/// A client.
pub(super) struct Client {
    number: usize,
    host: usize,
    /// Of the operation under way; 0 while the session is opened.
    seq: u64,
    attempt: u64,
    reading: bool,
    /// Answers on their way back, by attempt.
    answers: BTreeMap<u64, Said>,
    pub(super) acknowledged: Vec<String>,
    pub(super) is_done: bool,
}

/// The name of the directory a client makes with an operation.
fn name(client: usize, seq: u64) -> String {
    // Of different lengths, some long: the log must have entries of all kinds of sizes.
    let length = Random::new(seq << 8 | client as u64).below(if seq.is_multiple_of(7) { 240 } else { 24 });
    format!("/c{client}-{seq}-{}", "x".repeat(usize::try_from(length).unwrap_or(0)))
}

fn target(name: &str) -> Target {
    Target { target: Some(target::Target::Path(name.as_bytes().to_vec().into())) }
}

impl Client {
    pub(super) fn new(number: usize) -> Client {
        let (answers, acknowledged) = Default::default();
        Client { number, host: number, seq: 0, attempt: 0, reading: false, answers, acknowledged, is_done: false }
    }

    fn id(&self) -> Vec<u8> {
        vec![u8::try_from(self.number).unwrap_or(0) + 1; 16]
    }

    fn command(&self) -> Command {
        if self.seq == 0 {
            let open = OpenSession { client_id: self.id().into(), description: String::new() };
            return Command { command: Some(Kind::OpenSession(open)), ..Command::default() };
        }
        let op = OpId { client_id: self.id().into(), seq: self.seq, acked_below: self.seq };
        let target = Some(target(&name(self.number, self.seq)));
        let mkdir = MkdirRequest { op: Some(op.clone()), target, mode: 0o755, ..MkdirRequest::default() };
        Command { op: Some(op), command: Some(Kind::Mkdir(mkdir)), ..Command::default() }
    }

    /// Handles its timer: an answer arrives, or it is time to ask (again).
    pub(super) fn wake(&mut self, attempt: u64, machines: &[Machine], random: &mut Random) {
        if attempt < self.attempt {
            return;
        }
        if let Some(said) = self.answers.remove(&attempt) {
            self.take(said, random);
        }
        if self.is_done {
            return;
        }
        self.attempt += 1;
        if self.attempt.is_multiple_of(4) {
            self.host = usize::try_from(random.below(machines.len() as u64)).unwrap_or(0);
        }
        self.reading = self.seq > 1 && random.chance(15);
        let (client, attempt, host) = (self.number, self.attempt, self.host);
        net(|net| net.after(5 * S, Event::Client(client, attempt)));
        let Some(handle) = machines[host].handle() else {
            self.host = usize::try_from(random.below(machines.len() as u64)).unwrap_or(0);
            return net(|net| net.after(100 * MS, Event::Client(client, attempt)));
        };
        let command = self.command();
        let last = self.acknowledged.last().filter(|_| self.reading).cloned();
        machines[host].spawn(async move {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            let answer = match last {
                None => Said::Wrote(handle.propose(command).await),
                Some(name) => Said::Read(match handle.read().await {
                    Ok(store) => {
                        let found = query::lookup(&store.view(), &target(&name));
                        Ok(!found.is_err_and(|fault| Error::from(fault).kind == ErrorKind::NotFound))
                    }
                    Err(error) => Err(error),
                }),
            };
            REPLIES.with_borrow_mut(|replies| replies.push(Reply { client, attempt, host, answer }));
        });
    }

    fn take(&mut self, said: Said, random: &mut Random) {
        let other = usize::try_from(random.below(FOUNDERS as u64)).unwrap_or(0);
        match said {
            Said::Wrote(Ok(outcome)) => {
                if let Some(Answer::Refused(refusal)) = &outcome.outcome {
                    panic!("operation {} of client {} was answered with {refusal:?}", self.seq, self.number);
                }
                if self.seq > 0 {
                    self.acknowledged.push(name(self.number, self.seq));
                }
                self.seq += 1;
            }
            Said::Read(Ok(true)) => {}
            Said::Read(Ok(false)) => panic!(
                "member at machine {} was read linearizably and lacks {:?}, acknowledged before",
                self.host,
                self.acknowledged.last()
            ),
            Said::Wrote(Err(error)) | Said::Read(Err(error)) => {
                let known = error.leader.and_then(|leader| {
                    let (host, _) = leader.address.rsplit_once(':')?;
                    host.rsplit('.').next()?.parse::<usize>().ok()
                });
                self.host = known.map_or(other, |number| number - 1);
            }
        }
    }
}

/// Sends the answers of a step on their way.
pub(super) fn send_replies(clients: &mut [Client], random: &mut Random) {
    for reply in REPLIES.with_borrow_mut(std::mem::take) {
        // What a machine says after its power has failed is not heard; some answers get lost.
        let lost = net(|net| net.muted[reply.host]) || random.chance(2);
        let client = &mut clients[reply.client];
        let said = match &reply.answer {
            Said::Wrote(said) => said.as_ref().map(|_| true).map_err(|error| error.kind),
            Said::Read(said) => said.as_ref().copied().map_err(|error| error.kind),
        };
        net(|net| net.trace.note(format_args!("reply to {} {} {said:?} {lost}", reply.client, reply.attempt)));
        if lost || reply.attempt != client.attempt {
            continue;
        }
        let failed = said.is_err();
        client.answers.insert(reply.attempt, reply.answer);
        // Asked again after a while, answered or not.
        let delay = if failed { random.between(20 * MS, 300 * MS) } else { random.between(MS, 60 * MS) };
        net(|net| net.at(simulated::now() + delay, Event::Client(reply.client, reply.attempt)));
    }
}
