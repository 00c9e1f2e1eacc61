//! Content into the cluster: `jindoctl fs put`, and files that `create` makes below a mount.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use jindofs_proto::v1::{Attr, CreateRequest, FileType};

use crate::client::mounts::Mounts;
use crate::client::namespace::{Namespace, at_path};
use crate::client::{Batcher, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::types::split_parent;
use crate::ufs::{Content, Deadline, Registry};

/// Stands for standard input.
const STDIN: &str = "-";
/// Mode of a file that is made from nothing with a mode of its own.
const MODE: u32 = 0o644;

fn writer(namespace: &Arc<Namespace>) -> Writer {
    let mounts = Mounts::new(namespace.channel().clone());
    Writer::new(namespace.clone(), Batcher::new(namespace.clone(), None), Arc::new(mounts), Registry::default())
}

async fn store(namespace: &Arc<Namespace>, attr: &Attr, content: Content) -> Result<()> {
    let writer = writer(namespace);
    let begun = writer.begin(attr, false).await?;
    writer.store(attr, begun, content, &Deadline::for_store()).await.map(drop)
}

/// Makes an empty file; below a mount it is stored at once.
pub(super) async fn create(namespace: &Arc<Namespace>, path: Vec<u8>) -> Result<()> {
    let attr = make(namespace, &path, MODE).await?;
    if attr.mount_id == 0 {
        return Ok(());
    }
    store(namespace, &attr, Content::in_memory(Bytes::new())).await
}

/// Stores a local file, or what comes on standard input, as one file below a mount: a new one, or in the place of an old one.
pub(super) async fn put(namespace: &Arc<Namespace>, from: &Path, path: Vec<u8>) -> Result<()> {
    let (file, mode) = open(from).map_err(|error| error.context(from.display()))?;
    let length = file.metadata()?.len();
    let attr = target(namespace, &path, mode).await?;
    store(namespace, &attr, Content::in_file(Arc::new(file), length)).await
}

/// The file to replace, or a new one.
async fn target(namespace: &Namespace, path: &[u8], mode: u32) -> Result<Attr> {
    let attr = match namespace.lookup(at_path(path)).await {
        Ok(attr) => attr,
        Err(error) if error.kind == ErrorKind::NotFound => {
            let (parent, _) = split_parent(path)?;
            let parent = namespace
                .lookup(at_path(parent.as_bytes()))
                .await
                .map_err(|error| error.context("the directory it would be in: make it with `jindoctl fs mkdir -p`"))?;
            below_mount(&parent)?;
            return make(namespace, path, mode).await;
        }
        Err(error) => return Err(error),
    };
    match attr.r#type() {
        FileType::File => below_mount(&attr).map(|()| attr),
        FileType::Directory => {
            Err(Error::new(ErrorKind::IsADirectory, "it is a directory: give the path the file itself is to have"))
        }
        FileType::Symlink | FileType::Unspecified => {
            let target = String::from_utf8_lossy(&attr.symlink_target).into_owned();
            Err(Error::new(ErrorKind::Unsupported, format!("it is a symbolic link to {target:?}: give that path")))
        }
    }
}

fn below_mount(attr: &Attr) -> Result<()> {
    if attr.mount_id != 0 {
        return Ok(());
    }
    let message = "outside any mount files hold no data: give a path below one of `jindoctl mount ls`";
    Err(Error::new(ErrorKind::Unsupported, message))
}

async fn make(namespace: &Namespace, path: &[u8], mode: u32) -> Result<Attr> {
    let target = Some(at_path(path));
    namespace.create(CreateRequest { target, mode, exclusive: true, ..CreateRequest::default() }).await
}

/// The content, and the mode of a new file with it.
fn open(from: &Path) -> Result<(File, u32)> {
    if from == Path::new(STDIN) {
        // It vanishes with this process.
        let mut file =
            tempfile::tempfile().map_err(|error| Error::from(error).context(std::env::temp_dir().display()))?;
        io::copy(&mut io::stdin().lock(), &mut file)?;
        return Ok((file, MODE));
    }
    let file = File::open(from)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(Error::invalid("it is no regular file: give one, or `-` to read standard input"));
    }
    Ok((file, metadata.mode() & 0o777))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_length_that_stays_is_refused_with_the_way_out() {
        let dir = tempfile::tempdir().expect("tempdir");
        let error = open(dir.path()).expect_err("a directory");
        assert!(error.kind == ErrorKind::InvalidArgument && error.message.contains("`-`"), "{error}");
        assert_eq!(open(&dir.path().join("none")).expect_err("missing").kind, ErrorKind::NotFound);
        let path = dir.path().join("f");
        std::fs::write(&path, b"abc").expect("written");
        let (file, mode) = open(&path).expect("a file");
        assert_eq!((file.metadata().expect("stat").len(), mode & 0o600), (3, 0o600));
    }
}
