//! An object store that accepts connections and answers nothing: what stores a file ends in time, and what was written is kept.

use std::time::Instant;

use serde_json::json;

use super::content;
use super::writes::{off, stored, writable};
use crate::support::agent::{Agent, decode, encode};
use crate::support::cluster::PATIENCE;
use crate::support::fuse_works;

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_never_answers_fails_the_sync_in_time_and_the_next_one_stores_all() {
    if !fuse_works("a_store_that_never_answers_fails_the_sync_in_time_and_the_next_one_stores_all") {
        return;
    }
    let site = writable(1, |_| {}).await;
    // Six seconds instead of two minutes.
    site.cluster.dev.kill("fuse-0").expect("killed");
    site.cluster.dev.set_env("fuse-0", "JINDOFS_FAILPOINTS", Some("ufs.store-timeout=skip")).expect("set");
    site.cluster.dev.restart("fuse-0").expect("mounted");
    // One request, and parts that are sent while the file is written.
    for (length, salt) in [(11, 1), (33 << 20, 2)] {
        let (at, new, control) = (site.mnt.join("s3/f"), content(length, salt), site.s3.control.clone());
        let wrote = new.clone();
        let (synced, read, took) = off(move || {
            std::fs::write(&at, b"before").expect("stored");
            let mut agent = Agent::start();
            agent.call(&json!(["open", "f", at, libc::O_RDWR, 0])).expect("open");
            agent.call(&json!(["write", "f", 0, encode(&wrote[..length / 2])])).expect("staged");
            control.troubles.silence(true);
            agent.call(&json!(["write", "f", length / 2, encode(&wrote[length / 2..])])).expect("staged");
            let began = Instant::now();
            let refused = agent.call(&json!(["fsync", "f"])).expect_err("nothing is answered");
            let took = began.elapsed();
            assert_eq!(refused.errno, libc::EIO, "{length} bytes");
            let read = decode(&agent.call(&json!(["read", "f"])).expect("it is staged"));
            control.troubles.silence(false);
            (agent.call(&json!(["fsync", "f"])), read, took)
        })
        .await;
        assert!(took < PATIENCE, "{length} bytes: {took:?}, where each of many requests may take ten seconds or more");
        assert!(read == new, "{length} bytes are kept");
        synced.unwrap_or_else(|refusal| panic!("{length} bytes: {refusal:?}"));
        assert!(stored(&site, "s3/f").await.as_ref() == Some(&new), "{length} bytes are stored");
    }
    site.cluster.assert_no_panic();
}
