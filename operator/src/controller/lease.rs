//! Which of several operators acts: a Lease with client-go's times. The others wait and take over.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::Instant;

/// Name of the Lease.
const NAME: &str = "jindofs-operator";
/// A holder that is silent for this long has lost it.
const LASTS: Duration = Duration::from_secs(15);
/// A holder that could not renew for this long stops acting.
const RENEW_WITHIN: Duration = Duration::from_secs(10);
/// Pause between two attempts.
const RETRY: Duration = Duration::from_secs(2);

/// The Lease of one namespace.
pub(super) struct Election {
    api: Api<Lease>,
    identity: String,
    /// Who held it when it was seen last, and since when nothing has changed by this machine's clock: clocks of others
    /// are not trusted.
    seen: Option<(LeaseSpec, Instant)>,
}

impl Election {
    pub(super) fn new(client: Client, namespace: &str, identity: String) -> Election {
        Election { api: Api::namespaced(client, namespace), identity, seen: None }
    }

    /// Waits until it is held.
    pub(super) async fn acquire(&mut self) {
        loop {
            match self.attempt().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::info!(%error, "the lease cannot be asked for"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Renews it for as long as that goes well.
    pub(super) async fn hold(&mut self) {
        let mut renewed = Instant::now();
        while renewed.elapsed() < RENEW_WITHIN {
            tokio::time::sleep(RETRY).await;
            match self.attempt().await {
                Ok(true) => renewed = Instant::now(),
                Ok(false) => return,
                Err(error) => tracing::warn!(%error, "the lease is not renewed"),
            }
        }
    }

    /// Lets go of it, so that the next one need not wait.
    pub(super) async fn release(&self) {
        if let Ok(mut lease) = self.api.get(NAME).await
            && lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()) == Some(&self.identity)
        {
            lease.spec.get_or_insert_default().holder_identity = Some(String::new());
            // If this fails the next one waits until it has run out.
            let _ = self.api.replace(NAME, &PostParams::default(), &lease).await;
        }
    }

    /// Takes or renews it; false while another one holds it. Of two who try at once the API server refuses one.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let Some(mut lease) = self.api.get_opt(NAME).await? else {
            let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(self.spec(None)) };
            return taken(self.api.create(&PostParams::default(), &lease).await);
        };
        let held = lease.spec.clone().unwrap_or_default();
        let holder = held.holder_identity.clone().unwrap_or_default();
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != held) {
            self.seen = Some((held.clone(), Instant::now()));
        }
        let quiet = self.seen.as_ref().map_or(Duration::ZERO, |(_, since)| since.elapsed());
        let lasts = held.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        if holder != self.identity && !holder.is_empty() && quiet < lasts.map_or(LASTS, Duration::from_secs) {
            return Ok(false);
        }
        lease.spec = Some(self.spec(Some(&held)));
        taken(self.api.replace(NAME, &PostParams::default(), &lease).await)
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = Some(MicroTime(Timestamp::now()));
        let own = before.filter(|held| held.holder_identity.as_deref() == Some(&self.identity));
        let transitions = before.and_then(|held| held.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(LASTS.as_secs()).unwrap_or(i32::MAX)),
            acquire_time: own.map_or_else(|| now.clone(), |held| held.acquire_time.clone()),
            renew_time: now,
            lease_transitions: Some(transitions + i32::from(before.is_some() && own.is_none())),
            ..LeaseSpec::default()
        }
    }
}

fn taken(written: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}
