//! Opening a log: segments are read from the first to the last, and every frame has to be where it belongs.
//!
//! Reading changes nothing on the disk: whether the log may be used is decided from what was read, and only
//! [`Recovered::settle`] removes what a crash left behind.
//!
//! A crash may tear only what was not yet synced, which stands at the end of the last segment: there the log is cut.
//! Damage anywhere else, or in a frame that a later one says was durable, is not a crash but a bad disk or an edited
//! file. Then the log refuses to open: a log that silently lost its tail would let its member vote against what it
//! once acknowledged.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jindofs_proto::raft::v1 as wire;
use prost::Message;

use crate::master::raft::disk_space::is_out_of_space;
use crate::master::raft::identity::Owner;
use crate::master::raft::types;
use crate::runtime::planted::{PlantedFault, is_planted};
use crate::runtime::sync_dir;

use super::frame::{self, Frame, Kind, Parsed};
use super::index::{LogIndex, Place};

/// Bytes of a segment. Small enough to be zero-filled in tens of milliseconds, large enough that rolling is rare.
const SEGMENT_BYTES: usize = 16 << 20;
/// Bytes of a segment in a simulated run, whose logs are short.
#[cfg(test)]
const SIMULATED_SEGMENT_BYTES: usize = 64 << 10;
/// Version of the frame format, in each segment's first frame. Format 1 did not name the owner of the log.
const FORMAT: u32 = 4;
const STAMP_BYTES: usize = 4 + Owner::BYTES + 8;

/// Whose log it is, and the newest start of its member that has opened it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogStamp {
    pub(crate) owner: Owner,
    pub(crate) boot: u64,
}

impl LogStamp {
    /// Payload of a segment's header frame.
    pub(super) fn encode(&self) -> [u8; STAMP_BYTES] {
        let mut payload = [0; STAMP_BYTES];
        payload[..4].copy_from_slice(&FORMAT.to_be_bytes());
        payload[4..4 + Owner::BYTES].copy_from_slice(&self.owner.encode());
        payload[4 + Owner::BYTES..].copy_from_slice(&self.boot.to_be_bytes());
        payload
    }

    fn decode(payload: &[u8]) -> Option<LogStamp> {
        let owner = Owner::decode(payload.get(4..4 + Owner::BYTES)?)?;
        let boot = payload.get(4 + Owner::BYTES..)?.try_into().ok().map(u64::from_be_bytes)?;
        Some(LogStamp { owner, boot })
    }
}

/// A segment the writer knows about.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    /// Highest entry index ever written into it.
    pub(super) last_index: Option<u64>,
}

/// Where writing goes on.
#[derive(Debug, Default)]
pub(super) struct Tail {
    pub(super) segments: Vec<Segment>,
    /// Byte offset of the next frame in the last segment.
    pub(super) offset: usize,
    /// Byte offset in the last segment behind which no frame is known to be durable.
    pub(super) durable_offset: usize,
    pub(super) next_seq: u64,
}

/// A log that was read and not changed.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(super) index: LogIndex,
    pub(super) tail: Tail,
    /// Unset for a log that no start has ever begun.
    pub(crate) stamp: Option<LogStamp>,
    dir: PathBuf,
    leftovers: Vec<PathBuf>,
}

impl Recovered {
    /// The newest log id; for a log that is purged whole, the one it was purged to.
    pub(crate) fn last(&self) -> Option<types::LogId> {
        self.index.last()
    }

    /// Everything up to this log id was purged.
    pub(crate) fn purged(&self) -> Option<types::LogId> {
        self.index.purged
    }

    /// The log id of the entry at `index`, if the log holds it.
    pub(crate) fn log_id_at(&self, index: u64) -> Option<types::LogId> {
        self.index.slot(index).map(|slot| slot.log_id)
    }

