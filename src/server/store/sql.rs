//! The server's statements; the tables are in `schema`. Each function is one step of a transaction
//! that the caller holds; nothing here decides what a sender or device is told.

mod apps;
mod backlog;
pub mod backup;
pub mod devices;
mod schema;

use std::collections::HashMap;

use rusqlite::types::Type;
use rusqlite::{Connection, Params, Row, Transaction, TransactionBehavior, params};

use crate::proto::frame::{LIST_MAX, NotKept};
use crate::proto::gateway::{Done, Sent, Seq, Settled};
use crate::proto::ids::IdError;
use crate::proto::{AppId, DeviceId, MessageId, Push, UnixMillis, urgency};
use crate::world;

use super::history::{self, End};
use super::receipts::{self, Verdict};
use super::registrations::is_registered;
use super::{Accepted, Incoming, KeyRow, Opened, delayed};

pub use apps::*;
pub use backlog::backlog;
pub use schema::{APPLICATION, MIGRATIONS};

/// Most expired messages that one sweep removes.
pub const SWEEP: u32 = 2000;

/// Stores a message.
pub const INSERT: &str = "INSERT INTO messages
        (seq, device, app, expires_ms, body, id, request_id, replaces, dropped, urgency, waits_ms)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
/// Most messages that one is known to have taken the place of: no more can be on their way.
pub const REPLACES_MAX: usize = LIST_MAX;

pub type Result<T, E = rusqlite::Error> = std::result::Result<T, E>;

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
    // Places are never used again as long as the history knows their messages.
    db.query_row(
        "SELECT max(coalesce((SELECT max(seq) FROM messages), 0),
                             coalesce((SELECT max(seq) FROM history), 0))",
        [],
        |row| row.get(0),
    )
}

/// Messages that wait, by the smallest index.
pub fn waiting(db: &Connection) -> Result<i64> {
    db.prepare_cached("SELECT count(*) FROM messages")?.query_row([], |row| row.get(0))
}

pub fn bytes(db: &Connection) -> Result<i64> {
    Ok(pragma(db, "PRAGMA page_count")? * pragma(db, "PRAGMA page_size")?)
}

fn pragma(db: &Connection, text: &str) -> Result<i64> {
    db.prepare_cached(text)?.query_row([], |row| row.get(0))
}

/// Writes other bytes than last time: what does not change is not written.
pub fn try_write(db: &Connection) -> Result<()> {
    db.execute("INSERT OR REPLACE INTO trial (id, body) VALUES (1, randomblob(65536))", [])?;
    Ok(())
}

/// Ends what the statement deletes and returns, id, app and body each, with its registration;
/// returns how many there were.
pub fn end_all(db: &Connection, statement: &str, values: impl Params, now: UnixMillis) -> Result<usize> {
    let mut statement = db.prepare_cached(statement)?;
    let (mut rows, mut count) = (statement.query(values)?, 0);
    while let Some(row) = rows.next()? {
        let (app, body) = (row.get_ref(1)?.as_str()?, row.get_ref(2)?.as_str()?);
        end(db, history::id_in(row, 0)?, app, body, End::Unregistered, now)?;
        count += 1;
    }
    Ok(count)
}

/// Messages that have ended for another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// They waited, and there were too many.
    pub dropped: usize,
    /// They did not wait any more.
    pub expired: usize,
    /// It took their place.
    pub replaced: usize,
}

/// What became of the message, and what had to go for it.
pub fn accept(
    db: &Connection,
    next_seq: impl FnOnce() -> Seq,
    incoming: &Incoming,
    waiting: u32,
) -> Result<(Accepted, Ends)> {
    let (to, push) = (&incoming.to, &incoming.push);
    if !is_registered(db, to, &push.app)? {
        return Ok((Accepted::NotRegistered, Ends::default()));
    }
    if let Some(earlier) = history::taken(db, push)? {
        return Ok((Accepted::Repeated(earlier), Ends::default()));
    }
    if let Some(release) = incoming.release_ms {
        return delayed::add(db, incoming, release, waiting);
    }
    let (now, body, seq) = (world::now(), body_of(push)?, next_seq());
    let replaced = replace(db, to.device, push, now)?;
    let count = replaced.count;
    insert(db, &Waiting { seq, device: to.device, push, body: &body, replaced, now })?;
    history::begin(db, to.device, push, Some(seq), None, now)?;
    let ends = drop_oldest(db, to.device, &push.app, waiting, now)?;
    Ok((Accepted::Stored, Ends { replaced: count, ..ends }))
}

