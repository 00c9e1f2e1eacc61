//! The node plugin as the kubelet drives it: its program, real mounts of a real cluster, calls through its socket.

mod controller;
mod dead;
mod front;
mod volumes;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use jindofs_proto::csi::node_client::NodeClient;
use jindofs_proto::csi::volume_capability::access_mode::Mode;
use jindofs_proto::csi::volume_capability::{AccessMode, AccessType, MountVolume};
use jindofs_proto::csi::{
    NodeGetVolumeStatsRequest, NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, VolumeCapability,
};
use rustix::mount::UnmountFlags;
use tonic::transport::{Channel, Endpoint};

use crate::support::cluster::{Cluster, PATIENCE, binary};
use crate::support::{free_port, wait_for};

pub use front::serve;

const DRIVER: &str = "fuse.csi.fluid.io";
/// Where the files of [`Site::local`] are in the namespace.
const LOCAL: &str = "local";

/// A cluster over a local directory, clients that have mounted it, and the plugin. There are blanks in the paths of mounts and
/// of targets.
pub struct Site {
    plugin: Child,
    pub cluster: Cluster,
    /// The under-storage.
    pub local: PathBuf,
    /// Mount points of the clients `fuse-0`, `fuse-1`, ...
    pub mounts: Vec<PathBuf>,
    /// Directory of the kubelet.
    pub kubelet: PathBuf,
    _dir: tempfile::TempDir,
}

impl Site {
    pub fn start(clients: usize) -> Site {
        let dir = tempfile::tempdir().expect("tempdir");
        let [local, kubelet, runtime] = ["files", "kubelet", "runtime mnt"].map(|name| dir.path().join(name));
        let mounts: Vec<PathBuf> =
            (0..clients).map(|number| runtime.join(number.to_string()).join("jindofs-fuse")).collect();
        for made in mounts.iter().chain([&local, &kubelet]) {
            std::fs::create_dir_all(made).expect("mkdir");
        }
        let cluster = Cluster::start_with(1, |dev| {
            dev.workers = 1;
            dev.worker_quota = 64 << 20;
            dev.mounts = mounts.clone();
        });
        // Volumes come and go in the under-storage: each access asks it.
        let (path, uri) = (format!("/{LOCAL}"), format!("local://{}", local.display()));
        let added = cluster.jindoctl(&["mount", "add", &path, &uri, "--meta-policy", "always"]);
        assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
        let plugin = launch(&kubelet);
        Site { plugin, cluster, local, mounts, kubelet, _dir: dir }
    }

    /// Kills the plugin and starts it again.
    pub fn restart_plugin(&mut self) {
        self.plugin.kill().expect("killed");
        self.plugin.wait().expect("gone");
        self.plugin = launch(&self.kubelet);
    }

    fn records(&self) -> PathBuf {
        plugin_directory(&self.kubelet).join("published")
    }

    pub async fn channel(&self) -> Channel {
        let socket = plugin_directory(&self.kubelet).join("csi.sock");
        Endpoint::from_shared(format!("unix://{}", socket.display()))
            .expect("a uri")
            .connect()
            .await
            .expect("connected")
    }

    pub async fn client(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel().await)
    }

    /// Attributes of a volume that shows a directory of a client's mount.
    fn context(&self, client: usize, directory: &str) -> BTreeMap<String, String> {
        volume_context(&self.mounts[client], directory)
    }

    /// Where the kubelet wants the volume of a pod.
    pub fn target(&self, pod: &str) -> PathBuf {
        self.kubelet.join("pods").join(pod).join("volumes/a volume/mount")
    }

    fn stage(&self, client: usize) -> NodeStageVolumeRequest {
        NodeStageVolumeRequest {
            volume_id: format!("volume-{client}"),
            staging_target_path: self.kubelet.join("staging").display().to_string(),
            volume_capability: Some(capability(Mode::MultiNodeMultiWriter)),
            volume_context: self.context(client, ""),
            ..NodeStageVolumeRequest::default()
        }
    }

    fn publish(&self, client: usize, pod: &str) -> NodePublishVolumeRequest {
        let stage = self.stage(client);
        NodePublishVolumeRequest {
            volume_id: stage.volume_id,
            staging_target_path: stage.staging_target_path,
            target_path: self.target(pod).display().to_string(),
            volume_capability: stage.volume_capability,
            volume_context: stage.volume_context,
            ..NodePublishVolumeRequest::default()
        }
    }

    fn unpublish(&self, client: usize, pod: &str) -> NodeUnpublishVolumeRequest {
        let publish = self.publish(client, pod);
        NodeUnpublishVolumeRequest { volume_id: publish.volume_id, target_path: publish.target_path }
    }

    fn unstage(&self, client: usize) -> NodeUnstageVolumeRequest {
        let stage = self.stage(client);
        NodeUnstageVolumeRequest { volume_id: stage.volume_id, staging_target_path: stage.staging_target_path }
    }

    fn stats(&self, client: usize, pod: &str) -> NodeGetVolumeStatsRequest {
        let publish = self.publish(client, pod);
        let (volume_id, volume_path) = (publish.volume_id, publish.target_path);
        NodeGetVolumeStatsRequest { volume_id, volume_path, staging_target_path: String::new() }
    }

    /// Nothing of what was published may be left.
    pub fn assert_nothing_published(&self) {
        let left: Vec<PathBuf> = mounts_below(&self.kubelet).into_iter().map(|(path, _)| path).collect();
        assert!(left.is_empty(), "still mounted: {left:?}");
        let records: Vec<_> = std::fs::read_dir(self.records()).expect("listed").flatten().collect();
        assert!(records.is_empty(), "still remembered: {records:?}");
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.plugin.kill();
        let _ = self.plugin.wait();
        // Of a test that failed; what is mounted would outlive us.
        for (path, _) in mounts_below(&self.kubelet).iter().rev() {
            let _ = rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }
}

fn plugin_directory(kubelet: &Path) -> PathBuf {
    kubelet.join("plugins").join(DRIVER)
}

/// Starts the plugin and waits until it serves.
fn launch(kubelet: &Path) -> Child {
    let port = free_port();
    let runtime = kubelet.with_file_name("runtime mnt");
    let mut plugin = Command::new(binary("jindofs-operator"))
        .args(["csi-node", "--node", "here", "--driver", DRIVER, "--http-port", &port.to_string(), "--kubelet-dir"])
        .arg(kubelet)
        .arg("--mounts-dir")
        .arg(&runtime)
        .stdout(Stdio::null())
        .spawn()
        .expect("jindofs-operator runs");
    let socket = plugin_directory(kubelet).join("csi.sock");
    wait_for("the plugin serves", PATIENCE, || {
        assert!(plugin.try_wait().expect("asked").is_none(), "the plugin has ended");
        std::os::unix::net::UnixStream::connect(&socket).ok()
    });
    plugin
}

fn volume_context(mount: &Path, directory: &str) -> BTreeMap<String, String> {
    let pairs = [("fluid_path", mount.display().to_string()), ("fluid_sub_path", directory.to_owned())];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn capability(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

/// What is mounted at or below a path: where, and with which options, in the order of mounting.
fn mounts_below(path: &Path) -> Vec<(PathBuf, String)> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("a mount table");
    let line = |line: &str| {
        let mut fields = line.split(' ').skip(4);
        let at = PathBuf::from(fields.next()?.replace("\\040", " "));
        Some((at, fields.next()?.to_owned()))
    };
    table.lines().filter_map(line).filter(|(at, _)| at.starts_with(path)).collect()
}
