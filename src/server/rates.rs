//! How fast one app may send, and how fast one device may be sent to.
//!
//! Each limit is a bucket that refills evenly (GCRA): a rate over time with a burst. It decides and
//! does nothing else; it must be asked before the store is touched. What is refused costs nothing
//! and is told when to come back. A bucket that is full again is forgotten.

use std::hash::Hash;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, MonotonicClock};
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};

use crate::proto::{AppId, DeviceId};

use super::config::Limits;

/// Seconds for which an app may go at once what it may go over time.
const BURST_S: NonZeroU32 = NonZeroU32::new(10).unwrap();

/// A limit that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("over the limit [limits] {key} = {limit}; try again in {} s", self.retry_s())]
pub struct TooFast {
    /// The key of the limit in the configuration.
    pub key: &'static str,
    /// What the key says.
    pub limit: u32,
    /// When the same may be tried again.
    pub after: Duration,
}

impl TooFast {
    /// Full seconds after which the same may be tried again, at least one.
    pub fn retry_s(&self) -> u64 {
        self.after.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX).max(1)
    }
}

/// The limits, with a bucket for every app and device that was heard of lately.
#[derive(Debug)]
pub struct Rates<C: Clock = MonotonicClock> {
    device_minute: Option<Limit<DeviceId, C>>,
    device_hour: Option<Limit<DeviceId, C>>,
    app_second: Option<Limit<AppId, C>>,
}

impl Rates {
    /// These limits, on the system's clock that only moves forward.
    pub fn new(limits: &Limits) -> Self {
        Self::with_clock(limits, &MonotonicClock)
    }
}

impl<C: Clock + Clone> Rates<C> {
    /// These limits on this clock.
    pub fn with_clock(limits: &Limits, clock: &C) -> Self {
        let minute = |limit| Limit::new("device-messages-per-minute", limit, Quota::per_minute, clock);
        let hour = |limit| Limit::new("device-messages-per-hour", limit, Quota::per_hour, clock);
        let burst = |limit: NonZeroU32| Quota::per_second(limit).allow_burst(limit.saturating_mul(BURST_S));
        Self {
            device_minute: NonZeroU32::new(limits.device_messages_per_minute).map(minute),
            device_hour: NonZeroU32::new(limits.device_messages_per_hour).map(hour),
            app_second: NonZeroU32::new(limits.app_messages_per_second)
                .map(|limit| Limit::new("app-messages-per-second", limit, burst, clock)),
        }
    }

    /// Counts one message for the device, or says why it may not be sent now.
    pub fn device(&self, device: DeviceId) -> Result<(), TooFast> {
        // The minute first: who is refused by it does not use up the hour.
        self.device_minute.as_ref().map_or(Ok(()), |limit| limit.take(&device, 1))?;
        self.device_hour.as_ref().map_or(Ok(()), |limit| limit.take(&device, 1))
    }

    /// Counts the app's messages, all of them or none. More than the burst need a full bucket.
    pub fn app(&self, app: &AppId, messages: usize) -> Result<(), TooFast> {
        self.app_second.as_ref().map_or(Ok(()), |limit| limit.take(app, messages))
    }

    /// Forgets whoever was not heard of lately.
    pub fn forget_idle(&self) {
        self.device_minute.iter().chain(&self.device_hour).for_each(|limit| limit.forget_idle());
        self.app_second.iter().for_each(|limit| limit.forget_idle());
    }
}

/// One limit with its buckets.
#[derive(Debug)]
struct Limit<K: Hash + Eq + Clone, C: Clock> {
    key: &'static str,
    limit: u32,
    burst: NonZeroU32,
    clock: C,
    buckets: RateLimiter<K, DashMapStateStore<K>, C, NoOpMiddleware<C::Instant>>,
}

impl<K: Hash + Eq + Clone, C: Clock + Clone> Limit<K, C> {
    fn new(key: &'static str, limit: NonZeroU32, quota: impl Fn(NonZeroU32) -> Quota, clock: &C) -> Self {
        let quota = quota(limit);
        let buckets = RateLimiter::dashmap_with_clock(quota, clock.clone());
        Self { key, limit: limit.get(), burst: quota.burst_size(), clock: clock.clone(), buckets }
    }

    fn take(&self, who: &K, messages: usize) -> Result<(), TooFast> {
        let messages = u32::try_from(messages).unwrap_or(u32::MAX);
        let Some(messages) = NonZeroU32::new(messages).map(|messages| messages.min(self.burst)) else { return Ok(()) };
        match self.buckets.check_key_n(who, messages) {
            Ok(Err(until)) => Err(self.over(until.wait_time_from(self.clock.now()))),
            // More than the burst cannot be asked for: see above.
            Ok(Ok(())) | Err(_) => Ok(()),
        }
    }

    fn over(&self, after: Duration) -> TooFast {
        TooFast { key: self.key, limit: self.limit, after }
    }

