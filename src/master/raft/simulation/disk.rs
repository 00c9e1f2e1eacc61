//! The simulated disks: directories on a file system in memory stand for what the processes see, the page cache, and beside
//! them it is known what of it is durable.
//!
//! A sync makes the content of a file, or the names in a directory, durable. When the power fails, each sector of a file is as
//! it was at the last sync or as it was written since, and each directory has the names of one of both times.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsString, c_int, c_void};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::net::net;
use crate::runtime::simulated::{self, Random, pass};

const SECTOR: usize = 512;

/// What a disk does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The next sync of the log fails.
    Sync,
    /// The next write to the log fails.
    Write,
    /// So many writes to the log find no room.
    Full(u32),
    /// The power fails at a sync after so many others.
    PowerCut(u32),
}

#[derive(Debug, Default)]
struct Disks {
    root: PathBuf,
    /// By inode: the durable content of files, and their sectors that the page cache takes for durable although they are not.
    files: HashMap<u64, Durable>,
    /// By inode: the durable names of directories.
    dirs: HashMap<u64, BTreeMap<OsString, (u64, bool)>>,
    faults: HashMap<usize, Fault>,
    cut: BTreeSet<usize>,
    random: Option<Random>,
    /// Tables of the state are left as they were written.
    spares_state: bool,
}

#[derive(Debug, Default, Clone)]
struct Durable {
    content: Vec<u8>,
    forgotten: BTreeSet<usize>,
}

static USED: AtomicBool = AtomicBool::new(false);
static DISKS: Mutex<Option<Disks>> = Mutex::new(None);

fn lock() -> MutexGuard<'static, Option<Disks>> {
    DISKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Uses the disks below the current directory.
pub(super) fn install(seed: u64, spares_state: bool) {
    let root = std::env::current_dir().expect("current directory");
    *lock() = Some(Disks { root, random: Some(Random::new(seed)), spares_state, ..Disks::default() });
    USED.store(true, Ordering::SeqCst);
}

/// The directory of a disk. Relative, so that messages that name it are the same in each run.
pub(super) fn dir(host: usize, generation: u64) -> PathBuf {
    PathBuf::from(format!("m{host}/g{generation}"))
}

pub(super) fn break_disk(host: usize, fault: Fault) {
    if let Some(disks) = lock().as_mut() {
        disks.faults.insert(host, fault);
    }
}

/// Faults that have not happened do not any more.
pub(super) fn repair(host: usize) {
    if let Some(disks) = lock().as_mut() {
        disks.faults.remove(&host);
        disks.cut.remove(&host);
    }
}

/// True if the power of a machine failed at a sync.
pub(super) fn was_cut(host: usize) -> bool {
    lock().as_ref().is_some_and(|disks| disks.cut.contains(&host))
}

/// Makes `to` what is left of the disk in `from` after a power cut, all of it durable.
pub(super) fn keep_durable(from: &Path, to: &Path, seed: u64) {
    if let Some(disks) = lock().as_mut() {
        disks.keep_durable(from, to, seed);
    }
}

impl Disks {
    fn keep_durable(&mut self, from: &Path, to: &Path, seed: u64) {
        let (from, to) = (self.root.join(from), self.root.join(to));
        fs::create_dir_all(&to).expect("mkdir");
        let Ok(inode) = fs::metadata(&from).map(|meta| meta.ino()) else { return };
        self.keep_dir(Some(&from), inode, &to, &to, seed, false);
    }

    fn keep_dir(&mut self, from: Option<&Path>, inode: u64, to: &Path, base: &Path, seed: u64, spared: bool) {
        let durable = self.dirs.get(&inode).cloned().unwrap_or_default();
        let written = from.map(list).unwrap_or_default();
        let mut random = seeded(seed, to.strip_prefix(base).unwrap_or(to));
        // The disk itself is always there.
        let old = !spared && from.is_none_or(|_| random.chance(50));
        let names = if old { durable } else { written.clone() };
        for (name, (inode, is_dir)) in &names {
            let here = written.get(name).is_some_and(|(at, _)| at == inode);
            let from = from.filter(|_| here).map(|from| from.join(name));
            let to = to.join(name);
            let spared = spared || (self.spares_state && name == "state");
            if *is_dir {
                fs::create_dir_all(&to).expect("mkdir");
                self.keep_dir(from.as_deref(), *inode, &to, base, seed, spared);
            } else {
                let content = self.keep_file(
                    from.as_deref(),
                    *inode,
                    &mut seeded(seed, to.strip_prefix(base).unwrap_or(&to)),
                    spared,
                );
                fs::write(&to, &content).expect("write");
                let inode = fs::metadata(&to).expect("stat").ino();
                self.files.insert(inode, Durable { content, forgotten: BTreeSet::new() });
            }
        }
        let inode = fs::metadata(to).expect("stat").ino();
        self.dirs.insert(inode, list(to));
    }

