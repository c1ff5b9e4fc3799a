//! Buckets of latencies: 32 for each doubling, so that a bucket is at most 3.2 % wide, as those of an HDR
//! histogram of two digits are.

/// Buckets for each doubling, as a power of two.
const BITS: u32 = 5;

/// The longest latency that has a bucket of its own: 18 minutes; what is longer counts as this.
pub const LONGEST_NS: u64 = (1 << 40) - 1;

/// How many buckets there are.
pub const BUCKETS: usize = bucket(LONGEST_NS) + 1;

/// The bucket of a latency in nanoseconds.
#[inline]
pub const fn bucket(latency_ns: u64) -> usize {
    let latency_ns = if latency_ns > LONGEST_NS { LONGEST_NS } else { latency_ns };
    // Up to twice the buckets of a doubling each number has one.
    let shift = (latency_ns | 1 << BITS).ilog2() - BITS;
    ((shift as usize) << BITS) + (latency_ns >> shift) as usize
}

/// The shortest latency in a bucket, in nanoseconds; the longest is one below that of the next bucket.
pub const fn lowest_ns(bucket: usize) -> u64 {
    let shift = (bucket >> BITS).saturating_sub(1);
    ((bucket - (shift << BITS)) as u64) << shift
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        assert_eq!((BUCKETS, lowest_ns(0)), (1152, 0));
        for number in 1..=BUCKETS {
            assert!(lowest_ns(number) > lowest_ns(number - 1));
            assert_eq!(bucket(lowest_ns(number) - 1), number - 1);
        }
        assert_eq!(lowest_ns(BUCKETS), LONGEST_NS + 1);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        // Powers of two begin one, which metrics in powers of two rely on.
        for power in 0..40 {
            assert_eq!(lowest_ns(bucket(1 << power)), 1 << power);
        }
    }

    proptest! {
        #[test]
        fn a_latency_is_in_its_bucket_which_is_narrow(latency_ns in 0..=LONGEST_NS) {
            let (low, next) = (lowest_ns(bucket(latency_ns)), lowest_ns(bucket(latency_ns) + 1));
            prop_assert!((low..next).contains(&latency_ns));
            prop_assert!(next - low == 1 || (next - low) * 32 <= low);
        }
    }
}
