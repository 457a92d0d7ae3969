//! What became of each message: for senders who ask, and to find a message by its request id.
//!
//! A message's row is written in the transactions that change the message, so that the two never
//! disagree. It is kept for a while after the message has gone.

use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};

use super::sql::{Result, app_in, bad_column, push_in};
use super::{Earlier, History, Step, Store, Waits};
use crate::db::DbError;
use crate::proto::frame::{Fate, Outcome};
use crate::proto::gateway::Seq;
use crate::proto::urgency::Urgency;
use crate::proto::{AppId, DeviceId, MessageId, Push, ReceiptsId, RegId, UnixMillis};
use crate::world;

/// Most messages that are forgotten together.
pub(super) const SWEEP: u32 = 2000;
/// Most messages of one request id that are told, or looked through together.
pub const FOUND_MAX: u32 = 1000;

impl Store {
    /// The app's message of this id.
    pub async fn message(&self, app: AppId, id: MessageId) -> Result<Option<History>, DbError> {
        self.observer.read(move |db| by_id(db, &app, id)).await
    }

    /// The app's messages of this request id, newest first, at most [`FOUND_MAX`].
    pub async fn messages(&self, app: AppId, request_id: String) -> Result<Vec<History>, DbError> {
        self.observer.read(move |db| by_request(db, &app, &request_id)).await
    }

    /// The app's message of this id, if it still waits for its device.
    pub async fn pending(&self, app: AppId, id: MessageId) -> Result<Option<Push>, DbError> {
        self.observer.read(move |db| pending(db, &app, id, world::now())).await
    }
}

/// How a message ended on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A later one of the same request id took its place.
    Replaced,
    /// Its sender took it back.
    Cancelled,
    /// It expired.
    Expired,
    /// Too many waited.
    Dropped,
    /// Its registration ended.
    Unregistered,
    /// Its device does not have the app, or not with this regId.
    Unwanted,
}

impl End {
    fn name(self) -> &'static str {
        match self {
            Self::Replaced => "replaced",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Dropped => "dropped",
            Self::Unregistered => "unregistered",
            Self::Unwanted => Fate::Unwanted.name(),
        }
    }
}

/// Enters a message that is being stored; `release_ms` if it is delayed.
pub(super) fn begin(
    db: &Connection,
    device: DeviceId,
    push: &Push,
    seq: Option<Seq>,
    release_ms: Option<UnixMillis>,
    now: UnixMillis,
) -> Result<()> {
    db.prepare_cached(
        "INSERT INTO history (id, app, device, reg_id, request_id, seq, accepted_ms, stored_ms, release_ms, expires_ms,
             link)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
    )?
    .execute(params![
        push.id.as_bytes(),
        push.app.as_str(),
        device.as_bytes(),
        push.reg_id.as_bytes(),
        push.request_id,
        seq.map(|seq| seq.0),
        push.accepted_ms.0,
        now.0,
        release_ms.map(|at| at.0),
        push.expires_ms.0,
        push.receipts_to.as_ref().map(|to| to.link.as_bytes())
    ])?;
    Ok(())
}

/// The last message of the push's registration that its sender has named so, as long as it is remembered. One
/// that ended without having been delivered does not count: to send it again is to want it delivered.
pub(super) fn taken(db: &Connection, push: &Push) -> Result<Option<Earlier>> {
    let Some(name) = push.taken_once_by() else { return Ok(None) };
    db.prepare_cached(
        "SELECT id, link, accepted_ms, expires_ms FROM history
         WHERE app = ?1 AND request_id = ?2 AND reg_id = ?3
           AND coalesce(fate, '') NOT IN ('cancelled', 'expired', 'dropped', 'unregistered', 'unwanted')
         ORDER BY id DESC LIMIT 1",
    )?
    .query_row(params![push.app.as_str(), name, push.reg_id.as_bytes()], |row| {
        let link = row.get_ref(1)?.as_blob_or_null()?.map(ReceiptsId::from_slice).transpose();
        Ok(Earlier {
            id: id_in(row, 0)?,
            link: link.map_err(|error| bad_column(1, error))?,
            accepted_ms: UnixMillis(row.get(2)?),
            expires_ms: UnixMillis(row.get(3)?),
        })
    })
    .optional()
}

