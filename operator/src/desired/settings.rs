//! Settings of the processes: what follows from the objects, and over it what the user wrote.

use std::collections::BTreeMap;

use super::names::Role;

/// Port of the masters' client gRPC.
pub const MASTER_RPC: u16 = 8101;
/// Port of the masters' Raft.
pub const MASTER_RAFT: u16 = 8103;
/// Port of the masters' metrics and probes.
pub(super) const MASTER_HTTP: u16 = 8104;
/// Port of the workers' gRPC.
pub(super) const WORKER_RPC: u16 = 6101;
/// Port of the workers' metrics and probes.
pub(super) const WORKER_HTTP: u16 = 6104;
/// Port of the FUSE client's metrics and probes.
pub(super) const FUSE_HTTP: u16 = 10_001;
/// Directory of the config files in every pod.
pub(super) const DIRECTORY: &str = "/etc/jindofs";

/// Keys whose values name the masters.
pub(super) const MASTER_LISTS: [&str; 3] =
    ["namespace.backend.raft.initial-conf", "storage.namespace.rpc.address", "fs.jindocache.namespace.rpc.address"];

/// Keys that follow from what else is made: Services, probes and other pods count on them.
pub(super) const FIXED: [&str; 10] = [
    "namespace.backend.raft.initial-conf",
    "namespace.rpc.port",
    "namespace.backend.raft.port",
    "namespace.http.port",
    "storage.namespace.rpc.address",
    "storage.rpc.port",
    "storage.http.port",
    "fs.jindocache.namespace.rpc.address",
    "fuse.mount",
    "fuse.http.port",
];

/// The role that reads a key.
pub(super) fn role_of(key: &str) -> Option<Role> {
    let prefixes =
        [("namespace.", Role::Master), ("storage.", Role::Worker), ("fs.", Role::Fuse), ("fuse.", Role::Fuse)];
    prefixes.into_iter().find(|(prefix, _)| key.starts_with(prefix)).map(|(_, role)| role)
}

/// Settings by key.
pub(super) type Settings = BTreeMap<String, String>;

/// `derived`, with what the user wrote over it; what is [`FIXED`] stays.
pub(super) fn overlaid(mut derived: Settings, by_user: [&BTreeMap<String, String>; 2]) -> Settings {
    let own = by_user.into_iter().flatten().filter(|(key, _)| !FIXED.contains(&key.as_str()));
    derived.extend(own.map(|(key, value)| (key.clone(), value.clone())));
    derived
}

/// A config file.
pub(super) fn toml(settings: &Settings) -> String {
    // A JSON string is a TOML string too.
    let quoted = |text: &String| serde_json::Value::String(text.clone()).to_string();
    settings.iter().map(|(key, value)| format!("{} = {}\n", quoted(key), quoted(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_wrote_wins_and_any_character_is_quoted() {
        let map = |pairs: &[(&str, &str)]| -> Settings {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let all = overlaid(map(&[("a", "1"), ("b", "2")]), [&map(&[("b", "3")]), &map(&[("c", "say \"x\"\\")])]);
        assert_eq!(toml(&all), "\"a\" = \"1\"\n\"b\" = \"3\"\n\"c\" = \"say \\\"x\\\"\\\\\"\n");
        let port = map(&[("fuse.http.port", "10001")]);
        assert_eq!(overlaid(port.clone(), [&map(&[("fuse.http.port", "1")]), &map(&[])]), port, "probes ask there");
    }
}
