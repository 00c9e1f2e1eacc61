//! The cache, proved by counting what the under-storage is asked.

use super::{BLOCK, content, start};
use crate::support::fuse_works;

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_readers_of_one_cold_file_fetch_each_block_once() {
    if !fuse_works("sixteen_readers_of_one_cold_file_fetch_each_block_once") {
        return;
    }
    let site = start(1, |_| {}).await;
    let bytes = content(2 * BLOCK + 1234, 1);
    site.put("cold", &bytes).await;
    let readers: Vec<_> = (0..16).map(|_| site.read("s3/cold")).collect();
    for read in futures::future::join_all(readers).await {
        assert!(read.expect("read") == bytes);
    }
    assert_eq!(site.s3.control.gets(), 3, "two whole blocks and the rest");
    // Readers over gRPC, each with connections of its own, find the same blocks.
    for _ in 0..3 {
        assert!(site.ctl_ok(&["fs", "cat", "/s3/cold"]) == bytes);
    }
    assert_eq!(site.s3.control.gets(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_load_and_after_worker_restarts_nothing_is_fetched_again() {
    let site = start(1, |options| options.mounts.clear()).await;
    let files: Vec<Vec<u8>> = (0..20).map(|number| content(100_000 * number + 1, number as u32)).collect();
    for (number, bytes) in files.iter().enumerate() {
        site.put(&format!("d/f{number}"), bytes).await;
    }
    let total: usize = files.iter().map(Vec::len).sum();
    let loaded = site.ctl_ok(&["load", "/s3/d", "-o", "json"]);
    let job: serde_json::Value = serde_json::from_slice(&loaded).expect("JSON");
    assert_eq!((job["state"].as_str(), job["files_done"].as_u64()), (Some("done"), Some(20)), "{job}");
    assert_eq!(job["bytes_done"].as_u64(), Some(total as u64));
    let fetched = site.s3.control.gets();
    assert_eq!(fetched, 20, "each file has one block");
    site.wait_cached(total as u64);
    for worker in ["worker-0", "worker-1"] {
        site.cluster.dev.kill(worker).expect("killed");
        site.cluster.dev.restart(worker).expect("restarted");
    }
    for (number, bytes) in files.iter().enumerate() {
        assert!(site.ctl_ok(&["fs", "cat", &format!("/s3/d/f{number}")]) == *bytes);
    }
    assert_eq!(site.s3.control.gets(), fetched, "what was cached is still there");
    site.wait_cached(total as u64);
    site.ctl_ok(&["load", "/s3/d"]);
    assert_eq!(site.s3.control.gets(), fetched);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_smaller_than_the_files_serves_all_of_them() {
    let site = start(1, |options| {
        options.mounts.clear();
        options.worker_quota = 16 << 20;
    })
    .await;
    let files: Vec<Vec<u8>> = (0..6).map(|number| content(2 * BLOCK, number)).collect();
    for (number, bytes) in files.iter().enumerate() {
        site.put(&format!("f{number}"), bytes).await;
    }
    let large = content(9 * BLOCK, 99);
    site.put("large", &large).await;
    for _ in 0..2 {
        for (number, bytes) in files.iter().enumerate() {
            assert!(site.ctl_ok(&["fs", "cat", &format!("/s3/f{number}")]) == *bytes);
        }
        assert!(site.ctl_ok(&["fs", "cat", "/s3/large"]) == large, "larger than any worker's cache");
    }
}
