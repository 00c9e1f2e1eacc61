//! Changes below mounts, carried out: the leader records a change as an intent, makes it in the under-storage, and ends the
//! intent, which makes the change here and is the client's answer. A leader that comes to power first takes over what the
//! one before has left; nothing below a mount is changed until it holds all of that.

mod batch;
mod carry_out;
mod locks;
mod removals;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use jindofs_proto::store::v1::command::Command as Kind;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::store::v1::{Command, FinishIntent};
use jindofs_proto::v1::{OpId, Target, target};
use tokio::sync::watch;

use crate::error::{Error, ErrorKind, Result};
use crate::master::metadata::Metadata;
use crate::master::raft::Handle;
use crate::master::state::plan::{self, Due, Leaves, Scope};
use crate::master::state::query;
use crate::master::store::Store;
use crate::master::wording::{answer_of, to_error};
use crate::runtime::{failpoint_io, lock};
use crate::types::ROOT_INODE;
use crate::ufs;

use locks::{Guard, Locks};
use removals::Removals;

/// Pauses between attempts while an under-storage does not answer: the last one is repeated.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(3),
];

type Running = Shared<BoxFuture<'static, Result<Answer>>>;

/// Intents of this master while it leads. Clones share them.
#[derive(Clone)]
pub struct Intents(Arc<Inner>);

struct Inner {
    handle: Handle,
    metadata: Metadata,
    storage: Arc<ufs::Registry>,
    locks: Locks,
    running: Mutex<HashMap<u64, Running>>,
    removals: Removals,
    /// Term in which everything that was left has been taken over.
    ready: watch::Sender<Option<u64>>,
}

impl std::fmt::Debug for Intents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Intents").finish_non_exhaustive()
    }
}

impl Intents {
    /// None are at work yet.
    pub fn new(handle: Handle, metadata: Metadata, storage: Arc<ufs::Registry>) -> Intents {
        Intents(Arc::new(Inner {
            handle,
            metadata,
            storage,
            locks: Locks::new(),
            running: Mutex::default(),
            removals: Removals::default(),
            ready: watch::Sender::new(None),
        }))
    }

    /// Executes a client's command, which may change something below a mount.
    ///
    /// *Errors*: the command's; `ResourceExhausted` while what it changes is being stored by a client, or a new leader takes
    /// over; `NotLeader` and those of a proposal.
    ///
    /// *Durability*: on `Ok` the change is on the disks of a quorum, and in the under-storage. *Cancel-safety*: a change that
    /// has begun is ended.
    pub async fn execute(&self, op: Option<OpId>, kind: Kind) -> Result<Answer> {
        let begins_write = matches!(kind, Kind::BeginWrite(_));
        let guard = match self.scope(&kind).await? {
            Some(scope) => {
                self.0.metadata.await_ends_of(&scope.inodes).await?;
                let guard = self.0.locks.take(&scope).await;
                self.may_begin(&scope, op.as_ref())?;
                Some(guard)
            }
            None => None,
        };
        let targets: Vec<Target> = targets(&kind).into_iter().cloned().collect();
        match self.propose(op, kind).await? {
            Answer::Pending(pending) if !begins_write => {
                let done = self.drive(pending.intent, guard, self.leaders_store().ok()).await;
                if let Err(error) = &done {
                    self.look_after_refusal(error.kind, &targets).await;
                }
                done
            }
            answer => Ok(answer),
        }
    }

    /// An under-storage has refused a change of these targets: if that is because others have changed them, what is there is
    /// shown from now on, also where it is loaded once.
    async fn look_after_refusal(&self, kind: ErrorKind, targets: &[Target]) {
        use ErrorKind::{AlreadyExists, IsADirectory, NotADirectory, NotEmpty, NotFound, Stale};
        let now = Instant::now();
        match kind {
            Stale | AlreadyExists | NotFound | IsADirectory | NotADirectory => self.look_again(targets).await,
            // Of a directory that is empty as far as is known.
            NotEmpty => {
                for target in targets {
                    if let Err(error) = self.0.metadata.refresh(target, now).await {
                        tracing::info!(%error, "a directory that others have filled is not read again");
                    }
                }
            }
            _ => {}
        }
    }

    async fn look_again(&self, targets: &[Target]) {
        for target in targets {
            if let Err(error) = self.0.metadata.look_again(target).await {
                tracing::info!(%error, "what somebody else has changed is not looked at");
            }
        }
    }

    /// Judges by what lies in the under-storage how the storing of content has ended.
    ///
    /// *Errors*: as [`Intents::execute`].
    pub async fn settle(&self, op: Option<OpId>, kind: Kind) -> Result<Answer> {
        match self.propose(op, kind).await? {
            Answer::Pending(pending) => {
                let done = self.drive(pending.intent, None, self.leaders_store().ok()).await;
                // What the content was made from may be gone, and the name with it.
                if let Ok(Answer::Attr(attr)) = &done
                    && !query::was_never_stored(attr)
                {
                    let target = Target { target: Some(target::Target::Inode(attr.inode)) };
                    self.look_again(&[target]).await;
                }
                done
            }
            answer => Ok(answer),
        }
    }

