//! A client that is replaced while its mount is read, with the node plugin as it runs on a node: readers wait and go on.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jindofs_proto::csi;
use jindofs_proto::csi::node_client::NodeClient;
use jindofs_proto::csi::volume_capability::access_mode::Mode;
use jindofs_proto::csi::volume_capability::{AccessType, MountVolume};
use tonic::transport::{Channel, Endpoint};

use super::{Site, content, start};
use crate::support::cluster::{PATIENCE, binary};
use crate::support::{after, free_port, fuse_works, rounds, wait_for};

/// A cluster with one worker, a client, and a node plugin that shows its mount at a target.
struct Node {
    site: Site,
    plugin: Plugin,
    /// Where the client mounts.
    mnt: PathBuf,
    /// Where a pod would see it.
    target: PathBuf,
}

/// `jindofs-operator csi-node`.
struct Plugin {
    dir: PathBuf,
    timeout: u64,
    child: Child,
    starts: u32,
}

impl Plugin {
    fn start(dir: &Path, timeout: u64) -> Plugin {
        let (child, starts) = (Plugin::spawn(dir, timeout, 0), 0);
        let plugin = Plugin { dir: dir.to_owned(), timeout, child, starts };
        plugin.wait_for("serving the kubelet");
        plugin
    }

    fn spawn(dir: &Path, timeout: u64, starts: u32) -> Child {
        let log = File::create(dir.join(format!("plugin-{starts}.log"))).expect("a log");
        let mut command = Command::new(binary("jindofs-operator"));
        command.args(["csi-node", "--node", "n", "--http-port", &free_port().to_string()]);
        command.arg("--kubelet-dir").arg(dir.join("kubelet"));
        command.arg("--mounts-dir").arg(Plugin::mounts(dir));
        command.args(["--handover-timeout", &timeout.to_string()]);
        command.stdin(Stdio::null()).stdout(log).spawn().expect("jindofs-operator runs")
    }

    /// Directory of all mounts.
    fn mounts(dir: &Path) -> PathBuf {
        dir.join("mounts")
    }

    fn socket(dir: &Path) -> PathBuf {
        Plugin::mounts(dir).join(".handover/keeper.sock")
    }

    /// Waits until the running one has logged `what`.
    #[track_caller]
    fn wait_for(&self, what: &str) {
        let log = self.dir.join(format!("plugin-{}.log", self.starts));
        wait_for(&format!("the plugin says: {what}"), PATIENCE, || {
            std::fs::read_to_string(&log).ok()?.contains(what).then_some(())
        });
    }

    fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("gone");
    }

    fn restart(&mut self) {
        self.starts += 1;
        self.child = Plugin::spawn(&self.dir, self.timeout, self.starts);
        self.wait_for("serving the kubelet");
    }

    async fn kubelet(&self) -> NodeClient<Channel> {
        let socket = self.dir.join("kubelet/plugins/fuse.csi.fluid.io/csi.sock");
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).expect("a uri");
        NodeClient::new(endpoint.connect().await.expect("the plugin listens"))
    }
}

impl Node {
    async fn start(timeout: u64) -> Node {
        let dir = tempfile::tempdir().expect("tempdir").keep();
        let mnt = Plugin::mounts(&dir).join("default/demo/jindofs-fuse");
        std::fs::create_dir_all(&mnt).expect("made");
        let plugin = Plugin::start(&dir, timeout);
        let site = start(1, |dev| {
            dev.workers = 1;
            dev.mounts = vec![mnt.clone()];
            dev.settings.push(("fuse.handover.socket".to_owned(), Plugin::socket(&dir).display().to_string()));
        })
        .await;
        let node = Node { site, plugin, mnt, target: dir.join("kubelet/pods/p/mount") };
        node.plugin.wait_for("holds the mount of a client");
        node
    }

