//! Majorities of voters.

use std::collections::BTreeSet;

use crate::runtime::planted::{PlantedFault, is_planted};

/// True if `ids` holds a majority of each set of voters. While a joint change is under way there are two sets; a
/// majority of their union is neither necessary nor sufficient.
///
/// True for an empty list of sets: a member that knows no voters needs no majority.
pub(super) fn has_quorum_in_each(voter_sets: &[BTreeSet<u64>], ids: &BTreeSet<u64>) -> bool {
    if is_planted(PlantedFault::QuorumOfUnion) {
        let union: BTreeSet<u64> = voter_sets.iter().flatten().copied().collect();
        return union.is_empty() || union.intersection(ids).count() > union.len() / 2;
    }
    voter_sets.iter().all(|voters| voters.is_empty() || voters.intersection(ids).count() > voters.len() / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set<const N: usize>(ids: [u64; N]) -> BTreeSet<u64> {
        BTreeSet::from(ids)
    }

    #[test]
    fn one_set_needs_its_own_majority() {
        let voters = [set([1, 2, 3])];
        assert!(has_quorum_in_each(&voters, &set([1, 2])));
        assert!(has_quorum_in_each(&voters, &set([2, 3, 9])));
        assert!(!has_quorum_in_each(&voters, &set([1, 8, 9])));
        assert!(!has_quorum_in_each(&[set([1, 2, 3, 4])], &set([1, 2])), "half is no majority");
        assert!(has_quorum_in_each(&[set([1])], &set([1])));
        assert!(!has_quorum_in_each(&[set([1])], &set([])));
    }

    #[test]
    fn a_replacement_of_one_of_three_needs_the_two_that_stay() {
        let voters = [set([1, 2, 3]), set([1, 2, 4])];
        assert!(has_quorum_in_each(&voters, &set([1, 2])), "two of a union of four");
        assert!(has_quorum_in_each(&voters, &set([1, 3, 4])));
        assert!(!has_quorum_in_each(&voters, &set([1, 3])));
    }

    #[test]
    fn a_majority_of_the_union_is_not_enough() {
        let voters = [set([1, 2, 3]), set([3, 4, 5])];
        assert!(!has_quorum_in_each(&voters, &set([1, 2, 4])), "three of a union of five");
        assert!(has_quorum_in_each(&voters, &set([2, 3, 4])));
        assert!(!has_quorum_in_each(&[set([1]), set([1, 2, 3])], &set([2, 3])), "the sole founder is missing");
    }

    #[test]
    fn without_voters_nobody_is_needed() {
        assert!(has_quorum_in_each(&[], &set([])));
        assert!(has_quorum_in_each(&[set([])], &set([])));
    }
}
