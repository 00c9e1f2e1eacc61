//! A cluster that histories are played on: what its clients are told is judged, and what comes behind a close is waited for.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::action::{Action, Step};
use super::closes::Behind;
use super::judge::{Answer, Verdict};
use super::model::{Area, Errno, Id, Model};
use crate::data::Site;
use crate::support::agent::Agent;
use crate::support::cluster::PATIENCE;
use crate::support::small_disk::SmallDisk;
use crate::support::wait_for;

/// How long what comes behind a close, or after a crash, may take.
pub(super) const SETTLE: Duration = Duration::from_secs(5);

/// A file that is there all the time, of which a lock tells how long a session lives.
pub(super) const WITNESS: &str = "local/witness";

/// Two clients, and where they work.
pub(super) struct World {
    pub(super) agents: Vec<Agent>,
    /// By mount: who looks at files without being a client, whose every close would end its record locks.
    pub(super) observers: Vec<Agent>,
    /// The mount of each client.
    pub(super) mounts: Vec<usize>,
    pub(super) roots: Vec<PathBuf>,
    /// What the local under-storage lies on.
    pub(super) disk: SmallDisk,
    pub(super) site: Site,
    pub(super) on: tokio::runtime::Handle,
    pub(super) histories: u32,
}

impl World {
    /// Directory of the history that is played, in every area.
    pub(super) fn history(&self) -> String {
        format!("history-{}", self.histories)
    }

    /// Where an area of the history lies below a mount.
    pub(super) fn place(&self, root: &Path, area: &str) -> PathBuf {
        let below = match area {
            "Local" => root.join("local"),
            "S3" => root.join("s3"),
            _ => root.to_owned(),
        };
        below.join(self.history())
    }

    /// Where a path of the model lies below a mount.
    pub(super) fn at(&self, mount: usize, path: &[impl AsRef<str>]) -> PathBuf {
        let place = self.place(&self.roots[mount], path[0].as_ref());
        path[1..].iter().fold(place, |at, name| at.join(name.as_ref()))
    }

    /// Where a path of the model lies in its under-storage.
    pub(super) fn key(&self, path: &[String]) -> String {
        format!("{}/{}", self.history(), path[1..].join("/"))
    }

    /// Content of a file in its under-storage.
    pub(super) fn stored(&self, path: &[String]) -> Option<Vec<u8>> {
        let key = self.key(path);
        match path[0] == Area::S3.name() {
            true => self.on.block_on(self.site.bucket.read(&key)).ok().map(|bytes| bytes.to_vec()),
            false => std::fs::read(self.site.local.join(key)).ok(),
        }
    }

    pub(super) fn command(&self, model: &Model, client: usize, action: &Action) -> Option<Value> {
        action.command(model, |path| self.at(self.mounts[client], path).to_string_lossy().into_owned())
    }

    pub(super) fn act(&mut self, model: &mut Model, client: usize, action: &Action) -> Verdict {
        if model.skips(client, action) {
            return Ok(());
        }
        match action {
            Action::Rollback(path, way) => return self.roll_back(model, client, path, *way),
            Action::Kill => return self.kill(model, client, None),
            Action::KillDuring(inner) => return self.kill(model, client, Some(inner)),
            Action::WithFault(fault, inner) => return self.act_with_fault(model, client, *fault, inner),
            _ => {}
        }
        let answer = self.answer(model, client, action);
        let told = |why| told(client, action, &answer, why);
        let behind = model.judge(client, action, &answer).map_err(told)?;
        self.settle(model, client, behind).map_err(told)
    }

    fn answer(&mut self, model: &Model, client: usize, action: &Action) -> Answer {
        let command = self.command(model, client, action).expect("what an agent does");
        let mut ask = || self.agents[client].call(&command).map_err(|refusal| refusal.errno);
        let first = ask();
        if let Action::Lock(slot, request) = action
            && first == Err(libc::EAGAIN)
            && model.may_be_refused_for_now((client, *slot), *request)
        {
            let started = Instant::now();
            return wait_for("a lock that a close gave up is free", PATIENCE, || {
                let answer = ask();
                (answer != Err(libc::EAGAIN) || started.elapsed() > SETTLE).then_some(answer)
            });
        }
        first
    }

    /// Waits for what comes behind a close, which nobody is told of.
    pub(super) fn settle(&mut self, model: &mut Model, client: usize, behind: Option<Behind>) -> Verdict {
        match behind {
            None => Ok(()),
            Some(Behind::GivenUp(node)) => self.shows_what_is_stored(model, client, node),
            Some(Behind::Gone(path)) => self.is_gone(&path),
            Some(Behind::Stored(node)) => {
                let content = model.nodes[node].newest().clone();
                match self.is_stored_as(model, node, &content, &[]) {
                    true => Ok(()),
                    false => Err(format!("{:?} is not stored behind the close", model.path_of(node))),
                }
            }
            Some(Behind::MayBeStored(node, content)) => {
                let old = model.nodes[node].newest().clone();
                if content != old && self.is_stored_as(model, node, &content, &old) {
                    model.found_stored(self.mounts[client], node, content);
                }
                Ok(())
            }
            Some(Behind::MayHaveMoved(slot, from_newest)) => {
                let path = model.path_of(model.handles[&slot].node).ok_or("a file without a name moves nowhere")?;
                let shown =
                    self.get(self.mounts[client], &path).map_err(|errno| format!("{path:?} is lost: {errno}"))?;
                match model.found_changed(slot, &shown, &from_newest) {
                    true => Ok(()),
                    false => Err(format!("{path:?} shows {} bytes that were made of no version", shown.len())),
                }
            }
        }
    }

