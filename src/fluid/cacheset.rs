//! Upstream's sets of cache policies, one for each under-storage.

use std::path::Path;

use jindofs_proto::v1::MetaPolicy;
use serde::Deserialize;

use crate::error::{Error, Result};

/// Where Fluid puts them in the pods of masters.
pub(super) const FILE: &str = "/cacheset.xml";

#[derive(Debug, Deserialize)]
struct CacheSets {
    #[serde(rename = "cacheset", default)]
    all: Vec<CacheSet>,
}

/// Of one under-storage. What else upstream's file says has one value here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CacheSet {
    path: String,
    meta_policy: Option<Kind>,
}

#[derive(Debug, Deserialize)]
struct Kind {
    r#type: String,
}

/// When metadata is read anew, by the uri of the under-storage.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Policies(Vec<(String, MetaPolicy)>);

impl Policies {
    /// Reads a file; one that is not there says nothing.
    ///
    /// *Errors*: when it cannot be read or understood.
    pub(super) fn read(path: &Path) -> Result<Policies> {
        match std::fs::read_to_string(path) {
            Ok(text) => Policies::parse(&text).map_err(|error| error.context(path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Policies::default()),
            Err(error) => Err(Error::from(error).context(path.display())),
        }
    }

    fn parse(text: &str) -> Result<Policies> {
        let sets: CacheSets = quick_xml::de::from_str(text).map_err(|error| Error::invalid(error.to_string()))?;
        let policy = |set: CacheSet| match set.meta_policy.map(|kind| kind.r#type.to_ascii_uppercase()).as_deref() {
            Some("ONCE") | None => Ok((set.path, MetaPolicy::Once)),
            Some("ALWAYS") => Ok((set.path, MetaPolicy::Always)),
            Some(other) => Err(Error::invalid(format!("metaPolicy {other} of {}: write ONCE or ALWAYS", set.path))),
        };
        sets.all.into_iter().map(policy).collect::<Result<_>>().map(Policies)
    }

    /// Of an under-storage; none if nothing is said.
    pub(super) fn of(&self, uri: &str) -> Option<MetaPolicy> {
        let same = |path: &str| path.trim_end_matches('/') == uri.trim_end_matches('/');
        self.0.iter().find(|(path, _)| same(path)).map(|(_, policy)| *policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_of_an_under_storage_is_found_by_its_uri() {
        let text = r#"<?xml version="1.0" encoding="UTF-8"?>
            <cachesets>
              <cacheset><name>a</name><path>oss://guide/data</path><cacheStrategy>DISTRIBUTED</cacheStrategy>
                <metaPolicy><type>ALWAYS</type></metaPolicy><readCacheReplica>1</readCacheReplica></cacheset>
              <cacheset><name>b</name><path>oss://other/</path></cacheset>
            </cachesets>"#;
        let policies = Policies::parse(text).expect("good");
        assert_eq!(policies.of("oss://guide/data/"), Some(MetaPolicy::Always));
        assert_eq!(policies.of("oss://other"), Some(MetaPolicy::Once));
        assert_eq!(policies.of("oss://third"), None);
        assert_eq!(Policies::parse("<cachesets></cachesets>").expect("good"), Policies::default());
    }

    #[test]
    fn a_policy_or_a_file_that_is_none_is_refused() {
        let bad =
            "<cachesets><cacheset><path>p</path><metaPolicy><type>NEVER</type></metaPolicy></cacheset></cachesets>";
        assert!(Policies::parse(bad).expect_err("refused").message.contains("ONCE or ALWAYS"));
        assert!(Policies::parse("<cachesets><cacheset>").is_err());
    }
}
