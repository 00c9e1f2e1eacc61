//! Uris and options, in Fluid's names. Secrets are never values: they are `file:PATH`, read where they are used.

use std::collections::BTreeMap;

use crate::error::{Error, ErrorKind, Result};

/// Options of one mount, by name.
pub type Options = BTreeMap<String, String>;

/// Options of `s3://`, whether each is a secret, and what it means.
const S3: &[(&str, bool)] = &[
    ("fs.s3.endpoint", false),
    ("fs.s3.region", false),
    ("fs.s3.accessKeyId", false),
    ("fs.s3.accessKeySecret", true),
    ("fs.s3.securityToken", true),
    ("fs.s3.virtualHostStyle", false),
];
/// Options of every object store: who its files belong to, as they know no owner.
const OWNERS: &[&str] = &["fs.ufs.uid", "fs.ufs.gid", "fs.ufs.fileMode", "fs.ufs.dirMode"];

/// Where an under-storage lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// An absolute directory.
    Local(std::path::PathBuf),
    /// A bucket and the prefix in it, without slashes at its ends.
    S3 { bucket: String, prefix: String },
}

/// Owner and mode given to the entries of an object store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) file_mode: u32,
    pub(super) dir_mode: u32,
}

/// Checks uri and options without touching anything.
///
/// *Errors*: `InvalidArgument` with what to write instead.
pub fn validate(uri: &str, options: &Options) -> Result<()> {
    let place = parse(uri)?;
    let known: Vec<(&str, bool)> = match place {
        Place::Local(_) => Vec::new(),
        Place::S3 { .. } => S3.iter().copied().chain(OWNERS.iter().map(|name| (*name, false))).collect(),
    };
    for (name, value) in options {
        let Some((_, secret)) = known.iter().find(|(one, _)| one == name) else {
            let names: Vec<&str> = known.iter().map(|(one, _)| *one).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            return Err(Error::invalid(format!("option {name} is not known for {uri}: it takes {names}")));
        };
        if *secret && !value.starts_with("file:") {
            return Err(Error::invalid(format!(
                "option {name} is a secret given inline: write it to a file and give {name}=file:PATH"
            )));
        }
    }
    if let Place::S3 { .. } = place {
        for pair in [("fs.s3.accessKeyId", "fs.s3.accessKeySecret"), ("fs.s3.accessKeySecret", "fs.s3.accessKeyId")] {
            if options.contains_key(pair.0) && !options.contains_key(pair.1) {
                return Err(Error::invalid(format!("option {} is given without {}", pair.0, pair.1)));
            }
        }
        if let Some(endpoint) = options.get("fs.s3.endpoint")
            && !["http://", "https://"].iter().any(|scheme| endpoint.starts_with(scheme))
        {
            return Err(Error::invalid(format!("fs.s3.endpoint={endpoint}: write http://HOST:PORT or https://HOST")));
        }
        owner(options)?;
    }
    Ok(())
}