/// A delayed message waits for its device from now on.
pub(super) fn released(db: &Connection, id: MessageId, seq: Seq) -> Result<()> {
    db.prepare_cached("UPDATE history SET seq = ?2 WHERE id = ?1")?.execute(params![id.as_bytes(), seq.0])?;
    Ok(())
}

/// The message was sent to its device; the last time counts.
pub(super) fn sent(db: &Connection, id: MessageId, at: UnixMillis) -> Result<()> {
    db.prepare_cached("UPDATE history SET sent_ms = ?2 WHERE id = ?1")?.execute(params![id.as_bytes(), at.0])?;
    Ok(())
}

/// The device has the message on its disk; the first time counts.
pub(super) fn acked(db: &Connection, id: MessageId, sent: Option<UnixMillis>, now: UnixMillis) -> Result<()> {
    db.prepare_cached(
        "UPDATE history SET sent_ms = coalesce(?2, sent_ms), acked_ms = ?3 WHERE id = ?1 AND acked_ms IS NULL",
    )?
    .execute(params![id.as_bytes(), sent.map(|at| at.0), now.0])?;
    Ok(())
}

/// Whether the device is known to have the message; not if it is forgotten.
pub(super) fn is_acked(db: &Connection, id: &[u8]) -> Result<bool> {
    db.prepare_cached("SELECT EXISTS (SELECT 1 FROM history WHERE id = ?1 AND acked_ms IS NOT NULL)")?
        .query_row([id], |row| row.get(0))
}

/// Whether one of these messages was sent by a session that has ended, or reached its device.
pub(super) fn were_sent(db: &Connection, ids: &[MessageId]) -> Result<bool> {
    for id in ids {
        if was_sent(db, id.as_bytes())? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether this message was sent by a session that has ended, or reached its device.
pub(super) fn was_sent(db: &Connection, id: &[u8]) -> Result<bool> {
    db.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM history WHERE id = ?1 AND (sent_ms IS NOT NULL OR acked_ms IS NOT NULL))",
    )?
    .query_row([id], |row| row.get(0))
}

/// The places that these messages had in the queue, of 16 bytes of id each; one that was delayed until it
/// ended had none.
pub(super) fn places(db: &Connection, ids: &[u8]) -> Result<Vec<(Seq, MessageId)>> {
    let mut place = db.prepare_cached("SELECT seq, id FROM history WHERE id = ?1 AND seq IS NOT NULL")?;
    let places =
        ids.chunks_exact(16).map(|id| place.query_row([id], |row| Ok((Seq(row.get(0)?), id_in(row, 1)?))).optional());
    places.filter_map(Result::transpose).collect()
}

/// The message has ended on the server.
pub(super) fn ended(db: &Connection, id: MessageId, end: End, now: UnixMillis) -> Result<()> {
    db.prepare_cached("UPDATE history SET fate = ?2, ended_ms = ?3 WHERE id = ?1")?.execute(params![
        id.as_bytes(),
        end.name(),
        now.0
    ])?;
    Ok(())
}

/// A step that was not known before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct News {
    /// What became of the message.
    pub fate: Fate,
    /// When it was accepted.
    pub accepted_ms: UnixMillis,
    /// When its device had stored it, if that is known.
    pub acked_ms: Option<UnixMillis>,
}

