//! Paths of the namespace: absolute, '/'-separated bytes.

use super::{NAME_MAX, PATH_MAX};

/// Why bytes are no path or name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathProblem {
    /// A path of so many bytes.
    #[error("path of {0} bytes: at most {most} are allowed", most = PATH_MAX)]
    PathTooLong(usize),
    /// A name of so many bytes.
    #[error("name of {0} bytes: at most {most} are allowed", most = NAME_MAX)]
    NameTooLong(usize),
    /// A path that does not begin at the root.
    #[error("path {:?} is not absolute: it must begin with '/'", String::from_utf8_lossy(.0))]
    NotAbsolute(Vec<u8>),
    /// What no name can be.
    #[error("{:?} cannot be a name: it is empty, '.', '..' or holds '/' or NUL", String::from_utf8_lossy(.0))]
    BadName(Vec<u8>),
    /// The root was given where something with a name is needed.
    #[error("the root directory has no name of its own")]
    NameOfRoot,
}

/// A validated absolute path without `.`, `..` or empty components.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NsPath(Vec<u8>);

impl NsPath {
    /// Validates `raw`. Repeated and trailing slashes are dropped.
    ///
    /// *Errors*: `NotAbsolute`; `BadName` for a NUL byte, `.` or `..`; `PathTooLong` and `NameTooLong`.
    pub fn parse(raw: &[u8]) -> Result<NsPath, PathProblem> {
        if raw.len() > PATH_MAX {
            return Err(PathProblem::PathTooLong(raw.len()));
        }
        if raw.first() != Some(&b'/') {
            return Err(PathProblem::NotAbsolute(raw.to_vec()));
        }
        let mut clean = Vec::with_capacity(raw.len());
        for name in raw.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            check_name(name)?;
            clean.push(b'/');
            clean.extend_from_slice(name);
        }
        Ok(NsPath(clean))
    }

    /// The root directory.
    pub fn root() -> NsPath {
        NsPath(Vec::new())
    }

    /// True for `/`.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The names from the root down.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').skip(1)
    }

    /// The path as bytes; `/` for the root.
    pub fn as_bytes(&self) -> &[u8] {
        if self.0.is_empty() { b"/" } else { &self.0 }
    }

    /// True if `self` is `other` or lies below it.
    pub fn starts_with(&self, other: &NsPath) -> bool {
        self.0.starts_with(&other.0) && (self.0.len() == other.0.len() || self.0[other.0.len()] == b'/')
    }

    /// Directory and last name; `None` for the root.
    pub fn split_last(&self) -> Option<(NsPath, &[u8])> {
        let at = self.0.iter().rposition(|byte| *byte == b'/')?;
        Some((NsPath(self.0[..at].to_vec()), &self.0[at + 1..]))
    }

    /// This path with `name` below it; the name must have passed [`check_name`].
    pub fn join(&self, name: &[u8]) -> NsPath {
        let mut joined = self.0.clone();
        joined.push(b'/');
        joined.extend_from_slice(name);
        NsPath(joined)
    }
}

impl std::fmt::Display for NsPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.as_bytes()))
    }
}

/// Checks one name of a directory entry.
///
/// *Errors*: `BadName` for an empty name, `.`, `..`, a slash or NUL; `NameTooLong` over 255 bytes.
pub fn check_name(name: &[u8]) -> Result<(), PathProblem> {
    if name.len() > NAME_MAX {
        return Err(PathProblem::NameTooLong(name.len()));
    }
    let forbidden = matches!(name, b"" | b"." | b"..") || name.iter().any(|byte| matches!(byte, b'/' | 0));
    if forbidden {
        return Err(PathProblem::BadName(name.to_vec()));
    }
    Ok(())
}

/// Splits raw path bytes into validated directory and name.
///
/// *Errors*: as [`NsPath::parse`]; `NameOfRoot`.
pub fn split_parent(raw: &[u8]) -> Result<(NsPath, Vec<u8>), PathProblem> {
    let path = NsPath::parse(raw)?;
    match path.split_last() {
        Some((parent, name)) => Ok((parent, name.to_vec())),
        None => Err(PathProblem::NameOfRoot),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_are_folded_and_dots_are_refused() {
        let path = NsPath::parse(b"//a///b/").expect("a valid path");
        assert_eq!(path.as_bytes(), b"/a/b");
        assert_eq!(path.names().collect::<Vec<_>>(), [b"a", b"b"]);
        for bad in [&b"a/b"[..], b""] {
            assert_eq!(NsPath::parse(bad), Err(PathProblem::NotAbsolute(bad.to_vec())));
        }
        for bad in [&b"/a/../b"[..], b"/./a", b"/a\0b"] {
            assert!(matches!(NsPath::parse(bad), Err(PathProblem::BadName(_))));
        }
    }

    #[test]
    fn names_and_paths_beyond_the_limits_are_refused() {
        let long_name = [b"/".to_vec(), vec![b'x'; 256]].concat();
        assert!(matches!(NsPath::parse(&long_name), Err(PathProblem::NameTooLong(256))));
        let long_path = b"/abcd".repeat(1000);
        assert!(matches!(NsPath::parse(&long_path), Err(PathProblem::PathTooLong(5000))));
    }

    #[test]
    fn each_problem_is_told_with_the_path_or_length_that_is_wrong() {
        for (problem, expected) in [
            (PathProblem::PathTooLong(5000), "path of 5000 bytes: at most 4096 are allowed"),
            (PathProblem::NameTooLong(256), "name of 256 bytes: at most 255 are allowed"),
            (PathProblem::NotAbsolute(b"a/b".to_vec()), "path \"a/b\" is not absolute: it must begin with '/'"),
            (PathProblem::NameOfRoot, "the root directory has no name of its own"),
        ] {
            assert_eq!(problem.to_string(), expected);
        }
        let bad = PathProblem::BadName(vec![b'a', 0xff, 0]).to_string();
        assert!(bad.starts_with("\"a\u{fffd}\\0\" cannot be a name"), "{bad}");
    }

    #[test]
    fn starts_with_respects_component_borders() {
        let a = NsPath::parse(b"/a").expect("valid");
        assert!(NsPath::parse(b"/a/b").expect("valid").starts_with(&a));
        assert!(!NsPath::parse(b"/ab").expect("valid").starts_with(&a));
        assert!(a.starts_with(&NsPath::root()));
        assert_eq!(NsPath::root().names().count(), 0);
    }
}
