//! Clients that are killed, and stores that refuse for a while.

use std::collections::BTreeSet;
use std::time::Instant;

use serde_json::json;

use super::action::{Action, StoreFault};
use super::closes::Behind;
use super::judge::{Answer, Verdict, allow};
use super::model::{Area, Errno, Id, Model};
use super::world::{SETTLE, WITNESS, World, told};
use crate::support::agent::Agent;
use crate::support::cluster::PATIENCE;
use crate::support::s3::trouble::Kind;
use crate::support::wait_for;

/// Room of the disk below the local directory.
pub(super) const DISK_SIZE: &str = "1g";

/// What calls are told whose client has died.
const DEAD: [Errno; 3] = [libc::ENOTCONN, libc::ECONNABORTED, libc::EIO];

/// Requests that a busy store refuses: fewer than a client asks again.
const BUSY_ANSWERS: u64 = 2;

/// What was being stored when its client died, and may be stored or not, as a whole.
struct InDoubt {
    node: Id,
    path: Vec<String>,
    content: Vec<u8>,
}

impl Model {
    pub(super) fn clients_of(&self, mount: usize) -> BTreeSet<usize> {
        (0..self.mounts.len()).filter(|client| self.mounts[*client] == mount).collect()
    }

    /// The client of a mount is gone, and its session has ended: with it go its handles and locks, what it had staged, and files
    /// that were never stored. Where those were.
    fn end_client(&mut self, mount: usize, in_doubt: Option<Id>) -> Vec<Vec<String>> {
        let clients = self.clients_of(mount);
        self.handles.retain(|slot, _| !clients.contains(&slot.0));
        self.maps.retain(|slot, _| !clients.contains(&slot.0));
        self.locks.drop_clients(&clients);
        self.staged.retain(|(of, _), _| *of != mount);
        self.lost.retain(|(of, _)| *of != mount);
        let never_stored = |node: &Id| {
            let one = &self.nodes[*node];
            one.maker == Some(mount) && one.area != Area::Outside && one.named && in_doubt != Some(*node)
        };
        let gone: Vec<Id> = (0..self.nodes.len()).filter(never_stored).collect();
        gone.into_iter().filter_map(|node| self.forget(node)).collect()
    }
}

impl World {
    /// Kills the client of a mount, mounts again, and waits until the session of the dead one has ended. What was acknowledged
    /// must be there then, and what was being stored is old or new as a whole.
    pub(super) fn kill(&mut self, model: &mut Model, client: usize, during: Option<&Action>) -> Verdict {
        let mount = self.mounts[client];
        let name = format!("fuse-{mount}");
        let mut witness = self.open_witness(mount);
        assert!(lock(&mut witness), "nobody else locks it");
        let command = during.and_then(|action| self.command(model, client, action));
        if let Some(command) = &command {
            self.agents[client].begin(command);
        }
        self.site.cluster.dev.kill(&name).expect("killed");
        let answer = command.map(|command| self.agents[client].finish(&command).map_err(|refusal| refusal.errno));
        for client in model.clients_of(mount) {
            self.agents[client].call(&json!(["close_all"])).expect("closed");
        }
        witness.call(&json!(["close_all"])).expect("closed");
        self.site.cluster.dev.restart(&name).expect("mounted");
        let mut witness = self.open_witness(mount);
        wait_for("the locks of a dead client are free", PATIENCE, || lock(&mut witness).then_some(()));
        let in_doubt = match during.zip(answer) {
            Some((action, answer)) => judge_last(model, client, action, &answer)?,
            None => None,
        };
        for path in model.end_client(mount, in_doubt.as_ref().map(|one| one.node)) {
            self.is_gone(&path)?;
        }
        if let Some(in_doubt) = in_doubt {
            self.resolve(model, client, in_doubt)?;
        }
        self.has_recovered(model, client)
    }

    /// A process that has a file open through a mount which it can lock.
    fn open_witness(&self, mount: usize) -> Agent {
        let mut agent = Agent::start();
        let opened = json!(["open", "witness", self.roots[mount].join(WITNESS), libc::O_RDWR, 0]);
        agent.call(&opened).expect("it is always there");
        agent
    }