/// A message that is to wait for its device.
pub struct Waiting<'a> {
    pub seq: Seq,
    pub device: DeviceId,
    pub push: &'a Push,
    /// The push as it is stored.
    pub body: &'a str,
    pub replaced: Replaced,
    pub now: UnixMillis,
}

/// Takes out what waits and has the topic of a push that does not wait; `false` if its registration has ended.
pub fn make_way(db: &Connection, to: &Opened, push: &Push, now: UnixMillis) -> Result<bool> {
    let stands = is_registered(db, to, &push.app)?;
    if stands {
        replace(db, to.device, push, now)?;
    }
    Ok(stands)
}

/// What a message takes the place of.
#[derive(Debug, Default)]
pub struct Replaced {
    /// 16 bytes each.
    pub ids: Vec<u8>,
    /// Dropped messages that these stood for.
    pub dropped: u32,
    /// How many they are, delayed ones included.
    pub count: usize,
}

impl Replaced {
    /// Adds those whose place a replaced message had taken.
    fn take_over(&mut self, db: &Connection, replaces: &[u8]) -> Result<()> {
        for older in replaces.chunks_exact(16) {
            // What the device is known to have by now is not on its way any more.
            if !history::is_acked(db, older)? {
                self.ids.extend_from_slice(older);
            }
        }
        Ok(())
    }

    /// At most [`REPLACES_MAX`] ids: those that are known to have been sent, and of the others the oldest
    /// and the newest, as a session sends the oldest first until its window is full.
    fn most_likely(&self, db: &Connection) -> Result<Vec<u8>> {
        let ids: Vec<&[u8]> = self.ids.chunks_exact(16).collect();
        if ids.len() <= REPLACES_MAX {
            return Ok(self.ids.clone());
        }
        let (mut sent, mut unsent) = (Vec::new(), Vec::new());
        for id in ids {
            if history::was_sent(db, id)? { sent.push(id) } else { unsent.push(id) }
        }
        sent.drain(..sent.len().saturating_sub(REPLACES_MAX));
        let room = REPLACES_MAX - sent.len();
        // As there were too many, the two ends do not meet.
        let (oldest, newest) = (room / 2, unsent.len() - room.div_ceil(2));
        Ok([&sent[..], &unsent[..oldest], &unsent[newest..]].concat().concat())
    }
}

pub fn insert(db: &Connection, waiting: &Waiting<'_>) -> Result<()> {
    let Waiting { seq, device, push, body, replaced, now } = waiting;
    let replaces = replaced.most_likely(db)?;
    db.prepare_cached(INSERT)?.execute(params![
        seq.0,
        device.as_bytes(),
        push.app.as_str(),
        push.expires_ms.0,
        body,
        push.id.as_bytes(),
        push.takes_place_by(),
        replaces,
        replaced.dropped,
        push.urgency.number(),
        urgency::waits_until(push, *now).0
    ])?;
    Ok(())
}

/// Removes what the registration has waiting of the push's request id.
pub fn replace(db: &Connection, device: DeviceId, push: &Push, now: UnixMillis) -> Result<Replaced> {
    let mut replaced = Replaced::default();
    let Some(request_id) = push.takes_place_by() else { return Ok(replaced) };
    let mut statement = db.prepare_cached(
        "DELETE FROM messages WHERE seq IN (SELECT seq FROM messages INDEXED BY messages_by_device
                                            WHERE device = ?1 AND app = ?2 AND request_id = ?3)
         RETURNING id, replaces, dropped",
    )?;
    let mut rows = statement.query(params![device.as_bytes(), push.app.as_str(), request_id])?;
    while let Some(row) = rows.next()? {
        let id = history::id_in(row, 0)?;
        replaced.take_over(db, row.get_ref(1)?.as_blob()?)?;
        replaced.ids.extend_from_slice(id.as_bytes());
        replaced.dropped += row.get::<_, u32>(2)?;
        replaced.count += 1;
        history::ended(db, id, End::Replaced, now)?;
    }
    for (id, replaces) in delayed::remove(db, device, &push.app, request_id)? {
        replaced.take_over(db, &replaces)?;
        replaced.count += 1;
        history::ended(db, id, End::Replaced, now)?;
    }
    if push.collapse_key.is_some() {
        // Who sends by topics wants the newer one delivered too, wherever the older one is by now.
        replaced.ids.clear();
    }
    Ok(replaced)
}

