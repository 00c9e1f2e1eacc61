//! Versions of a file: whoever has one open keeps it or goes on with the next one as a whole, and no two of them are ever mixed.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::writes::{off, writable, writable_twice};
use super::{BLOCK, Site, content};
use crate::support::agent::{Agent, decode, encode};
use crate::support::cluster::PATIENCE;
use crate::support::{fuse_works, wait_for};

const PAGE: usize = 4096;

/// Bytes of a file as a mapping shows them: by a process of its own, which reads every page.
fn mapped(path: &Path) -> Vec<u8> {
    let program = "import mmap, os, sys; fd = os.open(sys.argv[1], os.O_RDONLY); \
         m = mmap.mmap(fd, 0, prot=mmap.PROT_READ); sys.stdout.buffer.write(m[:])";
    let output = Command::new("python3").args(["-c", program]).arg(path).output().expect("python3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// How many pages of `bytes` are of each of the contents, and of none.
fn pages_of(bytes: &[u8], one: &[u8], other: &[u8]) -> (usize, usize, usize) {
    let mut found = (0, 0, 0);
    for (number, page) in bytes.chunks(PAGE).enumerate() {
        let at = number * PAGE;
        match (one.get(at..at + page.len()) == Some(page), other.get(at..at + page.len()) == Some(page)) {
            (true, _) => found.0 += 1,
            (_, true) => found.1 += 1,
            _ => found.2 += 1,
        }
    }
    found
}

fn put(agent: &mut Agent, path: &Path, bytes: &[u8]) {
    agent.call(&json!(["put", path, [encode(bytes)]])).expect("stored");
}

/// Opens a file for reading, as `f`.
fn open(agent: &mut Agent, path: &Path) {
    agent.call(&json!(["open", "f", path, libc::O_RDONLY, 0])).expect("open");
}

/// All of the file that is open as `f`.
fn read(agent: &mut Agent) -> Vec<u8> {
    decode(&agent.call(&json!(["read", "f"])).expect("read"))
}

fn read_all(file: &File, length: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_replaced_while_it_is_open_has_one_version_for_each_handle_and_the_same_inode() {
    if !fuse_works("a_file_that_is_replaced_while_it_is_open_has_one_version_for_each_handle_and_the_same_inode") {
        return;
    }
    let (site, other) = writable_twice(1, |_| {}).await;
    let (old, new) = (content(2 * BLOCK, 1), content(2 * BLOCK, 2));
    let mnt = site.mnt.clone();
    off(move || {
        let (here, there) = (mnt.join("local/model"), other.join("local/model"));
        let [mut holder, mut opener, mut writer] = [Agent::start(), Agent::start(), Agent::start()];
        put(&mut writer, &here, &old);
        // All of it is cached by the kernel.
        open(&mut holder, &here);
        assert!(read(&mut holder) == old);
        put(&mut writer, &there, &new);
        open(&mut opener, &here);
        assert_eq!(pages_of(&read(&mut opener), &new, &old), (2 * BLOCK / PAGE, 0, 0));
        assert_eq!(pages_of(&mapped(&here), &new, &old), (2 * BLOCK / PAGE, 0, 0), "mapped");
        assert_eq!(pages_of(&read(&mut holder), &old, &new), (2 * BLOCK / PAGE, 0, 0), "held");
        let by_name = fs::metadata(&here).expect("stat").ino();
        for agent in [&mut holder, &mut opener] {
            let seen = agent.call(&json!(["fstat", "f"])).expect("open");
            assert_eq!(seen["inode"].as_u64(), Some(by_name));
            agent.call(&json!(["close", "f"])).expect("closed");
        }
        // Rolled back, as a model is that does not do.
        put(&mut writer, &there, &old);
        let rolled_back = writer.call(&json!(["get", here])).expect("read");
        assert_eq!(pages_of(&decode(&rolled_back), &old, &new), (2 * BLOCK / PAGE, 0, 0), "rolled back");
        assert_eq!(pages_of(&mapped(&here), &old, &new), (2 * BLOCK / PAGE, 0, 0), "rolled back, mapped");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_version_keeps_its_length_when_the_file_is_replaced_by_a_shorter_one() {
    if !fuse_works("a_held_version_keeps_its_length_when_the_file_is_replaced_by_a_shorter_one") {
        return;
    }
    let (site, other) = writable_twice(1, |_| {}).await;
    let mnt = site.mnt.clone();
    off(move || {
        let (here, there) = (mnt.join("s3/f"), other.join("s3/f"));
        let old = content(100_000, 1);
        let [mut holder, mut writer] = [Agent::start(), Agent::start()];
        put(&mut writer, &here, &old);
        open(&mut holder, &here);
        assert!(read(&mut holder) == old);
        put(&mut writer, &there, b"short");
        assert_eq!(decode(&writer.call(&json!(["get", here])).expect("read anew")), b"short");
        assert_eq!(fs::metadata(&here).expect("stat").len(), 5);
        assert_eq!(holder.call(&json!(["fstat", "f"])).expect("fstat")["size"], old.len());
        assert!(read(&mut holder) == old);
        // The only name of a handle: it means what that handle has.
        let again = format!("/proc/{}/fd/{}", holder.id(), holder.call(&json!(["fd", "f"])).expect("a number"));
        assert!(decode(&writer.call(&json!(["get", again])).expect("opened by its descriptor")) == old);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_sees_what_the_other_mount_has_closed_before_it_opens() {
    if !fuse_works("a_reader_sees_what_the_other_mount_has_closed_before_it_opens") {
        return;
    }
    let (site, other) = writable_twice(3, |_| {}).await;
    let mnt = site.mnt.clone();
    off(move || {
        let (here, there) = (mnt.join("local/f"), other.join("local/f"));
        for round in 0..20_usize {
            let (writer, reader) = if round % 2 == 0 { (&here, &there) } else { (&there, &here) };
            let said = format!("round {round} {}", "x".repeat(round * 7 % 40));
            match round % 3 {
                0 => fs::write(writer, &said).expect("written"),
                1 => {
                    let fresh = writer.with_extension("new");
                    fs::write(&fresh, &said).expect("written");
                    fs::rename(&fresh, writer).expect("renamed");
                }
                _ => {
                    fs::write(writer, "").expect("cut off");
                    let mut file = OpenOptions::new().append(true).open(writer).expect("open");
                    file.write_all(said.as_bytes()).expect("appended");
                }
            }
            assert_eq!(fs::read_to_string(reader).unwrap_or_else(|why| panic!("round {round}: {why}")), said);
            let mut file = OpenOptions::new().append(true).open(reader).expect("open");
            file.write_all(b" and more").expect("appended");
            drop(file);
            assert_eq!(fs::read_to_string(writer).expect("read"), said + " and more", "round {round}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_follows_a_file_that_the_other_mount_appends_to() {
    if !fuse_works("a_reader_follows_a_file_that_the_other_mount_appends_to") {
        return;
    }
    let (site, other) = writable_twice(1, |_| {}).await;
    let mnt = site.mnt.clone();
    off(move || {
        let (here, there) = (mnt.join("local/log"), other.join("local/log"));
        fs::write(&there, "first\n").expect("made");
        let mut follower = File::open(&here).expect("open");
        let mut writer = OpenOptions::new().append(true).open(&there).expect("open");
        let mut seen = String::new();
        let mut expected = "first\n".to_owned();
        for line in 0..5 {
            let line = format!("line {line}\n");
            writer.write_all(line.as_bytes()).expect("appended");
            writer.sync_all().expect("stored");
            expected.push_str(&line);
            wait_for("what was appended is seen by who has it open", PATIENCE, || {
                follower.read_to_string(&mut seen).expect("read");
                (seen == expected).then_some(())
            });
        }
        fs::write(there.with_extension("new"), "another\n").expect("written");
        fs::rename(there.with_extension("new"), &there).expect("replaced");
        assert_eq!(fs::read_to_string(&here).expect("read"), "another\n");
        follower.read_to_string(&mut seen).expect("read");
        assert_eq!(seen, expected, "what was replaced stays as it was for its handles");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_mounts_that_append_to_one_file_both_make_progress_and_lose_nothing() {
    if !fuse_works("two_mounts_that_append_to_one_file_both_make_progress_and_lose_nothing") {
        return;
    }
    for store in ["local", "s3"] {
        let (site, other) = writable_twice(1, |_| {}).await;
        let mnt = site.mnt.clone();
        off(move || both_append(&[mnt.join(store).join("log"), other.join(store).join("log")])).await;
    }
}

fn both_append(paths: &[PathBuf; 2]) {
    const LINES: usize = 40;
    fs::write(&paths[0], "").expect("made");
    let append = |path: PathBuf, name: usize| {
        let mut file = OpenOptions::new().append(true).open(path)?;
        for line in 0..LINES {
            file.write_all(format!("{name} {line}\n").as_bytes())?;
            file.sync_all()?;
        }
        Ok::<_, std::io::Error>(())
    };
    let threads = [0, 1].map(|name| {
        let path = paths[name].clone();
        std::thread::spawn(move || append(path, name))
    });
    for thread in threads {
        thread.join().expect("no panic").expect("each line is stored");
    }
    let lines = fs::read_to_string(&paths[0]).expect("read");
    for name in 0..2 {
        let own: Vec<_> = lines.lines().filter(|line| line.starts_with(&format!("{name} "))).collect();
        let expected: Vec<_> = (0..LINES).map(|line| format!("{name} {line}")).collect();
        assert_eq!(own, expected);
    }
}

/// Eight committed rows from each of two mounts at once; the rows that are there then, as a third process counts them.
fn insert_from_both(paths: &[PathBuf; 2], mode: &str) -> usize {
    const PROGRAM: &str = r#"
import sqlite3, sys, time
path, name, mode = sys.argv[1:]
db = sqlite3.connect(path, timeout=60, isolation_level=None)
db.execute(f"pragma journal_mode={mode}")
for number in range(8):
    while True:
        try:
            db.execute("begin immediate")
            db.execute("insert into rows values (?, ?)", (name, number))
            db.execute("commit")
            break
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            if db.in_transaction:
                db.execute("rollback")
            time.sleep(0.01)
"#;
    let run = |program: &str, arguments: &[&str]| {
        Command::new("python3").args(["-c", program]).args(arguments).spawn().expect("python3")
    };
    let path = |mount: usize| paths[mount].to_str().expect("UTF-8");
    let made = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('create table rows (name, number)')";
    assert!(run(made, &[path(0)]).wait().expect("waited").success());
    let writers = [0, 1].map(|mount| run(PROGRAM, &[path(mount), ["one", "two"][mount], mode]));
    for mut writer in writers {
        assert!(writer.wait().expect("waited").success(), "{mode}: each insert is committed");
    }
    let count = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); \
         assert db.execute('pragma integrity_check').fetchall() == [('ok',)]; \
         print(db.execute('select count(*) from (select distinct name, number from rows)').fetchone()[0])";
    let output = Command::new("python3").args(["-c", count, path(1)]).output().expect("python3");
    assert!(output.status.success(), "{mode}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_two_mounts_write_keeps_every_committed_row() {
    if !fuse_works("a_database_that_two_mounts_write_keeps_every_committed_row") {
        return;
    }
    let (site, other) = writable_twice(1, |_| {}).await;
    for (round, mode) in ["delete", "truncate", "persist"].into_iter().enumerate() {
        for store in ["local", "s3"] {
            let name = format!("{store}/{mode}{round}.db");
            let paths = [site.mnt.join(&name), other.join(&name)];
            assert_eq!(off(move || insert_from_both(&paths, mode)).await, 16, "{store} {mode}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gets_a_lock_sees_through_an_old_handle_what_was_stored_under_it() {
    if !fuse_works("who_gets_a_lock_sees_through_an_old_handle_what_was_stored_under_it") {
        return;
    }
    let (site, other) = writable_twice(1, |_| {}).await;
    let paths = [site.mnt.join("local/f"), other.join("local/f")];
    off(move || {
        fs::write(&paths[0], "0").expect("made");
        let open = |path: &PathBuf| OpenOptions::new().read(true).write(true).open(path).expect("open");
        let files = [open(&paths[0]), open(&paths[1])];
        for round in 0..20_u32 {
            let file = &files[round as usize % 2];
            rustix::fs::fcntl_lock(file, rustix::fs::FlockOperation::LockExclusive).expect("locked");
            let mut seen = [0; 16];
            let length = file.read_at(&mut seen, 0).expect("read");
            assert_eq!(String::from_utf8_lossy(&seen[..length]), round.to_string());
            file.write_all_at((round + 1).to_string().as_bytes(), 0).expect("written");
            rustix::fs::fcntl_lock(file, rustix::fs::FlockOperation::Unlock).expect("unlocked");
        }
    })
    .await;
}

/// A file that one mount writes in place is one file for all handles of the other that write it.
#[tokio::test(flavor = "multi_thread")]
async fn a_handle_that_may_write_goes_on_with_what_the_other_mount_has_stored() {
    if !fuse_works("a_handle_that_may_write_goes_on_with_what_the_other_mount_has_stored") {
        return;
    }
    let (site, other) = writable_twice(1, |_| {}).await;
    let (here, there) = (site.mnt.join("local/f"), other.join("local/f"));
    off(move || {
        fs::write(&here, "aaaa").expect("made");
        let held = OpenOptions::new().read(true).write(true).open(&here).expect("open");
        assert_eq!(read_all(&held, 4).expect("read"), b"aaaa");
        fs::write(&there, "bbbb").expect("replaced");
        assert_eq!(fs::read(&here).expect("opened anew"), b"bbbb");
        assert_eq!(read_all(&held, 4).expect("read"), b"bbbb", "with all handles of its node");
        held.write_all_at(b"c", 3).expect("written");
        held.sync_all().expect("stored");
        let asked = Instant::now();
        assert_eq!(fs::read(&there).expect("read"), b"bbbc");
        assert!(asked.elapsed() < Duration::from_secs(5));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_replaced_behind_the_mount_is_never_mixed_with_what_was_open() {
    if !fuse_works("an_object_that_is_replaced_behind_the_mount_is_never_mixed_with_what_was_open") {
        return;
    }
    let site: Site = writable(1, |_| {}).await;
    let (old, new) = (content(2 * BLOCK, 1), content(2 * BLOCK, 2));
    site.ctl_ok(&["mount", "add", "/always", &format!("local://{}", site.local.display()), "--meta-policy", "always"]);
    fs::write(site.local.join("model"), &old).expect("written");
    let (mnt, local) = (site.mnt.clone(), site.local.clone());
    off(move || {
        let here = mnt.join("always/model");
        let held = File::open(&here).expect("open");
        assert!(read_all(&held, old.len()).expect("read") == old);
        fs::write(local.join("model.new"), &new).expect("written");
        fs::rename(local.join("model"), local.join("model.bak")).expect("kept");
        fs::rename(local.join("model.new"), local.join("model")).expect("replaced");
        assert_eq!(pages_of(&mapped(&here), &new, &old), (2 * BLOCK / PAGE, 0, 0), "mapped");
        assert_eq!(pages_of(&read_all(&held, old.len()).expect("read"), &old, &new), (2 * BLOCK / PAGE, 0, 0), "held");
        fs::rename(local.join("model.bak"), local.join("model")).expect("rolled back");
        assert_eq!(pages_of(&fs::read(&here).expect("read"), &old, &new), (2 * BLOCK / PAGE, 0, 0), "rolled back");
        assert_eq!(pages_of(&mapped(&here), &old, &new), (2 * BLOCK / PAGE, 0, 0), "rolled back, mapped");
        drop(held);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handle_that_may_write_never_reads_the_end_of_one_version_in_the_length_of_another() {
    if !fuse_works("a_handle_that_may_write_never_reads_the_end_of_one_version_in_the_length_of_another") {
        return;
    }
    let zero = ("fuse.attr-ttl".to_owned(), "0s".to_owned());
    let (site, second) = writable_twice(1, |dev| dev.settings.push(zero.clone())).await;
    for directory in ["local", "s3"] {
        for (round, (old, new)) in [(5000, 1), (5000, 5000), (2 * PAGE, PAGE)].into_iter().enumerate() {
            let name = format!("{directory}/f{round}");
            let (here, there) = (site.mnt.join(&name), second.join(&name));
            off(move || {
                let (old, new) = (content(old, 1), content(new, 2));
                let held =
                    OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&here).expect("made");
                fs::write(&here, &old).expect("stored");
                assert!(read_all(&held, old.len()).expect("read") == old, "{name}");
                fs::write(&there, &new).expect("replaced by another mount");
                let mut looked = Vec::new();
                for look in ["by nobody", "by its name"] {
                    if look == "by its name" {
                        fs::metadata(&here).expect("stat");
                    }
                    let mut bytes = vec![0; 3 * PAGE];
                    let length = held.read_at(&mut bytes, 0).expect("read");
                    bytes.truncate(length);
                    assert!(bytes == old || bytes == new, "{name}, looked at {look}: {length} bytes of none");
                    looked.push(length);
                }
                wait_for(&format!("{name} is the newest one"), PATIENCE, || {
                    (held.metadata().expect("fstat").len() == new.len() as u64).then_some(())
                });
                assert!(read_all(&held, new.len()).expect("read") == new, "{name}: {looked:?}");
            })
            .await;
        }
    }
    site.cluster.assert_no_panic();
}

/// Names and attributes are kept for longer than the test lasts, so that each `open` reaches the client by the node of the version
/// before, and is answered with `ESTALE`: the kernel looks the name up again, and the application sees nothing of that.
#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_opens_a_file_which_another_mount_has_replaced_never_sees_estale() {
    if !fuse_works("an_application_that_opens_a_file_which_another_mount_has_replaced_never_sees_estale") {
        return;
    }
    let (site, other) = writable_twice(1, |dev| dev.settings.push(("fuse.attr-ttl".into(), "600s".into()))).await;
    let mnt = site.mnt.clone();
    off(move || {
        for store in ["local", "s3"] {
            let (here, there) = (mnt.join(store).join("f"), other.join(store).join("f"));
            fs::write(&there, "first").expect("made");
            // An open handle keeps the node of its version, so that the next version gets another one.
            let mut held = vec![File::open(&here).expect("open")];
            for round in 0..10 {
                let said = format!("round {round}");
                if round % 2 == 0 {
                    fs::write(&there, &said).expect("overwritten");
                } else {
                    fs::write(there.with_extension("new"), &said).expect("written");
                    fs::rename(there.with_extension("new"), &there).expect("replaced");
                }
                let open = |writes| OpenOptions::new().read(true).write(writes).open(&here);
                // Who writes comes first in every other round.
                for writes in [round % 4 < 2, round % 4 >= 2] {
                    let mut file =
                        open(writes).unwrap_or_else(|why| panic!("{store}, {said}, to write: {writes}: {why}"));
                    let mut seen = String::new();
                    file.read_to_string(&mut seen).unwrap_or_else(|why| panic!("{store}, {said}: {why}"));
                    assert_eq!(seen, said, "{store}, to write: {writes}");
                    held.extend((!writes).then_some(file));
                }
            }
        }
    })
    .await;
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_opened_at_every_moment_while_another_mount_overwrites_it_again_and_again() {
    if !fuse_works("a_file_is_opened_at_every_moment_while_another_mount_overwrites_it_again_and_again") {
        return;
    }
    let (site, other) = writable_twice(1, |dev| dev.settings.push(("fuse.attr-ttl".into(), "600s".into()))).await;
    let mnt = site.mnt.clone();
    off(move || {
        for store in ["local", "s3"] {
            let (here, there) = (mnt.join(store).join("f"), other.join(store).join("f"));
            fs::write(&there, "0").expect("made");
            let held = File::open(&here).expect("open");
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let written = scope.spawn(|| {
                    let mut count = 0;
                    while !stop.load(Ordering::Relaxed) {
                        count += 1;
                        fs::write(&there, count.to_string()).expect("overwritten");
                    }
                    count
                });
                let opened = (0..400).try_for_each(|_| File::open(&here).map(drop));
                stop.store(true, Ordering::Relaxed);
                let count = written.join().expect("no panic");
                opened.unwrap_or_else(|why| panic!("{store}, overwritten {count} times: {why}"));
                assert!(count > 1, "{store}: it was overwritten while it was opened");
                assert_eq!(fs::read_to_string(&here).expect("read"), count.to_string(), "{store}");
            });
            drop(held);
        }
    })
    .await;
    site.cluster.assert_no_panic();
}
