//! What a tree of names means, written a second time and as simply as possible: a map from path to what is there.

use std::collections::BTreeMap;

use jindofs_proto::store::v1::command::Command as Body;
use jindofs_proto::v1::{
    CreateRequest, ErrorKind, FileType, MkdirRequest, RenameRequest, RmdirRequest, SetAttrRequest, SymlinkRequest,
    Target, UnlinkRequest, target,
};
use proptest::prelude::*;

/// Names are few, so that operations meet.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const DEPTH: usize = 4;

/// A change of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    Create { path: String, exclusive: bool },
    Mkdir { path: String, parents: bool },
    Symlink { path: String },
    Unlink { path: String },
    Rmdir { path: String, recursive: bool },
    Rename { from: String, to: String, no_replace: bool },
    Chmod { path: String, mode: u32 },
}

pub(super) fn change() -> impl Strategy<Value = Change> {
    let yes = any::<bool>;
    prop_oneof![
        6 => (path(), yes()).prop_map(|(path, exclusive)| Change::Create { path, exclusive }),
        6 => (path(), yes()).prop_map(|(path, parents)| Change::Mkdir { path, parents }),
        1 => path().prop_map(|path| Change::Symlink { path }),
        3 => path().prop_map(|path| Change::Unlink { path }),
        3 => (path(), yes()).prop_map(|(path, recursive)| Change::Rmdir { path, recursive }),
        6 => (path(), path(), yes()).prop_map(|(from, to, no_replace)| Change::Rename { from, to, no_replace }),
        2 => (path(), 0_u32..0o7777).prop_map(|(path, mode)| Change::Chmod { path, mode }),
    ]
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(&NAMES[..]), 1..=DEPTH).prop_map(|names| format!("/{}", names.join("/")))
}

fn at(path: &str) -> Option<Target> {
    Some(Target { target: Some(target::Target::Path(path.as_bytes().to_vec().into())) })
}

impl Change {
    pub(super) fn command(&self) -> Body {
        match self {
            Change::Create { path, exclusive } => Body::Create(CreateRequest {
                target: at(path),
                mode: 0o644,
                exclusive: *exclusive,
                ..CreateRequest::default()
            }),
            Change::Mkdir { path, parents } => Body::Mkdir(MkdirRequest {
                target: at(path),
                mode: 0o755,
                parents: *parents,
                ..MkdirRequest::default()
            }),
            Change::Symlink { path } => Body::Symlink(SymlinkRequest {
                target: at(path),
                link_target: b"there".to_vec().into(),
                ..SymlinkRequest::default()
            }),
            Change::Unlink { path } => Body::Unlink(UnlinkRequest { target: at(path), ..UnlinkRequest::default() }),
            Change::Rmdir { path, recursive } => {
                Body::Rmdir(RmdirRequest { target: at(path), recursive: *recursive, ..RmdirRequest::default() })
            }
            Change::Rename { from, to, no_replace } => Body::Rename(RenameRequest {
                from: at(from),
                to: at(to),
                no_replace: *no_replace,
                ..RenameRequest::default()
            }),
            Change::Chmod { path, mode } => {
                Body::SetAttr(SetAttrRequest { target: at(path), mode: Some(*mode), ..SetAttrRequest::default() })
            }
        }
    }
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) kind: FileType,
    pub(super) mode: u32,
}

/// The tree; the root is not in it.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) nodes: BTreeMap<String, Node>,
}

type Verdict = Result<(), ErrorKind>;

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn below(path: &str) -> String {
    format!("{path}/")
}

impl Model {
    pub(super) fn apply(&mut self, change: &Change) -> Verdict {
        match change {
            Change::Create { path, exclusive } => self.create(path, *exclusive),
            Change::Mkdir { path, parents } => self.mkdir(path, *parents),
            Change::Symlink { path } => self.add(path, FileType::Symlink, 0o777),
            Change::Unlink { path } => self.unlink(path),
            Change::Rmdir { path, recursive } => self.rmdir(path, *recursive),
            Change::Rename { from, to, no_replace } => self.rename(from, to, *no_replace),
            Change::Chmod { path, mode } => {
                self.reach(parent(path))?;
                self.nodes.get_mut(path).ok_or(ErrorKind::NotFound)?.mode = *mode;
                Ok(())
            }
        }
    }

    /// Every directory on the way must be one.
    fn reach(&self, directory: &str) -> Verdict {
        if directory.is_empty() {
            return Ok(());
        }
        self.reach(parent(directory))?;
        match self.nodes.get(directory) {
            None => Err(ErrorKind::NotFound),
            Some(node) if node.kind == FileType::Directory => Ok(()),
            Some(_) => Err(ErrorKind::NotADirectory),
        }
    }

