//! `jindoctl mount`: the mount table.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use clap::Subcommand;
use jindofs_proto::v1::{Mount, MountState};
use serde::Serialize;

use super::Common;
use super::output::{name, print};
use crate::client::namespace::Namespace;
use crate::config::meta_policy::{META_POLICY, RefreshPolicy};
use crate::error::{Error, ErrorKind, Result};
use crate::runtime::stdio;

/// How long masters may take to say how the under-storages are; they ask them for two seconds at most.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);

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
        /// When metadata is read again: once (on first access only), always (on every access), or a time as 30s or 10m (on an
        /// access after that time). For a path below the mount: --option metaPolicy:/PATH=POLICY.
        #[arg(long, value_name = "POLICY", default_value = "once", value_parser = RefreshPolicy::parse)]
        meta_policy: RefreshPolicy,
    },
    /// Takes a mount out of the namespace; the under-storage is not touched.
    Remove {
        /// Path of the mount.
        path: OsString,
    },
    /// Lists the mounts.
    List,
}

#[derive(Debug, Serialize)]
struct Row {
    path: String,
    ufs: String,
    meta_policy: String,
    /// Whether the under-storage answers: available, unavailable, or unknown.
    state: &'static str,
    /// Why it does not.
    error: String,
    read_only: bool,
    /// Objects of the directories listed so far that no path can express.
    skipped: u64,
    options: BTreeMap<String, String>,
}

fn row(mount: Mount, states: &[MountState], skipped: u64) -> Row {
    let meta_policy = RefreshPolicy::of_mount(&mount).to_string();
    let (state, error) = match states.iter().find(|state| state.mount_id == mount.id) {
        Some(state) if state.available => ("available", String::new()),
        Some(state) => ("unavailable", state.error.clone()),
        None => ("unknown", String::new()),
    };
    let (path, read_only, options) = (name(&mount.path), mount.read_only, mount.options);
    Row { path, ufs: mount.ufs_uri, meta_policy, state, error, read_only, skipped, options }
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
            let shown = path.to_string_lossy().into_owned();
            let mut options = parse(&options)?;
            let meta_policy = set_policy(&mut options, meta_policy)?.field().into();
            let path = path.into_vec().into();
            let mount = Mount { path, ufs_uri: uri, options, meta_policy, ..Mount::default() };
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
            let mounts = namespace.mounts().await?.mounts;
            let states = states(&namespace).await;
            let counted = mounts.into_iter().map(|mount| (skipped(&mount), mount));
            let rows: Vec<Row> = counted.map(|(skipped, mount)| row(mount, &states, skipped)).collect();
            print(common.output, &rows, &["PATH", "UFS", "META-POLICY", "STATE", "SKIPPED", "OPTIONS"], |_| {
                let options =
                    |row: &Row| row.options.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",");
                rows.iter()
                    .map(|row| {
                        let state = if row.error.is_empty() {
                            row.state.to_owned()
                        } else {
                            format!("{}: {}", row.state, row.error)
                        };
                        let skipped = row.skipped.to_string();
                        vec![row.path.clone(), row.ufs.clone(), row.meta_policy.clone(), state, skipped, options(row)]
                    })
                    .collect()
            })
        }
    };
    namespace.session().close().await;
    outcome
}

/// How each under-storage is. The mount table is worth showing without that.
async fn states(namespace: &Namespace) -> Vec<MountState> {
    let checked = tokio::time::timeout(CHECK_TIMEOUT, namespace.check_mounts()).await;
    let late = |_| Error::new(ErrorKind::Timeout, format!("no master has answered within {CHECK_TIMEOUT:?}"));
    checked.map_err(late).and_then(|states| states).unwrap_or_else(|error| {
        stdio::complain(format_args!("warning: the states of the under-storages are unknown: {error}"));
        Vec::new()
    })
}

/// Leaves the policy of the whole mount in `options` only if it is an interval: masters of older releases take `once` and
/// `always` as a field, and refuse the option.
fn set_policy(options: &mut BTreeMap<String, String>, policy: RefreshPolicy) -> Result<RefreshPolicy> {
    let named = options.remove(META_POLICY).map(|text| RefreshPolicy::parse(&text)).transpose();
    let policy = named.map_err(|error| Error::invalid(format!("--option {META_POLICY}: {error}")))?.unwrap_or(policy);
    if let RefreshPolicy::After(_) = policy {
        options.insert(META_POLICY.to_owned(), policy.to_string());
    }
    Ok(policy)
}

fn parse(options: &[String]) -> Result<BTreeMap<String, String>> {
    let pair = |text: &String| {
        // Paths may hold '=', as those of partitions do; policies do not.
        let of_path = text.strip_prefix(META_POLICY).is_some_and(|rest| rest.starts_with(':'));
        let pair = if of_path { text.rsplit_once('=') } else { text.split_once('=') };
        pair.map(|(key, value)| (key.to_owned(), value.to_owned()))
            .ok_or_else(|| Error::invalid(format!("--option {text}: write KEY=VALUE")))
    };
    options.iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_a_policy_may_hold_what_separates_other_keys_from_values() {
        let options = ["fs.s3.region=a=b", "metaPolicy:/t/dt=2024-01-01=30s", "metaPolicy=once"].map(str::to_owned);
        let parsed = parse(&options).expect("options");
        let pairs: Vec<_> = parsed.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(pairs, [("fs.s3.region", "a=b"), (META_POLICY, "once"), ("metaPolicy:/t/dt=2024-01-01", "30s")]);
        assert!(parse(&["metaPolicy:/t".to_owned()]).is_err_and(|error| error.message.contains("KEY=VALUE")));
    }

    #[test]
    fn only_an_interval_is_an_option() {
        let after = RefreshPolicy::After(Duration::from_secs(30));
        for (given, named, policy, option) in [
            (RefreshPolicy::Once, None, RefreshPolicy::Once, None),
            (RefreshPolicy::Always, None, RefreshPolicy::Always, None),
            (after, None, after, Some("30s")),
            (RefreshPolicy::Once, Some("ALWAYS"), RefreshPolicy::Always, None),
            (RefreshPolicy::Once, Some("30S"), after, Some("30s")),
        ] {
            let mut options: BTreeMap<_, _> =
                named.map(|named: &str| (META_POLICY.to_owned(), named.to_owned())).into_iter().collect();
            assert_eq!(set_policy(&mut options, given), Ok(policy), "{named:?}");
            assert_eq!(options.get(META_POLICY).map(String::as_str), option, "{given} {named:?}");
        }
    }
}
