//! Notices sequential reading of one handle and says what to have ready next.

/// Bytes kept ready ahead of a sequential reader.
const AHEAD: u64 = 8 << 20;
/// The kernel's own read-ahead sends requests slightly out of order; within this distance it is still one stream.
const REORDER: u64 = 1 << 20;
/// Reads in sequence before anything is fetched ahead.
const STREAK: u32 = 2;

/// The reading of one handle.
#[derive(Debug, Default)]
pub struct Readahead {
    next: u64,
    streak: u32,
    /// Everything below it is asked for already.
    asked: u64,
}

impl Readahead {
    /// To be told every read; answers with the range (offset, length) to fetch ahead, if any.
    pub fn note(&mut self, offset: u64, length: u64, file_length: u64) -> Option<(u64, u64)> {
        let end = offset.saturating_add(length);
        if offset.abs_diff(self.next) <= REORDER {
            self.streak = self.streak.saturating_add(1);
        } else {
            self.streak = 0;
            self.asked = 0;
        }
        self.next = if offset < self.next && end + REORDER > self.next { self.next.max(end) } else { end };
        if self.streak < STREAK {
            return None;
        }
        let from = self.asked.max(end);
        let to = end.saturating_add(AHEAD).min(file_length);
        // In halves of the window: small requests would cost more than they bring.
        if to <= from || (to - from < AHEAD / 2 && to < file_length) {
            return None;
        }
        self.asked = to;
        Some((from, to - from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: u64 = 64 << 20;

    #[test]
    fn a_sequential_reader_has_every_byte_asked_for_once_and_ahead() {
        let mut readahead = Readahead::default();
        let (mut asked_to, mut step) = (0, 128 << 10);
        let mut at = 0;
        while at < LENGTH {
            if let Some((from, length)) = readahead.note(at, step, LENGTH) {
                assert!(from >= asked_to && from >= at + step, "{from} was asked before");
                asked_to = from + length;
            }
            at += step;
            step = step.min(LENGTH - at).max(1);
            assert!(at < 4 * step || asked_to >= (at + AHEAD / 2).min(LENGTH), "{asked_to} is not ahead of {at}");
        }
        assert_eq!(asked_to, LENGTH);
    }

    #[test]
    fn random_reads_fetch_nothing_ahead() {
        let mut readahead = Readahead::default();
        for at in [40 << 20, 3 << 20, 20 << 20, 50 << 20, 9 << 20] {
            assert_eq!(readahead.note(at, 4096, LENGTH), None);
        }
    }

    #[test]
    fn requests_slightly_out_of_order_are_one_stream() {
        let mut readahead = Readahead::default();
        let block: u64 = 128 << 10;
        let mut asked = 0;
        for index in [0, 2, 1, 4, 3, 6, 5, 8, 7] {
            asked += readahead.note(index * block, block, LENGTH).map_or(0, |(_, length)| length);
        }
        assert!(asked >= AHEAD, "{asked}");
    }
}
