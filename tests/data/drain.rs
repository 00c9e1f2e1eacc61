//! Workers that are drained before they leave, proved by counting what the under-storage is asked.

use serde_json::Value;

use super::faults::{Readers, cached_files};
use super::{BLOCK, Site, content, start};
use crate::support::cluster::PATIENCE;
use crate::support::{fuse_works, wait_for};

impl Site {
    /// The workers on record, as the leader lists them.
    fn workers(&self) -> Option<Vec<Value>> {
        let output = self.ctl(&["worker", "list", "-o", "json"]);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).expect("JSON"))
    }

    /// Process name and address of the worker that holds most.
    fn fullest(&self) -> (String, String) {
        let workers = self.workers().expect("listed");
        let most = workers.iter().max_by_key(|worker| worker["used_bytes"].as_u64()).expect("a worker");
        assert_ne!(most["used_bytes"], 0);
        let address = most["address"].as_str().expect("an address").to_owned();
        let mut all = self.cluster.dev.file().processes.into_iter();
        let process = all.find(|process| process.role == "worker" && process.grpc.as_ref() == Some(&address));
        (process.expect("its process").name, address)
    }

    /// What is known of the drain of the worker at an address.
    fn drain_of(&self, address: &str) -> Option<Value> {
        let worker = self.workers()?.into_iter().find(|worker| worker["address"] == address)?;
        worker.get("drain").cloned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_drained_while_its_files_are_read_and_nothing_is_fetched_again() {
    if !fuse_works("a_worker_is_drained_while_its_files_are_read_and_nothing_is_fetched_again") {
        return;
    }
    let site = start(3, |options| options.workers = 3).await;
    let long = content(3 * BLOCK + 777, 1000);
    site.put("long", &long).await;
    let mut files = cached_files(&site, 9).await;
    site.ctl_ok(&["load", "/s3/long"]);
    files.push((site.mnt.join("s3/long"), long));
    let total = files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    site.wait_cached(total);
    let gets = site.s3.control.gets();
    let (leaves, address) = site.fullest();
    let readers = Readers::start(files.clone());
    readers.wait(8).await;

    let told = site.ctl_ok(&["worker", "drain", &address]);
    assert!(String::from_utf8_lossy(&told).contains("is drained: others hold everything"));
    let drain = site.drain_of(&address).expect("it is drained");
    assert_eq!((&drain["state"], &drain["left_bytes"]), (&"done".into(), &0.into()));
    site.wait_cached(total);
    readers.wait(8).await;
    assert_eq!(site.s3.control.gets(), gets, "what moved came from the worker that leaves");

    site.cluster.dev.term(&leaves).expect("stopped");
    readers.wait(20).await;
    for (path, bytes) in &files {
        let inside = format!("/{}", path.strip_prefix(&site.mnt).expect("in the mount").display());
        assert!(site.ctl_ok(&["fs", "cat", &inside]) == *bytes, "{inside}");
    }
    println!("{} reads", readers.stop());
    assert_eq!(site.s3.control.gets(), gets, "every byte came from the caches of the others");

    wait_for("the worker is lost and forgotten", PATIENCE, || {
        site.ctl(&["worker", "remove", &address]).status.success().then_some(())
    });
    assert_eq!(site.workers().expect("listed").len(), 2);
    site.cluster.assert_digests_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_outlives_its_leader_and_a_worker_that_may_stay_is_used_again() {
    let site = start(3, |options| options.mounts.clear()).await;
    let files: Vec<Vec<u8>> = (0..12).map(|number| content(BLOCK / 2, number)).collect();
    for (number, bytes) in files.iter().enumerate() {
        site.put(&format!("d/f{number}"), bytes).await;
    }
    let total = files.iter().map(|bytes| bytes.len() as u64).sum();
    // The other worker takes a second for each block, so that the leader dies in the middle.
    for worker in ["worker-0", "worker-1"] {
        site.cluster.dev.kill(worker).expect("killed");
        site.cluster.dev.set_env(worker, "JINDOFS_FAILPOINTS", Some("worker.fill=1+sleep(1000)")).expect("set");
        site.cluster.dev.restart(worker).expect("restarted");
    }
    site.ctl_ok(&["load", "/s3/d"]);
    site.wait_cached(total);
    let gets = site.s3.control.gets();
    let (_, address) = site.fullest();
    site.ctl_ok(&["worker", "drain", &address, "--detach"]);
    wait_for("a part has moved", PATIENCE, || {
        let drain = site.drain_of(&address)?;
        (drain["state"] == "moving" && drain["left_bytes"].as_u64()? > 0).then_some(())
    });
    let (leader, _) = site.cluster.wait_leader();
    site.cluster.dev.kill(&leader).expect("killed");
    wait_for("the next leader has ended it", PATIENCE, || {
        let drain = site.drain_of(&address)?;
        (drain["state"] == "done" && drain["left_bytes"] == 0).then_some(())
    });
    assert_ne!(site.cluster.wait_leader().0, leader);
    assert_eq!(site.s3.control.gets(), gets);
    site.wait_cached(total);

    let used = |site: &Site, drained: bool| -> Option<u64> {
        site.workers()?.iter().find(|one| (one["address"] == address.as_str()) == drained)?["used_bytes"].as_u64()
    };
    let (before, other) = (used(&site, true), used(&site, false).expect("it lives"));
    for number in 0..6 {
        site.put(&format!("late/f{number}"), &content(1000, number)).await;
    }
    site.ctl_ok(&["load", "/s3/late"]);
    wait_for("everything new is on the other worker", PATIENCE, || (used(&site, false)? == other + 6000).then_some(()));
    assert_eq!(used(&site, true), before);

    site.ctl_ok(&["worker", "undrain", &address]);
    wait_for("it is known to stay", PATIENCE, || {
        site.workers()?.iter().all(|worker| worker.get("drain").is_none()).then_some(())
    });
    for number in 0..16 {
        site.put(&format!("later/f{number}"), &content(1000, number)).await;
    }
    site.ctl_ok(&["load", "/s3/later"]);
    wait_for("it keeps new files again", PATIENCE, || (used(&site, true) > before).then_some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_for_which_others_have_no_room_ends_and_says_what_stays_behind() {
    let site = start(1, |options| {
        options.mounts.clear();
        options.worker_quota = 16 << 20;
    })
    .await;
    // Whichever worker gets how many of them: both are filled, and neither has room for more than one of the other's.
    let files: Vec<Vec<u8>> = (0..40).map(|number| content(BLOCK / 2, number)).collect();
    for (number, bytes) in files.iter().enumerate() {
        site.put(&format!("d/f{number}"), bytes).await;
    }
    let loaded = site.ctl(&["load", "/s3/d"]);
    assert_eq!(
        loaded.status.code(),
        Some(5),
        "they are larger than the cache: {}",
        String::from_utf8_lossy(&loaded.stdout)
    );
    wait_for("the workers have told how full they are", PATIENCE, || {
        let used: u64 = site.workers()?.iter().filter_map(|worker| worker["used_bytes"].as_u64()).sum();
        (used >= 20 << 20).then_some(())
    });
    let (_, address) = site.fullest();
    let drained = site.ctl(&["worker", "drain", &address]);
    let told = String::from_utf8_lossy(&drained.stdout);
    assert_eq!(drained.status.code(), Some(5), "{told}");
    assert!(told.contains("could not move") && told.contains("has no room left"), "{told}");
    for (number, bytes) in files.iter().enumerate() {
        assert!(site.ctl_ok(&["fs", "cat", &format!("/s3/d/f{number}")]) == *bytes);
    }
    let refused = site.ctl(&["worker", "remove", &address]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("stop it first"), "it lives");
    assert_eq!(site.ctl(&["worker", "drain", "nobody"]).status.code(), Some(3));
}