    /// Removes what a crash left behind, and writes everything again that is not known to be durable.
    ///
    /// What was read may stand in the page cache only. After a failed fsync Linux marks the pages clean: another fsync
    /// would succeed without writing them, and a power cut would take back what this start is about to build on. Pages
    /// that are written again are dirty, so the fsync after that is a true one.
    ///
    /// *Durability*: the whole log is on disk on return.
    pub(super) fn settle(&self) -> io::Result<()> {
        for path in &self.leftovers {
            fs::remove_file(path)?;
        }
        let Some(number) = self.tail.segments.last().map(|segment| segment.number) else { return Ok(()) };
        let Some(file) = self.index.files.get(&number) else { return Ok(()) };
        let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        cut(file, self.tail.offset, length)?;
        if is_planted(PlantedFault::LogNotSettled) {
            return Ok(());
        }
        let mut suspect = vec![0; self.tail.offset.saturating_sub(self.tail.durable_offset)];
        file.read_exact_at(&mut suspect, self.tail.durable_offset as u64)?;
        file.write_all_at(&suspect, self.tail.durable_offset as u64)?;
        file.sync_data()?;
        sync_dir(&self.dir)
    }
}

pub(super) fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.wal"))
}

fn corrupt(path: &Path, at: usize, why: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "the raft log is damaged: {why} at byte {at} of {}; this member will not start with a shorter log. \
             Way out: move its meta-dir aside and start it empty, it will be replaced from its peers",
            path.display()
        ),
    )
}

/// Reads every segment in `dir`, which need not exist. Changes nothing.
///
/// *Errors*: `InvalidData` for damage that no crash explains, and for a log of another format.
pub(crate) fn recover(dir: &Path) -> io::Result<Recovered> {
    let (mut numbers, mut leftovers) = (Vec::new(), Vec::new());
    let items = match fs::read_dir(dir) {
        Ok(items) => Some(items),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    for item in items.into_iter().flatten() {
        let name = item?.file_name();
        let name = name.to_string_lossy();
        if let Some(hex) = name.strip_suffix(".wal")
            && let Ok(number) = u64::from_str_radix(hex, 16)
        {
            numbers.push(number);
        } else {
            // A segment that was being prepared.
            leftovers.push(dir.join(name.as_ref()));
        }
    }
    numbers.sort_unstable();
    let mut reader = Reader::new(dir);
    let mut offset = 0;
    for (position, number) in numbers.iter().enumerate() {
        let last = position + 1 == numbers.len();
        if position > 0 && numbers[position - 1] + 1 != *number {
            return Err(corrupt(&segment_path(dir, *number), 0, "the segment before this one is missing"));
        }
        offset = reader.read_segment(*number, position == 0, last)?;
    }
    let durable_offset = reader.durable_offset(offset);
    let Reader { mut index, next_seq, segments, stamp, .. } = reader;
    index.flushed = index.last().map_or(0, |id| id.index);
    let tail = Tail { segments, offset, durable_offset, next_seq };
    Ok(Recovered { index, tail, stamp, dir: dir.to_owned(), leftovers })
}

struct Reader<'a> {
    dir: &'a Path,
    index: LogIndex,
    next_seq: u64,
    segments: Vec<Segment>,
    stamp: Option<LogStamp>,
    /// Highest sequence number that a frame says was durable.
    durable_seq: u64,
    /// Sequence number and offset of the frames of the segment that is being read.
    offsets: Vec<(u64, usize)>,
}

