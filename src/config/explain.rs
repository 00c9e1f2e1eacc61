//! `check-config`: the effective settings of a role, where each comes from, and what it means.

use std::fmt::Write as _;

use super::keys::Role;
use super::source::{Settings, Source};
use super::{ClientConfig, FuseConfig, MasterConfig, WorkerConfig};
use crate::error::Result;

/// Checks the settings as their role would.
///
/// *Errors*: `InvalidArgument` with every problem there is.
pub fn check(settings: &Settings) -> Result<()> {
    match settings.role() {
        Role::Master => MasterConfig::from_settings(settings).map(drop),
        Role::Worker => WorkerConfig::from_settings(settings).map(drop),
        Role::Fuse => FuseConfig::from_settings(settings).map(drop),
        Role::Ctl => ClientConfig::from_settings(settings).map(drop),
    }
}

/// The explanation, for people: one block per key.
pub fn explain(settings: &Settings) -> String {
    let mut text =
        format!("# effective settings of a {}; flag over environment over file over default\n", settings.role().name());
    for (key, setting) in settings.iter() {
        let value = if setting.value.is_empty() { "(not set)" } else { &setting.value };
        let _ = write!(text, "\n{} = {value}\n    from: {}\n    {}", key.name, setting.source, key.doc);
        let default = if key.default.is_empty() { String::new() } else { format!(" Default: {}.", key.default) };
        let _ = writeln!(text, " {}.{default} Environment: {}.", key.kind.form(), key.env());
    }
    for line in advice(settings) {
        let _ = writeln!(text, "\nwarning: {line}");
    }
    text
}

/// What is no error but should be known, for people: one text per setting.
pub fn advice(settings: &Settings) -> Vec<String> {
    let mut lines = settings.warnings.clone();
    let masters = settings.get("namespace.backend.raft.initial-conf");
    if let Some(masters) = masters.filter(|masters| masters.source != Source::Default) {
        let count = super::value::list(&masters.value).len();
        if count > 1 && count.is_multiple_of(2) {
            lines.push(format!(
                "namespace.backend.raft.initial-conf: {count} masters survive no more losses than {}, and are not founded as \
                 a cluster: use an odd number",
                count - 1
            ));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::source::FlagValue;
    use super::*;

    #[test]
    fn an_explanation_names_value_source_meaning_and_default() {
        let flags = [FlagValue::from_set("namespace.meta-dir=/m").expect("valid")];
        let settings = Settings::load(Role::Master, None, &|_| None, &flags).expect("loads");
        let text = explain(&settings);
        assert!(text.contains("namespace.meta-dir = /m\n    from: flag --set\n    Directory of identity"), "{text}");
        assert!(text.contains("namespace.rpc.port = 8101\n    from: default"), "{text}");
        assert!(check(&settings).is_ok());
    }
}
