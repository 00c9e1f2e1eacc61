//! Uris and options, in Fluid's names. Secrets are never values: they are `file:PATH`, read where they are used.

use std::collections::BTreeMap;

use crate::config::meta_policy::is_meta_policy;
use crate::error::{Error, ErrorKind, Result};
use crate::types::address::{Endpoint, without_credentials};

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
/// As [`S3`], of `oss://`.
const OSS: &[(&str, bool)] = &[
    ("fs.oss.endpoint", false),
    ("fs.oss.accessKeyId", false),
    ("fs.oss.accessKeySecret", true),
    ("fs.oss.securityToken", true),
    ("fs.oss.addressingStyle", false),
    ("fs.oss.roleArn", false),
    ("fs.oss.assumeRoleArn", false),
    ("fs.oss.oidcProviderArn", false),
    ("fs.oss.oidcTokenFile", false),
    ("fs.oss.stsEndpoint", false),
];
/// Options of every object store: who its files belong to, as they know no owner.
const OWNERS: &[&str] = &["fs.ufs.uid", "fs.ufs.gid", "fs.ufs.fileMode", "fs.ufs.dirMode"];

/// Where an under-storage lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StorageLocation {
    /// An absolute directory.
    Local(std::path::PathBuf),
    /// A bucket and the prefix in it, without slashes at its ends; the endpoint if the uri names it.
    Bucket { store: Store, bucket: String, prefix: String, endpoint: Option<String> },
}

/// Kinds of object stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Store {
    /// Any with the protocol of S3.
    S3,
    /// Alibaba Cloud's.
    Oss,
}

impl Store {
    /// Its options: names, and whether each is a secret.
    fn options(self) -> &'static [(&'static str, bool)] {
        match self {
            Store::S3 => S3,
            Store::Oss => OSS,
        }
    }

    /// The options that hold the key's id and its secret.
    fn keys(self) -> (&'static str, &'static str) {
        match self {
            Store::S3 => ("fs.s3.accessKeyId", "fs.s3.accessKeySecret"),
            Store::Oss => ("fs.oss.accessKeyId", "fs.oss.accessKeySecret"),
        }
    }
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
        StorageLocation::Local(_) => Vec::new(),
        StorageLocation::Bucket { store, .. } => {
            store.options().iter().copied().chain(OWNERS.iter().map(|name| (*name, false))).collect()
        }
    };
    for (name, value) in options {
        if value.trim().is_empty() {
            return Err(Error::invalid(format!("option {name} is empty: give it a value, or leave it out")));
        }
        if value.strip_prefix("file:").is_some_and(|path| !path.starts_with('/')) {
            return Err(Error::invalid(format!(
                "option {name}={value}: give the absolute path of the file, as every master and worker reads it"
            )));
        }
        if is_meta_policy(name, value).map_err(Error::invalid)? {
            continue;
        }
        let Some((_, secret)) = known.iter().find(|(one, _)| one == name) else {
            let names: Vec<&str> = known.iter().map(|(one, _)| *one).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let uri = without_credentials(uri);
            return Err(Error::invalid(format!("option {name} is not known for {uri}: it takes {names}")));
        };
        if *secret && !value.starts_with("file:") {
            return Err(Error::invalid(format!(
                "option {name} is a secret given inline: write it to a file and give {name}=file:PATH"
            )));
        }
    }
    if let StorageLocation::Bucket { store, endpoint, .. } = place {
        let (id, secret) = store.keys();
        for (one, other) in [(id, secret), (secret, id)] {
            if options.contains_key(one) && !options.contains_key(other) {
                return Err(Error::invalid(format!("option {one} is given without {other}")));
            }
        }
        match store {
            Store::S3 => check_s3(options)?,
            Store::Oss => {
                oss_endpoint(uri, endpoint, options)?;
                check_role(options)?;
            }
        }
        owner(options)?;
    }
    Ok(())
}

/// The endpoint that an option gives; without a scheme it is `default`.
fn endpoint_of(name: &str, text: &str, default: Option<&'static str>) -> Result<Endpoint> {
    Endpoint::parse(text, default).map_err(|why| Error::invalid(format!("option {name}: {why}")))
}

fn check_s3(options: &Options) -> Result<()> {
    let style = "fs.s3.virtualHostStyle";
    let virtual_host = match options.get(style).map(String::as_str) {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => return Err(Error::invalid(format!("option {style}={other}: write true or false"))),
    };
    let Some(endpoint) = options.get("fs.s3.endpoint") else { return Ok(()) };
    let endpoint = endpoint_of("fs.s3.endpoint", endpoint, None)?;
    if virtual_host && endpoint.is_ip() {
        return Err(no_names_below(&endpoint, &format!("{style}=true"), &format!("{style}=false")));
    }
    Ok(())
}

/// A bucket cannot be a name below an IP address.
fn no_names_below(endpoint: &Endpoint, given: &str, instead: &str) -> Error {
    Error::invalid(format!(
        "option {given} puts the bucket's name before the host, but {endpoint} is an IP address: give the endpoint by a host \
         name, or {instead}"
    ))
}

