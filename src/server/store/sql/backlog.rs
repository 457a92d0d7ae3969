//! What waits for one device.
//!
//! Where nothing is held back, a backlog is one read along the index of the device's messages. Otherwise
//! the index alone, which has all that decides, is read to its end, and then the messages that go, each
//! by its place: what may not go costs an entry of the index and nothing of the table. The two see the
//! store as it is at one moment.

use std::collections::HashMap;

use rusqlite::{CachedStatement, Connection, Row, Transaction, TransactionBehavior, params};

use super::{Result, app_in, bad_column, push_in};
use crate::proto::backlog::{Backlog, Choosing, Chosen, HeldBack, Queued, Seq, Wanted, hold_back};
use crate::proto::urgency::Urgency;
use crate::proto::{AppId, DeviceId, MessageId, UnixMillis};

/// What one message is made of, in the order of [`queued`].
const COLUMNS: &str = "seq, dropped, body, replaces";

/// What is wanted of what waits for the device, of some `bytes` altogether.
pub fn backlog(db: &Connection, device: DeviceId, wanted: &Wanted, bytes: usize, now: UnixMillis) -> Result<Backlog> {
    if wanted.is_plain() {
        return plain(db, device, wanted, bytes);
    }
    let moment = Transaction::new_unchecked(db, TransactionBehavior::Deferred)?;
    let backlog = chosen(&moment, device, wanted, bytes, now);
    moment.finish()?;
    backlog
}

fn plain(db: &Connection, device: DeviceId, wanted: &Wanted, bytes: usize) -> Result<Backlog> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM messages INDEXED BY messages_by_device
         WHERE device = ?1 AND seq > ?2 AND NOT held ORDER BY seq LIMIT ?3"
    ))?;
    // One row more than asked for says whether these are all.
    let limit_and_one = i64::try_from(wanted.limit + 1).unwrap_or(i64::MAX);
    let mut rows = statement.query(params![device.as_bytes(), wanted.after.0, limit_and_one])?;
    let (mut found, mut size, mut complete) = (Vec::new(), 0, true);
    while let Some(row) = rows.next()? {
        if found.len() == wanted.limit || size >= bytes {
            complete = false;
            break;
        }
        found.push(queued(row, &mut size)?);
    }
    Ok(Backlog { rows: found, complete, held: HeldBack::new(), until: None })
}

fn chosen(db: &Connection, device: DeviceId, wanted: &Wanted, bytes: usize, now: UnixMillis) -> Result<Backlog> {
    let Chosen { go, mut complete, mut held, until } = choose(db, device, wanted, now)?;
    let mut statement = db.prepare_cached(&format!("SELECT {COLUMNS} FROM messages WHERE seq = ?1"))?;
    let (mut rows, mut size) = (Vec::new(), 0);
    for (seq, sequence) in go {
        if size >= bytes {
            complete = false;
            hold_back(&mut held, sequence, seq);
            continue;
        }
        rows.push(read(&mut statement, seq, &mut size)?);
    }
    Ok(Backlog { rows, complete, held, until })
}

/// Reads the device's part of the index.
fn choose(db: &Connection, device: DeviceId, wanted: &Wanted, now: UnixMillis) -> Result<Chosen> {
    let mut statement = db.prepare_cached(
        "SELECT seq, app, urgency, waits_ms FROM messages INDEXED BY messages_by_device
         WHERE device = ?1 AND seq > ?2 AND NOT held ORDER BY seq",
    )?;
    let mut rows = statement.query(params![device.as_bytes(), wanted.from().0])?;
    let mut choosing = Choosing::new(wanted, now);
    let mut apps: HashMap<String, AppId> = HashMap::new();
    while let Some(row) = rows.next()? {
        let name = row.get_ref(1)?.as_str()?;
        if !apps.contains_key(name) {
            apps.insert(name.to_owned(), app_in(row, 1)?);
        }
        let urgency = Urgency::numbered(row.get(2)?);
        if let Some(app) = apps.get(name) {
            choosing.see(Seq(row.get(0)?), app, urgency, UnixMillis(row.get(3)?));
        }
    }
    Ok(choosing.choose())
}

fn read(statement: &mut CachedStatement<'_>, seq: Seq, size: &mut usize) -> Result<Queued> {
    statement.query_row([seq.0], |row| queued(row, size))
}

/// A message as its device is sent it; adds its bytes to those before it.
fn queued(row: &Row<'_>, size: &mut usize) -> Result<Queued> {
    let body = row.get_ref(2)?.as_str()?;
    *size += body.len();
    let replaces = row.get_ref(3)?.as_blob()?.chunks_exact(16).map(MessageId::from_slice);
    let replaces = replaces.collect::<Result<_, _>>().map_err(|error| bad_column(3, error))?;
    Ok(Queued { seq: Seq(row.get(0)?), dropped: row.get(1)?, replaces, push: push_in(body)?.for_device() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db;
    use crate::server::store::sql::MIGRATIONS;

    #[test]
    fn what_is_held_back_costs_nothing_of_the_table() {
        let folder = tempfile::tempdir().unwrap();
        let db = db::open(&folder.path().join("t.db"), MIGRATIONS).unwrap();
        let plan: String = db
            .query_row(
                "EXPLAIN QUERY PLAN SELECT seq, app, urgency, waits_ms FROM messages INDEXED BY messages_by_device
                 WHERE device = ?1 AND seq > ?2 AND NOT held ORDER BY seq",
                params![[0_u8; 16], 0],
                |row| row.get(3),
            )
            .unwrap();
        assert_eq!(plan, "SEARCH messages USING COVERING INDEX messages_by_device (device=? AND seq>?)");
    }
}
