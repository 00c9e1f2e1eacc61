//! Files written through the mount: empty ones against etcd's puts, a large one against multipart PUTs to the same S3
//! server, small ones against native files with fsync.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use jindofs::dev::{DevOptions, UfsMount};

use super::etcd::Etcd;
use super::table::{Bar, Table};
use super::{Arguments, Outcome, binary, cluster, go_on, s3_client, say};

const BUCKET: &str = "bench";
const THREADS: usize = 16;
const LARGE_BYTES: usize = 1 << 30;
const PIECE_BYTES: usize = 1 << 20;
/// Bytes of a part, and parts under way: what the product sends, and twice as many at a time.
const PART_BYTES: usize = 8 << 20;
const PARTS: usize = 8;
const SMALL_FILES: usize = 10_000;
const SMALL_BYTES: usize = 16 << 10;

pub(crate) async fn run(arguments: &Arguments, dir: &Path, table: &mut Table) -> Outcome<()> {
    say("a writable mount, an S3 server and three members of etcd");
    let [native, ours, mnt, objects] = ["native", "ours", "mnt", "objects"].map(|name| dir.join(name));
    for made in [&native, &ours, &mnt] {
        std::fs::create_dir_all(made)?;
    }
    let server = Server::start(&objects)?;
    let mut described = Ok(());
    let cluster = cluster(&dir.join("cluster"), |options| {
        options.writable = true;
        options.mounts = vec![mnt.clone()];
        options.ufs = vec![
            UfsMount { path: "/local".into(), uri: format!("local://{}", ours.display()) },
            UfsMount { path: "/s3".into(), uri: format!("s3://{BUCKET}") },
        ];
        described = server.describe(dir, options);
    })?;
    described?;
    let etcd = Etcd::start(&dir.join("etcd"))?;
    empty(arguments, &mnt, &etcd, table).await?;
    large(arguments, &mnt, &server, table).await?;
    small(arguments, &mnt.join("local"), &native, table)?;
    drop(cluster);
    Ok(())
}

/// The S3 server of the tests as a process of its own; killed when dropped.
struct Server {
    child: Child,
    said: Vec<(String, String)>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("warning: the S3 server was not stopped: {error}");
        }
    }
}

impl Server {
    fn start(objects: &Path) -> Outcome<Server> {
        let mut command = Command::new(binary("s3-test-server")?);
        let mut child = command.arg(objects).arg(BUCKET).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().ok_or("the S3 server says nothing")?;
        let mut server = Server { child, said: Vec::new() };
        for line in BufReader::new(output).lines() {
            match line?.split_once(' ') {
                Some((name, value)) => server.said.push((name.to_owned(), value.to_owned())),
                None => return Ok(server),
            }
        }
        Err("the S3 server has ended".into())
    }

    fn get(&self, name: &str) -> Outcome<&str> {
        let found = self.said.iter().find(|(said, _)| said == name);
        found.map(|(_, value)| value.as_str()).ok_or_else(|| format!("the S3 server has not told its {name}").into())
    }

    fn describe(&self, dir: &Path, options: &mut DevOptions) -> Outcome<()> {
        let secret = dir.join("secret");
        std::fs::write(&secret, self.get("secret-key")?)?;
        options.add_ufs_option(&format!("fs.s3.endpoint={}", self.get("endpoint")?))?;
        options.add_ufs_option(&format!("fs.s3.accessKeyId={}", self.get("access-key")?))?;
        options.add_ufs_option(&format!("fs.s3.accessKeySecret=file:{}", secret.display()))?;
        Ok(())
    }
}

/// Empty files that many threads create and close, outside any mount, in directories of their own and in one.
async fn empty(arguments: &Arguments, mnt: &Path, etcd: &Etcd, table: &mut Table) -> Outcome<()> {
    let time = Duration::from_secs(arguments.seconds);
    let (mut own, mut shared, mut puts) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..arguments.rounds {
        go_on()?;
        puts.push(etcd.puts(THREADS, time).await?);
        own.push(creates(mnt, &format!("own{round}"), true, time)?);
        shared.push(creates(mnt, &format!("shared{round}"), false, time)?);
    }
    table.ratio("empty files, 16 threads / etcd puts", &own, &puts, "per s", Bar::AtLeast(0.5));
    table.ratio("empty files, one directory / 16 directories", &shared, &own, "per s", Bar::AtLeast(0.8));
    Ok(())
}

