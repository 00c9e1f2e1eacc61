//! Whether the parts of a metadata directory belong together.
//!
//! A disk is one member's: its identity, log, state and snapshots each name their owner, and each proves how far the
//! others must have come. A disk that lost or reverted one part would vote against what it once acknowledged, or answer
//! from a state that no log explains. So [`judge`] looks at all parts before any of them is used or changed.
//!
//! One loss is harmless: the state is only a fold of the log. A state that is missing, stale or rotten is rebuilt from the
//! disk's own snapshot and log, as long as these two are whole. A snapshot that is missing or stale is harmless while the state
//! is there: the next one is built from it.
//!
//! Not detected: a copy of the whole directory from an earlier time, which is consistent in itself. The peers detect it
//! by boot counter and acknowledged index, as long as a majority of them has not been reverted with it.

use crate::runtime::planted::{PlantedFault, is_planted};

use super::identity::{Identity, Owner, Stage};
use super::types::LogId;

/// A part of the directory as it was found.
#[derive(Debug, Clone)]
pub(crate) enum Part<T> {
    /// Not there, or empty.
    Missing,
    /// There and not readable; the text says why.
    Damaged(String),
    /// There and readable.
    Present(T),
}

/// What the log says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogPart {
    pub(crate) owner: Owner,
    /// The newest start that has opened it.
    pub(crate) boot: u64,
    /// Everything up to here was purged.
    pub(crate) purged: Option<LogId>,
    /// Its end, purged entries included.
    pub(crate) last: Option<LogId>,
    /// The entry at the index that the state has applied, if the log holds it.
    pub(crate) at_applied: Option<LogId>,
    /// The entry at the index that the snapshot ends with, if the log holds it.
    pub(crate) at_sealed: Option<LogId>,
}

/// What the state says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StatePart {
    pub(crate) owner: Owner,
    pub(crate) applied: Option<LogId>,
    /// The snapshot it was installed from, if it began with one.
    pub(crate) installed: Option<LogId>,
}

/// What the newest snapshot says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SnapshotPart {
    pub(crate) owner: Owner,
    pub(crate) last: Option<LogId>,
}

/// All parts of one directory.
#[derive(Debug, Clone)]
pub(crate) struct DiskParts {
    pub(crate) identity: Part<Identity>,
    pub(crate) log: Part<LogPart>,
    pub(crate) state: Part<StatePart>,
    pub(crate) snapshot: Part<SnapshotPart>,
}

/// What may be done with a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DiskVerdict {
    /// Nothing is there: the disk of a new member.
    Empty,
    /// The parts belong together.
    Usable,
    /// The disk must not be used; the text says which part contradicts which.
    Refused(String),
}

fn refused(why: impl Into<String>) -> DiskVerdict {
    DiskVerdict::Refused(why.into())
}

fn index(id: Option<LogId>) -> u64 {
    id.map_or(0, |id| id.index)
}

/// Decides over a directory from what its parts say.
pub(crate) fn judge(parts: &DiskParts) -> DiskVerdict {
    let identity = match &parts.identity {
        Part::Damaged(why) => return refused(format!("its IDENTITY file is damaged ({why})")),
        Part::Missing => {
            let empty =
                matches!((&parts.log, &parts.state, &parts.snapshot), (Part::Missing, Part::Missing, Part::Missing));
            return if empty {
                DiskVerdict::Empty
            } else {
                refused(
                    "it holds a Raft log, a state or a snapshot but no IDENTITY file: the owner of the disk is unknown",
                )
            };
        }
        Part::Present(identity) => identity,
    };
    if identity.stage == Stage::Retired {
        // The parts are about to be set aside and are not looked at any more.
        return DiskVerdict::Usable;
    }
    if let Some(reason) = &identity.reverted {
        return refused(format!("its peers found an older copy of the disk at an earlier start ({reason})"));
    }
    let owner = identity.owner();
    let verdict = match &parts.log {
        Part::Damaged(why) => return refused(why.clone()),
        Part::Missing => judge_without_log(identity, parts),
        Part::Present(log) => judge_log(identity, log),
    };
    if verdict != DiskVerdict::Usable {
        return verdict;
    }
    if let Part::Damaged(why) = &parts.state
        && !is_rot(why)
    {
        return refused(format!("its state is damaged ({why})"));
    }
    if let Part::Present(state) = &parts.state
        && state.owner != owner
    {
        return refused(format!("its IDENTITY belongs to {owner}, but its state to {}", state.owner));
    }
    // A snapshot that is damaged counts as missing: the state may do without it.
    if let Part::Present(snapshot) = &parts.snapshot
        && snapshot.owner != owner
    {
        return refused(format!("its IDENTITY belongs to {owner}, but its snapshot to {}", snapshot.owner));
    }
    match &parts.log {
        Part::Present(log) => judge_progress(log, &parts.state, &parts.snapshot),
        Part::Missing | Part::Damaged(_) => DiskVerdict::Usable,
    }
}

