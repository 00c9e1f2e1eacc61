//! Sessions of clients under stress: outages of all masters, clients that stand still, and answers that get lost.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use jindofs::client::namespace::at_path;
use jindofs_proto::v1::SetAttrRequest;

use super::writes::{names, off, stored, writable};
use super::{Site, content};
use crate::support::cluster::PATIENCE;
use crate::support::{fuse_works, wait_for, wait_until};

/// More than the time to live of the sessions of these tests.
pub(super) const OUTAGE: Duration = Duration::from_secs(7);

/// A process of its own that has written to a new file and an old one of each storage: this one starts others all the time,
/// each of which closes what it inherits, and with that stores it.
struct Writer {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Writer {
    fn start(mnt: &Path, salt: &str) -> Writer {
        let program = "import errno, os, sys\n\
            files = []\n\
            for storage in ('local', 's3'):\n    \
                for name, flags in (('new', os.O_CREAT), ('old', 0)):\n        \
                    path = f'{storage}/{name}{sys.argv[2]}'\n        \
                    file = os.open(os.path.join(sys.argv[1], path), flags | os.O_WRONLY)\n        \
                    os.write(file, b'NEW')\n        \
                    files.append((path, file))\n\
            print('open', flush=True)\n\
            sys.stdin.readline()\n\
            for path, file in files:\n    \
                try:\n        \
                    os.close(file)\n        \
                    print(path, 'stored', flush=True)\n    \
                except OSError as error:\n        \
                    print(path, errno.errorcode[error.errno], flush=True)\n";
        let mut command = Command::new("python3");
        command.args(["-c", program]).arg(mnt).arg(salt).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3");
        let said = BufReader::new(child.stdout.take().expect("its output"));
        let mut writer = Writer { child, said };
        assert_eq!(writer.line(), "open");
        writer
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("it says something");
        line.trim_end().to_owned()
    }

    /// Has it close everything.
    fn close(&mut self) {
        self.child.stdin.as_mut().expect("its input").write_all(b"\n").expect("told");
    }

