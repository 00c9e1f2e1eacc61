//! The state that the next process needs to take over a mount: the result of FUSE_INIT, and the open handles.
//!
//! It is kept in a memfd, whose descriptor the mount holder of the node keeps beside that of `/dev/fuse`. An entry is
//! written before the kernel gets the handle, and cleared before a close is answered: a process that is killed in
//! between leaves a superfluous entry, never a missing one.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use rustix::fs::{MemfdFlags, memfd_create};

use crate::error::{Error, ErrorKind, Result};
use crate::runtime::lock;

/// Magic number and format version.
const MAGIC: u64 = u64::from_be_bytes(*b"JFSFUSE\x02");
const HEAD: usize = 40;
const ENTRY: usize = 40;

/// The result of FUSE_INIT, which stays valid as long as the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Negotiated {
    /// Version of the FUSE protocol, as the kernel reported it.
    pub(super) version: (u32, u32),
    /// Capabilities that both sides have.
    pub(super) capabilities: u64,
    /// Largest read-ahead of the kernel, in bytes.
    pub(super) max_readahead: u32,
}

/// One open handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OpenHandle {
    /// An open file: its node and the version of its content.
    File { node: u64, version: u64, writes: bool },
    /// An open directory: the number of names read so far, and a fingerprint of them in order.
    Directory { inode: u64, names: u64, fingerprint: u64 },
}

/// The memfd and the index of its slots.
#[derive(Debug)]
pub(super) struct HandoverState {
    file: File,
    negotiated: Negotiated,
    /// How often the mount was taken over. It is part of handle numbers, so that numbers of different processes never
    /// collide.
    generation: u32,
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    by_handle: HashMap<u64, u64>,
    free: Vec<u64>,
    end: u64,
}

fn at(slot: u64) -> u64 {
    HEAD as u64 + slot * ENTRY as u64
}

fn word(bytes: &[u8], index: usize) -> u64 {
    let bytes = bytes.get(index * 8..index * 8 + 8).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u64::from_le_bytes)
}

