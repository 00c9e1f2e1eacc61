//! Writing through the mount: what is in the under-storage when a close has returned, and what is left by whoever is killed.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use jindofs::client::namespace::at_path;
use jindofs::dev::DevOptions;
use serde_json::json;

use super::{BLOCK, Site, content, start};
use crate::support::agent::{Agent, encode};
use crate::support::cluster::PATIENCE;
use crate::support::{fuse_works, wait_for, wait_until};

/// Sessions that expire soon, so that what a dead client has left is found soon.
const SESSION_TTL: &str = "2s";
/// Name of a second mount's directory.
const SECOND: &str = "second";

pub(super) async fn writable(masters: usize, change: impl FnOnce(&mut DevOptions) + Send) -> Site {
    start(masters, |dev| {
        dev.writable = true;
        dev.settings.push(("namespace.session.ttl".into(), SESSION_TTL.into()));
        change(dev);
    })
    .await
}

/// As [`writable`], with a second mount, and where that is.
pub(super) async fn writable_twice(masters: usize, change: impl FnOnce(&mut DevOptions) + Send) -> (Site, PathBuf) {
    let site = writable(masters, |dev| {
        let second = dev.mounts[0].with_file_name(SECOND);
        std::fs::create_dir(&second).expect("mkdir");
        dev.mounts.push(second);
        change(dev);
    })
    .await;
    let second = site.mnt.with_file_name(SECOND);
    (site, second)
}

/// Runs what waits for the kernel off the threads that serve S3.
pub(super) async fn off<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// What a bucket or directory holds below `path`, without what is on its way.
pub(super) async fn stored(site: &Site, path: &str) -> Option<Vec<u8>> {
    match path.split_once('/') {
        Some(("s3", key)) => site.bucket.read(key).await.ok().map(|bytes| bytes.to_vec()),
        Some(("local", name)) => std::fs::read(site.local.join(name)).ok(),
        _ => panic!("{path}: neither s3 nor local"),
    }
}

/// Waits until a file is in the under-storage with this content: what was never written comes there after its last close.
pub(super) async fn wait_stored(site: &Site, path: &str, content: &[u8]) {
    let on = tokio::runtime::Handle::current();
    let is_stored = || (on.block_on(stored(site, path)).as_deref() == Some(content)).then_some(());
    tokio::task::block_in_place(|| wait_for(&format!("{path} is stored"), PATIENCE, is_stored));
}

