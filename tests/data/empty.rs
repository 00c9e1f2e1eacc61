//! Files that are made or cut off and not written yet: the close of a copy stores nothing, that of their open file and `fsync` do.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Instant, UNIX_EPOCH};

use jindofs::client::namespace::at_path;
use serde_json::json;

use super::content;
use super::writes::{off, stored, wait_stored, writable, writable_twice};
use crate::support::agent::{Agent, encode};
use crate::support::cluster::PATIENCE;
use crate::support::small_disk::SmallDisk;
use crate::support::{fuse_works, wait_until};

/// Runs a shell as people do, in `dir`.
fn shell(dir: &Path, script: &str) -> Output {
    Command::new("sh").args(["-c", script]).current_dir(dir).output().expect("sh runs")
}

/// An agent that has a file open as `f`, made or cut off, and has closed a copy of that, as a shell does before its command
/// writes anything.
fn redirect(path: &Path) -> Agent {
    let mut agent = Agent::start();
    agent.call(&json!(["open", "f", path, libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC, 0o644])).expect("open");
    agent.call(&json!(["close_copy", "f"])).expect("nothing is stored yet");
    agent
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_has_not_written_yet_leaves_the_old_file_though_the_client_is_killed() {
    if !fuse_works("a_command_that_has_not_written_yet_leaves_the_old_file_though_the_client_is_killed") {
        return;
    }
    let site = writable(1, |_| {}).await;
    for storage in ["local", "s3"] {
        let path = format!("{storage}/f");
        let at = site.mnt.join(&path);
        let agent = off(move || {
            fs::write(&at, b"old").expect("written");
            let agent = redirect(&at);
            assert_eq!(fs::metadata(&at).expect("stat").len(), 0, "on this mount it is empty");
            agent
        })
        .await;
        assert_eq!(site.ctl_ok(&["fs", "cat", &format!("/{path}")]), b"old", "{path}: for others it is the old one");
        site.cluster.dev.kill("fuse-0").expect("killed");
        drop(agent);
        site.cluster.dev.restart("fuse-0").expect("mounted again");
        assert_eq!(stored(&site, &path).await.as_deref(), Some(&b"old"[..]), "{path}");
        assert_eq!(site.read(&path).await.expect("read"), b"old");
    }
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_whose_output_has_no_room_leaves_the_old_file() {
    if !fuse_works("a_command_whose_output_has_no_room_leaves_the_old_file") {
        return;
    }
    let site = writable(1, |_| {}).await;
    let disk = SmallDisk::at(&site.dir.path().join("small"), "16m");
    let root = disk.0.join("data");
    fs::create_dir(&root).expect("made");
    site.ctl_ok(&["mount", "add", "/small", &format!("local://{}", root.display())]);
    let (old, input) = (content(100_000, 1), site.dir.path().join("input"));
    fs::write(&input, content(4 << 20, 2)).expect("written");
    let (at, before) = (site.mnt.join("small"), old.clone());
    off(move || fs::write(at.join("old"), before)).await.expect("written");
    disk.fill_but(1 << 20);
    let at = site.mnt.join("small");
    let command = format!("cat {} > old", input.display());
    let ended = off(move || shell(&at, &command)).await;
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(!ended.status.success() && said.contains("No space left on device"), "{said}");
    assert!(fs::read(root.join("old")).expect("read") == old, "the old file is whole");
    assert!(site.ctl_ok(&["fs", "cat", "/small/old"]) == old);
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_a_shell_makes_or_overwrites_costs_an_object_store_one_put() {
    if !fuse_works("a_file_that_a_shell_makes_or_overwrites_costs_an_object_store_one_put") {
        return;
    }
    let site = writable(1, |_| {}).await;
    let _oss = super::oss::mount_oss(&site).await;
    for (storage, key) in [("s3", "f"), ("oss", "data/f")] {
        for (what, heads) in [("made", 0), ("overwritten", u64::from(storage == "oss"))] {
            let at = site.mnt.join(storage);
            off({
                let at = at.clone();
                move || fs::read_dir(at).expect("listed").count()
            })
            .await;
            let before = site.s3.control.requests();
            let ended = off(move || shell(&at, &format!("echo {what} > f"))).await;
            assert!(ended.status.success(), "{ended:?}");
            let after = site.s3.control.requests();
            let asked = |kind| after.get(kind).unwrap_or(&0) - before.get(kind).unwrap_or(&0);
            assert_eq!((asked("PUT"), asked("HEAD"), asked("LIST")), (1, heads, 0), "{storage}, {what}: {after:?}");
            let bytes = site.bucket.read(key).await.expect("stored").to_vec();
            assert_eq!(bytes, format!("{what}\n").as_bytes());
        }
    }
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_never_written_is_stored_by_fsync_or_its_last_close_and_a_name_is_there_from_the_first() {
    let test = "a_file_that_is_never_written_is_stored_by_fsync_or_its_last_close_and_a_name_is_there_from_the_first";
    if !fuse_works(test) {
        return;
    }
    let site = writable(1, |_| {}).await;
    for storage in ["local", "s3"] {
        for is_new in [true, false] {
            for syncs in [true, false] {
                let path = format!("{storage}/{is_new}-{syncs}");
                let (at, shown) = (site.mnt.join(&path), format!("/{path}"));
                let mut agent = off(move || {
                    if !is_new {
                        fs::write(&at, b"old").expect("written");
                    }
                    redirect(&at)
                })
                .await;
                let before = (!is_new).then_some(&b"old"[..]);
                assert_eq!(stored(&site, &path).await.as_deref(), before, "{path}: nothing is stored yet");
                let seen = site.cluster.client().lookup(at_path(&shown)).await.expect("the name is there for others");
                assert_eq!(seen.size, before.map_or(0, |old| old.len() as u64), "{path}");
                let at = site.mnt.join(&path);
                // What is cut off has its time on this mount only.
                let time = off(move || fs::metadata(at).and_then(|shown| shown.modified())).await.expect("a time");
                let verb = if syncs { "fsync" } else { "close" };
                off(move || {
                    agent.call(&json!([verb, "f"])).expect("done");
                    agent
                })
                .await;
                wait_stored(&site, &path, b"").await;
                let (client, mut after, started) = (site.cluster.client(), seen.clone(), Instant::now());
                while after.version_token == seen.version_token {
                    assert!(started.elapsed() < PATIENCE, "{path}: the masters do not know that it is stored");
                    after = client.lookup(at_path(&shown)).await.expect("it is there");
                }
                assert_eq!(after.size, 0, "{path}");
                let before = if is_new {
                    (seen.mtime_ns, seen.ctime_ns)
                } else {
                    let time = time.duration_since(UNIX_EPOCH).expect("after 1970").as_nanos();
                    let time = i64::try_from(time).expect("before 2262");
                    (time, time)
                };
                assert_eq!((after.mtime_ns, after.ctime_ns), before, "{path}: storing it has changed its times");
            }
        }
    }
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_after_a_copy_was_closed_is_stored_by_its_close_for_both_of_two_mounts() {
    if !fuse_works("what_is_written_after_a_copy_was_closed_is_stored_by_its_close_for_both_of_two_mounts") {
        return;
    }
    let (site, second) = writable_twice(1, |dev| dev.settings.push(("fuse.attr-ttl".into(), "0s".into()))).await;
    for storage in ["local", "s3"] {
        let (one, two, path) =
            (site.mnt.join(storage).join("f"), second.join(storage).join("f"), format!("{storage}/f"));
        for round in ["made", "overwritten"] {
            let (at, other) = (one.clone(), two.clone());
            off(move || {
                let mut agent = redirect(&at);
                agent.call(&json!(["write", "f", 0, encode(round.as_bytes())])).expect("written");
                agent.call(&json!(["close", "f"])).expect("stored");
                assert_eq!(fs::read(&other).expect("read"), round.as_bytes());
            })
            .await;
            assert_eq!(stored(&site, &path).await.as_deref(), Some(round.as_bytes()));
        }
        let (one, two) = (site.mnt.join(storage), second.join(storage));
        off(move || {
            for number in 0..20 {
                let (name, moved) = (format!("e{number}"), format!("moved{number}"));
                fs::write(one.join(&name), b"").expect("made");
                fs::rename(two.join(name), two.join(moved)).expect("its last close has stored it, or does");
            }
        })
        .await;
    }
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_never_written_is_stored_though_the_store_fails_for_a_while_when_it_is_closed() {
    let test = "a_file_that_is_never_written_is_stored_though_the_store_fails_for_a_while_when_it_is_closed";
    if !fuse_works(test) {
        return;
    }
    let site = writable(1, |_| {}).await;
    let at = site.mnt.join("s3/f");
    let mut agent = off(move || redirect(&at)).await;
    site.s3.control.fail_next(u64::MAX);
    off(move || agent.call(&json!(["close", "f"])).map(drop)).await.expect("nobody is told");
    let has_failed = || site.cluster.log_of("fuse-0").contains("is not stored yet");
    wait_until("one attempt has failed", 2 * PATIENCE, has_failed).await;
    site.s3.control.fail_next(0);
    wait_stored(&site, "s3/f", b"").await;
    site.ctl_ok(&["fs", "stat", "/s3/f"]);
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_cut_off_is_stored_when_its_open_file_is_closed_though_a_reader_has_it_open() {
    if !fuse_works("a_file_that_is_cut_off_is_stored_when_its_open_file_is_closed_though_a_reader_has_it_open") {
        return;
    }
    let site = writable(1, |_| {}).await;
    for storage in ["local", "s3"] {
        let path = format!("{storage}/log");
        let at = site.mnt.join(&path);
        let mut reader = off(move || {
            fs::write(&at, b"old").expect("written");
            let mut reader = Agent::start();
            reader.call(&json!(["open", "f", at, libc::O_RDONLY, 0])).expect("open");
            assert!(shell(at.parent().expect("a directory"), ": > log").status.success());
            reader
        })
        .await;
        wait_stored(&site, &path, b"").await;
        let seen = off(move || reader.call(&json!(["fstat", "f"])).expect("stat")).await;
        assert_eq!(seen["size"], 0, "{path}: {seen}");
    }
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cut_off_under_a_lock_is_seen_by_who_gets_it_though_the_file_is_open_elsewhere() {
    if !fuse_works("what_is_cut_off_under_a_lock_is_seen_by_who_gets_it_though_the_file_is_open_elsewhere") {
        return;
    }
    let (site, second) = writable_twice(1, |_| {}).await;
    for storage in ["local", "s3"] {
        let (one, two) = (site.mnt.join(storage).join("f"), second.join(storage).join("f"));
        off(move || {
            let open = |path: &Path, flags| {
                let mut agent = Agent::start();
                agent.call(&json!(["open", "f", path, flags | libc::O_CREAT, 0o644])).expect("open");
                agent
            };
            for (round, other) in [libc::O_RDONLY, libc::O_RDWR, libc::O_RDONLY, libc::O_RDWR].into_iter().enumerate() {
                fs::write(&one, b"old").expect("written");
                let (_holder, mut first, mut next) =
                    (open(&one, other), open(&one, libc::O_RDWR), open(&two, libc::O_RDWR));
                first.call(&json!(["flock", "f"])).expect("locked");
                first.call(&json!(["ftruncate", "f", 0])).expect("cut off");
                first.call(&json!(["close", "f"])).expect("closed");
                next.call(&json!(["flock", "f"])).expect("locked in its turn");
                let seen = next.call(&json!(["fstat", "f"])).expect("stat");
                assert_eq!(seen["size"], 0, "{}, round {round}: {seen}", two.display());
            }
        })
        .await;
    }
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_of_a_directory_stores_its_new_files_and_leaves_old_ones_that_are_cut_off() {
    if !fuse_works("a_sync_of_a_directory_stores_its_new_files_and_leaves_old_ones_that_are_cut_off") {
        return;
    }
    let site = writable(1, |_| {}).await;
    for storage in ["local", "s3"] {
        let dir = site.mnt.join(storage);
        let agents = off(move || {
            fs::write(dir.join("old"), b"old").expect("written");
            fs::create_dir(dir.join("d")).expect("made");
            let mut agents = ["old", "new", "d/below"].map(|name| redirect(&dir.join(name)));
            agents[0].call(&json!(["fsyncdir", dir])).expect("synced");
            agents
        })
        .await;
        let there = async |name: &str| stored(&site, &format!("{storage}/{name}")).await;
        assert_eq!(there("new").await.as_deref(), Some(&b""[..]), "{storage}: its name is durable");
        assert_eq!(there("old").await.as_deref(), Some(&b"old"[..]), "{storage}: its command may still fail");
        assert_eq!(there("d/below").await, None, "{storage}: it is of another directory");
        drop(agents);
    }
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_never_written_is_stored_where_its_directory_is_moved_meanwhile() {
    if !fuse_works("a_file_that_was_never_written_is_stored_where_its_directory_is_moved_meanwhile") {
        return;
    }
    let slow = |dev: &mut jindofs::dev::DevOptions| {
        // It has been told where the file lies, and does not store it yet.
        dev.env.insert("fuse-0".into(), [("JINDOFS_FAILPOINTS".into(), "write.begun=sleep(500)".into())].into());
    };
    let (site, second) = writable_twice(1, slow).await;
    for (mover, from) in [("its own", site.mnt.clone()), ("another", second)] {
        for is_closed in [true, false] {
            let (maker, from, name) = (site.mnt.join("local"), from.join("local"), format!("{mover}-{is_closed}"));
            let moved = format!("local/{name}-moved/f");
            let agent = off(move || {
                fs::create_dir(maker.join(&name)).expect("made");
                let mut agent = redirect(&maker.join(&name).join("f"));
                if is_closed {
                    agent.call(&json!(["close", "f"])).expect("closed");
                }
                fs::rename(from.join(&name), from.join(format!("{name}-moved"))).expect("moved");
                if !is_closed {
                    agent.call(&json!(["close", "f"])).expect("closed");
                }
                agent
            })
            .await;
            wait_stored(&site, &moved, b"").await;
            drop(agent);
        }
    }
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_takes_the_name_of_one_that_its_maker_has_open_and_has_not_written() {
    if !fuse_works("a_file_takes_the_name_of_one_that_its_maker_has_open_and_has_not_written") {
        return;
    }
    let (site, second) = writable_twice(1, |dev| dev.settings.push(("fuse.attr-ttl".into(), "0s".into()))).await;
    for storage in ["local", "s3"] {
        for (mover, at) in [("own", site.mnt.clone()), ("another", second.clone())] {
            let path = format!("{storage}/{mover}");
            let (made, out, new) = (site.mnt.join(&path), at.join(&path), at.join(storage).join("new"));
            off(move || {
                let mut writer = redirect(&made);
                fs::write(&new, b"new").expect("written");
                fs::rename(&new, &out).expect("its place is free");
                writer.call(&json!(["write", "f", 0, encode(b"late")])).expect("staged");
                // Its file has no name any more: what comes of that concerns nobody.
                let _ = writer.call(&json!(["close", "f"]));
                assert_eq!(fs::read(&made).expect("read"), b"new");
            })
            .await;
            assert_eq!(stored(&site, &path).await.as_deref(), Some(&b"new"[..]), "{path}");
        }
    }
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_command_has_made_or_cut_off_is_stored_by_its_close_though_its_session_has_expired_meanwhile() {
    if !fuse_works("what_a_command_has_made_or_cut_off_is_stored_by_its_close_though_its_session_has_expired_meanwhile")
    {
        return;
    }
    let site = writable(1, |_| {}).await;
    let files = [("local/written", &b"output"[..]), ("s3/written", b"output"), ("local/empty", b""), ("s3/empty", b"")];
    let cut = ["local/cut", "s3/cut"];
    let mnt = site.mnt.clone();
    let agents = off(move || {
        for path in cut {
            fs::write(mnt.join(path), b"old").expect("written");
        }
        let files = files.into_iter().chain(cut.map(|path| (path, &b""[..])));
        files
            .map(|(path, bytes)| {
                let mut agent = redirect(&mnt.join(path));
                if !bytes.is_empty() {
                    agent.call(&json!(["write", "f", 0, encode(bytes)])).expect("staged");
                }
                agent
            })
            .collect::<Vec<Agent>>()
    })
    .await;
    site.cluster.dev.pause("fuse-0").expect("paused");
    for (path, _) in files {
        let gone = || !site.ctl(&["fs", "stat", &format!("/{path}")]).status.success();
        wait_until("what was never stored is gone with the session", PATIENCE, gone).await;
    }
    site.cluster.dev.resume("fuse-0").expect("resumed");
    off(move || {
        for mut agent in agents {
            agent.call(&json!(["close", "f"])).expect("stored");
        }
    })
    .await;
    for (path, bytes) in files.into_iter().chain(cut.map(|path| (path, &b""[..]))) {
        wait_stored(&site, path, bytes).await;
        let known = || site.ctl(&["fs", "cat", &format!("/{path}")]).stdout == bytes;
        wait_until("everybody sees it", PATIENCE, known).await;
    }
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_never_written_is_stored_though_the_store_fails_for_longer_than_masters_are_waited_for() {
    let test = "a_file_that_is_never_written_is_stored_though_the_store_fails_for_longer_than_masters_are_waited_for";
    if !fuse_works(test) {
        return;
    }
    let short = ("fs.jindocache.rpc.timeout".into(), "3s".into());
    let site = writable(1, |dev| dev.settings.push(short)).await;
    let at = site.mnt.join("s3");
    off(move || fs::write(at.join("old"), b"old")).await.expect("written");
    let at = site.mnt.join("s3");
    let agents = off(move || ["old", "new"].map(|name| redirect(&at.join(name)))).await;
    site.s3.control.fail_next(u64::MAX);
    off(move || agents.map(|mut agent| agent.call(&json!(["close", "f"])).expect("nobody is told"))).await;
    for name in ["old", "new"] {
        let path = format!("/s3/{name}");
        let attempts = || {
            let log = site.cluster.log_of("fuse-0");
            log.lines().filter(|line| line.contains("is not stored yet") && line.contains(&path)).count()
        };
        wait_until("it is tried again and again", 3 * PATIENCE, || attempts() >= 5).await;
    }
    site.s3.control.fail_next(0);
    for name in ["old", "new"] {
        wait_stored(&site, &format!("s3/{name}"), b"").await;
        site.ctl_ok(&["fs", "stat", &format!("/s3/{name}")]);
    }
    assert!(!site.cluster.log_of("fuse-0").contains("is lost"), "nothing is given up");
    site.cluster.assert_no_panic();
}
