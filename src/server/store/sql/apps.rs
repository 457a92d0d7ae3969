//! Statements about apps, their secrets, and the tokens of operators' programs.

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::super::AppRow;
use super::super::history::{self, End};
use super::super::tokens::{TokenAdded, TokenRow};
use super::{Result, app_in, device_in};
use crate::proto::{AppId, DeviceId, UnixMillis};
use crate::server::manage::{TokenName, TokenNameError};

pub fn add_app(db: &Connection, app: &AppId, hash: &[u8], now: UnixMillis) -> Result<bool> {
    let added = db.execute(
        "INSERT INTO apps (app, secret_hash, created_ms) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
        params![app.as_str(), hash, now.0],
    )?;
    Ok(added > 0)
}

/// Gives the app another secret; the present one works until `grace_until`, and none before it.
pub fn set_app_secret(db: &Connection, app: &AppId, hash: &[u8], grace_until: UnixMillis) -> Result<bool> {
    let changed = db.execute(
        "UPDATE apps SET old_secret_hash = secret_hash, old_until_ms = ?3, secret_hash = ?2 WHERE app = ?1",
        params![app.as_str(), hash, grace_until.0],
    )?;
    Ok(changed > 0)
}

pub fn remove_app(db: &Connection, app: &AppId, now: UnixMillis) -> Result<Option<Vec<DeviceId>>> {
    // By device, because that is how messages are indexed.
    let of_messages = "DELETE FROM messages WHERE app = ?1
         AND device IN (SELECT device FROM registrations WHERE app = ?1 AND state = 'active') RETURNING id";
    for statement in [of_messages, "DELETE FROM delayed WHERE app = ?1 RETURNING id"] {
        let mut statement = db.prepare(statement)?;
        let mut rows = statement.query([app.as_str()])?;
        // Otherwise their history would be kept for ever.
        while let Some(row) = rows.next()? {
            history::ended(db, history::id_in(row, 0)?, End::Unregistered, now)?;
        }
    }
    let mut revoke = db.prepare(
        "UPDATE registrations SET state = 'revoked', changed_ms = ?2 WHERE app = ?1 AND state = 'active'
         RETURNING device",
    )?;
    let devices = revoke.query_map(params![app.as_str(), now.0], device_in)?.collect::<Result<_>>()?;
    db.execute("DELETE FROM receipts WHERE app = ?1", [app.as_str()])?;
    let removed = db.execute("DELETE FROM apps WHERE app = ?1", [app.as_str()])? > 0;
    Ok(removed.then_some(devices))
}

const APPS: &str = "SELECT app, created_ms,
    (SELECT count(*) FROM registrations r WHERE r.app = apps.app AND r.state = 'active'),
    nullif(max(old_until_ms, ?1), ?1), callback_url, vapid_key FROM apps";

pub fn list_apps(db: &Connection, now: UnixMillis) -> Result<Vec<AppRow>> {
    let mut statement = db.prepare(&format!("{APPS} ORDER BY app"))?;
    statement.query_map([now.0], app_row)?.collect()
}

pub fn app(db: &Connection, app: &AppId, now: UnixMillis) -> Result<Option<AppRow>> {
    let mut statement = db.prepare(&format!("{APPS} WHERE app = ?2"))?;
    statement.query_row(params![now.0, app.as_str()], app_row).optional()
}

fn app_row(row: &Row<'_>) -> Result<AppRow> {
    let old_secret_until: Option<i64> = row.get(3)?;
    Ok(AppRow {
        app: app_in(row, 0)?,
        created_ms: UnixMillis(row.get(1)?),
        registrations: row.get(2)?,
        old_secret_until: old_secret_until.map(UnixMillis),
        callback: row.get(4)?,
        vapid_key: row.get(5)?,
    })
}

pub fn add_token(db: &Connection, name: &TokenName, hash: &[u8], most: usize, now: UnixMillis) -> Result<TokenAdded> {
    let count: i64 = db.query_row("SELECT count(*) FROM tokens", [], |row| row.get(0))?;
    if count >= i64::try_from(most).unwrap_or(i64::MAX) {
        return Ok(TokenAdded::TooMany);
    }
    let added = db.execute(
        "INSERT INTO tokens (name, hash, created_ms) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
        params![name.as_str(), hash, now.0],
    )?;
    Ok(if added > 0 { TokenAdded::Added } else { TokenAdded::Taken })
}

pub fn list_tokens(db: &Connection) -> Result<Vec<TokenRow>> {
    let mut statement = db.prepare("SELECT name, created_ms FROM tokens ORDER BY name")?;
    let rows = statement.query_map([], |row| {
        let name: String = row.get(0)?;
        let name = name
            .parse()
            .map_err(|error: TokenNameError| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, error.into()))?;
        Ok(TokenRow { name, created_ms: UnixMillis(row.get(1)?) })
    })?;
    rows.collect()
}

pub fn has_app(db: &Connection, app: &AppId) -> Result<bool> {
    db.prepare_cached("SELECT EXISTS (SELECT 1 FROM apps WHERE app = ?1)")?.query_row([app.as_str()], |row| row.get(0))
}

pub fn remove_token(db: &Connection, name: &TokenName) -> Result<bool> {
    Ok(db.execute("DELETE FROM tokens WHERE name = ?1", [name.as_str()])? > 0)
}

pub fn token_hashes(db: &Connection) -> Result<Vec<Vec<u8>>> {
    let mut statement = db.prepare_cached("SELECT hash FROM tokens")?;
    statement.query_map([], |row| row.get(0))?.collect()
}

/// The hashes of an app's secrets that work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppSecrets {
    /// Of the present one.
    pub present: Vec<u8>,
    /// Of the one before, in its grace.
    pub old: Option<Vec<u8>>,
}

pub fn app_secrets(db: &Connection, app: &AppId, now: UnixMillis) -> Result<Option<AppSecrets>> {
    db.prepare_cached("SELECT secret_hash, iif(old_until_ms > ?2, old_secret_hash, NULL) FROM apps WHERE app = ?1")?
        .query_row(params![app.as_str(), now.0], |row| Ok(AppSecrets { present: row.get(0)?, old: row.get(1)? }))
        .optional()
}
