//! How upstream's file says that a bucket is reached, in our options.

use std::path::Path;

use super::cfg::{COMMON, Cfg};
use crate::error::{Error, Result};
use crate::ufs::Options;

/// A value of `provider.endpoint`: a directory with a file for each part of the key.
const SECRETS: &str = "secrets://";
/// Files in it, and the last word of our option.
const FILES: [(&str, &str); 3] =
    [("AccessKeyId", "accessKeyId"), ("AccessKeySecret", "accessKeySecret"), ("SecurityToken", "securityToken")];

/// Options of a mount of `uri`.
///
/// *Errors*: when keys stand in the file itself: they would be copied into the namespace, for everybody to read.
pub(super) fn options(cfg: &Cfg, uri: &str) -> Result<Options> {
    let mut options = Options::new();
    let Some((scheme @ ("oss" | "s3"), rest)) = uri.split_once("://") else { return Ok(options) };
    let bucket = rest.split('/').next().unwrap_or_default();
    // What is said of a bucket goes before what is said of all.
    let said = |name: &str| {
        let own = cfg.get(COMMON, &format!("jindocache.{scheme}.bucket.{bucket}.{name}"));
        own.or_else(|| cfg.get(COMMON, &format!("jindocache.{scheme}.{name}")))
    };
    for name in ["endpoint", "region"] {
        if let Some(value) = said(name).filter(|_| scheme == "s3" || name == "endpoint") {
            options.insert(format!("fs.{scheme}.{name}"), value.to_owned());
        }
    }
    if said("accessKeyId").is_some() || said("accessKeySecret").is_some() {
        return Err(Error::invalid(format!(
            "the keys of {uri} stand in the settings: put them into a Secret, and name it in encryptOptions of the Dataset"
        )));
    }
    if let Some(directory) = said("provider.endpoint").and_then(|value| value.strip_prefix(SECRETS)) {
        for (file, name) in FILES {
            let path = Path::new(directory).join(file);
            if path.exists() {
                options.insert(format!("fs.{scheme}.{name}"), format!("file:{}", path.display()));
            }
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cfg(lines: &str) -> Cfg {
        Cfg::parse(&format!("[jindocache-common]\n{lines}")).expect("good")
    }

    #[test]
    fn a_bucket_is_reached_as_is_said_of_it_before_what_is_said_of_all_with_keys_by_their_files() {
        let dir = tempfile::tempdir().expect("tempdir");
        for file in ["AccessKeyId", "AccessKeySecret"] {
            std::fs::write(dir.path().join(file), "x").expect("written");
        }
        let at = dir.path().display();
        let cfg = cfg(&format!(
            "jindocache.oss.endpoint = http://all\njindocache.oss.bucket.guide.endpoint = http://guide\n\
             jindocache.oss.provider.endpoint = secrets:///elsewhere/\n\
             jindocache.oss.bucket.guide.provider.endpoint = secrets://{at}/\n"
        ));
        let options = options(&cfg, "oss://guide/data").expect("options");
        let expected = [
            ("fs.oss.accessKeyId".to_owned(), format!("file:{at}/AccessKeyId")),
            ("fs.oss.accessKeySecret".to_owned(), format!("file:{at}/AccessKeySecret")),
            ("fs.oss.endpoint".to_owned(), "http://guide".to_owned()),
        ];
        assert_eq!(options, expected.into());
        let other = super::options(&cfg, "oss://other").expect("options");
        assert_eq!(other, [("fs.oss.endpoint".to_owned(), "http://all".to_owned())].into());
    }

    #[test]
    fn s3_has_a_region_too_and_local_directories_have_no_options() {
        let cfg = cfg("jindocache.s3.endpoint = http://minio:9000\njindocache.s3.region = eu\n");
        let s3 = options(&cfg, "s3://b/x").expect("options");
        assert_eq!((s3["fs.s3.endpoint"].as_str(), s3["fs.s3.region"].as_str()), ("http://minio:9000", "eu"));
        assert!(options(&cfg, "local:///data").expect("options").is_empty());
    }

    #[test]
    fn keys_in_the_file_itself_are_refused_without_being_repeated() {
        let cfg = cfg("jindocache.oss.endpoint = http://h\njindocache.oss.accessKeySecret = hunter2\n");
        let error = options(&cfg, "oss://b").expect_err("refused");
        assert!(error.message.contains("encryptOptions") && !error.message.contains("hunter2"), "{error}");
    }
}