    fn keep_file(&self, from: Option<&Path>, inode: u64, random: &mut Random, spared: bool) -> Vec<u8> {
        let durable = self.files.get(&inode).cloned().unwrap_or_default();
        let Some(written) = from.and_then(|from| fs::read(from).ok()) else { return durable.content };
        if spared {
            return written;
        }
        // All, nothing, or any of the sectors.
        let share = match random.below(4) {
            0 => 0,
            1 => 100,
            _ => random.between(10, 90),
        };
        let length = if random.chance(share) { written.len() } else { durable.content.len() };
        let mut content = vec![0; length];
        for (sector, out) in content.chunks_mut(SECTOR).enumerate() {
            let at = sector * SECTOR;
            let of =
                |data: &[u8]| data.get(at..).map(|rest| rest[..rest.len().min(out.len())].to_vec()).unwrap_or_default();
            let (old, new) = (of(&durable.content), of(&written));
            let take_new = old != new && !durable.forgotten.contains(&sector) && random.chance(share);
            let chosen = if take_new { new } else { old };
            out[..chosen.len()].copy_from_slice(&chosen);
        }
        content
    }

    fn host_of(&self, path: &Path) -> Option<(usize, PathBuf)> {
        let rest = path.strip_prefix(&self.root).ok()?;
        let host = rest.iter().next()?.to_str()?.strip_prefix('m')?.parse().ok()?;
        Some((host, rest.to_path_buf()))
    }

    /// Records a sync; false if it fails.
    fn sync(&mut self, fd: c_int) -> bool {
        let link = PathBuf::from(format!("/proc/self/fd/{fd}"));
        let Ok(path) = fs::read_link(&link) else { return true };
        let Some((host, path)) = self.host_of(&path) else { return true };
        if self.cut.contains(&host) {
            return true;
        }
        let Ok(meta) = fs::metadata(&link) else { return true };
        let in_log = path.iter().any(|part| part == "wal");
        let product = simulated::is_active();
        let mut fails = false;
        if product {
            match self.faults.get_mut(&host) {
                Some(Fault::PowerCut(0)) => {
                    self.faults.remove(&host);
                    let seed = self.random.as_mut().map_or(0, Random::next);
                    let mut parts = path.iter();
                    let from: PathBuf = parts.by_ref().take(2).collect();
                    let generation = from.file_name().and_then(|name| name.to_str()?.strip_prefix('g')?.parse().ok());
                    self.keep_durable(&from, &dir(host, generation.unwrap_or(0u64) + 1), seed);
                    self.cut.insert(host);
                    net(|net| {
                        net.muted[host] = true;
                        net.trace.note(format_args!("power cut {host} at {}", path.display()));
                    });
                    return true;
                }
                Some(Fault::PowerCut(left)) => *left -= 1,
                Some(Fault::Sync) if in_log && !meta.is_dir() => {
                    self.faults.remove(&host);
                    fails = true;
                }
                _ => {}
            }
        }
        if meta.is_dir() {
            self.dirs.insert(meta.ino(), list(&link));
            return true;
        }
        let written = fs::read(&link).unwrap_or_default();
        if in_log && product {
            net(|net| net.trace.note(format_args!("sync {} {}", path.display(), crc32c::crc32c(&written))));
        }
        let durable = self.files.entry(meta.ino()).or_default();
        if fails {
            // The pages are clean now, as if they had been written.
            for sector in 0..written.len().div_ceil(SECTOR) {
                if sector_of(&durable.content, sector) != sector_of(&written, sector) {
                    durable.forgotten.insert(sector);
                }
            }
            return false;
        }
        let old = std::mem::replace(&mut durable.content, written);
        for sector in &durable.forgotten {
            let at = sector * SECTOR;
            let end = (at + SECTOR).min(durable.content.len());
            if at < end {
                let mut kept = sector_of(&old, *sector).to_vec();
                kept.resize(end - at, 0);
                durable.content[at..end].copy_from_slice(&kept);
            }
        }
        true
    }