/// True when the checksums of RocksDB do not match. Such a state is replaced as a missing one is. A state that cannot be read
/// for another reason, or does not name its member, needs a person.
fn is_rot(why: &str) -> bool {
    why.contains("Corruption:")
}

/// A log may be missing only until a start has opened it.
fn judge_without_log(identity: &Identity, parts: &DiskParts) -> DiskVerdict {
    let id = identity.member_id;
    if (identity.log_boot != 0 || identity.stage == Stage::Member) && !is_planted(PlantedFault::LostLogAccepted) {
        return refused(format!(
            "its IDENTITY belongs to member {id}, but its Raft log is gone: a member that lost its votes must not vote"
        ));
    }
    let is_alone = matches!((&parts.state, &parts.snapshot), (Part::Missing, Part::Missing));
    if !is_alone && !is_planted(PlantedFault::LostLogAccepted) {
        return refused(format!(
            "its IDENTITY belongs to member {id} that has not yet opened a Raft log, but it holds a state or a snapshot"
        ));
    }
    DiskVerdict::Usable
}

fn judge_log(identity: &Identity, log: &LogPart) -> DiskVerdict {
    let owner = identity.owner();
    if log.owner != owner {
        return refused(format!("its IDENTITY belongs to {owner}, but its Raft log to {}", log.owner));
    }
    if log.boot > identity.boot {
        return refused(format!(
            "its IDENTITY counts {} starts, but its Raft log was opened by start {}: the IDENTITY file is an older copy",
            identity.boot, log.boot
        ));
    }
    if log.boot < identity.log_boot {
        return refused(format!(
            "its Raft log was last opened by start {}, but its IDENTITY knows of start {}: the Raft log is an older copy",
            log.boot, identity.log_boot
        ));
    }
    DiskVerdict::Usable
}

/// State and snapshot may lag behind the log, and must then be able to catch up with it; they are never ahead of it,
/// unless a snapshot was installed and the crash came before the log was purged up to it.
fn judge_progress(log: &LogPart, state: &Part<StatePart>, snapshot: &Part<SnapshotPart>) -> DiskVerdict {
    let (applied, installed) = match state {
        Part::Present(state) => (state.applied, state.installed),
        Part::Missing | Part::Damaged(_) => (None, None),
    };
    let sealed = match snapshot {
        Part::Present(snapshot) => snapshot.last,
        Part::Missing | Part::Damaged(_) => None,
    };
    let (end, newest) = (index(log.last), index(applied).max(index(sealed)));
    if newest > end {
        let by_install = installed.is_some() && installed == applied && index(applied) == newest;
        if !by_install {
            return refused(format!(
                "its state or snapshot has applied entry {newest}, but its Raft log ends at {end}: the Raft log is an older copy"
            ));
        }
        return DiskVerdict::Usable;
    }
    for (name, proved, held) in [("state", applied, log.at_applied), ("snapshot", sealed, log.at_sealed)] {
        if let (Some(proved), Some(held)) = (proved, held)
            && proved != held
        {
            return refused(format!(
                "its {name} has applied entry {} of term {}, but its Raft log holds term {} there: they are two histories",
                proved.index, proved.leader_id.term, held.leader_id.term
            ));
        }
    }
    let begins = index(log.purged);
    if newest < begins {
        return refused(format!(
            "its state and snapshot end at entry {newest}, but its Raft log begins behind {begins}: the state cannot be rebuilt"
        ));
    }
    DiskVerdict::Usable
}

#[cfg(test)]
mod tests;
