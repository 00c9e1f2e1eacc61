//! What a master shows on its HTTP port.

use std::fmt::Write as _;

use crate::master::raft::Handle;
use crate::telemetry::http::Probe;

/// Readiness and figures of a master.
#[derive(Debug, Clone)]
pub struct MasterProbe(pub Handle);

impl Probe for MasterProbe {
    fn ready(&self) -> Result<String, String> {
        self.0.readiness().map(|()| self.0.phase())
    }

    fn figures(&self) -> String {
        let mut text = String::new();
        for (name, help, value) in figures(&self.0) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
        }
        text
    }
}

/// Name, help, type and value of every metric.
fn figures(handle: &Handle) -> Vec<(&'static str, &'static str, u64)> {
    let status = handle.status();
    let own = status.self_.unwrap_or_default();
    let mut figures = handle.data_figures();
    figures.extend([
        ("jindofs_master_member_id", "Id of this member, 0 before it is admitted.", own.id),
        ("jindofs_master_leader_id", "Id of the leader this member knows, 0 for none.", status.leader_id),
        ("jindofs_master_term", "Raft term.", status.term),
        ("jindofs_master_ready", "1 when readyz answers 200.", u64::from(handle.is_ready())),
        ("jindofs_master_last_log_index", "Index of the last entry in the log.", own.last_log),
        ("jindofs_master_committed_index", "Index of the last entry known to be committed.", status.committed),
        ("jindofs_master_applied_index", "Index of the last entry applied.", own.applied),
        ("jindofs_master_snapshot_index", "Index of the newest snapshot.", own.snapshot),
        ("jindofs_master_boots", "Starts of this disk.", own.boot),
        (
            "jindofs_master_refused_messages",
            "Messages of other masters refused since the start.",
            handle.refused_messages(),
        ),
        ("jindofs_master_meta_dir_used_bytes", "Bytes used by the metadata directory.", own.disk_used_bytes),
        ("jindofs_master_meta_dir_free_bytes", "Bytes free on its file system.", own.disk_free_bytes),
    ]);
    figures.extend(handle.disk_figures());
    figures
}
