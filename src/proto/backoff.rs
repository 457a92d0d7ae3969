//! How long to wait before the next attempt to connect.
//!
//! Doubling delays with jitter; a short-lived session does not count as a recovery. Constants are
//! those of the battery profile in the keepalive study: first 2 s, doubled, at most 600 s, each
//! drawn from the upper half of its range.

use std::time::Duration;

use super::frame::{Bye, Reason};

/// A random number that the caller drew: 0 is the lowest draw, `u32::MAX` the highest.
#[derive(Clone, Copy, Debug)]
pub struct Luck(pub u32);

impl Luck {
    /// A share of `span` in proportion to the draw.
    pub fn share_of(self, span: Duration) -> Duration {
        span.mul_f64(f64::from(self.0) / f64::from(u32::MAX))
    }
}

/// The first delay.
pub const FIRST: Duration = Duration::from_secs(2);
/// The longest delay.
pub const LONGEST: Duration = Duration::from_secs(600);
/// A session must last this long, with at least one exchange, to count as a recovery.
pub const PROVEN_AFTER: Duration = Duration::from_secs(60);

/// What to wait after an end that only an operator can mend.
pub const HOPELESS: Duration = Duration::from_secs(600);
/// The least time between two attempts, whatever was asked.
pub const SHORTEST_GAP: Duration = Duration::from_secs(1);

/// The delays of one device, in order.
#[derive(Clone, Debug)]
pub struct Backoff {
    failures: u32,
    longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::up_to(LONGEST)
    }
}

impl Backoff {
    /// Delays up to this one.
    pub fn up_to(longest: Duration) -> Self {
        Self { failures: 0, longest }
    }

    /// The delay before the next attempt; each call counts as one more failure.
    pub fn next(&mut self, luck: Luck) -> Duration {
        let full = FIRST.saturating_mul(1 << self.failures.min(16)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        full / 2 + luck.share_of(full / 2)
    }

    /// Starts over: a session lasted.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Attempts that failed since the last session that lasted.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

/// The delay that a server asked for, spread upwards by 0 to 30 % so that its devices do not come
/// back in one moment.
pub fn spread(asked: Duration, luck: Luck) -> Duration {
    asked + luck.share_of(asked.mul_f64(0.3))
}

/// The wait after a goodbye: what the server asked for, and never less than its reason deserves.
pub fn after_goodbye(bye: &Bye, own: Duration, luck: Luck) -> Duration {
    let asked = match (bye.retry_after(), bye.window()) {
        (asked, Some(window)) => Some(asked.unwrap_or_default() + luck.share_of(window)),
        (Some(asked), None) => Some(spread(asked, luck)),
        (None, None) => None,
    };
    let deserved = match bye.reason {
        Reason::Shutdown | Reason::Silent | Reason::Unacknowledged | Reason::Busy | Reason::Protocol => Duration::ZERO,
        // Two agents with one identity would otherwise throw each other out for ever.
        Reason::Replaced => Duration::from_secs(60),
        Reason::BadSecret | Reason::EnrolmentRefused | Reason::Version => HOPELESS,
    };
    asked.unwrap_or(own).max(deserved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_within_their_range_up_to_the_longest() {
        let (mut low, mut high) = (Backoff::default(), Backoff::default());
        for expected in [2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600] {
            assert_eq!(low.next(Luck(0)), Duration::from_secs(expected) / 2);
            assert_eq!(high.next(Luck(u32::MAX)), Duration::from_secs(expected));
        }
        low.reset();
        assert_eq!(low.next(Luck(0)), Duration::from_secs(1));
    }

    #[test]
    fn a_window_is_drawn_from_evenly() {
        let bye = Bye { window_s: Some(60), ..Bye::until(Reason::Shutdown, 5) };
        let wait = |luck| after_goodbye(&bye, Duration::from_secs(1), Luck(luck)).as_secs();
        assert_eq!([0, u32::MAX / 2, u32::MAX].map(wait), [5, 34, 65]);
        let bye = Bye { window_s: Some(60), ..Bye::because(Reason::Shutdown) };
        assert_eq!(after_goodbye(&bye, Duration::from_secs(1), Luck(0)), Duration::ZERO);
    }

    #[test]
    fn a_delay_asked_for_is_never_shortened() {
        let asked = Duration::from_secs(100);
        assert_eq!(spread(asked, Luck(0)), asked);
        assert_eq!(spread(asked, Luck(u32::MAX)), Duration::from_secs(130));
    }
}