/// A role is assumed by somebody: by keys, or by the token of a pod, which needs three options.
fn check_role(options: &Options) -> Result<()> {
    const TOKEN: [&str; 2] = ["fs.oss.oidcProviderArn", "fs.oss.oidcTokenFile"];
    let given = |name: &str| options.contains_key(name);
    let (role, keys) = (given("fs.oss.roleArn"), given("fs.oss.accessKeyId"));
    if role
        && !keys
        && let Some(name) = TOKEN.into_iter().find(|name| !given(name))
    {
        return Err(Error::invalid(format!(
            "fs.oss.roleArn needs {name}, or fs.oss.accessKeyId and fs.oss.accessKeySecret: nobody else can assume it"
        )));
    }
    let mut of_role = TOKEN.into_iter().chain(["fs.oss.assumeRoleArn", "fs.oss.stsEndpoint"]);
    if let Some(name) = of_role.find(|name| given(name) && !role) {
        return Err(Error::invalid(format!("{name} has no effect without fs.oss.roleArn: add it, or leave it out")));
    }
    if let Some(endpoint) = options.get("fs.oss.stsEndpoint") {
        endpoint_of("fs.oss.stsEndpoint", endpoint, Some("https"))?;
    }
    if keys && let Some(name) = TOKEN.into_iter().find(|name| given(name)) {
        return Err(Error::invalid(format!(
            "{name} has no effect beside fs.oss.accessKeyId: leave one of the two out"
        )));
    }
    Ok(())
}

/// Endpoint of an `oss://` uri, as an URL: from its option, else from the uri. `https` unless it says otherwise.
pub(super) fn oss_endpoint(uri: &str, named: Option<String>, options: &Options) -> Result<String> {
    if let Some(style) = options.get("fs.oss.addressingStyle")
        && !["virtual", "path", "cname"].contains(&style.as_str())
    {
        return Err(Error::invalid(format!("fs.oss.addressingStyle={style}: write virtual, path or cname")));
    }
    let endpoint = options.get("fs.oss.endpoint").cloned().or(named).ok_or_else(|| {
        Error::invalid(format!(
            "{uri}: option fs.oss.endpoint is missing, as in fs.oss.endpoint=oss-cn-beijing.aliyuncs.com"
        ))
    })?;
    let endpoint = endpoint_of("fs.oss.endpoint", &endpoint, Some("https"))?;
    if !endpoint.path.is_empty() {
        return Err(Error::invalid(format!("option fs.oss.endpoint={endpoint}: write a host, without bucket or path")));
    }
    let style = options.get("fs.oss.addressingStyle").map_or("virtual", String::as_str);
    if style == "virtual" && endpoint.is_ip() {
        return Err(no_names_below(&endpoint, "fs.oss.addressingStyle=virtual", "fs.oss.addressingStyle=path"));
    }
    Ok(endpoint.to_string())
}

/// Understands a uri.
pub(super) fn parse(uri: &str) -> Result<StorageLocation> {
    if uri.split_once("://").is_some_and(|(_, rest)| rest.split('/').next().is_some_and(|host| host.contains('@'))) {
        return Err(Error::invalid(format!(
            "{}: credentials have no place in a uri: give the keys by their options, as file:PATH",
            without_credentials(uri)
        )));
    }
    let Some((scheme, rest)) = uri.split_once("://") else {
        return Err(Error::invalid(format!(
            "{:?} is no uri: write local:///DIRECTORY, s3://BUCKET/PREFIX or oss://BUCKET/PREFIX",
            without_credentials(uri)
        )));
    };
    let shown = without_credentials(uri);
    match scheme {
        "local" if rest.starts_with('/') => Ok(StorageLocation::Local(rest.into())),
        "local" => Err(Error::invalid(format!("{shown}: the directory must be absolute, as in local:///data"))),
        "s3" => in_bucket(uri, Store::S3, rest),
        "oss" => in_bucket(uri, Store::Oss, rest),
        other => Err(Error::invalid(format!(
            "{shown}: under-storage of scheme {other} is not supported: local, s3 and oss are"
        ))),
    }
}

