//! Content of a file at one moment.
//!
//! Pages are shared between the state that programs see and the durable one, and copied on the first write after an
//! fsync: an fsync costs the sectors written since the last one, and not the length of the file.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Unit of sharing and of torn writes. A small page keeps the copy cheap that the first write after each fsync makes.
pub const PAGE: usize = 16 * 1024;
/// Unit of what is dirty: the least that a kernel writes, so that a write saves as few of its neighbours as possible.
pub const SECTOR: usize = 512;

/// Every sector of a page.
const WHOLE: u32 = u32::MAX;
const _: () = assert!(PAGE / SECTOR == u32::BITS as usize, "a page has one bit for each of its sectors");

/// A set of sectors: for each page one bit per sector.
#[derive(Default, Clone, Debug)]
pub struct Sectors(BTreeMap<u64, u32>);

impl Sectors {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes in all of them.
    pub fn bytes(&self) -> u64 {
        self.0.values().map(|sectors| u64::from(sectors.count_ones()) * SECTOR as u64).sum()
    }

    pub fn add(&mut self, other: Sectors) {
        for (page, sectors) in other.0 {
            *self.0.entry(page).or_default() |= sectors;
        }
    }

    pub fn remove(&mut self, other: &Sectors) {
        for (page, removed) in &other.0 {
            if let Some(sectors) = self.0.get_mut(page) {
                *sectors &= !removed;
                if *sectors == 0 {
                    self.0.remove(page);
                }
            }
        }
    }

    /// The sectors of the pages that `choose` takes, and all others.
    pub fn partition(self, mut choose: impl FnMut() -> bool) -> (Sectors, Sectors) {
        let (chosen, others) = self.0.into_iter().partition(|_| choose());
        (Sectors(chosen), Sectors(others))
    }

    fn add_range(&mut self, page: u64, within: usize, length: usize) {
        let touched = within / SECTOR..(within + length).div_ceil(SECTOR);
        *self.0.entry(page).or_default() |= touched.fold(0, |sectors, sector| sectors | 1 << sector);
    }
}

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

    /// Puts bytes at `offset` and adds the sectors it touches to `touched`.
    pub fn write(&mut self, offset: u64, data: &[u8], touched: &mut Sectors) {
        for (page, within, range) in pieces(offset, data.len()) {
            let bytes = Arc::make_mut(self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE])));
            touched.add_range(page, within, range.len());
            bytes[within..within + range.len()].copy_from_slice(&data[range]);
        }
        self.size = self.size.max(offset + data.len() as u64);
    }

    /// Sets the length; what a shorter file loses reads as zeros should it grow again.
    pub fn truncate(&mut self, size: u64, touched: &mut Sectors) {
        if size < self.size {
            let keep = size.div_ceil(PAGE as u64);
            touched.add(Sectors(self.pages.split_off(&keep).into_keys().map(|page| (page, WHOLE)).collect()));
            let tail = (size % PAGE as u64) as usize;
            if tail > 0 && self.pages.contains_key(&(keep - 1)) {
                self.write(size, &vec![0; PAGE - tail], touched);
            }
        }
        self.size = size;
    }

    /// Takes over from `now` the length and these sectors.
    pub fn take_sectors(&mut self, now: &Content, sectors: Sectors) {
        if now.size < self.size {
            self.truncate(now.size, &mut Sectors::default());
        }
        self.copy_sectors(now, sectors);
        self.size = now.size;
    }

    /// Takes over these sectors from `other`; the length stays.
    pub fn copy_sectors(&mut self, other: &Content, sectors: Sectors) {
        for (page, sectors) in sectors.0 {
            match other.pages.get(&page) {
                Some(bytes) if sectors == WHOLE => drop(self.pages.insert(page, bytes.clone())),
                None if sectors == WHOLE => drop(self.pages.remove(&page)),
                found => {
                    let target = Arc::make_mut(self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE])));
                    for sector in (0..PAGE / SECTOR).filter(|sector| sectors & 1 << sector != 0) {
                        let range = sector * SECTOR..(sector + 1) * SECTOR;
                        match found {
                            Some(bytes) => target[range.clone()].copy_from_slice(&bytes[range]),
                            None => target[range].fill(0),
                        }
                    }
                }
            }
        }
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
