//! Inode numbers that were set aside for a session, and which of them have been used: no number is ever given to two
//! files, also when the first of them is gone.
//!
//! Clients use the numbers of a range nearly in order. So a range remembers where its untouched end begins, and the few
//! numbers below that were skipped so far.

use jindofs_proto::store::v1::{InodeRange, ReservedRange};

/// Runs of skipped numbers that a range remembers. Beyond that the lowest are given up: a client has no more numbers
/// under way than it has threads, and those are the highest.
const SKIPPED_MAX: usize = 64;

/// What a number is for a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NumberState {
    /// Set aside for it, and not used.
    Unused,
    /// Set aside for it, and used or given up.
    Used,
    /// Not set aside for it.
    NotReserved,
}

/// A range of which nothing is used.
pub(super) fn untouched(range: InodeRange) -> ReservedRange {
    ReservedRange { first: range.first, count: range.count, ..ReservedRange::default() }
}

/// What `number` is for the session that has `ranges`.
pub(super) fn state_of(ranges: &[ReservedRange], number: u64) -> NumberState {
    let Some((range, offset)) = ranges.iter().find_map(|range| Some((range, offset_in(range, number)?))) else {
        return NumberState::NotReserved;
    };
    let skipped = || range.skipped.iter().any(|run| contains(run, number));
    if offset >= range.next || skipped() { NumberState::Unused } else { NumberState::Used }
}

/// Notes that `number` is used. For one that is not unused, nothing changes.
pub(super) fn mark_used(ranges: &mut [ReservedRange], number: u64) {
    let Some((range, offset)) = ranges.iter_mut().find_map(|range| {
        let offset = offset_in(range, number)?;
        Some((range, offset))
    }) else {
        return;
    };
    if offset >= range.next {
        let skipped = InodeRange { first: range.first + u64::from(range.next), count: offset - range.next };
        range.skipped.extend((skipped.count > 0).then_some(skipped));
        range.next = offset + 1;
    } else if let Some(at) = range.skipped.iter().position(|run| contains(run, number)) {
        let run = range.skipped[at];
        let below = u32::try_from(number - run.first).unwrap_or(run.count);
        let above = run.count.saturating_sub(below + 1);
        let left = [InodeRange { first: run.first, count: below }, InodeRange { first: number + 1, count: above }];
        drop(range.skipped.splice(at..=at, left.into_iter().filter(|run| run.count > 0)));
    }
    let surplus = range.skipped.len().saturating_sub(SKIPPED_MAX);
    range.skipped.drain(..surplus);
}

fn offset_in(range: &ReservedRange, number: u64) -> Option<u32> {
    let offset = u32::try_from(number.checked_sub(range.first)?).ok()?;
    (offset < range.count).then_some(offset)
}

fn contains(run: &InodeRange, number: u64) -> bool {
    number >= run.first && number - run.first < u64::from(run.count)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn range(first: u64, count: u32) -> ReservedRange {
        untouched(InodeRange { first, count })
    }

    #[test]
    fn numbers_used_in_order_leave_nothing_to_remember() {
        let mut ranges = [range(1000, 8192)];
        for number in 1000..1000 + 8192 {
            assert_eq!(state_of(&ranges, number), NumberState::Unused);
            mark_used(&mut ranges, number);
            assert_eq!(state_of(&ranges, number), NumberState::Used);
        }
        assert!(ranges[0].skipped.is_empty());
        assert_eq!(state_of(&ranges, 999), NumberState::NotReserved);
        assert_eq!(state_of(&ranges, 1000 + 8192), NumberState::NotReserved);
    }

    #[test]
    fn what_a_range_remembers_is_bounded_and_what_it_forgets_counts_as_used() {
        let mut ranges = [range(0, 65_536)];
        for number in (1..65_536).step_by(2) {
            mark_used(&mut ranges, number);
        }
        assert_eq!(ranges[0].skipped.len(), SKIPPED_MAX);
        assert_eq!(state_of(&ranges, 0), NumberState::Used, "given up");
        assert_eq!(state_of(&ranges, 65_534), NumberState::Unused);
        assert!((1..65_536).step_by(2).all(|number| state_of(&ranges, number) == NumberState::Used));
    }

    proptest! {
        #[test]
        fn no_number_is_unused_once_it_was_used(numbers in prop::collection::vec(0_u64..400, 0..300)) {
            let mut ranges = [range(50, 100), range(200, 100)];
            let mut used = BTreeSet::new();
            for number in numbers {
                let reserved = ranges.iter().any(|range| offset_in(range, number).is_some());
                match state_of(&ranges, number) {
                    NumberState::Unused => prop_assert!(reserved && used.insert(number)),
                    NumberState::Used => prop_assert!(reserved && used.contains(&number)),
                    NumberState::NotReserved => prop_assert!(!reserved),
                }
                mark_used(&mut ranges, number);
            }
        }
    }
}
