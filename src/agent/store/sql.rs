//! The device's schema and statements. Each function is one step of a transaction that the caller
//! holds.

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::proto::frame::{Delivery, Fate, LIST_MAX, Outcome, WINDOW};
use crate::proto::wishes::Wish;
use crate::proto::{AppId, MessageId, Push, RegId, UnixMillis};
use crate::world;

use super::{AppRow, Credentials, Limits, Received, Unread};

/// The schema, step by step. A published step is never changed.
pub const MIGRATIONS: &[&str] = &["
    CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
    -- reg_id: as long as the app is registered. wish: what the server has still to be asked for.
    CREATE TABLE apps (
        app    TEXT PRIMARY KEY,
        uid    INTEGER NOT NULL,
        reg_id TEXT,
        wish   TEXT CHECK (wish IN ('register', 'deregister'))
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE unread (
        place       INTEGER PRIMARY KEY AUTOINCREMENT,
        app         TEXT NOT NULL,
        received_ms INTEGER NOT NULL,
        expires_ms  INTEGER NOT NULL,
        dropped     INTEGER NOT NULL,
        body        TEXT NOT NULL
    ) STRICT;
    CREATE INDEX unread_by_app ON unread (app, place);
    CREATE TABLE seen (
        place      INTEGER PRIMARY KEY AUTOINCREMENT,
        id         BLOB NOT NULL UNIQUE,
        forget_ms  INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE outcomes (
        id    BLOB PRIMARY KEY,
        fate  TEXT NOT NULL,
        at_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
"];

/// How long an id is remembered after its push expired: server and device may disagree about the
/// time by as much.
const CLOCKS_APART_MS: i64 = 2 * 24 * 3600 * 1000;
/// Most ids that are remembered.
const SEEN_MAX: i64 = 20_000;
/// After this many pushes, what need not be remembered any longer is removed.
const HOUSEKEEPING_EVERY: i64 = 64;
/// Most outcomes that wait for the server; the oldest go, they are only history.
const OUTCOMES_MAX: i64 = 1000;

type Result<T, E = rusqlite::Error> = std::result::Result<T, E>;

pub fn credentials(db: &Connection) -> Result<Credentials> {
    if let (Some(device), Some(secret)) = (fact(db, "device")?, fact(db, "secret")?) {
        return Ok(Credentials { device: parse(&device)?, secret: parse(&secret)? });
    }
    let (device, secret) = (world::device_id(), world::secret());
    let step = db.unchecked_transaction()?;
    set_fact(&step, "device", &device.to_string())?;
    set_fact(&step, "secret", &hex::encode(secret.reveal()))?;
    step.commit()?;
    Ok(Credentials { device, secret })
}

pub fn fact(db: &Connection, name: &str) -> Result<Option<String>> {
    db.query_row("SELECT value FROM facts WHERE name = ?1", [name], |row| row.get(0)).optional()
}

pub fn set_fact(db: &Connection, name: &str, value: &str) -> Result<()> {
    db.execute("INSERT INTO facts VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = ?2", [name, value])?;
    Ok(())
}

const APP_COLUMNS: &str = "app, uid, reg_id, wish, (SELECT count(*) FROM unread u WHERE u.app = apps.app)";

pub fn find_app(db: &Connection, app: &AppId) -> Result<Option<AppRow>> {
    db.prepare_cached(&format!("SELECT {APP_COLUMNS} FROM apps WHERE app = ?1"))?
        .query_row([app.as_str()], app_row)
        .optional()
}

pub fn all_apps(db: &Connection) -> Result<Vec<AppRow>> {
    db.prepare_cached(&format!("SELECT {APP_COLUMNS} FROM apps ORDER BY app"))?.query_map([], app_row)?.collect()
}

fn app_row(row: &Row<'_>) -> Result<AppRow> {
    let reg_id: Option<String> = row.get(2)?;
    let wish: Option<String> = row.get(3)?;
    Ok(AppRow {
        app: text(row, 0)?,
        uid: row.get(1)?,
        reg_id: reg_id.as_deref().map(parse).transpose()?,
        wish: wish.as_deref().map(|name| if name == "register" { Wish::Register } else { Wish::Deregister }),
        unread: row.get(4)?,
    })
}

fn wish_name(wish: Wish) -> &'static str {
    match wish {
        Wish::Register => "register",
        Wish::Deregister => "deregister",
    }
}

pub fn claim(db: &Connection, app: &AppId, uid: u32, limit: u32) -> Result<Option<AppRow>> {
    if let Some(row) = find_app(db, app)? {
        return Ok(Some(row));
    }
    let count: u32 = db.query_row("SELECT count(*) FROM apps", [], |row| row.get(0))?;
    if count >= limit {
        return Ok(None);
    }
    db.execute("INSERT INTO apps (app, uid) VALUES (?1, ?2)", params![app.as_str(), uid])?;
    Ok(Some(AppRow { app: app.clone(), uid, reg_id: None, wish: None, unread: 0 }))
}

pub fn set_wish(db: &Connection, app: &AppId, wish: Option<Wish>) -> Result<()> {
    db.execute("UPDATE apps SET wish = ?2 WHERE app = ?1", params![app.as_str(), wish.map(wish_name)])?;
    Ok(())
}

pub fn set_reg_id(db: &Connection, app: &AppId, reg_id: Option<RegId>, fulfilled: Wish) -> Result<()> {
    let reg_id = reg_id.map(|reg_id| reg_id.to_string());
    db.execute(
        "UPDATE apps SET reg_id = ?2, wish = nullif(wish, ?3) WHERE app = ?1",
        params![app.as_str(), reg_id, wish_name(fulfilled)],
    )?;
    Ok(())
}

pub fn renew_all(db: &Connection) -> Result<Vec<AppId>> {
    db.prepare_cached(
        "UPDATE apps SET wish = 'register', reg_id = NULL
         WHERE reg_id IS NOT NULL AND wish IS NOT 'deregister' RETURNING app",
    )?
    .query_map([], |row| text(row, 0))?
    .collect()
}

pub fn receive(db: &Connection, batch: Vec<Delivery>, limits: Limits, now: UnixMillis) -> Result<Received> {
    let mut received = Received::default();
    for delivery in batch {
        let id = delivery.push.id;
        received.ids.push(id);
        let Some(place) = remember(db, &delivery.push)? else { continue };
        if place % HOUSEKEEPING_EVERY == 0 {
            forget_old(db, now)?;
        }
        let app = delivery.push.app.clone();
        let fate = if delivery.push.expired(now) {
            Some(Fate::Expired)
        } else if !is_wanted(db, &delivery.push)? {
            Some(Fate::Unwanted)
        } else {
            keep(db, &delivery, limits, now)?;
            None
        };
        match fate {
            Some(fate) => {
                settle(db, id, fate, now)?;
                received.outcomes = true;
            }
            None if !received.apps.contains(&app) => received.apps.push(app),
            None => {}
        }
    }
    Ok(received)
}

/// Notes the push's id and returns its place; `None` if it was noted before.
fn remember(db: &Connection, push: &Push) -> Result<Option<i64>> {
    let forget = push.expires_ms.0.saturating_add(CLOCKS_APART_MS);
    db.prepare_cached("INSERT INTO seen (id, forget_ms) VALUES (?1, ?2) ON CONFLICT DO NOTHING RETURNING place")?
        .query_row(params![push.id.as_bytes(), forget], |row| row.get(0))
        .optional()
}

fn is_wanted(db: &Connection, push: &Push) -> Result<bool> {
    db.prepare_cached("SELECT EXISTS (SELECT 1 FROM apps WHERE app = ?1 AND reg_id = ?2)")?
        .query_row(params![push.app.as_str(), push.reg_id.to_string()], |row| row.get(0))
}

fn keep(db: &Connection, delivery: &Delivery, limits: Limits, now: UnixMillis) -> Result<()> {
    let push = &delivery.push;
    let body = serde_json::to_string(push).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    db.prepare_cached("INSERT INTO unread (app, received_ms, expires_ms, dropped, body) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![push.app.as_str(), now.0, push.expires_ms.0, delivery.dropped, body])?;
    while over_limit(db, &push.app, limits)? {
        drop_oldest(db, &push.app, now)?;
    }
    Ok(())
}

/// Whether the app's queue is too long. A single message is always kept.
fn over_limit(db: &Connection, app: &AppId, limits: Limits) -> Result<bool> {
    let (count, bytes): (u32, i64) = db
        .prepare_cached("SELECT count(*), coalesce(sum(octet_length(body)), 0) FROM unread WHERE app = ?1")?
        .query_row([app.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(count > 1 && (count > limits.unread_messages || bytes.unsigned_abs() > limits.unread_bytes))
}

/// Drops the app's oldest message; the next one says so to the app.
fn drop_oldest(db: &Connection, app: &AppId, now: UnixMillis) -> Result<()> {
    let Some(oldest) = oldest(db, app)? else { return Ok(()) };
    db.prepare_cached("DELETE FROM unread WHERE place = ?1")?.execute([oldest.place])?;
    let expired = oldest.push.expired(now);
    settle(db, oldest.push.id, if expired { Fate::Expired } else { Fate::Dropped }, now)?;
    carry(db, app, oldest.dropped + u32::from(!expired))
}

/// Adds to the count that the app's oldest message carries.
fn carry(db: &Connection, app: &AppId, dropped: u32) -> Result<()> {
    db.prepare_cached(
        "UPDATE unread SET dropped = dropped + ?2 WHERE place = (SELECT min(place) FROM unread WHERE app = ?1)",
    )?
    .execute(params![app.as_str(), dropped])?;
    Ok(())
}

pub fn oldest(db: &Connection, app: &AppId) -> Result<Option<Unread>> {
    db.prepare_cached("SELECT place, received_ms, dropped, body FROM unread WHERE app = ?1 ORDER BY place LIMIT 1")?
        .query_row([app.as_str()], |row| {
            Ok(Unread {
                place: row.get(0)?,
                received_ms: UnixMillis(row.get(1)?),
                dropped: row.get(2)?,
                push: serde_json::from_str(row.get_ref(3)?.as_str()?)
                    .map_err(|error| rusqlite::Error::FromSqlConversionFailure(3, Type::Text, error.into()))?,
            })
        })
        .optional()
}

/// Settles the app's expired messages at the head of its queue; returns the first that is left.
pub fn skip_expired(db: &Connection, app: &AppId, now: UnixMillis) -> Result<Option<Unread>> {
    while let Some(unread) = oldest(db, app)? {
        if !unread.push.expired(now) {
            return Ok(Some(unread));
        }
        db.prepare_cached("DELETE FROM unread WHERE place = ?1")?.execute([unread.place])?;
        settle(db, unread.push.id, Fate::Expired, now)?;
        carry(db, app, unread.dropped)?;
    }
    Ok(None)
}

/// The last place that was given to a message that is still unread.
pub fn last_place(db: &Connection) -> Result<i64> {
    db.query_row("SELECT coalesce(max(place), 0) FROM unread", [], |row| row.get(0))
}

/// The app has taken the message.
pub fn take(db: &Connection, place: i64, id: MessageId, now: UnixMillis) -> Result<()> {
    db.prepare_cached("DELETE FROM unread WHERE place = ?1")?.execute([place])?;
    settle(db, id, Fate::Delivered, now)
}

pub fn forget_outcomes(db: &Connection, ids: &[MessageId]) -> Result<()> {
    let mut forget = db.prepare_cached("DELETE FROM outcomes WHERE id = ?1")?;
    ids.iter().try_for_each(|id| forget.execute([id.as_bytes()]).map(drop))
}

pub fn count(db: &Connection, app: &AppId) -> Result<u32> {
    db.prepare_cached("SELECT count(*) FROM unread WHERE app = ?1 AND expires_ms > ?2")?
        .query_row(params![app.as_str(), world::now().0], |row| row.get(0))
}

pub fn resume_point(db: &Connection) -> Result<Vec<MessageId>> {
    let window = i64::try_from(WINDOW).unwrap_or(i64::MAX);
    db.prepare_cached("SELECT id FROM seen ORDER BY place DESC LIMIT ?1")?
        .query_map([window], |row| id(row, 0))?
        .collect()
}

fn settle(db: &Connection, id: MessageId, fate: Fate, now: UnixMillis) -> Result<()> {
    db.prepare_cached("INSERT INTO outcomes VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING")?.execute(params![
        id.as_bytes(),
        fate_name(fate),
        now.0
    ])?;
    Ok(())
}

pub fn outcomes(db: &Connection) -> Result<Vec<Outcome>> {
    let most = i64::try_from(LIST_MAX).unwrap_or(i64::MAX);
    db.prepare_cached("SELECT id, fate, at_ms FROM outcomes ORDER BY at_ms LIMIT ?1")?
        .query_map([most], |row| {
            let fate: String = row.get(1)?;
            Ok(Outcome { id: id(row, 0)?, fate: fate_named(&fate), at_ms: UnixMillis(row.get(2)?) })
        })?
        .collect()
}

fn fate_name(fate: Fate) -> &'static str {
    match fate {
        Fate::Delivered => "delivered",
        Fate::Expired => "expired",
        Fate::Dropped => "dropped",
        Fate::Unwanted => "unwanted",
    }
}

fn fate_named(name: &str) -> Fate {
    match name {
        "delivered" => Fate::Delivered,
        "expired" => Fate::Expired,
        "dropped" => Fate::Dropped,
        _ => Fate::Unwanted,
    }
}

fn forget_old(db: &Connection, now: UnixMillis) -> Result<()> {
    let window = i64::try_from(WINDOW).unwrap_or(0);
    db.prepare_cached(
        "DELETE FROM seen WHERE (forget_ms <= ?1 AND place <= (SELECT max(place) FROM seen) - ?2)
                             OR place <= (SELECT max(place) FROM seen) - ?3",
    )?
    .execute(params![now.0, window, SEEN_MAX])?;
    db.prepare_cached(
        "DELETE FROM outcomes WHERE id IN (SELECT id FROM outcomes ORDER BY at_ms DESC LIMIT -1 OFFSET ?1)",
    )?
    .execute([OUTCOMES_MAX])?;
    Ok(())
}

fn text<T: std::str::FromStr<Err = crate::proto::ids::IdError>>(row: &Row<'_>, column: usize) -> Result<T> {
    parse(row.get_ref(column)?.as_str()?)
}

fn parse<T: std::str::FromStr<Err = crate::proto::ids::IdError>>(text: &str) -> Result<T> {
    text.parse().map_err(|error: T::Err| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, error.into()))
}

fn id(row: &Row<'_>, column: usize) -> Result<MessageId> {
    MessageId::from_slice(row.get_ref(column)?.as_blob()?)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Blob, error.into()))
}
