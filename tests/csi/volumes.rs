//! Volumes that come and go: repeated calls, wrong ones, parts of a volume, volumes for reading.

use jindofs_proto::csi::volume_capability::access_mode::Mode;
use jindofs_proto::csi::volume_capability::{AccessType, BlockVolume, MountVolume};
use jindofs_proto::csi::{NodeGetVolumeStatsRequest, NodePublishVolumeRequest, VolumeCapability};
use rustix::mount::MountFlags;
use tonic::Code;

use super::{Site, capability, mounts_below};
use crate::support::fuse_works;

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_comes_and_goes_however_often_each_call_is_made_and_whenever_the_plugin_is_killed() {
    if !fuse_works("a_volume_comes_and_goes_however_often_each_call_is_made_and_whenever_the_plugin_is_killed") {
        return;
    }
    let mut site = Site::start(1);
    std::fs::write(site.local.join("file"), b"content").expect("written");
    let pods = ["one", "two"];
    for _ in 0..2 {
        let mut node = site.client().await;
        for _ in 0..2 {
            node.node_stage_volume(site.stage(0)).await.expect("staged");
            for pod in pods {
                node.node_publish_volume(site.publish(0, pod)).await.expect("published");
            }
        }
        site.restart_plugin();
    }
    for pod in pods {
        let target = site.target(pod);
        assert_eq!(std::fs::read(target.join("local/file")).expect("read"), b"content");
        assert_eq!(mounts_below(&target).len(), 1, "mounted once");
        let told = site.client().await.node_get_volume_stats(site.stats(0, pod)).await.expect("told").into_inner();
        assert!(!told.volume_condition.expect("a condition").abnormal);
        let disk = rustix::fs::statvfs(&site.local).expect("statvfs");
        let bytes = i64::try_from(disk.f_blocks * disk.f_frsize).expect("a disk");
        let totals: Vec<_> = told.usage.iter().map(|usage| usage.total).collect();
        assert_eq!(totals, [bytes], "what the under-storage has; nothing limits inodes");
    }
    for _ in 0..2 {
        let mut node = site.client().await;
        for _ in 0..2 {
            node.node_unpublish_volume(site.unpublish(0, "one")).await.expect("unpublished");
        }
        assert!(!site.target("one").exists());
        assert_eq!(std::fs::read(site.target("two").join("local/file")).expect("read"), b"content");
        site.restart_plugin();
    }
    let mut node = site.client().await;
    node.node_unpublish_volume(site.unpublish(0, "two")).await.expect("unpublished");
    for _ in 0..2 {
        node.node_unstage_volume(site.unstage(0)).await.expect("unstaged");
    }
    site.assert_nothing_published();
    assert_eq!(
        std::fs::read(site.mounts[0].join("local/file")).expect("read"),
        b"content",
        "the client's is left alone"
    );
}

