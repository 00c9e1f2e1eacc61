//! Bytes of files: `jindoctl fs cat` and `get`, by way of the workers.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::StreamExt;
use jindofs_proto::v1::{Attr, FileSource, FileType};

use crate::client::Reader;
use crate::client::mounts::Mounts;
use crate::client::namespace::{Namespace, at_inode, at_path};
use crate::error::{Error, ErrorKind, Result};
use crate::rpc::source::source_of;
use crate::runtime::stdio::Output;
use crate::ufs::Registry;

/// Bytes asked for at a time, one block.
const STEP: u64 = crate::types::BLOCK_SIZE as u64;
/// Steps asked for ahead.
const AHEAD: usize = 4;

fn reader(namespace: &Namespace) -> Arc<Reader> {
    let channel = namespace.channel().clone();
    Reader::new(channel.clone(), Arc::new(Mounts::new(channel)), Some(Registry::default()))
}

/// What to read: outside any mount a file has a size at most.
async fn source(namespace: &Namespace, attr: &Attr) -> Result<FileSource> {
    match attr.r#type() {
        FileType::File => Ok(namespace.layout(attr.inode).await?.source.unwrap_or_else(|| source_of(attr, Vec::new()))),
        FileType::Directory => Err(Error::new(ErrorKind::IsADirectory, "it is a directory")),
        FileType::Symlink | FileType::Unspecified => {
            let target = String::from_utf8_lossy(&attr.symlink_target).into_owned();
            Err(Error::new(ErrorKind::Unsupported, format!("it is a symbolic link to {target:?}: give that path")))
        }
    }
}

async fn copy(reader: &Reader, source: FileSource, to: &mut impl Write) -> Result<()> {
    let length = source.length;
    let file = reader.open(source);
    let steps = futures::stream::iter((0..length).step_by(usize::try_from(STEP).unwrap_or(1)));
    let mut pieces = steps.map(|offset| reader.read(&file, offset, STEP)).buffered(AHEAD);
    while let Some(piece) = pieces.next().await {
        to.write_all(&piece?)?;
    }
    Ok(())
}

pub(super) async fn cat(namespace: &Namespace, path: Vec<u8>) -> Result<()> {
    let attr = namespace.lookup(at_path(path)).await?;
    let mut out = Output::lock();
    let copied = copy(&reader(namespace), source(namespace, &attr).await?, &mut out).await;
    copied.and_then(|()| Ok(out.flush()?))
}

pub(super) async fn get(namespace: &Namespace, path: Vec<u8>, to: &Path, recursive: bool) -> Result<()> {
    let attr = namespace.lookup(at_path(path)).await?;
    let reader = reader(namespace);
    if attr.r#type() != FileType::Directory {
        return one(namespace, &reader, &attr, to).await;
    }
    if !recursive {
        return Err(Error::new(ErrorKind::IsADirectory, "it is a directory: use -r to copy it with its content"));
    }
    let mut waiting: Vec<(u64, PathBuf)> = vec![(attr.inode, to.to_owned())];
    while let Some((inode, to)) = waiting.pop() {
        std::fs::create_dir(&to).map_err(|error| Error::from(error).context(to.display()))?;
        let mut entries = std::pin::pin!(namespace.list(at_inode(inode)));
        while let Some(entry) = entries.next().await {
            let entry = entry?;
            let (attr, to) = (entry.attr.unwrap_or_default(), to.join(OsStr::from_bytes(&entry.name)));
            match attr.r#type() {
                FileType::Directory => waiting.push((attr.inode, to)),
                FileType::Symlink => std::os::unix::fs::symlink(OsStr::from_bytes(&attr.symlink_target), &to)
                    .map_err(|error| Error::from(error).context(to.display()))?,
                FileType::File | FileType::Unspecified => one(namespace, &reader, &attr, &to).await?,
            }
        }
    }
    Ok(())
}

/// Copies one file; one that could not be copied whole is removed.
async fn one(namespace: &Namespace, reader: &Reader, attr: &Attr, to: &Path) -> Result<()> {
    let source = source(namespace, attr).await?;
    let mut file = File::create_new(to).map_err(|error| Error::from(error).context(to.display()))?;
    if let Err(error) = copy(reader, source, &mut file).await {
        std::fs::remove_file(to)?;
        return Err(error.context(to.display()));
    }
    Ok(())
}
