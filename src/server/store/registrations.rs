//! Registrations: apps and Web Push channels on devices, each with the generation that its regId names.
//!
//! One that ended keeps its row, so that its generation is never used again: that of an app for good, that of
//! a channel for a while.

use rusqlite::{Connection, OptionalExtension, params};

use super::sql::{Result, SWEEP, app_in, backup, devices, end_all, has_app};
use super::{Opened, Store};
use crate::db::DbError;
use crate::proto::{AppId, Channel, DeviceId, UnixMillis};
use crate::world;

/// Days for which it is remembered that a Web Push channel has ended.
const CHANNEL_DAYS: i64 = 60;
/// The channels that ended before a time.
const ENDED: &str = "FROM registrations INDEXED BY registrations_ended
    WHERE state = 'ended' AND app GLOB 'webpush:*' AND changed_ms < ?1";

/// The answer to a wish for a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registered {
    /// The registration stands, with this generation; the newest sealing key has this number.
    As {
        /// Counts the registrations of this app on this device.
        generation: u64,
        /// For noticing a rotation.
        newest_key: i64,
    },
    /// There is no such app.
    UnknownApp,
    /// The device has as many as it may have.
    TooMany,
}

/// Which way a device asks for a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Its link: it has heard the greeting by then.
    Link,
    /// HTTP.
    Http,
}

impl Store {
    /// Registers an app on a device, or finds it registered.
    pub async fn register(&self, device: DeviceId, app: AppId, over: Over) -> Result<Registered, DbError> {
        let limit = self.limits.registrations_per_device;
        self.writer.write(move |db| register(db, device, &app, over, limit, world::now())).await
    }

    /// Ends a registration for good and removes what waits for it.
    pub async fn deregister(&self, device: DeviceId, app: AppId) -> Result<(), DbError> {
        self.writer.write(move |db| deregister(db, device, &app, world::now())).await
    }

    /// The device's registrations that the server ended and that it has not confirmed.
    pub async fn revoked(&self, device: DeviceId) -> Result<Vec<AppId>, DbError> {
        self.reader().read(move |db| revoked(db, device)).await
    }

    /// Whether the registration that a regId names stands.
    pub async fn is_registered(&self, to: Opened, app: AppId) -> Result<bool, DbError> {
        self.reader().read(move |db| is_registered(db, &to, &app)).await
    }

    /// Forgets Web Push channels that ended long ago, some at a time; returns whether these were all.
    pub async fn forget_ended_channels(&self) -> Result<bool, DbError> {
        let before = UnixMillis(world::now().0 - CHANNEL_DAYS * 24 * 3_600_000);
        // Looked for beside the writer: mostly there is nothing to write.
        match self.observer.read(move |db| is_any_to_forget(db, before)).await? {
            true => self.writer.write(move |db| forget_ended_channels(db, before)).await,
            false => Ok(true),
        }
    }
}

pub(super) fn register(
    db: &Connection,
    device: DeviceId,
    app: &AppId,
    over: Over,
    limit: u32,
    now: UnixMillis,
) -> Result<Registered> {
    let channel = Channel::of(app);
    if channel.is_none() && !has_app(db, app)? {
        return Ok(Registered::UnknownApp);
    }
    let newest_key = db.query_row("SELECT max(number) FROM keys WHERE purpose = 'seal'", [], |row| row.get(0))?;
    let mut find = db.prepare_cached("SELECT generation, state FROM registrations WHERE device = ?1 AND app = ?2")?;
    let found: Option<(i64, String)> =
        find.query_row(params![device.as_bytes(), app.as_str()], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let generation = match found {
        Some((generation, state)) if state == "active" => generation,
        _ if active_registrations(db, device)? >= i64::from(limit) => return Ok(Registered::TooMany),
        // What ended of a channel is forgotten after a while: its next generation is later than any before.
        earlier => {
            let next = earlier.map_or(1, |(generation, _)| generation + 1);
            begin_registration(db, device, app, if channel.is_some() { next.max(now.0) } else { next }, now)?
        }
    };
    if over == Over::Link {
        devices::has_registered(db, device)?;
    }
    Ok(Registered::As { generation: generation.unsigned_abs(), newest_key })
}

fn active_registrations(db: &Connection, device: DeviceId) -> Result<i64> {
    db.prepare_cached("SELECT count(*) FROM registrations WHERE device = ?1 AND state = 'active'")?
        .query_row([device.as_bytes()], |row| row.get(0))
}

fn begin_registration(db: &Connection, device: DeviceId, app: &AppId, next: i64, now: UnixMillis) -> Result<i64> {
    let generation = next.max(backup::generation_floor(db)?);
    db.prepare_cached(
        "INSERT INTO registrations (device, app, generation, state, changed_ms) VALUES (?1, ?2, ?3, 'active', ?4)
         ON CONFLICT (device, app) DO UPDATE SET generation = ?3, state = 'active', changed_ms = ?4",
    )?
    .execute(params![device.as_bytes(), app.as_str(), generation, now.0])?;
    Ok(generation)
}

pub(super) fn deregister(db: &Connection, device: DeviceId, app: &AppId, now: UnixMillis) -> Result<()> {
    db.prepare_cached(
        "UPDATE registrations SET state = 'ended', changed_ms = ?3
         WHERE device = ?1 AND app = ?2 AND state <> 'ended'",
    )?
    .execute(params![device.as_bytes(), app.as_str(), now.0])?;
    for table in ["messages", "delayed"] {
        let statement = format!("DELETE FROM {table} WHERE device = ?1 AND app = ?2 RETURNING id, app, body");
        end_all(db, &statement, params![device.as_bytes(), app.as_str()], now)?;
    }
    Ok(())
}

pub(super) fn revoked(db: &Connection, device: DeviceId) -> Result<Vec<AppId>> {
    let mut statement = db.prepare_cached("SELECT app FROM registrations WHERE device = ?1 AND state = 'revoked'")?;
    statement.query_map([device.as_bytes()], |row| app_in(row, 0))?.collect()
}

pub(super) fn is_registered(db: &Connection, to: &Opened, app: &AppId) -> Result<bool> {
    let generation = i64::try_from(to.generation).unwrap_or(-1);
    db.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM registrations
                        WHERE device = ?1 AND app = ?2 AND generation = ?3 AND state = 'active')",
    )?
    .query_row(params![to.device.as_bytes(), app.as_str(), generation], |row| row.get(0))
}

fn is_any_to_forget(db: &Connection, before: UnixMillis) -> Result<bool> {
    db.prepare_cached(&format!("SELECT EXISTS (SELECT 1 {ENDED})"))?.query_row([before.0], |row| row.get(0))
}

/// Forgets channels that ended before this time, some of them; returns whether these were all.
pub(super) fn forget_ended_channels(db: &Connection, before: UnixMillis) -> Result<bool> {
    let removed = db
        .prepare_cached(&format!(
            "DELETE FROM registrations WHERE (device, app) IN (SELECT device, app {ENDED} LIMIT ?2)"
        ))?
        .execute(params![before.0, SWEEP])?;
    Ok(removed < SWEEP as usize)
}
