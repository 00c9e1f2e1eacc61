//! Bytes of files: `jindoctl fs cat` and `get`, by way of the workers.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Seek, Write};
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
    let (reader, target) = (reader(namespace), || at_path(path.clone()));
    let mut out = Counted { written: 0, to: Output::lock() };
    let once = async |out: &mut _| {
        let attr = namespace.lookup(target()).await?;
        copy(&reader, source(namespace, &attr).await?, out).await
    };
    let copied = match once(&mut out).await {
        // What was on record is not there: by now what is there is.
        Err(error) if error.kind == ErrorKind::Stale && out.written == 0 => once(&mut out).await,
        copied => copied,
    };
    copied.and_then(|()| Ok(out.flush()?))
}

/// Counts what is written.
struct Counted<W> {
    written: usize,
    to: W,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.written = self.written.saturating_add(written);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
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
    let found = source(namespace, attr).await.map_err(|error| error.context(to.display()))?;
    let mut file = File::create_new(to).map_err(|error| Error::from(error).context(to.display()))?;
    let copied = match copy(reader, found, &mut file).await {
        // The version on record is missing. The masters have looked for it, and know by now what is there.
        Err(error) if error.kind == ErrorKind::Stale => copy_again(namespace, reader, attr.inode, &mut file).await,
        copied => copied,
    };
    copied.map_err(|error| match std::fs::remove_file(to) {
        Ok(()) => error.context(to.display()),
        Err(left) => error.context(format!("{} is incomplete and cannot be removed ({left})", to.display())),
    })
}

/// Copies the version that is on record now in the place of what was copied before.
async fn copy_again(namespace: &Namespace, reader: &Reader, inode: u64, file: &mut File) -> Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    let attr = namespace.lookup(at_inode(inode)).await?;
    copy(reader, source(namespace, &attr).await?, file).await
}
