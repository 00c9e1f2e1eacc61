//! Disks that are full: under an under-storage, and under a worker.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::Command;

use super::writes::{errno, names, off, writable};
use super::{BLOCK, content};
use crate::support::cluster::PATIENCE;
use crate::support::small_disk::SmallDisk;
use crate::support::{fuse_works, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn a_full_under_storage_is_told_by_sync_and_close_leaves_every_file_whole_and_goes_on_with_room() {
    let test = "a_full_under_storage_is_told_by_sync_and_close_leaves_every_file_whole_and_goes_on_with_room";
    if !fuse_works(test) {
        return;
    }
    let site = writable(1, |_| {}).await;
    let disk = SmallDisk::at(&site.dir.path().join("small"), "16m");
    let root = disk.0.join("data");
    std::fs::create_dir(&root).expect("made");
    site.ctl_ok(&["mount", "add", "/small", &format!("local://{}", root.display())]);
    let (old, other, new) = (content(1 << 20, 1), content(BLOCK, 2), content(2 << 20, 3));
    let at = site.mnt.join("small");
    let (first, second) = (old.clone(), other.clone());
    off(move || {
        std::fs::write(at.join("old"), first).expect("written");
        std::fs::write(at.join("other"), second).expect("written");
    })
    .await;
    // Less than the kernel gives at once.
    disk.fill_but(100_000);
    let (at, bytes, whole) = (site.mnt.join("small"), new.clone(), other.clone());
    // No process is started from here on: it would close what it inherits, and with that store it.
    let (overwriting, making) = off(move || {
        let mut overwriting = OpenOptions::new().write(true).open(at.join("old")).expect("open");
        let mut making = File::create(at.join("new")).expect("made");
        for file in [&mut overwriting, &mut making] {
            file.write_all(&bytes).expect("staged");
            assert_eq!(errno(file.sync_all()), libc::ENOSPC);
        }
        let mut given_up = OpenOptions::new().write(true).open(at.join("other")).expect("open");
        given_up.write_all(&bytes).expect("staged");
        assert_eq!(errno(given_up.sync_all()), libc::ENOSPC);
        drop(given_up);
        let read = || (std::fs::read(at.join("other")).expect("read") == whole).then_some(());
        wait_for("what was given up is not seen any more", PATIENCE, read);
        (overwriting, making)
    })
    .await;
    assert!(std::fs::read(root.join("old")).expect("read") == old, "the old file is whole");
    // Whatever process was started right after it was made has closed it, and with that stored it, as an empty file.
    let new_before = std::fs::read(root.join("new")).unwrap_or_default();
    assert!(new_before.is_empty(), "{} bytes of a new file that had no room", new_before.len());
    // A retry of what is still open may be under way.
    let left = || names(&root).into_iter().filter(|name| name != "new").eq(["old", "other"]).then_some(());
    wait_for("nothing is left of what had no room", PATIENCE, left);
    // Small enough for what is left, and what is there is read.
    let (at, expected) = (site.mnt.join("small"), other.clone());
    off(move || {
        std::fs::write(at.join("tiny"), b"there is room for this").expect("written");
        assert!(std::fs::read(at.join("other")).expect("read") == expected);
        let closed = Command::new("cp").arg(at.join("other")).arg(at.join("copy")).output().expect("cp runs");
        let said = String::from_utf8_lossy(&closed.stderr).into_owned();
        assert!(!closed.status.success() && said.contains("No space left on device"), "its close says it: {said}");
    })
    .await;
    disk.make_room();
    let (at, expected) = (site.mnt.join("small"), new.clone());
    off(move || {
        overwriting.sync_all().expect("stored, with nothing written again");
        making.sync_all().expect("stored, with nothing written again");
        drop((overwriting, making));
        for name in ["old", "new"] {
            assert!(std::fs::read(at.join(name)).expect("read") == expected, "{name}");
        }
    })
    .await;
    for name in ["old", "new"] {
        assert!(std::fs::read(root.join(name)).expect("stored") == new, "{name}");
        assert!(site.ctl_ok(&["fs", "cat", &format!("/small/{name}")]) == new, "{name} for another client");
    }
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_disk_is_full_keeps_nobody_from_reading_and_writing_and_caches_again_with_room() {
    let test = "a_worker_whose_disk_is_full_keeps_nobody_from_reading_and_writing_and_caches_again_with_room";
    if !fuse_works(test) {
        return;
    }
    let mut disk = None;
    let site = writable(1, |dev| {
        dev.workers = 1;
        let small = SmallDisk::at(&dev.dir.join("worker-0"), "64m");
        // Both levels lie on it, each with more than there is.
        dev.settings.push(("storage.ram.cache.dir".into(), small.0.join("memory").display().to_string()));
        disk = Some(small);
    })
    .await;
    let disk = disk.expect("made before the cluster");
    let files: Vec<Vec<u8>> = (0..4).map(|number| content(BLOCK + 500, number)).collect();
    for (number, bytes) in files.iter().enumerate() {
        site.put(&format!("f{number}"), bytes).await;
    }
    assert!(site.ctl_ok(&["fs", "cat", "/s3/f0"]) == files[0]);
    disk.fill_but(0);
    let gets = site.s3.control.gets();
    assert!(site.ctl_ok(&["fs", "cat", "/s3/f0"]) == files[0]);
    assert_eq!(site.s3.control.gets(), gets, "what is cached is read from the cache");
    for number in [1, 2] {
        assert!(site.ctl_ok(&["fs", "cat", &format!("/s3/f{number}")]) == files[number], "from the under-storage");
        assert!(site.read(&format!("s3/f{number}")).await.expect("read") == files[number], "through the mount");
    }
    assert!(site.s3.control.gets() > gets);
    let (at, bytes) = (site.mnt.join("s3"), files[3].clone());
    off(move || {
        std::fs::write(at.join("written"), &bytes).expect("no worker is needed to write");
        let file = OpenOptions::new().read(true).write(true).open(at.join("f1")).expect("open");
        file.write_all_at(b"changed", 5000).expect("brought here, and changed");
        file.sync_all().expect("stored");
        assert!(std::fs::read(at.join("written")).expect("read") == bytes);
    })
    .await;
    let mut changed = files[1].clone();
    changed[5000..5007].copy_from_slice(b"changed");
    assert!(site.bucket.read("f1").await.expect("stored").to_vec() == changed);
    assert!(site.ctl_ok(&["fs", "cat", "/s3/f1"]) == changed);
    disk.make_room();
    wait_for("it caches again", PATIENCE, || {
        assert!(site.ctl_ok(&["fs", "cat", "/s3/f3"]) == files[3]);
        let gets = site.s3.control.gets();
        assert!(site.ctl_ok(&["fs", "cat", "/s3/f3"]) == files[3]);
        (site.s3.control.gets() == gets).then_some(())
    });
    site.cluster.assert_no_panic();
}
