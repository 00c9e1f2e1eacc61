//! Why a command is refused, as data. What people read is made from it elsewhere (`master/wording.rs`): a text that was
//! stored would be a part of the replicated state, and releases that word it differently would hold different bytes.
//!
//! Stored are the number of the reason and its arguments. The table below is therefore a part of the disk format: a
//! number keeps its meaning for ever, and new arguments go behind the old ones. A new reason takes the next number.

use bytes::Bytes;
use jindofs_proto::store::v1 as stored;

use crate::error::ErrorKind;
use crate::types::PathProblem;

/// Most bytes of one argument that are stored: those of the longest path.
const ARGUMENT_BYTES_MAX: usize = 4096;
/// Most arguments of each sort that are taken over from a log entry.
const ARGUMENTS_MAX: usize = 8;

/// What a reason names: numbers are numbers, everything else is bytes as they were given.
trait Argument: Sized {
    fn put(&self, into: &mut stored::Refusal);
    /// The next one; `None` where it is missing.
    fn take(from: &mut Arguments<'_>) -> Option<Self>;
}

impl Argument for u64 {
    fn put(&self, into: &mut stored::Refusal) {
        into.numbers.push(*self);
    }

    fn take(from: &mut Arguments<'_>) -> Option<u64> {
        from.numbers.next().copied()
    }
}

impl Argument for Bytes {
    fn put(&self, into: &mut stored::Refusal) {
        into.names.push(cut(self));
    }

    fn take(from: &mut Arguments<'_>) -> Option<Bytes> {
        from.names.next().cloned()
    }
}

/// Arguments that are not taken yet.
struct Arguments<'a> {
    names: std::slice::Iter<'a, Bytes>,
    numbers: std::slice::Iter<'a, u64>,
}

fn cut(name: &Bytes) -> Bytes {
    name.slice(..name.len().min(ARGUMENT_BYTES_MAX))
}

