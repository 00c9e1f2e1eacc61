//! Names of objects: markers of directories, removals, and copies within the store.

use futures::TryStreamExt;

use super::put::{PART, is_a_directory};
use super::{Bucket, cannot, key_to_change, unsupported};
use crate::error::{Error, ErrorKind, Result};
use crate::ufs::{Entry, Expected, Kind, stale};

/// Bytes of the largest object that a store copies in one step.
pub(super) const COPY_MAX: u64 = 5 << 30;
/// Most entries of a directory that are looked at to know that one stays: a page of a listing.
const LIST_MAX: usize = 1000;

impl Bucket {
    /// An object without content whose name ends in '/', so that the directory is there while nothing is in it.
    pub(super) async fn make_directory_now(&self, path: &[u8]) -> Result<Entry> {
        let key = key_to_change(path)?;
        match self.stat_now(path).await? {
            Some(found) if found.kind == Kind::Directory => return Ok(found),
            Some(_) => return Err(self.told(key, ErrorKind::AlreadyExists, "a file has this name")),
            None => {}
        }
        self.operator.create_dir(&format!("{key}/")).await.map_err(|error| self.failed(key, &error))?;
        Ok(self.directory(key.rsplit('/').next().unwrap_or_default()))
    }

    pub(super) async fn remove_now(&self, path: &[u8], token: &[u8]) -> Result<()> {
        let key = key_to_change(path)?;
        match self.stat_now(path).await? {
            None => Ok(()),
            Some(found) if found.kind == Kind::Directory => Err(is_a_directory(path)),
            Some(found) if found.token != token => Err(stale(path)),
            Some(_) => self.delete_version(path, key, token).await,
        }
    }

    /// Deletes an object if it still is of this version, as far as the store can be told so.
    async fn delete_version(&self, path: &[u8], key: &str, token: &[u8]) -> Result<()> {
        let version = std::str::from_utf8(token).map_err(|_| stale(path))?;
        let deleted = match self.operator.info().capability().delete_with_if_match {
            true => self.operator.delete_with(key).if_match(version).await,
            false => self.operator.delete(key).await,
        };
        match deleted {
            Err(error) if error.kind() == opendal::ErrorKind::ConditionNotMatch => Err(stale(path)),
            Err(error) if cannot(&error) => self.operator.delete(key).await.map_err(|error| self.failed(key, &error)),
            deleted => deleted.map_err(|error| self.failed(key, &error)),
        }
    }

    pub(super) async fn remove_directory_now(&self, path: &[u8]) -> Result<()> {
        let key = key_to_change(path)?;
        let failed = |error: opendal::Error| self.failed(key, &error);
        let marker = format!("{key}/");
        let mut lister = self.operator.lister_with(&marker).limit(2).await.map_err(failed)?;
        let mut marked = false;
        while let Some(found) = lister.try_next().await.map_err(failed)? {
            if found.path() != marker {
                return Err(self.told(key, ErrorKind::NotEmpty, "there are objects in it"));
            }
            marked = true;
        }
        self.operator.delete(&marker).await.map_err(failed)?;
        if marked {
            return Ok(());
        }
        // There was none, unless it is something else.
        match self.operator.stat(key).await {
            Ok(_) => Err(self.told(key, ErrorKind::NotADirectory, "it is a file")),
            Err(error) if error.kind() == opendal::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    /// Makes the marker of a directory of which nothing else would be left: a prefix is there only while an object has it.
    pub(super) async fn keep_directory_now(&self, path: &[u8], leaving: usize) -> Result<()> {
        let key = key_to_change(path)?;
        let failed = |error: opendal::Error| self.failed(key, &error);
        let marker = format!("{key}/");
        if leaving < LIST_MAX {
            let mut lister = self.operator.lister_with(&marker).limit(leaving + 1).await.map_err(failed)?;
            let mut others = 0;
            while let Some(found) = lister.try_next().await.map_err(failed)? {
                others += 1;
                // Of more than can go, one stays.
                if found.path() == marker || others > leaving {
                    return Ok(());
                }
            }
            // Somebody else has removed all of it, or it was removed itself: it does not come back.
            if others == 0 {
                return Ok(());
            }
        }
        self.operator.create_dir(&marker).await.map(drop).map_err(failed)
    }

    pub(super) async fn copy_now(&self, from: &[u8], token: &[u8], to: &[u8], expected: Expected<'_>) -> Result<Entry> {
        let (from_key, to_key) = (key_to_change(from)?, key_to_change(to)?);
        let source = match self.stat_now(from).await? {
            Some(found) if found.kind == Kind::Directory => return Err(is_a_directory(from)),
            Some(found) if found.token == token => found,
            _ => return Err(stale(from)),
        };
        if source.size > COPY_MAX {
            let size = source.size;
            let why = format!("a file of {size} bytes cannot be renamed within an object store: copy and delete it");
            return Err(unsupported(from, &why));
        }
        if let Some(found) = self.stat_now(to).await? {
            if found.kind == Kind::Directory {
                return Err(is_a_directory(to));
            }
            if found.token == source.token && found.size == source.size {
                return Ok(found);
            }
            if expected != Expected::Token(&found.token) {
                let done = self.is_copy((to, &found), (from, &source)).await?;
                return if done { Ok(found) } else { Err(stale(to)) };
            }
        } else if expected != Expected::Absent {
            return Err(stale(to));
        }
        self.write_operator.copy(from_key, to_key).await.map_err(|error| match error.kind() {
            opendal::ErrorKind::NotFound | opendal::ErrorKind::ConditionNotMatch | opendal::ErrorKind::Conflict => {
                stale(from)
            }
            _ => self.failed(from_key, &error),
        })?;
        let copied = self.stat_now(to).await?.filter(|copied| copied.kind == Kind::File);
        // A source that was replaced meanwhile was copied as what it is now: nobody has asked for that.
        if let Err(error) = self.must_be(from, Expected::Token(token)).await {
            if let Some(copied) = copied.filter(|_| error.kind == ErrorKind::Stale && expected == Expected::Absent) {
                self.delete_version(to, to_key, &copied.token).await?;
            }
            return Err(error);
        }
        copied.filter(|copied| copied.size == source.size).ok_or_else(|| stale(to))
    }

    /// Whether an earlier attempt has made it: it is no older, and has the same bytes. The etag does not tell: that
    /// of a copy is another one when its source was stored in parts.
    async fn is_copy(&self, copy: (&[u8], &Entry), source: (&[u8], &Entry)) -> Result<bool> {
        let size = source.1.size;
        if copy.1.size != size || copy.1.mtime_ns < source.1.mtime_ns {
            return Ok(false);
        }
        let mut compared = 0;
        while compared < size {
            let length = PART.min(size - compared);
            let copied = self.read_now(copy.0, &copy.1.token, compared, length);
            let original = self.read_now(source.0, &source.1.token, compared, length);
            if copied.await? != original.await? {
                return Ok(false);
            }
            compared += length;
        }
        Ok(true)
    }

    fn told(&self, key: &str, kind: ErrorKind, why: &str) -> Error {
        Error::new(kind, format!("under-storage {key} in {}: {why}", self.place))
    }
}
