//! The operator: makes Kubernetes be as Datasets and JindoRuntimes ask, and says in their status what is.
//!
//! One task per Dataset and JindoRuntime of a name, woken by changes and by time: nothing runs twice at once for one name,
//! and a slow cluster delays no other one.

mod apply;
mod claim_migration;
mod claims;
mod cleanup;
mod founding;
mod lease;
mod load;
mod masters;
mod members;
mod mounts;
mod object_cache;
mod pod_diagnosis;
mod report;
mod runtime_reconciler;
mod schedule;
mod status;
mod workers;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::Recorder;
use kube::{Api, Client};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use crate::events::{EventMessage, publish, recorder};
use crate::http::Ready;
use load::Load;
use object_cache::{Key, ObjectCache};
use runtime_reconciler::RuntimeReconciler;

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
struct Context {
    cache: ObjectCache,
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
        let news = EventMessage::new("FluidPresent", why.clone(), true);
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
    let (changes, mut changed) = mpsc::unbounded_channel();
    let recorder = recorder(client.clone(), PROGRAM, &options.identity);
    let cache = ObjectCache::watch(client, &changes).await;
    let context = Context { cache, options: Arc::new(options), recorder };
    let mut wakers: HashMap<Key, Arc<Notify>> = HashMap::new();
    let mut tasks: JoinSet<Key> = JoinSet::new();
    for key in context.cache.keys(None) {
        wake(&context, &mut wakers, &mut tasks, key);
    }
    loop {
        tokio::select! {
            key = changed.recv() => match key {
                None => return,
                Some(Key::All) => context.cache.keys(None).into_iter().for_each(|key| wake(&context, &mut wakers, &mut tasks, key)),
                Some(Key::Namespace(one)) => {
                    context.cache.keys(Some(&one)).into_iter().for_each(|key| wake(&context, &mut wakers, &mut tasks, key));
                }
                Some(key) => wake(&context, &mut wakers, &mut tasks, key),
            },
            Some(ended) = tasks.join_next() => match ended {
                // Its objects are gone; one of the same name that came meanwhile gets a task of its own.
                Ok(key) => {
                    wakers.remove(&key);
                    if context.cache.keys(None).contains(&key) {
                        wake(&context, &mut wakers, &mut tasks, key);
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
    Runtime(RuntimeReconciler),
    Load(Load),
}

/// Wakes the task of a key, or starts it.
fn wake(context: &Context, wakers: &mut HashMap<Key, Arc<Notify>>, tasks: &mut JoinSet<Key>, key: Key) {
    if let Some(waker) = wakers.get(&key) {
        waker.notify_one();
        return;
    }
    let mut actor = match key.clone() {
        Key::Runtime(namespace, name) => Actor::Runtime(RuntimeReconciler::new(context.clone(), namespace, name)),
        Key::Load(namespace, name) => Actor::Load(Load { context: context.clone(), namespace, name }),
        Key::Namespace(_) | Key::All => return,
    };
    if !context.cache.keys(None).contains(&key) {
        return;
    }
    let waker = Arc::new(Notify::new());
    wakers.insert(key.clone(), waker.clone());
    tasks.spawn(async move {
        let mut failures = 0;
        loop {
            let done = match &mut actor {
                Actor::Runtime(pair) => pair.reconcile().await,
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
            tokio::select! { () = waker.notified() => tokio::time::sleep(BURST).await, () = tokio::time::sleep(pause) => {} }
        }
    });
}