impl Reader<'_> {
    fn new(dir: &Path) -> Reader<'_> {
        Reader {
            dir,
            index: LogIndex::default(),
            next_seq: 1,
            segments: Vec::new(),
            stamp: None,
            durable_seq: 0,
            offsets: Vec::new(),
        }
    }

    /// Offset of the first frame in the segment read last that is not known to be durable.
    fn durable_offset(&self, end: usize) -> usize {
        let at = self.offsets.partition_point(|(seq, _)| *seq <= self.durable_seq);
        self.offsets.get(at).map_or(end, |(_, offset)| *offset)
    }

    fn read_segment(&mut self, number: u64, first: bool, last: bool) -> io::Result<usize> {
        let path = segment_path(self.dir, number);
        let data = fs::read(&path)?;
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        self.segments.push(Segment { number, last_index: None });
        self.offsets.clear();
        let mut at = 0;
        loop {
            match frame::parse(&data, at, number) {
                Parsed::Frame(found) => {
                    if at == 0 {
                        self.take_header(&path, &found)?;
                        if first {
                            self.next_seq = found.seq;
                        }
                    }
                    if found.seq != self.next_seq {
                        return Err(corrupt(&path, at, "a frame is missing"));
                    }
                    self.take(&path, at, number, &found)?;
                    self.offsets.push((found.seq, at));
                    self.next_seq += 1;
                    at += found.length;
                }
                Parsed::End if last || at + frame::HEADER > data.len() => break,
                // A segment is rolled only once it is synced; its unused rest is zeros. What follows tells whether
                // frames are missing: the next segment begins with the next sequence number.
                Parsed::End => break,
                Parsed::Damaged if !last => return Err(corrupt(&path, at, "a checksum does not match")),
                Parsed::Damaged => break,
            }
        }
        if last && !is_planted(PlantedFault::DamageCutOff) {
            self.check_tail(&path, &data, at, number)?;
        }
        self.index.files.insert(number, Arc::new(file));
        Ok(at)
    }

    /// Decides whether what stands after the last good frame was torn by a crash or damaged later.
    fn check_tail(&self, path: &Path, data: &[u8], end: usize, number: u64) -> io::Result<()> {
        let mut at = end + frame::ALIGN;
        while at + frame::HEADER <= data.len() {
            if let Parsed::Frame(survivor) = frame::parse(data, at, number)
                && survivor.seq >= self.next_seq
                && survivor.kind == Kind::Durable
                && decode_u64(survivor.payload).is_some_and(|durable| durable >= self.next_seq)
            {
                return Err(corrupt(path, end, "a frame that was durable does not match its checksum"));
            }
            at += frame::ALIGN;
        }
        Ok(())
    }

    fn take(&mut self, path: &Path, at: usize, number: u64, found: &Frame<'_>) -> io::Result<()> {
        let bad = |why: &str| corrupt(path, at, why);
        match found.kind {
            Kind::Header => {}
            Kind::Durable => {
                let seq = decode_u64(found.payload).ok_or_else(|| bad("a mark of durability does not decode"))?;
                self.durable_seq = self.durable_seq.max(seq);
            }
            Kind::Boot => {
                let boot = decode_u64(found.payload).ok_or_else(|| bad("a boot counter does not decode"))?;
                self.note_boot(boot).ok_or_else(|| bad("the boot counter went back"))?;
            }
            Kind::Vote => {
                let vote = wire::Vote::decode(found.payload).map_err(|_| bad("a vote does not decode"))?;
                self.index.vote = Some(types::vote_from_wire(&vote));
            }
            Kind::Committed => self.index.committed = Some(decode_id(found.payload).ok_or_else(|| bad("bad log id"))?),
            Kind::Purge => self.index.purge(decode_id(found.payload).ok_or_else(|| bad("bad log id"))?),
            Kind::Truncate if found.payload.is_empty() => self.index.truncate_after(None),
            Kind::Truncate => {
                self.index.truncate_after(Some(decode_id(found.payload).ok_or_else(|| bad("bad log id"))?));
            }
            Kind::Entry => self.take_entry(number, at, found).ok_or_else(|| bad("an entry is out of place"))?,
        }
        Ok(())
    }

    /// Every segment begins with the stamp of the log. Segments of two owners, or of a later start before an earlier one,
    /// do not belong to one log.
    fn take_header(&mut self, path: &Path, found: &Frame<'_>) -> io::Result<()> {
        let bad = |why: &str| corrupt(path, 0, why);
        let format = found.payload.get(..4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
        match format.filter(|_| found.kind == Kind::Header) {
            Some(FORMAT) => {}
            Some(other) => {
                return Err(bad(&format!("the segment has log format {other}, this release reads {FORMAT},")));
            }
            None => return Err(bad("the segment has no header")),
        }
        let stamp = LogStamp::decode(found.payload).ok_or_else(|| bad("the header does not decode"))?;
        match self.stamp {
            Some(known) if known.owner != stamp.owner => Err(bad("the segment belongs to another member's log")),
            Some(_) => self.note_boot(stamp.boot).ok_or_else(|| bad("the boot counter went back")),
            None => {
                self.stamp = Some(stamp);
                Ok(())
            }
        }
    }

    fn note_boot(&mut self, boot: u64) -> Option<()> {
        let stamp = self.stamp.as_mut().filter(|stamp| stamp.boot <= boot)?;
        stamp.boot = boot;
        Some(())
    }

    fn take_entry(&mut self, segment: u64, at: usize, found: &Frame<'_>) -> Option<()> {
        let entry = wire::Entry::decode(found.payload).ok()?;
        let log_id = types::log_id_from_wire(entry.log_id.as_ref()?);
        if let Some(segment) = self.segments.last_mut() {
            segment.last_index = segment.last_index.max(Some(log_id.index));
        }
        // A purge beyond the end can stand before entries that were already under way.
        if self.index.purged.is_some_and(|purged| log_id.index <= purged.index) {
            return Some(());
        }
        if self.index.next_index().is_some_and(|next| next != log_id.index) && !self.index.range().is_empty() {
            return None;
        }
        let length = u32::try_from(found.payload.len()).ok()?;
        let place = Place { segment, offset: u64::try_from(at + frame::HEADER).ok()?, length };
        self.index.push(log_id, u64::from(length), None, Some(place));
        if matches!(entry.payload, Some(wire::entry::Payload::Membership(_))) {
            self.index.note_membership(log_id.index);
        }
        Some(())
    }
}