/// Makes room in a registration's queue. The newest message then says how many went: it is the one
/// that no session has read yet.
pub fn drop_oldest(db: &Connection, device: DeviceId, app: &AppId, waiting: u32, now: UnixMillis) -> Result<Ends> {
    let key = params![device.as_bytes(), app.as_str()];
    let count: i64 = db
        .prepare_cached("SELECT count(*) FROM messages INDEXED BY messages_by_device WHERE device = ?1 AND app = ?2")?
        .query_row(key, |row| row.get(0))?;
    if count <= i64::from(waiting) {
        return Ok(Ends::default());
    }
    // What has expired does not wait any more: it goes first, and is none that was dropped.
    let mut statement = db.prepare_cached(
        "DELETE FROM messages WHERE seq IN (SELECT seq FROM messages INDEXED BY messages_by_device
                                            WHERE device = ?1 AND app = ?2 ORDER BY expires_ms > ?3, seq LIMIT ?4)
         RETURNING dropped, expires_ms > ?3, id, body",
    )?;
    let too_many = params![device.as_bytes(), app.as_str(), now.0, count - i64::from(waiting)];
    let (mut rows, mut told, mut ends) = (statement.query(too_many)?, 0, Ends::default());
    while let Some(row) = rows.next()? {
        let (stood_for, live): (i64, bool) = (row.get(0)?, row.get(1)?);
        told += stood_for + i64::from(live);
        ends.dropped += usize::from(live);
        ends.expired += usize::from(!live);
        let how = if live { End::Dropped } else { End::Expired };
        end(db, history::id_in(row, 2)?, app.as_str(), row.get_ref(3)?.as_str()?, how, now)?;
    }
    drop(rows);
    add_dropped(db, device.as_bytes(), app.as_str(), told)?;
    Ok(ends)
}

/// A message has ended without the device: its sender is told.
fn end(db: &Connection, id: MessageId, app: &str, body: &str, how: End, now: UnixMillis) -> Result<()> {
    history::ended(db, id, how, now)?;
    let verdict = if how == End::Expired { Verdict::Expired } else { Verdict::Failed };
    receipts::add(db, app, body, verdict, now)
}

/// Lets the newest message of a registration say that so many more went before it.
pub fn add_dropped(db: &Connection, device: &[u8], app: &str, dropped: i64) -> Result<()> {
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

/// Messages and receipts that wait, by app, without those of Web Push channels: an app whose server takes no
/// receipts fills up its own quota.
pub fn count_by_app(db: &Connection) -> Result<HashMap<AppId, u64>> {
    let mut statement = db.prepare_cached(
        "SELECT app, count(*) FROM (SELECT app FROM messages UNION ALL SELECT app FROM delayed
                                    UNION ALL SELECT app FROM receipts)
         WHERE app NOT GLOB 'webpush:*' GROUP BY app",
    )?;
    statement.query_map([], |row| Ok((app_in(row, 0)?, row.get::<_, i64>(1)?.unsigned_abs())))?.collect()
}

/// Bytes of the database without those that are free to be used again.
pub fn used_bytes(db: &Connection) -> Result<u64> {
    let used = pragma(db, "PRAGMA page_count")?.saturating_sub(pragma(db, "PRAGMA freelist_count")?);
    Ok(used.saturating_mul(pragma(db, "PRAGMA page_size")?).unsigned_abs())
}

/// Removes messages with which their device is done.
pub fn settle(db: &Connection, all: &[Settled], now: UnixMillis) -> Result<()> {
    all.iter().try_for_each(|Settled { sent, how }| match how {
        Done::Stored => acked(db, sent, now),
        Done::NotKept(NotKept::Expired) => not_kept(db, sent, End::Expired, now),
        Done::NotKept(NotKept::Unwanted) => not_kept(db, sent, End::Unwanted, now),
    })
}

