//! Files that are made behind their answer: what is true at once, what at the close, and who is told what.

use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Instant, SystemTime};

use jindofs::client::namespace::at_path;
use jindofs::dev::DevOptions;
use serde_json::json;

use super::Site;
use super::sessions::OUTAGE;
use super::writes::{names, off, stored, wait_stored, writable, writable_twice};
use crate::support::agent::{Agent, decode, encode};
use crate::support::cluster::PATIENCE;
use crate::support::{fuse_works, wait_for, wait_until};

const THREADS: usize = 16;
const EACH: usize = 40;
/// Files of a directory before anybody makes one through a mount.
const PLANTED: usize = 300;
const TOUCHED: SystemTime = SystemTime::UNIX_EPOCH;

#[tokio::test(flavor = "multi_thread")]
async fn files_that_many_make_at_once_in_one_directory_are_there_for_everybody_when_they_are_closed() {
    if !fuse_works("files_that_many_make_at_once_in_one_directory_are_there_for_everybody_when_they_are_closed") {
        return;
    }
    let site = writable(3, |_| {}).await;
    let client = site.cluster.client();
    let runtime = tokio::runtime::Handle::current();
    for (place, content) in [("d", &b""[..]), ("local/d", b"small"), ("s3/d", b"small")] {
        let (at, path, client, runtime) =
            (site.mnt.join(place), format!("/{place}"), site.cluster.client(), runtime.clone());
        off(move || {
            std::fs::create_dir(&at).expect("mkdir");
            std::thread::scope(|scope| {
                for thread in 0..THREADS {
                    let (at, path, client, runtime) = (&at, &path, &client, &runtime);
                    scope.spawn(move || {
                        for number in 0..EACH {
                            let name = format!("f{thread}-{number}");
                            std::fs::write(at.join(&name), content).expect("made and closed");
                            let seen = runtime.block_on(client.lookup(at_path(format!("{path}/{name}"))));
                            assert_eq!(seen.expect("for others too").size, content.len() as u64, "{path}/{name}");
                        }
                    });
                }
            });
            assert_eq!(names(&at).len(), THREADS * EACH);
        })
        .await;
        let listed = site.ctl_ok(&["fs", "ls", &format!("/{place}")]);
        assert_eq!(String::from_utf8_lossy(&listed).lines().filter(|line| line.contains('-')).count(), THREADS * EACH);
        if content.is_empty() {
            continue;
        }
        assert_eq!(stored(&site, &format!("{place}/f3-7")).await.as_deref(), Some(content));
    }
    drop(client);
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_open_and_hardly_made_is_seen_changed_moved_and_removed_like_any_other() {
    if !fuse_works("a_file_that_is_open_and_hardly_made_is_seen_changed_moved_and_removed_like_any_other") {
        return;
    }
    let site = writable(3, |_| {}).await;
    let mnt = site.mnt.clone();
    off(move || {
        for dir in ["d", "local/d", "s3/d"].map(|dir| mnt.join(dir)) {
            std::fs::create_dir(&dir).expect("mkdir");
            for round in 0..20 {
                let at = |name: &str| dir.join(format!("{name}{round}"));
                let time = std::fs::metadata(&dir).expect("stat").mtime_nsec();
                let open = File::create(at("seen")).expect("made");
                assert_ne!(std::fs::metadata(&dir).expect("stat").mtime_nsec(), time, "the directory has changed");
                let number = open.metadata().expect("stat").ino();
                assert_eq!(std::fs::metadata(at("seen")).expect("by name").ino(), number);
                assert!(names(&dir).contains(&format!("seen{round}")));
                assert_eq!(File::create_new(at("seen")).expect_err("it is there").raw_os_error(), Some(libc::EEXIST));
                assert_eq!(
                    std::fs::create_dir(at("seen")).expect_err("it is there").raw_os_error(),
                    Some(libc::EEXIST)
                );

                let open = File::create(at("changed")).expect("made");
                std::fs::set_permissions(at("changed"), Permissions::from_mode(0o600)).expect("chmod");
                assert_eq!(open.metadata().expect("stat").mode() & 0o777, 0o600);

                let _open = File::create(at("moved")).expect("made");
                std::fs::rename(at("moved"), at("there")).expect("moved");
                assert!(std::fs::metadata(at("there")).is_ok() && std::fs::metadata(at("moved")).is_err());

                let open = File::create(at("gone")).expect("made");
                std::fs::remove_file(at("gone")).expect("removed");
                assert_eq!(open.metadata().expect("still open").nlink(), 0);
                assert!(std::fs::metadata(at("gone")).is_err());
                File::create_new(at("gone")).expect("the name is free");
            }
            std::fs::remove_dir_all(&dir).expect("all of it");
        }
    })
    .await;
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_mounts_that_make_and_touch_the_same_files_at_once_have_one_of_each_and_no_error() {
    if !fuse_works("two_mounts_that_make_and_touch_the_same_files_at_once_have_one_of_each_and_no_error") {
        return;
    }
    let (site, second) = writable_twice(3, |_| {}).await;
    let mounts: [PathBuf; 2] = [site.mnt.clone(), second];
    off(move || {
        std::fs::create_dir(mounts[0].join("d")).expect("mkdir");
        for round in 0..100 {
            let name = format!("d/f{round}");
            std::thread::scope(|scope| {
                for mount in &mounts {
                    let file = mount.join(&name);
                    scope.spawn(move || {
                        let open = File::options().create(true).append(true).open(&file).expect("made, or found");
                        // As touch does.
                        open.set_modified(TOUCHED).expect("of the file that is there");
                        open.set_permissions(Permissions::from_mode(0o640)).expect("of the file that is there");
                        open.sync_all().expect("no error to who has written nothing");
                    });
                }
            });
            for mount in &mounts {
                let seen = std::fs::metadata(mount.join(&name)).expect("stat");
                assert_eq!((seen.modified().expect("a time"), seen.mode() & 0o777), (TOUCHED, 0o640), "{name}");
            }
        }
        for mount in &mounts {
            assert_eq!(names(&mount.join("d")).len(), 100);
        }
        let number =
            |mount: &PathBuf, round: usize| std::fs::metadata(mount.join(format!("d/f{round}"))).expect("stat").ino();
        assert!((0..100).all(|round| number(&mounts[0], round) == number(&mounts[1], round)));
    })
    .await;
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_of_two_mounts_writes_to_a_file_that_both_have_made_is_in_it_and_neither_is_refused() {
    if !fuse_works("what_one_of_two_mounts_writes_to_a_file_that_both_have_made_is_in_it_and_neither_is_refused") {
        return;
    }
    let (site, second) = writable_twice(3, |_| {}).await;
    let mounts = [site.mnt.clone(), second];
    off(move || {
        let mut agents = [Agent::start(), Agent::start()];
        for dir in ["local/d", "s3/d"] {
            std::fs::create_dir(mounts[0].join(dir)).expect("mkdir");
            wait_for("both see it", PATIENCE, || std::fs::metadata(mounts[1].join(dir)).ok());
            for round in 0..40 {
                let files = mounts.each_ref().map(|mount| mount.join(format!("{dir}/f{round}")));
                std::thread::scope(|scope| {
                    for (agent, file) in agents.iter_mut().zip(&files) {
                        let open = json!(["open", "f", file, libc::O_RDWR | libc::O_CREAT, 0o644]);
                        scope.spawn(move || agent.call(&open).expect("made, or found"));
                    }
                });
                let (content, writer) = (format!("round {round}"), &mut agents[round % 2]);
                // As a shell does before its command writes.
                writer.call(&json!(["fsync", "f"])).expect("it is there");
                writer.call(&json!(["write", "f", 0, encode(content.as_bytes())])).expect("written");
                for synced in [false, true] {
                    let seen = writer.call(&json!(["fstat", "f"])).expect("open")["size"].take();
                    assert_eq!(seen, content.len(), "{dir}, {round}, {synced}");
                    assert_eq!(decode(&writer.call(&json!(["read", "f"])).expect("read")), content.as_bytes());
                    writer.call(&json!(["fsync", "f"])).expect("nobody else has written");
                }
                for agent in &mut agents {
                    agent.call(&json!(["close", "f"])).unwrap_or_else(|error| panic!("{dir}, {round}: {error:?}"));
                }
                for file in &files {
                    let read = || std::fs::read(file).ok().filter(|read| read == content.as_bytes());
                    wait_for(&format!("both see what was written to {dir}/f{round}"), PATIENCE, read);
                }
            }
        }
    })
    .await;
    site.cluster.assert_no_panic();
}

/// Ten files in both storages, of each the same one open as its number by both of two mounts, which have made it: the one that
/// came second has not learnt that yet.
async fn made_by_both() -> (Site, PathBuf, Vec<String>, [Agent; 2]) {
    let late = |dev: &mut DevOptions| {
        dev.env.insert("fuse-1".into(), [("JINDOFS_FAILPOINTS".into(), "batch.send=sleep(300)".into())].into());
    };
    let (site, second) = writable_twice(1, late).await;
    let paths: Vec<String> = (0..10).map(|file| format!("{}/f{file}", ["local", "s3"][file % 2])).collect();
    let (mounts, files) = ([second.clone(), site.mnt.clone()], paths.clone());
    let agents = off(move || {
        let mut agents = [Agent::start(), Agent::start()];
        for (number, path) in files.iter().enumerate() {
            for (agent, mount) in agents.iter_mut().zip(&mounts) {
                let open = json!(["open", number.to_string(), mount.join(path), libc::O_RDWR | libc::O_CREAT, 0o644]);
                agent.call(&open).expect("made");
            }
        }
        let [second, first] = agents;
        [first, second]
    });
    let agents = agents.await;
    (site, second, paths, agents)
}

/// Writes, unless there is nothing to write, and closes.
fn ends(agent: &mut Agent, file: usize, what: &str) {
    if !what.is_empty() {
        agent.call(&json!(["write", file.to_string(), 0, encode(what.as_bytes())])).expect("written");
    }
    agent.call(&json!(["close", file.to_string()])).unwrap_or_else(|error| panic!("file {file}: {error:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_two_mounts_have_made_is_there_for_each_of_them_whatever_becomes_of_the_other() {
    if !fuse_works("a_file_that_two_mounts_have_made_is_there_for_each_of_them_whatever_becomes_of_the_other") {
        return;
    }
    let (site, second, paths, [mut first, mut other]) = made_by_both().await;
    let mut other = off(move || {
        (0..6).for_each(|file| ends(&mut other, file, ""));
        other
    })
    .await;
    for path in &paths[..6] {
        // Closed by one who made it.
        wait_stored(&site, path, b"").await;
    }
    // The other has begun with the same empty file. It keeps the rest open.
    let _first = off(move || {
        (0..3).for_each(|file| ends(&mut first, file, "more"));
        // One that its maker has stored before the other learns that there is one.
        ends(&mut first, 6, "");
        first
    })
    .await;
    site.cluster.dev.kill("fuse-0").expect("killed");
    let killed = Instant::now();
    wait_until("its session has ended", PATIENCE, || killed.elapsed() > OUTAGE).await;
    off(move || (6..10).for_each(|file| ends(&mut other, file, "late"))).await;
    for (path, expected) in paths.iter().zip(["more", "more", "more", "", "", "", "late", "late", "late", "late"]) {
        wait_stored(&site, path, expected.as_bytes()).await;
        assert_eq!(site.ctl_ok(&["fs", "cat", &format!("/{path}")]), expected.as_bytes(), "{path}");
        assert!(second.join(path).is_file(), "{path}");
    }
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_directory_where_files_are_made_all_the_time_a_name_that_came_by_the_under_storage_is_seen() {
    if !fuse_works("in_a_directory_where_files_are_made_all_the_time_a_name_that_came_by_the_under_storage_is_seen") {
        return;
    }
    let site = writable(1, |_| {}).await;
    let dir = site.mnt.join("local/d");
    let made = dir.clone();
    off(move || {
        std::fs::create_dir(&made).expect("mkdir");
        File::create(made.join("first")).expect("made");
    })
    .await;
    std::fs::write(site.local.join("d/theirs"), b"theirs").expect("written");
    // Whoever runs into it has it looked at.
    let refused = site.ctl(&["fs", "mkdir", "/local/d/theirs"]);
    assert!(!refused.status.success(), "{refused:?}");
    let seen = off(move || {
        let mut count = 0;
        wait_for("the name is seen", PATIENCE, || {
            count += 1;
            File::create(dir.join(format!("f{count}"))).expect("made");
            std::fs::read(dir.join("theirs")).ok()
        })
    });
    assert_eq!(seen.await, b"theirs");
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_directory_that_was_there_before_each_mount_sees_what_the_other_makes_and_removes_while_both_make_files() {
    let test =
        "in_a_directory_that_was_there_before_each_mount_sees_what_the_other_makes_and_removes_while_both_make_files";
    if !fuse_works(test) {
        return;
    }
    let (site, second) = writable_twice(3, |_| {}).await;
    std::fs::create_dir(site.local.join("d")).expect("mkdir");
    for number in 0..PLANTED {
        std::fs::write(site.local.join(format!("d/planted{number}")), b"planted").expect("written");
    }
    let (ours, theirs) = (site.mnt.join("local/d"), second.join("local/d"));
    off(move || {
        let (stop, made) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let makers: Vec<_> = (0..4)
                .map(|maker| {
                    let (ours, stop, made) = (&ours, &stop, &made);
                    scope.spawn(move || {
                        for count in 0.. {
                            if stop.load(Ordering::Acquire) {
                                return;
                            }
                            let mut file = File::create(ours.join(format!("m{maker}-{count}"))).expect("made");
                            file.write_all(b"ours").expect("written");
                            // Its close tells nobody of an error here, and would leave nothing to be counted.
                            file.sync_all().expect("stored");
                            made.fetch_add(1, Ordering::AcqRel);
                        }
                    })
                })
                .collect();
            for round in 0..20 {
                // Enough to learn all names, the first time.
                let enough = made.load(Ordering::Acquire) + 100;
                let on = || (made.load(Ordering::Acquire) > enough).then_some(());
                wait_for("files are made", PATIENCE, on);
                let (new, gone) = (format!("theirs{round}"), format!("planted{round}"));
                std::fs::write(theirs.join(&new), b"theirs").expect("made");
                wait_for("what the other has made is seen", PATIENCE, || {
                    std::fs::read(ours.join(&new)).is_ok_and(|seen| seen == b"theirs").then_some(())
                });
                std::fs::remove_file(theirs.join(&gone)).expect("removed");
                wait_for("what the other has removed is not", PATIENCE, || {
                    std::fs::metadata(ours.join(&gone)).is_err().then_some(())
                });
            }
            stop.store(true, Ordering::Release);
            makers.into_iter().for_each(|maker| maker.join().expect("no panic"));
            let made = made.load(Ordering::Acquire);
            for dir in [&ours, &theirs] {
                assert_eq!(names(dir).len(), made + PLANTED, "as many were removed as the other has made");
            }
        });
    })
    .await;
    site.cluster.assert_digests_equal().await;
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_made_behind_their_answer_beside_directories_and_links_and_removals() {
    if !fuse_works("files_are_made_behind_their_answer_beside_directories_and_links_and_removals") {
        return;
    }
    let site = writable(3, |_| {}).await;
    let dirs = ["d", "local/d"].map(|dir| site.mnt.join(dir));
    off(move || {
        for dir in dirs {
            std::fs::create_dir(&dir).expect("mkdir");
            for round in 0..50 {
                let at = |name: &str| dir.join(format!("{name}{round}"));
                std::fs::write(at("file"), b"").expect("made");
                std::fs::create_dir(at("dir")).expect("mkdir");
                std::fs::write(at("dir").join("inner"), b"").expect("made");
                std::os::unix::fs::symlink("there", at("link")).expect("symlink");
                File::create_new(at("new")).expect("made");
                std::fs::remove_file(at("new")).expect("removed");
                std::fs::remove_file(at("file")).expect("removed");
                assert!(std::fs::metadata(at("file")).is_err() && std::fs::metadata(at("new")).is_err());
                std::fs::write(at("file"), b"").expect("made again");
                let kind = |name| std::fs::symlink_metadata(at(name)).expect("there").file_type();
                assert!(kind("dir").is_dir() && kind("link").is_symlink() && kind("file").is_file());
            }
            assert_eq!(names(&dir).len(), 150);
        }
    })
    .await;
    site.cluster.assert_digests_equal().await;
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_file_whose_close_was_good_is_there_after_the_leader_was_killed_while_it_was_made() {
    if !fuse_works("every_file_whose_close_was_good_is_there_after_the_leader_was_killed_while_it_was_made") {
        return;
    }
    let site = writable(3, |_| {}).await;
    let (mnt, stop, made) = (site.mnt.clone(), AtomicBool::new(false), AtomicUsize::new(0));
    std::fs::create_dir(mnt.join("d")).expect("mkdir");
    let cluster = &site.cluster;
    tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4)
                .map(|writer| {
                    let (mnt, stop, made) = (&mnt, &stop, &made);
                    scope.spawn(move || {
                        let mut count = 0;
                        while !stop.load(Ordering::Acquire) {
                            let file = File::create(mnt.join(format!("d/w{writer}-{count}"))).expect("made");
                            file.sync_all().expect("recorded");
                            count += 1;
                            made.fetch_add(1, Ordering::AcqRel);
                        }
                        count
                    })
                })
                .collect();
            for _ in 0..3 {
                let before = made.load(Ordering::Acquire);
                let on = || (made.load(Ordering::Acquire) > before + 100).then_some(());
                wait_for("files are made", PATIENCE, on);
                let (leader, _) = cluster.wait_leader();
                cluster.dev.kill(&leader).expect("killed");
                let before = made.load(Ordering::Acquire);
                let on = || (made.load(Ordering::Acquire) > before + 100).then_some(());
                wait_for("files are made again", PATIENCE, on);
                cluster.dev.launch(&leader).expect("launched");
                cluster.wait_whole();
            }
            stop.store(true, Ordering::Release);
            let counts: Vec<usize> = writers.into_iter().map(|writer| writer.join().expect("no panic")).collect();
            let there = names(&mnt.join("d"));
            assert_eq!(there.len(), counts.iter().sum::<usize>());
        });
    });
    cluster.assert_digests_equal().await;
    cluster.assert_no_panic();
}
