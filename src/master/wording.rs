//! The words of refusals. The core says why it refuses something as data ([`Refusal`]), and stores that; what people read
//! is made here, where an answer leaves the master. So a text can be changed in any release: no log entry, row, snapshot or
//! digest depends on it. What a client does depends on the kind alone.
//!
//! A text says what is wrong, where, and what to do about it, and names each argument of its reason: the compiler warns
//! of one that is left out.

use bytes::Bytes;
use jindofs_proto::store::v1 as stored;
use jindofs_proto::store::v1::op_outcome::Outcome as One;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::v1::batch_result::Result as Body;
use jindofs_proto::v1::{BatchResponse, BatchResult, JobInfo, JobState};

use super::state::{Fault, Refusal, StoreError};
use crate::error::{Error, ErrorKind, Result};
use crate::rpc::status::to_detail;
use crate::types::{NAME_MAX, PATH_MAX};

/// How an argument appears in a text.
trait Shown {
    type As;
    fn shown(&self) -> Self::As;
}

impl Shown for u64 {
    type As = u64;

    fn shown(&self) -> u64 {
        *self
    }
}

impl Shown for Bytes {
    type As = String;

    fn shown(&self) -> String {
        String::from_utf8_lossy(self).into_owned()
    }
}

/// Makes the text of a refusal from lines `Reason { arguments } => "text"`.
macro_rules! worded {
    ($refusal:expr; $($name:ident $({ $($field:ident),* })? => $text:literal,)*) => {
        match $refusal {
            $(Refusal::$name $({ $($field),* })? => {
                $($(let $field = $field.shown();)*)?
                format!($text)
            })*
        }
    };
}