    /// Judges a write; the error it fails with.
    fn write(&mut self, fd: c_int, length: usize, offset: usize) -> Option<i32> {
        let link = PathBuf::from(format!("/proc/self/fd/{fd}"));
        let (host, path) = self.host_of(&fs::read_link(&link).ok()?)?;
        if !path.iter().any(|part| part == "wal") {
            return None;
        }
        match self.faults.get_mut(&host) {
            Some(Fault::Write) => {
                self.faults.remove(&host);
                return Some(libc::EIO);
            }
            Some(Fault::Full(0)) => drop(self.faults.remove(&host)),
            Some(Fault::Full(left)) => {
                *left -= 1;
                return Some(libc::ENOSPC);
            }
            _ => {}
        }
        let inode = fs::metadata(&link).ok()?.ino();
        if let Some(durable) = self.files.get_mut(&inode) {
            let end = (offset + length).div_ceil(SECTOR);
            durable.forgotten.retain(|sector| !(offset / SECTOR..end).contains(sector));
        }
        None
    }
}

fn sector_of(content: &[u8], sector: usize) -> &[u8] {
    let at = (sector * SECTOR).min(content.len());
    &content[at..(at + SECTOR).min(content.len())]
}

/// Names in a directory, each with its inode and whether it is a directory.
fn list(dir: &Path) -> BTreeMap<OsString, (u64, bool)> {
    let items = fs::read_dir(dir).into_iter().flatten().flatten();
    items
        .filter_map(|item| Some((item.file_name(), item.metadata().ok().map(|meta| (meta.ino(), meta.is_dir()))?)))
        .collect()
}

/// Random numbers for one path: the files of RocksDB that differ between runs must not change the others.
fn seeded(seed: u64, path: &Path) -> Random {
    Random::new(seed ^ (u64::from(crc32c::crc32c(path.as_os_str().as_encoded_bytes())) << 16))
}

fn fail(error: i32) -> c_int {
    unsafe { *libc::__errno_location() = error };
    -1
}

/// Passes a sync on, and records it. The simulated disks lie in memory.
fn sync(number: i64, fd: c_int) -> c_int {
    if !USED.load(Ordering::Relaxed) {
        return c_int::try_from(pass!(number, fd)).unwrap_or(-1);
    }
    let synced = lock().as_mut().is_none_or(|disks| disks.sync(fd));
    if synced { 0 } else { fail(libc::EIO) }
}

#[unsafe(no_mangle)]
extern "C" fn fsync(fd: c_int) -> c_int {
    sync(libc::SYS_fsync, fd)
}

#[unsafe(no_mangle)]
extern "C" fn fdatasync(fd: c_int) -> c_int {
    sync(libc::SYS_fdatasync, fd)
}

#[unsafe(no_mangle)]
extern "C" fn pwrite64(fd: c_int, data: *const c_void, length: usize, offset: libc::off64_t) -> isize {
    if simulated::is_active()
        && let Some(disks) = lock().as_mut()
        && let Some(error) = disks.write(fd, length, usize::try_from(offset).unwrap_or(0))
    {
        return isize::try_from(fail(error)).unwrap_or(-1);
    }
    isize::try_from(pass!(libc::SYS_pwrite64, fd, data, length, offset)).unwrap_or(-1)
}

/// Copies a directory as it is, durable.
pub(super) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("mkdir");
    for item in fs::read_dir(from).into_iter().flatten().flatten() {
        let to = to.join(item.file_name());
        if item.path().is_dir() {
            copy(&item.path(), &to);
        } else {
            let content = fs::read(item.path()).expect("read");
            fs::write(&to, content).expect("write");
        }
    }
}

/// Makes everything below a directory durable.
pub(super) fn settle(dir: &Path) {
    for item in fs::read_dir(dir).into_iter().flatten().flatten() {
        if item.path().is_dir() {
            settle(&item.path());
        } else if let Ok(file) = fs::File::open(item.path()) {
            let _ = file.sync_all();
        }
    }
    if let Ok(dir) = fs::File::open(dir) {
        let _ = dir.sync_all();
    }
}
