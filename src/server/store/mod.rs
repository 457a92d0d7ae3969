//! What the server remembers: apps, keys, devices, registrations, waiting messages.
//!
//! The store is the only queue. [`Store::accept`] returns when the messages are on disk; a session
//! reads them with [`Store::backlog`] and [`Store::remove`] removes them. SQL stays in `sql`.

pub mod devices;
mod quota;
pub(crate) mod sql;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use ring::digest;
use rusqlite::Connection;
use subtle::ConstantTimeEq;

use crate::db::{self, DbError, Worker};
use crate::proto::gateway::{Queued, Seq};
use crate::proto::{AppId, DeviceId, Push, Region, UnixMillis};
use crate::world;

use self::quota::Quotas;
use self::sql::AppSecrets;
use super::config::Limits;
use super::regid::{KeyRing, Opened, SealKey};

/// Threads that read beside the writer.
const READERS: usize = 2;
/// Bytes of messages that one [`Store::backlog`] returns, give or take one message.
const BACKLOG_BYTES: usize = 256 * 1024;
/// How often expired messages are removed, at the most: reading passes over them anyway.
const SWEEP_EVERY_MS: i64 = 60_000;
/// The pause after a sweep that could not remove them all.
const SWEEP_AGAIN_MS: i64 = 100;

/// A message for one registration, on its way into the store.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// What its regId says.
    pub to: Opened,
    /// The message.
    pub push: Push,
}

/// What became of an [`Incoming`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It is on disk.
    Stored,
    /// Its registration has ended.
    NotRegistered,
    /// As much waits for its app, or in the database, as may.
    OverQuota,
}

/// The answer to an app's credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppCheck {
    /// They fit.
    Known,
    /// There is no such app.
    Unknown,
    /// There is, with another secret.
    WrongSecret,
}

/// The answer to a device's credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceCheck {
    /// They fit.
    Known,
    /// They fit, and the device has to register its apps anew: it is new, was forgotten, or the
    /// database was restored.
    Enrolled,
    /// The device is known by another secret.
    WrongSecret,
    /// The device is unknown, and may not enrol.
    Refused,
}

/// The answer to a wish for a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registered {
    /// The registration stands, with this generation; the newest sealing key has this number.
    As {
        /// Counts the registrations of this app on this device.
        generation: u64,
        /// For noticing a rotation.
        newest_key: i64,
    },
    /// There is no such app.
    UnknownApp,
    /// The device has as many as it may have.
    TooMany,
}

/// An app, for an operator's list.
#[derive(Clone, Debug)]
pub struct AppRow {
    /// Its id.
    pub app: AppId,
    /// When it was added.
    pub created_ms: UnixMillis,
    /// Its devices.
    pub registrations: i64,
    /// Until when the secret before the present one works, if it still does.
    pub old_secret_until: Option<UnixMillis>,
}

/// A sealing key, for an operator's list.
#[derive(Clone, Copy, Debug)]
pub struct KeyRow {
    /// Higher is newer.
    pub number: i64,
    /// When it was made.
    pub created_ms: UnixMillis,
}

/// The server's store: one writer, some readers.
#[derive(Clone)]
pub struct Store {
    writer: Worker,
    readers: Arc<[Worker]>,
    turn: Arc<AtomicI64>,
    limits: Limits,
    quotas: Arc<Quotas>,
    counter: Worker,
    last_seq: Arc<AtomicI64>,
    next_sweep: Arc<AtomicI64>,
}

