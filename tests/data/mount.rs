//! The kernel mount: what applications see of files, names and failures.

use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};

use super::{BLOCK, TTL, content, start};
use crate::support::cluster::PATIENCE;
use crate::support::{free_port, fuse_works, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_shows_names_attributes_links_and_bytes_of_the_under_storage() {
    if !fuse_works("a_mount_shows_names_attributes_links_and_bytes_of_the_under_storage") {
        return;
    }
    let site = start(1, |_| {}).await;
    let bytes = content(BLOCK + 77, 5);
    std::fs::create_dir_all(site.local.join("d/empty")).expect("mkdir");
    std::fs::write(site.local.join("d/f"), &bytes).expect("written");
    std::fs::write(site.local.join("d/none"), b"").expect("written");
    std::os::unix::fs::symlink("f", site.local.join("d/link")).expect("symlink");
    let odd = std::ffi::OsStr::from_bytes(b"\xff\xfe odd\n");
    std::fs::write(site.local.join("d").join(odd), b"odd").expect("written");
    let (mnt, local) = (site.mnt.clone(), site.local.clone());
    tokio::task::spawn_blocking(move || {
        let at = |name: &str| mnt.join("local/d").join(name);
        let mut names: Vec<_> =
            std::fs::read_dir(at("")).expect("listed").map(|one| one.expect("one").file_name()).collect();
        names.sort();
        assert_eq!(
            names,
            ["empty", "f", "link", "none"].map(Into::into).into_iter().chain([odd.to_owned()]).collect::<Vec<_>>()
        );
        assert_eq!(std::fs::read(at("").join(odd)).expect("read"), b"odd");
        assert!(std::fs::read(at("link")).expect("read") == bytes);
        assert_eq!(std::fs::read_link(at("link")).expect("a link"), std::path::Path::new("f"));
        assert_eq!(std::fs::read(at("none")).expect("read"), b"");
        let (seen, real) =
            (std::fs::metadata(at("f")).expect("stat"), std::fs::metadata(local.join("d/f")).expect("stat"));
        assert_eq!(
            (seen.len(), seen.mtime(), seen.mode(), seen.uid()),
            (real.len(), real.mtime(), real.mode(), real.uid())
        );
        let mut file = std::fs::File::open(at("f")).expect("open");
        file.seek(SeekFrom::Start(BLOCK as u64 - 10)).expect("seek");
        let mut across = [0; 30];
        file.read_exact(&mut across).expect("read");
        assert_eq!(across, bytes[BLOCK - 10..BLOCK + 20]);
        assert_eq!(file.read_at(&mut across, 1 << 40).expect("beyond the end"), 0);
        let refused = [
            std::fs::write(at("f"), b"x").map_err(|error| error.raw_os_error()),
            std::fs::File::create(at("new")).map(drop).map_err(|error| error.raw_os_error()),
            std::fs::create_dir(at("dir")).map_err(|error| error.raw_os_error()),
            std::fs::remove_file(at("f")).map_err(|error| error.raw_os_error()),
            std::fs::rename(at("f"), at("g")).map_err(|error| error.raw_os_error()),
        ];
        assert!(refused.iter().all(|one| *one == Err(Some(libc::EROFS))), "{refused:?}");
        let xattr = rustix::fs::getxattr(at("f"), "user.x", &mut [0_u8; 8][..]);
        assert_eq!(xattr.expect_err("no xattrs"), rustix::io::Errno::NOTSUP);
        assert_eq!(std::fs::metadata(at("missing")).expect_err("missing").kind(), ErrorKind::NotFound);
    })
    .await
    .expect("no panic");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_of_thousands_holds_each_name_once() {
    if !fuse_works("a_listing_of_thousands_holds_each_name_once") {
        return;
    }
    let site = start(1, |_| {}).await;
    let mut expected: Vec<String> = (0..4321).map(|number| format!("file-{number}")).collect();
    for name in &expected {
        std::fs::write(site.local.join(name), b"").expect("written");
    }
    expected.sort();
    assert!(site.names("local").await == expected);
    assert!(site.names("local").await == expected, "again, from what is remembered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_mount_can_be_mounted_again_at_once_and_a_stopped_one_is_gone() {
    if !fuse_works("a_killed_mount_can_be_mounted_again_at_once_and_a_stopped_one_is_gone") {
        return;
    }
    let site = start(1, |_| {}).await;
    std::fs::write(site.local.join("f"), b"content").expect("written");
    for _ in 0..3 {
        assert_eq!(site.read("local/f").await.expect("read"), b"content");
        site.cluster.dev.kill("fuse-0").expect("killed");
        let dead = site.read("local/f").await.expect_err("the process is gone");
        assert_eq!(dead.raw_os_error(), Some(libc::ENOTCONN));
        site.cluster.dev.restart("fuse-0").expect("mounted again");
    }
    let held = std::fs::File::open(site.mnt.join("local/f")).expect("open");
    assert!(site.cluster.dev.term("fuse-0").expect("ended").success());
    assert!(!jindofs::fuse::is_mounted(&site.mnt));
    drop(held);
    site.cluster.dev.restart("fuse-0").expect("mounted again");
    assert_eq!(site.read("local/f").await.expect("read"), b"content");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overwritten_object_is_never_mixed_with_its_old_version() {
    if !fuse_works("an_overwritten_object_is_never_mixed_with_its_old_version") {
        return;
    }
    let site = start(1, |_| {}).await;
    site.ctl_ok(&[
        "mount",
        "add",
        "/always",
        "s3://bucket/always",
        "--meta-policy",
        "always",
        "-O",
        &super::s3_options(&site.s3, &site.secret)[0],
        "-O",
        &super::s3_options(&site.s3, &site.secret)[1],
        "-O",
        &super::s3_options(&site.s3, &site.secret)[2],
    ]);
    let (old, new) = (content(3 * BLOCK, 1), content(3 * BLOCK, 2));
    site.put("always/f", &old).await;
    let path = site.mnt.join("always/f");
    let (handle, bytes) = {
        let path = path.clone();
        let open = move || {
            let file = std::fs::File::open(path).expect("open");
            let mut first = vec![0; 1000];
            file.read_exact_at(&mut first, 0).expect("read");
            (file, first)
        };
        tokio::task::spawn_blocking(open).await.expect("no panic")
    };
    assert_eq!(bytes, old[..1000]);
    site.put("always/f", &new).await;
    let late = move || {
        let mut last = vec![0; 1000];
        handle.read_exact_at(&mut last, 3 * BLOCK as u64 - 1000).map(|()| last)
    };
    match tokio::task::spawn_blocking(late).await.expect("no panic") {
        Ok(bytes) => assert!(bytes == old[3 * BLOCK - 1000..], "read ahead before it was replaced"),
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ESTALE)),
    }
    wait_for("the new version is seen within its time to live", TTL * 3, || {
        std::fs::metadata(&path).ok()?;
        let read = std::fs::read(&path).ok()?;
        assert!(read == old || read == new, "two versions are mixed");
        (read == new).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_started_elsewhere_on_its_volume_brings_the_same_files_back() {
    if !fuse_works("a_master_started_elsewhere_on_its_volume_brings_the_same_files_back") {
        return;
    }
    let (grpc, raft) = (free_port(), free_port());
    let site = start(1, |options| options.more_masters = vec![format!("127.0.0.1:{grpc}")]).await;
    for name in ["a", "b", "c"] {
        std::fs::write(site.local.join(name), name).expect("written");
    }
    site.put("d/object", b"object").await;
    // All of it is known before it is listed: the links of a directory are those of what is known below it.
    for directory in ["/local", "/s3", "/s3/d"] {
        site.ctl_ok(&["fs", "ls", directory]);
    }
    let list = || {
        let output = std::process::Command::new("ls").args(["-lR", "--time-style=full-iso"]).arg(&site.mnt).output();
        String::from_utf8(output.expect("ls runs").stdout).expect("text")
    };
    let before = tokio::task::block_in_place(list);
    assert!(before.contains("object") && before.contains(" c\n"), "{before}");
    let mounts = site.ctl_ok(&["mount", "list", "-o", "json"]);

    site.cluster.dev.kill("master-0").expect("killed");
    for (key, value) in [
        ("namespace.rpc.port", grpc.to_string()),
        ("namespace.backend.raft.port", raft.to_string()),
        ("namespace.backend.raft.initial-conf", format!("127.0.0.1:{raft}")),
    ] {
        site.cluster.dev.set("master-0", key, &value).expect("set");
    }
    site.cluster.dev.launch("master-0").expect("launched");
    wait_for("the same listing, with nothing mounted again", PATIENCE, || {
        (tokio::task::block_in_place(list) == before).then_some(())
    });
    let elsewhere = std::process::Command::new(crate::support::cluster::binary("jindoctl"))
        .args(["--masters", &format!("127.0.0.1:{grpc}"), "mount", "list", "-o", "json"])
        .output()
        .expect("runs");
    assert_eq!(elsewhere.stdout, mounts);
    assert_eq!(site.read("s3/d/object").await.expect("read"), b"object");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_local_file_read_past_the_page_cache_has_the_same_bytes_however_it_is_read() {
    if !fuse_works("a_large_local_file_read_past_the_page_cache_has_the_same_bytes_however_it_is_read") {
        return;
    }
    let site = start(1, |dev| {
        dev.workers = 1;
        dev.settings.push(("fuse.direct-io-min-size".into(), "1MiB".into()));
    })
    .await;
    let bytes = content(2 * BLOCK + 4321, 9);
    site.put("large", &bytes).await;
    assert!(site.read("s3/large").await.expect("read cold, through the page cache") == bytes);
    site.ctl_ok(&["load", "/s3/large"]);
    let path = site.mnt.join("s3/large");
    let expected = bytes.clone();
    let open = tokio::task::spawn_blocking(move || {
        assert!(std::fs::read(&path).expect("read whole") == expected);
        let file = std::fs::File::open(&path).expect("open");
        let mut piece = [0; 777];
        for at in [0, 1, 4095, BLOCK as u64 - 5, 2 * BLOCK as u64 + 4321 - 777] {
            file.read_exact_at(&mut piece, at).expect("read");
            let from = usize::try_from(at).expect("small");
            assert_eq!(piece[..], expected[from..from + 777], "at {at}");
        }
        assert_eq!(file.read_at(&mut piece, expected.len() as u64).expect("at the end"), 0);
        use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
        let length = expected.len();
        // SAFETY: a fresh mapping at an address of the kernel's choice, as long as the file, unmapped before the end.
        unsafe {
            let start =
                mmap(std::ptr::null_mut(), length, ProtFlags::READ, MapFlags::SHARED, &file, 0).expect("mapped");
            assert!(*std::slice::from_raw_parts(start.cast::<u8>(), length) == expected, "mapped");
            munmap(start, length).expect("unmapped");
        }
        file
    })
    .await
    .expect("no panic");
    // Overwritten while it is open: what is cached is still the version that was opened.
    site.put("large", &content(2 * BLOCK + 99, 10)).await;
    let mut piece = [0; 100];
    open.read_exact_at(&mut piece, 5).expect("cached");
    assert_eq!(piece[..], bytes[5..105]);
}
