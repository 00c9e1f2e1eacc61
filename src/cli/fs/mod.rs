//! `jindoctl fs`: the namespace, for people.

mod content;
mod store;
mod tree;

use clap::Subcommand;
use futures::StreamExt;
use jindofs_proto::v1::{Attr, FileType};
use serde::Serialize;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::Common;
use super::output::{name, print, time};
use crate::client::namespace::{Namespace, at_inode, at_path};
use crate::client::refresh::{Refreshed, refresh};
use crate::error::{Error, Result};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Lists a directory.
    Ls {
        /// Absolute path.
        path: OsString,
    },
    /// Attributes of one file or directory.
    Stat {
        /// Absolute path.
        path: OsString,
    },
    /// Prints the content of a file.
    Cat {
        /// Absolute path.
        path: OsString,
    },
    /// Copies a file out of the cluster, or a directory with -r.
    Get {
        /// Directories too, with everything below.
        #[arg(short, long)]
        recursive: bool,
        /// Absolute path.
        path: OsString,
        /// Local file or directory; it must not exist.
        to: PathBuf,
    },
    /// Stores a local file below a mount, as a new file or in the place of one.
    Put {
        /// Local file; `-` reads standard input.
        from: PathBuf,
        /// Absolute path.
        path: OsString,
    },
    /// Makes a directory.
    Mkdir {
        /// Missing parents too; an existing directory is no error.
        #[arg(short, long)]
        parents: bool,
        /// Absolute path.
        path: OsString,
    },
    /// Makes an empty file.
    Create {
        /// Absolute path.
        path: OsString,
    },
    /// Renames, replacing a file or an empty directory at the new path.
    Mv {
        /// Fail instead of replacing.
        #[arg(short, long)]
        no_clobber: bool,
        /// Absolute path.
        from: OsString,
        /// Absolute path.
        to: OsString,
    },
    /// Removes a file, or with -r a whole tree.
    Rm {
        /// Directories too, with everything below.
        #[arg(short, long)]
        recursive: bool,
        /// Absolute path.
        path: OsString,
    },
    /// Reads the metadata of a file, or of a directory and its entries, again from the under-storage.
    Refresh {
        /// Everything below too.
        #[arg(short, long)]
        recursive: bool,
        /// Absolute path.
        path: OsString,
    },
    /// Bytes, files and directories below a path.
    Du {
        /// Absolute path.
        path: OsString,
    },
    /// As du.
    Count {
        /// Absolute path.
        path: OsString,
    },
}

impl Command {
    /// The path an error is about.
    fn path(&self) -> String {
        match self {
            Command::Cat { path } | Command::Get { path, .. } | Command::Put { path, .. } => path,
            Command::Ls { path } | Command::Stat { path } | Command::Mkdir { path, .. } | Command::Create { path } => {
                path
            }
            Command::Rm { path, .. }
            | Command::Refresh { path, .. }
            | Command::Du { path }
            | Command::Count { path } => path,
            Command::Mv { from, .. } => from,
        }
        .to_string_lossy()
        .into_owned()
    }
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    r#type: &'static str,
    size: u64,
    /// Nanoseconds since the epoch.
    mtime: i64,
    inode: String,
}

fn row(label: String, attr: &Attr) -> Row {
    let r#type = match attr.r#type() {
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
        FileType::File | FileType::Unspecified => "file",
    };
    Row { name: label, r#type, size: attr.size, mtime: attr.mtime_ns, inode: attr.inode.to_string() }
}

const HEADER: [&str; 5] = ["NAME", "TYPE", "SIZE", "MODIFIED (UTC)", "INODE"];

