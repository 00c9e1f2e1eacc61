//! What one owner has locked of one file: ranges in order that do not overlap, as POSIX has record locks.
//!
//! Whatever is locked, changed or given up takes the place of what was there: in the middle of a range it splits it, and
//! ranges of one kind that touch are one.

use jindofs_proto::store::v1::LockedRange;

/// Last byte a lock can name; it stands for the end of a file, however long it gets.
pub(in crate::master::state) const END: u64 = i64::MAX as u64;

/// True if two ranges have a byte in common.
pub(super) fn overlap(one: &LockedRange, other: &LockedRange) -> bool {
    one.start <= other.end && other.start <= one.end
}

/// Frees the bytes from `start` to `end`.
pub(super) fn clear(ranges: &mut Vec<LockedRange>, start: u64, end: u64) {
    let old = std::mem::take(ranges);
    for range in old {
        if range.end < start || range.start > end {
            ranges.push(range);
            continue;
        }
        if range.start < start {
            ranges.push(LockedRange { end: start - 1, ..range });
        }
        if range.end > end {
            ranges.push(LockedRange { start: end + 1, ..range });
        }
    }
}

/// Locks the bytes of `new`, whatever the owner had there.
pub(super) fn set(ranges: &mut Vec<LockedRange>, new: LockedRange) {
    clear(ranges, new.start, new.end);
    let at = ranges.partition_point(|range| range.start < new.start);
    ranges.insert(at, new);
    merge(ranges);
}

fn merge(ranges: &mut Vec<LockedRange>) {
    ranges.dedup_by(|next, range| {
        let one = range.exclusive == next.exclusive && range.end.checked_add(1) == Some(next.start);
        if one {
            range.end = next.end;
        }
        one
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes of the naive model.
    const BYTES: u64 = 24;

    fn change() -> impl Strategy<Value = (u64, u64, Option<bool>)> {
        (0..BYTES, 0..BYTES, any::<Option<bool>>())
            .prop_map(|(one, other, kind)| (one.min(other), one.max(other), kind))
    }

    proptest! {
        #[test]
        fn ranges_are_what_byte_for_byte_would_be(changes in prop::collection::vec(change(), 0..30)) {
            let (mut ranges, mut bytes) = (Vec::new(), [None; BYTES as usize]);
            for (start, end, kind) in changes {
                match kind {
                    Some(exclusive) => set(&mut ranges, LockedRange { start, end, exclusive, pid: 1 }),
                    None => clear(&mut ranges, start, end),
                }
                bytes[start as usize..=end as usize].fill(kind);
                let at = |byte| LockedRange { start: byte, end: byte, ..LockedRange::default() };
                let shown: Vec<Option<bool>> = (0..BYTES)
                    .map(|byte| ranges.iter().find(|range| overlap(range, &at(byte))).map(|range| range.exclusive))
                    .collect();
                prop_assert_eq!(&shown[..], &bytes[..]);
                let apart = |pair: &[LockedRange]| {
                    pair[0].end + 1 < pair[1].start
                        || (pair[0].end < pair[1].start && pair[0].exclusive != pair[1].exclusive)
                };
                prop_assert!(ranges.windows(2).all(apart), "{ranges:?} are as few as they can be");
            }
        }
    }

    #[test]
    fn a_whole_file_ends_where_files_end() {
        let whole = LockedRange { start: 0, end: END, exclusive: true, pid: 1 };
        let mut ranges = vec![whole];
        set(&mut ranges, LockedRange { start: END, exclusive: false, ..whole });
        clear(&mut ranges, 10, 19);
        let found: Vec<_> = ranges.iter().map(|range| (range.start, range.end, range.exclusive)).collect();
        assert_eq!(found, [(0, 9, true), (20, END - 1, true), (END, END, false)]);
        clear(&mut ranges, 0, END);
        assert!(ranges.is_empty());
    }
}
