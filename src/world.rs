//! Where time and luck enter the program. Pure code takes both as arguments; everything else
//! gets them here and nowhere else.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ring::rand::{SecureRandom, SystemRandom};
use rustix::time::{ClockId, clock_gettime};
use uuid::Uuid;

use crate::proto::{DeviceId, Luck, MessageId, Moment, ReceiptsId, Secret, UnixMillis};

/// The wall clock.
pub fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    UnixMillis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// The time since the system started, sleep included.
pub fn boot_time() -> Duration {
    read(ClockId::Boottime)
}

/// The time since the system started, without that for which it slept.
pub fn awake_time() -> Duration {
    read(ClockId::Monotonic)
}

fn read(clock: ClockId) -> Duration {
    // Neither clock is ever before the start.
    clock_gettime(clock).try_into().unwrap_or_default()
}

/// A clock that only moves forward, also while the system sleeps, read in [`Moment`]s.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Duration,
    /// How many times as fast as the world's it goes.
    speed: u32,
}

impl Clock {
    /// A clock that starts at zero now.
    pub fn start() -> Self {
        Self { start: boot_time(), speed: speed() }
    }

    /// The current moment.
    pub fn now(&self) -> Moment {
        let passed = boot_time().saturating_sub(self.start).saturating_mul(self.speed);
        Moment(u64::try_from(passed.as_millis()).unwrap_or(u64::MAX))
    }

    /// The time since the system started at that moment.
    pub fn boot_time_of(&self, at: Moment) -> Duration {
        self.start.saturating_add(Duration::from_millis(at.0) / self.speed)
    }

    /// Sleeps until `at`; for ever if it is `None`. A system that sleeps meanwhile may make it late.
    pub async fn sleep_until(&self, at: Option<Moment>) {
        let Some(at) = at else { return std::future::pending().await };
        let at = self.boot_time_of(at);
        // tokio rounds up to milliseconds, and its clock stands still while the system sleeps.
        while let Some(rest) = at.checked_sub(boot_time()).filter(|rest| !rest.is_zero()) {
            tokio::time::sleep(rest).await;
        }
    }
}

/// Tests of long times run them faster, by the environment's `BELLWIRE_SPEED`. Compiled only with the feature
/// `fault-points`.
#[cfg(feature = "fault-points")]
fn speed() -> u32 {
    let speed = std::env::var("BELLWIRE_SPEED").ok().and_then(|speed| speed.parse().ok());
    speed.filter(|speed| *speed > 0).unwrap_or(1)
}

/// As fast as the world's: there is no other time in a program for use.
#[cfg(not(feature = "fault-points"))]
fn speed() -> u32 {
    1
}

/// `N` random bytes from the system's generator.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Invariant: getrandom(2) does not fail once the kernel's pool is up, which it awaits.
    SystemRandom::new().fill(&mut bytes).expect("the system has a random generator");
    bytes
}

/// A draw for jitter.
pub fn luck() -> Luck {
    Luck(u32::from_ne_bytes(random_bytes()))
}

/// A new secret.
pub fn secret() -> Secret {
    Secret::from_bytes(random_bytes())
}

/// A new device id.
pub fn device_id() -> DeviceId {
    DeviceId::from_uuid(Uuid::new_v4())
}

/// A new subscription of receipts.
pub fn receipts_id() -> ReceiptsId {
    ReceiptsId::from_bytes(random_bytes())
}

/// A new message id.
pub fn message_id() -> MessageId {
    MessageId::from_uuid(Uuid::now_v7())
}
