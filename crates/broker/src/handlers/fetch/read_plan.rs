//! Which partitions of a Fetch are read, and how many bytes of each: pure.
//!
//! Bytes go to partitions in their order until `max_bytes` are spent. The first that has anything brings at
//! least one batch, however large, or a batch above the limits would block its consumer for ever.

/// What is known of one partition before anything is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Bytes from the fetch offset on, as far as is known; at least one if there is a record.
    pub(crate) readable: u64,
    /// `partition_max_bytes` of the request.
    pub(crate) max_bytes: usize,
}

impl Candidate {
    /// Bytes that count towards `min_bytes`.
    fn useful(&self) -> u64 {
        self.readable.min(self.max_bytes.max(1) as u64)
    }
}

/// Limits on one answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) max_bytes: usize,
    pub(crate) min_bytes: u64,
}

/// A partition to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Read {
    /// Position among the candidates.
    pub(crate) position: usize,
    pub(crate) max_bytes: usize,
}

/// Whether there is enough to answer now.
pub(crate) fn is_enough(candidates: &[Option<Candidate>], limits: Limits) -> bool {
    let useful = candidates
        .iter()
        .flatten()
        .map(Candidate::useful)
        .fold(0_u64, u64::saturating_add);
    useful >= limits.min_bytes
}

/// What to read; `None` stands for a partition that has failed already.
pub(crate) fn plan(candidates: &[Option<Candidate>], limits: Limits) -> Vec<Read> {
    let mut left = limits.max_bytes;
    let mut reads = Vec::new();
    for (position, candidate) in candidates.iter().enumerate() {
        let Some(candidate) = candidate.filter(|candidate| candidate.readable > 0) else {
            continue;
        };
        if left == 0 && !reads.is_empty() {
            break;
        }
        let max_bytes = candidate.max_bytes.min(left);
        reads.push(Read { position, max_bytes });
        let readable = usize::try_from(candidate.readable).unwrap_or(usize::MAX);
        left = left.saturating_sub(readable.min(max_bytes).max(1));
    }
    reads
}

/// Which of the reads fit into the answer, given how many bytes each has brought. A read brings at least one
/// batch, so it may have brought more than it was granted: only the first that brought anything may do that.
pub(crate) fn keep(brought: impl IntoIterator<Item = usize>, limits: Limits) -> Vec<bool> {
    let mut total = 0_usize;
    let fits = |bytes: usize| {
        let fits = bytes == 0 || total == 0 || total.saturating_add(bytes) <= limits.max_bytes;
        if fits {
            total = total.saturating_add(bytes);
        }
        fits
    };
    brought.into_iter().map(fits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limits(max_bytes: usize, min_bytes: u64) -> Limits {
        Limits { max_bytes, min_bytes }
    }

    fn has(readable: u64, max_bytes: usize) -> Option<Candidate> {
        Some(Candidate { readable, max_bytes })
    }

    #[test]
    fn bytes_are_given_in_order_until_they_are_spent() {
        let candidates = [
            has(300, 100),
            None,
            has(0, 100),
            has(50, 100),
            has(500, 1000),
            has(10, 100),
        ];
        let reads = plan(&candidates, limits(400, 1));
        let expected = [(0, 100), (3, 100), (4, 250)];
        assert_eq!(
            reads
                .iter()
                .map(|read| (read.position, read.max_bytes))
                .collect::<Vec<_>>(),
            expected
        );
    }

    #[test]
    fn the_first_partition_is_read_even_with_no_bytes_to_give() {
        assert_eq!(
            plan(&[has(0, 0), has(9, 0), has(9, 9)], limits(0, 1)),
            [Read {
                position: 1,
                max_bytes: 0
            }]
        );
    }

    #[test]
    fn min_bytes_counts_what_could_be_sent() {
        let candidates = [has(300, 100), None, has(50, 100)];
        assert!(is_enough(&candidates, limits(1000, 150)));
        assert!(!is_enough(&candidates, limits(1000, 151)));
        assert!(is_enough(&[], limits(1000, 0)));
        assert!(!is_enough(&[has(0, 100)], limits(1000, 1)));
        // A partition with a limit of nothing still brings its first batch.
        assert!(is_enough(&[has(5, 0)], limits(1000, 1)));
    }

    #[test]
    fn only_the_first_with_records_may_pass_the_limit() {
        assert_eq!(keep([0, 500, 1, 0], limits(100, 1)), [true, true, false, true]);
        assert_eq!(keep([60, 60, 40], limits(100, 1)), [true, false, true]);
    }

    proptest! {
        #[test]
        fn grants_stay_within_the_limit_and_nothing_readable_is_starved_before_it(
            sizes in proptest::collection::vec((0_u64..500, 1_usize..200), 0..20),
            max_bytes in 0_usize..2000,
        ) {
            let candidates: Vec<_> = sizes.iter().map(|&(readable, max)| has(readable, max)).collect();
            let reads = plan(&candidates, limits(max_bytes, 1));
            let readable = |read: &Read| usize::try_from(sizes[read.position].0).unwrap();
            let granted: usize = reads.iter().map(|read| read.max_bytes.min(readable(read))).sum();
            prop_assert!(granted <= max_bytes);
            prop_assert_eq!(reads.is_empty(), sizes.iter().all(|(readable, _)| *readable == 0));
            let skipped = sizes.iter().enumerate().filter(|(position, (readable, _))| {
                *readable > 0 && reads.iter().all(|read| read.position != *position)
            });
            for (position, _) in skipped {
                prop_assert!(reads.iter().all(|read| read.position < position));
                prop_assert!(granted >= max_bytes || max_bytes == 0);
            }
        }
    }
}
