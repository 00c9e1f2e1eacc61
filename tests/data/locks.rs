//! Locks between two mounts of one cluster, each used by a process of its own: who gets one, who waits, and what ends one.

mod replaced;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use jindofs::dev::DevOptions;

use super::Site;
use super::writes::{off, writable_twice};
use crate::support::{after, cluster::PATIENCE, fuse_works, wait_for};

/// What a process that locks is told line by line, and says after each: `ok`, a number of an error, or what it found.
const PROGRAM: &str = r#"
import errno, fcntl, os, signal, struct, sys
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(3))
KINDS = {"sh": fcntl.LOCK_SH, "ex": fcntl.LOCK_EX, "un": fcntl.LOCK_UN}
TYPES = {"sh": fcntl.F_RDLCK, "ex": fcntl.F_WRLCK, "un": fcntl.F_UNLCK}
files = {}
def run(verb, name, *rest):
    if verb == "open":
        files[name] = os.open(rest[0], os.O_RDWR | os.O_CREAT, 0o644)
    elif verb == "view":
        files[name] = os.open(rest[0], os.O_RDONLY)
    elif verb == "dup":
        files[rest[0]] = os.dup(files[name])
    elif verb == "close":
        os.close(files.pop(name))
    elif verb == "loop":
        refused = 0
        for _ in range(int(rest[1])):
            file = os.open(rest[0], os.O_RDWR)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.pwrite(file, b"x", 0)
            except BlockingIOError: refused += 1
            os.close(file)
        return f"{refused} refused"
    elif verb == "write":
        os.pwrite(files[name], rest[0].encode(), 0)
    elif verb == "read":
        return os.pread(files[name], 100, 0).decode()
    elif verb == "flock":
        fcntl.flock(files[name], KINDS[rest[0]] | (fcntl.LOCK_NB if "try" in rest else 0))
    elif verb == "fcntl":
        kind = KINDS[rest[0]] | (fcntl.LOCK_NB if "try" in rest and rest[0] != "un" else 0)
        fcntl.lockf(files[name], kind, int(rest[3]), int(rest[2]))
    elif verb == "getlk":
        asked = struct.pack("hhqqi4x", TYPES[rest[0]], 0, int(rest[1]), int(rest[2]), 0)
        kind, _, start, length, pid = struct.unpack("hhqqi4x", fcntl.fcntl(files[name], fcntl.F_GETLK, asked))
        names = {number: name for name, number in TYPES.items()}
        return f"{names[kind]} {start} {length} {pid}" if kind != fcntl.F_UNLCK else "free"
    return "ok"
print("ready", flush=True)
for line in sys.stdin:
    try:
        print(run(*line.split()), flush=True)
    except OSError as error:
        print(errno.errorcode.get(error.errno, error.errno), flush=True)
"#;

/// A process that locks files.
struct Locker {
    child: Child,
    orders: ChildStdin,
    said: Receiver<String>,
}

