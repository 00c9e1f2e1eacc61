//! Locks on handles whose file is not the one of its name any more, or has another content than their changes were made from.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{PATIENCE, Pair, off, open, pair, wait_for, writable_twice};
use crate::data::writes::stored;
use crate::support::agent::{Agent, decode, encode};
use crate::support::fuse_works;

#[tokio::test(flavor = "multi_thread")]
async fn a_handle_whose_file_was_replaced_is_refused_every_lock_and_one_that_is_opened_anew_gets_it() {
    if !fuse_works("a_handle_whose_file_was_replaced_is_refused_every_lock_and_one_that_is_opened_anew_gets_it") {
        return;
    }
    let mut pair = pair(1, |_| {}).await;
    off(move || {
        let (at, there, new) = (pair.at("f"), pair.there("f"), pair.there("new"));
        let Pair { one, two, .. } = &mut pair;
        two.ok("close f");
        std::fs::write(&new, b"new").expect("written by the second");
        std::fs::rename(&new, &there).expect("replaced by the second");
        for order in ["flock f ex try", "flock f sh try", "fcntl f ex try 0 0", "fcntl f sh try 10 5"] {
            assert_eq!(one.run(order), "ESTALE", "{order}: it would hold a lock that nobody else asks for");
        }
        let gets_new = || {
            one.ok(&open(&at, "g"));
            let got = one.run("flock g ex try") == "ok" && one.run("read g") == "new";
            if !got {
                // What the kernel remembers of the name may be the old file still.
                one.ok("close g");
            }
            got.then_some(())
        };
        wait_for("the file that is there now is locked", PATIENCE, gets_new);
        two.ok(&open(&there, "g"));
        two.refused("flock g ex try");
        pair.site.cluster.assert_no_panic();
    })
    .await;
}

/// A request for a lock of the whole file that is open as `f`.
fn lock(kind: &str, mode: &str) -> Value {
    json!(["lock", "f", kind, mode, 0, 0])
}

/// Writes to the beginning of the file that is open as `f`, or to its end where the file was opened so.
fn write(bytes: &[u8]) -> Value {
    json!(["write", "f", 0, encode(bytes)])
}

/// A process that has a file open as `f`, has done `acts` to it and not stored what came of that, while others have stored `theirs`
/// through `there`.
fn overtaken(here: &Path, there: &Path, flags: i32, acts: &[Value]) -> Agent {
    fs::write(here, b"before").expect("written");
    let mut late = Agent::start();
    late.call(&json!(["open", "f", here, libc::O_RDWR | flags, 0])).expect("open");
    for act in acts {
        late.call(act).unwrap_or_else(|why| panic!("{act}: {why:?}"));
    }
    fs::write(there, b"theirs").expect("stored");
    late
}

/// Paths of a file of this name on both mounts.
fn both(mounts: &[PathBuf; 2], name: &str) -> [PathBuf; 2] {
    mounts.each_ref().map(|mount| mount.join(name))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handle_with_changes_of_a_content_that_others_have_replaced_is_refused_every_lock() {
    if !fuse_works("a_handle_with_changes_of_a_content_that_others_have_replaced_is_refused_every_lock") {
        return;
    }
    let (site, second) = writable_twice(1, |_| {}).await;
    let mounts = [site.mnt.clone(), second];
    off(move || {
        for (kind, mode) in [("flock", "exclusive"), ("flock", "shared"), ("fcntl", "exclusive"), ("fcntl", "shared")] {
            for storage in ["local", "s3"] {
                let name = format!("{storage}/{kind}-{mode}");
                let [here, there] = both(&mounts, &name);
                // Whoever had a lock before and gave it up has as little after the refusal as who never had one.
                let had = [lock(kind, "exclusive"), lock(kind, "none"), write(b"mine")];
                let acts = if mode == "shared" { &had[..] } else { &had[2..] };
                let mut late = overtaken(&here, &there, 0, acts);
                let refused = late.call(&lock(kind, mode)).expect_err("it would see neither content as a whole");
                assert_eq!(refused.errno, libc::ESTALE, "{name}");
                // Nothing is left of the lock that was refused.
                let mut other = Agent::start();
                other.call(&json!(["open", "f", there, libc::O_RDWR, 0])).expect("open");
                other.call(&lock(kind, "exclusive")).unwrap_or_else(|why| panic!("{name}: {why:?}"));
                other.call(&json!(["close", "f"])).expect("closed");
                let told = late.call(&json!(["close", "f"])).expect_err("others have stored something");
                assert_eq!(told.errno, libc::ESTALE, "{name}");
                // What was given up goes behind that close, and what the other had is free behind its own.
                wait_for("who opens it anew gets the lock", PATIENCE, || {
                    late.call(&json!(["open", "f", here, libc::O_RDWR, 0])).ok()?;
                    let locked = late.call(&lock(kind, mode)).is_ok();
                    if !locked {
                        let _ = late.call(&json!(["close", "f"]));
                    }
                    locked.then_some(())
                });
                assert_eq!(decode(&late.call(&json!(["read", "f"])).expect("read")), b"theirs", "{name}");
            }
        }
        site.cluster.assert_no_panic();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_only_appended_to_a_file_or_cut_it_off_gets_the_lock_and_goes_on_from_what_others_have_stored() {
    let test = "who_has_only_appended_to_a_file_or_cut_it_off_gets_the_lock_and_goes_on_from_what_others_have_stored";
    if !fuse_works(test) {
        return;
    }
    let (site, second) = writable_twice(1, |_| {}).await;
    let (mounts, on) = ([site.mnt.clone(), second], tokio::runtime::Handle::current());
    off(move || {
        for (kind, storage) in [("flock", "local"), ("fcntl", "local"), ("flock", "s3"), ("fcntl", "s3")] {
            let name = format!("{storage}/{kind}-appended");
            let [here, there] = both(&mounts, &name);
            let mut late = overtaken(&here, &there, libc::O_APPEND, &[write(b" and mine")]);
            late.call(&lock(kind, "exclusive")).unwrap_or_else(|why| panic!("{name}: {why:?}"));
            assert_eq!(decode(&late.call(&json!(["read", "f"])).expect("read")), b"theirs and mine", "{name}");
            assert_eq!(on.block_on(stored(&site, &name)).as_deref(), Some(&b"theirs and mine"[..]), "{name}");

            let name = format!("{storage}/{kind}-cut-off");
            let [here, there] = both(&mounts, &name);
            let mut late = overtaken(&here, &there, libc::O_TRUNC, &[]);
            late.call(&lock(kind, "exclusive")).unwrap_or_else(|why| panic!("{name}: {why:?}"));
            assert_eq!(decode(&late.call(&json!(["read", "f"])).expect("read")), b"theirs", "{name}");
            late.call(&write(b"THE")).expect("written");
            late.call(&lock(kind, "none")).expect("given up");
            assert_eq!(on.block_on(stored(&site, &name)).as_deref(), Some(&b"THEirs"[..]), "{name}");
        }
        site.cluster.assert_no_panic();
    })
    .await;
}