/// Makes the type, and its stored form, from lines `NUMBER Reason { arguments }: Kind`.
macro_rules! reasons {
    ($($(#[$doc:meta])* $number:literal $name:ident $({ $($field:ident: $type:ty),* })?: $kind:ident,)*) => {
        /// Why a command is refused.
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[allow(missing_docs, reason = "the wording of each reason is its documentation")]
        pub enum Refusal {
            $($(#[$doc])* $name $({ $($field: $type),* })?,)*
        }

        impl Refusal {
            /// What the caller can do about it.
            pub fn kind(&self) -> ErrorKind {
                match self {
                    $(Refusal::$name { .. } => ErrorKind::$kind,)*
                }
            }

            /// As it is stored.
            pub fn to_stored(&self) -> stored::Refusal {
                let mut stored = stored::Refusal { kind: self.kind().into(), ..stored::Refusal::default() };
                match self {
                    $(Refusal::$name $({ $($field),* })? => {
                        stored.reason = $number;
                        $($($field.put(&mut stored);)*)?
                    })*
                }
                stored
            }

            /// From its stored form; `None` for a reason that only a newer release knows.
            pub fn from_stored(stored: &stored::Refusal) -> Option<Refusal> {
                let mut from = Arguments { names: stored.names.iter(), numbers: stored.numbers.iter() };
                Some(match stored.reason {
                    $($number => Refusal::$name $({ $($field: Argument::take(&mut from)?),* })?,)*
                    _ => return None,
                })
            }

            /// Every reason: number and name.
            #[cfg(test)]
            pub(crate) const TABLE: &[(u32, &str)] = &[$(($number, stringify!($name))),*];
        }
    };
}

reasons! {
    // Operations and sessions.
    1 BadOpNumbers { seq: u64, acked_below: u64 }: InvalidArgument,
    2 NoSession: SessionExpired,
    3 OutcomeForgotten { seq: u64 }: SessionExpired,
    4 BeyondWindow { seq: u64, window: u64, acked_below: u64 }: InvalidArgument,
    5 BadClientId { bytes: u64 }: InvalidArgument,
    6 DescriptionTooLong { most: u64 }: InvalidArgument,
    7 SessionEnded: SessionExpired,
    8 TooManySessions { most: u64 }: ResourceExhausted,
    9 BadReserveCount { most: u64 }: InvalidArgument,
    10 ReserveWithoutSession: SessionExpired,
    11 TooManyToExpire { most: u64 }: InvalidArgument,

    // What a request points at.
    12 NoTarget: InvalidArgument,
    13 NoSlot: InvalidArgument,
    14 InodeForSlot: InvalidArgument,
    15 RootForSlot: Busy,
    16 PathTooLong { bytes: u64 }: NameTooLong,
    17 NameTooLong { bytes: u64 }: NameTooLong,
    18 PathNotAbsolute { path: Bytes }: InvalidArgument,
    19 BadName { name: Bytes }: InvalidArgument,
    20 NameOfRoot: InvalidArgument,
    21 NoSuchName { name: Bytes }: NotFound,
    22 NoSuchInode { inode: u64 }: NotFound,
    23 InodeRemoved { inode: u64 }: NotFound,
    24 DirectoryGone { inode: u64 }: Stale,
    25 SymlinkOnTheWay { name: Bytes }: NotADirectory,
    26 NameNotADirectory { name: Bytes }: NotADirectory,
    27 InodeNotADirectory { inode: u64 }: NotADirectory,
    28 OutsideMounts { inode: u64 }: NotFound,
    29 MountReadOnly { path: Bytes }: ReadOnly,
    30 MountRemoved: NotFound,
    31 TooDeep { most: u64, inode: u64 }: NameTooLong,

    // Changes of the tree.
    32 NameExists { name: Bytes }: AlreadyExists,
    33 NameIsADirectory { name: Bytes }: IsADirectory,
    34 NameNotEmpty { name: Bytes }: NotEmpty,
    35 RootExists: AlreadyExists,
    36 RootIsNoFile: IsADirectory,
    37 PathIsNoDirectory: AlreadyExists,
    38 MountPoint { name: Bytes }: Busy,
    39 MountBelow { path: Bytes }: Busy,
    40 BatchTooLong { operations: u64, most: u64 }: InvalidArgument,
    41 UnknownOperation: InvalidArgument,
    42 InodeNumberUsed { number: u64 }: InvalidArgument,
    43 InodeNumberNotReserved { number: u64 }: SessionExpired,
    44 InodeNumberInUse { number: u64 }: InvalidArgument,
    45 ParentsWithoutPath: InvalidArgument,
    46 ParentsBelowMount: Unsupported,
    47 NotStoredYet: Busy,
    48 AcrossMounts: CrossMount,
    49 IntoItself: InvalidArgument,
    50 TreeBelowMount: Unsupported,
    51 SizeBelowMount: InvalidArgument,
    52 SizeOfDirectory: IsADirectory,
    53 SizeTooLarge { size: u64, most: u64 }: InvalidArgument,
    54 SizeOfNoFile: InvalidArgument,
    55 BadLinkTarget: InvalidArgument,
    56 LinkTargetTooLong { bytes: u64, most: u64 }: NameTooLong,

    // Changes of under-storage, and content.
    /// What the under-storage said itself. The text comes from outside with the log entry, so that it is the same on all
    /// replicas; the kind is the one of its error (see [`said`]).
    57 UnderStorageSaid { text: Bytes }: UnderStorage,
    58 NoOp: InvalidArgument,
    59 NoContent { inode: u64 }: InvalidArgument,
    60 StoredByAnother { inode: u64 }: Stale,
    61 WriteEnded { intent: u64 }: Stale,
    62 WriteOfAnother { intent: u64 }: PermissionDenied,
    63 UnknownEndInBatch: Unsupported,
    64 BadStoredContent: InvalidArgument,
    65 ChangeInBatch: Unsupported,
    66 UnderChange: Busy,
    67 IntentEnded { intent: u64 }: FailedPrecondition,
    68 UnknownChange: Internal,

    // Listings of under-storage.
    69 NotOfMount { directory: u64, mount: u64 }: NotFound,
    70 PageTooLong { most: u64 }: InvalidArgument,
    71 BadEntry: InvalidArgument,
    72 EntriesOutOfOrder: InvalidArgument,

    // Locks.
    73 NoLock: InvalidArgument,
    74 BadRange { start: u64, end: u64 }: InvalidArgument,
    75 BadLockType: InvalidArgument,
    76 LockWithoutOp: InvalidArgument,
    77 NotLockable { inode: u64 }: InvalidArgument,
    78 TooManyLocksOfFile { ranges: u64, inode: u64, most: u64 }: NoSpace,
    79 TooManyLocksOfClient { ranges: u64, most: u64 }: NoSpace,

    // Mounts.
    80 NoMount: InvalidArgument,
    81 NothingMounted { path: Bytes }: NotFound,
    82 UriTooLong { bytes: u64, most: u64 }: InvalidArgument,
    83 BadUri { uri: Bytes }: InvalidArgument,
    84 OptionsTooLarge { bytes: u64, most: u64 }: InvalidArgument,
    85 TooManyMounts { most: u64 }: ResourceExhausted,
    86 MountedThere { uri: Bytes, path: Bytes }: AlreadyExists,
    87 MountsInEachOther { path: Bytes, other: Bytes }: InvalidArgument,
    88 MountOnNoDirectory { path: Bytes }: NotADirectory,
    89 MountHidesEntries { path: Bytes }: NotEmpty,

    // Members.
    90 NoFounder: InvalidArgument,
    91 BadClusterUuid: InvalidArgument,
    92 NoFounderId: InvalidArgument,
    93 FoundedOtherwise: FailedPrecondition,
    94 BadIncarnation: InvalidArgument,
    95 DiskRetired { member: u64 }: FailedPrecondition,
    96 TooManyMembers { most: u64 }: ResourceExhausted,
    97 NotExpected { address: Bytes }: FailedPrecondition,
    98 MembersChanged { address: Bytes }: Unavailable,
    99 BadBoot: InvalidArgument,
    100 OldBoot { member: u64, boot: u64, known: u64 }: Foreign,
    101 NoSuchMember { member: u64 }: NotFound,
    102 NoMasterAt { address: Bytes }: NotFound,
    103 ExpectedAsVoter { address: Bytes }: FailedPrecondition,
    104 ExpectedAsLearner { address: Bytes }: FailedPrecondition,
    105 TooManyExpected { most: u64 }: ResourceExhausted,
    106 UncheckedMember { member: u64 }: Unavailable,
    107 MemberLeaving { member: u64 }: FailedPrecondition,
    108 MemberRetired { member: u64 }: FailedPrecondition,

    // Workers and jobs.
    109 NoWorker: InvalidArgument,
    110 BadWorkerId { most: u64 }: InvalidArgument,
    111 OldEpoch { worker: Bytes, known: u64, epoch: u64 }: Stale,
    112 TooManyWorkers { most: u64 }: ResourceExhausted,
    113 ReasonTooLong { most: u64 }: InvalidArgument,
    114 NoSuchWorker { worker: Bytes }: NotFound,
    115 TooManyJobs { most: u64 }: ResourceExhausted,
    116 BadJobEnd: InvalidArgument,
    117 NoSuchJob { job: u64 }: NotFound,
}

impl From<PathProblem> for Refusal {
    fn from(problem: PathProblem) -> Refusal {
        match problem {
            PathProblem::PathTooLong(bytes) => Refusal::PathTooLong { bytes: bytes as u64 },
            PathProblem::NameTooLong(bytes) => Refusal::NameTooLong { bytes: bytes as u64 },
            PathProblem::NotAbsolute(path) => Refusal::PathNotAbsolute { path: path.into() },
            PathProblem::BadName(name) => Refusal::BadName { name: name.into() },
            PathProblem::NameOfRoot => Refusal::NameOfRoot,
        }
    }
}

/// What an under-storage said when it refused a change, for the log entry that ends it.
pub fn said(kind: ErrorKind, text: &str) -> stored::Refusal {
    // A client's answer, and the log entry it comes with, must not depend on how much a storage has to say.
    let text = Bytes::copy_from_slice(&text.as_bytes()[..text.floor_char_boundary(ARGUMENT_BYTES_MAX)]);
    stored::Refusal { kind: kind.into(), ..Refusal::UnderStorageSaid { text }.to_stored() }
}

/// A refusal of a log entry, as it becomes an outcome. What a newer leader has written stays as it is, understood or not:
/// only its size is bounded.
pub(super) fn adopted(refusal: &stored::Refusal) -> stored::Refusal {
    stored::Refusal {
        kind: refusal.kind,
        reason: refusal.reason,
        names: refusal.names.iter().take(ARGUMENTS_MAX).map(cut).collect(),
        numbers: refusal.numbers.iter().take(ARGUMENTS_MAX).copied().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reasons that have been released, and a checksum of their lines in the order of their numbers.
    const RELEASED: (usize, u32) = (117, 0x743b_6304);

    /// A reason with arguments that can be told apart.
    fn example(number: u32) -> Refusal {
        let names = (0..4).map(|at| Bytes::from(format!("name-{at}"))).collect();
        let numbers = (7000..7004).collect();
        Refusal::from_stored(&stored::Refusal { kind: 0, reason: number, names, numbers }).expect("a known reason")
    }

    #[test]
    fn every_reason_is_stored_under_its_number_and_read_back_and_without_an_argument_it_is_unknown() {
        for (number, name) in Refusal::TABLE {
            let refusal = example(*number);
            let whole = refusal.to_stored();
            assert_eq!((whole.reason, whole.kind()), (*number, refusal.kind()), "{name}");
            assert_eq!(Refusal::from_stored(&whole), Some(refusal), "{name}");
            let fewer = stored::Refusal { names: Vec::new(), numbers: Vec::new(), ..whole.clone() };
            let has_arguments = fewer != whole;
            assert_eq!(Refusal::from_stored(&fewer).is_none(), has_arguments, "{name}");
        }
        assert_eq!(Refusal::from_stored(&stored::Refusal::default()), None, "an old row without a reason");
        assert_eq!(Refusal::from_stored(&stored::Refusal { reason: u32::MAX, ..stored::Refusal::default() }), None);
    }

    #[test]
    fn a_reason_that_was_released_keeps_its_number_kind_and_arguments() {
        let mut table = Refusal::TABLE.to_vec();
        table.sort_unstable();
        let numbers: Vec<u32> = table.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, (1..=table.len() as u32).collect::<Vec<_>>(), "without a gap, so that none is used twice");
        let line = |(number, name): &(u32, &str)| {
            let stored = example(*number).to_stored();
            format!("{number} {name} {:?} {} {}\n", stored.kind(), stored.names.len(), stored.numbers.len())
        };
        let (released, checksum) = RELEASED;
        let lines: String = table[..released].iter().map(line).collect();
        assert_eq!(crc32c::crc32c(lines.as_bytes()), checksum, "number new reasons behind the last one:\n{lines}");
    }

    #[test]
    fn what_an_under_storage_says_is_cut_between_two_characters() {
        let long = "é".repeat(ARGUMENT_BYTES_MAX);
        let cut = said(ErrorKind::NoSpace, &format!("x{long}"));
        assert_eq!((cut.kind(), cut.names[0].len()), (ErrorKind::NoSpace, ARGUMENT_BYTES_MAX - 1));
        assert!(std::str::from_utf8(&cut.names[0]).is_ok());
        assert_eq!(&said(ErrorKind::Busy, "short").names[0][..], b"short");
    }

    #[test]
    fn what_a_newer_leader_has_written_is_kept_within_bounds() {
        let newer = stored::Refusal { kind: 999, reason: 4711, names: vec!["a".into()], numbers: vec![7, u64::MAX] };
        assert_eq!(adopted(&newer), newer);
        let huge = stored::Refusal { names: vec![vec![b'x'; 1 << 20].into(); 100], numbers: vec![1; 1000], ..newer };
        let bounded = adopted(&huge);
        assert_eq!((bounded.kind, bounded.reason), (999, 4711));
        assert_eq!((bounded.names.len(), bounded.numbers.len()), (ARGUMENTS_MAX, ARGUMENTS_MAX));
        assert!(bounded.names.iter().all(|name| name.len() == ARGUMENT_BYTES_MAX));
    }
}