    fn kind(&self, path: &str) -> Option<FileType> {
        self.nodes.get(path).map(|node| node.kind)
    }

    fn is_empty(&self, directory: &str) -> bool {
        let prefix = below(directory);
        self.nodes.range(prefix.clone()..).next().is_none_or(|(path, _)| !path.starts_with(&prefix))
    }

    fn add(&mut self, path: &str, kind: FileType, mode: u32) -> Verdict {
        self.reach(parent(path))?;
        if self.nodes.contains_key(path) {
            return Err(ErrorKind::AlreadyExists);
        }
        self.nodes.insert(path.to_owned(), Node { kind, mode });
        Ok(())
    }

    fn create(&mut self, path: &str, exclusive: bool) -> Verdict {
        self.reach(parent(path))?;
        match self.kind(path) {
            Some(FileType::File) if !exclusive => Ok(()),
            Some(FileType::Directory) if !exclusive => Err(ErrorKind::IsADirectory),
            _ => self.add(path, FileType::File, 0o644),
        }
    }

    fn mkdir(&mut self, path: &str, parents: bool) -> Verdict {
        if !parents {
            return self.add(path, FileType::Directory, 0o755);
        }
        // Nothing is made if a part of the way is no directory.
        let ends = path.match_indices('/').map(|(end, _)| end).skip(1).chain([path.len()]);
        let ways: Vec<&str> = ends.map(|end| &path[..end]).collect();
        for way in &ways {
            match self.kind(way) {
                Some(FileType::Directory) => {}
                None => break,
                Some(_) if *way == path => return Err(ErrorKind::AlreadyExists),
                Some(_) => return Err(ErrorKind::NotADirectory),
            }
        }
        for way in ways {
            self.nodes.entry(way.to_owned()).or_insert(Node { kind: FileType::Directory, mode: 0o755 });
        }
        Ok(())
    }

    fn unlink(&mut self, path: &str) -> Verdict {
        self.reach(parent(path))?;
        match self.kind(path) {
            None => Err(ErrorKind::NotFound),
            Some(FileType::Directory) => Err(ErrorKind::IsADirectory),
            Some(_) => {
                self.nodes.remove(path);
                Ok(())
            }
        }
    }

    fn rmdir(&mut self, path: &str, recursive: bool) -> Verdict {
        self.reach(parent(path))?;
        match self.kind(path) {
            None => Err(ErrorKind::NotFound),
            Some(FileType::Directory) if !recursive && !self.is_empty(path) => Err(ErrorKind::NotEmpty),
            Some(FileType::Directory) => {
                let prefix = below(path);
                self.nodes.retain(|other, _| other != path && !other.starts_with(&prefix));
                Ok(())
            }
            Some(_) => Err(ErrorKind::NotADirectory),
        }
    }

    fn rename(&mut self, from: &str, to: &str, no_replace: bool) -> Verdict {
        let ways = [self.reach(parent(from)), self.reach(parent(to))];
        // What is no directory is noticed before what is missing.
        if ways.contains(&Err(ErrorKind::NotADirectory)) {
            return Err(ErrorKind::NotADirectory);
        }
        ways.into_iter().collect::<Verdict>()?;
        let moved = *self.nodes.get(from).ok_or(ErrorKind::NotFound)?;
        let there = self.kind(to);
        if no_replace && there.is_some() {
            return Err(ErrorKind::AlreadyExists);
        }
        if from == to {
            return Ok(());
        }
        let is_dir = moved.kind == FileType::Directory;
        if is_dir && to.starts_with(&below(from)) {
            return Err(ErrorKind::InvalidArgument);
        }
        match there {
            Some(FileType::Directory) if !is_dir => return Err(ErrorKind::IsADirectory),
            Some(FileType::Directory) if !self.is_empty(to) => return Err(ErrorKind::NotEmpty),
            Some(kind) if is_dir && kind != FileType::Directory => return Err(ErrorKind::NotADirectory),
            _ => {}
        }
        let prefix = below(from);
        let moving: Vec<String> =
            self.nodes.keys().filter(|path| *path == from || path.starts_with(&prefix)).cloned().collect();
        self.nodes.remove(to);
        for path in moving {
            if let Some(node) = self.nodes.remove(&path) {
                self.nodes.insert(format!("{to}{}", &path[from.len()..]), node);
            }
        }
        Ok(())
    }
}
