//! Statements for a database that was restored from a backup, and about what is in one.

use rusqlite::{Connection, params};

use crate::proto::UnixMillis;

use super::Result;

/// No registration has ended so often since the backup was made.
const GENERATIONS_SINCE: i64 = 1 << 20;

/// What is in a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contents {
    /// Apps.
    pub apps: i64,
    /// Devices.
    pub devices: i64,
    /// Messages that wait.
    pub messages: i64,
}

pub fn contents(db: &Connection) -> Result<Contents> {
    let count = |table: &str| db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0));
    Ok(Contents { apps: count("apps")?, devices: count("devices")?, messages: count("messages")? })
}

/// Makes up for what happened since the backup was made: every device is to register anew, none is
/// forgotten for the time that is missing, and regIds that were issued meanwhile are never issued
/// again.
pub fn restored(db: &Connection, now: UnixMillis) -> Result<()> {
    db.execute("UPDATE devices SET fresh = 1, seen_ms = max(seen_ms, ?1)", [now.0])?;
    // What was sent since the backup was made, nobody knows, as after a crash.
    db.execute("DELETE FROM facts WHERE name = 'ended in order'", [])?;
    db.execute(
        "INSERT INTO facts (name, value)
         SELECT 'generation-floor', coalesce(max(generation), 0) + ?1 FROM
             (SELECT generation FROM registrations UNION ALL
              SELECT value FROM facts WHERE name = 'generation-floor')
         WHERE true
         ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        params![GENERATIONS_SINCE],
    )?;
    // Senders may have been told of places since then: what comes now has to come after those.
    db.execute("DELETE FROM sqlite_sequence WHERE name = 'confirmations'", [])?;
    db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('confirmations', ?1)", [now.0])?;
    Ok(())
}

/// The lowest generation with which a registration may begin.
pub fn generation_floor(db: &Connection) -> Result<i64> {
    db.prepare_cached("SELECT coalesce(max(value), 1) FROM facts WHERE name = 'generation-floor'")?
        .query_row([], |row| row.get(0))
}