/// What the device tells of its messages; returns what is new of it. What the app was given stays
/// so, whatever is told later.
pub(super) fn outcomes(db: &Connection, device: DeviceId, list: &[Outcome]) -> Result<Vec<News>> {
    let mut news = Vec::new();
    for Outcome { id, fate, at_ms } in list {
        let change = match fate {
            Fate::Alerted => "alerted_ms = ?3 WHERE alerted_ms IS NULL AND ?4 IS NOT NULL",
            Fate::Launched => "launched_ms = ?3 WHERE launched_ms IS NULL AND ?4 IS NOT NULL",
            Fate::Delivered
            | Fate::Replaced
            | Fate::TooLate
            | Fate::Expired
            | Fate::Dropped
            | Fate::Discarded
            | Fate::Unwanted => "fate = ?4, ended_ms = ?3 WHERE fate IS NOT ?4 AND fate IS NOT 'delivered'",
        };
        let statement =
            format!("UPDATE history SET {change} AND id = ?1 AND device = ?2 RETURNING accepted_ms, acked_ms");
        let values = params![id.as_bytes(), device.as_bytes(), at_ms.0, fate.name()];
        let step = |row: &Row<'_>| {
            let acked: Option<i64> = row.get(1)?;
            Ok(News { fate: *fate, accepted_ms: UnixMillis(row.get(0)?), acked_ms: acked.map(UnixMillis) })
        };
        news.extend(db.prepare_cached(&statement)?.query_row(values, step).optional()?);
    }
    Ok(news)
}

/// The oldest messages that nobody waits for any more, some at a time: those accepted before `before`
/// and those over `most`.
pub(super) fn old(db: &Connection, before: UnixMillis, most: u64) -> Result<Vec<MessageId>> {
    let count: i64 = db.prepare_cached("SELECT count(*) FROM history")?.query_row([], |row| row.get(0))?;
    let over = count.saturating_sub(i64::try_from(most).unwrap_or(i64::MAX)).max(0);
    // Ids sort by time.
    let mut statement = db.prepare_cached(
        "SELECT id, accepted_ms FROM history WHERE acked_ms IS NOT NULL OR ended_ms IS NOT NULL
         ORDER BY id LIMIT ?1",
    )?;
    let rows = statement.query_map([SWEEP], |row| Ok((id_in(row, 0)?, UnixMillis(row.get(1)?))))?;
    let mut old = Vec::new();
    for (place, row) in (0..).zip(rows) {
        let (id, accepted_ms) = row?;
        if accepted_ms >= before && place >= over {
            break;
        }
        old.push(id);
    }
    Ok(old)
}

/// Forgets messages.
pub(super) fn forget(db: &Connection, ids: &[MessageId]) -> Result<()> {
    let mut statement = db.prepare_cached("DELETE FROM history WHERE id = ?1")?;
    ids.iter().try_for_each(|id| statement.execute([id.as_bytes()]).map(drop))
}

const COLUMNS: &str = "id, app, reg_id, request_id, accepted_ms, stored_ms, release_ms, expires_ms, sent_ms, acked_ms,
    alerted_ms, launched_ms, fate, ended_ms, device,
    (SELECT urgency FROM messages m WHERE m.seq = history.seq AND m.id = history.id),
    (SELECT waits_ms FROM messages m WHERE m.seq = history.seq AND m.id = history.id)";

fn by_id(db: &Connection, app: &AppId, id: MessageId) -> Result<Option<History>> {
    db.prepare_cached(&format!("SELECT {COLUMNS} FROM history WHERE id = ?1 AND app = ?2"))?
        .query_row(params![id.as_bytes(), app.as_str()], from_row)
        .optional()
}

/// Found by its history, which knows its place.
fn pending(db: &Connection, app: &AppId, id: MessageId, now: UnixMillis) -> Result<Option<Push>> {
    let body: Option<String> = db
        .prepare_cached(
            "SELECT m.body FROM history h JOIN messages m ON m.seq = h.seq AND m.id = h.id
             WHERE h.id = ?1 AND h.app = ?2 AND m.expires_ms > ?3",
        )?
        .query_row(params![id.as_bytes(), app.as_str(), now.0], |row| row.get(0))
        .optional()?;
    body.map(|body| push_in(&body)).transpose()
}

