//! Long files are sent while they are written: what is sent before the close is not seen, and is used only if it is still
//! what the file holds when it is stored.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::writes::{errno, names, off, stored, writable};
use super::{Site, content};
use crate::support::cluster::PATIENCE;
use crate::support::{fuse_works, wait_until};

/// Bytes of a part.
const PART: usize = 8 << 20;

/// Writes `bytes` to a new file and leaves it open.
async fn begin(site: &Site, path: &str, bytes: &[u8]) -> File {
    let (at, bytes) = (site.mnt.join(path), bytes.to_vec());
    off(move || {
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(at).expect("made");
        for piece in bytes.chunks(1 << 20) {
            file.write_all(piece).expect("staged");
        }
        file
    })
    .await
}

/// Waits until so many more parts have come since there were `before`.
async fn wait_parts(site: &Site, before: u64, count: u64) {
    let control = site.s3.control.clone();
    wait_until("parts are sent", PATIENCE, || control.parts() >= before + count).await;
}

/// Parts that belong to no object.
fn left_over(site: &Site) -> Vec<String> {
    let mut left = names(site.dir.path().join("s3").as_path());
    left.retain(|name| name.contains("part"));
    left
}

/// What is done to a file after most of it was sent; `model` is what it holds.
type Change = fn(&File, &mut Vec<u8>);

fn grow(file: &File, model: &mut Vec<u8>) {
    file.write_all_at(b"the end", model.len() as u64).expect("staged");
    model.extend_from_slice(b"the end");
}

fn change_the_beginning(file: &File, model: &mut [u8]) {
    file.write_all_at(b"header", 3).expect("staged");
    model[3..9].copy_from_slice(b"header");
}

fn cut_off(file: &File, model: &mut Vec<u8>) {
    file.set_len(PART as u64 + 5).expect("cut");
    file.set_len(2 * PART as u64).expect("grown");
    model.truncate(PART + 5);
    model.resize(2 * PART, 0);
}

fn store_twice(file: &File, model: &mut Vec<u8>) {
    file.sync_all().expect("stored");
    change_the_beginning(file, model);
    file.sync_all().expect("stored again");
    grow(file, model);
}

#[tokio::test(flavor = "multi_thread")]
async fn most_of_a_long_file_is_sent_before_its_close_and_what_changed_since_is_stored_all_the_same() {
    if !fuse_works("most_of_a_long_file_is_sent_before_its_close_and_what_changed_since_is_stored_all_the_same") {
        return;
    }
    let site = writable(1, |_| {}).await;
    let changes: [(&str, Change); 4] = [
        ("grown", grow),
        ("changed", |file, model| change_the_beginning(file, model)),
        ("cut", cut_off),
        ("twice", store_twice),
    ];
    for (number, (name, change)) in changes.into_iter().enumerate() {
        let path = format!("s3/{name}");
        let mut model = content(4 * PART + 1000, 1 + u32::try_from(number).expect("few"));
        let before = site.s3.control.parts();
        let file = begin(&site, &path, &model).await;
        // The last ones wait for what comes behind them.
        wait_parts(&site, before, 2).await;
        assert_eq!(stored(&site, &path).await, None, "{name}: nobody sees it before it is stored");
        let (closed, model) = off(move || {
            change(&file, &mut model);
            (file.sync_all(), model)
        })
        .await;
        closed.expect("stored");
        assert!(stored(&site, &path).await.as_ref() == Some(&model), "{name}");
        assert!(site.ctl_ok(&["fs", "cat", &format!("/{path}")]) == model, "{name} for another client");
        if name == "grown" {
            assert_eq!(site.s3.control.parts() - before, 5, "nothing is sent twice");
        }
    }
    assert!(left_over(&site).is_empty(), "{:?}", left_over(&site));
    site.cluster.assert_no_panic();
}

/// Renames or removes what is open, and writes on.
async fn go_on(file: File, change: impl FnOnce(&Path) + Send + 'static, at: PathBuf) -> std::io::Result<()> {
    off(move || {
        change(&at);
        file.write_all_at(b"!", 4 * PART as u64).expect("staged");
        file.sync_all()
    })
    .await
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
    let whole = [&bytes[..], b"!"].concat();

    let before = site.s3.control.parts();
    let file = begin(&site, "s3/from", &bytes).await;
    wait_parts(&site, before, 2).await;
    let to = site.mnt.join("s3/to");
    let moved = go_on(file, move |from| std::fs::rename(from, to).expect("renamed"), site.mnt.join("s3/from")).await;
    moved.expect("stored under its new name");
    assert_eq!(stored(&site, "s3/from").await, None);
    assert!(stored(&site, "s3/to").await.as_ref() == Some(&whole));

    let before = site.s3.control.parts();
    let file = begin(&site, "s3/gone", &bytes).await;
    wait_parts(&site, before, 2).await;
    let gone = go_on(file, |at| std::fs::remove_file(at).expect("removed"), site.mnt.join("s3/gone")).await;
    gone.expect("a file without a name is stored nowhere");
    assert_eq!(stored(&site, "s3/gone").await, None);

    let before = site.s3.control.parts();
    let file = begin(&site, "s3/other", &bytes).await;
    wait_parts(&site, before, 2).await;
    site.put("other", b"theirs").await;
    let refused = go_on(file, |_| (), PathBuf::new()).await;
    assert_eq!(errno(refused), libc::ESTALE, "somebody else was first");
    assert_eq!(stored(&site, "s3/other").await.as_deref(), Some(&b"theirs"[..]));

    let nothing = || left_over(&site).is_empty();
    wait_until("nothing is left of what was given up", PATIENCE, nothing).await;
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_refuses_what_is_sent_early_is_given_all_of_it_at_the_close() {
    if !fuse_works("a_store_that_refuses_what_is_sent_early_is_given_all_of_it_at_the_close") {
        return;
    }
    let site = writable(1, |_| {}).await;
    let bytes = content(4 * PART, 8);
    let file = begin(&site, "s3/f", &bytes[..PART]).await;
    site.s3.control.fail_next(u64::MAX);
    let rest = bytes[PART..].to_vec();
    let file = off(move || {
        file.write_all_at(&rest, PART as u64).expect("staged");
        file
    })
    .await;
    let refused = || site.s3.control.refused() > 0;
    wait_until("the upload is refused", PATIENCE, refused).await;
    site.s3.control.fail_next(0);
    off(move || file.sync_all()).await.expect("stored");
    assert!(stored(&site, "s3/f").await.as_ref() == Some(&bytes));
}
