//! Under-storages that are gone: an error, and never a directory without entries.

use std::io;
use std::path::{Path, PathBuf};

use super::{Site, start};
use crate::support::cluster::PATIENCE;
use crate::support::{fuse_works, wait_for};

/// Names in a directory, or the errno of listing it.
fn listed(path: &Path) -> Result<Vec<String>, i32> {
    let list = || -> io::Result<Vec<String>> {
        std::fs::read_dir(path)?.map(|item| Ok(item?.file_name().to_string_lossy().into())).collect()
    };
    list().map_err(|error| error.raw_os_error().expect("an errno"))
}

/// Waits until a directory with one entry, which may be cached, is an error.
fn wait_lost(path: &Path) {
    wait_for(&format!("{} is lost", path.display()), PATIENCE, || match listed(path) {
        Ok(names) => {
            assert_eq!(names.len(), 1, "{} is listed as empty", path.display());
            None
        }
        Err(errno) => {
            assert_eq!(errno, libc::EIO, "{}", path.display());
            Some(())
        }
    });
}

fn states(site: &Site) -> Vec<(String, String)> {
    let rows: serde_json::Value = serde_json::from_slice(&site.ctl_ok(&["mount", "list", "-o", "json"])).expect("JSON");
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let mut states: Vec<_> =
        rows.as_array().expect("rows").iter().map(|row| (text(&row["path"]), text(&row["state"]))).collect();
    states.sort();
    states
}

/// Moves a directory away, and back.
struct Away<'a>(&'a Path, PathBuf);

impl<'a> Away<'a> {
    fn moved(path: &'a Path) -> Away<'a> {
        let away = path.with_extension("away");
        std::fs::rename(path, &away).expect("moved");
        Away(path, away)
    }

    fn back(self) {
        std::fs::rename(self.1, self.0).expect("moved back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_under_storage_that_vanished_is_an_error_and_no_empty_directory() {
    if !fuse_works("an_under_storage_that_vanished_is_an_error_and_no_empty_directory") {
        return;
    }
    let site = start(1, |_| {}).await;
    std::fs::create_dir(site.local.join("d")).expect("made");
    std::fs::write(site.local.join("d/f"), b"local").expect("written");
    site.put("d/f", b"object").await;
    let (local, s3) = (format!("local://{}", site.local.display()), "s3://bucket");
    site.ctl_ok(&["mount", "add", "/always-local", &local, "--meta-policy", "always"]);
    let mut add = vec!["mount", "add", "/always-s3", s3, "--meta-policy", "always"];
    let options = super::s3_options(&site.s3, &site.secret);
    options.iter().for_each(|option| add.extend(["-O", option]));
    site.ctl_ok(&add);
    assert_eq!(site.names("always-local/d").await, ["f"]);
    assert_eq!(site.names("always-s3/d").await, ["f"]);

    let bucket = site.dir.path().join("s3/bucket");
    let (local, s3) = (Away::moved(&site.local), Away::moved(&bucket));
    let mounts = ["always-local", "always-s3", "local", "s3"];
    for path in mounts.iter().flat_map(|mount| [(*mount).to_owned(), format!("{mount}/d")]) {
        tokio::task::block_in_place(|| wait_lost(&site.mnt.join(&path)));
    }
    let lost = |state: &str| mounts.iter().map(|mount| (format!("/{mount}"), state.to_owned())).collect::<Vec<_>>();
    assert_eq!(states(&site), lost("unavailable"));
    let available = r#"jindofs_ufs_available{ufs="s3://bucket"}"#;
    assert_eq!(site.cluster.metric("master-0", available), 0);

    local.back();
    s3.back();
    for mount in mounts {
        let directory = site.mnt.join(mount).join("d");
        let again = || std::fs::read_dir(&directory).ok()?.next()?.ok().filter(|found| found.file_name() == "f");
        tokio::task::block_in_place(|| wait_for("the directory is listed again", PATIENCE, again));
    }
    assert_eq!(states(&site), lost("available"));
    assert_eq!(site.cluster.metric("master-0", available), 1);
}
