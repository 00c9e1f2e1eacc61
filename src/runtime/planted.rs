//! Faults of earlier versions that tests put back, to show that the simulation finds them. No build but that of tests has
//! them.

/// A fault that can be put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PlantedFault {
    /// Entries are acknowledged before they are synced.
    AckBeforeSync,
    /// A vote is not synced.
    VoteNotSynced,
    /// A truncation is not synced.
    TruncationNotSynced,
    /// A member without its log is accepted as the same member.
    LostLogAccepted,
    /// A member whose disk is an older copy is believed.
    OldCopyBelieved,
    /// A start counts a majority of all voters instead of one of each set.
    QuorumOfUnion,
    /// What is applied may be truncated.
    NoTruncationGuard,
    /// Entries are applied before they are on this disk.
    ApplyBeforeFlush,
    /// What was read at a start is not written again.
    LogNotSettled,
    /// A replaced file is not synced before its new name.
    ReplaceNotSynced,
    /// A new name of a file is not synced.
    NameNotSynced,
    /// Reads are answered without a quorum.
    ReadWithoutBarrier,
    /// A leader resumes its term after a restart.
    LeaderResumed,
    /// The boot that has opened the log is not recorded.
    LogBootNotRecorded,
    /// A new segment is used before its name is durable.
    SegmentNotSynced,
    /// The log is cut at damage, whatever was durable behind it.
    DamageCutOff,
    /// An empty disk knows no masters but those that it is configured with.
    AnnouncersIgnored,
    /// A member without a leader offers a place to an empty disk, which believes it.
    PlaceWithoutLeader,
    /// A disk that no cluster admits goes on asking for ever.
    JoiningForGood,
    /// An older copy of a disk, from before it had its member id, is admitted under that id again.
    UnnumberedCopyAdmitted,
    /// A cluster is founded before a living one that misses the disk had the time to announce itself.
    FoundedUnheard,
}

#[cfg(test)]
impl PlantedFault {
    /// All of them.
    pub(crate) const ALL: [PlantedFault; 21] = [
        PlantedFault::AckBeforeSync,
        PlantedFault::VoteNotSynced,
        PlantedFault::TruncationNotSynced,
        PlantedFault::LostLogAccepted,
        PlantedFault::OldCopyBelieved,
        PlantedFault::QuorumOfUnion,
        PlantedFault::NoTruncationGuard,
        PlantedFault::ApplyBeforeFlush,
        PlantedFault::LogNotSettled,
        PlantedFault::ReplaceNotSynced,
        PlantedFault::NameNotSynced,
        PlantedFault::ReadWithoutBarrier,
        PlantedFault::LeaderResumed,
        PlantedFault::LogBootNotRecorded,
        PlantedFault::SegmentNotSynced,
        PlantedFault::DamageCutOff,
        PlantedFault::AnnouncersIgnored,
        PlantedFault::PlaceWithoutLeader,
        PlantedFault::JoiningForGood,
        PlantedFault::UnnumberedCopyAdmitted,
        PlantedFault::FoundedUnheard,
    ];
}

/// True only in a test that has put this fault back.
#[cfg(not(test))]
pub(crate) const fn is_planted(_: PlantedFault) -> bool {
    false
}

/// True only in a test that has put this fault back.
#[cfg(test)]
pub(crate) fn is_planted(fault: PlantedFault) -> bool {
    super::simulated::planted_fault() == Some(fault)
}
