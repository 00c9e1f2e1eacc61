//! Whole trees: in one step where the masters can do it, below a mount entry by entry.

use futures::StreamExt;
use jindofs_proto::v1::{Attr, FileType, MkdirRequest, Target};

use crate::client::namespace::{Namespace, at_entry, at_inode, at_path};
use crate::error::{Error, ErrorKind, Result};
use crate::types::NsPath;

const MODE: u32 = 0o755;

/// Makes a directory, with `parents` those above it too.
pub(super) async fn make(namespace: &Namespace, path: Vec<u8>, parents: bool) -> Result<()> {
    match mkdir(namespace, &path, parents).await {
        Err(error) if parents && error.kind == ErrorKind::Unsupported => one_by_one(namespace, &path).await,
        made => made.map(drop),
    }
}

async fn mkdir(namespace: &Namespace, path: &[u8], parents: bool) -> Result<Attr> {
    let request = MkdirRequest { target: Some(at_path(path)), mode: MODE, parents, ..MkdirRequest::default() };
    namespace.mkdir(request).await
}

async fn one_by_one(namespace: &Namespace, path: &[u8]) -> Result<()> {
    let whole = NsPath::parse(path)?;
    let mut at = Vec::new();
    for name in whole.names() {
        at.push(b'/');
        at.extend_from_slice(name);
        let found = match namespace.lookup(at_path(&at)).await {
            Err(error) if error.kind == ErrorKind::NotFound => match mkdir(namespace, &at, false).await {
                // Somebody else was faster.
                Err(error) if error.kind == ErrorKind::AlreadyExists => namespace.lookup(at_path(&at)).await,
                made => made,
            },
            found => found,
        }?;
        if found.r#type() != FileType::Directory {
            let at = String::from_utf8_lossy(&at).into_owned();
            return Err(Error::new(ErrorKind::NotADirectory, format!("{at} is no directory")));
        }
    }
    Ok(())
}

/// Removes a directory with everything below it.
pub(super) async fn remove(namespace: &Namespace, target: Target, inode: u64) -> Result<()> {
    match namespace.rmdir(target.clone(), true).await {
        Err(error) if error.kind == ErrorKind::Unsupported => {
            empty(namespace, inode).await?;
            namespace.rmdir(target, false).await
        }
        removed => removed,
    }
}

/// Files first, as they are found; then directories, from the deepest on.
async fn empty(namespace: &Namespace, top: u64) -> Result<()> {
    let mut directories: Vec<(u64, Option<Target>)> = vec![(top, None)];
    let mut listed = 0;
    while let Some((directory, _)) = directories.get(listed) {
        let directory = *directory;
        listed += 1;
        let mut entries = std::pin::pin!(namespace.list(at_inode(directory)));
        while let Some(entry) = entries.next().await {
            let entry = entry?;
            let attr = entry.attr.unwrap_or_default();
            let target = at_entry(directory, &entry.name);
            if attr.r#type() == FileType::Directory {
                directories.push((attr.inode, Some(target)));
            } else {
                unless_gone(namespace.unlink(target).await)?;
            }
        }
    }
    for target in directories.into_iter().rev().filter_map(|(_, target)| target) {
        unless_gone(namespace.rmdir(target, false).await)?;
    }
    Ok(())
}

/// What somebody else has removed is removed.
fn unless_gone(removed: Result<()>) -> Result<()> {
    match removed {
        Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
