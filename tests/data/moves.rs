//! Files whose handles go on with what another mount stores, while the kernel has pages and a length of what they had before.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;

use serde_json::json;

use super::writes::{off, writable_twice};
use super::{BLOCK, content};
use crate::support::agent::{Agent, encode};
use crate::support::cluster::PATIENCE;
use crate::support::{fuse_works, wait_for};

const PAGE: usize = 4096;

/// Has the kernel ask for attributes whenever somebody looks at them.
fn ask_always(dev: &mut jindofs::dev::DevOptions) {
    dev.settings.push(("fuse.attr-ttl".into(), "0s".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_of_a_file_with_changed_pages_returns_though_another_mount_stores_it_meanwhile() {
    if !fuse_works("a_truncate_of_a_file_with_changed_pages_returns_though_another_mount_stores_it_meanwhile") {
        return;
    }
    // Between the store of the truncated file and the answer to the kernel.
    let (site, second) = writable_twice(1, |dev| {
        ask_always(dev);
        let slow = ("JINDOFS_FAILPOINTS".into(), "fuse.setattr.changed=1*sleep(5000)".into());
        dev.env.insert("fuse-0".into(), [slow].into());
    })
    .await;
    let (here, there) = (site.mnt.join("local/f"), second.join("local/f"));
    let (old, new) = (content(3 * PAGE, 1), content(2 * PAGE + 7, 2));
    off(move || {
        let [mut holder, mut cutter, mut reader] = [Agent::start(), Agent::start(), Agent::start()];
        fs::write(&here, &old).expect("stored");
        holder.call(&json!(["open", "f", here, libc::O_RDWR, 0])).expect("open");
        holder.call(&json!(["change_map", "f", 5, encode(b"changed")])).expect("mapped");
        let cut = json!(["truncate", here, 5000]);
        cutter.begin(&cut);
        wait_for("the truncated file is stored", PATIENCE, || (fs::metadata(&there).ok()?.len() == 5000).then_some(()));
        fs::write(&there, &new).expect("stored by the other mount");
        let (tell, told) = channel();
        std::thread::spawn(move || tell.send(cutter.finish(&cut)));
        let truncated = told.recv_timeout(PATIENCE).expect("it returns");
        assert_eq!(truncated.map(drop), Ok(()));
        wait_for("the newest version is seen", PATIENCE, || (reader.get(&here).ok()? == new).then_some(()));
        // What the mapping had changed was of a version that is gone.
        let _ = holder.call(&json!(["fsync", "f"]));
        let _ = holder.call(&json!(["close", "f"]));
        assert!(fs::read(&there).expect("read") == new && reader.get(&here).expect("read") == new);
    })
    .await;
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_of_a_version_that_is_gone_go_on_together_with_the_newest_one_and_none_is_refused() {
    const READERS: usize = 8;
    if !fuse_works("reads_of_a_version_that_is_gone_go_on_together_with_the_newest_one_and_none_is_refused") {
        return;
    }
    // The mount learns of the newest version by its reads only.
    let (site, second) = writable_twice(1, |dev| dev.settings.push(("fuse.attr-ttl".into(), "60s".into()))).await;
    for directory in ["local", "s3"] {
        let (here, there) = (site.mnt.join(directory).join("f"), second.join(directory).join("f"));
        off(move || {
            let (old, new) = (content(4 * BLOCK, 1), content(4 * BLOCK, 2));
            fs::write(&there, &old).expect("stored");
            let held = OpenOptions::new().read(true).write(true).open(&here).expect("open");
            fs::write(&there, &new).expect("replaced, and nothing was read before");
            let part = new.len() / READERS;
            let (held, new) = (&held, &new);
            let read = move |number: usize| {
                let mut bytes = vec![0; part];
                let read = held.read_exact_at(&mut bytes, (number * part) as u64);
                read.unwrap_or_else(|why| panic!("{directory}, part {number}: {why}"));
                assert!(bytes == new[number * part..][..part], "{directory}, part {number}");
            };
            std::thread::scope(|scope| {
                (0..READERS).for_each(|number| drop(scope.spawn(move || read(number))));
            });
        })
        .await;
    }
    site.cluster.assert_no_panic();
}

/// Reads a file that grows, as a whole and by a mapping, from the length that it is given on until all of it is seen: each time
/// it must be the beginning of what it is going to be.
const READER: &str = r#"
import ctypes, mmap, os, sys
path, expected, length = sys.argv[1], open(sys.argv[2], "rb").read(), int(sys.argv[3])
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
file = os.open(path, os.O_RDONLY)
at = libc.mmap(None, len(expected), mmap.PROT_READ, mmap.MAP_SHARED, file, 0)
assert at != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
mapped = (ctypes.c_char * len(expected)).from_address(at)

def check(how, seen, size):
    if len(seen) < size:
        sys.exit(f"{how}: {len(seen)} bytes where {size} are shown")
    for place, (one, other) in enumerate(zip(seen, expected)):
        if one != other:
            sys.exit(f"{how}: byte {place} of {len(seen)} is {one} instead of {other}; {size} are shown")

def look():
    size = os.fstat(file).st_size
    check("mapped", mapped[:size], size)
    check("read", os.pread(file, len(expected) + 1, 0), size)
    return size

assert look() == length
print("ready", flush=True)
while look() < len(expected):
    pass
"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_another_mount_has_appended_is_never_read_as_zeros_once_it_is_seen() {
    if !fuse_works("what_another_mount_has_appended_is_never_read_as_zeros_once_it_is_seen") {
        return;
    }
    let (site, second) = writable_twice(1, ask_always).await;
    let expected = site.dir.path().join("expected");
    for directory in ["local", "s3"] {
        for (round, (old, new)) in
            [(1, 5000), (5000, 3 * PAGE), (PAGE, PAGE + 1), (PAGE - 1, PAGE)].into_iter().enumerate()
        {
            let name = format!("{directory}/f{round}");
            let (here, there, expected) = (site.mnt.join(&name), second.join(&name), expected.clone());
            off(move || {
                // No byte is zero.
                let bytes: Vec<u8> = content(new, 3).into_iter().map(|byte| byte | 1).collect();
                fs::write(&expected, &bytes).expect("written");
                fs::write(&there, &bytes[..old]).expect("stored");
                let mut readers = [(); 3].map(|()| {
                    let mut command = Command::new("python3");
                    command.args(["-c", READER]).arg(&here).arg(&expected).arg(old.to_string());
                    command.stdout(Stdio::piped()).spawn().expect("python3")
                });
                for reader in &mut readers {
                    let mut line = String::new();
                    let output = reader.stdout.as_mut().expect("piped");
                    BufReader::new(output).read_line(&mut line).expect("it says when it has read");
                    assert_eq!(line, "ready\n", "{name}");
                }
                let mut file = OpenOptions::new().append(true).open(&there).expect("open");
                file.write_all(&bytes[old..]).expect("appended");
                file.sync_all().expect("stored");
                for reader in &mut readers {
                    let ended = wait_for(&format!("{name} is seen"), PATIENCE, || reader.try_wait().expect("waited"));
                    assert!(ended.success(), "{name}: from {old} to {new} bytes");
                }
            })
            .await;
        }
    }
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handle_that_keeps_its_version_shows_the_mode_and_owner_that_the_file_gets() {
    if !fuse_works("a_handle_that_keeps_its_version_shows_the_mode_and_owner_that_the_file_gets") {
        return;
    }
    let (site, second) = writable_twice(1, |_| {}).await;
    for directory in ["local", "s3"] {
        let (here, there) = (site.mnt.join(directory).join("f"), second.join(directory).join("f"));
        off(move || {
            fs::write(&there, "old content").expect("stored");
            let held = File::open(&here).expect("open");
            let before = held.metadata().expect("fstat");
            fs::write(&there, "new").expect("replaced");
            fs::set_permissions(&there, Permissions::from_mode(0o604)).expect("chmod");
            std::os::unix::fs::chown(&there, Some(7), Some(8)).expect("chown");
            let seen = wait_for("the mode of the file is shown", PATIENCE, || {
                held.metadata().ok().filter(|seen| (seen.mode() & 0o777, seen.uid(), seen.gid()) == (0o604, 7, 8))
            });
            assert_eq!((seen.len(), seen.mtime_nsec()), (11, before.mtime_nsec()), "{directory}: of its version");
            assert_eq!(seen.ino(), before.ino());
        })
        .await;
    }
    site.cluster.assert_no_panic();
}
