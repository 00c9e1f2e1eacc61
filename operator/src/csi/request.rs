//! What the kubelet asks, checked before anything is done.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use jindofs_proto::csi::VolumeCapability;
use jindofs_proto::csi::volume_capability::AccessType;
use jindofs_proto::csi::volume_capability::access_mode::Mode;
use tonic::Status;

/// A field that must not be empty.
pub(super) fn given<'a>(value: &'a str, field: &str) -> Result<&'a str, Status> {
    if value.is_empty() { Err(Status::invalid_argument(format!("{field} is missing"))) } else { Ok(value) }
}

/// A path that must lie below a directory.
fn inside(value: &str, field: &str, directory: &Path, way_out: &str) -> Result<PathBuf, Status> {
    let path = PathBuf::from(given(value, field)?);
    let below = path.starts_with(directory) && path != directory;
    if below && !path.components().any(|part| part == Component::ParentDir) {
        return Ok(path);
    }
    let message = format!("{field} {value} is not below {}{way_out}", directory.display());
    Err(Status::invalid_argument(message))
}

/// Where the kubelet wants the volume. What is mounted outside of its directory would not be seen on the node.
pub(super) fn target(value: &str, kubelet: &Path) -> Result<PathBuf, Status> {
    inside(value, "target_path", kubelet, ", the kubelet's directory: see --kubelet-dir of the node plugin")
}

/// Whether a capability asks for reading only.
///
/// *Errors*: when it is missing, or asks for what a bind of a mount cannot give.
pub(super) fn reads_only(capability: Option<&VolumeCapability>) -> Result<bool, Status> {
    let capability = capability.ok_or_else(|| Status::invalid_argument("volume_capability is missing"))?;
    let options = match &capability.access_type {
        Some(AccessType::Block(_)) => {
            return Err(Status::invalid_argument("a Dataset is mounted, not used as a block device"));
        }
        Some(AccessType::Mount(mount)) => mount.mount_flags.as_slice(),
        None => &[],
    };
    if let Some(other) = options.iter().find(|option| !["ro", "rw"].contains(&option.as_str())) {
        let message =
            format!("the mount option {other:?} has no effect on a Dataset: ro and rw are the options it has");
        return Err(Status::invalid_argument(message));
    }
    let mode = capability.access_mode.as_ref().map(|mode| mode.mode());
    let reader = matches!(mode, Some(Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly));
    Ok(reader || options.iter().any(|option| option == "ro"))
}

/// Mount of the client, as the volume's attributes say: nothing outside of the directory of all mounts.
pub(super) fn source(context: &BTreeMap<String, String>, mounts: &Path) -> Result<PathBuf, Status> {
    let value = context.get("fluid_path").map_or("", String::as_str);
    inside(value, "volume_context[fluid_path]", mounts, ", where clients mount: see --mounts-dir of the node plugin")
}

/// Directory of the volume that is asked for; empty for all of it.
pub(super) fn below(context: &BTreeMap<String, String>) -> Result<PathBuf, Status> {
    let text = context.get("fluid_sub_path").map_or("", |text| text.trim_start_matches('/'));
    let path = PathBuf::from(text);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    let message = || format!("volume_context[fluid_sub_path] {text:?} leaves the volume");
    if plain { Ok(path) } else { Err(Status::invalid_argument(message())) }
}

#[cfg(test)]
mod tests {
    use jindofs_proto::csi::volume_capability::{AccessMode, BlockVolume, MountVolume};

    use super::*;

    fn context(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn refused<T: std::fmt::Debug>(asked: Result<T, Status>) {
        assert_eq!(asked.expect_err("refused").code(), tonic::Code::InvalidArgument);
    }

    #[test]
    fn a_volume_shows_nothing_but_mounts_of_clients() {
        let source = |path| source(&context(&[("fluid_path", path)]), Path::new("/runtime-mnt/jindo"));
        assert!(source("/runtime-mnt/jindo/default/demo/jindofs-fuse").is_ok());
        for bad in ["", "/etc", "/runtime-mnt/jindo", "/runtime-mnt/jindo/../../etc", "/runtime-mnt/jindofs"] {
            refused(source(bad));
        }
        assert_eq!(below(&context(&[("fluid_sub_path", "/a/b")])).expect("below"), Path::new("a/b"));
        refused(below(&context(&[("fluid_sub_path", "a/../../b")])));
    }

    #[test]
    fn a_target_lies_in_the_directory_of_the_kubelet() {
        let kubelet = Path::new("/var/lib/kubelet");
        assert!(target("/var/lib/kubelet/pods/a/volumes/b/mount", kubelet).is_ok());
        for bad in ["", "/", "/var/lib/kubelet", "/var/lib/kubelet/../x", "pods/a", "/var/lib/kubelets/a"] {
            refused(target(bad, kubelet));
        }
    }

    #[test]
    fn reading_only_is_asked_for_by_access_mode_or_option_and_other_options_are_refused() {
        let capability = |mode: Mode, options: &[&str]| VolumeCapability {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(AccessType::Mount(MountVolume {
                fs_type: String::new(),
                mount_flags: options.iter().map(|one| (*one).to_owned()).collect(),
            })),
        };
        for (mode, options, expected) in [
            (Mode::SingleNodeWriter, &[][..], false),
            (Mode::MultiNodeMultiWriter, &["rw"], false),
            (Mode::SingleNodeWriter, &["ro"], true),
            (Mode::MultiNodeReaderOnly, &[], true),
        ] {
            assert_eq!(reads_only(Some(&capability(mode, options))).expect("taken"), expected, "{mode:?} {options:?}");
        }
        refused(reads_only(Some(&capability(Mode::SingleNodeWriter, &["noatime"]))));
        let block = VolumeCapability { access_mode: None, access_type: Some(AccessType::Block(BlockVolume {})) };
        refused(reads_only(Some(&block)));
        refused(reads_only(None));
    }
}
