//! What is said of mounts: what is left out of them, and that nothing is in them.

use super::{Store, ctl, errors};
use crate::support::cluster::Cluster;

/// What `jindoctl report` and `mount list` say was left out of the one mount.
async fn skipped(cluster: &Cluster) -> [serde_json::Value; 2] {
    let [report, list] = [&["report", "-o", "json"][..], &["mount", "list", "-o", "json"]];
    let json = async |arguments: &[&str]| -> serde_json::Value {
        serde_json::from_slice(&ctl(cluster, arguments).await.stdout).expect("json")
    };
    [json(report).await["mounts"][0]["skipped"].clone(), json(list).await[0]["skipped"].clone()]
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_no_path_can_express_are_counted_where_mounts_are_shown_also_by_another_leader() {
    let (cluster, store) = (Cluster::start(3), Store::start().await);
    for name in ["good", "d/good"] {
        store.bucket.write(name, "x").await.expect("stored");
    }
    store.s3.control.add_ghost("d");
    store.s3.control.add_ghost(" blank");
    store.mount(&cluster.client()).await;
    assert_eq!(skipped(&cluster).await, [0, 0], "nothing was listed yet");
    assert!(ctl(&cluster, &["fs", "ls", "/s3"]).await.status.success());
    assert_eq!(skipped(&cluster).await, [2, 2]);
    // Only now: this server lists such a key among those of every directory above it.
    store.s3.control.add_ghost("d/ blank");
    assert!(ctl(&cluster, &["fs", "ls", "/s3/d"]).await.status.success());
    assert_eq!(skipped(&cluster).await, [3, 3]);
    let table = ctl(&cluster, &["mount", "list"]).await;
    assert!(String::from_utf8_lossy(&table.stdout).contains("SKIPPED"), "people see it too");
    let follower = cluster.followers().remove(0);
    cluster.transfer_leader(&follower);
    assert_eq!(skipped(&cluster).await, [3, 3], "what is recorded is known to every leader");
    cluster.assert_digests_equal().await;
    assert!(ctl(&cluster, &["mount", "remove", "/s3"]).await.status.success());
    store.mount(&cluster.client()).await;
    assert_eq!(skipped(&cluster).await, [0, 0], "a new mount has listed nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_of_a_place_that_holds_nothing_is_made_with_a_warning() {
    let (cluster, store) = (Cluster::start(1), Store::start().await);
    store.bucket.write("data/f", "x").await.expect("stored");
    let (void, full) = (store.dir.path().join("void"), store.dir.path().join("full"));
    for dir in [&void, &full.join("d")] {
        std::fs::create_dir_all(dir).expect("mkdir");
    }
    let (void, full) = (format!("local://{}", void.display()), format!("local://{}", full.display()));
    let options = store.options();
    let options: Vec<&str> = options.iter().flat_map(|option| ["-O", option]).collect();
    for (number, (uri, options, is_empty)) in [
        ("s3://bucket/dato", &options[..], true),
        ("s3://bucket/data", &options[..], false),
        ("s3://bucket", &options[..], false),
        (void.as_str(), &[], true),
        (full.as_str(), &[], false),
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/m{number}");
        let output = ctl(&cluster, &[&["mount", "add", &path, uri], options].concat()).await;
        let said = errors(&output);
        assert!(output.status.success(), "{uri}: {said}");
        assert_eq!(said.contains("holds nothing"), is_empty, "{uri}: {said}");
        assert_eq!(said.contains(uri), is_empty, "{uri}: {said}");
    }
}
