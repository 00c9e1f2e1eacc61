//! When metadata of an under-storage is read again: `ONCE`, `ALWAYS`, or after an interval; for a mount and for paths below it.
//!
//! The field `meta_policy` of a mount holds `ONCE` or `ALWAYS`. An interval, and a policy for a path, is an option of the mount; an
//! option for the whole mount takes precedence over the field. Masters record both as they are asked for, so that a client that
//! compares the mount table with what it wants finds no difference. A release that does not know these options refuses a mount that
//! has them, and takes such a mount for one that has only the field: intervals are for clusters of which every process is upgraded.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::time::Duration;

use jindofs_proto::v1::{MetaPolicy, Mount};

use super::value::duration;

/// Option for the whole mount; followed by ':' and an absolute path below the mount, for what is at and below that path.
pub const META_POLICY: &str = "metaPolicy";

/// When metadata is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefreshPolicy {
    /// Never, unless it is asked for or a reader finds another version.
    Once,
    /// On every access.
    Always,
    /// On an access after this time.
    After(Duration),
}

impl RefreshPolicy {
    /// Parses a policy, in upper or lower case. An interval needs a unit.
    ///
    /// *Errors*: what to write instead.
    pub fn parse(text: &str) -> Result<RefreshPolicy, String> {
        let text = text.trim().to_ascii_lowercase();
        match text.as_str() {
            "once" => Ok(RefreshPolicy::Once),
            "always" => Ok(RefreshPolicy::Always),
            number if !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) => {
                Err(format!("{number:?} has no unit: write a time as 30s or 10m"))
            }
            // Its error says what is wrong with a time, as that it is too long.
            interval if interval.starts_with(|first: char| first.is_ascii_digit()) => Ok(duration(interval)?.into()),
            _ => Err(format!("{text:?} is no policy for metadata: write once, always or a time as 30s or 10m")),
        }
    }

    /// The field of a mount with this policy. `ALWAYS` stands for an interval, which is an option.
    pub fn field(self) -> MetaPolicy {
        if self == RefreshPolicy::Once { MetaPolicy::Once } else { MetaPolicy::Always }
    }

    /// The policy of a whole mount.
    pub fn of_mount(mount: &Mount) -> RefreshPolicy {
        named(&mount.options, META_POLICY).unwrap_or_else(|| mount.meta_policy().into())
    }

    /// The policy of `path` below a mount, without a leading '/': that of the longest path that has one and holds it.
    pub fn of_path(mount: &Mount, path: &[u8]) -> RefreshPolicy {
        let mut end = path.len();
        while end > 0 && has_paths(&mount.options) {
            let path = path.get(..end).unwrap_or_default();
            let found = std::str::from_utf8(path).ok().map(|path| format!("{META_POLICY}:/{path}"));
            if let Some(found) = found.and_then(|name| named(&mount.options, &name)) {
                return found;
            }
            end = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        }
        RefreshPolicy::of_mount(mount)
    }
}

impl fmt::Display for RefreshPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RefreshPolicy::Once => f.write_str("once"),
            RefreshPolicy::Always => f.write_str("always"),
            RefreshPolicy::After(interval) => {
                let ms = interval.as_millis();
                let units = [(3_600_000, "h"), (60_000, "m"), (1_000, "s")];
                let (unit, name) = units.into_iter().find(|(unit, _)| ms % unit == 0).unwrap_or((1, "ms"));
                write!(f, "{}{name}", ms / unit)
            }
        }
    }
}

impl From<MetaPolicy> for RefreshPolicy {
    fn from(field: MetaPolicy) -> RefreshPolicy {
        if field == MetaPolicy::Always { RefreshPolicy::Always } else { RefreshPolicy::Once }
    }
}

impl From<Duration> for RefreshPolicy {
    fn from(interval: Duration) -> RefreshPolicy {
        if interval.is_zero() { RefreshPolicy::Always } else { RefreshPolicy::After(interval) }
    }
}

fn named(options: &BTreeMap<String, String>, name: &str) -> Option<RefreshPolicy> {
    RefreshPolicy::parse(options.get(name)?).ok()
}

/// True if the metadata below a mount is read once everywhere: its directories change only by way of the masters.
pub fn is_read_once(mount: &Mount) -> bool {
    RefreshPolicy::of_mount(mount) == RefreshPolicy::Once
        && all_named(&mount.options).all(|(_, policy)| RefreshPolicy::parse(policy) == Ok(RefreshPolicy::Once))
}

fn has_paths(options: &BTreeMap<String, String>) -> bool {
    all_named(options).any(|(name, _)| name != META_POLICY)
}

