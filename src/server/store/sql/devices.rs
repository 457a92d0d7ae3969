//! Statements about device records: who is enrolled, who was seen when, and who is forgotten.
//!
//! A device that is forgotten leaves its registrations behind as ended, so that no generation is ever
//! used again. Its row goes last: until then it is told at its greeting that it has to register anew.

use rusqlite::{Connection, OptionalExtension, params};

use crate::proto::{DeviceId, UnixMillis};

use super::{Result, device_in, end_all};

/// Most rows that one step of forgetting removes.
pub const STEP: usize = 1000;

/// What is remembered of a device.
#[derive(Clone, Debug)]
pub struct DeviceRow {
    /// Of its secret.
    pub secret_hash: Vec<u8>,
    /// When it greeted last, to the day.
    pub seen_ms: UnixMillis,
    /// It has registered nothing since it was enrolled or the database was restored.
    pub fresh: bool,
}

pub fn find(db: &Connection, device: DeviceId) -> Result<Option<DeviceRow>> {
    db.prepare_cached("SELECT secret_hash, seen_ms, fresh FROM devices WHERE device = ?1")?
        .query_row([device.as_bytes()], |row| {
            Ok(DeviceRow { secret_hash: row.get(0)?, seen_ms: UnixMillis(row.get(1)?), fresh: row.get(2)? })
        })
        .optional()
}

/// Enrols a device, or returns the secret's hash of the one that is there. One that was not seen
/// after `forget_before` is none.
pub fn enrol(
    db: &Connection,
    device: DeviceId,
    hash: &[u8],
    agent: &str,
    now: UnixMillis,
    forget_before: UnixMillis,
) -> Result<Option<Vec<u8>>> {
    match find(db, device)? {
        Some(row) if row.seen_ms > forget_before => return Ok(Some(row.secret_hash)),
        Some(_) => {
            forget(db, device.as_bytes(), usize::MAX, now)?;
        }
        None => {}
    }
    db.prepare_cached(
        "INSERT INTO devices (device, secret_hash, agent, enrolled_ms, seen_ms) VALUES (?1, ?2, ?3, ?4, ?4)",
    )?
    .execute(params![device.as_bytes(), hash, agent, now.0])?;
    Ok(None)
}

pub fn has_broker_hash(db: &Connection, device: DeviceId) -> Result<bool> {
    let found = db
        .prepare_cached("SELECT broker_hash IS NOT NULL FROM devices WHERE device = ?1")?
        .query_row([device.as_bytes()], |row| row.get(0));
    Ok(found.optional()?.unwrap_or(false))
}

pub fn set_broker_hash(db: &Connection, device: DeviceId, hash: &str) -> Result<()> {
    db.prepare_cached("UPDATE devices SET broker_hash = ?2 WHERE device = ?1")?
        .execute(params![device.as_bytes(), hash])?;
    Ok(())
}

/// The next of those that have one, by id.
pub fn broker_users(db: &Connection, after: Option<DeviceId>, limit: usize) -> Result<Vec<(DeviceId, String)>> {
    let after = after.as_ref().map_or(&[][..], |device| device.as_bytes());
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut rows = db.prepare_cached(
        "SELECT device, broker_hash FROM devices WHERE device > ?1 AND broker_hash IS NOT NULL ORDER BY device LIMIT ?2",
    )?;
    let rows = rows.query_map(params![after, limit], |row| Ok((device_in(row)?, row.get(1)?)))?;
    rows.collect()
}

/// The device has greeted, or is still here.
pub fn saw(db: &Connection, device: DeviceId, now: UnixMillis) -> Result<()> {
    db.prepare_cached("UPDATE devices SET seen_ms = ?2 WHERE device = ?1")?
        .execute(params![device.as_bytes(), now.0])?;
    Ok(())
}

/// The device has registered something: it has heard that it had to.
pub fn has_registered(db: &Connection, device: DeviceId) -> Result<()> {
    db.prepare_cached("UPDATE devices SET fresh = 0 WHERE device = ?1 AND fresh")?.execute([device.as_bytes()])?;
    Ok(())
}

/// Whether a device was not seen after `forget_before`.
pub fn is_any_to_forget(db: &Connection, forget_before: UnixMillis) -> Result<bool> {
    db.prepare_cached("SELECT EXISTS (SELECT 1 FROM devices WHERE seen_ms <= ?1)")?
        .query_row([forget_before.0], |row| row.get(0))
}

/// Forgets devices that were not seen after `forget_before`, as many as one [`STEP`] allows. Returns
/// how many, and whether these were all.
pub fn forget_step(db: &Connection, forget_before: UnixMillis, now: UnixMillis) -> Result<(usize, bool)> {
    let mut next = db.prepare_cached("SELECT device FROM devices WHERE seen_ms <= ?1 ORDER BY seen_ms LIMIT 1")?;
    let (mut forgotten, mut room) = (0, STEP);
    while room > 0 {
        let device: Option<Vec<u8>> = next.query_row([forget_before.0], |row| row.get(0)).optional()?;
        let Some(device) = device else { return Ok((forgotten, true)) };
        let Some(removed) = forget(db, &device, room, now)? else { return Ok((forgotten, false)) };
        forgotten += 1;
        room = room.saturating_sub(removed + 1);
    }
    Ok((forgotten, false))
}

/// Ends the device's registrations and removes its messages, `room` of them at the most; then the
/// device. Returns how many messages went, or `None` if there are more of them.
fn forget(db: &Connection, device: &[u8], room: usize, now: UnixMillis) -> Result<Option<usize>> {
    db.prepare_cached(
        "UPDATE registrations SET state = 'ended', changed_ms = ?2 WHERE device = ?1 AND state <> 'ended'",
    )?
    .execute(params![device, now.0])?;
    let most = i64::try_from(room).unwrap_or(i64::MAX);
    let of_messages = "DELETE FROM messages WHERE seq IN (SELECT seq FROM messages INDEXED BY messages_by_device
                                                           WHERE device = ?1 LIMIT ?2)
                       RETURNING id, app, body";
    let of_delayed = "DELETE FROM delayed WHERE place IN (SELECT place FROM delayed WHERE device = ?1 LIMIT ?2)
                      RETURNING id, app, body";
    let mut removed = 0;
    for statement in [of_messages, of_delayed] {
        removed += end_all(db, statement, params![device, most], now)?;
    }
    if removed >= room {
        // Should it come back before the rest is gone, it hears that nothing stands any more.
        db.prepare_cached("UPDATE devices SET fresh = 1 WHERE device = ?1")?.execute([device])?;
        return Ok(None);
    }
    db.prepare_cached("DELETE FROM devices WHERE device = ?1")?.execute([device])?;
    Ok(Some(removed))
}
