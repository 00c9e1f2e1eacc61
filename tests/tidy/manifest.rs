//! Dependencies that nobody uses are weight and risk: each must be named in the sources of its package.

use super::source::Source;

/// Dependencies that no source names, with the reason they are needed.
const UNNAMED: [(&str, &str); 0] = [];

/// Complaints about dependencies of the manifest that none of `sources` names.
pub fn check_used(path: &str, manifest: &str, sources: &[&Source]) -> Vec<String> {
    let parsed: toml::Table = manifest.parse().expect("a manifest");
    let mut complaints = Vec::new();
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        let Some(toml::Value::Table(dependencies)) = parsed.get(section) else { continue };
        for name in dependencies.keys().filter(|name| !UNNAMED.iter().any(|(unnamed, _)| unnamed == name)) {
            let word = name.replace('-', "_");
            // prost's own derive names it in generated code, which no source shows.
            let generated = path.starts_with("proto/") && ["bytes", "prost", "tonic_prost"].contains(&word.as_str());
            if !generated && sources.iter().all(|source| source.find(&word).is_empty()) {
                complaints.push(format!("{path}: [{section}] `{name}` is named by no source"));
            }
        }
    }
    complaints
}
