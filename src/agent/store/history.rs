//! The last messages and what became of each: for people who ask where a message is.

use rusqlite::{Connection, params};

use super::schema::{Result, id, text};
use super::{Store, outcomes};
use crate::db::DbError;
use crate::proto::frame::Fate;
use crate::proto::{AppId, MessageId, Push, UnixMillis};
use crate::world;

/// Most messages that are remembered.
pub const MESSAGES_MAX: i64 = 200;
/// Most hops of a message that is still tried; one that is tried for ever adds no more.
const HOPS_MAX: i64 = 16;

/// Most bytes of a reason: an app's error may be as long as the bus takes.
const WHY_MAX: usize = 300;

/// A step of a message's life on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// It is on the device's disk.
    Received,
    /// The user was shown its alert.
    Alerted,
    /// The user clicked on its alert.
    Opened,
    /// The app was started for it.
    Launched,
    /// What it asks for could not be done.
    Failed,
    /// The app was handed it and did not take it.
    Refused,
    /// The app has it.
    Delivered,
    /// A later message of the same request id took its place.
    Replaced,
    /// It was to take the place of one that the app had been given already.
    TooLate,
    /// It was for a connected app only, and the app was not.
    Discarded,
    /// It expired unread.
    Expired,
    /// Too many were unread.
    Dropped,
    /// The app is not registered.
    Unwanted,
}

impl Hop {
    /// All hops.
    pub const ALL: [Self; 13] = [
        Self::Received,
        Self::Alerted,
        Self::Opened,
        Self::Launched,
        Self::Failed,
        Self::Refused,
        Self::Delivered,
        Self::Replaced,
        Self::TooLate,
        Self::Discarded,
        Self::Expired,
        Self::Dropped,
        Self::Unwanted,
    ];

    /// What the server is told of it.
    pub fn fate(self) -> Option<Fate> {
        match self {
            Self::Alerted => Some(Fate::Alerted),
            Self::Launched => Some(Fate::Launched),
            Self::Delivered => Some(Fate::Delivered),
            Self::Replaced => Some(Fate::Replaced),
            Self::TooLate => Some(Fate::TooLate),
            Self::Discarded => Some(Fate::Discarded),
            Self::Expired => Some(Fate::Expired),
            Self::Dropped => Some(Fate::Dropped),
            Self::Unwanted => Some(Fate::Unwanted),
            // The acknowledgement says that it was received; the others may come many times.
            Self::Received | Self::Opened | Self::Failed | Self::Refused => None,
        }
    }

    /// As it is stored and shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Opened => "opened",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Alerted => Fate::Alerted.name(),
            Self::Launched => Fate::Launched.name(),
            Self::Delivered => Fate::Delivered.name(),
            Self::Replaced => Fate::Replaced.name(),
            Self::TooLate => Fate::TooLate.name(),
            Self::Discarded => Fate::Discarded.name(),
            Self::Expired => Fate::Expired.name(),
            Self::Dropped => Fate::Dropped.name(),
            Self::Unwanted => Fate::Unwanted.name(),
        }
    }
}

/// A message of the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// Its id.
    pub id: MessageId,
    /// The app it was for.
    pub app: AppId,
    /// The sender's own id of it.
    pub request_id: Option<String>,
    /// When the server took it.
    pub accepted_ms: UnixMillis,
    /// What happened to it, oldest first.
    pub hops: Vec<LifeHop>,
}

/// One line of a message's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LifeHop {
    /// When.
    pub at_ms: UnixMillis,
    /// What: the name of a [`Hop`].
    pub hop: String,
    /// Why, or what was passed over.
    pub why: Option<String>,
}

impl Store {
    /// The newest messages, newest first, at most so many.
    pub async fn history(&self, most: u32) -> Result<Vec<Life>, DbError> {
        self.worker.read(move |db| newest(db, most)).await
    }

    /// The app was handed the message and did not take it.
    pub async fn refused(&self, id: MessageId, why: String) -> Result<(), DbError> {
        self.worker
            .write(move |db| match count(db, id)? {
                0..HOPS_MAX => add(db, id, Hop::Refused, Some(&why), world::now()),
                _ => Ok(()),
            })
            .await
    }
}

/// Begins the history of a message that has this place in the order of arrival.
pub(super) fn begin(db: &Connection, place: i64, push: &Push) -> Result<()> {
    db.prepare_cached("INSERT INTO history VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(params![
        place,
        push.id.as_bytes(),
        push.app.as_str(),
        push.request_id,
        push.accepted_ms.0
    ])?;
    Ok(())
}

/// Adds a line to a message's history, if that is still remembered, and tells the server of it.
pub(super) fn add(db: &Connection, id: MessageId, hop: Hop, why: Option<&str>, now: UnixMillis) -> Result<()> {
    note(db, id, hop, why, now)?;
    if hop.fate().is_some() { outcomes::add(db, id, hop, now) } else { Ok(()) }
}

/// Adds a line to a message's history, if that is still remembered.
pub(super) fn note(db: &Connection, id: MessageId, hop: Hop, why: Option<&str>, now: UnixMillis) -> Result<()> {
    db.prepare_cached("INSERT INTO hops SELECT place, ?2, ?3, ?4 FROM history WHERE id = ?1")?.execute(params![
        id.as_bytes(),
        now.0,
        hop.name(),
        why.map(brief)
    ])?;
    Ok(())
}

/// The beginning of a reason, which a peer may have worded.
pub fn brief(why: &str) -> &str {
    let end = (0..=WHY_MAX.min(why.len())).rev().find(|at| why.is_char_boundary(*at)).unwrap_or(0);
    &why[..end]
}

fn count(db: &Connection, id: MessageId) -> Result<i64> {
    db.prepare_cached("SELECT count(*) FROM hops WHERE place = (SELECT place FROM history WHERE id = ?1)")?
        .query_row([id.as_bytes()], |row| row.get(0))
}

/// Forgets all but the newest; `place` is the newest's.
pub(super) fn trim(db: &Connection, place: i64) -> Result<()> {
    let last = place - MESSAGES_MAX;
    db.prepare_cached("DELETE FROM hops WHERE place <= ?1")?.execute([last])?;
    db.prepare_cached("DELETE FROM history WHERE place <= ?1")?.execute([last])?;
    Ok(())
}

fn newest(db: &Connection, most: u32) -> Result<Vec<Life>> {
    let mut hops = db.prepare_cached("SELECT at_ms, hop, why FROM hops WHERE place = ?1 ORDER BY rowid")?;
    let mut lives =
        db.prepare_cached("SELECT place, id, app, request_id, accepted_ms FROM history ORDER BY place DESC LIMIT ?1")?;
    let lives = lives.query_map([i64::from(most).min(MESSAGES_MAX)], |row| {
        let place: i64 = row.get(0)?;
        let hop = |row: &rusqlite::Row<'_>| {
            Ok(LifeHop { at_ms: UnixMillis(row.get(0)?), hop: row.get(1)?, why: row.get(2)? })
        };
        Ok(Life {
            id: id(row, 1)?,
            app: text(row, 2)?,
            request_id: row.get(3)?,
            accepted_ms: UnixMillis(row.get(4)?),
            hops: hops.query_map([place], hop)?.collect::<Result<_>>()?,
        })
    })?;
    lives.collect()
}
