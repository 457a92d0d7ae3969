//! Device records in the store: who may come in, who was seen when, and who is forgotten.
//!
//! A greeting writes nothing but once a day for each device. A device that was not seen for
//! `device-days` counts as forgotten from that moment on, whether its record is gone already or not.

use rusqlite::Connection;
use subtle::ConstantTimeEq;

use crate::db::DbError;
use crate::proto::{DeviceId, Secret, UnixMillis};
use crate::world;

use super::sql::devices::{self, DeviceRow};
use super::{DeviceCheck, Store, hash};

/// How exactly it is known when a device was seen last.
pub const SEEN_EVERY_MS: i64 = 24 * 3600 * 1000;

impl Store {
    /// Checks a device's credentials; an unknown or forgotten device is enrolled if it `may_enrol`.
    pub async fn check_device(
        &self,
        device: DeviceId,
        secret: &Secret,
        agent: String,
        may_enrol: bool,
    ) -> Result<DeviceCheck, DbError> {
        let given = hash(secret.reveal());
        let fits = |stored: &[u8]| bool::from(stored.ct_eq(&given));
        let (now, forget_before) = (world::now(), self.forget_before(world::now()));
        match self.reader().read(move |db| devices::find(db, device)).await? {
            Some(row) if !fits(&row.secret_hash) => return Ok(DeviceCheck::WrongSecret),
            Some(row) if row.seen_ms > forget_before => return self.welcome_back(device, &row, now).await,
            Some(_) | None if !may_enrol => return Ok(DeviceCheck::Refused),
            Some(_) | None => {}
        }
        // Two connections of one new device may race: the second one is known by then.
        let enrol = move |db: &Connection| devices::enrol(db, device, &given, &agent, now, forget_before);
        Ok(match self.writer.write(enrol).await? {
            Some(stored) if !fits(&stored) => DeviceCheck::WrongSecret,
            Some(_) | None => DeviceCheck::Enrolled,
        })
    }

    async fn welcome_back(&self, device: DeviceId, row: &DeviceRow, now: UnixMillis) -> Result<DeviceCheck, DbError> {
        // A time in the future is one of a clock that was wrong.
        if row.seen_ms.0.abs_diff(now.0) >= SEEN_EVERY_MS.unsigned_abs() {
            self.saw(device).await?;
        }
        // Told again until the device has registered something: it may not have heard it.
        Ok(if row.fresh { DeviceCheck::Enrolled } else { DeviceCheck::Known })
    }

    /// Whether this is a device with its secret.
    pub async fn knows(&self, device: DeviceId, secret: &Secret) -> Result<bool, DbError> {
        let (given, forget_before) = (hash(secret.reveal()), self.forget_before(world::now()));
        let row = self.reader().read(move |db| devices::find(db, device)).await?;
        Ok(row.is_some_and(|row| row.seen_ms > forget_before && bool::from(row.secret_hash.ct_eq(&given))))
    }

    /// Notes what a broker is to know of a device, unless that is noted already. Not waited for: the next
    /// greeting does it again.
    pub async fn note_broker_hash(&self, device: DeviceId, make: impl FnOnce() -> String) -> Result<(), DbError> {
        if self.reader().read(move |db| devices::has_broker_hash(db, device)).await? {
            return Ok(());
        }
        let hash = make();
        self.writer.write_later(move |db| devices::set_broker_hash(db, device, &hash)).await
    }

    /// The next devices by id that a broker may let in, with the hashes of their passwords.
    pub async fn broker_users(
        &self,
        after: Option<DeviceId>,
        limit: usize,
    ) -> Result<Vec<(DeviceId, String)>, DbError> {
        self.reader().read(move |db| devices::broker_users(db, after, limit)).await
    }

    /// Notes that a device is here. Not waited for: if it is lost, the next greeting says it again.
    pub async fn saw(&self, device: DeviceId) -> Result<(), DbError> {
        self.writer.write_later(move |db| devices::saw(db, device, world::now())).await
    }

    /// Forgets devices that were not seen for too long, in one bounded step. Returns how many, and
    /// whether these were all.
    pub async fn forget_devices(&self) -> Result<(usize, bool), DbError> {
        let now = world::now();
        let forget_before = self.forget_before(now);
        if !self.reader().read(move |db| devices::is_any_to_forget(db, forget_before)).await? {
            return Ok((0, true));
        }
        self.writer.write(move |db| devices::forget_step(db, forget_before, now)).await
    }

    /// Whoever was not seen after this moment is forgotten.
    fn forget_before(&self, now: UnixMillis) -> UnixMillis {
        match self.limits.device_days {
            0 => UnixMillis(i64::MIN),
            days => UnixMillis(now.0 - i64::from(days) * 24 * 3600 * 1000),
        }
    }
}
