//! Upstream's file of settings: sections of `name = value`.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{Error, Result};

/// Section of what all processes share: how under-storage is reached.
pub(super) const COMMON: &str = "jindocache-common";
/// Section of masters.
pub(super) const SERVER: &str = "jindocache-server";
/// Section of workers.
pub(super) const WORKER: &str = "jindocache-worker";
/// Section of clients.
pub(super) const CLIENT: &str = "jindocache-client";

/// The file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cfg(BTreeMap<String, BTreeMap<String, String>>);

impl Cfg {
    /// Reads a file.
    ///
    /// *Errors*: when it cannot be read; names the line that is neither a section nor a setting.
    pub(super) fn read(path: &Path) -> Result<Cfg> {
        let text = std::fs::read_to_string(path).map_err(|error| Error::from(error).context(path.display()))?;
        Cfg::parse(&text).map_err(|error| error.context(path.display()))
    }

    /// *Errors*: as [`Cfg::read`].
    pub(super) fn parse(text: &str) -> Result<Cfg> {
        let mut sections: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        let mut section = String::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                name.trim().clone_into(&mut section);
            } else if let Some((name, value)) = line.split_once('=') {
                let settings = sections.entry(section.clone()).or_default();
                settings.insert(name.trim().to_owned(), value.trim().to_owned());
            } else {
                // Not repeated: it may hold a key.
                return Err(Error::invalid(format!("line {}: write [SECTION] or NAME = VALUE", number + 1)));
            }
        }
        Ok(Cfg(sections))
    }

    /// A setting; none if it is empty.
    pub(super) fn get(&self, section: &str, name: &str) -> Option<&str> {
        self.0.get(section)?.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_found_by_section_and_a_line_that_is_none_is_named_without_being_repeated() {
        let cfg = Cfg::parse("# made\n[a]\nx = 1\ny=\n\n [ b ]\nx = secrets:///token/b/=\n").expect("good");
        assert_eq!((cfg.get("a", "x"), cfg.get("a", "y"), cfg.get("c", "x")), (Some("1"), None, None));
        assert_eq!(cfg.get("b", "x"), Some("secrets:///token/b/="));
        let error = Cfg::parse("[a]\nx = 1\nhunter2\n").expect_err("refused");
        assert!(error.message.contains("line 3") && !error.message.contains("hunter2"), "{error}");
    }
}
