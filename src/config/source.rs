//! Where settings come from. Precedence: flag over environment over file over default.
//!
//! - File (TOML): `"namespace.meta-dir" = "/meta"`, or the same as tables (`[namespace]`, `meta-dir = "/meta"`). Quotes
//!   are needed where one key is the beginning of another, as with `"storage.data-dirs"`. A list is an array or text with
//!   commas. One file may serve all roles: what belongs to another role is skipped.
//! - Environment: the name in upper case with `.` and `-` as `_`: `NAMESPACE_META_DIR`.
//! - Flags: `--set namespace.meta-dir=/meta`, or the setting's own flag.
//!
//! A key that does not exist is an error, never ignored; so is a value of the wrong form.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::keys::{self, Role};
use super::value;
use crate::error::{Error, ErrorKind, Result};

/// Where one value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The table of keys.
    Default,
    /// The table of keys, with `fast-elections`.
    FastElections,
    /// A file and the line in it.
    File(PathBuf, usize),
    /// An environment variable.
    Env(String),
    /// A flag, as it was written.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::FastElections => f.write_str("fast-elections"),
            Source::File(path, line) => write!(f, "{}:{line}", path.display()),
            Source::Env(name) => write!(f, "env {name}"),
            Source::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// A value that a flag gives to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlagValue {
    /// Name of the key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// The flag as people know it: `--set`, `--meta-dir`.
    pub flag: String,
}

impl FlagValue {
    /// Parses the argument of `--set`.
    pub fn from_set(text: &str) -> Result<FlagValue> {
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| Error::invalid(format!("--set {text}: write KEY=VALUE, as in namespace.meta-dir=/meta")))?;
        Ok(FlagValue { key: key.trim().to_owned(), value: value.to_owned(), flag: "--set".to_owned() })
    }
}

/// One effective value and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// As it was written.
    pub value: String,
    /// Where.
    pub source: Source,
}

/// All settings of one role, layered.
#[derive(Debug, Clone)]
pub struct Settings {
    role: Role,
    values: BTreeMap<&'static str, Setting>,
    /// What is odd but no error, for people.
    pub warnings: Vec<String>,
    /// What is wrong; [`Settings::check`] turns it into an error.
    pub problems: Vec<String>,
}

impl Settings {
    /// Layers the sources. What is wrong in them is collected in `problems`, so that all of it can be told at once.
    ///
    /// *Errors*: when the file cannot be read or is no TOML.
    pub fn load(
        role: Role,
        file: Option<&Path>,
        env: &dyn Fn(&str) -> Option<OsString>,
        flags: &[FlagValue],
    ) -> Result<Settings> {
        let mut settings = Settings { role, values: BTreeMap::new(), warnings: Vec::new(), problems: Vec::new() };
        for key in keys::of_role(role) {
            settings.values.insert(key.name, Setting { value: key.default.to_owned(), source: Source::Default });
        }
        if let Some(path) = file {
            settings.read_file(path)?;
        }
        settings.read_env(env);
        for flag in flags {
            settings.put(&flag.key, flag.value.clone(), Source::Flag(flag.flag.clone()));
        }
        settings.apply_fast_elections();
        Ok(settings)
    }

    /// The role these settings are for.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Effective value and source; an empty value stands for "not set".
    pub fn get(&self, name: &str) -> Option<&Setting> {
        self.values.get(name)
    }