    /// What came of each close, with the path.
    fn outcomes(mut self) -> Vec<(String, String)> {
        let split = |line: String| line.split_once(' ').map(|(path, what)| (path.to_owned(), what.to_owned()));
        let outcomes = (0..4).map(|_| split(self.line()).expect("a path and an outcome")).collect();
        self.child.wait().expect("it ends");
        outcomes
    }
}

/// The files that writers overwrite.
async fn old_files(site: &Site, salts: &[&str]) {
    for salt in salts {
        let (mnt, name) = (site.mnt.clone(), format!("old{salt}"));
        off(move || {
            ["local", "s3"].map(|storage| std::fs::write(mnt.join(storage).join(&name), b"old").expect("written"))
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_all_masters_that_outlasts_sessions_expires_none_and_every_close_is_good() {
    if !fuse_works("an_outage_of_all_masters_that_outlasts_sessions_expires_none_and_every_close_is_good") {
        return;
    }
    let site = writable(3, |_| {}).await;
    old_files(&site, &["-during", "-after"]).await;
    let mnt = site.mnt.clone();
    let (mut during, mut after) = off(move || (Writer::start(&mnt, "-during"), Writer::start(&mnt, "-after"))).await;
    for master in site.cluster.names() {
        site.cluster.dev.kill(&master).expect("killed");
    }
    let down = Instant::now();
    // It waits for the masters from here on.
    during.close();
    wait_until("sessions would have ended", PATIENCE, || down.elapsed() > OUTAGE).await;
    for master in site.cluster.names() {
        site.cluster.dev.launch(&master).expect("launched");
    }
    site.cluster.wait_whole();
    after.close();
    for writer in [during, after] {
        for (path, outcome) in off(|| writer.outcomes()).await {
            assert_eq!(outcome, "stored", "{path}");
            assert_eq!(stored(&site, &path).await.as_deref(), Some(&b"NEW"[..]), "{path}");
            assert_eq!(site.read(&path).await.expect("read"), b"NEW");
        }
    }
    for master in site.cluster.names() {
        let log = site.cluster.log_of(&master);
        assert!(!log.contains("their sessions expire"), "{master} has expired a session");
    }
    site.cluster.assert_digests_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stands_still_beyond_its_session_is_cleaned_up_after_and_goes_on_with_a_new_one() {
    let test = "a_client_that_stands_still_beyond_its_session_is_cleaned_up_after_and_goes_on_with_a_new_one";
    if !fuse_works(test) {
        return;
    }
    let site = writable(1, |_| {}).await;
    old_files(&site, &["", "-taken"]).await;
    let mnt = site.mnt.clone();
    let (mut writer, mut late) = off(move || (Writer::start(&mnt, ""), Writer::start(&mnt, "-taken"))).await;
    site.cluster.dev.pause("fuse-0").expect("paused");
    for storage in ["local", "s3"] {
        for name in ["new", "new-taken"] {
            let path = format!("/{storage}/{name}");
            let gone = || !site.ctl(&["fs", "stat", &path]).status.success();
            wait_until("what was never stored is gone", PATIENCE, gone).await;
        }
    }
    // Others have the names, and the old files, meanwhile.
    let file = site.dir.path().join("theirs");
    std::fs::write(&file, b"theirs").expect("written");
    for path in ["/local/new-taken", "/s3/new-taken", "/local/old-taken", "/s3/old-taken"] {
        site.ctl_ok(&["fs", "put", &file.display().to_string(), path]);
    }
    site.cluster.dev.resume("fuse-0").expect("resumed");
    writer.close();
    late.close();
    for (path, outcome) in off(|| late.outcomes()).await {
        assert!(["ESTALE", "ENOENT", "EIO"].contains(&outcome.as_str()), "{path}: {outcome}");
        assert_eq!(stored(&site, &path).await.as_deref(), Some(&b"theirs"[..]), "{path}: what others stored stays");
        assert_eq!(site.ctl_ok(&["fs", "cat", &format!("/{path}")]), b"theirs");
    }
    for (path, outcome) in off(|| writer.outcomes()).await {
        println!("{path}: {outcome}");
        let now = stored(&site, &path).await;
        match outcome.as_str() {
            "stored" => assert_eq!(now.as_deref(), Some(&b"NEW"[..]), "{path}"),
            "ESTALE" | "ENOENT" | "EIO" if path.ends_with("new") => assert_eq!(now, None, "{path}"),
            other => panic!("{path}: {other}: nobody has changed it"),
        }
    }
    let (mnt, bytes) = (site.mnt.clone(), content(5000, 1));
    off(move || {
        for storage in ["local", "s3"] {
            let dir = mnt.join(storage);
            wait_for("it shows what is there now", PATIENCE, || {
                (std::fs::read(dir.join("old-taken")).ok()? == b"theirs").then_some(())
            });
            std::fs::write(dir.join("new"), &bytes).expect("the name is free");
            assert!(std::fs::read(dir.join("new")).expect("read") == bytes);
            std::fs::rename(dir.join("new"), dir.join("moved")).expect("moved");
            assert_eq!(names(&dir), ["moved", "new-taken", "old", "old-taken"]);
        }
    })
    .await;
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_stores_after_its_session_has_expired_is_what_everybody_sees() {
    if !fuse_works("what_a_client_stores_after_its_session_has_expired_is_what_everybody_sees") {
        return;
    }
    let site = writable(1, |_| {}).await;
    for storage in ["local", "s3"] {
        site.cluster.dev.kill("fuse-0").expect("killed");
        let point = Some("write.begun=2*sleep(6000)");
        site.cluster.dev.set_env("fuse-0", "JINDOFS_FAILPOINTS", point).expect("set");
        site.cluster.dev.restart("fuse-0").expect("mounted");
        let path = format!("{storage}/late");
        let at = site.mnt.join(&path);
        let shown = format!("/{path}");
        off(move || std::fs::write(at, b"old").expect("written")).await;
        let at = site.mnt.join(&path);
        // It stands still right before it stores.
        let writing = std::thread::spawn(move || {
            let file = std::fs::OpenOptions::new().write(true).open(at).expect("open");
            file.write_all_at(b"NEW", 0).and_then(|()| file.sync_all()).map_err(|error| error.raw_os_error())
        });
        wait_for_write(&site, &shown).await;
        site.cluster.dev.pause("fuse-0").expect("paused");
        // It may be changed by others once its session has ended and a master has looked.
        let change = SetAttrRequest { target: Some(at_path(&shown)), mode: Some(0o600), ..SetAttrRequest::default() };
        site.cluster.client().set_attr(change).await.expect("changed");
        site.cluster.dev.resume("fuse-0").expect("resumed");
        let told = off(move || writing.join()).await.expect("no panic");
        println!("{path}: {told:?}");
        assert_ne!(told, Err(None));
        let now = stored(&site, &path).await.expect("it is there");
        wait_until("all see what is stored", PATIENCE, || site.ctl(&["fs", "cat", &shown]).stdout == now).await;
        let at = site.mnt.join(&path);
        off(move || std::fs::write(at, b"next")).await.expect("it can be written again");
        assert_eq!(stored(&site, &path).await.as_deref(), Some(&b"next"[..]));
    }
    site.cluster.assert_no_panic();
}

/// Waits until somebody is about to store a file: nobody else may.
async fn wait_for_write(site: &Site, path: &str) {
    let client = site.cluster.client_waiting(Duration::from_millis(500));
    let attr = client.lookup(at_path(path)).await.expect("it is there");
    let started = Instant::now();
    while let Ok(begun) = client.begin_write(attr.inode, attr.version_token.clone()).await {
        client.end_write(begun.intent, None).await.expect("given up");
        assert!(started.elapsed() < PATIENCE, "{path}: nobody stores it");
    }
}

/// What each kind of change brings, none of which may be told that it was made before.
fn every_change(dir: &Path) {
    let (inside, file, moved) = (dir.join("d"), dir.join("d/f"), dir.join("d/g"));
    std::fs::create_dir(&inside).expect("mkdir");
    let new = std::fs::File::options().write(true).create_new(true).open(&file).expect("made by nobody else");
    new.write_all_at(b"first", 0).and_then(|()| new.sync_all()).expect("stored");
    new.write_all_at(b"again", 0).and_then(|()| new.sync_all()).expect("stored once more");
    drop(new);
    std::fs::rename(&file, &moved).expect("moved once");
    std::fs::write(&file, b"other").expect("written");
    std::fs::rename(&file, &moved).expect("replaced");
    std::fs::set_permissions(&moved, std::fs::Permissions::from_mode(0o600)).expect("chmod");
    assert_eq!(names(&inside), ["g"]);
    assert_eq!(std::fs::read(&moved).expect("read"), b"other");
    std::fs::remove_file(&moved).expect("removed once");
    std::fs::remove_dir(&inside).expect("removed once");
    assert!(names(dir).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_every_other_answer_lost_on_its_way_each_change_is_made_once() {
    if !fuse_works("with_every_other_answer_lost_on_its_way_each_change_is_made_once") {
        return;
    }
    let site = writable(1, |_| {}).await;
    // Those of the leader to its client, and those of the log to the leader: each kind of change meets each of them.
    for lost in ["service.reply=2%skip", "service.reply=3%skip", "propose.reply=3%skip", "propose.reply=5%skip"] {
        site.cluster.dev.kill("master-0").expect("killed");
        site.cluster.dev.set_env("master-0", "JINDOFS_FAILPOINTS", Some(lost)).expect("set");
        site.cluster.dev.restart("master-0").expect("restarted");
        let mnt = site.mnt.clone();
        let lives = |mnt: std::path::PathBuf| (0..3).for_each(|_| every_change(&mnt));
        let threads = ["local", "s3"].map(|storage| {
            let dir = mnt.join(storage);
            std::thread::spawn(move || lives(dir))
        });
        for thread in threads {
            assert!(off(move || thread.join()).await.is_ok(), "{lost}: a change was told something else");
        }
        assert!(names(&site.local).is_empty(), "{lost}: nothing is left in the directory");
        let objects = site.bucket.list("").await.expect("listed");
        assert!(objects.iter().all(|object| object.path() == "/"), "{lost}: left in the bucket: {objects:?}");
    }
    site.cluster.assert_no_panic();
}
