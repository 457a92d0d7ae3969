//! What the server remembers: apps, keys, devices, registrations, waiting messages.
//!
//! The store is the only queue. [`Store::accept`] returns when the messages are on disk; a session
//! reads them with [`Store::backlog`] and [`Store::remove`] removes them. SQL stays in `sql`.

pub(crate) mod sql;
pub mod tokens;
pub mod vitals;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use ring::digest;
use rusqlite::Connection;
use subtle::ConstantTimeEq;

use crate::db::{self, DbError, Worker};
use crate::proto::gateway::{Queued, Seq};
use crate::proto::{AppId, DeviceId, Push, Region, Secret, UnixMillis};
use crate::world;

use super::config::Limits;
use super::regid::{KeyRing, Opened, SealKey};
use vitals::Vitals;

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
    /// They fit, and the device has no registration here: it is new, or was forgotten.
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
    /// Reads what operators ask for, which may take long: no device waits for it.
    observer: Worker,
    vitals: Arc<Vitals>,
    turn: Arc<AtomicI64>,
    limits: Limits,
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
        let vitals = Arc::new(Vitals::new());
        let noting = Arc::clone(&vitals);
        let writer = Worker::start_watched("store-writer", connection, move |commit| noting.note(commit));
        Ok(Self {
            writer: writer.map_err(|error| DbError::Failed(error.to_string()))?,
            readers,
            observer: start("store-observer", db::open_reader(path)?)?,
            vitals,
            turn: Arc::default(),
            limits,
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
        self.observer.read(sql::list_keys).await
    }

    /// Adds an app; `false` if there is one of that id.
    pub async fn add_app(&self, app: AppId, secret: &str) -> Result<bool, DbError> {
        let hash = hash(secret.as_bytes());
        self.writer.write(move |db| sql::add_app(db, &app, &hash, world::now())).await
    }

    /// Gives an app another secret; `false` if there is no such app.
    pub async fn set_app_secret(&self, app: AppId, secret: &str) -> Result<bool, DbError> {
        let hash = hash(secret.as_bytes());
        self.writer.write(move |db| sql::set_app_secret(db, &app, &hash)).await
    }

    /// Removes an app and what waits for it, and ends its registrations; returns the devices that
    /// had one, or `None` if there is no such app.
    pub async fn remove_app(&self, app: AppId) -> Result<Option<Vec<DeviceId>>, DbError> {
        self.writer.write(move |db| sql::remove_app(db, &app, world::now())).await
    }

    /// The apps, by id.
    pub async fn list_apps(&self) -> Result<Vec<AppRow>, DbError> {
        self.observer.read(sql::list_apps).await
    }

    /// Checks an app's credentials.
    pub async fn check_app(&self, app: AppId, secret: &str) -> Result<AppCheck, DbError> {
        let given = hash(secret.as_bytes());
        let stored = self.reader().read(move |db| sql::app_secret(db, &app)).await?;
        Ok(match stored {
            None => AppCheck::Unknown,
            Some(stored) if bool::from(stored.as_slice().ct_eq(&given)) => AppCheck::Known,
            Some(_) => AppCheck::WrongSecret,
        })
    }

    /// Checks a device's credentials; an unknown device is enrolled if it `may_enrol`.
    pub async fn check_device(
        &self,
        device: DeviceId,
        secret: &Secret,
        agent: String,
        may_enrol: bool,
    ) -> Result<DeviceCheck, DbError> {
        let given = hash(secret.reveal());
        let fits = |stored: &[u8]| bool::from(stored.ct_eq(&given));
        let read = move |db: &Connection| Ok((sql::device_secret(db, device)?, sql::has_registrations(db, device)?));
        match self.reader().read(read).await? {
            (Some(stored), _) if !fits(&stored) => return Ok(DeviceCheck::WrongSecret),
            (Some(_), true) => return Ok(DeviceCheck::Known),
            // Told again until the device has registered something: it may not have heard it.
            (Some(_), false) => return Ok(DeviceCheck::Enrolled),
            (None, _) if !may_enrol => return Ok(DeviceCheck::Refused),
            (None, _) => {}
        }
        // Two connections of one new device may race: the second one is known by then.
        let existing = self.writer.write(move |db| sql::enrol(db, device, &given, &agent, world::now())).await?;
        Ok(match existing {
            Some(stored) if !fits(&stored) => DeviceCheck::WrongSecret,
            Some(_) | None => DeviceCheck::Enrolled,
        })
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
        let waiting = self.limits.waiting_per_registration;
        let (begun, count) = (Instant::now(), incoming.len());
        let (fates, expired) = self
            .writer
            .write(move |db| {
                let expired = sweep_if_due(db, &next_sweep)?;
                let fates: Vec<_> = incoming
                    .into_iter()
                    .map(|incoming| {
                        let seq = Seq(last_seq.fetch_add(1, Ordering::Relaxed) + 1);
                        sql::accept(db, seq, &incoming, waiting)
                    })
                    .collect::<Result<_, _>>()?;
                Ok((fates, expired))
            })
            .await?;
        // Counted after the commit: what is undone did not happen.
        self.vitals.expired.add(expired + fates.iter().map(|(_, room)| room.expired).sum::<usize>());
        self.vitals.dropped.add(fates.iter().map(|(_, room)| room.dropped).sum());
        self.vitals.stored.observe_each(begun.elapsed(), count);
        Ok(fates.into_iter().map(|(fate, _)| fate).collect())
    }

    /// At most `limit` messages that wait for the device after `after`, in order, and whether
    /// these are all.
    pub async fn backlog(&self, device: DeviceId, after: Seq, limit: usize) -> Result<(Vec<Queued>, bool), DbError> {
        self.reader().read(move |db| sql::backlog(db, device, after, limit, BACKLOG_BYTES)).await
    }

    /// Removes messages that expired before they could be sent. Not waited for: if it is lost, they
    /// are found to be expired again.
    pub async fn expire(&self, seqs: Vec<Seq>) -> Result<(), DbError> {
        self.vitals.expired.add(seqs.len());
        self.writer.write_later(move |db| sql::expire(db, &seqs)).await
    }

    /// Removes messages that the device has. Not waited for: if it is lost, the device is sent them
    /// again and knows them.
    pub async fn remove(&self, seqs: Vec<Seq>) -> Result<(), DbError> {
        self.vitals.acknowledged.add(seqs.len());
        self.writer.write_later(move |db| sql::remove(db, &seqs)).await
    }

    /// The app of this id, if there is one.
    pub async fn app(&self, app: AppId) -> Result<Option<AppRow>, DbError> {
        self.observer.read(move |db| sql::app(db, &app)).await
    }

    /// How many messages wait. Counts them: a million take a tenth of a second of the observer.
    pub async fn waiting(&self) -> Result<i64, DbError> {
        self.observer.read(sql::waiting).await
    }

    /// The size of the database, in bytes, without what its log has yet to bring into it.
    pub async fn bytes(&self) -> Result<i64, DbError> {
        self.observer.read(sql::bytes).await
    }

    /// Writes a row that means nothing; returns when it is on disk.
    pub async fn try_write(&self) -> Result<(), DbError> {
        self.writer.write(sql::try_write).await
    }

    /// What the store says of itself.
    pub fn vitals(&self) -> &Vitals {
        &self.vitals
    }

    fn reader(&self) -> &Worker {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed).unsigned_abs();
        &self.readers[usize::try_from(turn).unwrap_or(0) % self.readers.len()]
    }
}

/// Returns how many messages it removed.
fn sweep_if_due(db: &Connection, next_sweep: &AtomicI64) -> rusqlite::Result<usize> {
    let now = world::now();
    let wait = next_sweep.load(Ordering::Relaxed) - now.0;
    // A longer wait than any that is set means that the clock was set back.
    if (1..=SWEEP_EVERY_MS).contains(&wait) {
        return Ok(0);
    }
    let removed = sql::sweep(db, now)?;
    let pause = if removed < sql::SWEEP { SWEEP_EVERY_MS } else { SWEEP_AGAIN_MS };
    next_sweep.store(now.0 + pause, Ordering::Relaxed);
    Ok(removed)
}

fn hash(secret: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, secret).as_ref());
    hash
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
