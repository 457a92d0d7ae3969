//! Receipts of Web Push (RFC 8030, section 6.3): what the sender of a message is told of it, kept for its
//! subscription of receipts until that was told.
//!
//! A row is written in the transaction that ends the message, by [`receipts::add`](super::receipts). What one
//! subscription has waiting is bounded where it is written, so that nobody can forget to: over the limit the
//! oldest go.

use rusqlite::{Connection, Row, params};

use super::Store;
use super::receipts::{BATCH, Verdict};
use super::sql::{Result, bad_column};
use crate::db::DbError;
use crate::proto::message::ReceiptsTo;
use crate::proto::{ReceiptsId, UnixMillis};
use crate::world;

/// Most rows that are looked through together.
const STEP: u32 = 2000;

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirmation {
    /// Its place: later ones are higher.
    pub place: i64,
    /// The message's URL.
    pub message: String,
    /// 204 if the device has it, 410 if it will not get there.
    pub status: u16,
    /// When.
    pub made_ms: UnixMillis,
}

impl Verdict {
    /// As RFC 8030 has it, section 6.3.
    pub(super) fn http_status(self) -> u16 {
        match self {
            Self::Stored => 204,
            Self::Failed | Self::Expired => 410,
        }
    }
}

impl Store {
    /// Waits until confirmations have been made since this was last waited for.
    pub async fn confirmations_made(&self) {
        self.receipts.confirmed().await;
    }

    /// What the subscription has to be told after this place, oldest first, some of it; `None` if it has ended.
    pub async fn confirmations(&self, link: ReceiptsId, after: i64) -> Result<Option<Vec<Confirmation>>, DbError> {
        self.observer
            .read(move |db| Ok(if has_ended(db, link)? { None } else { Some(waiting(db, link, after)?) }))
            .await
    }

    /// The subscription was told everything up to this place. Not waited for: if it is lost, it is told again.
    pub async fn confirmed(&self, link: ReceiptsId, up_to: i64) -> Result<(), DbError> {
        // A sender that waits repeats what it has: mostly there is nothing to write.
        if self.observer.read(move |db| is_any(db, link, up_to)).await? {
            self.writer.write_later(move |db| forget(db, link, up_to)).await?;
        }
        Ok(())
    }

    /// Ends a subscription for good; `false` if it has ended before.
    pub async fn end_link(&self, link: ReceiptsId) -> Result<bool, DbError> {
        self.writer.write(move |db| end(db, link, world::now())).await
    }

    /// Whether a subscription has ended.
    pub async fn has_link_ended(&self, link: ReceiptsId) -> Result<bool, DbError> {
        self.reader().read(move |db| has_ended(db, link)).await
    }

    /// The subscriptions of what was made after this place, some of them, and the place of the last one.
    pub async fn confirmed_after(&self, place: i64) -> Result<Vec<(i64, ReceiptsId)>, DbError> {
        self.observer.read(move |db| made_after(db, place)).await
    }

    /// The place of the newest confirmation.
    pub async fn last_confirmation(&self) -> Result<i64, DbError> {
        self.observer.read(last).await
    }

    /// Forgets what was not asked for in time or is over the limit of what is remembered of messages, some at a
    /// time, and that subscriptions have ended that no message can name any more; returns whether these were
    /// all.
    pub async fn trim_confirmations(&self) -> Result<bool, DbError> {
        let (limits, now) = (self.limits, world::now());
        let before = UnixMillis(now.0 - i64::from(limits.receipt_hours) * 3_600_000);
        let ended_before = UnixMillis(now.0 - i64::from(limits.expiry_minutes) * 60_000);
        let look = move |db: &Connection| Ok((old(db, before, limits.history_messages)?, old_ends(db, ended_before)?));
        // Looked for beside the writer: it takes a while.
        let (up_to, ended) = self.observer.read(look).await?;
        if up_to.is_none() && ended.is_empty() {
            return Ok(true);
        }
        let complete = self.writer.write(move |db| forget_old(db, up_to, &ended)).await?;
        Ok(complete)
    }
}

/// Bounds what each subscription has waiting, for as long as this connection writes.
pub(super) fn bound(db: &Connection, most: u32) -> Result<()> {
    db.execute_batch(&format!(
        "CREATE TEMP TRIGGER confirmations_bounded AFTER INSERT ON main.confirmations BEGIN
             DELETE FROM confirmations WHERE link = new.link AND place <=
                 (SELECT place FROM confirmations WHERE link = new.link ORDER BY place DESC LIMIT 1 OFFSET {most});
         END"
    ))
}

