//! Where time and luck enter the program. Pure code takes both as arguments; everything else
//! gets them here and nowhere else.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ring::rand::{SecureRandom, SystemRandom};
use tokio::time::Instant;
use uuid::Uuid;

use crate::proto::{DeviceId, Luck, MessageId, Moment, Secret, UnixMillis};

/// The wall clock.
pub fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    UnixMillis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// A clock that only moves forward, read in [`Moment`]s.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that starts at zero now.
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// The current moment.
    pub fn now(&self) -> Moment {
        Moment(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Sleeps until `at`; for ever if it is `None`.
    pub async fn sleep_until(&self, at: Option<Moment>) {
        match at {
            Some(Moment(millis)) => tokio::time::sleep_until(self.start + Duration::from_millis(millis)).await,
            None => std::future::pending().await,
        }
    }
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

/// A new message id.
pub fn message_id() -> MessageId {
    MessageId::from_uuid(Uuid::now_v7())
}