    /// Finds what became of a file: its mount and its under-storage have the old content, or the new one.
    fn resolve(&mut self, model: &mut Model, client: usize, in_doubt: InDoubt) -> Verdict {
        let InDoubt { node, path, content } = in_doubt;
        let old = model.nodes[node].maker.is_none().then(|| model.nodes[node].newest().clone());
        let started = Instant::now();
        let is_new = wait_for("a file is old or new", PATIENCE, || {
            let (stored, shown) = (self.stored(&path), self.get(self.mounts[client], &path));
            let shown = match shown {
                Ok(shown) => Some(Some(shown)),
                Err(errno) => (errno == libc::ENOENT).then_some(None),
            };
            if shown == Some(stored.clone()) && (stored == old || stored.as_ref() == Some(&content)) {
                return Some(Ok(stored != old));
            }
            let told = [shown.flatten(), stored].map(|bytes| bytes.map(|bytes| bytes.len()));
            (started.elapsed() > SETTLE)
                .then(|| Err(format!("{path:?} is neither old nor new: shown, stored {told:?}")))
        })?;
        if is_new {
            model.found_stored(self.mounts[client], node, content);
        } else if old.is_none() {
            model.forget(node);
        }
        Ok(())
    }

    /// Waits until a new client and the under-storage show what the model has: what a master had not recorded yet comes now.
    fn has_recovered(&mut self, model: &Model, client: usize) -> Verdict {
        let started = Instant::now();
        wait_for("everything that was acknowledged is there", PATIENCE, || {
            let compared = Area::ALL.into_iter().try_for_each(|area| {
                self.compare_shown(model, area, self.mounts[client])?;
                self.compare_stored(model, area)
            });
            let is_over = compared.is_ok() || started.elapsed() > SETTLE;
            is_over.then(|| compared.map_err(|why| format!("after client {client} was killed: {why}")))
        })
    }

    pub(super) fn act_with_fault(
        &mut self,
        model: &mut Model,
        client: usize,
        fault: StoreFault,
        action: &Action,
    ) -> Verdict {
        if fault == StoreFault::IsBusy {
            self.site.s3.control.fail_next(BUSY_ANSWERS);
            let verdict = self.act(model, client, action);
            self.site.s3.control.fail_next(0);
            return verdict;
        }
        let slot = (client, action.slot().expect("it stores"));
        let node = model.handles[&slot].node;
        let path = model.path_of(node).expect("it has a name");
        self.set_refusing(&path, true);
        // Until what comes behind the close has been refused as well.
        let verdict = self.act_refused(model, slot, action);
        self.set_refusing(&path, false);
        verdict
    }

    fn act_refused(&mut self, model: &mut Model, slot: (usize, usize), action: &Action) -> Verdict {
        let client = slot.0;
        let errno = match model.nodes[model.handles[&slot].node].area {
            Area::S3 => libc::EACCES,
            _ => libc::ENOSPC,
        };
        let command = self.command(model, client, action).expect("what an agent does");
        let answer = self.agents[client].call(&command).map_err(|refusal| refusal.errno);
        let told = |why| told(client, action, &answer, format!("while the store refuses: {why}"));
        let closes = matches!(action, Action::Close(_));
        let behind: Option<Behind> =
            model.refused(slot, closes, errno, answer.as_ref().err().copied()).map_err(told)?;
        self.settle(model, client, behind).map_err(told)
    }

    /// Whether the store of a file refuses to take it.
    fn set_refusing(&self, path: &[String], refusing: bool) {
        match path[0] == Area::S3.name() {
            true => self.site.s3.control.troubles.deny(Kind::Put, &self.key(path), refusing),
            false => self.disk.set_full(refusing, DISK_SIZE),
        }
    }
}

/// True if the lock of the witness is free, which is taken then.
fn lock(witness: &mut Agent) -> bool {
    witness.call(&json!(["lock", "witness", "flock", "exclusive", 0, 0])).is_ok()
}

/// Judges what was answered to a close or a sync whose client was killed meanwhile; what is in doubt.
fn judge_last(model: &mut Model, client: usize, action: &Action, answer: &Answer) -> Result<Option<InDoubt>, String> {
    let (mount, slot) = (model.mounts[client], (client, action.slot().expect("it stores")));
    let node = model.handles[&slot].node;
    if answer.is_ok() {
        model.judge(client, action, answer).map_err(|why| told(client, action, answer, why))?;
        return Ok(None);
    }
    allow(answer.as_ref().err().copied(), &DEAD.map(Some)).map_err(|why| told(client, action, answer, why))?;
    let content = model.staged[&(mount, node)].content.clone();
    Ok(model.path_of(node).map(|path| InDoubt { node, path, content }))
}
