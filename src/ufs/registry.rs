//! One connection per under-storage, shared by all who read it, made anew when its secrets change.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::health::{Health, Outage};
use super::options::{StorageLocation, Store, oss_endpoint, parse, secrets_fingerprint};
use super::{Options, Ufs, assumed_role, local::Local, oss, retry::Retry, s3, validate};
use crate::error::{Error, ErrorKind, Result};
use crate::runtime::lock;

/// How long rotated secrets may go unnoticed.
const SECRETS_FRESH: Duration = Duration::from_secs(10);
/// Connections of mounts that are gone are dropped beyond this many.
const OPEN_MAX: usize = 1024;

#[derive(Debug)]
struct Opened {
    ufs: Arc<dyn Ufs>,
    health: Arc<Health>,
    secrets: u64,
    checked: Instant,
}

/// Opened under-storages by uri and options.
#[derive(Debug, Default)]
pub struct Registry {
    opened: Mutex<HashMap<(String, Options), Opened>>,
}

impl Registry {
    /// The under-storage at `uri`, if it was opened before. Reads nothing and waits for nobody.
    pub fn opened_now(&self, uri: &str, options: &Options) -> Option<Arc<dyn Ufs>> {
        let key = (uri.to_owned(), options.clone());
        self.opened.try_lock().ok()?.get(&key).map(|known| known.ufs.clone())
    }

    /// The under-storage at `uri`. Nothing is contacted.
    ///
    /// *Errors*: as [`validate`]; `FailedPrecondition` when a secret cannot be read.
    pub fn open(&self, uri: &str, options: &Options) -> Result<Arc<dyn Ufs>> {
        let key = (uri.to_owned(), options.clone());
        let mut opened = lock(&self.opened);
        if let Some(known) = opened.get_mut(&key) {
            if known.checked.elapsed() < SECRETS_FRESH {
                return Ok(known.ufs.clone());
            }
            if secrets_fingerprint(options) == known.secrets {
                known.checked = Instant::now();
                return Ok(known.ufs.clone());
            }
            tracing::info!(uri, "the secrets of an under-storage have changed");
        }
        validate(uri, options)?;
        // An outage outlives the keys with which it was found.
        let known = opened.get(&key).map(|known| known.health.clone());
        let health = known.unwrap_or_else(|| Arc::new(Health::new(uri)));
        let ufs: Arc<dyn Ufs> = match parse(uri)? {
            StorageLocation::Local(root) => Arc::new(Retry::new(Local::new(root), health.clone())),
            StorageLocation::Bucket { store: Store::S3, bucket, prefix, .. } => {
                Arc::new(Retry::new(s3::open(&bucket, &prefix, options)?, health.clone()))
            }
            StorageLocation::Bucket { store: Store::Oss, bucket, prefix, endpoint } => {
                let endpoint = oss_endpoint(uri, endpoint, options)?;
                oss::open(
                    assumed_role::BucketLocation { bucket, prefix, endpoint, options: options.clone() },
                    health.clone(),
                )?
            }
        };
        if opened.len() >= OPEN_MAX {
            opened.clear();
        }
        let secrets = secrets_fingerprint(options);
        opened.insert(key, Opened { ufs: ufs.clone(), health, secrets, checked: Instant::now() });
        Ok(ufs)
    }

    /// Forgets the under-storages that are not `mounted`, and with them their outages and metrics.
    pub fn retain<'m>(&self, mounted: impl IntoIterator<Item = (&'m str, &'m Options)>) {
        let mounted: HashSet<(&str, &Options)> = mounted.into_iter().collect();
        let mut opened = lock(&self.opened);
        opened.retain(|(uri, options), _| mounted.contains(&(uri.as_str(), options)));
    }

    /// Asks an under-storage whether it answers.
    ///
    /// *Errors*: those of [`Registry::open`] and [`Ufs::check`]; `Timeout` when it has not answered within `patience`.
    pub async fn check(&self, uri: &str, options: &Options, patience: Duration) -> Result<()> {
        let storage = self.open(uri, options)?;
        let late = |_| {
            let message = format!("{uri} has not answered within {patience:?}: look at it, or ask again");
            Error::new(ErrorKind::Timeout, message)
        };
        tokio::time::timeout(patience, storage.check()).await.map_err(late)?.map(drop)
    }

    /// The outage of an under-storage that its last request has found; none for one that was not asked.
    pub fn outage(&self, uri: &str, options: &Options) -> Option<Outage> {
        self.health(uri, options)?.outage()
    }

    /// True if a request of this process has failed so that [`Ufs::check`] would tell more.
    pub fn is_in_doubt(&self, uri: &str, options: &Options) -> bool {
        self.health(uri, options).is_some_and(|health| health.is_in_doubt())
    }

    fn health(&self, uri: &str, options: &Options) -> Option<Arc<Health>> {
        let opened = lock(&self.opened);
        opened.get(&(uri.to_owned(), options.clone())).map(|known| known.health.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_outage_of_an_under_storage_ends_with_its_last_mount() {
        let (registry, options) = (Registry::default(), Options::new());
        let uris = ["local:///nowhere/removed", "local:///nowhere/mounted"];
        for uri in uris {
            registry.check(uri, &options, Duration::from_secs(15)).await.expect_err("there is no such directory");
            assert!(registry.outage(uri, &options).is_some());
        }
        registry.retain([(uris[1], &options)]);
        assert!(registry.outage(uris[0], &options).is_none() && !registry.is_in_doubt(uris[0], &options));
        assert!(registry.outage(uris[1], &options).is_some(), "it is mounted");
    }
}
