//! The server's schema and statements. Each function is one step of a transaction that the caller
//! holds; nothing here decides what a sender or device is told.

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};

use crate::proto::gateway::{Queued, Seq};
use crate::proto::{AppId, DeviceId, Push, UnixMillis};
use crate::world;

use super::tokens::{TokenAdded, TokenRow};
use super::{Accepted, AppRow, Incoming, KeyRow, Opened, Registered};
use crate::server::manage::{TokenName, TokenNameError};

/// The schema, step by step. A published step is never changed.
pub const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE keys (
        number     INTEGER PRIMARY KEY,
        purpose    TEXT NOT NULL CHECK (purpose IN ('seal', 'shard')),
        secret     BLOB NOT NULL,
        created_ms INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE apps (
        app         TEXT PRIMARY KEY,
        secret_hash BLOB NOT NULL,
        created_ms  INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE devices (
        device      BLOB PRIMARY KEY,
        secret_hash BLOB NOT NULL,
        agent       TEXT NOT NULL,
        enrolled_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    -- A registration that ended keeps its row, so that its generation is never used again.
    -- 'revoked': ended by the server, not yet confirmed by the device.
    CREATE TABLE registrations (
        device     BLOB NOT NULL,
        app        TEXT NOT NULL,
        generation INTEGER NOT NULL,
        state      TEXT NOT NULL CHECK (state IN ('active', 'ended', 'revoked')),
        changed_ms INTEGER NOT NULL,
        PRIMARY KEY (device, app)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX registrations_by_app ON registrations (app, state);
    -- dropped: messages of the same registration that had to go before this one.
    CREATE TABLE messages (
        seq        INTEGER PRIMARY KEY,
        device     BLOB NOT NULL,
        app        TEXT NOT NULL,
        expires_ms INTEGER NOT NULL,
        dropped    INTEGER NOT NULL DEFAULT 0,
        body       TEXT NOT NULL
    ) STRICT;
    CREATE INDEX messages_by_device ON messages (device, seq, app);
    CREATE INDEX messages_by_expiry ON messages (expires_ms);
",
    "
    -- Of operators' programs.
    CREATE TABLE tokens (
        name       TEXT PRIMARY KEY,
        hash       BLOB NOT NULL,
        created_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    -- What is written to see whether anything can be: one row, as large as a message may be.
    CREATE TABLE trial (
        id   INTEGER PRIMARY KEY CHECK (id = 1),
        body BLOB NOT NULL
    ) STRICT;
",
];

/// Most expired messages that one sweep removes.
pub const SWEEP: usize = 2000;

/// Stores a message.
pub const INSERT: &str = "INSERT INTO messages (seq, device, app, expires_ms, body) VALUES (?1, ?2, ?3, ?4, ?5)";

type Result<T> = rusqlite::Result<T>;

pub fn make_missing_keys(db: &Connection, now: UnixMillis) -> Result<()> {
    // Another process may be looking at the same moment.
    let step = Transaction::new_unchecked(db, TransactionBehavior::Immediate)?;
    let missing = |purpose: &str| {
        db.query_row("SELECT NOT EXISTS (SELECT 1 FROM keys WHERE purpose = ?1)", [purpose], |row| {
            row.get::<_, bool>(0)
        })
    };
    if missing("seal")? {
        add_seal_key(db, now)?;
    }
    if missing("shard")? {
        add_key(db, "shard", &world::random_bytes::<32>(), now)?;
    }
    step.commit()
}

pub fn add_seal_key(db: &Connection, now: UnixMillis) -> Result<i64> {
    add_key(db, "seal", &world::random_bytes::<64>(), now)
}

fn add_key(db: &Connection, purpose: &str, secret: &[u8], now: UnixMillis) -> Result<i64> {
    db.execute("INSERT INTO keys (purpose, secret, created_ms) VALUES (?1, ?2, ?3)", params![purpose, secret, now.0])?;
    Ok(db.last_insert_rowid())
}

/// A key's number and bytes.
type NumberedKey = (i64, Vec<u8>);

/// The sealing keys, and the shard key.
pub fn keys(db: &Connection) -> Result<(Vec<NumberedKey>, Vec<u8>)> {
    let mut statement = db.prepare_cached("SELECT number, secret FROM keys WHERE purpose = 'seal'")?;
    let seal = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_>>()?;
    let shard = db.query_row("SELECT secret FROM keys WHERE purpose = 'shard'", [], |row| row.get(0))?;
    Ok((seal, shard))
}

pub fn list_keys(db: &Connection) -> Result<Vec<KeyRow>> {
    let mut statement =
        db.prepare("SELECT number, created_ms FROM keys WHERE purpose = 'seal' ORDER BY number DESC")?;
    let rows =
        statement.query_map([], |row| Ok(KeyRow { number: row.get(0)?, created_ms: UnixMillis(row.get(1)?) }))?;
    rows.collect()
}

pub fn last_seq(db: &Connection) -> Result<i64> {
    db.query_row("SELECT coalesce(max(seq), 0) FROM messages", [], |row| row.get(0))
}

pub fn add_app(db: &Connection, app: &AppId, hash: &[u8], now: UnixMillis) -> Result<bool> {
    let added = db.execute(
        "INSERT INTO apps (app, secret_hash, created_ms) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
        params![app.as_str(), hash, now.0],
    )?;
    Ok(added > 0)
}

pub fn set_app_secret(db: &Connection, app: &AppId, hash: &[u8]) -> Result<bool> {
    Ok(db.execute("UPDATE apps SET secret_hash = ?2 WHERE app = ?1", params![app.as_str(), hash])? > 0)
}

pub fn remove_app(db: &Connection, app: &AppId, now: UnixMillis) -> Result<Option<Vec<DeviceId>>> {
    // By device, because that is how messages are indexed.
    db.execute(
        "DELETE FROM messages WHERE app = ?1
         AND device IN (SELECT device FROM registrations WHERE app = ?1 AND state = 'active')",
        [app.as_str()],
    )?;
    let mut revoke = db.prepare(
        "UPDATE registrations SET state = 'revoked', changed_ms = ?2 WHERE app = ?1 AND state = 'active'
         RETURNING device",
    )?;
    let devices = revoke.query_map(params![app.as_str(), now.0], device_in)?.collect::<Result<_>>()?;
    let removed = db.execute("DELETE FROM apps WHERE app = ?1", [app.as_str()])? > 0;
    Ok(removed.then_some(devices))
}

pub fn list_apps(db: &Connection) -> Result<Vec<AppRow>> {
    let mut statement = db.prepare(
        "SELECT app, created_ms, (SELECT count(*) FROM registrations r WHERE r.app = apps.app AND r.state = 'active')
         FROM apps ORDER BY app",
    )?;
    statement.query_map([], app_row)?.collect()
}

pub fn app(db: &Connection, app: &AppId) -> Result<Option<AppRow>> {
    let mut statement = db.prepare(
        "SELECT app, created_ms, (SELECT count(*) FROM registrations r WHERE r.app = apps.app AND r.state = 'active')
         FROM apps WHERE app = ?1",
    )?;
    statement.query_row([app.as_str()], app_row).optional()
}

fn app_row(row: &Row<'_>) -> Result<AppRow> {
    Ok(AppRow { app: app_in(row, 0)?, created_ms: UnixMillis(row.get(1)?), registrations: row.get(2)? })
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

pub fn remove_token(db: &Connection, name: &TokenName) -> Result<bool> {
    Ok(db.execute("DELETE FROM tokens WHERE name = ?1", [name.as_str()])? > 0)
}

pub fn token_hashes(db: &Connection) -> Result<Vec<Vec<u8>>> {
    let mut statement = db.prepare_cached("SELECT hash FROM tokens")?;
    statement.query_map([], |row| row.get(0))?.collect()
}

/// Messages that wait, by the smallest index.
pub fn waiting(db: &Connection) -> Result<i64> {
    db.prepare_cached("SELECT count(*) FROM messages")?.query_row([], |row| row.get(0))
}

pub fn bytes(db: &Connection) -> Result<i64> {
    let one = |pragma: &str| db.query_row(pragma, [], |row| row.get::<_, i64>(0));
    Ok(one("PRAGMA page_count")? * one("PRAGMA page_size")?)
}

/// Writes other bytes than last time: what does not change is not written.
pub fn try_write(db: &Connection) -> Result<()> {
    db.execute("INSERT OR REPLACE INTO trial (id, body) VALUES (1, randomblob(16384))", [])?;
    Ok(())
}

pub fn app_secret(db: &Connection, app: &AppId) -> Result<Option<Vec<u8>>> {
    let mut statement = db.prepare_cached("SELECT secret_hash FROM apps WHERE app = ?1")?;
    statement.query_row([app.as_str()], |row| row.get(0)).optional()
}

/// Whether the device has a registration here.
pub fn has_registrations(db: &Connection, device: DeviceId) -> Result<bool> {
    db.prepare_cached("SELECT EXISTS (SELECT 1 FROM registrations WHERE device = ?1)")?
        .query_row([device.as_bytes()], |row| row.get(0))
}

pub fn device_secret(db: &Connection, device: DeviceId) -> Result<Option<Vec<u8>>> {
    let mut statement = db.prepare_cached("SELECT secret_hash FROM devices WHERE device = ?1")?;
    statement.query_row([device.as_bytes()], |row| row.get(0)).optional()
}

/// Enrols a device, or returns the secret's hash of the one that is there.
pub fn enrol(db: &Connection, device: DeviceId, hash: &[u8], agent: &str, now: UnixMillis) -> Result<Option<Vec<u8>>> {
    let existing = device_secret(db, device)?;
    if existing.is_none() {
        db.prepare_cached("INSERT INTO devices (device, secret_hash, agent, enrolled_ms) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![device.as_bytes(), hash, agent, now.0])?;
    }
    Ok(existing)
}

pub fn register(db: &Connection, device: DeviceId, app: &AppId, limit: u32, now: UnixMillis) -> Result<Registered> {
    if app_secret(db, app)?.is_none() {
        return Ok(Registered::UnknownApp);
    }
    let newest_key = db.query_row("SELECT max(number) FROM keys WHERE purpose = 'seal'", [], |row| row.get(0))?;
    let mut find = db.prepare_cached("SELECT generation, state FROM registrations WHERE device = ?1 AND app = ?2")?;
    let found: Option<(i64, String)> =
        find.query_row(params![device.as_bytes(), app.as_str()], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let generation = match found {
        Some((generation, state)) if state == "active" => generation,
        _ if active_registrations(db, device)? >= i64::from(limit) => return Ok(Registered::TooMany),
        Some((generation, _)) => begin_registration(db, device, app, generation + 1, now)?,
        None => begin_registration(db, device, app, 1, now)?,
    };
    Ok(Registered::As { generation: generation.unsigned_abs(), newest_key })
}

fn active_registrations(db: &Connection, device: DeviceId) -> Result<i64> {
    db.prepare_cached("SELECT count(*) FROM registrations WHERE device = ?1 AND state = 'active'")?
        .query_row([device.as_bytes()], |row| row.get(0))
}

fn begin_registration(db: &Connection, device: DeviceId, app: &AppId, generation: i64, now: UnixMillis) -> Result<i64> {
    db.prepare_cached(
        "INSERT INTO registrations (device, app, generation, state, changed_ms) VALUES (?1, ?2, ?3, 'active', ?4)
         ON CONFLICT (device, app) DO UPDATE SET generation = ?3, state = 'active', changed_ms = ?4",
    )?
    .execute(params![device.as_bytes(), app.as_str(), generation, now.0])?;
    Ok(generation)
}

pub fn deregister(db: &Connection, device: DeviceId, app: &AppId, now: UnixMillis) -> Result<()> {
    db.prepare_cached(
        "UPDATE registrations SET state = 'ended', changed_ms = ?3
         WHERE device = ?1 AND app = ?2 AND state <> 'ended'",
    )?
    .execute(params![device.as_bytes(), app.as_str(), now.0])?;
    db.prepare_cached("DELETE FROM messages WHERE device = ?1 AND app = ?2")?
        .execute(params![device.as_bytes(), app.as_str()])?;
    Ok(())
}

pub fn revoked(db: &Connection, device: DeviceId) -> Result<Vec<AppId>> {
    let mut statement = db.prepare_cached("SELECT app FROM registrations WHERE device = ?1 AND state = 'revoked'")?;
    statement.query_map([device.as_bytes()], |row| app_in(row, 0))?.collect()
}

pub fn is_registered(db: &Connection, to: &Opened, app: &AppId) -> Result<bool> {
    let generation = i64::try_from(to.generation).unwrap_or(-1);
    db.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM registrations
                        WHERE device = ?1 AND app = ?2 AND generation = ?3 AND state = 'active')",
    )?
    .query_row(params![to.device.as_bytes(), app.as_str(), generation], |row| row.get(0))
}

/// Messages that made room for another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// They waited.
    pub dropped: usize,
    /// They did not wait any more.
    pub expired: usize,
}

/// What became of the message, and what had to go for it.
pub fn accept(db: &Connection, seq: Seq, incoming: &Incoming, waiting: u32) -> Result<(Accepted, Room)> {
    let (to, push) = (&incoming.to, &incoming.push);
    if !is_registered(db, to, &push.app)? {
        return Ok((Accepted::NotRegistered, Room::default()));
    }
    let body = serde_json::to_string(push).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    db.prepare_cached(INSERT)?.execute(params![
        seq.0,
        to.device.as_bytes(),
        push.app.as_str(),
        push.expires_ms.0,
        body
    ])?;
    Ok((Accepted::Stored, drop_oldest(db, to.device, &push.app, waiting)?))
}

/// Makes room in a registration's queue. The newest message then says how many went: it is the one
/// that no session has read yet.
fn drop_oldest(db: &Connection, device: DeviceId, app: &AppId, waiting: u32) -> Result<Room> {
    let key = params![device.as_bytes(), app.as_str()];
    let count: i64 = db
        .prepare_cached("SELECT count(*) FROM messages INDEXED BY messages_by_device WHERE device = ?1 AND app = ?2")?
        .query_row(key, |row| row.get(0))?;
    if count <= i64::from(waiting) {
        return Ok(Room::default());
    }
    // What has expired does not wait any more: it goes first, and is none that was dropped.
    let mut statement = db.prepare_cached(
        "DELETE FROM messages WHERE seq IN (SELECT seq FROM messages INDEXED BY messages_by_device
                                            WHERE device = ?1 AND app = ?2 ORDER BY expires_ms > ?3, seq LIMIT ?4)
         RETURNING dropped, expires_ms > ?3",
    )?;
    let too_many = params![device.as_bytes(), app.as_str(), world::now().0, count - i64::from(waiting)];
    let gone: Vec<(i64, bool)> =
        statement.query_map(too_many, |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_>>()?;
    let told = gone.iter().map(|(before, waited)| before + i64::from(*waited)).sum();
    add_dropped(db, device.as_bytes(), app.as_str(), told)?;
    let dropped = gone.iter().filter(|(_, waited)| *waited).count();
    Ok(Room { dropped, expired: gone.len() - dropped })
}

/// Lets the newest message of a registration say that so many more went before it.
fn add_dropped(db: &Connection, device: &[u8], app: &str, dropped: i64) -> Result<()> {
    if dropped == 0 {
        return Ok(());
    }
    db.prepare_cached(
        "UPDATE messages SET dropped = dropped + ?3
         WHERE seq = (SELECT max(seq) FROM messages INDEXED BY messages_by_device WHERE device = ?1 AND app = ?2)",
    )?
    .execute(params![device, app, dropped])?;
    Ok(())
}

pub fn backlog(
    db: &Connection,
    device: DeviceId,
    after: Seq,
    limit: usize,
    bytes: usize,
) -> Result<(Vec<Queued>, bool)> {
    let mut statement = db.prepare_cached(
        "SELECT seq, dropped, body FROM messages INDEXED BY messages_by_device
         WHERE device = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
    )?;
    // One row more than asked for says whether these are all.
    let limit_and_one = i64::try_from(limit + 1).unwrap_or(i64::MAX);
    let mut rows = statement.query(params![device.as_bytes(), after.0, limit_and_one])?;
    let (mut queued, mut size) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        if queued.len() == limit || size >= bytes {
            return Ok((queued, false));
        }
        let body = row.get_ref(2)?.as_str()?;
        size += body.len();
        queued.push(Queued { seq: Seq(row.get(0)?), dropped: row.get(1)?, push: push_in(body)? });
    }
    Ok((queued, true))
}

pub fn remove(db: &Connection, seqs: &[Seq]) -> Result<()> {
    let mut statement = db.prepare_cached("DELETE FROM messages WHERE seq = ?1")?;
    for seq in seqs {
        statement.execute([seq.0])?;
    }
    Ok(())
}

/// Removes messages that expired before they could be sent.
pub fn expire(db: &Connection, seqs: &[Seq]) -> Result<()> {
    let mut statement = db.prepare_cached("DELETE FROM messages WHERE seq = ?1 RETURNING device, app, dropped")?;
    for seq in seqs {
        let bearer = statement.query_row([seq.0], bearer).optional()?;
        bearer.map_or(Ok(()), |bearer| pass_on(db, &bearer))?;
    }
    Ok(())
}

/// Removes expired messages, [`SWEEP`] at the most; returns how many.
pub fn sweep(db: &Connection, now: UnixMillis) -> Result<usize> {
    let mut statement = db.prepare_cached(
        "DELETE FROM messages WHERE seq IN (SELECT seq FROM messages WHERE expires_ms <= ?1 LIMIT ?2)
         RETURNING device, app, dropped",
    )?;
    let most = i64::try_from(SWEEP).unwrap_or(i64::MAX);
    let removed: Vec<Bearer> = statement.query_map(params![now.0, most], bearer)?.collect::<Result<_>>()?;
    removed.iter().try_for_each(|bearer| pass_on(db, bearer))?;
    Ok(removed.len())
}

/// A message that is gone, with the count of drops that it bore.
struct Bearer {
    device: Vec<u8>,
    app: String,
    dropped: i64,
}

fn bearer(row: &Row<'_>) -> Result<Bearer> {
    Ok(Bearer { device: row.get(0)?, app: row.get(1)?, dropped: row.get(2)? })
}

/// The count goes to another message of the same registration, if there is one.
fn pass_on(db: &Connection, gone: &Bearer) -> Result<()> {
    add_dropped(db, &gone.device, &gone.app, gone.dropped)
}

fn push_in(body: &str) -> Result<Push> {
    serde_json::from_str(body).map_err(|error| rusqlite::Error::FromSqlConversionFailure(2, Type::Text, error.into()))
}

fn device_in(row: &Row<'_>) -> Result<DeviceId> {
    DeviceId::from_slice(row.get_ref(0)?.as_blob()?)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Blob, error.into()))
}

fn app_in(row: &Row<'_>, column: usize) -> Result<AppId> {
    let text: String = row.get(column)?;
    text.parse().map_err(|error: crate::proto::ids::IdError| {
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, error.into())
    })
}