/// The policies among the options, of the mount and of paths.
fn all_named(options: &BTreeMap<String, String>) -> impl Iterator<Item = (&String, &String)> {
    let from = (Bound::Included(META_POLICY), Bound::Unbounded);
    options.range::<str, _>(from).take_while(|(name, _)| name.starts_with(META_POLICY))
}

/// True if an option is one of these.
///
/// *Errors*: what is wrong with its name or value.
pub fn is_meta_policy(name: &str, value: &str) -> Result<bool, String> {
    let Some(path) = name.strip_prefix(META_POLICY).filter(|path| path.is_empty() || path.starts_with(':')) else {
        return Ok(false);
    };
    let is_wrong = match path.strip_prefix(":/") {
        Some(path) => path.split('/').any(|name| matches!(name, "" | "." | "..")),
        None => !path.is_empty(),
    };
    if is_wrong {
        return Err(format!(
            "option {name}: write {META_POLICY}:/PATH, a path below the mount without a '/' at its end"
        ));
    }
    RefreshPolicy::parse(value).map(|_| true).map_err(|error| format!("option {name}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(field: MetaPolicy, options: &[(&str, &str)]) -> Mount {
        let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Mount { meta_policy: field.into(), options, ..Mount::default() }
    }

    #[test]
    fn the_longest_path_decides_then_the_option_of_the_mount_then_the_field() {
        let after = |seconds| RefreshPolicy::After(Duration::from_secs(seconds));
        for (field, policy) in [
            (MetaPolicy::Unspecified, RefreshPolicy::Once),
            (MetaPolicy::Once, RefreshPolicy::Once),
            (MetaPolicy::Always, RefreshPolicy::Always),
        ] {
            assert_eq!(RefreshPolicy::of_path(&mount(field, &[]), b"a"), policy);
            let paths = mount(field, &[("metaPolicy:/a", "always"), ("metaPolicy:/a/b", "2m"), ("other", "x")]);
            for (path, expected) in [
                (&b""[..], policy),
                (b"ab", policy),
                (b"a", RefreshPolicy::Always),
                (b"a/c/d", RefreshPolicy::Always),
                (b"a/b", after(120)),
                (b"a/b/\xff", after(120)),
            ] {
                assert_eq!(RefreshPolicy::of_path(&paths, path), expected, "{path:?}");
            }
            let whole = mount(field, &[(META_POLICY, "60s"), ("metaPolicy:/a", "ONCE")]);
            assert_eq!(RefreshPolicy::of_path(&whole, b""), after(60));
            assert_eq!(RefreshPolicy::of_path(&whole, b"a/b"), RefreshPolicy::Once);
        }
    }

    #[test]
    fn a_mount_is_read_once_if_its_field_and_all_its_options_say_so() {
        for options in [&[][..], &[("fs.s3.region", "x")], &[(META_POLICY, "ONCE"), ("metaPolicy:/a", "once")]] {
            assert!(is_read_once(&mount(MetaPolicy::Once, options)), "{options:?}");
        }
        assert!(is_read_once(&mount(MetaPolicy::Always, &[(META_POLICY, "once")])), "the option takes precedence");
        assert!(!is_read_once(&mount(MetaPolicy::Always, &[("metaPolicy:/a", "once")])));
        for options in [&[(META_POLICY, "1s")][..], &[("metaPolicy:/a", "once"), ("metaPolicy:/b", "always")]] {
            assert!(!is_read_once(&mount(MetaPolicy::Once, options)), "{options:?}");
        }
    }

    #[test]
    fn policies_are_shown_as_they_are_written_and_others_say_what_to_write() {
        for text in ["once", "always", "30s", "90s", "10m", "2h", "1500ms"] {
            assert_eq!(RefreshPolicy::parse(text).map(|policy| policy.to_string()), Ok(text.to_owned()));
        }
        assert_eq!(RefreshPolicy::parse("0s"), Ok(RefreshPolicy::Always));
        assert_eq!(RefreshPolicy::parse(" 10M "), RefreshPolicy::parse("10m"));
        for (text, advice) in [
            ("often", "once, always"),
            ("", "once, always"),
            ("30", "no unit"),
            ("3 days", "ms, s, m or h"),
            ("9999999999999999999h", "too long"),
        ] {
            let error = RefreshPolicy::parse(text).expect_err(text);
            assert!(error.contains(advice), "{error}");
        }
        assert_eq!(is_meta_policy("metaPolicy:/a/b", "1s"), Ok(true));
        assert_eq!(is_meta_policy("metaPolicyX", "1s"), Ok(false));
        for name in ["metaPolicy:", "metaPolicy:a", "metaPolicy:/", "metaPolicy:/a/", "metaPolicy:/a/../b"] {
            assert!(is_meta_policy(name, "1s").is_err(), "{name}");
        }
    }
}