    /// Name, value and source of everything, in the table's order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static keys::Key, &Setting)> {
        keys::of_role(self.role).filter_map(|key| self.values.get(key.name).map(|setting| (key, setting)))
    }

    /// The collected problems as one error.
    ///
    /// *Errors*: `InvalidArgument`, with one problem per line.
    pub fn check(&self) -> Result<()> {
        if self.problems.is_empty() { Ok(()) } else { Err(Error::invalid(self.problems.join("\nerror: "))) }
    }

    fn read_file(&mut self, path: &Path) -> Result<()> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::invalid(format!("cannot read config file {}: {error}", path.display())))?;
        let line_at = |offset: usize| text[..offset.min(text.len())].matches('\n').count() + 1;
        let document = DeTable::parse(&text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_at(span.start));
            let hint = "; where one key is the beginning of another, both must be in quotes";
            let hint =
                if error.message().contains("duplicate") || error.message().contains("extend") { hint } else { "" };
            Error::invalid(format!("{}:{line}: {}{hint}", path.display(), error.message()))
        })?;
        let mut found = Vec::new();
        flatten("", document.get_ref(), &mut found);
        for (name, offset, value) in found {
            let source = Source::File(path.to_path_buf(), line_at(offset));
            match value {
                Some(value) => self.put(&name, value, source),
                None => self.problems.push(format!("{name} ({source}): a value of this kind is not understood")),
            }
        }
        Ok(())
    }

    fn read_env(&mut self, env: &dyn Fn(&str) -> Option<OsString>) {
        for key in keys::of_role(self.role) {
            let own = key.env();
            let names = std::iter::once(own.as_str()).chain(key.env_aliases.iter().copied());
            let Some((name, value)) = names.filter_map(|name| env(name).map(|value| (name, value))).next() else {
                continue;
            };
            match value.into_string() {
                Ok(value) => self.put(key.name, value, Source::Env(name.to_owned())),
                Err(_) => self.problems.push(format!("{} (env {name}): the value is not UTF-8", key.name)),
            }
        }
    }

    fn put(&mut self, name: &str, value: String, source: Source) {
        let Some(key) = keys::find(name) else {
            if keys::WITHOUT_EFFECT.contains(&name) {
                self.warnings.push(format!("{name} ({source}): accepted, but it has no effect here"));
            } else {
                let near = keys::nearest(name);
                self.problems.push(format!("unknown key {name} ({source}): the nearest known key is {near}"));
            }
            return;
        };
        if let Err(problem) = value::check(key.kind, &value) {
            self.problems.push(format!("{name} ({source}): {problem}"));
            return;
        }
        // A key of another role is checked as well, so that a shared file is right as a whole, and then left alone.
        if let Some(slot) = self.values.get_mut(key.name) {
            *slot = Setting { value, source };
        }
    }

    fn apply_fast_elections(&mut self) {
        let fast =
            self.get("namespace.backend.raft.fast-elections").is_some_and(|s| value::boolean(&s.value) == Ok(true));
        if !fast {
            return;
        }
        for (name, value) in [
            ("namespace.backend.raft.heartbeat", "100ms"),
            ("namespace.backend.raft.election-min", "300ms"),
            ("namespace.backend.raft.election-max", "600ms"),
        ] {
            if let Some(slot) = self.values.get_mut(name)
                && slot.source == Source::Default
            {
                *slot = Setting { value: value.to_owned(), source: Source::FastElections };
            }
        }
    }
}

/// Dotted name, byte offset and text of every value; no text where the kind of value has none.
fn flatten(prefix: &str, table: &DeTable<'_>, found: &mut Vec<(String, usize, Option<String>)>) {
    for (key, value) in table {
        let name = if prefix.is_empty() { key.get_ref().to_string() } else { format!("{prefix}.{}", key.get_ref()) };
        match value.get_ref() {
            DeValue::Table(inner) => flatten(&name, inner, found),
            DeValue::Array(items) => {
                let parts: Option<Vec<String>> = items.iter().map(|item| scalar(item.get_ref())).collect();
                found.push((name, key.span().start, parts.map(|parts| parts.join(","))));
            }
            other => found.push((name, key.span().start, scalar(other))),
        }
    }
}

fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.as_str().to_owned()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(flag) => Some(flag.to_string()),
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

/// The config file: `flag`, else `$JINDOFS_CONFIG`, else none.
pub fn config_file(flag: Option<&Path>) -> Option<PathBuf> {
    flag.map(Path::to_path_buf).or_else(|| std::env::var_os("JINDOFS_CONFIG").map(PathBuf::from))
}

