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

    /// Takes what is free now but so many bytes. What a process gives back meanwhile stays free.
    pub fn fill_but(&self, room: usize) {
        let stat = rustix::fs::statvfs(&self.0).expect("statvfs");
        let mut missing = usize::try_from(stat.f_bavail * stat.f_frsize).expect("a small disk").saturating_sub(room);
        let mut junk = File::create(self.0.join("junk")).expect("made");
        let step = vec![1; 1 << 20];
        while let Ok(count @ 1..) = junk.write(&step[..missing.min(step.len())]) {
            missing -= count;
        }
    }

    /// Takes all the room that is left, or gives it back: a disk of `size`. Nothing is written to it.
    pub fn set_full(&self, full: bool, size: &str) {
        let stat = rustix::fs::statvfs(&self.0).expect("statvfs");
        let used = ((stat.f_blocks - stat.f_bfree) * stat.f_frsize).max(stat.f_frsize);
        let options = if full { format!("remount,size={used}") } else { format!("remount,size={size}") };
        let remounted = Command::new("mount").args(["-o", &options]).arg(&self.0).status().expect("mount runs");
        assert!(remounted.success(), "{options}");
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