fn cells(row: &Row) -> Vec<String> {
    vec![row.name.clone(), row.r#type.to_owned(), row.size.to_string(), time(row.mtime), row.inode.clone()]
}

pub(super) async fn run(common: &Common, command: Command) -> Result<()> {
    let namespace = Arc::new(common.namespace()?);
    let path = command.path();
    let outcome = act(common, &namespace, command).await.map_err(|error| error.context(path));
    // What was done is done; a session that is not closed expires.
    namespace.session().close().await;
    outcome
}

async fn act(common: &Common, namespace: &Arc<Namespace>, command: Command) -> Result<()> {
    let at = |path: &OsString| at_path(path.clone().into_vec());
    match command {
        Command::Ls { path } => ls(common, namespace, &path).await,
        Command::Stat { path } => {
            let attr = namespace.lookup(at(&path)).await?;
            let row = row(name(&path.into_vec()), &attr);
            print(common.output, &row, &HEADER, |_| vec![cells(&row)])
        }
        Command::Cat { path } => content::cat(namespace, path.into_vec()).await,
        Command::Get { recursive, path, to } => content::get(namespace, path.into_vec(), &to, recursive).await,
        Command::Put { from, path } => store::put(namespace, &from, path.into_vec()).await,
        Command::Mkdir { parents, path } => tree::make(namespace, path.into_vec(), parents).await,
        Command::Create { path } => store::create(namespace, path.into_vec()).await,
        Command::Mv { no_clobber, from, to } => namespace.rename(at(&from), at(&to), no_clobber).await.map(|_| ()),
        Command::Rm { recursive, path } => rm(namespace, &path, recursive).await,
        Command::Refresh { recursive, path } => {
            let Refreshed { bytes, files, directories } = refresh(namespace, &path.into_vec(), recursive).await?;
            show(common, &Totals { bytes, files, directories })
        }
        Command::Du { path } | Command::Count { path } => count(common, namespace, &path).await,
    }
}

async fn ls(common: &Common, namespace: &Namespace, path: &OsString) -> Result<()> {
    let attr = namespace.lookup(at_path(path.clone().into_vec())).await?;
    let mut rows = Vec::new();
    if attr.r#type() == FileType::Directory {
        let mut entries = std::pin::pin!(namespace.list(at_inode(attr.inode)));
        while let Some(entry) = entries.next().await {
            let entry = entry?;
            rows.push(row(name(&entry.name), &entry.attr.unwrap_or_default()));
        }
    } else {
        rows.push(row(name(&path.clone().into_vec()), &attr));
    }
    print(common.output, &rows, &HEADER, |_| rows.iter().map(cells).collect())
}

async fn rm(namespace: &Namespace, path: &OsString, recursive: bool) -> Result<()> {
    let target = || at_path(path.clone().into_vec());
    let attr = namespace.lookup(target()).await?;
    match (attr.r#type(), recursive) {
        (FileType::Directory, true) => tree::remove(namespace, target(), attr.inode).await,
        (FileType::Directory, false) => Err(Error::new(
            crate::error::ErrorKind::IsADirectory,
            "it is a directory: use -r to remove it with its content",
        )),
        _ => namespace.unlink(target()).await,
    }
}

/// What lies at and below a path.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Totals {
    pub(crate) bytes: u64,
    pub(crate) files: u64,
    pub(crate) directories: u64,
}

/// Counts what lies at and below a path.
///
/// *Errors*: those of the namespace.
pub(crate) async fn totals(namespace: &Namespace, path: Vec<u8>) -> Result<Totals> {
    let attr = namespace.lookup(at_path(path)).await?;
    let mut totals = Totals::default();
    let mut waiting = Vec::new();
    let mut take = |attr: &Attr, waiting: &mut Vec<u64>| {
        if attr.r#type() == FileType::Directory {
            totals.directories += 1;
            waiting.push(attr.inode);
        } else {
            totals.files += 1;
            totals.bytes = totals.bytes.saturating_add(attr.size);
        }
    };
    take(&attr, &mut waiting);
    while let Some(inode) = waiting.pop() {
        let mut entries = std::pin::pin!(namespace.list(at_inode(inode)));
        while let Some(entry) = entries.next().await {
            take(&entry?.attr.unwrap_or_default(), &mut waiting);
        }
    }
    Ok(totals)
}

async fn count(common: &Common, namespace: &Namespace, path: &OsString) -> Result<()> {
    show(common, &totals(namespace, path.clone().into_vec()).await?)
}

fn show(common: &Common, totals: &Totals) -> Result<()> {
    print(common.output, totals, &["BYTES", "FILES", "DIRECTORIES"], |_| {
        vec![vec![totals.bytes.to_string(), totals.files.to_string(), totals.directories.to_string()]]
    })
}
