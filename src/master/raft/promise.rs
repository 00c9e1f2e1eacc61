//! The promise of an empty disk to a founding.
//!
//! A cluster is founded only if every configured master is empty, and an empty disk may at the same time find another
//! cluster to join. So the founder first shows its peers that it is about to found ([`Attempt`]). Each peer promises, on
//! its disk, to join that cluster and no other, and shows the promise. The founder records the founding only when it has
//! seen the promises of all of them, given to this very attempt.
//!
//! A promise ends when the founded cluster has admitted the disk, or by the word of the founder, by no time: a founder that is silent may have recorded the founding. It ends
//! when the founder says that it is empty, or belongs elsewhere: then it has not founded that cluster, or has lost it. The
//! founder shows the attempt before it asks and until the founding is recorded, so it never says so in between.

use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::runtime::{random_id, sync_dir};

use super::disk_parts::Part;
use super::identity::MetaDir;
use super::record_file;

const FILE: &str = "PROMISE";
const FORMAT: u32 = 1;

/// What an empty disk has promised, as it stands in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Promise {
    format: u32,
    /// Raft address of the founder: the first configured master.
    pub(crate) founder: String,
    #[serde(with = "uuid::serde::simple")]
    cluster: uuid::Uuid,
    #[serde(with = "uuid::serde::simple")]
    attempt: uuid::Uuid,
}

impl Promise {
    pub(crate) fn new(founder: &str, cluster: [u8; 16], attempt: [u8; 16]) -> Promise {
        Promise {
            format: FORMAT,
            founder: founder.to_owned(),
            cluster: uuid::Uuid::from_bytes(cluster),
            attempt: uuid::Uuid::from_bytes(attempt),
        }
    }

    /// The cluster that is founded.
    pub(crate) fn cluster(&self) -> [u8; 16] {
        *self.cluster.as_bytes()
    }

    /// The attempt of the founder that the promise was given to.
    pub(crate) fn attempt(&self) -> [u8; 16] {
        *self.attempt.as_bytes()
    }

    /// Reads the promise of an empty disk.
    ///
    /// *Errors*: `FailedPrecondition` with the way out for a file that cannot be understood: it may hold a promise that was
    /// relied on.
    pub(crate) fn load(dir: &MetaDir) -> Result<Option<Promise>> {
        let file = dir.path().join(FILE);
        match record_file::read(&file, FORMAT).map_err(|error| Error::from(error).context(file.display()))? {
            Part::Missing => Ok(None),
            Part::Present(promise) => Ok(Some(promise)),
            Part::Damaged(why) => Err(dir.refuse(format!("its {FILE} file is damaged ({why})"))),
        }
    }

    /// Stores the promise in the place of an earlier one.
    ///
    /// *Durability*: on disk on return.
    pub(crate) fn store(&self, dir: &MetaDir) -> Result<()> {
        let file = dir.path().join(FILE);
        record_file::write(&file, self).map_err(|error| Error::from(error).context(file.display()))
    }

    /// Removes the promise of a disk, if there is one.
    ///
    /// *Durability*: gone for good on return.
    pub(crate) fn remove(dir: &MetaDir) -> Result<()> {
        let file = dir.path().join(FILE);
        let removed = match fs::remove_file(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        };
        let removed = removed.and_then(|()| sync_dir(dir.path()));
        removed.map_err(|error| Error::from(error).context(file.display()))
    }
}

/// A founding for which this master asks its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) cluster: [u8; 16],
    /// Drawn anew each time, so that a promise given to an attempt that was refused counts for no later one: its peer may
    /// be about to take it back.
    pub(crate) nonce: [u8; 16],
}

impl Attempt {
    pub(crate) fn new(cluster: [u8; 16]) -> Attempt {
        Attempt { cluster, nonce: random_id() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_promise_outlives_its_process_and_one_that_cannot_be_read_is_not_taken_for_none() {
        let temp = tempfile::tempdir().expect("tempdir");
        let dir = MetaDir::open(temp.path()).expect("open");
        assert_eq!(Promise::load(&dir).expect("none"), None);
        Promise::remove(&dir).expect("none is removed");
        let promise = Promise::new("a:1", [7; 16], [1; 16]);
        promise.store(&dir).expect("stored");
        assert_eq!(Promise::load(&dir).expect("read"), Some(promise));
        fs::write(temp.path().join(FILE), "{}").expect("written");
        let error = Promise::load(&dir).expect_err("damaged");
        assert!(error.kind == ErrorKind::FailedPrecondition && error.message.contains("PROMISE"), "{error}");
        Promise::remove(&dir).expect("removed");
        assert_eq!(Promise::load(&dir).expect("none"), None);
    }
}
