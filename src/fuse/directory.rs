//! One open directory: its entries in name order, each at an offset that stays its own as long as the handle lives.
//!
//! Names are kept for the life of the handle, attributes only near the place last read: a directory of a million entries
//! costs some 60 MB while it is open, not a gigabyte. Reading again from an earlier offset fetches attributes anew, by name.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use bytes::Bytes;
use jindofs_proto::v1::{Attr, Entry, FileType};

use crate::runtime::lock;
use crate::types::{FNV1A_EMPTY, fnv1a};

use super::handover_state::OpenHandle;

/// Offsets 1 and 2 are those after "." and "..".
const DOTS: u64 = 2;
/// Attributes kept, in entries.
const WINDOW_MAX: usize = 4096;

/// Adds a name to the fingerprint of the names before it. No name holds a `/`, so it ends each one.
fn with_name(fingerprint: u64, name: &[u8]) -> u64 {
    fnv1a(fingerprint, name.iter().chain(b"/"))
}

/// A name without its attributes.
#[derive(Debug)]
struct Item {
    name: Box<[u8]>,
    inode: u64,
    kind: FileType,
    /// Vanished while the handle was open.
    gone: bool,
}

/// What to ask a master for next.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Entries after this name.
    pub(super) after: Bytes,
    /// Index of the first entry that is wanted.
    index: usize,
}

#[derive(Debug)]
struct State {
    items: Vec<Item>,
    /// Attributes of `items[window_start..]`, as far as they reach; `None` for an entry that vanished since.
    window: VecDeque<Option<Attr>>,
    window_start: usize,
    /// Age of the attributes: when the oldest of them was asked for.
    since: Instant,
    end: bool,
    /// Of all names, in their order.
    fingerprint: u64,
    /// So many names came between two known ones that a page did not reach from one to the other: where to go on.
    resume: Option<(usize, Bytes)>,
}

/// One entry given to the kernel.
pub(super) struct Given<'a> {
    pub(super) name: &'a [u8],
    pub(super) inode: u64,
    pub(super) kind: FileType,
    /// Offset after this entry.
    pub(super) next: u64,
    /// `None` for the dots.
    pub(super) attr: Option<&'a Attr>,
    pub(super) since: Instant,
}

/// An open directory.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) inode: u64,
    pub(super) parent: u64,
    /// Of its names, or an older one, when it was opened.
    pub(super) version: u64,
    pub(super) opened: Instant,
    state: Mutex<State>,
    /// Fetches of one handle go one after the other.
    pub(super) fetching: tokio::sync::Mutex<()>,
}

