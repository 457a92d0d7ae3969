//! Messages that are not to be sent yet, or not any more: delayed ones, and those that their sender
//! takes back.
//!
//! A message that may be on its way cannot be taken back. Whether it is, only its device's session
//! knows: meanwhile it is held, which a new session respects, and a restart forgets.

use std::collections::HashSet;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::history::{self, End, Found};
use super::receipts::{self, Verdict};
use super::sql::{self, Ends, Result, Waiting, bad_column};
use super::{Accepted, Incoming, Store};
use crate::db::DbError;
use crate::proto::gateway::Seq;
use crate::proto::{AppId, DeviceId, MessageId, RegId, UnixMillis};
use crate::world;

/// Most messages that are released together.
const RELEASE: u32 = 500;

/// What a sender takes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// One message.
    Message(MessageId),
    /// The newest message of this request id to each of these recipients, or to each there is.
    Request(String, Option<HashSet<RegId>>),
}

impl Selection {
    /// Whether what was sent to this recipient is meant.
    fn includes(&self, reg_id: &RegId) -> bool {
        match self {
            Self::Message(_) | Self::Request(_, None) => true,
            Self::Request(_, Some(recipients)) => recipients.contains(reg_id),
        }
    }
}

/// Some of what a sender takes back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Newest first.
    pub candidates: Vec<Candidate>,
    /// Older ones than this are still to be looked through.
    pub before: Option<MessageId>,
}

/// A message that is to be taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Whom it is for.
    pub device: DeviceId,
    /// Its registration.
    pub reg_id: RegId,
    /// The sender's own id of it.
    pub request_id: Option<String>,
    /// Where it stands.
    pub state: State,
    /// Messages of the same request whose place it has taken, and which may be on their way.
    pub earlier: Vec<(Seq, MessageId)>,
}

/// Where a message stands that is to be taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is taken back.
    Cancelled,
    /// It is delayed, and has taken the place of others.
    Delayed(MessageId),
    /// It waits at this place, and nobody begins to send it.
    Held(Seq, MessageId),
    /// It waits no longer, or was sent and not acknowledged.
    Gone,
}

/// What became of a message that was held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LetGo {
    /// It is taken back.
    Removed,
    /// It may be sent again.
    Back,
    /// It was replaced, or has expired.
    Gone,
}

impl Store {
    /// Takes back what is delayed, and holds what waits, some at a time: of what is older than
    /// `before`. Each that is held must be [let go](Self::let_go).
    pub async fn hold(&self, app: AppId, selection: Selection, before: Option<MessageId>) -> Result<Page, DbError> {
        self.writer.write(move |db| hold(db, &app, &selection, before, world::now())).await
    }

    /// Removes the message that is held at this place if it is to be `cancelled` and was not sent,
    /// or lets it be sent again.
    pub async fn let_go(&self, seq: Seq, cancelled: bool) -> Result<LetGo, DbError> {
        self.writer.write(move |db| let_go(db, seq, cancelled, world::now())).await
    }

    /// Takes a delayed message back; returns whether it was still delayed.
    pub async fn cancel_delayed(&self, id: MessageId) -> Result<bool, DbError> {
        self.writer.write(move |db| cancel_delayed(db, id, world::now())).await
    }

    /// Whether one of these messages was sent by a session that has ended, or reached its device.
    pub async fn were_sent(&self, ids: Vec<MessageId>) -> Result<bool, DbError> {
        self.writer.read_behind(move |db| history::were_sent(db, &ids)).await
    }

    /// Lets delayed messages wait for their devices from now on whose time has come, some at a
    /// time; returns their devices and whether these were all.
    pub async fn release(&self) -> Result<(Vec<DeviceId>, bool), DbError> {
        let (last_seq, waiting) = (self.last_seq.clone(), self.limits.waiting_per_registration);
        let next_seq = move || super::next_seq(&last_seq);
        let released = self.writer.write(move |db| release(db, next_seq, waiting, world::now())).await?;
        self.vitals.count(released.ends);
        Ok((released.devices, released.complete))
    }
}