    async fn publish(&self) {
        let access = AccessType::Mount(MountVolume::default());
        let mode = csi::volume_capability::AccessMode { mode: Mode::MultiNodeReaderOnly.into() };
        let capability = csi::VolumeCapability { access_type: Some(access), access_mode: Some(mode) };
        let request = csi::NodePublishVolumeRequest {
            volume_id: "default-demo".to_owned(),
            staging_target_path: self.plugin.dir.join("kubelet/staging").display().to_string(),
            target_path: self.target.display().to_string(),
            volume_capability: Some(capability),
            volume_context: [("fluid_path".to_owned(), self.mnt.display().to_string())].into(),
            readonly: true,
            ..Default::default()
        };
        self.plugin.kubelet().await.node_publish_volume(request).await.expect("published");
    }

    async fn unpublish(&self) {
        let target_path = self.target.display().to_string();
        let request = csi::NodeUnpublishVolumeRequest { volume_id: "default-demo".to_owned(), target_path };
        self.plugin.kubelet().await.node_unpublish_volume(request).await.expect("unpublished");
    }

    /// A file below the mount, as a pod sees it.
    fn path(&self, name: &str) -> PathBuf {
        self.target.join("local").join(name)
    }

    fn store(&self, name: &str, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.site.local.join(name), bytes).expect("written");
        self.path(name)
    }

    fn kill_client(&self) {
        self.site.cluster.dev.kill("fuse-0").expect("killed");
    }

    fn start_client(&self) {
        self.site.cluster.dev.restart("fuse-0").expect("it serves");
    }

    fn mounted(&self) -> bool {
        jindofs::fuse::is_mounted(&self.mnt)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // What still waits is told first.
        let _ = self.plugin.child.kill();
        let _ = self.plugin.child.wait();
        let _ = self.site.cluster.dev.kill("fuse-0");
        while jindofs::fuse::is_mounted(&self.target) && jindofs::fuse::unmount(&self.target).is_ok() {}
        let _ = jindofs::fuse::unmount(&self.mnt);
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.plugin.dir);
        }
    }
}

/// Reads through one descriptor that stays open, opens the file anew and lists its directory, over and over.
struct Reader {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<(u64, Duration), String>>,
}

impl Reader {
    fn start(path: PathBuf, expected: Vec<u8>) -> Reader {
        let stop = Arc::new(AtomicBool::new(false));
        let ended = stop.clone();
        let held = File::open(&path).expect("open");
        let thread = std::thread::spawn(move || {
            let (mut reads, mut longest) = (0, Duration::ZERO);
            while !ended.load(Ordering::SeqCst) {
                let started = Instant::now();
                read_past_cache(&held, &expected).map_err(|error| format!("held open: {error}"))?;
                let anew = File::open(&path).map_err(|error| format!("opened anew: {error}"))?;
                read_past_cache(&anew, &expected).map_err(|error| format!("opened anew: {error}"))?;
                let list = std::fs::read_dir(path.parent().unwrap_or(&path));
                let list = list.and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
                list.map_err(|error| format!("listed: {error}"))?;
                longest = longest.max(started.elapsed());
                reads += 1;
            }
            Ok((reads, longest))
        });
        Reader { stop, thread }
    }

    /// How often it has read, and how long it took at most.
    #[track_caller]
    fn stop(self) -> (u64, Duration) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("no panic").expect("no reader saw an error")
    }
}

