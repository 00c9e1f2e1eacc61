//! The mount table of the masters, made to be as the Dataset says, also while it is in use.

use jindofs_proto::v1::Mount;

use super::masters::{Change, Masters};
use super::status::NotReady;
use crate::desired::{Input, mount_table};

/// What leads from `now` to `wanted`; what is taken away first.
fn changes(now: &[Mount], wanted: Vec<Mount>) -> Vec<Change> {
    let same = |a: &Mount, b: &Mount| a.path == b.path && a.ufs_uri.trim_end_matches('/') == b.ufs_uri;
    let mut changes: Vec<Change> = now
        .iter()
        .filter(|old| !wanted.iter().any(|new| same(old, new)))
        .map(|old| Change::Unmount(old.path.to_vec()))
        .collect();
    for new in wanted {
        match now.iter().find(|old| same(old, &new)) {
            None => changes.push(Change::Mount(new)),
            Some(old)
                if old.options != new.options
                    || old.meta_policy != new.meta_policy
                    || old.read_only != new.read_only =>
            {
                changes.push(Change::Options(new));
            }
            Some(_) => {}
        }
    }
    changes
}

/// Makes the table be as the Dataset says.
pub(super) async fn apply(input: &Input<'_>, masters: &Masters) -> Result<(), NotReady> {
    let now = masters.mounts().await.map_err(|why| NotReady::passing("MastersNotReady", why))?;
    for change in changes(&now, mount_table(input)) {
        let what = match &change {
            Change::Mount(mount) | Change::Options(mount) => {
                format!("{} at {}", mount.ufs_uri, String::from_utf8_lossy(&mount.path))
            }
            Change::Unmount(path) => format!("the mount at {}", String::from_utf8_lossy(path)),
        };
        tracing::info!(name = input.names.name, ?change, "the mount table is changed");
        masters.change(change).await.map_err(|why| NotReady::new("RuntimeMountUfsFailed", format!("{what}: {why}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use jindofs_proto::v1::MetaPolicy;

    use super::*;
    use crate::crd::{Dataset, JindoRuntime};

    fn mount(path: &'static str, uri: &str) -> Mount {
        Mount { path: path.as_bytes().into(), ufs_uri: uri.to_owned(), ..Mount::default() }
    }

    #[test]
    fn a_mount_elsewhere_is_replaced_and_one_with_new_options_is_changed() {
        let now = [mount("/a", "s3://a"), mount("/b", "s3://b/"), mount("/c", "s3://c")];
        let mut b = mount("/b", "s3://b");
        b.options.insert("fs.s3.region".to_owned(), "eu".to_owned());
        let changes = changes(&now, vec![mount("/a", "s3://other"), b, mount("/d", "s3://d")]);
        let told: Vec<String> = changes
            .iter()
            .map(|change| match change {
                Change::Mount(mount) => format!("+{}", mount.ufs_uri),
                Change::Options(mount) => format!("~{}", mount.ufs_uri),
                Change::Unmount(path) => format!("-{}", String::from_utf8_lossy(path)),
            })
            .collect();
        assert_eq!(told, ["-/a", "-/c", "+s3://other", "~s3://b", "+s3://d"]);
    }

    #[test]
    fn a_mount_is_not_changed_again_whatever_its_policies_are() {
        let sample = include_str!("../../../deploy/samples/dataset.yaml").split_once("\n---\n").expect("two documents");
        let runtime: JindoRuntime = serde_saphyr::from_str(sample.1).expect("a JindoRuntime");
        for (policies, field, option) in [
            (&[][..], MetaPolicy::Once, None),
            (&[("metaPolicy", "ALWAYS")], MetaPolicy::Always, None),
            (&[("metaPolicy", "often")], MetaPolicy::Once, None),
            (&[("metaPolicy", "30s")], MetaPolicy::Always, Some("30s")),
            (&[("metaPolicy:/sub", "30s")], MetaPolicy::Once, None),
            (&[("metaPolicy", "10M"), ("metaPolicy:/sub", "once")], MetaPolicy::Always, Some("10M")),
        ] {
            let mut dataset: Dataset = serde_saphyr::from_str(sample.0).expect("a Dataset");
            for (name, policy) in policies {
                dataset.spec.mounts[0].options.insert((*name).to_owned(), (*policy).to_owned());
            }
            let input = Input::new(&dataset, &runtime, "i");
            let wanted = mount_table(&input);
            assert_eq!(wanted[0].meta_policy(), field, "{policies:?}");
            assert_eq!(wanted[0].options.get("metaPolicy").map(String::as_str), option, "{policies:?}");
            let sub = policies.iter().find(|(name, _)| name.contains('/')).map(|(_, policy)| *policy);
            assert_eq!(wanted[0].options.get("metaPolicy:/sub").map(String::as_str), sub, "{policies:?}");
            // Masters record a mount as it is asked for, with numbers of their own.
            let now: Vec<_> = wanted.into_iter().map(|asked| Mount { id: 1, root_inode: 2, ..asked }).collect();
            let changes = changes(&now, mount_table(&input));
            assert!(changes.is_empty(), "{policies:?}: {changes:?}");
        }
    }
}