pub(super) fn add(db: &Connection, incoming: &Incoming, release: UnixMillis, most: u32) -> Result<(Accepted, Ends)> {
    let (to, push) = (&incoming.to, &incoming.push);
    let count: u32 = db
        .prepare_cached("SELECT count(*) FROM delayed WHERE device = ?1 AND app = ?2")?
        .query_row(params![to.device.as_bytes(), push.app.as_str()], |row| row.get(0))?;
    if count >= most {
        return Ok((Accepted::TooMany, Ends::default()));
    }
    let replaced = sql::replace(db, to.device, push, push.accepted_ms)?;
    db.prepare_cached(
        "INSERT INTO delayed (device, app, request_id, release_ms, expires_ms, id, replaces, body)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?
    .execute(params![
        to.device.as_bytes(),
        push.app.as_str(),
        push.takes_place_by(),
        release.0,
        push.expires_ms.0,
        push.id.as_bytes(),
        replaced.ids,
        sql::body_of(push)?
    ])?;
    // It waits for nobody yet: another one says what it would.
    sql::add_dropped(db, to.device.as_bytes(), push.app.as_str(), replaced.dropped.into())?;
    history::begin(db, to.device, push, None, Some(release), world::now())?;
    Ok((Accepted::Stored, Ends { replaced: replaced.count, ..Ends::default() }))
}

/// When the next delayed message is to be released.
pub(super) fn next(db: &Connection) -> Result<Option<UnixMillis>> {
    db.prepare_cached("SELECT min(release_ms) FROM delayed")?
        .query_row([], |row| Ok(row.get::<_, Option<i64>>(0)?.map(UnixMillis)))
}

/// Removes what is delayed for a registration of this request id; returns each id, and the ids of those
/// whose place it has taken.
pub(super) fn remove(
    db: &Connection,
    device: DeviceId,
    app: &AppId,
    request_id: &str,
) -> Result<Vec<(MessageId, Vec<u8>)>> {
    db.prepare_cached("DELETE FROM delayed WHERE device = ?1 AND app = ?2 AND request_id = ?3 RETURNING id, replaces")?
        .query_map(params![device.as_bytes(), app.as_str(), request_id], |row| {
            Ok((history::id_in(row, 0)?, row.get(1)?))
        })?
        .collect()
}

/// What was released.
#[derive(Debug, Default)]
struct Released {
    devices: Vec<DeviceId>,
    complete: bool,
    ends: Vec<Ends>,
}

fn release(db: &Connection, next_seq: impl Fn() -> Seq, waiting: u32, now: UnixMillis) -> Result<Released> {
    let mut statement = db.prepare_cached(
        "DELETE FROM delayed WHERE place IN (SELECT place FROM delayed WHERE release_ms <= ?1
                                             ORDER BY release_ms, place LIMIT ?2)
         RETURNING release_ms, place, device, replaces, body",
    )?;
    let mut due: Vec<Due> = statement.query_map(params![now.0, RELEASE], due_in)?.collect::<Result<_>>()?;
    due.sort_by_key(|due| due.order);
    let mut released = Released { complete: due.len() < RELEASE as usize, ..Released::default() };
    for Due { device, replaces, body, .. } in due {
        let push = sql::push_in(&body)?;
        if push.expired(now) {
            history::ended(db, push.id, End::Expired, now)?;
            receipts::add(db, push.app.as_str(), &body, Verdict::Expired, now)?;
            released.ends.push(Ends { expired: 1, ..Ends::default() });
            continue;
        }
        let mut replaced = sql::replace(db, device, &push, now)?;
        replaced.ids.splice(0..0, replaces);
        released.ends.push(Ends { replaced: replaced.count, ..Ends::default() });
        let seq = next_seq();
        sql::insert(db, &Waiting { seq, device, push: &push, body: &body, replaced, now })?;
        history::released(db, push.id, seq)?;
        released.ends.push(sql::drop_oldest(db, device, &push.app, waiting, now)?);
        released.devices.push(device);
    }
    Ok(released)
}

struct Due {
    order: (i64, i64),
    device: DeviceId,
    replaces: Vec<u8>,
    body: String,
}

fn due_in(row: &Row<'_>) -> Result<Due> {
    let device = DeviceId::from_slice(row.get_ref(2)?.as_blob()?).map_err(|error| bad_column(2, error))?;
    Ok(Due { order: (row.get(0)?, row.get(1)?), device, replaces: row.get(3)?, body: row.get(4)? })
}

