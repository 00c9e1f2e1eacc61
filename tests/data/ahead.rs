//! Long files are sent while they are written: what is sent before the close is not seen, and is used only if it is still
//! what the file holds when it is stored.

use serde_json::{Value, json};

use super::writes::{names, off, stored, writable};
use super::{Site, content};
use crate::support::agent::{Agent, Refusal, encode};
use crate::support::cluster::PATIENCE;
use crate::support::{fuse_works, wait_until};

/// Bytes of a part.
const PART: usize = 8 << 20;

/// A file that is held open by a process of its own, which nobody else inherits it from.
struct Held {
    agent: Agent,
    model: Vec<u8>,
}

impl Held {
    /// A new file.
    async fn make(site: &Site, path: &str) -> Held {
        let at = site.mnt.join(path);
        off(move || {
            let mut agent = Agent::start();
            agent.call(&json!(["open", 0, at, libc::O_RDWR | libc::O_CREAT, 0o644])).expect("made");
            Held { agent, model: Vec::new() }
        })
        .await
    }

    /// A new file of which most is sent.
    async fn sent(site: &Site, path: &str, bytes: &[u8]) -> Held {
        let before = site.s3.control.parts();
        let held = Held::make(site, path).await.write(0, bytes).await;
        // The last ones wait for what comes behind them.
        wait_until("parts are sent", PATIENCE, || site.s3.control.parts() >= before + 2).await;
        assert!(stored(site, path).await.is_none(), "{path}: nobody sees it before it is stored");
        held
    }

    async fn write(self, at: usize, bytes: &[u8]) -> Held {
        let data = encode(bytes);
        let mut held = self.told(json!(["write", 0, at, data])).await.expect("staged");
        held.model.resize(held.model.len().max(at + bytes.len()), 0);
        held.model[at..at + bytes.len()].copy_from_slice(bytes);
        held
    }

    async fn cut(self, length: usize) -> Held {
        let mut held = self.told(json!(["ftruncate", 0, length])).await.expect("cut");
        held.model.resize(length, 0);
        held
    }

    async fn told(self, command: Value) -> Result<Held, Refusal> {
        let Held { mut agent, model } = self;
        off(move || agent.call(&command).map(|_| Held { agent, model })).await
    }

    /// Closes it; what it holds then.
    async fn close(self) -> Result<Vec<u8>, Refusal> {
        self.told(json!(["close", 0])).await.map(|held| held.model)
    }
}

/// Parts that belong to no object.
fn left_over(site: &Site) -> Vec<String> {
    let mut left = names(site.dir.path().join("s3").as_path());
    left.retain(|name| name.contains("part"));
    left
}

/// What is done to a file after most of it was sent.
#[derive(Debug, Clone, Copy)]
enum Change {
    Grown,
    ChangedAtTheBeginning,
    CutAndGrown,
    StoredTwice,
}

impl Change {
    async fn make(self, held: Held) -> Held {
        let end = held.model.len();
        match self {
            Change::Grown => held.write(end, b"the end").await,
            Change::ChangedAtTheBeginning => held.write(3, b"header").await,
            Change::CutAndGrown => held.cut(PART + 5).await.cut(2 * PART).await,
            Change::StoredTwice => {
                let held = held.told(json!(["fsync", 0])).await.expect("stored").write(3, b"header").await;
                held.told(json!(["fsync", 0])).await.expect("stored again").write(end, b"the end").await
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn most_of_a_long_file_is_sent_before_its_close_and_what_changed_since_is_stored_all_the_same() {
    if !fuse_works("most_of_a_long_file_is_sent_before_its_close_and_what_changed_since_is_stored_all_the_same") {
        return;
    }
    let site = writable(1, |_| {}).await;
    let changes = [Change::Grown, Change::ChangedAtTheBeginning, Change::CutAndGrown, Change::StoredTwice];
    for (change, salt) in changes.into_iter().zip(1..) {
        let path = format!("s3/{change:?}");
        let before = site.s3.control.parts();
        let held = Held::sent(&site, &path, &content(4 * PART + 1000, salt)).await;
        let model = change.make(held).await.close().await.expect("stored");
        assert!(stored(&site, &path).await.as_ref() == Some(&model), "{change:?}");
        assert!(site.ctl_ok(&["fs", "cat", &format!("/{path}")]) == model, "{change:?} for another client");
        if matches!(change, Change::Grown) {
            assert_eq!(site.s3.control.parts() - before, 5, "nothing is sent twice");
        }
    }
    assert!(left_over(&site).is_empty(), "{:?}", left_over(&site));
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_file_that_is_renamed_removed_or_stored_by_others_while_it_is_sent_leaves_no_part_of_it_behind() {
    if !fuse_works(
        "a_long_file_that_is_renamed_removed_or_stored_by_others_while_it_is_sent_leaves_no_part_of_it_behind",
    ) {
        return;
    }
    let site = writable(1, |_| {}).await;
    let bytes = content(4 * PART, 7);
    let at = |name: &str| site.mnt.join("s3").join(name);

    let held = Held::sent(&site, "s3/from", &bytes).await;
    let (from, to) = (at("from"), at("to"));
    off(move || std::fs::rename(from, to)).await.expect("renamed");
    let model = held.write(bytes.len(), b"!").await.close().await.expect("stored under its new name");
    assert!(stored(&site, "s3/from").await.is_none() && stored(&site, "s3/to").await.as_ref() == Some(&model));

    let held = Held::sent(&site, "s3/gone", &bytes).await;
    let gone = at("gone");
    off(move || std::fs::remove_file(gone)).await.expect("removed");
    held.write(bytes.len(), b"!").await.close().await.expect("a file without a name is stored nowhere");
    assert!(stored(&site, "s3/gone").await.is_none());

    let held = Held::sent(&site, "s3/other", &bytes).await;
    site.put("other", b"theirs").await;
    let refusal = held.close().await.expect_err("somebody else was first");
    assert_eq!(refusal.errno, libc::ESTALE);
    assert_eq!(stored(&site, "s3/other").await.as_deref(), Some(&b"theirs"[..]));

    wait_until("nothing is left of what was given up", PATIENCE, || left_over(&site).is_empty()).await;
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_refuses_what_is_sent_early_is_given_all_of_it_at_the_close() {
    if !fuse_works("a_store_that_refuses_what_is_sent_early_is_given_all_of_it_at_the_close") {
        return;
    }
    let site = writable(1, |_| {}).await;
    let bytes = content(4 * PART, 8);
    let held = Held::make(&site, "s3/f").await.write(0, &bytes[..PART]).await;
    site.s3.control.fail_next(u64::MAX);
    let held = held.write(PART, &bytes[PART..]).await;
    wait_until("the upload is refused", PATIENCE, || site.s3.control.refused() > 0).await;
    site.s3.control.fail_next(0);
    let model = held.close().await.expect("stored");
    assert!(model == bytes && stored(&site, "s3/f").await.as_ref() == Some(&model));
}