fn read_past_cache(file: &File, expected: &[u8]) -> std::io::Result<()> {
    // Drops what the kernel holds of it, so that the read is for the client to answer.
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)?;
    let mut bytes = vec![0; expected.len()];
    file.read_exact_at(&mut bytes, 0)?;
    if bytes == expected { Ok(()) } else { Err(std::io::Error::other("other bytes")) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_or_the_plugin_killed_while_files_are_read_is_a_pause_for_readers_and_no_error() {
    if !fuse_works("a_client_or_the_plugin_killed_while_files_are_read_is_a_pause_for_readers_and_no_error") {
        return;
    }
    let mut node = Node::start(120).await;
    node.publish().await;
    let bytes = content(600_000, 1);
    let cold = |round| content(300_000, 100 + round);
    for round in 0..rounds(20) {
        node.store(&format!("cold-{round}"), &cold(round));
    }
    let reader = Reader::start(node.store("warm", &bytes), bytes);
    for round in 0..rounds(20) {
        if round % 3 == 2 {
            node.plugin.kill();
            node.plugin.restart();
            node.plugin.wait_for("holds the mount of a client");
        }
        // A read that the client has begun and cannot end: the worker stands still.
        let (file, cold) = (File::open(node.path(&format!("cold-{round}"))).expect("open"), cold(round));
        node.site.cluster.dev.pause("worker-0").expect("paused");
        let read = std::thread::spawn(move || read_past_cache(&file, &cold));
        after(Duration::from_millis(50));
        node.kill_client();
        node.site.cluster.dev.resume("worker-0").expect("resumed");
        node.start_client();
        read.join().expect("no panic").expect("the read that was under way");
    }
    let (reads, longest) = reader.stop();
    println!("{reads} times read, listed and opened; the longest took {longest:?}");
    assert!(reads > 20, "{reads}");
    node.unpublish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_and_plugin_killed_at_once_end_open_files_and_new_opens_go_on() {
    if !fuse_works("client_and_plugin_killed_at_once_end_open_files_and_new_opens_go_on") {
        return;
    }
    let mut node = Node::start(120).await;
    node.publish().await;
    let bytes = content(600_000, 1);
    let path = node.store("f", &bytes);
    let held = File::open(&path).expect("open");
    read_past_cache(&held, &bytes).expect("read");
    node.plugin.kill();
    node.kill_client();
    let ended = read_past_cache(&held, &bytes).expect_err("nobody holds the mount");
    assert!(matches!(ended.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED)), "{ended}");
    node.plugin.restart();
    node.start_client();
    wait_for("new opens go on at the target", PATIENCE, || std::fs::read(&path).ok().filter(|read| *read == bytes));
    assert!(read_past_cache(&held, &bytes).is_err(), "what was open is not");
    node.unpublish().await;
    assert!(!jindofs::fuse::is_mounted(&node.target), "both mounts are gone from the target");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_no_client_takes_in_time_ends_and_the_next_one_is_shown_in_its_place() {
    if !fuse_works("a_mount_that_no_client_takes_in_time_ends_and_the_next_one_is_shown_in_its_place") {
        return;
    }
    let node = Node::start(2).await;
    node.publish().await;
    let bytes = content(600_000, 1);
    let path = node.store("f", &bytes);
    let held = File::open(&path).expect("open");
    read_past_cache(&held, &bytes).expect("read");
    node.kill_client();
    let started = Instant::now();
    let expected = bytes.clone();
    let waiting = std::thread::spawn(move || read_past_cache(&held, &expected));
    waiting.join().expect("no panic").expect_err("the mount has ended");
    assert!(started.elapsed() > Duration::from_secs(1), "it was waited for");
    wait_for("the mount is gone", PATIENCE, || (!node.mounted()).then_some(()));
    node.start_client();
    wait_for("new opens go on at the target", PATIENCE, || std::fs::read(&path).ok().filter(|read| *read == bytes));
    node.unpublish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_client_leaves_its_mount_to_the_next_one_only_while_a_volume_shows_it() {
    if !fuse_works("a_stopped_client_leaves_its_mount_to_the_next_one_only_while_a_volume_shows_it") {
        return;
    }
    let node = Node::start(120).await;
    assert!(node.site.cluster.dev.term("fuse-0").expect("ended").success());
    wait_for("nobody uses it: it is taken away", PATIENCE, || (!node.mounted()).then_some(()));
    node.start_client();
    node.publish().await;
    let bytes = content(600_000, 1);
    let reader = Reader::start(node.store("f", &bytes), bytes);
    for _ in 0..3 {
        assert!(node.site.cluster.dev.term("fuse-0").expect("ended").success());
        assert!(node.mounted());
        node.start_client();
    }
    reader.stop();
    assert!(node.site.cluster.dev.term("fuse-0").expect("ended").success());
    assert!(node.mounted(), "a volume shows it");
    node.unpublish().await;
    wait_for("the last volume is gone, and no client came", PATIENCE, || (!node.mounted()).then_some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_stopped_while_it_starts_leaves_the_mount_that_it_takes_over() {
    if !fuse_works("a_client_that_is_stopped_while_it_starts_leaves_the_mount_that_it_takes_over") {
        return;
    }
    let node = Node::start(120).await;
    node.publish().await;
    let bytes = content(600_000, 1);
    let path = node.store("f", &bytes);
    let held = File::open(&path).expect("open");
    let dev = &node.site.cluster.dev;
    node.kill_client();
    dev.set_env("fuse-0", "JINDOFS_FAILPOINTS", Some("fuse.handover.taken=sleep(500)")).expect("set");
    dev.launch("fuse-0").expect("launched");
    node.plugin.wait_for("gives the mount to the next client");
    assert!(dev.term("fuse-0").expect("ended").success());
    assert!(node.mounted(), "a volume shows it");
    dev.set_env("fuse-0", "JINDOFS_FAILPOINTS", None).expect("set");
    node.start_client();
    read_past_cache(&held, &bytes).expect("what was open goes on");
    node.unpublish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_waits_for_a_client_that_is_gone_can_be_killed() {
    if !fuse_works("a_process_that_waits_for_a_client_that_is_gone_can_be_killed") {
        return;
    }
    let node = Node::start(120).await;
    node.publish().await;
    let path = node.store("cold", &content(300_000, 1));
    // A question that the client has begun to answer and cannot end.
    node.site.cluster.dev.pause("master-0").expect("paused");
    let mut reader = Command::new("cat").arg(&path).stdout(Stdio::null()).spawn().expect("cat runs");
    let state = format!("/proc/{}/stack", reader.id());
    wait_for("it waits for the client", PATIENCE, || {
        std::fs::read_to_string(&state).ok()?.contains("request_wait_answer").then_some(())
    });
    node.kill_client();
    node.plugin.wait_for("the client of a mount has ended");
    reader.kill().expect("killed");
    wait_for("it ends", Duration::from_secs(20), || reader.try_wait().expect("waited for"));
    node.site.cluster.dev.resume("master-0").expect("resumed");
    node.start_client();
    node.unpublish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_whose_client_and_then_the_plugin_ended_is_taken_away_once_no_volume_shows_it_though_no_client_comes() {
    if !fuse_works(
        "a_mount_whose_client_and_then_the_plugin_ended_is_taken_away_once_no_volume_shows_it_though_no_client_comes",
    ) {
        return;
    }
    let mut node = Node::start(120).await;
    node.publish().await;
    assert!(node.site.cluster.dev.term("fuse-0").expect("ended").success());
    node.plugin.kill();
    node.plugin.restart();
    assert!(node.mounted(), "a volume shows it");
    node.unpublish().await;
    wait_for("the last volume is gone, and no client came", PATIENCE, || (!node.mounted()).then_some(()));
    // It takes nothing away that lives.
    node.start_client();
    node.plugin.wait_for("holds the mount of a client");
    node.publish().await;
    let bytes = content(600_000, 1);
    assert_eq!(std::fs::read(node.store("f", &bytes)).expect("read"), bytes);
    node.unpublish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_while_no_client_serves_is_never_mixed_with_what_was_open() {
    if !fuse_works("what_changes_while_no_client_serves_is_never_mixed_with_what_was_open") {
        return;
    }
    let node = Node::start(120).await;
    let always = node.site.dir.path().join("always");
    for directory in ["same", "changing"].map(|name| always.join(name)) {
        std::fs::create_dir_all(&directory).expect("made");
        for number in 0..3000 {
            std::fs::write(directory.join(format!("{number:04}")), b"").expect("written");
        }
    }
    let (old, new) = (content(600_000, 1), content(600_000, 2));
    for name in ["replaced", "removed", "kept"] {
        std::fs::write(always.join(name), &old).expect("written");
    }
    let uri = format!("local://{}", always.display());
    node.site.ctl_ok(&["mount", "add", "/always", &uri, "--meta-policy", "always"]);
    node.publish().await;
    let at = node.target.join("always");
    let open = |name: &str| File::open(at.join(name)).expect("open");
    let (replaced, removed, kept) = (open("replaced"), open("removed"), open("kept"));
    for file in [&replaced, &removed, &kept] {
        read_past_cache(file, &old).expect("read");
    }
    let mut same = std::fs::read_dir(at.join("same")).expect("listed");
    let mut changing = std::fs::read_dir(at.join("changing")).expect("listed");
    let mut seen: Vec<_> = same.by_ref().take(700).map(|one| one.expect("an entry").file_name()).collect();
    assert_eq!(changing.by_ref().take(700).filter(Result::is_ok).count(), 700);

    node.kill_client();
    std::fs::write(always.join("new"), &new).expect("written");
    std::fs::rename(always.join("new"), always.join("replaced")).expect("replaced");
    std::fs::remove_file(always.join("removed")).expect("removed");
    std::fs::remove_file(always.join("changing/0007")).expect("removed");
    node.start_client();

    seen.extend(same.map(|one| one.expect("an entry").file_name()));
    seen.sort();
    let expected: Vec<std::ffi::OsString> = (0..3000).map(|number| format!("{number:04}").into()).collect();
    assert!(seen == expected, "each name once, {} of them", seen.len());
    let error = changing.find_map(Result::err).expect("its offsets mean something else by now");
    assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{error}");

    let anew = wait_for("the new bytes are seen and the removed name is not", PATIENCE, || {
        let gone = std::fs::metadata(at.join("removed")).is_err();
        let file = open("replaced");
        let renewed = read_past_cache(&file, &new);
        if renewed.is_err() {
            read_past_cache(&file, &old).expect("old or new, never mixed");
        }
        (gone && renewed.is_ok()).then_some(file)
    });
    read_past_cache(&kept, &old).expect("what did not change goes on");
    for file in [&replaced, &removed] {
        let error = read_past_cache(file, &old).expect_err("its bytes cannot be had any more");
        assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{error}");
    }
    read_past_cache(&anew, &new).expect("as before");
    drop((replaced, removed, kept, anew));
    node.unpublish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_open_before_a_takeover_is_shown_as_others_change_it() {
    if !fuse_works("what_was_open_before_a_takeover_is_shown_as_others_change_it") {
        return;
    }
    let node = Node::start(120).await;
    node.publish().await;
    std::fs::create_dir(node.site.local.join("d")).expect("made");
    let held = File::open(node.path("d")).expect("open");
    node.kill_client();
    node.site.cluster.dev.set("fuse-0", "fuse.attr-ttl", "60s").expect("set");
    node.start_client();
    // The attributes that the client before has given expire. Those of this client could live for a minute, but it has
    // never looked the directory up, so no event would expire them.
    after(Duration::from_secs(2));
    let modified = |held: &File| held.metadata().and_then(|found| found.modified());
    let before = modified(&held).expect("it is there");
    let file = node.site.dir.path().join("file");
    std::fs::write(&file, b"new").expect("written");
    node.site.ctl_ok(&["fs", "put", &file.display().to_string(), "/local/d/new"]);
    wait_for("the new time is shown", Duration::from_secs(10), || (modified(&held).ok()? != before).then_some(()));
    drop(held);
    node.unpublish().await;
}