fn hold(
    db: &Connection,
    app: &AppId,
    selection: &Selection,
    before: Option<MessageId>,
    now: UnixMillis,
) -> Result<Page> {
    let found = match selection {
        Selection::Message(id) => history::find(db, app, "id = ?2", id.as_bytes(), before)?,
        Selection::Request(request_id, _) => history::find(db, app, "request_id = ?2", request_id, before)?,
    };
    let last = found.last().filter(|_| found.len() == history::FOUND_MAX as usize).map(|found| found.id);
    // Older ones of the same recipient have been replaced, if they did not end otherwise.
    let mut known = HashSet::new();
    let meant = found.into_iter().filter(|found| selection.includes(&found.reg_id) && known.insert(found.reg_id));
    let candidates = meant.map(|found| {
        let (state, replaces) = state(db, &found, now)?;
        // Who names one message means no other.
        let earlier = match selection {
            Selection::Message(_) => Vec::new(),
            Selection::Request(..) => history::places(db, &replaces)?,
        };
        Ok(Candidate { device: found.device, reg_id: found.reg_id, request_id: found.request_id, state, earlier })
    });
    Ok(Page { candidates: candidates.collect::<Result<_>>()?, before: last })
}

/// Where a message stands that is being taken back, and the ids of those whose place it has taken.
fn state(db: &Connection, found: &Found, now: UnixMillis) -> Result<(State, Vec<u8>)> {
    let gone = (State::Gone, Vec::new());
    if !found.waits {
        return Ok(gone);
    }
    let delayed: Option<Vec<u8>> = db
        .prepare_cached("SELECT replaces FROM delayed WHERE id = ?1")?
        .query_row([found.id.as_bytes()], |row| row.get(0))
        .optional()?;
    match delayed {
        Some(replaces) if replaces.is_empty() => {
            cancel_delayed(db, found.id, now)?;
            return Ok((State::Cancelled, replaces));
        }
        Some(replaces) => return Ok((State::Delayed(found.id), replaces)),
        None => {}
    }
    let Some(seq) = found.seq else { return Ok(gone) };
    // One that expires while it is held is found to be expired by the next sweep.
    let held = db
        .prepare_cached(&format!(
            "UPDATE messages SET held = 1 WHERE seq = ?1 AND id = ?2 AND NOT held AND expires_ms > ?3 AND {UNSENT}
             RETURNING replaces"
        ))?
        .query_row(params![seq.0, found.id.as_bytes(), now.0], |row| row.get(0))
        .optional()?;
    Ok(held.map_or(gone, |replaces| (State::Held(seq, found.id), replaces)))
}

fn cancel_delayed(db: &Connection, id: MessageId, now: UnixMillis) -> Result<bool> {
    let cancelled = db.prepare_cached("DELETE FROM delayed WHERE id = ?1")?.execute([id.as_bytes()])? > 0;
    if cancelled {
        history::ended(db, id, End::Cancelled, now)?;
    }
    Ok(cancelled)
}

fn let_go(db: &Connection, seq: Seq, cancelled: bool, now: UnixMillis) -> Result<LetGo> {
    if cancelled {
        let removed = db
            .prepare_cached(&format!(
                "DELETE FROM messages WHERE seq = ?1 AND held AND {UNSENT} RETURNING id, device, app, dropped"
            ))?
            .query_row([seq.0], |row| Ok((history::id_in(row, 0)?, sql::bearer(row, 1)?)))
            .optional()?;
        if let Some((id, bearer)) = removed {
            sql::pass_on(db, &bearer)?;
            history::ended(db, id, End::Cancelled, now)?;
            return Ok(LetGo::Removed);
        }
    }
    let back = db.prepare_cached("UPDATE messages SET held = 0 WHERE seq = ?1 AND held")?.execute([seq.0])?;
    Ok(if back > 0 { LetGo::Back } else { LetGo::Gone })
}

/// No session that has ended has sent the message.
const UNSENT: &str = "(SELECT sent_ms FROM history h WHERE h.id = messages.id) IS NULL";
