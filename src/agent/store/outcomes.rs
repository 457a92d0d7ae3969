//! Outcomes: steps of messages' lives that the server has still to be told.
//!
//! They are history and no more: too many, and the oldest go.

use std::sync::atomic::Ordering;

use rusqlite::{Connection, params};

use super::Store;
use super::history::Hop;
use super::schema::{Result, id};
use crate::db::DbError;
use crate::proto::frame::{Fate, LIST_MAX, Outcome};
use crate::proto::{MessageId, UnixMillis};

/// Most outcomes that wait for the server.
const OUTCOMES_MAX: i64 = 1000;

impl Store {
    /// Outcomes that the server has not noted yet, the oldest, at most [`LIST_MAX`].
    pub async fn outcomes(&self) -> Result<Vec<Outcome>, DbError> {
        let rows = self.worker.read(oldest).await?;
        if let Some((last, _)) = rows.last() {
            self.last_outcome.fetch_max(*last, Ordering::Relaxed);
        }
        Ok(rows.into_iter().map(|(_, outcome)| outcome).collect())
    }

    /// The server has noted what it was told of these messages. What has come to them since stays.
    pub async fn noted(&self, ids: Vec<MessageId>) -> Result<(), DbError> {
        let last = self.last_outcome.load(Ordering::Relaxed);
        self.worker.write(move |db| forget(db, &ids, last)).await
    }
}

/// Notes a hop that the server is to be told.
pub(super) fn add(db: &Connection, id: MessageId, hop: Hop, now: UnixMillis) -> Result<()> {
    db.prepare_cached("INSERT INTO outcomes (id, fate, at_ms) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING")?
        .execute(params![id.as_bytes(), hop.name(), now.0])?;
    Ok(())
}

/// Forgets the oldest if there are too many.
pub(super) fn trim(db: &Connection) -> Result<()> {
    db.prepare_cached("DELETE FROM outcomes WHERE place <= (SELECT max(place) FROM outcomes) - ?1")?
        .execute([OUTCOMES_MAX])?;
    Ok(())
}

fn oldest(db: &Connection) -> Result<Vec<(i64, Outcome)>> {
    let most = i64::try_from(LIST_MAX).unwrap_or(i64::MAX);
    let mut statement = db.prepare_cached("SELECT place, id, fate, at_ms FROM outcomes ORDER BY place LIMIT ?1")?;
    let rows = statement.query_map([most], |row| {
        let fate: String = row.get(2)?;
        Ok((row.get(0)?, Outcome { id: id(row, 1)?, fate: named(&fate), at_ms: UnixMillis(row.get(3)?) }))
    })?;
    rows.collect()
}

fn forget(db: &Connection, ids: &[MessageId], last: i64) -> Result<()> {
    let mut forget = db.prepare_cached("DELETE FROM outcomes WHERE id = ?1 AND place <= ?2")?;
    ids.iter().try_for_each(|id| forget.execute(params![id.as_bytes(), last]).map(drop))
}

fn named(name: &str) -> Fate {
    let hop = Hop::ALL.into_iter().find(|hop| hop.name() == name);
    // Only hops that are some fate are stored.
    hop.and_then(Hop::fate).unwrap_or(Fate::Unwanted)
}