    /// What a command changes below mounts, with everything loaded that its rules must know. What is known already is not asked
    /// for again.
    async fn scope(&self, kind: &Kind) -> Result<Option<Scope>> {
        let store = self.leaders_store()?;
        if !plan::is_below_mount(&store.view(), kind) {
            return Ok(None);
        }
        let removes_directory = matches!(kind, Kind::Rmdir(_));
        for target in targets(kind) {
            if !removes_directory && plan::is_known(&store.view(), target) {
                continue;
            }
            match self.0.metadata.lookup(target).await {
                Ok(attr) if removes_directory && attr.mount_id != 0 && attr.inode != ROOT_INODE => {
                    // Empty is what is known to be.
                    self.0.metadata.list(target, b"", 1).await.map(drop).or_else(refusal)?;
                }
                Ok(_) => {}
                Err(error) => refusal(error)?,
            }
        }
        // What only this leader thinks to be so is found out when the command is applied.
        Ok(plan::scope(&self.leaders_store()?.view(), kind)?)
    }

    fn may_begin(&self, scope: &Scope, op: Option<&OpId>) -> Result<()> {
        let leads_in = *self.0.handle.leadership().borrow();
        if leads_in.is_none() {
            return Err(self.0.handle.not_leader());
        }
        if *self.0.ready.borrow() != leads_in {
            return Err(Error::new(ErrorKind::ResourceExhausted, "what the leader before has begun is taken over"));
        }
        let store = self.leaders_store()?;
        if plan::is_being_stored(&store.view(), &scope.inodes, op)? {
            return Err(Error::new(ErrorKind::ResourceExhausted, "the file is just being stored by a client"));
        }
        Ok(())
    }

    /// The store as this leader has applied it.
    fn leaders_store(&self) -> Result<Arc<Store>> {
        let handle = &self.0.handle;
        handle.store().filter(|_| handle.is_leader()).ok_or_else(|| handle.not_leader())
    }

    async fn propose(&self, op: Option<OpId>, kind: Kind) -> Result<Answer> {
        let outcome = self.0.handle.propose(Command { op, command: Some(kind), time_ns: 0 }).await?;
        failpoint_io("intent.step")?;
        answer_of(outcome)
    }

    /// Carries an intent out, whoever asks for it how often; it goes on if they give up. `begun` is the state in which a
    /// quorum has just recorded it: a leader that has it so need not ask whether it still leads.
    async fn drive(&self, id: u64, guard: Option<Guard>, begun: Option<Arc<Store>>) -> Result<Answer> {
        let running = {
            let mut all = lock(&self.0.running);
            all.entry(id).or_insert_with(|| self.start(id, guard, begun)).clone()
        };
        running.await
    }

    fn start(&self, id: u64, guard: Option<Guard>, begun: Option<Arc<Store>>) -> Running {
        let this = self.clone();
        let task = tokio::spawn(async move {
            let done = this.run(id, begun).await;
            lock(&this.0.running).remove(&id);
            drop(guard);
            done
        });
        let joined =
            task.map(|ended| ended.unwrap_or_else(|error| Err(Error::internal(format!("an intent: {error}")))));
        joined.boxed().shared()
    }

    /// Works at an intent until it has ended, or somebody else leads.
    async fn run(&self, id: u64, mut begun: Option<Arc<Store>>) -> Result<Answer> {
        let mut answer = None;
        let mut lost = false;
        let mut failures = 0;
        loop {
            match self.step(id, begun.take()).await {
                Ok(Step { said, more }) => {
                    failures = 0;
                    answer = answer.or(said.filter(|_| !lost));
                    if !more {
                        break;
                    }
                }
                Err(error) if error.kind == ErrorKind::NotLeader || !self.0.handle.is_leader() => {
                    return Err(self.0.handle.not_leader());
                }
                Err(error) => {
                    let pause = PAUSES[failures.min(PAUSES.len() - 1)];
                    tracing::warn!(intent = id, %error, ?pause, "a change of under-storage is tried again");
                    // What comes after a step that may have ended the operation is not the answer to it.
                    lost |= error.kind == ErrorKind::OutcomeUnknown;
                    failures += 1;
                    tokio::time::sleep(pause).await;
                }
            }
        }
        match answer {
            Some(Answer::Refused(refusal)) => Err(to_error(&refusal)),
            Some(answer) => Ok(answer),
            // Ended by somebody else, or unheard: the client finds its answer when it asks again.
            None => Err(Error::new(ErrorKind::OutcomeUnknown, format!("intent {id} has ended meanwhile"))),
        }
    }

