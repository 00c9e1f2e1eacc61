//! Reading what the parts of a metadata directory say, before any of them is used. Changes nothing on the disk.

use std::io;

use crate::error::{Error, Result};
use crate::master::store::Store;

use super::apply::read_applied;
use super::current;
use super::disk_parts::{DiskParts, LogPart, Part, SnapshotPart, StatePart};
use super::identity::{Identity, MetaDir, Owner, Stage};
use super::snapshot;
use super::types::LogId;
use super::wal::{self, Recovered};

/// The parts of a directory, and its log, which is read once.
#[derive(Debug)]
pub(crate) struct Inspection {
    pub(crate) parts: DiskParts,
    pub(crate) log: Option<Recovered>,
}

/// Looks at every part of `dir`.
///
/// *Errors*: what the file system says; damage is part of the answer.
pub(crate) fn inspect(dir: &MetaDir) -> Result<Inspection> {
    let identity = dir.load()?;
    if matches!(&identity, Part::Present(Identity { stage: Stage::Retired, .. })) {
        let parts = DiskParts { identity, log: Part::Missing, state: Part::Missing, snapshot: Part::Missing };
        return Ok(Inspection { parts, log: None });
    }
    let at = |error: io::Error| Error::from(error).context(format!("namespace.meta-dir {}", dir.path().display()));
    let state = inspect_state(dir).map_err(at)?;
    let snapshot = snapshot::peek(&dir.snapshots()).map_err(at)?;
    let (log, recovered) = inspect_log(dir, &state, &snapshot).map_err(at)?;
    Ok(Inspection { parts: DiskParts { identity, log, state, snapshot }, log: recovered })
}

fn inspect_log(
    dir: &MetaDir,
    state: &Part<StatePart>,
    snapshot: &Part<SnapshotPart>,
) -> io::Result<(Part<LogPart>, Option<Recovered>)> {
    let recovered = match wal::recover(&dir.wal()) {
        Ok(recovered) => recovered,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Ok((Part::Damaged(error.to_string()), None));
        }
        Err(error) => return Err(error),
    };
    let held = |id: Option<LogId>| id.and_then(|id| recovered.log_id_at(id.index));
    let applied = if let Part::Present(state) = state { state.applied } else { None };
    let sealed = if let Part::Present(snapshot) = snapshot { snapshot.last } else { None };
    let part = match recovered.stamp {
        Some(stamp) => Part::Present(LogPart {
            owner: stamp.owner,
            boot: stamp.boot,
            purged: recovered.purged(),
            last: recovered.last(),
            at_applied: held(applied),
            at_sealed: held(sealed),
        }),
        None => Part::Missing,
    };
    Ok((part, Some(recovered)))
}

/// A state that was begun and has applied nothing counts as missing: the start that began it did not get further.
fn inspect_state(dir: &MetaDir) -> io::Result<Part<StatePart>> {
    let current = match current::read(&dir.state())? {
        Part::Present(current) => current,
        Part::Missing => return Ok(Part::Missing),
        Part::Damaged(why) => return Ok(Part::Damaged(why)),
    };
    let path = dir.state().join(current.number.to_string());
    if !Store::is_begun(&path)? {
        return Ok(Part::Missing);
    }
    let found = Store::open_read_only(&path).map_err(|error| error.to_string()).and_then(|store| {
        let owner = store.owner().map_err(|error| error.to_string())?;
        let (applied, _) = read_applied(&store).map_err(|error| error.to_string())?;
        Ok((owner, applied))
    });
    Ok(match found {
        Err(why) => Part::Damaged(why),
        Ok((None, None)) => Part::Missing,
        Ok((owner, applied)) => match owner.as_deref().and_then(Owner::decode) {
            Some(owner) => Part::Present(StatePart { owner, applied, installed: current.installed_id() }),
            None => Part::Damaged("it does not name the member it belongs to".to_owned()),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_cannot_be_looked_at_is_no_missing_one() {
        let temp = tempfile::tempdir().expect("tempdir");
        let dir = MetaDir::open(temp.path()).expect("open");
        let state = dir.state().join("0");
        std::fs::create_dir_all(&state).expect("mkdir");
        current::write(&dir.state(), &current::Current::begun(0)).expect("written");
        assert!(matches!(inspect(&dir).expect("begun by nobody").parts.state, Part::Missing));
        // A link to itself: every look at it fails, as with a disk that does not answer.
        std::os::unix::fs::symlink("CURRENT", state.join("CURRENT")).expect("link");
        Store::is_begun(&state).expect_err("nobody knows: a start would delete what was not begun");
        inspect(&dir).expect_err("nobody knows");
    }
}