impl Store {
    /// Opens or makes the store; the first start makes the keys.
    pub fn open(path: &Path, limits: Limits) -> Result<Self, DbError> {
        let connection = db::open(path, sql::MIGRATIONS)?;
        sql::make_missing_keys(&connection, world::now())?;
        let last_seq = sql::last_seq(&connection)?;
        let start = |name: &str, connection: Connection| {
            Worker::start(name, connection).map_err(|error| DbError::Failed(error.to_string()))
        };
        let readers = (0..READERS)
            .map(|number| start(&format!("store-reader-{number}"), db::open_reader(path)?))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            writer: start("store-writer", connection)?,
            readers,
            turn: Arc::default(),
            limits,
            quotas: Arc::new(Quotas::new(&limits)),
            counter: start("store-counter", db::open_reader(path)?)?,
            last_seq: Arc::new(AtomicI64::new(last_seq)),
            next_sweep: Arc::default(),
        })
    }

    /// All keys.
    pub async fn key_ring(&self, region: Region) -> Result<KeyRing, DbError> {
        let (seal, shard) = self.reader().read(sql::keys).await?;
        let seal = seal.iter().filter_map(|(number, bytes)| SealKey::new(*number, bytes)).collect();
        KeyRing::new(region, seal, &shard).ok_or_else(|| DbError::Failed("the database holds no key".into()))
    }

    /// Adds a sealing key, which new registrations use from now on; returns its number.
    pub async fn rotate_key(&self) -> Result<i64, DbError> {
        self.writer.write(|db| sql::add_seal_key(db, world::now())).await
    }

    /// The sealing keys, newest first.
    pub async fn list_keys(&self) -> Result<Vec<KeyRow>, DbError> {
        self.reader().read(sql::list_keys).await
    }

    /// Adds an app; `false` if there is one of that id.
    pub async fn add_app(&self, app: AppId, secret: &str) -> Result<bool, DbError> {
        let hash = hash(secret.as_bytes());
        self.writer.write(move |db| sql::add_app(db, &app, &hash, world::now())).await
    }

    /// Gives an app another secret; the present one works until `grace_until`. `false` if there is
    /// no such app.
    pub async fn set_app_secret(&self, app: AppId, secret: &str, grace_until: UnixMillis) -> Result<bool, DbError> {
        let hash = hash(secret.as_bytes());
        self.writer.write(move |db| sql::set_app_secret(db, &app, &hash, grace_until)).await
    }

    /// Removes an app and what waits for it, and ends its registrations; `false` if there is none.
    pub async fn remove_app(&self, app: AppId) -> Result<bool, DbError> {
        self.writer.write(move |db| sql::remove_app(db, &app, world::now())).await
    }

    /// The apps, by id.
    pub async fn list_apps(&self) -> Result<Vec<AppRow>, DbError> {
        self.reader().read(|db| sql::list_apps(db, world::now())).await
    }

    /// Checks an app's credentials.
    pub async fn check_app(&self, app: AppId, secret: &str) -> Result<AppCheck, DbError> {
        let given = hash(secret.as_bytes());
        let stored = self.reader().read(move |db| sql::app_secrets(db, &app, world::now())).await?;
        let Some(AppSecrets { present, old }) = stored else { return Ok(AppCheck::Unknown) };
        // Two comparisons, whether there are two secrets or one: how long it takes tells nothing.
        let fits_present = present.as_slice().ct_eq(&given);
        let fits_old = old.as_deref().unwrap_or(&present).ct_eq(&given);
        Ok(if bool::from(fits_present | fits_old) { AppCheck::Known } else { AppCheck::WrongSecret })
    }

    /// Registers an app on a device, or finds it registered.
    pub async fn register(&self, device: DeviceId, app: AppId) -> Result<Registered, DbError> {
        let limit = self.limits.registrations_per_device;
        self.writer.write(move |db| sql::register(db, device, &app, limit, world::now())).await
    }

    /// Ends a registration for good and removes what waits for it.
    pub async fn deregister(&self, device: DeviceId, app: AppId) -> Result<(), DbError> {
        self.writer.write(move |db| sql::deregister(db, device, &app, world::now())).await
    }

    /// The device's registrations that the server ended and that it has not confirmed.
    pub async fn revoked(&self, device: DeviceId) -> Result<Vec<AppId>, DbError> {
        self.reader().read(move |db| sql::revoked(db, device)).await
    }

    /// Whether the registration that a regId names stands.
    pub async fn is_registered(&self, to: Opened, app: AppId) -> Result<bool, DbError> {
        self.reader().read(move |db| sql::is_registered(db, &to, &app)).await
    }

    /// Stores messages; returns when they are on disk, with the fate of each in order.
    pub async fn accept(&self, incoming: Vec<Incoming>) -> Result<Vec<Accepted>, DbError> {
        let (last_seq, next_sweep) = (Arc::clone(&self.last_seq), Arc::clone(&self.next_sweep));
        let (waiting, quotas) = (self.limits.waiting_per_registration, Arc::clone(&self.quotas));
        self.writer
            .write(move |db| {
                sweep_if_due(db, &next_sweep)?;
                let room = !quotas.limits_store() || quotas.has_room(sql::used_bytes(db)?);
                incoming
                    .into_iter()
                    .map(|incoming| {
                        if !room || !quotas.may_wait(&incoming.push.app) {
                            return Ok(Accepted::OverQuota);
                        }
                        let seq = Seq(last_seq.fetch_add(1, Ordering::Relaxed) + 1);
                        let accepted = sql::accept(db, seq, &incoming, waiting)?;
                        if accepted == Accepted::Stored {
                            quotas.add(&incoming.push.app);
                        }
                        Ok(accepted)
                    })
                    .collect()
            })
            .await
    }

    /// At most `limit` messages that wait for the device after `after`, in order, and whether
    /// these are all.
    pub async fn backlog(&self, device: DeviceId, after: Seq, limit: usize) -> Result<(Vec<Queued>, bool), DbError> {
        self.reader().read(move |db| sql::backlog(db, device, after, limit, BACKLOG_BYTES)).await
    }

    /// Removes messages that expired before they could be sent. Not waited for: if it is lost, they
    /// are found to be expired again.
    pub async fn expire(&self, seqs: Vec<Seq>) -> Result<(), DbError> {
        self.writer.write_later(move |db| sql::expire(db, &seqs)).await
    }

    /// Removes messages that the device has. Not waited for: if it is lost, the device is sent them
    /// again and knows them.
    pub async fn remove(&self, seqs: Vec<Seq>) -> Result<(), DbError> {
        self.writer.write_later(move |db| sql::remove(db, &seqs)).await
    }

    /// Counts what waits for each app, and looks how large the database is, for the quotas. Nobody
    /// waits for it.
    pub async fn count_waiting(&self) -> Result<(), DbError> {
        if self.quotas.limits_store() {
            self.quotas.has_room(self.counter.read(sql::used_bytes).await?);
        }
        if self.quotas.limits_apps() {
            self.quotas.begin_count();
            self.quotas.end_count(self.counter.read(sql::count_by_app).await?);
        }
        Ok(())
    }

    fn reader(&self) -> &Worker {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed).unsigned_abs();
        &self.readers[usize::try_from(turn).unwrap_or(0) % self.readers.len()]
    }
}

fn sweep_if_due(db: &Connection, next_sweep: &AtomicI64) -> rusqlite::Result<()> {
    let now = world::now();
    let wait = next_sweep.load(Ordering::Relaxed) - now.0;
    // A longer wait than any that is set means that the clock was set back.
    if (1..=SWEEP_EVERY_MS).contains(&wait) {
        return Ok(());
    }
    let pause = if sql::sweep(db, now)? { SWEEP_EVERY_MS } else { SWEEP_AGAIN_MS };
    next_sweep.store(now.0 + pause, Ordering::Relaxed);
    Ok(())
}

fn hash(secret: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, secret).as_ref());
    hash
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