fn acked(db: &Connection, Sent { seq, id, at_ms }: &Sent, now: UnixMillis) -> Result<()> {
    let mut statement = db.prepare_cached("DELETE FROM messages WHERE seq = ?1 RETURNING id, app, body")?;
    let mut rows = statement.query([seq.0])?;
    // It may have been acknowledged twice, or replaced on its way.
    let Some(row) = rows.next()? else { return history::acked(db, *id, *at_ms, now) };
    history::acked(db, history::id_in(row, 0)?, *at_ms, now)?;
    receipts::add(db, row.get_ref(1)?.as_str()?, row.get_ref(2)?.as_str()?, Verdict::Stored, now)
}

fn not_kept(db: &Connection, Sent { seq, id, at_ms }: &Sent, how: End, now: UnixMillis) -> Result<()> {
    at_ms.map_or(Ok(()), |at| history::sent(db, *id, at))?;
    end_where(db, "?1", params![seq.0], how, now).map(drop)
}

/// Removes messages that expired before they could be sent.
pub fn expire(db: &Connection, seqs: &[Seq], now: UnixMillis) -> Result<()> {
    seqs.iter().try_for_each(|seq| end_where(db, "?1", params![seq.0], End::Expired, now).map(drop))
}

/// Removes expired messages, [`SWEEP`] at the most; returns how many there were.
pub fn sweep(db: &Connection, now: UnixMillis) -> Result<usize> {
    let expired = "SELECT seq FROM messages WHERE expires_ms <= ?1 LIMIT ?2";
    end_where(db, expired, params![now.0, SWEEP], End::Expired, now)
}

/// Removes the messages at these places, which have come to this end; returns how many there were.
fn end_where(db: &Connection, places: &str, values: impl Params, how: End, now: UnixMillis) -> Result<usize> {
    let mut statement = db.prepare_cached(&format!(
        "DELETE FROM messages WHERE seq IN ({places}) RETURNING device, app, dropped, id, body"
    ))?;
    let (mut rows, mut gone) = (statement.query(values)?, Vec::new());
    while let Some(row) = rows.next()? {
        let bearer = bearer(row, 0)?;
        end(db, history::id_in(row, 3)?, &bearer.app, row.get_ref(4)?.as_str()?, how, now)?;
        gone.push(bearer);
    }
    gone.iter().try_for_each(|bearer| pass_on(db, bearer))?;
    Ok(gone.len())
}

/// When the next message expires.
pub fn next_expiry(db: &Connection) -> Result<Option<UnixMillis>> {
    db.prepare_cached("SELECT min(expires_ms) FROM messages")?
        .query_row([], |row| Ok(row.get::<_, Option<i64>>(0)?.map(UnixMillis)))
}

/// Begins a run: nothing is being taken back. Returns whether the last one ended in order.
pub fn begin_service(db: &Connection) -> Result<bool> {
    db.execute("UPDATE messages SET held = 0 WHERE held", [])?;
    Ok(db.execute("DELETE FROM facts WHERE name = 'ended in order'", [])? > 0)
}

/// Ends a run in order.
pub fn end_service(db: &Connection) -> Result<()> {
    db.execute("INSERT INTO facts VALUES ('ended in order', 1) ON CONFLICT DO NOTHING", []).map(drop)
}

/// A message that is gone, with the count of drops that it bore.
pub struct Bearer {
    device: Vec<u8>,
    app: String,
    dropped: i64,
}

/// Device, app and count in the row's columns from `first` on.
pub fn bearer(row: &Row<'_>, first: usize) -> Result<Bearer> {
    Ok(Bearer { device: row.get(first)?, app: row.get(first + 1)?, dropped: row.get(first + 2)? })
}

/// The count goes to another message of the same registration, if there is one.
pub fn pass_on(db: &Connection, gone: &Bearer) -> Result<()> {
    add_dropped(db, &gone.device, &gone.app, gone.dropped)
}

pub fn push_in(body: &str) -> Result<Push> {
    serde_json::from_str(body).map_err(bad_body)
}

pub fn body_of(push: &Push) -> Result<String> {
    serde_json::to_string(push).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

fn device_in(row: &Row<'_>) -> Result<DeviceId> {
    DeviceId::from_slice(row.get_ref(0)?.as_blob()?).map_err(|error| bad_column(0, error))
}

pub fn app_in(row: &Row<'_>, column: usize) -> Result<AppId> {
    row.get_ref(column)?.as_str()?.parse().map_err(|error| bad_column(column, error))
}

pub fn bad_column(column: usize, error: IdError) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Blob, error.into())
}

pub fn bad_body(error: serde_json::Error) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, Type::Text, error.into())
}