fn in_bucket(uri: &str, store: Store, rest: &str) -> Result<StorageLocation> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    // Names of OSS buckets have no dots: what follows one is the endpoint.
    let (bucket, endpoint) = match (store, bucket.split_once('.')) {
        (Store::Oss, Some((bucket, endpoint))) => (bucket, Some(endpoint.to_owned())),
        _ => (bucket, None),
    };
    // Whatever else stands there may be a key, which may hold a '/' itself.
    if !bucket.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')) {
        let shown = without_credentials(uri);
        return Err(Error::invalid(format!(
            "{shown}: a bucket's name is made of letters, digits, '.', '_' and '-'; keys are given by their options, as file:PATH"
        )));
    }
    if bucket.is_empty() {
        let scheme = uri.split(':').next().unwrap_or_default();
        return Err(Error::invalid(format!("{uri}: the bucket is missing, as in {scheme}://BUCKET/PREFIX")));
    }
    let prefix = prefix.trim_matches('/');
    if prefix.split('/').any(|part| matches!(part, "." | "..")) || prefix.contains("//") {
        return Err(Error::invalid(format!("{uri}: the prefix must not hold '.', '..' or '//'")));
    }
    Ok(StorageLocation::Bucket { store, bucket: bucket.to_owned(), prefix: prefix.to_owned(), endpoint })
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
    match read.trim() {
        "" => Err(Error::new(ErrorKind::FailedPrecondition, format!("option {name}: the file {path} is empty"))),
        value => Ok(Some(value.to_owned())),
    }
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
        assert!(refusal("s3://b", &[("fs.s3.region", " ")]).contains("fs.s3.region is empty"));
        assert!(refusal("s3://b", &[("fs.s3.virtualHostStyle", "yes")]).contains("true or false"));
        assert!(refusal("oss://b", &[("fs.oss.endpoint", "127.0.0.1:80")]).contains("fs.oss.addressingStyle=path"));
        let relative = [("fs.s3.accessKeyId", "id"), ("fs.s3.accessKeySecret", "file:key")];
        assert!(refusal("s3://b", &relative).contains("absolute path"));
        assert!(refusal("s3://b", &[("fs.s3.accessKeyId", "id")]).contains("accessKeySecret"));
        assert!(refusal("oss:///x", &[]).contains("oss://BUCKET"));
        assert!(refusal("oss://b/x", &[]).contains("fs.oss.endpoint is missing"));
        assert!(refusal("oss://b", &[("fs.oss.endpoint", "https://host/bucket")]).contains("without bucket"));
        assert!(refusal("oss://b.host", &[("fs.oss.addressingStyle", "p")]).contains("virtual, path or cname"));
        assert!(refusal("oss://b.host", &[("fs.oss.accessKeySecret", "x")]).contains("inline"));
        assert!(refusal("oss://b.host", &[("fs.oss.roleArn", "r")]).contains("needs fs.oss.oidcProviderArn"));
        assert!(refusal("oss://b.host", &[("fs.oss.stsEndpoint", "h")]).contains("without fs.oss.roleArn"));
        assert!(refusal("s3://b", &[("fs.ufs.fileMode", "9")]).contains("octal"));
        assert!(refusal("local:///x", &[("fs.s3.region", "x")]).contains("takes none"));
    }

    #[test]
    fn a_bucket_is_no_name_below_an_ip_address() {
        for host in ["http://127.0.0.1:9000", "http://[::1]:9000"] {
            let styled = |style| [("fs.s3.endpoint", host), ("fs.s3.virtualHostStyle", style)];
            let message = refusal("s3://b", &styled("true"));
            assert!(message.contains("fs.s3.virtualHostStyle=false") && message.contains(host), "{message}");
            validate("s3://b", &options(&styled("false"))).expect("path style");
        }
    }

    #[test]
    fn credentials_in_a_uri_or_an_endpoint_are_refused_without_being_repeated() {
        let endpoint = |value| [("fs.s3.endpoint", value), ("fs.s3.region", "x")];
        for message in [
            refusal("s3://id:hunter2@b/x", &[]),
            refusal("http://id:hunter2@host/x", &[]),
            refusal("local://id:hunter2@b/x", &[("fs.s3.region", "x")]),
            refusal("s3://id:hun/ter2/hunter2@b/x", &[]),
            refusal("oss://id:hun/hunter2@b.host/x", &[]),
            refusal("local://id:hun/hunter2@b/x", &[]),
            refusal("id:hunter2@b", &[]),
            refusal("s3://b", &endpoint("http://id:hunter2@host:9000")),
            refusal("s3://b", &endpoint("id:hunter2@host")),
            refusal("oss://b", &[("fs.oss.endpoint", "https://id:hunter2@host")]),
            refusal("oss://id:hunter2@b.host/x", &[]),
        ] {
            assert!(message.contains("***@") && !message.contains("hunter2"), "{message}");
        }
    }

    #[test]
    fn the_endpoint_of_oss_comes_from_its_option_or_from_the_uri() {
        let endpoint = |uri: &str, pairs: &[(&str, &str)]| {
            let options = options(pairs);
            let StorageLocation::Bucket { endpoint, bucket, prefix, .. } = parse(uri).expect("a place") else {
                panic!("a bucket")
            };
            (bucket, prefix, oss_endpoint(uri, endpoint, &options).expect("an endpoint"))
        };
        let expected = |endpoint: &str| ("b".to_owned(), "d/e".to_owned(), endpoint.to_owned());
        assert_eq!(endpoint("oss://b.oss-x.aliyuncs.com/d/e/", &[]), expected("https://oss-x.aliyuncs.com"));
        assert_eq!(endpoint("oss://b/d/e", &[("fs.oss.endpoint", "http://h:1")]), expected("http://h:1"));
        assert_eq!(
            endpoint("oss://b/d/e", &[("fs.oss.endpoint", "oss-x-internal.aliyuncs.com")]).2,
            "https://oss-x-internal.aliyuncs.com"
        );
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
