//! The operator: makes Kubernetes be as Datasets and JindoRuntimes ask, and says in their status what is.
//!
//! One task per Dataset and JindoRuntime of a name, woken by changes and by time: nothing runs twice at once for one name,
//! and a slow cluster delays no other one.

mod apply;
mod claims;
mod convert;
mod founding;
mod lease;
mod load;
mod masters;
mod members;
mod mounts;
mod pair;
mod release;
mod report;
mod schedule;
mod status;
mod waiting;
mod workers;
mod world;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::Recorder;
use kube::{Api, Client};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use crate::events::{News, publish, recorder};
use crate::http::Ready;
use load::Load;
use pair::Pair;
use world::{Key, World};

/// Who tells events.
const PROGRAM: &str = "jindofs-operator";
/// Longest pause after something failed.
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Changes come in bursts: they are looked at together.
const BURST: Duration = Duration::from_millis(50);

/// What the operator is told when it starts.
#[derive(Debug, Clone)]
pub struct Options {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of this process among several.
    pub identity: String,
    /// Image of runtimes that name none.
    pub image: String,
    /// Name of the node plugin.
    pub driver: String,
}

/// What every task shares.
#[derive(Clone)]
struct Site {
    world: World,
    options: Arc<Options>,
    recorder: Recorder,
}

/// Runs until the Lease is lost or `stop` completes.
///
/// *Errors*: what keeps it from starting, or that the Lease was lost.
pub async fn run(options: Options, ready: Ready, stop: impl Future<Output = ()>) -> Result<(), String> {
    let client = Client::try_default().await.map_err(|error| format!("no Kubernetes to talk to: {error}"))?;
    if let Err(why) = refuse_beside_fluid(&client).await {
        let pod = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(options.namespace.clone()),
            name: Some(options.identity.clone()),
            ..ObjectReference::default()
        };
        let news = News::new("FluidPresent", why.clone(), true);
        publish(&recorder(client, PROGRAM, &options.identity), &pod, news).await;
        return Err(why);
    }
    let mut election = lease::Election::new(client.clone(), &options.namespace, options.identity.clone());
    // One that waits is ready to take over.
    ready.set();
    let mut stop = std::pin::pin!(stop);
    tracing::info!(identity = options.identity, "waiting for the lease");
    tokio::select! { () = election.acquire() => {}, () = &mut stop => return Ok(()) }
    tracing::info!("the lease is held");
    let outcome = tokio::select! {
        () = act(client, options) => Err("the watches have ended".to_owned()),
        () = election.hold() => Err("the lease is lost: another operator acts now".to_owned()),
        () = &mut stop => Ok(()),
    };
    election.release().await;
    outcome
}

/// Two operators for the same resources would undo each other's work.
async fn refuse_beside_fluid(client: &Client) -> Result<(), String> {
    let deployments: Api<k8s_openapi::api::apps::v1::Deployment> = Api::namespaced(client.clone(), "fluid-system");
    for name in ["dataset-controller", "jindoruntime-controller"] {
        let found = deployments.get_opt(name).await.map_err(|error| format!("deployment {name}: {error}"))?;
        if found.is_some_and(|one| one.spec.and_then(|spec| spec.replicas).unwrap_or(1) > 0) {
            return Err(format!(
                "Fluid's {name} runs in namespace fluid-system and looks after the same resources: uninstall Fluid, or scale \
                 it to 0, or use its controllers with our images instead"
            ));
        }
    }
    Ok(())
}

async fn act(client: Client, options: Options) {
    let (wake, mut woken) = mpsc::unbounded_channel();
    let recorder = recorder(client.clone(), PROGRAM, &options.identity);
    let world = World::watch(client, &wake).await;
    let site = Site { world, options: Arc::new(options), recorder };
    let mut bells: HashMap<Key, Arc<Notify>> = HashMap::new();
    let mut tasks: JoinSet<Key> = JoinSet::new();
    for key in site.world.keys(None) {
        ring(&site, &mut bells, &mut tasks, key);
    }
    loop {
        tokio::select! {
            key = woken.recv() => match key {
                None => return,
                Some(Key::All) => site.world.keys(None).into_iter().for_each(|key| ring(&site, &mut bells, &mut tasks, key)),
                Some(Key::Namespace(one)) => {
                    site.world.keys(Some(&one)).into_iter().for_each(|key| ring(&site, &mut bells, &mut tasks, key));
                }
                Some(key) => ring(&site, &mut bells, &mut tasks, key),
            },
            Some(ended) = tasks.join_next() => match ended {
                // Its objects are gone; one of the same name that came meanwhile gets a task of its own.
                Ok(key) => {
                    bells.remove(&key);
                    if site.world.keys(None).contains(&key) {
                        ring(&site, &mut bells, &mut tasks, key);
                    }
                }
                // A defect of ours: better start from nothing than go on without that task.
                Err(error) => {
                    tracing::error!(%error, "a task has failed");
                    return;
                }
            },
        }
    }
}

/// What a task looks after.
enum Actor {
    Pair(Pair),
    Load(Load),
}

/// Wakes the task of a key, or starts it.
fn ring(site: &Site, bells: &mut HashMap<Key, Arc<Notify>>, tasks: &mut JoinSet<Key>, key: Key) {
    if let Some(bell) = bells.get(&key) {
        bell.notify_one();
        return;
    }
    let mut actor = match key.clone() {
        Key::Pair(namespace, name) => Actor::Pair(Pair::new(site.clone(), namespace, name)),
        Key::Load(namespace, name) => Actor::Load(Load { site: site.clone(), namespace, name }),
        Key::Namespace(_) | Key::All => return,
    };
    if !site.world.keys(None).contains(&key) {
        return;
    }
    let bell = Arc::new(Notify::new());
    bells.insert(key.clone(), bell.clone());
    tasks.spawn(async move {
        let mut failures = 0;
        loop {
            let done = match &mut actor {
                Actor::Pair(pair) => pair.reconcile().await,
                Actor::Load(load) => load.reconcile().await,
            };
            let pause = match done {
                Ok(None) => return key,
                Ok(Some(pause)) => {
                    failures = 0;
                    pause
                }
                Err(error) => {
                    failures += 1;
                    tracing::warn!(?key, %error, "reconciling failed");
                    metrics::counter!("jindofs_operator_reconcile_errors_total").increment(1);
                    BACKOFF_MAX.min(Duration::from_millis(500) * 2_u32.saturating_pow(failures))
                }
            };
            tokio::select! { () = bell.notified() => tokio::time::sleep(BURST).await, () = tokio::time::sleep(pause) => {} }
        }
    });
}