pub(super) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .expect("listed")
        .map(|one| one.expect("one").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Changes the length of a file that nobody has open.
fn truncate(file: &Path, length: i64) {
    let path = std::ffi::CString::new(file.as_os_str().as_bytes()).expect("a path");
    // SAFETY: the path is a C string that lives as long as the call.
    assert_eq!(unsafe { libc::truncate(path.as_ptr(), length) }, 0, "{}", std::io::Error::last_os_error());
}

#[track_caller]
pub(super) fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.expect_err("refused").raw_os_error().expect("an errno")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_is_in_the_under_storage_when_its_close_returns_and_reads_back_everywhere() {
    if !fuse_works("what_was_written_is_in_the_under_storage_when_its_close_returns_and_reads_back_everywhere") {
        return;
    }
    let site = writable(1, |_| {}).await;
    for (number, length) in [(1, 0), (2, 11), (3, BLOCK + 77), (4, 5 * BLOCK + 1)] {
        for storage in ["local", "s3"] {
            let path = format!("{storage}/f{number}");
            let bytes = content(length, number);
            let (at, given) = (site.mnt.join(&path), bytes.clone());
            off(move || std::fs::write(at, given)).await.expect("written");
            if bytes.is_empty() {
                // Nothing was written.
                wait_stored(&site, &path, b"").await;
            }
            assert!(stored(&site, &path).await.as_ref() == Some(&bytes), "{path} is there at once");
            assert!(site.read(&path).await.expect("read") == bytes, "{path} through the mount");
            assert!(site.ctl_ok(&["fs", "cat", &format!("/{path}")]) == bytes, "{path} for another client");
        }
    }
    assert_eq!(site.names("local").await, ["f1", "f2", "f3", "f4"]);
    assert_eq!(names(&site.local), ["f1", "f2", "f3", "f4"], "nothing is left beside them");
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_changed_in_the_middle_at_its_end_and_in_length_as_on_a_disk() {
    if !fuse_works("a_file_is_changed_in_the_middle_at_its_end_and_in_length_as_on_a_disk") {
        return;
    }
    let site = writable(1, |_| {}).await;
    for storage in ["local", "s3"] {
        let path = format!("{storage}/f");
        let at = site.mnt.join(&path);
        let mut model = content(BLOCK + 1000, 9);
        let given = model.clone();
        let file = at.clone();
        off(move || std::fs::write(file, given)).await.expect("written");

        model[5000..5007].copy_from_slice(b"changed");
        model.extend_from_slice(b"appended");
        let file = at.clone();
        off(move || {
            let reader = File::open(&file).expect("a reader");
            let mut both = OpenOptions::new().read(true).write(true).open(&file).expect("open");
            both.seek(SeekFrom::Start(5000)).expect("seek");
            both.write_all(b"changed").expect("written");
            let mut end = OpenOptions::new().append(true).open(&file).expect("open");
            end.write_all(b"appended").expect("appended");
            let mut seen = [0; 7];
            reader.read_exact_at(&mut seen, 5000).expect("read");
            assert_eq!(&seen, b"changed", "readers of this mount see what was not closed yet");
            assert_eq!(reader.metadata().expect("stat").len(), (BLOCK + 1008) as u64);
        })
        .await;
        assert!(stored(&site, &path).await.as_ref() == Some(&model), "{path}");

        model.truncate(3000);
        model.resize(4000, 0);
        let file = at.clone();
        off(move || {
            let file = OpenOptions::new().write(true).open(&file).expect("open");
            file.set_len(3000).expect("shorter");
            file.set_len(4000).expect("longer");
            file.sync_all().expect("synced");
        })
        .await;
        assert!(stored(&site, &path).await.as_ref() == Some(&model), "{path}: a hole reads as zeros");

        let file = at.clone();
        off(move || truncate(&file, 10)).await;
        assert!(stored(&site, &path).await.as_deref() == Some(&model[..10]), "{path}");
        let file = at.clone();
        off(move || {
            let mut file = OpenOptions::new().write(true).truncate(true).open(&file).expect("open");
            file.write_all(b"anew").expect("written");
        })
        .await;
        assert_eq!(stored(&site, &path).await.as_deref(), Some(&b"anew"[..]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_made_moved_and_removed_through_the_mount_are_so_in_the_under_storage() {
    if !fuse_works("names_made_moved_and_removed_through_the_mount_are_so_in_the_under_storage") {
        return;
    }
    let site = writable(1, |_| {}).await;
    let (mnt, local) = (site.mnt.clone(), site.local.clone());
    off(move || {
        let at = |name: &str| mnt.join("local").join(name);
        std::fs::create_dir(at("d")).expect("mkdir");
        std::fs::create_dir(at("d/e")).expect("mkdir");
        std::fs::write(at("d/f"), b"one").expect("written");
        std::fs::write(at("d/g"), b"two").expect("written");
        std::os::unix::fs::symlink("f", at("d/link")).expect("symlink");
        assert_eq!(names(&local.join("d")), ["e", "f", "g", "link"]);
        assert_eq!(std::fs::read(at("d/link")).expect("through the link"), b"one");
        std::fs::rename(at("d/f"), at("d/g")).expect("replaced");
        assert_eq!(std::fs::read(local.join("d/g")).expect("moved"), b"one");
        std::fs::rename(at("d"), at("moved")).expect("a directory moves");
        assert_eq!(std::fs::read(at("moved/g")).expect("read"), b"one");
        assert_eq!(errno(std::fs::rename(at("moved"), at("moved/e/below"))), libc::EINVAL);
        assert_eq!(errno(std::fs::remove_dir(at("moved"))), libc::ENOTEMPTY);
        assert_eq!(errno(OpenOptions::new().write(true).create_new(true).open(at("moved/g"))), libc::EEXIST);
        std::fs::set_permissions(at("moved/g"), std::fs::Permissions::from_mode(0o640)).expect("chmod");
        std::os::unix::fs::chown(at("moved/g"), Some(7), Some(8)).expect("chown");
        let real = std::fs::metadata(local.join("moved/g")).expect("stat");
        assert_eq!((real.mode() & 0o7777, real.uid(), real.gid()), (0o640, 7, 8));
        assert_eq!(std::fs::read(at("moved/g")).expect("still readable"), b"one");
        for name in ["moved/g", "moved/link"] {
            std::fs::remove_file(at(name)).expect("removed");
        }
        std::fs::remove_dir(at("moved/e")).expect("removed");
        std::fs::remove_dir(at("moved")).expect("removed");
        assert!(names(&local).is_empty() && names(&at("")).is_empty());
    })
    .await;
    let mnt = site.mnt.clone();
    off(move || {
        let at = |name: &str| mnt.join("s3").join(name);
        std::fs::create_dir(at("d")).expect("mkdir");
        std::fs::write(at("d/f"), b"one").expect("written");
        std::fs::rename(at("d/f"), at("d/g")).expect("a file moves");
        assert_eq!(names(&at("d")), ["g"]);
        assert_eq!(errno(std::fs::rename(at("d"), at("e"))), libc::EXDEV, "a directory does not");
        assert_eq!(errno(std::os::unix::fs::symlink("g", at("link"))), libc::EOPNOTSUPP);
    })
    .await;
    assert_eq!(stored(&site, "s3/d/g").await.as_deref(), Some(&b"one"[..]));
    assert_eq!(stored(&site, "s3/d/f").await, None);
    let mnt = site.mnt.clone();
    off(move || {
        std::fs::remove_file(mnt.join("s3/d/g")).expect("removed");
        std::fs::remove_dir(mnt.join("s3/d")).expect("removed");
        assert!(names(&mnt.join("s3")).is_empty());
    })
    .await;
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_opened_to_be_overwritten_is_the_old_one_for_others_until_it_is_closed() {
    if !fuse_works("a_file_that_is_opened_to_be_overwritten_is_the_old_one_for_others_until_it_is_closed") {
        return;
    }
    let site = writable(1, |_| {}).await;
    for storage in ["local", "s3"] {
        let path = format!("{storage}/f");
        let at = site.mnt.join(&path);
        let mut agent = off(move || {
            std::fs::write(&at, b"before").expect("written");
            let mut agent = Agent::start();
            let read_and_cut = json!(["open", 0, at, libc::O_RDONLY | libc::O_TRUNC, 0]);
            let refused = agent.call(&read_and_cut).expect_err("a program might run from it");
            assert_eq!(refused.errno, libc::EINVAL);
            assert_eq!(std::fs::read(&at).expect("read"), b"before");
            agent.call(&json!(["open", 0, at, libc::O_WRONLY | libc::O_TRUNC, 0])).expect("open");
            assert_eq!(std::fs::metadata(&at).expect("stat").len(), 0, "on this mount it is empty at once");
            agent
        })
        .await;
        assert_eq!(stored(&site, &path).await.as_deref(), Some(&b"before"[..]));
        assert_eq!(site.ctl_ok(&["fs", "cat", &format!("/{path}")]), b"before");
        off(move || agent.call(&json!(["close", 0])).expect("closed")).await;
        // Nothing was written.
        wait_stored(&site, &path, b"").await;
        let at = site.mnt.join(&path);
        let empty =
            off(move || Agent::start().call(&json!(["open", 0, at, libc::O_RDONLY | libc::O_TRUNC, 0])).map(drop));
        assert_eq!(empty.await, Ok(()), "there is nothing to cut");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_another_client_has_moved_is_changed_by_whoever_has_it_open() {
    if !fuse_works("a_file_that_another_client_has_moved_is_changed_by_whoever_has_it_open") {
        return;
    }
    let site = writable(1, |_| {}).await;
    for storage in ["local", "s3"] {
        let at = site.mnt.join(storage).join("f");
        let mut agent = off(move || {
            std::fs::write(&at, b"before").expect("written");
            let mut agent = Agent::start();
            agent.call(&json!(["open", 0, at, libc::O_RDWR, 0])).expect("open");
            agent
        })
        .await;
        site.ctl_ok(&["fs", "mv", &format!("/{storage}/f"), &format!("/{storage}/g")]);
        off(move || {
            agent.call(&json!(["write", 0, 0, encode(b"12")])).expect("written");
            agent.call(&json!(["close", 0])).expect("stored");
        })
        .await;
        assert_eq!(stored(&site, &format!("{storage}/g")).await.as_deref(), Some(&b"12fore"[..]));
    }
}

/// A process of its own that writes to a new file and an old one of each storage, and closes nothing: this one starts others
/// all the time, each of which closes what it inherits, and with that stores it.
fn hold_open(mnt: &Path) -> Child {
    let program = "import os, sys, time\n\
        for storage in ('local', 's3'):\n    \
            at = os.path.join(sys.argv[1], storage)\n    \
            os.write(os.open(at + '/new', os.O_CREAT | os.O_WRONLY), b'never closed')\n    \
            os.write(os.open(at + '/old', os.O_WRONLY), b'NEW')\n\
        print('open', flush=True)\n\
        time.sleep(3600)\n";
    let mut command = Command::new("python3");
    let mut child = command.args(["-c", program]).arg(mnt).stdout(Stdio::piped()).spawn().expect("python3");
    let mut said = [0; 5];
    child.stdout.as_mut().expect("its output").read_exact(&mut said).expect("both are open");
    assert_eq!(&said, b"open\n");
    child
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_killed_leaves_the_old_file_or_none() {
    if !fuse_works("a_client_that_is_killed_leaves_the_old_file_or_none") {
        return;
    }
    let site = writable(1, |_| {}).await;
    let mnt = site.mnt.clone();
    off(move || {
        for storage in ["local", "s3"] {
            std::fs::write(mnt.join(storage).join("old"), b"old content").expect("written");
        }
    })
    .await;
    let mut holder = hold_open(&site.mnt);
    // No process may be started from here on that inherits them: it would close them, and with that store them.
    let seen = site.cluster.client().lookup(at_path("/local/new")).await.expect("a file that was made is seen at once");
    assert_eq!(seen.size, 0);
    site.cluster.dev.kill("fuse-0").expect("killed");
    holder.kill().and_then(|()| holder.wait()).expect("ended");
    site.cluster.dev.restart("fuse-0").expect("mounted again");
    for storage in ["local", "s3"] {
        let new = format!("/{storage}/new");
        wait_until("what was never stored is gone", PATIENCE, || !site.ctl(&["fs", "stat", &new]).status.success())
            .await;
        assert_eq!(site.read(&format!("{storage}/old")).await.expect("read"), b"old content");
        let mnt = site.mnt.join(storage);
        off(move || std::fs::write(mnt.join("new"), b"stored now")).await.expect("the name is free");
    }
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_staging_directory_is_told_before_anything_is_lost_and_goes_on_when_there_is_room() {
    if !fuse_works("a_full_staging_directory_is_told_before_anything_is_lost_and_goes_on_when_there_is_room") {
        return;
    }
    let site = writable(1, |dev| dev.settings.push(("fuse.staging.size".into(), "8Mi".into()))).await;
    let mnt = site.mnt.clone();
    off(move || {
        let mut large = File::create(mnt.join("s3/large")).expect("made");
        let block = content(1 << 20, 3);
        let mut whole = Vec::new();
        let full = loop {
            match large.write_all(&block) {
                Ok(()) => whole.extend_from_slice(&block),
                Err(error) => break error,
            }
            assert!(whole.len() <= 8 << 20, "more than there is room for");
        };
        assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
        large.sync_all().expect("what was taken is stored");
        drop(large);
        let mut back = Vec::new();
        File::open(mnt.join("s3/large")).expect("open").read_to_end(&mut back).expect("read");
        assert!(back.len() >= whole.len() && back[..whole.len()] == whole[..]);
        std::fs::write(mnt.join("s3/next"), &block).expect("there is room again");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_removed_or_replaced_while_it_is_open_goes_on_for_those_who_have_it() {
    if !fuse_works("a_file_that_is_removed_or_replaced_while_it_is_open_goes_on_for_those_who_have_it") {
        return;
    }
    let site = writable(1, |_| {}).await;
    for storage in ["local", "s3"] {
        let dir = site.mnt.join(storage);
        off(move || {
            let bytes = content(BLOCK + 500, 6);
            for name in ["removed", "replaced"] {
                std::fs::write(dir.join(name), &bytes).expect("written");
            }
            let removed = File::open(dir.join("removed")).expect("open");
            let replaced = File::open(dir.join("replaced")).expect("open");
            std::fs::remove_file(dir.join("removed")).expect("removed");
            std::fs::write(dir.join("news"), b"news").expect("written");
            std::fs::rename(dir.join("news"), dir.join("replaced")).expect("replaced");
            for file in [removed, replaced] {
                let mut back = vec![0; bytes.len()];
                file.read_exact_at(&mut back, 0).expect("read");
                assert!(back == bytes);
            }
            let mut temporary =
                OpenOptions::new().read(true).write(true).create_new(true).open(dir.join("t")).expect("made");
            std::fs::remove_file(dir.join("t")).expect("removed");
            temporary.write_all(b"nobody else sees it").expect("written");
            let mut back = [0; 6];
            temporary.read_exact_at(&mut back, 0).expect("read");
            assert_eq!(&back, b"nobody");
            drop(temporary);
            assert_eq!(names(&dir), ["replaced"]);
            assert_eq!(std::fs::read(dir.join("replaced")).expect("read"), b"news");
        })
        .await;
        assert_eq!(stored(&site, &format!("{storage}/t")).await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_for_people_put_make_and_remove_below_a_mount() {
    let site = start(1, |_| {}).await;
    let bytes = content(BLOCK + 3, 8);
    let file = site.dir.path().join("file");
    std::fs::write(&file, &bytes).expect("written");
    for storage in ["local", "s3"] {
        site.ctl_ok(&["fs", "mkdir", "-p", &format!("/{storage}/a/b")]);
        let path = format!("/{storage}/a/b/f");
        for _ in 0..2 {
            site.ctl_ok(&["fs", "put", &file.display().to_string(), &path]);
            assert!(stored(&site, &path[1..]).await.as_ref() == Some(&bytes));
        }
        site.ctl_ok(&["fs", "create", &format!("/{storage}/a/empty")]);
        assert_eq!(stored(&site, &format!("{storage}/a/empty")).await.as_deref(), Some(&b""[..]));
        site.ctl_ok(&["fs", "mv", &path, &format!("/{storage}/a/g")]);
        assert!(site.ctl_ok(&["fs", "cat", &format!("/{storage}/a/g")]) == bytes);
        site.ctl_ok(&["fs", "rm", "-r", &format!("/{storage}/a")]);
        assert_eq!(stored(&site, &format!("{storage}/a/g")).await, None);
    }
}
