//! `jindofs-operator`: Kubernetes' side of JindoFS.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use jindofs_operator::crd::{self, Dataset, JindoRuntime};
use jindofs_operator::desired::{self, Input};
use jindofs_operator::http::{self, Ready};
use jindofs_operator::{controller, csi, output};
use tokio::signal::unix::{SignalKind, signal};

/// Name of the driver: Fluid's, so that its volumes go on.
const DRIVER: &str = "fuse.csi.fluid.io";

#[derive(Debug, Parser)]
#[command(name = "jindofs-operator", version, about = "Kubernetes' side of JindoFS")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes the cluster be as its Datasets and JindoRuntimes ask.
    Controller {
        /// Namespace of the lease by which one of several operators acts.
        #[arg(long, env = "POD_NAMESPACE", default_value = "jindofs-system")]
        namespace: String,
        /// Name of this one among several.
        #[arg(long, env = "POD_NAME", default_value = "jindofs-operator")]
        identity: String,
        /// Image of runtimes that name none.
        #[arg(long, env = "JINDOFS_IMAGE", default_value = "localhost/jindofs:dev")]
        image: String,
        /// Name of the node plugin.
        #[arg(long, env = "CSI_DRIVER", default_value = DRIVER)]
        driver: String,
        /// Port of livez, readyz and metrics.
        #[arg(long, default_value_t = 8080)]
        http_port: u16,
    },
    /// Mounts Datasets for the pods of a node, as the kubelet asks.
    CsiNode {
        /// Name of the node.
        #[arg(long, env = "NODE_NAME")]
        node: String,
        /// Name of the driver.
        #[arg(long, env = "CSI_DRIVER", default_value = DRIVER)]
        driver: String,
        /// Directory of the kubelet.
        #[arg(long, env = "KUBELET_DIR", default_value = "/var/lib/kubelet")]
        kubelet_dir: PathBuf,
        /// Directory below which the clients of the node mount.
        #[arg(long, env = "MOUNTS_DIR", default_value = desired::NODE_DIRECTORY)]
        mounts_dir: PathBuf,
        /// Seconds that a mount waits for the next client before readers are told that it is gone.
        #[arg(long, env = "HANDOVER_TIMEOUT", default_value_t = 120)]
        handover_timeout: u64,
        /// Port of livez, readyz and metrics.
        #[arg(long, default_value_t = 8081)]
        http_port: u16,
    },
    /// Prints the definitions of Dataset, JindoRuntime and DataLoad, for `kubectl apply -f -`.
    Crd,
    /// Prints the objects that a Dataset and its JindoRuntime ask for, or what is wrong with them.
    Render {
        /// YAML file with both.
        file: PathBuf,
        /// Image of a runtime that names none.
        #[arg(long, env = "JINDOFS_IMAGE", default_value = "localhost/jindofs:dev")]
        image: String,
        /// Namespace of resources that name none.
        #[arg(long, default_value = "default")]
        namespace: String,
    },
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(answer) => return output::print_usage(&answer),
    };
    let printed = match arguments.command {
        Command::Crd => crd::yaml().map_err(|error| error.to_string()),
        Command::Render { file, image, namespace } => render(&file, &image, &namespace),
        Command::Controller { namespace, identity, image, driver, http_port } => {
            let options = controller::Options { namespace, identity, image, driver };
            daemon(http_port, async |ready, stop| controller::run(options, ready, stop).await)
        }
        Command::CsiNode { node, driver, kubelet_dir, mounts_dir, handover_timeout, http_port } => {
            let handover_timeout = Duration::from_secs(handover_timeout);
            let options = csi::Options { driver, node, kubelet: kubelet_dir, mounts: mounts_dir, handover_timeout };
            daemon(http_port, async |ready, stop| csi::run(options, ready, stop).await)
        }
    };
    match printed {
        Ok(text) => output::print(&text),
        Err(error) => {
            output::complain(format_args!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs something that serves until it is told to stop.
fn daemon(
    port: u16,
    serve: impl AsyncFnOnce(Ready, std::pin::Pin<Box<dyn Future<Output = ()>>>) -> Result<(), String>,
) -> Result<String, String> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    // What cannot be logged, as on a full disk, would be told on standard error by a macro that panics.
    tracing_subscriber::fmt().json().with_env_filter(filter).log_internal_errors(false).init();
    // There must be exactly one crypto library in the process; a second call would only say so.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let done = runtime.block_on(async {
        let ready = Ready::default();
        http::serve(port, ready.clone()).await?;
        let mut term = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
        let stop = async move {
            tokio::select! { _ = term.recv() => {}, _ = tokio::signal::ctrl_c() => {} }
            tracing::info!("told to stop");
        };
        serve(ready, Box::pin(stop)).await
    });
    // A thread that waits for a dead file system must not keep the process.
    runtime.shutdown_background();
    done.map(|()| String::new())
}

fn render(file: &Path, image: &str, namespace: &str) -> Result<String, String> {
    let at = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
    let text = std::fs::read_to_string(file).map_err(|error| at(&error))?;
    let (mut dataset, mut runtime) = (None, None);
    for document in text.split("\n---").filter(|document| !document.trim().is_empty()) {
        let value: serde_json::Value = serde_saphyr::from_str(document).map_err(|error| at(&error))?;
        match value["kind"].as_str() {
            Some("Dataset") => dataset = Some(serde_json::from_value::<Dataset>(value).map_err(|error| at(&error))?),
            Some("JindoRuntime") => {
                runtime = Some(serde_json::from_value::<JindoRuntime>(value).map_err(|error| at(&error))?);
            }
            _ => {}
        }
    }
    let (Some(dataset), Some(mut runtime)) = (dataset, runtime) else {
        return Err(at(&"a Dataset and a JindoRuntime are needed, in one file"));
    };
    if dataset.metadata.name != runtime.metadata.name || dataset.metadata.namespace != runtime.metadata.namespace {
        return Err(at(&"the Dataset and the JindoRuntime must have the same name and namespace"));
    }
    runtime.metadata.namespace.get_or_insert_with(|| namespace.to_owned());
    let input = Input::new(&dataset, &runtime, image);
    let problems = desired::problems(&input);
    if !problems.is_empty() {
        let lines: Vec<String> = problems.iter().map(|one| format!("{}: {}", one.reason, one.message)).collect();
        return Err(at(&lines.join("\n")));
    }
    for field in desired::of_dataset(&dataset).into_iter().chain(desired::of_runtime(&runtime)) {
        output::complain(format_args!("warning: {field} (in {})", file.display()));
    }
    let objects = desired::objects(&input).map_err(|one| at(&format!("{}: {}", one.reason, one.message)))?;
    objects.yaml().map_err(|error| error.to_string())
}
