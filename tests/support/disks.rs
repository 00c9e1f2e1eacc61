//! Disks of masters: copies of their directories, and clusters whose disks forget what was not made durable.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::cluster::Cluster;
use super::powercut::PowerCutFs;

/// Bytes that are read at once and, if all are zero, not written.
const COPY_BYTES: usize = 64 << 10;

/// Copies a directory with all below it. Zeros become holes, so that the unused rest of a log costs no disk.
pub fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("mkdir");
    for item in fs::read_dir(from).expect("list") {
        let item = item.expect("item");
        copy(&item.path(), &to.join(item.file_name()));
    }
}

/// Copies a file, or a directory with all below it.
pub fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        return copy_dir(from, to);
    }
    let (mut source, target) = (File::open(from).expect("open"), File::create(to).expect("create"));
    let mut block = vec![0; COPY_BYTES];
    let mut at = 0;
    loop {
        let count = source.read(&mut block).expect("read");
        if count == 0 {
            break;
        }
        if block[..count].iter().any(|byte| *byte != 0) {
            target.write_all_at(&block[..count], at).expect("write");
        }
        at += count as u64;
    }
    target.set_len(at).expect("length");
}

/// Removes a file, a directory with all below it, or nothing.
pub fn remove(path: &Path) {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    if let Err(error) = removed {
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{}: {error}", path.display());
    }
}

/// A part of a master's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Wal,
    State,
    Snapshots,
    Identity,
}

impl Part {
    pub const ALL: [Part; 4] = [Part::Wal, Part::State, Part::Snapshots, Part::Identity];

    /// Where it lies in the directory `meta`.
    pub fn below(self, meta: &Path) -> PathBuf {
        meta.join(match self {
            Part::Wal => "wal",
            Part::State => "state",
            Part::Snapshots => "snapshots",
            Part::Identity => "IDENTITY",
        })
    }

    /// Puts an empty file or directory in the place of the part, which must be missing.
    pub fn make_empty(self, meta: &Path) {
        let place = self.below(meta);
        match self {
            Part::Identity => fs::write(place, b"").expect("written"),
            _ => fs::create_dir(place).expect("made"),
        }
    }
}

/// A cluster whose masters each have a disk that forgets. The disks outlive the cluster: it is dropped first.
pub struct OnForgetfulDisks {
    pub cluster: Cluster,
    pub disks: Vec<PowerCutFs>,
    _dir: tempfile::TempDir,
}

impl OnForgetfulDisks {
    /// Starts `masters` masters, each with these variables in its environment.
    pub fn start(masters: usize, settings: &[(&str, &str)]) -> OnForgetfulDisks {
        let dir = tempfile::tempdir().expect("tempdir");
        let mounts: Vec<PathBuf> = (0..masters).map(|number| dir.path().join(number.to_string())).collect();
        let disks = mounts.iter().map(|mount| {
            fs::create_dir(mount).expect("mkdir");
            PowerCutFs::mount(mount).expect("mounted")
        });
        let disks = disks.collect();
        let cluster = Cluster::start_with(masters, |options| {
            options.meta_dirs = mounts.iter().map(|mount| mount.join("meta")).enumerate().collect();
            for number in 0..masters {
                let env = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
                options.env.insert(format!("master-{number}"), env);
            }
        });
        OnForgetfulDisks { cluster, disks, _dir: dir }
    }

    /// The disk below a master.
    pub fn disk(&self, name: &str) -> &PowerCutFs {
        let number = name.strip_prefix("master-").and_then(|number| number.parse::<usize>().ok());
        &self.disks[number.expect("the name of a master")]
    }

    /// Kills these masters and cuts their power; an odd seed tears what was not durable instead of dropping all of it.
    pub fn cut(&self, masters: &BTreeSet<usize>, seed: u64) {
        for number in masters {
            self.cluster.dev.kill(&format!("master-{number}")).expect("killed");
        }
        for number in masters {
            let dropped = if seed.is_multiple_of(2) {
                self.disks[*number].power_cut()
            } else {
                self.disks[*number].power_cut_torn(seed)
            };
            println!("master-{number}: {dropped:?}");
        }
    }

    pub fn restart(&self, masters: &BTreeSet<usize>) {
        for number in masters {
            self.cluster.dev.launch(&format!("master-{number}")).expect("launched");
        }
    }
}
