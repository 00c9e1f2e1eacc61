//! Large directories through the mount: read while others change them, and removed as a whole.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::writes::{names, off, writable_twice};
use super::{Site, start};
use crate::support::{fuse_works, long, rounds, seed};

/// Entries that are there throughout.
const STAY: usize = 3000;

/// An open directory, read as the C library does.
struct Stream(*mut libc::DIR);

impl Stream {
    fn open(dir: &Path) -> Stream {
        let path = CString::new(dir.as_os_str().as_bytes()).expect("a path");
        // SAFETY: the path is a C string that lives as long as the call.
        let stream = unsafe { libc::opendir(path.as_ptr()) };
        assert!(!stream.is_null(), "{}", std::io::Error::last_os_error());
        Stream(stream)
    }

    /// The next name, and where the one after it is.
    fn next(&mut self) -> Option<(String, i64)> {
        // SAFETY: the stream is open, and nobody else uses it.
        let entry = unsafe { libc::readdir(self.0) };
        // SAFETY: a name lasts until the next call, and ends with a zero.
        let name = (!entry.is_null()).then(|| unsafe { CStr::from_ptr((*entry).d_name.as_ptr()) })?;
        let name = name.to_string_lossy().into_owned();
        // SAFETY: as above.
        Some((name, unsafe { libc::telldir(self.0) }))
    }

