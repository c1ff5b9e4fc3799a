//! A logarithmic axis of time, the same in the terminal and in the picture.

use crate::engine::load::Latencies;

/// From one round number of nanoseconds to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Axis {
    low_ns: u64,
    high_ns: u64,
}

/// 1, 2, 5, 10, 20, …, far beyond the longest latency.
fn round_numbers() -> impl Iterator<Item = u64> {
    (0..15).flat_map(|power| [1, 2, 5].map(|digit| digit * 10u64.pow(power)))
}

impl Axis {
    /// As long as it must be for all latencies; None where there are none.
    pub fn of(latencies: &Latencies) -> Option<Axis> {
        Some(Axis::over(latencies.shortest_ns()?, latencies.longest_ns()?))
    }

    fn over(shortest_ns: u64, longest_ns: u64) -> Axis {
        let low_ns = round_numbers().take_while(|&number| number <= shortest_ns).last().unwrap_or(1);
        // A range that is too small would make a mountain of noise.
        let wanted = longest_ns.max(low_ns.saturating_mul(4));
        let high_ns = round_numbers().find(|&number| number >= wanted).unwrap_or(wanted);
        Axis { low_ns, high_ns }
    }

    /// Where a latency lies: 0 at the beginning of the axis, 1 at its end.
    pub fn position(&self, nanoseconds: u64) -> f64 {
        let [low, high] = [self.low_ns, self.high_ns].map(|bound| (bound as f64).ln());
        (((nanoseconds.max(1) as f64).ln() - low) / (high - low)).clamp(0.0, 1.0)
    }

    /// Round numbers along it, the powers of ten before the others.
    pub fn ticks(&self) -> Vec<u64> {
        let mut ticks: Vec<u64> =
            round_numbers().filter(|number| (self.low_ns..=self.high_ns).contains(number)).collect();
        ticks.sort_by_key(|&number| (!is_power_of_ten(number), number));
        ticks
    }

    /// Which of so many equally wide columns a latency falls into.
    pub fn column(&self, nanoseconds: u64, columns: usize) -> usize {
        ((self.position(nanoseconds) * columns as f64) as usize).min(columns - 1)
    }

    /// The share of all requests in each of so many columns.
    pub fn shares(&self, latencies: &Latencies, columns: usize) -> Vec<f64> {
        let mut counts = vec![0u64; columns];
        for (nanoseconds, count) in latencies.counts() {
            counts[self.column(nanoseconds, columns)] += count;
        }
        let all = latencies.count().max(1) as f64;
        counts.into_iter().map(|count| count as f64 / all).collect()
    }
}

fn is_power_of_ten(number: u64) -> bool {
    number.to_string().trim_end_matches('0') == "1"
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_axis_has_round_ends_and_powers_of_ten_first() {
        let axis = Axis::over(85_000, 3_100_000);
        assert_eq!(axis, Axis { low_ns: 50_000, high_ns: 5_000_000 });
        assert_eq!(axis.ticks()[..2], [100_000, 1_000_000]);
        assert_eq!(axis.ticks().len(), 7);
        assert_eq!((axis.position(50_000), axis.position(5_000_000)), (0.0, 1.0));
        assert!((axis.position(500_000) - 0.5).abs() < 1e-9);
        assert_eq!((axis.column(50_000, 70), axis.column(5_000_000, 70)), (0, 69));
        assert_eq!(Axis::over(1000, 1000), Axis { low_ns: 1000, high_ns: 5000 });
    }

    proptest! {
        #[test]
        fn every_latency_has_its_place(shortest: u64, more: u64) {
            let longest = shortest.saturating_add(more);
            let axis = Axis::over(shortest, longest);
            prop_assert!(axis.low_ns < axis.high_ns);
            prop_assert!(axis.column(shortest, 70) <= axis.column(longest, 70));
            prop_assert!(axis.position(shortest) >= 0.0 && axis.position(longest) <= 1.0);
        }
    }
}
