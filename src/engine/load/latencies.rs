//! How long requests took: a histogram with the exact sum and maximum beside it. Nanoseconds throughout.

use hdrhistogram::Histogram;

use crate::error::{Error, Kind, Result};
use crate::metrics::quantile;

/// Longest latency that is told from longer ones: an hour.
const LONGEST_NS: u64 = 3_600_000_000_000;

/// Latencies are told apart by three digits, that is by 0.1 %.
const DIGITS: u8 = 3;

/// Latencies of many requests. Recording one allocates nothing.
#[derive(Clone, Debug)]
pub struct Latencies {
    histogram: Histogram<u64>,
    total_ns: u64,
    longest_ns: u64,
}

impl Latencies {
    pub(super) fn new() -> Result<Latencies> {
        let histogram = Histogram::new_with_bounds(1, LONGEST_NS, DIGITS)
            .map_err(|error| Error::new(Kind::Failed, "no histogram", error.to_string()))?;
        Ok(Latencies { histogram, total_ns: 0, longest_ns: 0 })
    }

    #[inline]
    pub(super) fn record(&mut self, latency_ns: u64) {
        self.histogram.saturating_record(latency_ns);
        self.total_ns = self.total_ns.saturating_add(latency_ns);
        self.longest_ns = self.longest_ns.max(latency_ns);
    }

    pub(super) fn merge(&mut self, other: &Latencies) -> Result<()> {
        self.histogram
            .add(&other.histogram)
            .map_err(|error| Error::new(Kind::Failed, "cannot add histograms", error.to_string()))?;
        self.total_ns = self.total_ns.saturating_add(other.total_ns);
        self.longest_ns = self.longest_ns.max(other.longest_ns);
        Ok(())
    }

    /// Number of requests.
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// Their mean.
    pub fn mean_ns(&self) -> Option<f64> {
        (self.count() != 0).then(|| self.total_ns as f64 / self.count() as f64)
    }

    /// The shortest, to 0.1 %.
    pub fn shortest_ns(&self) -> Option<u64> {
        (self.count() != 0).then(|| self.histogram.min())
    }

    /// The longest.
    pub fn longest_ns(&self) -> Option<u64> {
        (self.count() != 0).then_some(self.longest_ns)
    }

    /// What `percent` of the requests did not take longer than, to 0.1 %. None where there were so few that it
    /// would be the longest: p99.9 says something from 1000 requests on.
    pub fn percentile_ns(&self, percent: f64) -> Option<u64> {
        let beyond = self.count() as f64 * (100.0 - percent) / 100.0;
        // The product of a round number and a percentage can lie a hair below a whole number.
        (beyond + 1e-6 >= 1.0).then(|| {
            let quantile = quantile(percent, self.count());
            self.histogram.value_at_quantile(quantile).min(self.longest_ns)
        })
    }

    /// Latencies and how many requests had them, the shortest first; those that differ by less than 0.1 % are one.
    pub fn counts(&self) -> impl Iterator<Item = (u64, u64)> {
        let longest = self.longest_ns;
        self.histogram
            .iter_recorded()
            .map(move |step| (step.value_iterated_to().min(longest), step.count_since_last_iteration()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[u64]) -> Latencies {
        let mut latencies = Latencies::new().unwrap();
        values.iter().for_each(|&value| latencies.record(value));
        latencies
    }

    #[test]
    fn a_percentile_that_the_requests_are_too_few_for_is_none() {
        let thousand: Vec<u64> = (1..=1000).map(|number| number * 1000).collect();
        let latencies = of(&thousand);
        let near = |value: Option<u64>, expected: f64| {
            let value = value.unwrap() as f64;
            assert!((value / expected - 1.0).abs() < 0.002, "{value} and not {expected}");
        };
        near(latencies.percentile_ns(50.0), 500_000.0);
        near(latencies.percentile_ns(99.0), 990_000.0);
        near(latencies.percentile_ns(99.9), 999_000.0);
        assert_eq!(latencies.longest_ns(), Some(1_000_000));
        assert_eq!(latencies.mean_ns(), Some(500_500.0));
        let few = of(&thousand[..999]);
        assert_eq!(few.percentile_ns(99.9), None);
        assert!(few.percentile_ns(99.0).is_some());
        let none = of(&[]);
        assert_eq!((none.mean_ns(), none.longest_ns(), none.percentile_ns(50.0)), (None, None, None));
        assert_eq!(none.counts().count(), 0);
    }

    /// Of a thousand, the one before the last is what 99.9 % do not exceed.
    #[test]
    fn no_percentile_is_the_longest() {
        for (count, percent) in [(1000, 99.9), (2000, 99.9), (10_000, 99.99), (100, 99.0), (700, 99.0)] {
            let mut values = vec![1000; count - 1];
            values.push(100_000);
            let told = of(&values).percentile_ns(percent);
            assert_eq!(told, Some(1000), "p{percent} of {count}");
        }
    }

    #[test]
    fn what_takes_longer_than_an_hour_counts_and_is_the_longest() {
        let latencies = of(&[5, u64::MAX / 4]);
        assert_eq!((latencies.count(), latencies.longest_ns()), (2, Some(u64::MAX / 4)));
    }

    proptest! {
        #[test]
        fn jobs_together_are_as_one(values in proptest::collection::vec(1u64..10_000_000_000, 4..200)) {
            let whole = of(&values);
            let (left, right) = values.split_at(values.len() / 3);
            let mut sum = of(left);
            sum.merge(&of(right)).unwrap();
            prop_assert_eq!(sum.count(), whole.count());
            prop_assert_eq!(sum.mean_ns(), whole.mean_ns());
            prop_assert_eq!(sum.longest_ns(), values.iter().copied().max());
            prop_assert_eq!(sum.percentile_ns(50.0), whole.percentile_ns(50.0));
            prop_assert_eq!(sum.counts().map(|(_, count)| count).sum::<u64>(), values.len() as u64);
            // By definition: at least half are not longer, and it is one of them, to 0.1 %.
            let mut sorted = values.clone();
            sorted.sort_unstable();
            let exact = sorted[(values.len() - 1) / 2] as f64;
            let told = whole.percentile_ns(50.0).unwrap() as f64;
            prop_assert!((told / exact - 1.0).abs() < 0.002, "{} and not {}", told, exact);
        }
    }
}