fn by_request(db: &Connection, app: &AppId, request_id: &str) -> Result<Vec<History>> {
    db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM history WHERE app = ?1 AND request_id = ?2 ORDER BY id DESC LIMIT ?3"
    ))?
    .query_map(params![app.as_str(), request_id, FOUND_MAX], from_row)?
    .collect()
}

fn from_row(row: &Row<'_>) -> Result<History> {
    let time = |column: usize| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(column)?.map(UnixMillis));
    let (accepted_ms, fate): (i64, Option<String>) = (row.get(4)?, row.get(12)?);
    let (release, sent, acked, alerted, launched, ended) =
        (time(6)?, time(8)?, time(9)?, time(10)?, time(11)?, time(13)?);
    let known = [
        ("accepted", Some(UnixMillis(accepted_ms))),
        ("stored", time(5)?),
        ("released", release.filter(|at| sent.is_some_and(|sent| *at <= sent))),
        ("sent", sent),
        ("acknowledged", acked),
        ("alerted", alerted),
        ("launched", launched),
    ];
    let mut steps: Vec<Step> =
        known.into_iter().filter_map(|(step, at)| Some(Step { step: step.to_owned(), at_ms: at? })).collect();
    steps.extend(fate.zip(ended).map(|(step, at_ms)| Step { step, at_ms }));
    Ok(History {
        id: id_in(row, 0)?,
        app: app_in(row, 1)?,
        reg_id: reg_id_in(row, 2)?,
        request_id: row.get(3)?,
        release_ms: release,
        expires_ms: UnixMillis(row.get(7)?),
        device: DeviceId::from_slice(row.get_ref(14)?.as_blob()?).map_err(|error| bad_column(14, error))?,
        waits: waits_in(row)?,
        steps,
    })
}

fn waits_in(row: &Row<'_>) -> Result<Option<Waits>> {
    let Some(urgency) = row.get::<_, Option<u8>>(15)? else { return Ok(None) };
    Ok(Some(Waits { urgency: Urgency::numbered(urgency), until_ms: UnixMillis(row.get(16)?) }))
}

pub(super) fn id_in(row: &Row<'_>, column: usize) -> Result<MessageId> {
    MessageId::from_slice(row.get_ref(column)?.as_blob()?).map_err(|error| bad_column(column, error))
}

pub(super) fn reg_id_in(row: &Row<'_>, column: usize) -> Result<RegId> {
    RegId::from_slice(row.get_ref(column)?.as_blob()?).map_err(|error| bad_column(column, error))
}

/// A message that its sender may take back: where it waits, if it does.
pub(super) struct Found {
    pub id: MessageId,
    pub device: DeviceId,
    pub reg_id: RegId,
    pub request_id: Option<String>,
    pub seq: Option<Seq>,
    /// It has neither ended nor reached its device.
    pub waits: bool,
}

/// The app's messages for which this is true of `?2`, newest first, those that are older than
/// `before`; at most [`FOUND_MAX`].
pub(super) fn find(
    db: &Connection,
    app: &AppId,
    condition: &str,
    value: impl ToSql,
    before: Option<MessageId>,
) -> Result<Vec<Found>> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT id, device, reg_id, request_id, seq, acked_ms IS NULL AND ended_ms IS NULL FROM history
         WHERE app = ?1 AND {condition} AND id < ?4 ORDER BY id DESC LIMIT ?3"
    ))?;
    // No id is as high as this one.
    let before = before.map_or([0xff; 16], |id| *id.as_bytes());
    let rows = statement.query_map(params![app.as_str(), value, FOUND_MAX, before], |row| {
        let device = DeviceId::from_slice(row.get_ref(1)?.as_blob()?).map_err(|error| bad_column(1, error))?;
        let seq: Option<i64> = row.get(4)?;
        Ok(Found {
            id: id_in(row, 0)?,
            device,
            reg_id: reg_id_in(row, 2)?,
            request_id: row.get(3)?,
            seq: seq.map(Seq),
            waits: row.get(5)?,
        })
    })?;
    rows.collect()
}