    /// Waits until a file is in its under-storage with this content, and every mount that has not changed it shows that. False if
    /// it never is, or all of that shows `old`.
    fn is_stored_as(&mut self, model: &Model, node: Id, content: &[u8], old: &[u8]) -> bool {
        let Some(path) = model.path_of(node) else { return true };
        if model.nodes[node].area == Area::Outside {
            return true;
        }
        let started = Instant::now();
        wait_for("a file is stored behind a close", PATIENCE, || {
            let stored = self.stored(&path);
            let same: Vec<usize> =
                (0..self.observers.len()).filter(|mount| model.apart(*mount, node).is_none()).collect();
            let shown: Vec<_> = same.iter().map(|mount| self.get(*mount, &path).ok()).collect();
            let is_shown = |wanted: &[u8]| {
                stored.as_deref() == Some(wanted) && shown.iter().all(|shown| shown.as_deref() == Some(wanted))
            };
            // What is cut off and not stored is empty on its own mount, and whole everywhere else.
            let is_given_up = !old.is_empty() && shown.len() == self.observers.len() && is_shown(old);
            let is_stored = is_shown(content);
            (is_stored || is_given_up || started.elapsed() > SETTLE).then_some(is_stored)
        })
    }

    /// What a mount shows to those who open a file now.
    pub(super) fn get(&mut self, mount: usize, path: &[String]) -> Result<Vec<u8>, Errno> {
        let at = self.at(mount, path);
        self.observers[mount].get(&at).map_err(|refusal| refusal.errno)
    }

    /// What could not be stored is given up behind the last close.
    fn shows_what_is_stored(&mut self, model: &Model, client: usize, node: Id) -> Verdict {
        let Some(path) = model.path_of(node) else { return Ok(()) };
        let started = Instant::now();
        wait_for("a file shows what is stored again", PATIENCE, || {
            let seen = self.get(self.mounts[client], &path);
            if seen.as_ref() == Ok(model.nodes[node].newest()) {
                return Some(Ok(()));
            }
            let seen = seen.map(|bytes| bytes.len());
            (started.elapsed() > SETTLE).then(|| Err(format!("{path:?} never shows what is stored: {seen:?}")))
        })
    }

    /// A file that was never stored, and will not be, leaves nothing.
    pub(super) fn is_gone(&mut self, path: &[String]) -> Verdict {
        let (started, mounts) = (Instant::now(), 0..self.roots.len());
        wait_for("a file that was never stored is gone", PATIENCE, || {
            let stored = self.stored(path).map(|bytes| bytes.len());
            let is_seen = |mount: &usize| {
                let stat = json!(["stat", self.at(*mount, path)]);
                self.observers[*mount].call(&stat).map_err(|refusal| refusal.errno) != Err(libc::ENOENT)
            };
            let seen: Vec<usize> = mounts.clone().filter(is_seen).collect();
            if stored.is_none() && seen.is_empty() {
                return Some(Ok(()));
            }
            let left = || format!("{path:?} was never stored, and is seen on mounts {seen:?}; stored: {stored:?}");
            (started.elapsed() > SETTLE).then(|| Err(left()))
        })
    }

    /// Plays a history from an empty directory on.
    pub(super) fn play(&mut self, steps: &[Step]) -> Verdict {
        self.histories += 1;
        let mut model = Model::new(&self.mounts);
        self.site.s3.control.fail_next(0);
        for agent in &mut self.agents {
            agent.call(&json!(["close_all"])).expect("closed");
        }
        for area in Area::ALL {
            let made = self.place(&self.roots[0], area.name());
            self.agents[0].call(&json!(["mkdir", made, 0o755])).map_err(|error| format!("mkdir: {error:?}"))?;
        }
        for step in steps {
            for action in &step.actions {
                self.act(&mut model, step.client, action)?;
            }
        }
        for (client, slot) in model.handles.keys().copied().collect::<Vec<_>>() {
            self.act(&mut model, client, &Action::Close(slot))?;
        }
        Area::ALL.into_iter().try_for_each(|area| self.compare(&model, area))
    }
}

pub(super) fn told(client: usize, action: &Action, answer: &Answer, why: String) -> String {
    let answer = match answer {
        // Without its bytes.
        Ok(value) => value.to_string().chars().take(120).collect(),
        Err(errno) => rustix::io::Errno::from_raw_os_error(*errno).to_string(),
    };
    format!("client {client} did {action:?} and was told {answer}: {why}")
}