fn words(refusal: &Refusal) -> String {
    worded! { refusal;
        // Operations and sessions.
        BadOpNumbers { seq, acked_below } =>
            "operation {seq}, answers below {acked_below} acknowledged: seq begins at 1, acked_below is at most seq",
        NoSession => "this client has no session: the outcome of its unanswered operations is unknown",
        OutcomeForgotten { seq } => "operation {seq} was acknowledged by this client and its outcome is forgotten",
        BeyondWindow { seq, window, acked_below } =>
            "operation {seq} is more than {window} ahead of {acked_below}, the lowest one not acknowledged",
        BadClientId { bytes } => "a client id has 16 bytes, this one {bytes}",
        DescriptionTooLong { most } => "a description has at most {most} bytes",
        SessionEnded => "this session has ended: open one with a new client id",
        TooManySessions { most } => "{most} sessions are open: close some",
        BadReserveCount { most } => "between 1 and {most} inode numbers can be reserved",
        ReserveWithoutSession => "inode numbers are reserved for a session: open one",
        TooManyToExpire { most } => "at most {most} sessions expire with one command",

        // What a request points at.
        NoTarget => "the request has no target: give a path, an inode or an entry",
        NoSlot => "the request has no target: give a path or an entry",
        InodeForSlot => "this needs a path or (directory, name), not an inode",
        RootForSlot => "the root directory cannot be created, moved or removed",
        PathTooLong { bytes } => "path of {bytes} bytes: at most {PATH_MAX} are allowed",
        NameTooLong { bytes } => "name of {bytes} bytes: at most {NAME_MAX} are allowed",
        PathNotAbsolute { path } => "path {path:?} is not absolute: it must begin with '/'",
        BadName { name } => "{name:?} cannot be a name: it is empty, '.', '..' or holds '/' or NUL",
        NameOfRoot => "the root directory has no name of its own",
        NoSuchName { name } => "{name:?} does not exist",
        NoSuchInode { inode } => "inode {inode} does not exist",
        InodeRemoved { inode } => "inode {inode} was removed",
        DirectoryGone { inode } => "the directory with inode {inode} is gone",
        SymlinkOnTheWay { name } => "{name:?} is a symlink, which the cluster does not follow",
        NameNotADirectory { name } => "{name:?} is not a directory",
        InodeNotADirectory { inode } => "inode {inode} is not a directory",
        OutsideMounts { inode } => "inode {inode} lies outside any mount",
        MountReadOnly { path } => "the mount at {path:?} is read-only",
        MountRemoved => "the mount of this path was removed",
        TooDeep { most, inode } => "more than {most} directories above inode {inode}",

        // Changes of the tree.
        NameExists { name } => "{name:?} exists",
        NameIsADirectory { name } => "{name:?} is a directory",
        NameNotEmpty { name } => "{name:?} is not empty",
        RootExists => "the root directory exists",
        RootIsNoFile => "the root directory is not a file",
        PathIsNoDirectory => "the path exists and is not a directory",
        MountPoint { name } => "{name:?} is a mount point: remove the mount first",
        MountBelow { path } => "the mount at {path:?} is below: remove the mount first",
        BatchTooLong { operations, most } => "batch of {operations} operations: at most {most} are allowed",
        UnknownOperation => "an operation of the batch is empty or of an unknown kind",
        InodeNumberUsed { number } => "inode number {number} was given to a file before",
        InodeNumberNotReserved { number } => "inode number {number} is not reserved for this session",
        InodeNumberInUse { number } => "inode number {number} is in use",
        ParentsWithoutPath => "only a path can have missing parents",
        ParentsBelowMount => "below a mount directories are made one by one: make its parents first",
        NotStoredYet => "the file is not stored yet: close it first",
        AcrossMounts => "a rename cannot cross the border of a mount",
        IntoItself => "a directory cannot be moved into itself",
        TreeBelowMount => "below a mount a tree is removed entry by entry: empty it first",
        SizeBelowMount => "the size of a file below a mount is that of the content stored last",
        SizeOfDirectory => "a directory has no size to set",
        SizeTooLarge { size, most } => "size {size}: a file has at most {most} bytes",
        SizeOfNoFile => "only a file has a size to set",
        BadLinkTarget => "a symlink's target is not empty and holds no NUL",
        LinkTargetTooLong { bytes, most } => "symlink target of {bytes} bytes: at most {most} are allowed",

        // Changes of under-storage, and content.
        UnderStorageSaid { text } => "{text}",
        NoOp => "the request has no op: content is stored by a client with a session",
        NoContent { inode } => "inode {inode} is no file below a mount: it has no content",
        StoredByAnother { inode } => "inode {inode} was stored by somebody else since it was opened",
        WriteEnded { intent } => "intent {intent} has ended: what was stored is judged by what is there",
        WriteOfAnother { intent } => "intent {intent} is of another client",
        UnknownEndInBatch => "a write that nobody knows the end of is ended alone, not in a batch",
        BadStoredContent => "stored content has a version token, and a size that a file can have",
        ChangeInBatch => "a batch changes nothing below a mount: send its operations one by one",
        UnderChange => "it is being changed in the under-storage, or not stored there yet: try again",
        IntentEnded { intent } => "intent {intent} has ended",
        UnknownChange => "an intent to change something this release cannot change",

        // Listings of under-storage.
        NotOfMount { directory, mount } => "directory {directory} does not belong to mount {mount}",
        PageTooLong { most } => "a page has at most {most} entries",
        BadEntry => "an entry has no type, or a size or symlink target out of range",
        EntriesOutOfOrder => "the entries of a page come once each, in name order, after `after`",

        // Locks.
        NoLock => "the lock is missing",
        BadRange { start, end } => "no file has a range from byte {start} to byte {end}",
        BadLockType => "a lock is shared, exclusive, or none",
        LockWithoutOp => "the request has no op: locks belong to a client with a session",
        NotLockable { inode } => "inode {inode} is no file: only files are locked",
        TooManyLocksOfFile { ranges, inode, most } =>
            "{ranges} ranges of inode {inode} are locked: at most {most} can be",
        TooManyLocksOfClient { ranges, most } =>
            "this client has locked {ranges} ranges: at most {most} are allowed",

        // Mounts.
        NoMount => "the request has no mount",
        NothingMounted { path } => "nothing is mounted at \"{path}\"",
        UriTooLong { bytes, most } => "uri of {bytes} bytes: at most {most} are allowed",
        BadUri { uri } =>
            "uri {uri:?} cannot be mounted: it must be local:///DIRECTORY, s3://BUCKET/PREFIX or oss://BUCKET/PREFIX",
        OptionsTooLarge { bytes, most } => "mount options of {bytes} bytes: at most {most} are allowed",
        TooManyMounts { most } => "{most} mounts exist: remove one first",
        MountedThere { uri, path } => "{uri} is mounted at \"{path}\": change or remove that mount",
        MountsInEachOther { path, other } =>
            "\"{path}\" and the mount at \"{other}\" would lie in each other: choose another path",
        MountOnNoDirectory { path } => "\"{path}\" exists and is not a directory",
        MountHidesEntries { path } =>
            "directory \"{path}\" has entries a mount would hide: mount elsewhere, or move or remove them first",

        // Members.
        NoFounder => "a cluster is founded with its first member",
        BadClusterUuid => "a cluster uuid has 16 bytes",
        NoFounderId => "the founder needs its member id",
        FoundedOtherwise => "this cluster was founded with another uuid",
        BadIncarnation => "an incarnation has 16 bytes",
        DiskRetired { member } => "member {member} was retired: start with an empty metadata directory",
        TooManyMembers { most } => "the cluster has had {most} members",
        NotExpected { address } => "no master is expected at {address} any more",
        MembersChanged { address } => "the members at {address} have changed meanwhile: ask again",
        BadBoot => "a start has a boot above 0 and a nonce of 16 bytes",
        OldBoot { member, boot, known } =>
            "member {member} started with boot {boot}, but boot {known} is on record: its disk is an old copy",
        NoSuchMember { member } => "member {member} does not exist",
        NoMasterAt { address } => "no master is known or expected at {address}",
        ExpectedAsVoter { address } => "a master is already expected at {address}, as a voter",
        ExpectedAsLearner { address } => "a master is already expected at {address}, as a learner",
        TooManyExpected { most } => "more than {most} masters would be expected",
        UncheckedMember { member } =>
            "member {member} would leave too, which was not checked: the membership has changed, ask again",
        MemberLeaving { member } => "member {member} is being removed",
        MemberRetired { member } => "member {member} is retired",

        // Workers and jobs.
        NoWorker => "the request has no worker",
        BadWorkerId { most } => "a worker id has 1 to {most} bytes",
        OldEpoch { worker, known, epoch } => "worker {worker} has registered with epoch {known}, newer than {epoch}",
        TooManyWorkers { most } => "{most} workers are on record",
        ReasonTooLong { most } => "a reason has at most {most} bytes",
        NoSuchWorker { worker } => "worker {worker} is not on record",
        TooManyJobs { most } => "{most} jobs are running: cancel one or wait",
        BadJobEnd => "a job ends done, failed or cancelled",
        NoSuchJob { job } => "job {job} does not exist",
    }
}

