//! What was learned of networks: how long a connection over each may be silent.
//!
//! Written when a search reaches another stage, never for a ping. A network is known by a hash alone.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use super::Store;
use super::schema::{self, Result, json, to_json};
use crate::db::DbError;
use crate::proto::UnixMillis;
use crate::proto::keepalive::Learned;
use crate::proto::pulse::{Memory, NetworkKey};
use crate::world;

/// How long a network is remembered after it last taught something.
const REMEMBERED_MS: i64 = 90 * 24 * 3600 * 1000;

/// The fact that holds the salt.
const SALT: &str = "salt of networks";

impl Store {
    /// What networks are hashed with.
    pub async fn salt(&self) -> Result<[u8; 32], DbError> {
        self.worker.write(salt).await
    }

    /// Remembers this of a network, and of at most so many.
    pub async fn learn(&self, key: NetworkKey, learned: Learned, most: usize) -> Result<(), DbError> {
        self.worker.write(move |db| learn(db, key, &learned, most, world::now())).await
    }

    /// What is remembered of a network.
    pub async fn memory(&self, key: NetworkKey) -> Result<Option<Memory>, DbError> {
        self.worker.read(move |db| memory(db, key, world::now())).await
    }
}

/// What networks are hashed with; made if there is none, as in a database of an earlier version.
pub fn salt(db: &Connection) -> Result<[u8; 32]> {
    let mut salt = [0; 32];
    match schema::fact(db, SALT)? {
        Some(text) if hex::decode_to_slice(&text, &mut salt).is_ok() => Ok(salt),
        // Another salt only makes all networks unknown.
        Some(_) | None => {
            salt = world::random_bytes();
            schema::set_fact(db, SALT, &hex::encode(salt))?;
            Ok(salt)
        }
    }
}

fn learn(db: &Connection, key: NetworkKey, learned: &Learned, most: usize, now: UnixMillis) -> Result<()> {
    db.prepare_cached(
        "INSERT INTO networks VALUES (?1, ?2, ?3) ON CONFLICT (key) DO UPDATE SET learned = ?2, learned_ms = ?3",
    )?
    .execute(params![key.0, to_json(learned)?, now.0])?;
    db.prepare_cached(
        "DELETE FROM networks WHERE learned_ms < ?1
                                 OR key NOT IN (SELECT key FROM networks ORDER BY learned_ms DESC, key = ?3 DESC LIMIT ?2)",
    )?
    .execute(params![now.0.saturating_sub(REMEMBERED_MS), i64::try_from(most).unwrap_or(i64::MAX), key.0])?;
    Ok(())
}

fn memory(db: &Connection, key: NetworkKey, now: UnixMillis) -> Result<Option<Memory>> {
    db.prepare_cached("SELECT learned, learned_ms FROM networks WHERE key = ?1")?
        .query_row(params![key.0], |row| {
            // A clock that was set back makes it new.
            let age = now.0.saturating_sub(row.get(1)?).max(0).unsigned_abs();
            Ok(Memory { learned: json(row, 0)?, age: Duration::from_millis(age) })
        })
        .optional()
}
