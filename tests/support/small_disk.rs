//! Disks of a few megabytes that tests fill.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system in memory, gone when this is dropped.
pub struct SmallDisk(pub PathBuf);

impl SmallDisk {
    pub fn at(path: &Path, size: &str) -> SmallDisk {
        std::fs::create_dir_all(path).expect("a place for it");
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "small"]).arg(path);
        assert!(mounted.status().expect("mount runs").success());
        SmallDisk(path.to_owned())
    }

    /// Takes all room but so many bytes.
    pub fn fill_but(&self, room: usize) {
        let mut junk = File::create(self.0.join("junk")).expect("made");
        for step in [vec![1; 1 << 20], vec![1; 4096]] {
            while junk.write_all(&step).is_ok() {}
        }
        let length = junk.metadata().expect("stat").len();
        junk.set_len(length - room as u64).expect("shorter");
    }

    pub fn make_room(&self) {
        std::fs::remove_file(self.0.join("junk")).expect("removed");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}