/// What a request asks wrongly, how, and what it is told: a code and a word of the message.
type Wrong = (fn(&mut NodePublishVolumeRequest), Code, &'static str);

fn set(request: &mut NodePublishVolumeRequest, key: &str, value: &str) {
    request.volume_context.insert(key.to_owned(), value.to_owned());
}

fn mount_option(option: &str) -> VolumeCapability {
    let mount = MountVolume { mount_flags: vec![option.to_owned()], ..MountVolume::default() };
    VolumeCapability { access_type: Some(AccessType::Mount(mount)), ..capability(Mode::SingleNodeWriter) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_request_is_told_what_is_wrong_and_leaves_nothing_behind() {
    if !fuse_works("a_wrong_request_is_told_what_is_wrong_and_leaves_nothing_behind") {
        return;
    }
    let site = Site::start(1);
    std::fs::write(site.local.join("file"), b"content").expect("written");
    std::os::unix::fs::symlink("/etc", site.local.join("absolute")).expect("linked");
    std::os::unix::fs::symlink("../../../../../etc", site.local.join("relative")).expect("linked");
    let wrong: [Wrong; 14] = [
        (|asked| asked.volume_id.clear(), Code::InvalidArgument, "volume_id"),
        (|asked| asked.target_path.clear(), Code::InvalidArgument, "target_path"),
        (|asked| asked.target_path = "/elsewhere".to_owned(), Code::InvalidArgument, "--kubelet-dir"),
        (|asked| asked.target_path.push_str("/../../../../../.."), Code::InvalidArgument, "--kubelet-dir"),
        (|asked| asked.volume_capability = None, Code::InvalidArgument, "volume_capability"),
        (
            |asked| {
                let block = Some(AccessType::Block(BlockVolume {}));
                asked.volume_capability = Some(VolumeCapability { access_type: block, access_mode: None });
            },
            Code::InvalidArgument,
            "block device",
        ),
        (|asked| asked.volume_capability = Some(mount_option("noatime")), Code::InvalidArgument, "noatime"),
        (|asked| asked.volume_context.clear(), Code::InvalidArgument, "fluid_path"),
        (|asked| set(asked, "fluid_path", "/etc"), Code::InvalidArgument, "--mounts-dir"),
        (|asked| set(asked, "fluid_sub_path", "local/../.."), Code::InvalidArgument, "leaves the volume"),
        (|asked| set(asked, "fluid_sub_path", "local/absolute"), Code::InvalidArgument, "leaves the volume"),
        (|asked| set(asked, "fluid_sub_path", "local/relative"), Code::InvalidArgument, "leaves the volume"),
        (|asked| set(asked, "fluid_sub_path", "local/file"), Code::InvalidArgument, "not a directory"),
        (|asked| set(asked, "fluid_sub_path", "local/missing"), Code::NotFound, "local/missing"),
    ];
    let mut node = site.client().await;
    for (change, code, word) in wrong {
        let mut request = site.publish(0, "pod");
        change(&mut request);
        let refused = node.node_publish_volume(request).await.expect_err(word);
        assert!(refused.code() == code && refused.message().contains(word), "{refused}");
        site.assert_nothing_published();
    }
    let mut stage = site.stage(0);
    stage.staging_target_path.clear();
    assert_eq!(node.node_stage_volume(stage).await.expect_err("refused").code(), Code::InvalidArgument);
    let mut unpublish = site.unpublish(0, "pod");
    unpublish.target_path = "/".to_owned();
    assert_eq!(node.node_unpublish_volume(unpublish).await.expect_err("refused").code(), Code::InvalidArgument);
    node.node_publish_volume(site.publish(0, "pod")).await.expect("published");
    type WrongStats = (fn(&mut NodeGetVolumeStatsRequest), Code);
    let wrong: [WrongStats; 4] = [
        (|asked| asked.volume_id.clear(), Code::InvalidArgument),
        (|asked| asked.volume_path.clear(), Code::InvalidArgument),
        (|asked| asked.volume_path = "/".to_owned(), Code::NotFound),
        (|asked| asked.volume_id = "another".to_owned(), Code::NotFound),
    ];
    for (change, code) in wrong {
        let mut request = site.stats(0, "pod");
        change(&mut request);
        assert_eq!(node.node_get_volume_stats(request).await.expect_err("refused").code(), code);
    }
    node.node_unpublish_volume(site.unpublish(0, "pod")).await.expect("unpublished");
    site.assert_nothing_published();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_a_volume_is_published_also_through_a_link_that_stays_in_it() {
    if !fuse_works("a_directory_of_a_volume_is_published_also_through_a_link_that_stays_in_it") {
        return;
    }
    let site = Site::start(1);
    std::fs::create_dir_all(site.local.join("a directory/inner")).expect("made");
    std::fs::write(site.local.join("a directory/inner/file"), b"content").expect("written");
    std::os::unix::fs::symlink("a directory/inner", site.local.join("link")).expect("linked");
    let mut node = site.client().await;
    for (pod, directory) in [("straight", "local/a directory/inner"), ("linked", "/local/link")] {
        let mut request = site.publish(0, pod);
        set(&mut request, "fluid_sub_path", directory);
        for _ in 0..2 {
            node.node_publish_volume(request.clone()).await.expect("published");
        }
        assert_eq!(std::fs::read(site.target(pod).join("file")).expect("read"), b"content");
        node.node_unpublish_volume(site.unpublish(0, pod)).await.expect("unpublished");
    }
    site.assert_nothing_published();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_for_reading_is_mounted_so_and_nothing_else_takes_its_place() {
    if !fuse_works("a_volume_for_reading_is_mounted_so_and_nothing_else_takes_its_place") {
        return;
    }
    let mut site = Site::start(1);
    // The client's mount refuses writes itself, which would hide what the plugin does.
    rustix::mount::mount_remount(&site.mounts[0], MountFlags::BIND, c"").expect("mounted again");
    let asked: [fn(&mut NodePublishVolumeRequest); 3] = [
        |asked| asked.readonly = true,
        |asked| asked.volume_capability = Some(capability(Mode::MultiNodeReaderOnly)),
        |asked| asked.volume_capability = Some(mount_option("ro")),
    ];
    let read_only = |site: &Site| {
        let mounts = mounts_below(&site.target("pod"));
        assert_eq!(mounts.len(), 1);
        mounts[0].1.split(',').any(|option| option == "ro")
    };
    for change in asked {
        let mut node = site.client().await;
        let mut request = site.publish(0, "pod");
        change(&mut request);
        node.node_publish_volume(request.clone()).await.expect("published");
        assert!(read_only(&site));
        site.restart_plugin();
        let mut node = site.client().await;
        let mut another = request.clone();
        another.volume_id = "another".to_owned();
        for other in [site.publish(0, "pod"), another] {
            let refused = node.node_publish_volume(other).await.expect_err("something else");
            assert!(refused.code() == Code::AlreadyExists && refused.message().contains("unpublish it first"));
        }
        node.node_publish_volume(request).await.expect("it is there");
        assert!(read_only(&site));
        node.node_unpublish_volume(site.unpublish(0, "pod")).await.expect("unpublished");
    }
    site.client().await.node_publish_volume(site.publish(0, "pod")).await.expect("published");
    assert!(!read_only(&site));
}