impl Locker {
    fn start() -> Locker {
        let mut command = Command::new("python3");
        command.args(["-c", PROGRAM]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3");
        let (orders, output) = (child.stdin.take().expect("stdin"), child.stdout.take().expect("stdout"));
        let (say, said) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = say.send(line);
            }
        });
        let locker = Locker { child, orders, said };
        assert_eq!(locker.answer(), "ready");
        locker
    }

    fn order(&mut self, what: &str) {
        writeln!(self.orders, "{what}").expect("it listens");
    }

    fn answer(&self) -> String {
        self.said.recv_timeout(PATIENCE).expect("an answer")
    }

    /// What comes of an order.
    fn run(&mut self, what: &str) -> String {
        self.order(what);
        self.answer()
    }

    #[track_caller]
    fn ok(&mut self, what: &str) {
        assert_eq!(self.run(what), "ok", "{what}");
    }

    #[track_caller]
    fn refused(&mut self, what: &str) {
        assert_eq!(self.run(what), "EAGAIN", "{what}");
    }

    /// Asks again and again until it is granted.
    #[track_caller]
    fn gets(&mut self, what: &str) {
        wait_for(what, PATIENCE, || (self.run(what) == "ok").then_some(()));
    }

    #[track_caller]
    fn still_waits(&self) {
        let said = self.said.recv_timeout(Duration::from_millis(700));
        assert!(said.is_err(), "it waits, and does not say {said:?}");
    }

    fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        // SAFETY: a signal to a process that we have started and not reaped.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// How long it takes to end by a signal.
    fn ends_by(mut self, signal: i32) -> Duration {
        self.signal(signal);
        let sent = Instant::now();
        wait_for("it ends", PATIENCE, || self.child.try_wait().expect("waited"));
        sent.elapsed()
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A cluster with two mounts, and a process at each that has the same file open as `f`.
struct Pair {
    site: Site,
    other: PathBuf,
    one: Locker,
    two: Locker,
}

async fn pair(masters: usize, change: impl FnOnce(&mut DevOptions) + Send) -> Pair {
    let (site, other) = writable_twice(masters, change).await;
    let mut pair = Pair { site, other, one: Locker::start(), two: Locker::start() };
    let (at, there) = (pair.at("f"), pair.there("f"));
    off(move || {
        pair.one.ok(&format!("open f {}", at.display()));
        // The other mount may have seen the directory without it.
        pair.two.gets(&format!("open f {}", there.display()));
        pair
    })
    .await
}

impl Pair {
    fn at(&self, name: &str) -> PathBuf {
        self.site.mnt.join("local").join(name)
    }

    fn there(&self, name: &str) -> PathBuf {
        self.other.join("local").join(name)
    }
}

fn open(path: &Path, name: &str) -> String {
    format!("open {name} {}", path.display())
}

#[tokio::test(flavor = "multi_thread")]
async fn flock_keeps_others_out_on_both_mounts_until_it_is_given_up_or_closed() {
    if !fuse_works("flock_keeps_others_out_on_both_mounts_until_it_is_given_up_or_closed") {
        return;
    }
    let mut pair = pair(1, |_| {}).await;
    off(move || {
        let beside = open(&pair.at("f"), "g");
        let view = format!("view v {}", pair.there("f").display());
        let Pair { one, two, .. } = &mut pair;
        one.ok("flock f ex try");
        two.refused("flock f ex try");
        two.refused("flock f sh try");
        one.ok(&beside);
        one.refused("flock g ex try");
        one.ok("flock f sh try");
        two.ok("flock f sh try");
        one.ok("flock g sh try");
        two.refused("flock f ex try");
        assert_eq!(two.run("flock f sh try"), "ok", "what it has it keeps when it cannot have more");
        one.ok("flock f un");
        two.refused("flock f ex try");
        one.ok("close g");
        two.gets("flock f ex try");
        two.ok("close f");
        one.gets("flock f ex try");
        two.ok(&view);
        two.refused("flock v sh try");
        one.ok("close f");
        two.gets("flock v ex try");
        two.refused("fcntl v sh try 0 1");
        assert_eq!(two.run("flock v ex try"), "ok");
        pair.site.cluster.assert_no_panic();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flock_is_free_when_its_last_close_has_returned_and_not_when_a_duplicate_is_closed() {
    if !fuse_works("a_flock_is_free_when_its_last_close_has_returned_and_not_when_a_duplicate_is_closed") {
        return;
    }
    let mut pair = pair(1, |_| {}).await;
    off(move || {
        let at = pair.at("f");
        let (beside, again, mut third) = (open(&at, "g"), format!("loop l {} 80", at.display()), Locker::start());
        let Pair { one, two, .. } = &mut pair;
        assert_eq!(one.run(&again), "0 refused");
        one.ok("flock f ex try");
        one.ok("dup f d");
        one.ok("close d");
        third.ok(&beside);
        for _ in 0..3 {
            third.refused("flock g ex try");
        }
        two.refused("flock f ex try");
        for _ in 0..20 {
            one.ok("close f");
            third.ok("flock g ex try");
            third.ok("close g");
            one.ok(&open(&at, "f"));
            one.ok("flock f ex try");
            third.ok(&beside);
        }
        pair.site.cluster.assert_no_panic();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn record_locks_are_split_changed_and_joined_and_end_with_any_close_of_their_process() {
    if !fuse_works("record_locks_are_split_changed_and_joined_and_end_with_any_close_of_their_process") {
        return;
    }
    let mut pair = pair(1, |_| {}).await;
    off(move || {
        let (again, view) = (open(&pair.at("f"), "g"), format!("view v {}", pair.at("f").display()));
        let Pair { one, two, .. } = &mut pair;
        one.ok("fcntl f ex try 0 10");
        one.ok("fcntl f ex try 10 10");
        two.refused("fcntl f ex try 19 5");
        two.ok("fcntl f ex try 20 5");
        assert_eq!(two.run("getlk f sh 0 1"), "ex 0 20 0", "a process of another mount has no number here");
        assert_eq!(two.run("getlk f ex 20 0"), "free");
        one.ok("fcntl f un try 5 5");
        two.ok("fcntl f ex try 5 5");
        one.refused("fcntl f ex try 0 10");
        one.ok("fcntl f sh try 10 10");
        two.ok("fcntl f sh try 10 10");
        assert_eq!(one.run("getlk f ex 0 0"), "ex 5 5 0");
        two.ok("fcntl f un try 0 0");
        one.ok("fcntl f ex try 0 0");
        let own = one.child.id();
        let mut third = Locker::start();
        third.ok(&again);
        assert_eq!(third.run("getlk g sh 3 1"), format!("ex 0 0 {own}"), "a process of the same mount is told");
        one.ok(&view);
        one.ok("close v");
        two.ok("fcntl f sh try 0 0");
        third.ok("fcntl g sh try 0 0");
        third.ok("close g");
        two.ok("fcntl f ex try 0 0");
        assert!(pair.two.ends_by(libc::SIGKILL) < PATIENCE);
        pair.one.gets("fcntl f ex try 0 0");
        pair.site.cluster.assert_no_panic();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_lock_gets_it_with_what_was_written_under_it_or_is_ended_by_a_signal() {
    if !fuse_works("who_waits_for_a_lock_gets_it_with_what_was_written_under_it_or_is_ended_by_a_signal") {
        return;
    }
    let mut pair = pair(1, |_| {}).await;
    off(move || {
        let (at, there) = (pair.at("f"), pair.there("f"));
        let Pair { one, two, .. } = &mut pair;
        for (wait, free) in [("flock f ex wait", "flock f un"), ("fcntl f ex wait 0 0", "fcntl f un wait 0 0")] {
            one.ok(&wait.replace("wait", "try"));
            two.order(wait);
            two.still_waits();
            one.ok(&format!("write f {}", wait.split(' ').next().expect("a word")));
            one.ok(free);
            assert_eq!(two.answer(), "ok");
            // It is not closed yet by who has written it, and was opened here before: under the lock it is opened anew.
            two.ok(&open(&there, "g"));
            assert_eq!(two.run("read g"), wait.split(' ').next().expect("a word"));
            two.ok("close g");
            two.gets(free);
        }
        one.ok("flock f ex try");
        for signal in [libc::SIGKILL, libc::SIGUSR1] {
            let mut third = Locker::start();
            third.ok(&open(&at, "f"));
            third.order("flock f ex wait");
            third.still_waits();
            assert!(third.ends_by(signal) < Duration::from_secs(5), "it does not wait for the lock to end");
        }
        one.ok("flock f un");
        two.gets("flock f ex try");
        pair.site.cluster.assert_no_panic();
    })
    .await;
}

/// Both make a file that was not there: it is one file, and the handles of one of them have a number of their own.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_under_a_lock_is_seen_also_where_the_file_was_made_on_both_mounts_at_once() {
    if !fuse_works("what_was_written_under_a_lock_is_seen_also_where_the_file_was_made_on_both_mounts_at_once") {
        return;
    }
    let mut pair = pair(1, |_| {}).await;
    off(move || {
        std::fs::create_dir(pair.there("d")).expect("made by the second");
        wait_for("the first sees it", PATIENCE, || std::fs::metadata(pair.at("d")).ok());
        for round in 0..40 {
            let name = format!("d/{round}");
            let (at, there) = (pair.at(&name), pair.there(&name));
            let Pair { one, two, .. } = &mut pair;
            one.order(&open(&at, "n"));
            two.order(&open(&there, "n"));
            assert_eq!((one.answer(), two.answer()), ("ok".to_owned(), "ok".to_owned()));
            for what in ["first", "other"] {
                one.gets("flock n ex try");
                one.ok(&open(&at, "g"));
                one.ok(&format!("write g {what}"));
                one.ok("flock n un");
                one.ok("close g");
                two.gets("flock n ex try");
                two.ok(&open(&there, "g"));
                assert_eq!(two.run("read g"), what, "{name}");
                two.ok("close g");
                two.ok("flock n un");
            }
            one.ok("close n");
            two.ok("close n");
        }
        pair.site.cluster.assert_no_panic();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_of_a_client_that_is_killed_or_ends_are_free_when_its_session_has_ended() {
    if !fuse_works("locks_of_a_client_that_is_killed_or_ends_are_free_when_its_session_has_ended") {
        return;
    }
    let mut pair = pair(1, |_| {}).await;
    off(move || {
        let there = pair.there("f");
        pair.two.ok("flock f ex try");
        pair.one.refused("flock f ex try");
        pair.site.cluster.dev.kill("fuse-1").expect("killed");
        pair.one.gets("flock f ex try");
        pair.site.cluster.dev.restart("fuse-1").expect("mounted");
        pair.two = Locker::start();
        pair.two.gets(&open(&there, "f"));
        pair.two.refused("flock f ex try");
        pair.one.ok("flock f un");
        pair.two.gets("flock f ex try");
        pair.one.refused("flock f ex try");
        pair.site.cluster.dev.term("fuse-1").expect("ended");
        pair.one.gets("flock f ex try");
        pair.site.cluster.assert_no_panic();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_was_away_for_too_long_is_told_that_its_locks_are_lost() {
    if !fuse_works("a_client_that_was_away_for_too_long_is_told_that_its_locks_are_lost") {
        return;
    }
    let mut pair = pair(1, |_| {}).await;
    off(move || {
        let Pair { site, one, two, .. } = &mut pair;
        two.ok("fcntl f ex try 0 10");
        one.refused("fcntl f sh try 0 1");
        site.cluster.dev.pause("fuse-1").expect("paused");
        one.gets("fcntl f ex try 0 1");
        one.ok("fcntl f un try 0 1");
        site.cluster.dev.resume("fuse-1").expect("resumed");
        wait_for("it is logged", PATIENCE, || site.cluster.log_of("fuse-1").contains("locks are lost").then_some(()));
        assert_eq!(two.run("fcntl f ex try 10 10"), "EIO", "it thinks that it still has the first ten bytes");
        two.ok("fcntl f un try 0 0");
        two.ok("fcntl f ex try 10 10");
        one.refused("fcntl f ex try 10 1");
        site.cluster.assert_no_panic();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_outlive_the_leader_that_granted_them() {
    if !fuse_works("locks_outlive_the_leader_that_granted_them") {
        return;
    }
    let mut pair = pair(3, |_| {}).await;
    let mut pair = off(move || {
        let Pair { site, one, two, .. } = &mut pair;
        one.ok("flock f ex try");
        two.order("flock f ex wait");
        for _ in 0..2 {
            let (leader, _) = site.cluster.wait_leader();
            site.cluster.dev.kill(&leader).expect("killed");
            two.still_waits();
            site.cluster.dev.launch(&leader).expect("launched");
            site.cluster.wait_whole();
        }
        // Longer than a session lives unheard of.
        after(Duration::from_secs(3));
        two.still_waits();
        one.ok("flock f un");
        assert_eq!(two.answer(), "ok");
        one.refused("flock f sh try");
        pair
    })
    .await;
    pair.site.cluster.assert_digests_equal().await;
    off(move || {
        pair.two.ok("close f");
        pair.one.gets("flock f ex try");
        pair.site.cluster.assert_no_panic();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_gone_is_not_locked_any_more() {
    if !fuse_works("a_file_that_is_gone_is_not_locked_any_more") {
        return;
    }
    let mut pair = pair(1, |_| {}).await;
    off(move || {
        let (at, there) = (pair.at("f"), pair.there("f"));
        let Pair { one, two, .. } = &mut pair;
        one.ok("flock f ex try");
        two.order("flock f ex wait");
        two.still_waits();
        std::fs::remove_file(&at).expect("removed");
        assert_eq!(two.answer(), "ESTALE");
        one.ok(&open(&at, "g"));
        one.ok("flock g ex try");
        wait_for("the new one is seen", PATIENCE, || {
            // What the kernel remembers of the name may be the old file still.
            if two.run(&open(&there, "g")) != "ok" {
                return None;
            }
            let refused = two.run("flock g ex try") == "EAGAIN";
            two.ok("close g");
            refused.then_some(())
        });
        one.ok("close f");
        one.ok("close g");
        pair.site.cluster.assert_no_panic();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_that_are_local_hold_on_one_mount() {
    if !fuse_works("locks_that_are_local_hold_on_one_mount") {
        return;
    }
    let mut pair = pair(1, |dev| dev.settings.push(("fuse.locks".into(), "local".into()))).await;
    off(move || {
        let beside = open(&pair.at("f"), "g");
        let Pair { one, two, .. } = &mut pair;
        one.ok("flock f ex try");
        two.ok("flock f ex try");
        one.ok(&beside);
        one.refused("flock g ex try");
        one.ok("fcntl f ex try 0 0");
        pair.site.cluster.assert_no_panic();
    })
    .await;
}