/// What people read of a refusal.
fn text(refusal: &Refusal) -> String {
    #[cfg(test)]
    if let Some(reworded) = tests::reworded(refusal) {
        return reworded;
    }
    words(refusal)
}

/// What people read of a refusal that only a newer release understands.
fn text_of_unknown(refusal: &stored::Refusal) -> String {
    let names = refusal.names.iter().map(|name| format!(" {:?}", name.shown()));
    let arguments: String = names.chain(refusal.numbers.iter().map(|number| format!(" {number}"))).collect();
    format!(
        "refused for reason {}{arguments}, which this release has no words for: ask a master of the newest release",
        refusal.reason
    )
}

/// The error that a stored refusal is for whoever is answered with it.
pub fn to_error(refusal: &stored::Refusal) -> Error {
    let kind = match refusal.kind() {
        // A kind of a newer release.
        ErrorKind::Unspecified => ErrorKind::Internal,
        kind => kind,
    };
    Error::new(kind, Refusal::from_stored(refusal).map_or_else(|| text_of_unknown(refusal), |known| text(&known)))
}

/// The answer of a command; that it was refused is an error.
pub fn answer_of(outcome: stored::Outcome) -> Result<Answer> {
    match outcome.outcome {
        Some(Answer::Refused(refusal)) => Err(to_error(&refusal)),
        Some(answer) => Ok(answer),
        None => Err(Error::internal("a command was answered with nothing")),
    }
}

/// The answer of a batch, as its client gets it.
pub fn batch_response(batch: stored::BatchOutcome) -> BatchResponse {
    let result = |one: stored::OpOutcome| match one.outcome {
        Some(One::Done(done)) => Body::Ok(done),
        Some(One::Refused(refusal)) => Body::Error(to_detail(&to_error(&refusal))),
        None => Body::Error(to_detail(&Error::internal("an operation was answered with nothing"))),
    };
    let results = batch.outcomes.into_iter().map(|one| BatchResult { result: Some(result(one)) }).collect();
    BatchResponse { results, directories: batch.directories }
}

/// A job as it is shown: one that was cancelled says so.
pub fn shown_job(mut job: JobInfo) -> JobInfo {
    if job.state() == JobState::Cancelled && job.message.is_empty() {
        job.message = "cancelled".to_owned();
    }
    job
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        Error::new(refusal.kind(), text(&refusal))
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Error {
        Error::internal(error.to_string())
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Error {
        match fault {
            Fault::Store(error) => error.into(),
            Fault::Refused(refusal) => refusal.into(),
        }
    }
}

#[cfg(test)]
mod tests;