    async fn step(&self, id: u64, begun: Option<Arc<Store>>) -> Result<Step> {
        let store = match begun {
            Some(store) => store,
            None => self.0.handle.read().await?,
        };
        failpoint_io("intent.step")?;
        let mut leaving = None;
        let finish = match plan::due(&store.view(), id)? {
            Due::Ended | Due::Client => return Ok(Step { said: None, more: false }),
            Due::Forgotten => FinishIntent { id, ..FinishIntent::default() },
            Due::Leader(plan) => {
                let storage = self.0.storage.open(&plan.mount.ufs_uri, &plan.mount.options)?;
                if let Some(from) = &plan.leaves {
                    // Counted until the removal is recorded: others see from it what stays.
                    let held = leaving.insert(self.0.removals.begin(from.directory));
                    self.keep_directory(&*storage, from, held.count()).await?;
                }
                carry_out::carry_out(&*storage, id, &plan).await?
            }
        };
        drop(store);
        failpoint_io("intent.step")?;
        let more = finish.leftover.is_some();
        let said = self.0.metadata.record_end(finish).await?;
        drop(leaving);
        let more = more && said.as_ref().is_some_and(|said| !matches!(said, Answer::Refused(_)));
        Ok(Step { said, more })
    }

    /// Keeps a directory from going with its last entry, where directories are there by what is in them only. `leaving`: how many
    /// removals from it are under way.
    ///
    /// *Errors*: trouble that passes. What does not pass must not keep anybody from removing things.
    async fn keep_directory(&self, storage: &dyn ufs::Ufs, from: &Leaves, leaving: usize) -> Result<()> {
        if !plan::may_be_emptied(&self.leaders_store()?.view(), from, leaving)? {
            return Ok(());
        }
        match storage.keep_directory(&from.path, leaving).await {
            Err(error) if error.is_retryable() => Err(error),
            Err(error) => {
                tracing::warn!(directory = from.directory, %error, "a directory goes with its last entry");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Takes over what the leader before has left: holds it, and carries it out in the background.
    ///
    /// *Errors*: when this master does not lead any more, or its state cannot be read.
    pub(super) async fn take_over(&self, term: u64) -> Result<()> {
        let store = self.0.handle.read().await?;
        let mut after = 0;
        loop {
            let page = query::intents(&store.view(), after)?;
            let Some((last, _)) = page.last() else { break };
            after = *last;
            for (id, row) in page {
                let locks = plan::locks(&store.view(), &row)?;
                let guard = (!locks.is_empty()).then(|| self.0.locks.try_take(&locks));
                if let Some(guard) = guard {
                    tracing::info!(intent = id, "a change that the leader before has begun is taken over");
                    let this = self.clone();
                    tokio::spawn(async move { this.drive(id, Some(guard), None).await });
                }
            }
        }
        self.0.ready.send_replace(Some(term));
        Ok(())
    }

    /// Ends what clients have left that are gone.
    ///
    /// *Errors*: when the state cannot be read.
    pub(super) fn look_after(&self) -> Result<()> {
        let Some(store) = self.0.handle.store() else { return Ok(()) };
        let mut after = 0;
        loop {
            let page = query::intents(&store.view(), after)?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = *last;
            for (id, _) in page {
                let known = lock(&self.0.running).contains_key(&id);
                if !known && !matches!(plan::due(&store.view(), id)?, Due::Client | Due::Ended) {
                    let this = self.clone();
                    tokio::spawn(async move { this.drive(id, None, None).await });
                }
            }
        }
    }
}

/// What one step of an intent brought.
struct Step {
    /// The answer to the operation, if it was this step that ended it.
    said: Option<Answer>,
    /// Another one follows.
    more: bool,
}

/// What a command points at by name.
fn targets(kind: &Kind) -> Vec<&Target> {
    let (first, second) = match kind {
        Kind::Create(request) => (&request.target, &None),
        Kind::Mkdir(request) => (&request.target, &None),
        Kind::Symlink(request) => (&request.target, &None),
        Kind::Unlink(request) => (&request.target, &None),
        Kind::Rmdir(request) => (&request.target, &None),
        Kind::SetAttr(request) => (&request.target, &None),
        Kind::Rename(request) => (&request.from, &request.to),
        _ => (&None, &None),
    };
    first.iter().chain(second).collect()
}

/// What is wrong with a target is for the command itself to say.
fn refusal(error: Error) -> Result<()> {
    use ErrorKind::{CrossMount, InvalidArgument, NameTooLong, NotADirectory, NotFound, Stale};
    match error.kind {
        NotFound | NotADirectory | InvalidArgument | NameTooLong | CrossMount | Stale => Ok(()),
        _ => Err(error),
    }
}