fn decode_id(payload: &[u8]) -> Option<types::LogId> {
    wire::LogId::decode(payload).ok().map(|id| types::log_id_from_wire(&id))
}

fn decode_u64(payload: &[u8]) -> Option<u64> {
    payload.try_into().ok().map(u64::from_be_bytes)
}

/// Zeroes what a crash left behind, so that it can never be taken for frames written later.
fn cut(file: &File, at: usize, length: usize) -> io::Result<()> {
    let zeros = vec![0; 1 << 20];
    let mut from = at;
    let mut dirty = false;
    let mut block = vec![0; 1 << 20];
    while from < length {
        let count = zeros.len().min(length - from);
        file.read_exact_at(&mut block[..count], from as u64)?;
        if block[..count].iter().any(|byte| *byte != 0) {
            file.write_all_at(&zeros[..count], from as u64)?;
            dirty = true;
        }
        from += count;
    }
    if dirty { file.sync_data() } else { Ok(()) }
}

/// Bytes of a segment of this process.
pub(super) fn segment_bytes() -> usize {
    #[cfg(test)]
    if crate::runtime::simulated::is_active() {
        return SIMULATED_SEGMENT_BYTES;
    }
    SEGMENT_BYTES
}

/// Creates an empty, zero-filled segment: later syncs then write data only, no metadata. On a full disk it has as many
/// zeros as there was room for, and grows as it is written.
pub(super) fn create_segment(dir: &Path, number: u64) -> io::Result<File> {
    let temporary = dir.join("prepare.tmp");
    let path = segment_path(dir, number);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&temporary)?;
    let zeros = vec![0; segment_bytes().min(1 << 20)];
    for block in 0..segment_bytes() / zeros.len() {
        match file.write_all_at(&zeros, (block * zeros.len()) as u64) {
            Err(error) if is_out_of_space(&error) => {
                // The last zeros go back: others need room too, and the frames of this segment come first.
                file.set_len((block.saturating_sub(1) * zeros.len()) as u64)?;
                break;
            }
            written => written?,
        }
    }
    file.sync_all()?;
    fs::rename(&temporary, &path)?;
    if !is_planted(PlantedFault::SegmentNotSynced) {
        sync_dir(dir)?;
    }
    Ok(file)
}