impl Directory {
    pub(super) fn new(inode: u64, parent: u64, version: u64) -> Directory {
        let now = Instant::now();
        Directory {
            inode,
            parent,
            version,
            opened: now,
            state: Mutex::new(State::new(now)),
            fetching: tokio::sync::Mutex::new(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// What must be fetched before entries from `offset` on can be given; `None` if some are there.
    pub(super) fn wanted(&self, offset: u64) -> Option<Wanted> {
        let state = self.state();
        let index = state.first_present(index_of(offset));
        if state.in_window(index) || (index >= state.items.len() && state.end) {
            return None;
        }
        if let Some((resumed, after)) = &state.resume
            && *resumed == index
        {
            return Some(Wanted { after: after.clone(), index });
        }
        let after = index.checked_sub(1).and_then(|before| state.items.get(before));
        Some(Wanted { after: after.map(|item| Bytes::copy_from_slice(&item.name)).unwrap_or_default(), index })
    }

    /// Takes the page that `wanted` asked for at `since`.
    pub(super) fn take(&self, wanted: &Wanted, page: Vec<Entry>, end: bool, since: Instant) {
        let mut state = self.state();
        if wanted.index < state.items.len() {
            state.refill(wanted.index, page, end, since);
        } else {
            state.extend(page, end, since);
        }
    }

    /// What the next process must know to go on with it.
    pub(super) fn open(&self) -> OpenHandle {
        let state = self.state();
        OpenHandle::Directory { inode: self.inode, names: state.items.len() as u64, fingerprint: state.fingerprint }
    }

    /// The offset at which the last of so many names is given; 0 for none.
    pub(super) fn offset_of_last(names: u64) -> u64 {
        names.checked_sub(1).map_or(0, |last| last + DOTS)
    }

    /// True if the first `names` of what was read are those of the fingerprint: then offsets mean the same.
    pub(super) fn begins_with(&self, names: u64, fingerprint: u64) -> bool {
        let state = self.state();
        let first = usize::try_from(names).ok().and_then(|names| state.items.get(..names));
        first.is_some_and(|items| items.iter().fold(FNV1A_EMPTY, |all, item| with_name(all, &item.name)) == fingerprint)
    }

    /// The kernel starts again from the beginning: entries are read anew.
    pub(super) fn rewind(&self) {
        *self.state() = State::new(Instant::now());
    }

    /// True once the kernel was given everything.
    pub(super) fn is_at_end(&self, offset: u64) -> bool {
        let state = self.state();
        state.end && index_of(offset) >= state.items.len() && offset >= DOTS
    }

    /// True if anything was read through this handle.
    pub(super) fn has_started(&self) -> bool {
        !self.state().items.is_empty()
    }

    /// Gives entries from `offset` on until `give` says that there is no room, or attributes are used up.
    pub(super) fn for_each_from(&self, offset: u64, mut give: impl FnMut(Given<'_>) -> bool) {
        let state = self.state();
        let dots = [(&b"."[..], self.inode), (&b".."[..], self.parent)];
        for (next, (name, inode)) in (1..).zip(dots).skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            let kind = FileType::Directory;
            if give(Given { name, inode, kind, next, attr: None, since: state.since }) {
                return;
            }
        }
        let first = state.first_present(index_of(offset));
        if !state.in_window(first) {
            return;
        }
        let window = state.items.iter().enumerate().skip(state.window_start).zip(&state.window);
        for ((index, item), attr) in window.skip(first - state.window_start) {
            let Some(attr) = attr else { continue };
            let next = index as u64 + 1 + DOTS;
            let (inode, kind) = (item.inode, item.kind);
            if give(Given { name: &item.name, inode, kind, next, attr: Some(attr), since: state.since }) {
                return;
            }
        }
    }
}

fn index_of(offset: u64) -> usize {
    usize::try_from(offset.saturating_sub(DOTS)).unwrap_or(usize::MAX)
}

impl State {
    fn new(since: Instant) -> State {
        State {
            items: Vec::new(),
            window: VecDeque::new(),
            window_start: 0,
            since,
            end: false,
            fingerprint: FNV1A_EMPTY,
            resume: None,
        }
    }

    /// The first entry from `index` on that has not vanished; the number of entries when there is none. An offset beyond
    /// what this handle ever gave out continues where the handle is.
    fn first_present(&self, index: usize) -> usize {
        let rest = self.items.get(index..).unwrap_or_default();
        rest.iter().position(|item| !item.gone).map_or(self.items.len(), |at| index + at)
    }

    fn in_window(&self, index: usize) -> bool {
        (self.window_start..self.window_start + self.window.len()).contains(&index)
    }

    fn extend(&mut self, page: Vec<Entry>, end: bool, since: Instant) {
        if self.window_start + self.window.len() != self.items.len() {
            self.window.clear();
        }
        if self.window.is_empty() {
            self.window_start = self.items.len();
            self.since = since;
        }
        for Entry { name, attr } in page {
            let Some(attr) = attr else { continue };
            self.fingerprint = with_name(self.fingerprint, &name);
            self.items.push(Item { name: name.as_ref().into(), inode: attr.inode, kind: attr.r#type(), gone: false });
            self.window.push_back(Some(attr));
        }
        while self.window.len() > WINDOW_MAX {
            self.window.pop_front();
            self.window_start += 1;
        }
        self.end = end;
    }

    /// Attributes for entries whose names are known, from a page read after the name before `index`.
    fn refill(&mut self, index: usize, page: Vec<Entry>, end: bool, since: Instant) {
        let last = page.last().map(|entry| entry.name.clone());
        let mut found: HashMap<Bytes, Attr> =
            page.into_iter().filter_map(|entry| entry.attr.map(|attr| (entry.name, attr))).collect();
        self.window_start = index;
        self.since = since;
        self.window.clear();
        for item in &mut self.items[index..] {
            if !end && last.as_ref().is_none_or(|last| item.name.as_ref() > last.as_ref()) {
                break;
            }
            // Another file under the old name is not the entry that was here.
            let attr = found.remove(item.name.as_ref()).filter(|attr| attr.inode == item.inode);
            item.gone = attr.is_none();
            self.window.push_back(attr);
        }
        self.resume = last.filter(|_| self.window.is_empty()).map(|last| (index, last));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 1000;

    struct Master(Vec<Entry>);

    impl Master {
        fn with(count: u64) -> Master {
            Master((0..count).map(entry).collect())
        }

        fn page(&self, after: &Bytes) -> (Vec<Entry>, bool) {
            let rest = self.0.iter().filter(|entry| entry.name > *after);
            let page: Vec<_> = rest.clone().take(PAGE).cloned().collect();
            let end = rest.count() <= PAGE;
            (page, end)
        }
    }

    fn entry(number: u64) -> Entry {
        let attr = Attr { inode: number + 10, r#type: FileType::File.into(), ..Default::default() };
        Entry { name: format!("f{number:07}").into(), attr: Some(attr) }
    }

    /// Reads from `offset` to the end as the kernel does, `batch` entries at a time.
    fn read(directory: &Directory, master: &Master, mut offset: u64, batch: usize) -> Vec<(u64, String)> {
        let mut seen = Vec::new();
        loop {
            while let Some(wanted) = directory.wanted(offset) {
                let (page, end) = master.page(&wanted.after);
                directory.take(&wanted, page, end, Instant::now());
            }
            let before = seen.len();
            directory.for_each_from(offset, |given| {
                seen.push((given.next, String::from_utf8_lossy(given.name).into_owned()));
                seen.len() - before >= batch
            });
            match seen.get(before..).and_then(<[_]>::last) {
                Some((next, _)) => offset = *next,
                None => return seen,
            }
        }
    }

    #[test]
    fn every_entry_comes_once_whatever_the_size_of_the_requests() {
        let master = Master::with(10_500);
        for batch in [1, 7, 30, 5000] {
            let seen = read(&Directory::new(3, 1, 0), &master, 0, batch);
            assert_eq!(seen.len(), 10_502);
            assert_eq!((seen[0].1.as_str(), seen[1].1.as_str()), (".", ".."));
            assert!(seen[2..].is_sorted_by(|a, b| a.1 < b.1));
        }
    }

    #[test]
    fn offsets_stay_with_their_entries_when_others_come_and_go() {
        let mut master = Master::with(9000);
        let directory = Directory::new(3, 1, 0);
        let first = read(&directory, &master, 0, 100);
        master.0.retain(|entry| entry.attr.as_ref().is_some_and(|attr| attr.inode != 10 + 500));
        master.0.insert(200, Entry { name: "f0000199a".into(), ..entry(1_000_000) });
        let from = first[300].0;
        let again = read(&directory, &master, from, 100);
        let expected: Vec<_> = first[301..].iter().filter(|(_, name)| name != "f0000500").cloned().collect();
        assert_eq!(again, expected);
    }

    #[test]
    fn reading_again_goes_on_behind_many_that_vanished_and_many_that_came() {
        let mut master = Master::with(9000);
        let directory = Directory::new(3, 1, 0);
        let first = read(&directory, &master, 0, 100);
        master.0.retain(|entry| entry.attr.as_ref().is_some_and(|attr| !(110..7110).contains(&attr.inode)));
        let come =
            (0..2500).map(|number| Entry { name: format!("f0000050{number:05}").into(), ..entry(number + 50_000) });
        master.0.extend(come);
        master.0.sort_by(|a, b| a.name.cmp(&b.name));
        let again = read(&directory, &master, first[52].0, 100);
        let present = |name: &str| name[1..].parse::<u64>().is_ok_and(|number| !(100..7100).contains(&number));
        let expected: Vec<_> = first[53..].iter().filter(|(_, name)| present(name)).cloned().collect();
        assert_eq!(again, expected);
    }

    #[test]
    fn an_empty_directory_has_the_dots_only() {
        let directory = Directory::new(3, 1, 0);
        assert_eq!(read(&directory, &Master::with(0), 0, 10).len(), 2);
        assert!(directory.is_at_end(2));
    }

    #[test]
    fn offsets_of_a_directory_read_anew_mean_the_same_only_if_nothing_before_them_changed() {
        let mut master = Master::with(2500);
        let first = Directory::new(3, 1, 0);
        let seen = read(&first, &master, 0, 100);
        let OpenHandle::Directory { names, fingerprint, .. } = first.open() else { panic!("a directory") };
        assert_eq!(names, 2500);
        master.0.push(entry(5_000_000));
        let again = Directory::new(3, 1, 0);
        read(&again, &master, Directory::offset_of_last(names), 100);
        assert!(again.begins_with(names, fingerprint), "what came behind does not matter");
        let rest = &seen[701..];
        assert_eq!(read(&again, &master, seen[700].0, 100)[..rest.len()], *rest);
        master.0.remove(7);
        let changed = Directory::new(3, 1, 0);
        read(&changed, &master, 0, 100);
        assert!(!changed.begins_with(names, fingerprint));
        assert!(Directory::new(3, 1, 0).begins_with(0, FNV1A_EMPTY), "nothing was read");
    }

    #[test]
    fn after_rewinding_new_entries_are_seen() {
        let mut master = Master::with(3);
        let directory = Directory::new(3, 1, 0);
        read(&directory, &master, 0, 10);
        master.0.push(entry(7));
        directory.rewind();
        assert_eq!(read(&directory, &master, 0, 10).len(), 6);
    }
}
