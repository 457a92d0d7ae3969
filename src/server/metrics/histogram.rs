//! A histogram of durations that any thread may add to: an atomic for each bucket and one for the
//! sum. It must never take a lock, because it stands on the way of every message.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{MetricEncoder, NoLabelSet};

/// Upper bounds in microseconds of what takes a disk or a network: half a millisecond to half a
/// minute.
pub const QUICK: &[u64] = &[
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000, 30_000_000,
];
/// Upper bounds in microseconds of what may wait for a device to come back: ten milliseconds to the
/// longest expiry of two days.
pub const PATIENT: &[u64] = &[
    10_000,
    50_000,
    250_000,
    1_000_000,
    5_000_000,
    30_000_000,
    120_000_000,
    600_000_000,
    3_600_000_000,
    21_600_000_000,
    86_400_000_000,
    172_800_000_000,
];

/// Durations, counted by bucket.
pub struct Histogram {
    bounds: &'static [u64],
    /// One for each bound, and one for what is beyond.
    counts: Box<[AtomicU64]>,
    sum_us: AtomicU64,
}

impl Histogram {
    /// An empty one with these upper bounds, in microseconds and rising.
    pub fn new(bounds: &'static [u64]) -> Self {
        Self { bounds, counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), sum_us: AtomicU64::new(0) }
    }

    /// Adds a duration.
    pub fn observe(&self, took: Duration) {
        self.observe_each(took, 1);
    }

    /// Adds the same duration this many times.
    pub fn observe_each(&self, took: Duration, times: usize) {
        let (micros, times) = (u64::try_from(took.as_micros()).unwrap_or(u64::MAX), times as u64);
        let bucket = self.bounds.partition_point(|bound| *bound < micros);
        self.counts[bucket].fetch_add(times, Ordering::Relaxed);
        self.sum_us.fetch_add(micros.saturating_mul(times), Ordering::Relaxed);
    }

    /// Writes it, in seconds.
    pub fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let ends = self.bounds.iter().map(|bound| seconds(*bound)).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> =
            ends.zip(self.counts.iter().map(|count| count.load(Ordering::Relaxed))).collect();
        // The sum of what was read just now, so that it fits the last bucket.
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = seconds(self.sum_us.load(Ordering::Relaxed));
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }
}

/// Two numbers would say less than the metrics page does.
impl fmt::Debug for Histogram {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Histogram").finish_non_exhaustive()
    }
}

/// No histogram here reaches the 2^53 microseconds from which a float rounds: those are 285 years.
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(histogram: &Histogram) -> Vec<u64> {
        histogram.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    #[test]
    fn a_bound_belongs_to_its_bucket_and_what_is_beyond_has_one_too() {
        let histogram = Histogram::new(&[1_000, 5_000]);
        for micros in [0, 1_000, 1_001, 5_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        histogram.observe_each(Duration::from_secs(1), 3);
        assert_eq!(counts(&histogram), [2, 2, 3]);
        assert_eq!(histogram.sum_us.load(Ordering::Relaxed), 3_007_001);
    }

    #[test]
    fn bounds_rise() {
        assert!(QUICK.is_sorted() && PATIENT.is_sorted());
    }
}