fn words<const N: usize>(words: [u64; N]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

impl OpenHandle {
    fn encode(self, number: u64) -> Vec<u8> {
        match self {
            OpenHandle::File { node, version, writes } => words([1, number, node, version, u64::from(writes)]),
            OpenHandle::Directory { inode, names, fingerprint } => words([2, number, inode, names, fingerprint]),
        }
    }

    fn decode(bytes: &[u8]) -> Result<Option<(u64, OpenHandle)>> {
        let [kind, number, node, third, fourth] = [0, 1, 2, 3, 4].map(|index| word(bytes, index));
        let open = match kind {
            0 => return Ok(None),
            1 => OpenHandle::File { node, version: third, writes: fourth != 0 },
            2 => OpenHandle::Directory { inode: node, names: third, fingerprint: fourth },
            other => return Err(corrupted(format!("an entry of kind {other}"))),
        };
        Ok(Some((number, open)))
    }
}

fn corrupted(what: String) -> Error {
    Error::new(ErrorKind::Corrupted, format!("what the process before has left cannot be read: {what}"))
}

impl HandoverState {
    /// Creates an empty state, for a new mount.
    ///
    /// *Errors*: no memory is left.
    pub(super) fn new(negotiated: Negotiated) -> io::Result<HandoverState> {
        let file = File::from(memfd_create(c"jindofs-fuse", MemfdFlags::CLOEXEC)?);
        let state = HandoverState { file, negotiated, generation: 0, slots: Mutex::default() };
        state.write_head()?;
        Ok(state)
    }

    /// Opens the state that another process has left, and returns the open handles by number.
    ///
    /// *Errors*: `Corrupted` if the state was written by another release or is something else.
    pub(super) fn take(descriptor: OwnedFd) -> Result<(HandoverState, HashMap<u64, OpenHandle>)> {
        let file = File::from(descriptor);
        let size = usize::try_from(file.metadata()?.len()).map_err(|_| corrupted("its size".to_owned()))?;
        let mut bytes = vec![0; size];
        file.read_exact_at(&mut bytes, 0)?;
        if size < HEAD || word(&bytes, 0) != MAGIC {
            return Err(corrupted("it is of another release".to_owned()));
        }
        let halves = |index| {
            let word = word(&bytes, index).to_le_bytes();
            let half = |from: usize| u32::from_le_bytes([word[from], word[from + 1], word[from + 2], word[from + 3]]);
            (half(0), half(4))
        };
        let (max_readahead, generation) = halves(3);
        let negotiated = Negotiated { version: halves(1), capabilities: word(&bytes, 2), max_readahead };
        let (mut open, mut slots) = (HashMap::new(), Slots::default());
        for (slot, entry) in (0..).zip(bytes[HEAD..].chunks_exact(ENTRY)) {
            slots.end = slot + 1;
            match OpenHandle::decode(entry)? {
                Some((number, one)) => {
                    slots.by_handle.insert(number, slot);
                    open.insert(number, one);
                }
                None => slots.free.push(slot),
            }
        }
        let state =
            HandoverState { file, negotiated, generation: generation.wrapping_add(1), slots: Mutex::new(slots) };
        state.write_head()?;
        Ok((state, open))
    }

    fn write_head(&self) -> io::Result<()> {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let Negotiated { version, capabilities, max_readahead } = self.negotiated;
        let prefix = [MAGIC, pair(version.0, version.1), capabilities, pair(max_readahead, self.generation), 0];
        self.file.write_all_at(&words(prefix), 0)
    }

    pub(super) fn negotiated(&self) -> Negotiated {
        self.negotiated
    }

    /// The smallest handle number that no previous process has used.
    pub(super) fn first_handle(&self) -> u64 {
        u64::from(self.generation) << 40 | 1
    }

    /// Saves what a handle stands for, or updates it.
    ///
    /// *Errors*: no memory is left; then the kernel must not get the handle.
    pub(super) fn put(&self, number: u64, open: OpenHandle) -> io::Result<()> {
        let mut slots = lock(&self.slots);
        let slot = match slots.by_handle.get(&number) {
            Some(slot) => *slot,
            None => slots.free.pop().unwrap_or(slots.end),
        };
        self.file.write_all_at(&open.encode(number), at(slot))?;
        slots.end = slots.end.max(slot + 1);
        slots.by_handle.insert(number, slot);
        Ok(())
    }

    /// Removes a handle.
    pub(super) fn remove(&self, number: u64) {
        let mut slots = lock(&self.slots);
        let Some(slot) = slots.by_handle.remove(&number) else { return };
        match self.file.write_all_at(&[0; ENTRY], at(slot)) {
            Ok(()) => slots.free.push(slot),
            // The next process takes the handle for open, which costs an entry and some page cache.
            Err(error) => tracing::warn!(%error, "a closed handle stays noted"),
        }
    }
}

impl AsFd for HandoverState {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEGOTIATED: Negotiated = Negotiated { version: (7, 45), capabilities: 1 << 39 | 5, max_readahead: 4 << 20 };

    fn again(state: &HandoverState) -> (HandoverState, HashMap<u64, OpenHandle>) {
        HandoverState::take(state.as_fd().try_clone_to_owned().expect("a descriptor")).expect("taken")
    }

    #[test]
    fn the_next_process_finds_what_is_open_and_gives_numbers_nobody_gave_before() {
        let state = HandoverState::new(NEGOTIATED).expect("memory");
        let file = OpenHandle::File { node: 5, version: u64::MAX, writes: true };
        let directory = |names| OpenHandle::Directory { inode: 6, names, fingerprint: names * 7 };
        state.put(state.first_handle(), file).expect("noted");
        state.put(2, file).expect("noted");
        state.put(3, directory(0)).expect("noted");
        state.put(3, directory(1000)).expect("noted");
        state.remove(2);
        let (next, open) = again(&state);
        assert_eq!(open, [(1, file), (3, directory(1000))].into());
        assert_eq!(next.negotiated(), NEGOTIATED);
        assert!(next.first_handle() > 1 << 39);
        next.put(next.first_handle(), file).expect("in the free place");
        next.remove(3);
        let (third, open) = again(&next);
        assert_eq!(open, [(1, file), (next.first_handle(), file)].into());
        assert!(third.first_handle() > next.first_handle());
        assert_eq!(third.file.metadata().expect("stat").len(), at(3), "places are used again");
    }

    #[test]
    fn what_is_no_such_file_is_refused() {
        let state = HandoverState::new(NEGOTIATED).expect("memory");
        state.file.write_all_at(&words([9]), at(0)).expect("written");
        state.file.set_len(at(1)).expect("longer");
        let taken =
            |state: &HandoverState| HandoverState::take(state.as_fd().try_clone_to_owned().expect("a descriptor"));
        assert_eq!(taken(&state).expect_err("an unknown kind").kind, ErrorKind::Corrupted);
        state.file.write_all_at(b"JFSFUSE2", 0).expect("written");
        assert_eq!(taken(&state).expect_err("another release").kind, ErrorKind::Corrupted);
        state.file.set_len(3).expect("shorter");
        assert_eq!(taken(&state).expect_err("cut off").kind, ErrorKind::Corrupted);
    }
}
