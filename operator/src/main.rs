//! `jindofs-operator`: Kubernetes' side of JindoFS.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use jindofs_operator::crd::{self, Dataset, JindoRuntime};
use jindofs_operator::desired::{self, Input};

#[derive(Debug, Parser)]
#[command(name = "jindofs-operator", version, about = "Kubernetes' side of JindoFS")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
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
    let printed = match Arguments::parse().command {
        Command::Crd => crd::yaml().map_err(|error| error.to_string()),
        Command::Render { file, image, namespace } => render(&file, &image, &namespace),
    };
    match printed {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
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
    let objects = desired::objects(&input).map_err(|one| at(&format!("{}: {}", one.reason, one.message)))?;
    objects.yaml().map_err(|error| error.to_string())
}