/// Files per second.
fn creates(mnt: &Path, name: &str, own: bool, time: Duration) -> Outcome<f64> {
    let at = mnt.join(name);
    std::fs::create_dir(&at)?;
    let mut dirs = vec![at.clone(); THREADS];
    if own {
        for (thread, dir) in dirs.iter_mut().enumerate() {
            dir.push(thread.to_string());
            std::fs::create_dir(&*dir)?;
        }
    }
    let began = Instant::now();
    let done = on_threads(|thread| {
        let mut count = 0;
        while began.elapsed() < time {
            File::create(dirs[thread].join(format!("t{thread}-{count}")))?;
            count += 1;
        }
        Ok(count)
    })?;
    #[allow(clippy::cast_precision_loss)]
    Ok(done as f64 / began.elapsed().as_secs_f64())
}

/// Runs `work` on every thread; the sum of what they return.
fn on_threads(work: impl Fn(usize) -> std::io::Result<usize> + Sync) -> Outcome<usize> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || work(thread))).collect();
        let mut sum = 0;
        for thread in threads {
            sum += thread.join().map_err(|_| "a thread has panicked")??;
        }
        Ok(sum)
    })
}

/// One large file, written and closed, against the same bytes sent in parts by a client that has them in memory.
async fn large(arguments: &Arguments, mnt: &Path, server: &Server, table: &mut Table) -> Outcome<()> {
    let client = s3_client::client(server.get("endpoint")?, BUCKET);
    let piece: Vec<u8> = (0..PIECE_BYTES).map(|place| (place * 31 % 251) as u8).collect();
    let part = opendal::Buffer::from(piece.repeat(PART_BYTES / PIECE_BYTES));
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..arguments.rounds {
        go_on()?;
        let began = Instant::now();
        let mut writer = client.writer_with(&format!("direct{round}")).chunk(PART_BYTES).concurrent(PARTS).await?;
        for _ in 0..LARGE_BYTES / PART_BYTES {
            writer.write(part.clone()).await?;
        }
        writer.close().await?;
        theirs.push(megabytes_per_s(began));
        client.delete(&format!("direct{round}")).await?;
        let began = Instant::now();
        let at = mnt.join(format!("s3/file{round}"));
        let mut file = File::create_new(&at)?;
        for _ in 0..LARGE_BYTES / PIECE_BYTES {
            file.write_all(&piece)?;
        }
        file.sync_all()?;
        ours.push(megabytes_per_s(began));
        std::fs::remove_file(&at)?;
    }
    table.ratio("1 GiB to s3:// / multipart PUTs", &ours, &theirs, "MB/s", Bar::AtLeast(0.8));
    Ok(())
}

#[allow(clippy::cast_precision_loss)]
fn megabytes_per_s(began: Instant) -> f64 {
    LARGE_BYTES as f64 / 1e6 / began.elapsed().as_secs_f64()
}

/// Many small files by many threads, each closed: through the mount that stores them, natively with an fsync.
fn small(arguments: &Arguments, mounted: &Path, native: &Path, table: &mut Table) -> Outcome<()> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..arguments.rounds {
        go_on()?;
        theirs.push(write_small(&native.join(format!("r{round}")), true)?);
        ours.push(write_small(&mounted.join(format!("r{round}")), false)?);
    }
    table.ratio("10,000 files of 16 KiB to local:// / native", &ours, &theirs, "per s", Bar::AtLeast(0.3));
    Ok(())
}

/// Files per second.
fn write_small(dir: &PathBuf, sync: bool) -> Outcome<f64> {
    std::fs::create_dir(dir)?;
    let bytes = vec![b'x'; SMALL_BYTES];
    let next = AtomicUsize::new(0);
    let began = Instant::now();
    let done = on_threads(|_| {
        let mut count = 0;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= SMALL_FILES {
                return Ok(count);
            }
            let mut file = File::create(dir.join(format!("f{number:05}")))?;
            file.write_all(&bytes)?;
            if sync {
                file.sync_all()?;
            }
            count += 1;
        }
    })?;
    #[allow(clippy::cast_precision_loss)]
    Ok(done as f64 / began.elapsed().as_secs_f64())
}
