//! Quantiles of a series of times.

use serde::{Deserialize, Serialize};

/// Quantiles, in the unit of the series; zero if it is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantiles {
    /// Half of the values are at most this.
    pub p50: u64,
    /// 90 of 100 values are at most this.
    pub p90: u64,
    /// 99 of 100 values are at most this.
    pub p99: u64,
    /// The largest.
    pub max: u64,
}

impl Quantiles {
    /// The quantiles of these values (nearest rank).
    pub fn of(mut values: Vec<u64>) -> Self {
        values.sort_unstable();
        let rank = |percent: usize| {
            let place = (values.len() * percent).div_ceil(100).saturating_sub(1);
            values.get(place).copied().unwrap_or(0)
        };
        Self { p50: rank(50), p90: rank(90), p99: rank(99), max: rank(100) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_ranks() {
        assert_eq!(Quantiles::of((1..=100).rev().collect()), Quantiles { p50: 50, p90: 90, p99: 99, max: 100 });
        assert_eq!(Quantiles::of(vec![7]), Quantiles { p50: 7, p90: 7, p99: 7, max: 7 });
        assert_eq!(Quantiles::of(vec![]), Quantiles::default());
    }
}