    fn seek(&mut self, place: i64) {
        // SAFETY: as above; the place was told by this stream.
        unsafe { libc::seekdir(self.0, place) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: it is open, and not used any more.
        unsafe { libc::closedir(self.0) };
    }
}

fn stays(name: &str) -> bool {
    name.starts_with("stay-")
}

/// Makes, moves and removes entries among those that stay, until told to stop; says how many changes that were.
fn change(dir: &Path, salt: &str, mut random: StdRng, stop: &AtomicBool) -> u64 {
    let (mut changes, mut own) = (0, Vec::<PathBuf>::new());
    while !stop.load(Ordering::SeqCst) {
        let name = dir.join(format!("stay-{:04}{salt}-comes", random.random_range(0..STAY)));
        // What ends with a word is none of those that stay.
        match random.random_range(0..3) {
            0 if own.len() > 20 => std::fs::remove_dir(own.swap_remove(0)).expect("removed"),
            1 if own.len() > 20 && !own.contains(&name) => {
                std::fs::rename(own.swap_remove(0), &name).expect("moved");
                own.push(name);
            }
            _ if !own.contains(&name) => {
                std::fs::create_dir(&name).expect("made");
                own.push(name);
            }
            _ => continue,
        }
        changes += 1;
    }
    own.into_iter().for_each(|dir| std::fs::remove_dir(dir).expect("removed"));
    changes
}

/// Reads a directory to its end, going back to places it has told, at random; returns the names that stay, in their order.
fn read_with_steps_back(dir: &Path, random: &mut StdRng) -> Vec<String> {
    let mut stream = Stream::open(dir);
    let mut seen: Vec<(String, i64)> = Vec::new();
    let mut steps_back = 6;
    while let Some((name, next)) = stream.next() {
        if name.ends_with("-comes") || !stays(&name) {
            continue;
        }
        seen.push((name, next));
        if steps_back > 0 && random.random_range(0..STAY / 4) == 0 {
            steps_back -= 1;
            let back = random.random_range(0..seen.len());
            stream.seek(seen[back].1);
            // From there on everything comes again.
            seen.truncate(back + 1);
        }
    }
    seen.into_iter().map(|(name, _)| name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_read_with_steps_back_while_others_change_it_gives_what_stays_exactly_once() {
    let test = "a_directory_read_with_steps_back_while_others_change_it_gives_what_stays_exactly_once";
    if !fuse_works(test) {
        return;
    }
    let seed = seed(test);
    let (site, second) = writable_twice(1, |_| {}).await;
    let expected: Vec<String> = (0..STAY).map(|number| format!("stay-{number:04}")).collect();
    std::fs::create_dir(site.local.join("d")).expect("made");
    for name in &expected {
        std::fs::write(site.local.join("d").join(name), b"").expect("made");
    }
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = [(site.mnt.clone(), "a"), (second, "b")]
        .into_iter()
        .map(|(mnt, salt)| {
            let (stop, random) = (stop.clone(), StdRng::seed_from_u64(seed ^ u64::from(salt.as_bytes()[0])));
            std::thread::spawn(move || change(&mnt.join("local/d"), salt, random, &stop))
        })
        .collect();
    let dir = site.mnt.join("local/d");
    for pass in 0..u64::from(rounds(12)) {
        let (dir, mut random) = (dir.clone(), StdRng::seed_from_u64(seed.wrapping_add(pass)));
        let read = off(move || read_with_steps_back(&dir, &mut random)).await;
        let wrong = read.iter().zip(&expected).position(|(found, expected)| found != expected);
        assert!(read == expected, "pass {pass}: {} names, the first wrong one is {wrong:?}", read.len());
    }
    stop.store(true, Ordering::SeqCst);
    for writer in writers {
        let changes = off(move || writer.join()).await.expect("no change failed");
        println!("{changes} changes meanwhile");
        assert!(changes > 10, "{changes} changes only");
    }
    assert_eq!(off(move || names(&dir)).await, expected);
    site.cluster.assert_no_panic();
}

/// A tree of so many entries: one flat directory with half of them, and small ones below each other with the rest.
fn plant(root: &Path, entries: usize) {
    let flat = root.join("flat");
    std::fs::create_dir_all(&flat).expect("made");
    (0..entries / 2).for_each(|number| std::fs::write(flat.join(format!("f{number}")), b"").expect("made"));
    let mut left = entries - entries / 2 - 2;
    let mut dir = root.join("deep");
    while left > 0 {
        std::fs::create_dir_all(&dir).expect("made");
        left -= 1;
        for number in 0..left.min(99) {
            std::fs::write(dir.join(format!("f{number}")), b"content").expect("made");
        }
        left -= left.min(99);
        // Not deeper than a path may be.
        dir = if dir.components().count() > 40 { root.join(format!("deep-{left}")) } else { dir.join("deeper") };
    }
}

/// Resident memory of a process in MiB: now, and the most so far.
fn resident(site: &Site, process: &str) -> (u64, u64) {
    let pid = site.cluster.dev.process(process).expect("a process").pid.expect("it runs");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a field");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") / 1024
    };
    (field("VmRSS"), field("VmHWM"))
}

#[tokio::test(flavor = "multi_thread")]
async fn rm_rf_of_a_large_tree_leaves_nothing_and_costs_little_memory() {
    if !fuse_works("rm_rf_of_a_large_tree_leaves_nothing_and_costs_little_memory") {
        return;
    }
    let given = std::env::var("JINDOFS_ENTRIES").ok().and_then(|text| text.parse().ok());
    let entries = given.unwrap_or(if long() { 100_000 } else { 4000 });
    let site = start(1, |dev| dev.writable = true).await;
    let (root, mnt) = (site.local.join("tree"), site.mnt.join("local"));
    off(move || plant(&root, entries)).await;
    let before = resident(&site, "fuse-0");
    let began = Instant::now();
    let tree = mnt.join("tree");
    let removed = off(move || Command::new("rm").arg("-rf").arg(tree).output().expect("rm runs")).await;
    let took = began.elapsed();
    let after = resident(&site, "fuse-0");
    println!("rm -rf of {entries} entries took {took:?}; MiB resident, now and at most: {before:?}, then {after:?}");
    assert!(removed.status.success() && removed.stderr.is_empty(), "{}", String::from_utf8_lossy(&removed.stderr));
    assert!(names(&site.local).is_empty(), "nothing is left in the under-storage");
    assert!(off(move || names(&mnt)).await.is_empty(), "nor in the mount");
    let missing = site.ctl(&["fs", "stat", "/local/tree"]);
    assert_eq!(missing.status.code(), Some(3), "nor for others");
    assert!(after.1 < before.1 + 200, "its memory grew from {before:?} MiB to {after:?} MiB");
    site.cluster.assert_no_panic();
}
