//! `dev.json`: what runs where. Scripts and tests read it; its shape is a contract.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::at;
use crate::error::{Error, ErrorKind, Result};

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevFile {
    /// Uuid of the cluster.
    pub cluster: String,
    /// Client gRPC `host:port` of all masters, with commas, as `jindoctl --masters` takes it.
    pub masters: String,
    /// Every process, running or not.
    pub processes: Vec<DevProcess>,
}

/// One process; what its role has not is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevProcess {
    /// `master-0`, `worker-1`, `fuse-0`.
    pub name: String,
    /// `master`, `worker` or `fuse`.
    pub role: String,
    /// Process id; null while it is down.
    pub pid: Option<u32>,
    /// Mount point of a FUSE client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<PathBuf>,
    /// gRPC `host:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<String>,
    /// Raft `host:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raft: Option<String>,
    /// Unix socket of a worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// HTTP `host:port`.
    pub http: String,
    /// Metadata directory of a master.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta_dir: Option<PathBuf>,
    /// Where its standard output and error go.
    pub log: PathBuf,
}

impl DevFile {
    /// Reads `dir/dev.json`.
    ///
    /// *Errors*: `NotFound` when there is no cluster in `dir`.
    pub fn read(dir: &Path) -> Result<DevFile> {
        let path = dir.join("dev.json");
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let message = format!("{} holds no local cluster: there is no dev.json", dir.display());
                return Err(Error::new(ErrorKind::NotFound, message));
            }
            Err(error) => return Err(at(&path)(error)),
        };
        serde_json::from_slice(&text)
            .map_err(|error| Error::new(ErrorKind::Corrupted, format!("{}: {error}", path.display())))
    }

    /// Replaces `dir/dev.json`; readers see the old file or the new one.
    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).map_err(|error| Error::internal(error.to_string()))?;
        let path = dir.join("dev.json");
        crate::runtime::write_durably(&path, &text).map_err(at(&path))
    }
}

/// True if `pid` is a living process that was started with this config file. A zombie is not living.
pub(super) fn is_running(pid: u32, config: &Path) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    if matches!(state, None | Some('Z' | 'X')) {
        return false;
    }
    let Ok(arguments) = std::fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    use std::os::unix::ffi::OsStrExt;
    arguments.split(|byte| *byte == 0).any(|argument| argument == config.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_shows_only_what_its_role_has_and_a_null_pid_when_down() {
        let process = DevProcess {
            name: "fuse-0".into(),
            role: "fuse".into(),
            pid: None,
            mount: Some("/mnt".into()),
            grpc: None,
            raft: None,
            data: None,
            http: "127.0.0.1:1".into(),
            meta_dir: None,
            log: "/d/fuse-0.log".into(),
        };
        let text = serde_json::to_string(&process).expect("json");
        let want =
            r#"{"name":"fuse-0","role":"fuse","pid":null,"mount":"/mnt","http":"127.0.0.1:1","log":"/d/fuse-0.log"}"#;
        assert_eq!(text, want);
        let dir = tempfile::tempdir().expect("tempdir");
        assert_eq!(DevFile::read(dir.path()).expect_err("none").kind, ErrorKind::NotFound);
        let file = DevFile { cluster: "u".into(), masters: "a:1".into(), processes: vec![process] };
        file.write(dir.path()).expect("written");
        assert_eq!(DevFile::read(dir.path()).expect("read"), file);
    }

    #[test]
    fn a_process_is_known_by_its_config_file_not_by_its_number_alone() {
        assert!(!is_running(std::process::id(), Path::new("/no/such/config.toml")));
        assert!(!is_running(u32::MAX, Path::new("/x")));
    }
}
