//! `jindoctl mount`: the mount table.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use clap::{Subcommand, ValueEnum};
use jindofs_proto::v1::{MetaPolicy, Mount};
use serde::Serialize;

use super::Common;
use super::output::{name, print};
use crate::error::{Error, Result};
use crate::runtime::stdio;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Mounts an under-storage; it is checked first.
    Add {
        /// Absolute path in the namespace; made if it is missing.
        path: OsString,
        /// local:///DIRECTORY, s3://BUCKET/PREFIX or oss://BUCKET/PREFIX.
        uri: String,
        /// An option as KEY=VALUE; secrets as KEY=file:PATH, a path that masters and workers can read.
        #[arg(short = 'O', long = "option", value_name = "KEY=VALUE")]
        options: Vec<String>,
        /// When metadata is read again.
        #[arg(long, value_enum, default_value_t = Policy::Once)]
        meta_policy: Policy,
    },
    /// Takes a mount out of the namespace; the under-storage is not touched.
    Remove {
        /// Path of the mount.
        path: OsString,
    },
    /// Lists the mounts.
    List,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Policy {
    /// Once, on first access.
    Once,
    /// On every access.
    Always,
}

#[derive(Debug, Serialize)]
struct Row {
    path: String,
    ufs: String,
    meta_policy: &'static str,
    read_only: bool,
    /// Objects of the directories listed so far that no path can express.
    skipped: u64,
    options: BTreeMap<String, String>,
}

fn row(skipped: u64, mount: Mount) -> Row {
    let meta_policy = if mount.meta_policy() == MetaPolicy::Always { "always" } else { "once" };
    let options = mount.options;
    Row { path: name(&mount.path), ufs: mount.ufs_uri, meta_policy, read_only: mount.read_only, skipped, options }
}

/// Says what should be looked at.
fn warn(path: &str, warning: &str) {
    if !warning.is_empty() {
        stdio::complain(format_args!("warning: {path}: {warning}"));
    }
}

pub(super) async fn run(common: &Common, command: Command) -> Result<()> {
    let namespace = common.namespace()?;
    let outcome = match command {
        Command::Add { path, uri, options, meta_policy } => {
            let policy = match meta_policy {
                Policy::Once => MetaPolicy::Once,
                Policy::Always => MetaPolicy::Always,
            };
            let shown = path.to_string_lossy().into_owned();
            let mount = Mount {
                path: path.into_vec().into(),
                ufs_uri: uri,
                options: parse(&options)?,
                meta_policy: policy.into(),
                ..Mount::default()
            };
            let added = namespace.add_mount(mount).await.map_err(|error| error.context(&shown));
            added.map(|answer| warn(&shown, &answer.warning))
        }
        Command::Remove { path } => {
            let shown = path.to_string_lossy().into_owned();
            namespace.remove_mount(&path.into_vec()).await.map_err(|error| error.context(shown))
        }
        Command::List => {
            let usage = namespace.usage().await?.mounts;
            let skipped =
                |mount: &Mount| usage.iter().find(|one| one.mount_id == mount.id).map_or(0, |one| one.skipped);
            let mounts = namespace.mounts().await?.mounts.into_iter();
            let rows: Vec<Row> = mounts.map(|mount| row(skipped(&mount), mount)).collect();
            print(common.output, &rows, &["PATH", "UFS", "META-POLICY", "SKIPPED", "OPTIONS"], |_| {
                let options =
                    |row: &Row| row.options.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",");
                rows.iter()
                    .map(|row| {
                        let skipped = row.skipped.to_string();
                        vec![row.path.clone(), row.ufs.clone(), row.meta_policy.to_owned(), skipped, options(row)]
                    })
                    .collect()
            })
        }
    };
    namespace.session().close().await;
    outcome
}

fn parse(options: &[String]) -> Result<BTreeMap<String, String>> {
    let pair = |text: &String| match text.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err(Error::invalid(format!("--option {text}: write KEY=VALUE"))),
    };
    options.iter().map(pair).collect()
}