    fn forget_idle(&self) {
        self.buckets.retain_recent();
        self.buckets.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world;
    use governor::clock::FakeRelativeClock;

    fn rates(minute: u32, hour: u32, second: u32) -> (Rates<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        let limits = Limits {
            device_messages_per_minute: minute,
            device_messages_per_hour: hour,
            app_messages_per_second: second,
            ..Limits::default()
        };
        (Rates::with_clock(&limits, &clock), clock)
    }

    fn app(text: &str) -> AppId {
        text.parse().unwrap()
    }

    /// How many messages in a row the device may be sent.
    fn taken(rates: &Rates<FakeRelativeClock>, device: DeviceId) -> usize {
        (0..100_000).take_while(|_| rates.device(device).is_ok()).count()
    }

    #[test]
    fn a_device_is_sent_no_more_than_its_minute_and_another_is_not_touched_by_it() {
        let (rates, clock) = rates(6, 0, 0);
        let (one, other) = (world::device_id(), world::device_id());
        assert_eq!(taken(&rates, one), 6);
        let over = rates.device(one).unwrap_err();
        assert_eq!((over.key, over.limit, over.retry_s()), ("device-messages-per-minute", 6, 10));
        assert_eq!(taken(&rates, other), 6);
        clock.advance(Duration::from_millis(9_999));
        assert_eq!(rates.device(one).unwrap_err().after, Duration::from_millis(1));
        assert_eq!(rates.device(one).unwrap_err().retry_s(), 1);
        clock.advance(Duration::from_millis(1));
        assert_eq!(taken(&rates, one), 1);
        clock.advance(Duration::from_secs(60));
        assert_eq!(taken(&rates, one), 6);
    }

    #[test]
    fn the_hour_counts_too_and_what_the_minute_refuses_does_not_use_it_up() {
        let (rates, clock) = rates(60, 90, 0);
        let device = world::device_id();
        assert_eq!(taken(&rates, device), 60);
        // Refused by the minute a hundred times: the hour has as much left as before.
        (0..100).for_each(|_| assert_eq!(rates.device(device).unwrap_err().key, "device-messages-per-minute"));
        clock.advance(Duration::from_secs(60));
        assert_eq!(taken(&rates, device), 31);
        let over = rates.device(device).unwrap_err();
        assert_eq!((over.key, over.limit), ("device-messages-per-hour", 90));
        assert!(over.retry_s() <= 40, "{over}");
        clock.advance(over.after);
        assert_eq!(taken(&rates, device), 1);
    }

    #[test]
    fn an_app_may_send_ten_seconds_worth_at_once() {
        let (rates, clock) = rates(0, 0, 5);
        let (chat, mail) = (app("chat"), app("mail"));
        assert_eq!(rates.app(&chat, 30), Ok(()));
        assert_eq!(rates.app(&chat, 20), Ok(()));
        let over = rates.app(&chat, 10).unwrap_err();
        assert_eq!((over.key, over.limit, over.after), ("app-messages-per-second", 5, Duration::from_secs(2)));
        assert_eq!(rates.app(&mail, 50), Ok(()));
        clock.advance(Duration::from_secs(2));
        assert_eq!(rates.app(&chat, 10), Ok(()));
        assert_eq!(rates.app(&chat, 1).unwrap_err().retry_s(), 1);
        assert_eq!(rates.app(&chat, 0), Ok(()));
    }

    #[test]
    fn more_than_the_burst_is_not_refused_for_ever() {
        let (rates, clock) = rates(0, 0, 1);
        assert_eq!(rates.app(&app("chat"), 1000), Ok(()));
        assert_eq!(rates.app(&app("chat"), 1000).unwrap_err().after, Duration::from_secs(10));
        clock.advance(Duration::from_secs(10));
        assert_eq!(rates.app(&app("chat"), 1000), Ok(()));
    }

    #[test]
    fn zero_is_no_limit() {
        let (rates, _) = rates(0, 0, 0);
        let device = world::device_id();
        (0..100_000).for_each(|_| assert_eq!(rates.device(device), Ok(())));
        assert_eq!(rates.app(&app("chat"), usize::MAX), Ok(()));
    }

    #[test]
    fn whoever_is_idle_is_forgotten_and_whoever_is_not_keeps_what_was_counted() {
        let (rates, clock) = rates(60, 0, 1);
        let (idle, busy) = (world::device_id(), world::device_id());
        assert_eq!(rates.device(idle), Ok(()));
        rates.app(&app("chat"), 1).unwrap();
        clock.advance(Duration::from_secs(59));
        assert_eq!(taken(&rates, busy), 60);
        let known = || rates.device_minute.as_ref().unwrap().buckets.len();
        assert_eq!(known(), 2);
        clock.advance(Duration::from_secs(2));
        rates.forget_idle();
        assert_eq!((known(), rates.app_second.as_ref().unwrap().buckets.len()), (1, 0));
        assert_eq!(taken(&rates, busy), 2);
        clock.advance(Duration::from_secs(61));
        rates.forget_idle();
        assert_eq!(known(), 0);
    }
}
