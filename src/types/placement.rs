//! Which workers should hold which bytes: the same answer in every client and in the masters' load jobs, without asking.
//!
//! Rendezvous hashing: each worker gets a score for each piece, the highest wins. When a worker leaves, only its pieces
//! move; when one comes, it takes its share and nothing else moves.

/// Files up to this size lie on one worker as a whole, so that one file descriptor serves all of a file. 256 MiB.
pub const WHOLE_FILE_MAX: u64 = 256 << 20;

/// The piece of a file that `offset` belongs to: what is placed on one worker together.
pub fn piece_of(file_length: u64, offset: u64) -> u64 {
    if file_length <= WHOLE_FILE_MAX { 0 } else { offset / u64::from(super::BLOCK_SIZE) }
}

/// First offset after the piece that `offset` belongs to.
pub fn piece_end(file_length: u64, offset: u64) -> u64 {
    if file_length <= WHOLE_FILE_MAX {
        return file_length;
    }
    let block = u64::from(super::BLOCK_SIZE);
    ((offset / block + 1) * block).min(file_length)
}

/// `workers` in the order in which they should hold the piece, best first. `id` is stable across restarts.
pub fn rank<W>(workers: &[W], id: impl Fn(&W) -> &str, file_id: u64, piece: u64) -> Vec<&W> {
    let mut ranked: Vec<_> = workers.iter().map(|worker| (score(id(worker), file_id, piece), worker)).collect();
    ranked.sort_by(|(a, left), (b, right)| b.cmp(a).then_with(|| id(left).cmp(id(right))));
    ranked.into_iter().map(|(_, worker)| worker).collect()
}

/// Must never change between releases: a change moves every cached byte.
fn score(worker: &str, file_id: u64, piece: u64) -> u64 {
    mix(mix(super::version_of(worker.as_bytes()) ^ file_id) ^ piece)
}

/// The finalizer of splitmix64.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workers(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("worker-{number}")).collect()
    }

    fn first(workers: &[String], file: u64, piece: u64) -> &String {
        rank(workers, |id| id, file, piece)[0]
    }

    #[test]
    fn when_a_worker_leaves_only_its_pieces_move() {
        let all = workers(8);
        let left: Vec<_> = all.iter().filter(|id| *id != "worker-3").cloned().collect();
        for file in 0..2000 {
            let before = first(&all, file, 0);
            if before != "worker-3" {
                assert_eq!(first(&left, file, 0), before);
            }
        }
    }

    #[test]
    fn pieces_spread_evenly() {
        let all = workers(4);
        let mut held = [0; 4];
        for piece in 0..4000 {
            let winner = first(&all, 17, piece);
            held[all.iter().position(|id| id == winner).expect("known")] += 1;
        }
        assert!(held.iter().all(|count| (850..1150).contains(count)), "{held:?}");
    }

    #[test]
    fn the_order_of_the_list_does_not_matter() {
        let all = workers(5);
        let reversed: Vec<_> = all.iter().rev().cloned().collect();
        for file in 0..100 {
            assert_eq!(rank(&all, |id| id, file, 7), rank(&reversed, |id| id, file, 7));
        }
    }

    #[test]
    fn scores_never_change() {
        assert_eq!(score("worker-0", 42, 7), mix(mix(super::super::version_of(b"worker-0") ^ 42) ^ 7));
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf, "the published first value of splitmix64");
    }

    #[test]
    fn a_small_file_is_one_piece_and_a_large_one_is_placed_by_block() {
        assert_eq!(piece_of(WHOLE_FILE_MAX, WHOLE_FILE_MAX - 1), 0);
        assert_eq!(piece_end(WHOLE_FILE_MAX, 5), WHOLE_FILE_MAX);
        let large = WHOLE_FILE_MAX + 10;
        assert_eq!(piece_of(large, 9 << 20), 2);
        assert_eq!(piece_end(large, 9 << 20), 12 << 20);
        assert_eq!(piece_end(large, large - 1), large);
    }
}
