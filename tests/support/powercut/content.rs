//! Content of a file at one moment.
//!
//! Pages are shared between the state that programs see and the durable one, and copied on the first write after an
//! fsync: an fsync costs the pages written since the last one, and not the length of the file.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

/// A small page keeps the copy cheap that the first write after each fsync makes.
pub const PAGE: usize = 16 * 1024;

/// Bytes in pages; a missing page reads as zeros.
#[derive(Default, Clone)]
pub struct Content {
    pages: BTreeMap<u64, Arc<[u8; PAGE]>>,
    /// Length in bytes.
    pub size: u64,
}

impl Content {
    /// Bytes from `offset`, fewer at the end.
    pub fn read(&self, offset: u64, size: usize) -> Vec<u8> {
        let end = self.size.min(offset.saturating_add(size as u64));
        let mut out = vec![0; end.saturating_sub(offset) as usize];
        for (page, within, range) in pieces(offset, out.len()) {
            if let Some(bytes) = self.pages.get(&page) {
                let length = range.len();
                out[range].copy_from_slice(&bytes[within..within + length]);
            }
        }
        out
    }

    /// Puts bytes at `offset` and adds the pages it touches to `dirty`.
    pub fn write(&mut self, offset: u64, data: &[u8], dirty: &mut BTreeSet<u64>) {
        for (page, within, range) in pieces(offset, data.len()) {
            let bytes = Arc::make_mut(self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE])));
            bytes[within..within + range.len()].copy_from_slice(&data[range]);
            dirty.insert(page);
        }
        self.size = self.size.max(offset + data.len() as u64);
    }

    /// Sets the length; what a shorter file loses reads as zeros should it grow again.
    pub fn truncate(&mut self, size: u64, dirty: &mut BTreeSet<u64>) {
        if size < self.size {
            let keep = size.div_ceil(PAGE as u64);
            dirty.extend(self.pages.split_off(&keep).into_keys());
            let tail = (size % PAGE as u64) as usize;
            if tail > 0 && self.pages.contains_key(&(keep - 1)) {
                self.write(size, &vec![0; PAGE - tail], dirty);
            }
        }
        self.size = size;
    }

    /// Takes over from `now` the length and the pages named in `dirty`.
    pub fn take_pages(&mut self, now: &Content, dirty: &mut BTreeSet<u64>) {
        for page in std::mem::take(dirty) {
            match now.pages.get(&page) {
                Some(bytes) => drop(self.pages.insert(page, bytes.clone())),
                None => drop(self.pages.remove(&page)),
            }
        }
        self.size = now.size;
    }
}

/// The pages that `length` bytes from `offset` touch: page number, start within it, range within the bytes.
fn pieces(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == length {
            return None;
        }
        let at = offset + done as u64;
        let within = (at % PAGE as u64) as usize;
        let count = (PAGE - within).min(length - done);
        done += count;
        Some((at / PAGE as u64, within, done - count..done))
    })
}
