//! Frames: the unit of the log file. Each carries a sequence number and a checksum that covers it, the segment it was
//! written for and its payload, so that a frame can never be mistaken for one of another place or time.

/// Bytes of a frame's header.
pub(super) const HEADER: usize = 24;
const MAGIC: u16 = 0x4a57;
/// Frames begin at multiples of this, so that a scan for survivors behind a damaged frame has few places to look.
pub(super) const ALIGN: usize = 8;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// First frame of a segment: format version, and the [`LogStamp`](super::LogStamp).
    Header,
    /// A `raft.v1.Entry`.
    Entry,
    /// A `raft.v1.Vote`.
    Vote,
    /// A `raft.v1.LogId`, or nothing: everything after it is void.
    Truncate,
    /// A `raft.v1.LogId`: everything up to it is void.
    Purge,
    /// A `raft.v1.LogId` known to be committed.
    Committed,
    /// A sequence number (8 bytes, big-endian): every frame up to it was synced before this frame was written.
    Durable,
    /// A boot counter (8 bytes, big-endian): the frames behind it were written by that start of the member.
    Boot,
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Kind::Header => 1,
            Kind::Entry => 2,
            Kind::Vote => 3,
            Kind::Truncate => 4,
            Kind::Purge => 5,
            Kind::Committed => 6,
            Kind::Durable => 7,
            Kind::Boot => 8,
        }
    }

    fn from_code(code: u8) -> Option<Kind> {
        let all = [
            Kind::Header,
            Kind::Entry,
            Kind::Vote,
            Kind::Truncate,
            Kind::Purge,
            Kind::Committed,
            Kind::Durable,
            Kind::Boot,
        ];
        all.into_iter().find(|kind| kind.code() == code)
    }
}

/// A frame found in a segment.
#[derive(Debug)]
pub(super) struct Frame<'a> {
    pub(super) kind: Kind,
    pub(super) seq: u64,
    pub(super) payload: &'a [u8],
    /// Bytes to the next frame.
    pub(super) length: usize,
}

/// What stands at a position.
#[derive(Debug)]
pub(super) enum Parsed<'a> {
    Frame(Frame<'a>),
    /// Zeros: nothing was written here.
    End,
    /// Something that is no frame of this segment.
    Damaged,
}

fn checksum(segment: u64, seq: u64, kind: u8, payload: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&segment.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &seq.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &[kind]);
    crc32c::crc32c_append(crc, payload)
}

/// Appends a frame to `out`; returns the offset of its payload in `out`.
pub(super) fn encode(out: &mut Vec<u8>, segment: u64, seq: u64, kind: Kind, payload: &[u8]) -> usize {
    out.extend_from_slice(&MAGIC.to_le_bytes());
    out.extend_from_slice(&[kind.code(), 0]);
    out.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(&seq.to_le_bytes());
    out.extend_from_slice(&checksum(segment, seq, kind.code(), payload).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    let at = out.len();
    out.extend_from_slice(payload);
    out.resize(out.len().next_multiple_of(ALIGN), 0);
    at
}

/// Bytes of a frame with a payload of `length` bytes.
pub(super) fn frame_bytes(length: usize) -> usize {
    (HEADER + length).next_multiple_of(ALIGN)
}

/// Looks at `data[at..]` of `segment`.
pub(super) fn parse(data: &[u8], at: usize, segment: u64) -> Parsed<'_> {
    let Some(header) = data.get(at..at + HEADER) else {
        let rest = data.get(at..).unwrap_or_default();
        return if rest.iter().all(|byte| *byte == 0) { Parsed::End } else { Parsed::Damaged };
    };
    if header.iter().all(|byte| *byte == 0) {
        return Parsed::End;
    }
    match parse_frame(data, at, header, segment) {
        Some(frame) => Parsed::Frame(frame),
        None => Parsed::Damaged,
    }
}

fn parse_frame<'a>(data: &'a [u8], at: usize, header: &[u8], segment: u64) -> Option<Frame<'a>> {
    let field4 = |from: usize| header.get(from..from + 4)?.try_into().ok().map(u32::from_le_bytes);
    if header.get(..2)? != MAGIC.to_le_bytes() {
        return None;
    }
    let kind = Kind::from_code(*header.get(2)?)?;
    let length = usize::try_from(field4(4)?).ok()?;
    let seq = u64::from_le_bytes(header.get(8..16)?.try_into().ok()?);
    let start = at + HEADER;
    let payload = data.get(start..start.checked_add(length)?)?;
    if checksum(segment, seq, kind.code(), payload) != field4(16)? {
        return None;
    }
    Some(Frame { kind, seq, payload, length: frame_bytes(length) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_back_and_any_flipped_byte_is_noticed() {
        let mut data = Vec::new();
        encode(&mut data, 3, 9, Kind::Entry, b"hello");
        assert_eq!(data.len() % ALIGN, 0);
        match parse(&data, 0, 3) {
            Parsed::Frame(frame) => {
                assert_eq!((frame.kind, frame.seq, frame.payload), (Kind::Entry, 9, &b"hello"[..]));
                assert_eq!(frame.length, data.len());
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(parse(&data, 0, 4), Parsed::Damaged), "another segment's frame is none of ours");
        for at in 0..HEADER - 4 + 5 {
            // The reserved byte and the padding carry nothing.
            if at == 3 || (20..24).contains(&at) {
                continue;
            }
            let mut flipped = data.clone();
            flipped[at] ^= 0x10;
            assert!(matches!(parse(&flipped, 0, 3), Parsed::Damaged), "flip at {at}");
        }
        assert!(matches!(parse(&[0; 64], 0, 3), Parsed::End));
    }
}