/// Notes what became of a message, unless nobody may ask for it any more.
pub(super) fn add(db: &Connection, to: &ReceiptsTo, verdict: Verdict, now: UnixMillis) -> Result<()> {
    if has_ended(db, to.link)? {
        return Ok(());
    }
    db.prepare_cached("INSERT INTO confirmations (link, made_ms, status, message) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![to.link.as_bytes(), now.0, verdict.http_status(), to.message])?;
    Ok(())
}

fn waiting(db: &Connection, link: ReceiptsId, after: i64) -> Result<Vec<Confirmation>> {
    db.prepare_cached(
        "SELECT place, message, status, made_ms FROM confirmations WHERE link = ?1 AND place > ?2
         ORDER BY place LIMIT ?3",
    )?
    .query_map(params![link.as_bytes(), after, BATCH], |row| {
        Ok(Confirmation {
            place: row.get(0)?,
            message: row.get(1)?,
            status: row.get(2)?,
            made_ms: UnixMillis(row.get(3)?),
        })
    })?
    .collect()
}

fn is_any(db: &Connection, link: ReceiptsId, up_to: i64) -> Result<bool> {
    db.prepare_cached("SELECT EXISTS (SELECT 1 FROM confirmations WHERE link = ?1 AND place <= ?2)")?
        .query_row(params![link.as_bytes(), up_to], |row| row.get(0))
}

fn forget(db: &Connection, link: ReceiptsId, up_to: i64) -> Result<()> {
    db.prepare_cached("DELETE FROM confirmations WHERE link = ?1 AND place <= ?2")?
        .execute(params![link.as_bytes(), up_to])?;
    Ok(())
}

fn end(db: &Connection, link: ReceiptsId, now: UnixMillis) -> Result<bool> {
    forget(db, link, i64::MAX)?;
    let ended = db
        .prepare_cached("INSERT INTO ended_links (link, ended_ms) VALUES (?1, ?2) ON CONFLICT DO NOTHING")?
        .execute(params![link.as_bytes(), now.0])?;
    Ok(ended > 0)
}

fn has_ended(db: &Connection, link: ReceiptsId) -> Result<bool> {
    db.prepare_cached("SELECT EXISTS (SELECT 1 FROM ended_links WHERE link = ?1)")?
        .query_row([link.as_bytes()], |row| row.get(0))
}

fn made_after(db: &Connection, place: i64) -> Result<Vec<(i64, ReceiptsId)>> {
    db.prepare_cached("SELECT place, link FROM confirmations WHERE place > ?1 ORDER BY place LIMIT ?2")?
        .query_map(params![place, STEP], |row| Ok((row.get(0)?, link_in(row, 1)?)))?
        .collect()
}

fn last(db: &Connection) -> Result<i64> {
    db.prepare_cached("SELECT coalesce(max(place), 0) FROM confirmations")?.query_row([], |row| row.get(0))
}

/// The place up to which the oldest ones are to go: those made before `before`, and those over `most`.
fn old(db: &Connection, before: UnixMillis, most: u64) -> Result<Option<i64>> {
    let count: i64 = db.prepare_cached("SELECT count(*) FROM confirmations")?.query_row([], |row| row.get(0))?;
    let over = count.saturating_sub(i64::try_from(most).unwrap_or(i64::MAX)).max(0);
    let mut statement = db.prepare_cached("SELECT place, made_ms FROM confirmations ORDER BY place LIMIT ?1")?;
    let mut rows = statement.query([STEP])?;
    let mut up_to = None;
    for number in 0.. {
        let Some(row) = rows.next()? else { break };
        if row.get::<_, i64>(1)? >= before.0 && number >= over {
            break;
        }
        up_to = Some(row.get(0)?);
    }
    Ok(up_to)
}

fn old_ends(db: &Connection, before: UnixMillis) -> Result<Vec<ReceiptsId>> {
    db.prepare_cached("SELECT link FROM ended_links WHERE ended_ms < ?1 ORDER BY ended_ms LIMIT ?2")?
        .query_map(params![before.0, STEP], |row| link_in(row, 0))?
        .collect()
}

/// Forgets the oldest; returns whether there were less than one step of them.
fn forget_old(db: &Connection, up_to: Option<i64>, ended: &[ReceiptsId]) -> Result<bool> {
    let removed = match up_to {
        Some(place) => db.prepare_cached("DELETE FROM confirmations WHERE place <= ?1")?.execute([place])?,
        None => 0,
    };
    let mut forget = db.prepare_cached("DELETE FROM ended_links WHERE link = ?1")?;
    ended.iter().try_for_each(|link| forget.execute([link.as_bytes()]).map(drop))?;
    Ok(removed < STEP as usize && ended.len() < STEP as usize)
}

fn link_in(row: &Row<'_>, column: usize) -> Result<ReceiptsId> {
    ReceiptsId::from_slice(row.get_ref(column)?.as_blob()?).map_err(|error| bad_column(column, error))
}

#[cfg(test)]
#[path = "confirmations_tests.rs"]
mod tests;
