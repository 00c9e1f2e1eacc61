//! The operator: reconciles Kubernetes with Datasets and JindoRuntimes, and reports the observed state in their status.
//!
//! There is one task for each name of a Dataset and JindoRuntime, woken by changes and by a timer: a name is never
//! reconciled twice at the same time, and a slow cluster delays no other one.

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

/// The reporter of events.
const PROGRAM: &str = "jindofs-operator";
/// Longest pause after an error.
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Changes come in bursts and are handled together.
const BURST: Duration = Duration::from_millis(50);

/// Options of the operator.
#[derive(Debug, Clone)]
pub struct Options {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of this replica.
    pub identity: String,
    /// Image for runtimes that name none.
    pub image: String,
    /// Name of the node plugin.
    pub driver: String,
}

/// Shared by all tasks.
#[derive(Clone)]
struct Context {
    cache: ObjectCache,
    options: Arc<Options>,
    recorder: Recorder,
}

/// Runs until the Lease is lost or `stop` completes.
///
/// *Errors*: what prevents the start, or that the Lease was lost.
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
    // A standby counts as ready.
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

/// Refuses to run beside Fluid's controllers: two operators for the same resources would undo each other's work.
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
                // The objects of the task are gone; a new object of the same name that was created meanwhile gets a new
                // task.
                Ok(key) => {
                    wakers.remove(&key);
                    if context.cache.keys(None).contains(&key) {
                        wake(&context, &mut wakers, &mut tasks, key);
                    }
                }
                // A bug: a restart is better than to continue without that task.
                Err(error) => {
                    tracing::error!(%error, "a task has failed");
                    return;
                }
            },
        }
    }
}

/// What a task reconciles.
enum Actor {
    Runtime(RuntimeReconciler),
    Load(Load),
}

/// Wakes the task of a key, or starts one.
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