/// Understands a uri.
pub(super) fn parse(uri: &str) -> Result<Place> {
    let Some((scheme, rest)) = uri.split_once("://") else {
        return Err(Error::invalid(format!("{uri:?} is no uri: write local:///DIRECTORY or s3://BUCKET/PREFIX")));
    };
    match scheme {
        "local" if rest.starts_with('/') => Ok(Place::Local(rest.into())),
        "local" => Err(Error::invalid(format!("{uri}: the directory must be absolute, as in local:///data"))),
        "s3" => {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            if bucket.is_empty() {
                return Err(Error::invalid(format!("{uri}: the bucket is missing, as in s3://BUCKET/PREFIX")));
            }
            let prefix = prefix.trim_matches('/');
            if prefix.split('/').any(|part| matches!(part, "." | "..")) || prefix.contains("//") {
                return Err(Error::invalid(format!("{uri}: the prefix must not hold '.', '..' or '//'")));
            }
            Ok(Place::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
        }
        other => {
            Err(Error::invalid(format!("{uri}: under-storage of scheme {other} is not supported: local and s3 are")))
        }
    }
}

/// The value of an option, read from its file where it is one.
///
/// *Errors*: names the option and the file, never the value.
pub(super) fn value(options: &Options, name: &str) -> Result<Option<String>> {
    let Some(value) = options.get(name) else { return Ok(None) };
    let Some(path) = value.strip_prefix("file:") else { return Ok(Some(value.clone())) };
    let read = std::fs::read_to_string(path).map_err(|error| {
        Error::new(ErrorKind::FailedPrecondition, format!("option {name}: {path} cannot be read: {error}"))
    })?;
    Ok(Some(read.trim().to_owned()))
}

/// What the secrets of these options are now, folded to a number, to notice a rotation.
pub(super) fn secrets_fingerprint(options: &Options) -> u64 {
    let files = options.values().filter_map(|value| value.strip_prefix("file:"));
    let content: Vec<u8> = files.flat_map(|path| std::fs::read(path).unwrap_or_default()).collect();
    crate::types::version_of(&content)
}

/// Owner and modes from the options: root, 0644 and 0755 unless given.
pub(super) fn owner(options: &Options) -> Result<Owner> {
    let number = |name: &str, radix: u32, default: u32| match options.get(name) {
        None => Ok(default),
        Some(text) => {
            u32::from_str_radix(text, radix).ok().filter(|value| radix == 10 || *value <= 0o7777).ok_or_else(|| {
                Error::invalid(format!(
                    "{name}={text}: write {}",
                    if radix == 8 { "octal permission bits" } else { "a number" }
                ))
            })
        }
    };
    Ok(Owner {
        uid: number("fs.ufs.uid", 10, 0)?,
        gid: number("fs.ufs.gid", 10, 0)?,
        file_mode: number("fs.ufs.fileMode", 8, 0o644)?,
        dir_mode: number("fs.ufs.dirMode", 8, 0o755)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pairs: &[(&str, &str)]) -> Options {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn refusal(uri: &str, pairs: &[(&str, &str)]) -> String {
        validate(uri, &options(pairs)).expect_err("refused").message
    }

    #[test]
    fn an_inline_secret_is_refused_without_being_repeated() {
        let message = refusal("s3://b", &[("fs.s3.accessKeyId", "id"), ("fs.s3.accessKeySecret", "hunter2")]);
        assert!(message.contains("file:PATH") && !message.contains("hunter2"), "{message}");
    }

    #[test]
    fn bad_uris_and_options_say_what_to_write() {
        assert!(refusal("hdfs://n/x", &[]).contains("not supported"));
        assert!(refusal("/data", &[]).contains("local:///"));
        assert!(refusal("local://data", &[]).contains("absolute"));
        assert!(refusal("s3:///x", &[]).contains("bucket"));
        assert!(refusal("s3://b", &[("fs.s3.end-point", "x")]).contains("fs.s3.endpoint"));
        assert!(refusal("s3://b", &[("fs.s3.endpoint", "host:9000")]).contains("http://"));
        assert!(refusal("s3://b", &[("fs.s3.accessKeyId", "id")]).contains("accessKeySecret"));
        assert!(refusal("s3://b", &[("fs.ufs.fileMode", "9")]).contains("octal"));
        assert!(refusal("local:///x", &[("fs.s3.region", "x")]).contains("takes none"));
    }

    #[test]
    fn a_secret_is_read_from_its_file_and_its_rotation_is_noticed() {
        let file = tempfile::NamedTempFile::new().expect("tempfile");
        std::fs::write(file.path(), "one\n").expect("write");
        let secret = format!("file:{}", file.path().display());
        let options = options(&[("fs.s3.accessKeySecret", &secret)]);
        assert_eq!(value(&options, "fs.s3.accessKeySecret").expect("read").as_deref(), Some("one"));
        let before = secrets_fingerprint(&options);
        std::fs::write(file.path(), "two\n").expect("write");
        assert_ne!(secrets_fingerprint(&options), before);
    }
}