/// The error for values that do not fit each other.
pub(super) fn conflict(problems: Vec<String>) -> Error {
    Error::new(ErrorKind::InvalidArgument, problems.join("\nerror: "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, env: &[(&str, &str)], flags: &[&str]) -> Settings {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("jindofs.toml");
        std::fs::write(&path, text).expect("write");
        let env: BTreeMap<String, String> = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let flags: Vec<_> = flags.iter().map(|text| FlagValue::from_set(text).expect("KEY=VALUE")).collect();
        let lookup = |name: &str| env.get(name).map(OsString::from);
        Settings::load(Role::Master, Some(&path), &lookup, &flags).expect("readable")
    }

    fn value(settings: &Settings, name: &str) -> (String, Source) {
        let setting = settings.get(name).expect("known");
        (setting.value.clone(), setting.source.clone())
    }

    #[test]
    fn flag_beats_environment_beats_file_beats_default() {
        let name = "namespace.rpc.port";
        let file = "\"namespace.rpc.port\" = 1\n";
        let env = [("NAMESPACE_RPC_PORT", "2")];
        assert_eq!(value(&load("", &[], &[]), name), ("8101".into(), Source::Default));
        let (text, source) = value(&load(file, &[], &[]), name);
        assert!(text == "1" && matches!(source, Source::File(_, 1)));
        assert_eq!(value(&load(file, &env, &[]), name), ("2".into(), Source::Env("NAMESPACE_RPC_PORT".into())));
        let flag = load(file, &env, &["namespace.rpc.port=3"]);
        assert_eq!(value(&flag, name), ("3".into(), Source::Flag("--set".into())));
    }

    #[test]
    fn an_unknown_key_is_refused_with_file_line_and_the_nearest_key() {
        let settings = load("# comment\n\"namespace.metadir\" = \"/m\"\n", &[], &["storage.datadirs=/x"]);
        let message = settings.check().expect_err("refused").message;
        assert!(message.contains("unknown key namespace.metadir") && message.contains("jindofs.toml:2"), "{message}");
        assert!(message.contains("nearest known key is namespace.meta-dir"), "{message}");
        assert!(message.contains("storage.data-dirs"), "{message}");
        assert_eq!(settings.check().expect_err("refused").exit_code(), 2);
    }

    #[test]
    fn tables_and_dotted_and_quoted_keys_mean_the_same() {
        let quoted = load("\"namespace.meta-dir\" = \"/m\"", &[], &[]);
        let dotted = load("namespace.meta-dir = \"/m\"", &[], &[]);
        let table = load("[namespace]\nmeta-dir = \"/m\"", &[], &[]);
        for settings in [quoted, dotted, table] {
            assert!(settings.problems.is_empty(), "{:?}", settings.problems);
            assert_eq!(value(&settings, "namespace.meta-dir").0, "/m");
        }
    }

    #[test]
    fn keys_of_other_roles_are_checked_and_left_alone() {
        assert!(load("\"fuse.threads\" = 4", &[], &[]).problems.is_empty());
        assert_eq!(load("\"fuse.threads\" = \"four\"", &[], &[]).problems.len(), 1);
    }

    #[test]
    fn upstream_keys_without_effect_give_a_warning() {
        let settings = load("\"namespace.filelet.threads\" = 200", &[], &[]);
        assert!(settings.problems.is_empty() && settings.warnings.len() == 1);
    }

    #[test]
    fn a_syntax_error_names_file_and_line() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("bad.toml");
        std::fs::write(&path, "a = 1\nb = \n").expect("write");
        let error = Settings::load(Role::Master, Some(&path), &|_| None, &[]).expect_err("refused");
        assert!(error.message.contains("bad.toml:2"), "{}", error.message);
        let error = Settings::load(Role::Master, Some(&dir.path().join("none")), &|_| None, &[]).expect_err("refused");
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn fast_elections_change_defaults_only() {
        let flags = ["namespace.backend.raft.fast-elections=true", "namespace.backend.raft.election-max=900ms"];
        let settings = load("", &[], &flags);
        assert_eq!(value(&settings, "namespace.backend.raft.heartbeat").0, "100ms");
        assert_eq!(value(&settings, "namespace.backend.raft.election-max").0, "900ms");
    }
}
