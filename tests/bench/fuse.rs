//! Files read through the mount against the same files read natively. Everything is cached on the worker; before each
//! pass the kernel's page cache of the mount is dropped.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use jindofs::dev::UfsMount;
use rustix::fs::Advice;

use super::table::{Bar, Table, median};
use super::{Arguments, Outcome, cluster, go_on, jindoctl, say};

const LARGE_BYTES: usize = 1 << 30;
const READ_BYTES: usize = 1 << 20;
const SMALL_FILES: usize = 10_000;
const SMALL_BYTES: usize = 16 << 10;

pub(crate) fn run(arguments: &Arguments, dir: &Path, table: &mut Table) -> Outcome<()> {
    say("a mount over 1 GiB and 10,000 small files");
    let [native, mnt] = ["files", "mnt"].map(|name| dir.join(name));
    std::fs::create_dir_all(native.join("small"))?;
    std::fs::create_dir_all(&mnt)?;
    make_files(&native)?;
    let cluster = cluster(&dir.join("cluster"), |options| {
        options.workers = 1;
        options.worker_quota = 2 << 30;
        options.mounts = vec![mnt.clone()];
        options.ufs = vec![UfsMount { path: "/files".into(), uri: format!("local://{}", native.display()) }];
    })?;
    jindoctl(&cluster, &["load", "/files"])?;
    let mounted = mnt.join("files");

    // Warm the native side as well: both are measured from memory.
    read_all(&native.join("large"))?;
    for block in ["128K", "1M"] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..arguments.rounds {
            go_on()?;
            theirs.push(rate(&native.join("large"), block)?);
            drop_pages(&mounted.join("large"))?;
            ours.push(rate(&mounted.join("large"), block)?);
        }
        let what = format!("dd bs={block} of 1 GiB / native");
        table.ratio(&what, &ours, &theirs, "MB/s", Bar::AtLeast(0.5));
    }

    fresh_mount(&cluster)?;
    let cold = list(&mounted.join("small"))?;
    table.figure("ls -l of 10,000 files, cold", &[cold], "s", cold, Bar::AtMost(1.0));
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..arguments.rounds {
        go_on()?;
        theirs.push(list(&native.join("small"))?);
        ours.push(list(&mounted.join("small"))?);
    }
    table.ratio("ls -l of 10,000 files, warm / native", &ours, &theirs, "s", Bar::AtMost(1.5));

    let paths: Vec<PathBuf> = (0..SMALL_FILES).map(|number| mounted.join(small(number))).collect();
    let mut passes = Vec::new();
    for _ in 0..arguments.rounds {
        go_on()?;
        for path in &paths {
            drop_pages(path)?;
        }
        let began = Instant::now();
        for path in &paths {
            if read_all(path)? != SMALL_BYTES as u64 {
                return Err(format!("{}: not whole", path.display()).into());
            }
        }
        passes.push(began.elapsed().as_secs_f64());
    }
    table.figure("10,000 cached files of 16 KiB read", &passes, "s", median(&passes), Bar::AtMost(3.0));
    Ok(())
}

fn small(number: usize) -> String {
    format!("small/f{number:05}")
}

fn make_files(native: &Path) -> Outcome<()> {
    let large = File::create(native.join("large"))?;
    let piece: Vec<u8> = (0..READ_BYTES).map(|place| (place * 31 % 251) as u8).collect();
    for number in 0..LARGE_BYTES / READ_BYTES {
        large.write_all_at(&piece, (number * READ_BYTES) as u64)?;
    }
    for number in 0..SMALL_FILES {
        std::fs::write(native.join(small(number)), &piece[..SMALL_BYTES])?;
    }
    Ok(())
}

/// Bytes of a file, read from its beginning to its end.
fn read_all(path: &Path) -> Outcome<u64> {
    let file = File::open(path)?;
    let mut buffer = vec![0; READ_BYTES];
    let mut at = 0;
    loop {
        match file.read_at(&mut buffer, at)? {
            0 => return Ok(at),
            count => at += count as u64,
        }
    }
}

/// MB per second of a whole read by a common program.
fn rate(path: &Path, block: &str) -> Outcome<f64> {
    let began = Instant::now();
    let mut dd = Command::new("dd");
    dd.arg(format!("if={}", path.display())).args(["of=/dev/null", "status=none", &format!("bs={block}")]);
    if !dd.status()?.success() {
        return Err(format!("dd: {} was not read", path.display()).into());
    }
    #[allow(clippy::cast_precision_loss)]
    Ok(LARGE_BYTES as f64 / 1e6 / began.elapsed().as_secs_f64())
}

fn drop_pages(path: &Path) -> Outcome<()> {
    rustix::fs::fadvise(File::open(path)?, 0, None, Advice::DontNeed)?;
    Ok(())
}

/// Seconds to list a directory and to ask for the attributes of each name in it.
fn list(path: &Path) -> Outcome<f64> {
    let began = Instant::now();
    let (mut count, mut bytes) = (0, 0);
    for item in std::fs::read_dir(path)? {
        bytes += std::fs::symlink_metadata(item?.path())?.size();
        count += 1;
    }
    if count != SMALL_FILES || bytes != (SMALL_FILES * SMALL_BYTES) as u64 {
        return Err(format!("{}: {count} files, {bytes} bytes", path.display()).into());
    }
    Ok(began.elapsed().as_secs_f64())
}

/// Starts the FUSE client anew, so that it and the kernel know nothing.
fn fresh_mount(cluster: &jindofs::dev::DevCluster) -> Outcome<()> {
    cluster.kill("fuse-0")?;
    Ok(cluster.restart("fuse-0")?)
}
