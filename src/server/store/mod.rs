//! What the server remembers: apps, keys, devices, registrations, waiting messages.
//!
//! The store is the only queue. [`Store::accept`] returns when the messages are on disk; a session
//! reads them with [`Store::backlog`] and [`Store::settle`] removes them. SQL stays in these files:
//!
//! * `sql`: schema, apps, devices, waiting messages; [`registrations`]; [`delayed`]: what is not to be sent
//!   yet, or not any more; [`history`]: what became of messages; [`receipts`]: what their senders are told of it, by
//!   callback; [`confirmations`]: the same by Web Push; [`senders`]: whose key is which app's.

pub mod confirmations;
pub mod delayed;
pub mod devices;
pub mod history;
mod quota;
pub mod receipts;
pub mod registrations;
pub mod senders;
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

use crate::db::{self, Commit, DbError, Worker};
use crate::proto::frame::{NotKept, Outcome};
use crate::proto::gateway::{Backlog, Done, Sent, Seq, Settled, Wanted};
use crate::proto::urgency::Urgency;
use crate::proto::{AppId, DeviceId, MessageId, Push, ReceiptsId, RegId, Region, UnixMillis};
use crate::world;

use self::history::News;
use self::quota::Quotas;
use self::receipts::Hint;
use self::sql::{AppSecrets, Ends};
use super::config::Limits;
use super::regid::{KeyRing, Opened, SealKey};
pub use registrations::{Over, Registered};
use vitals::Vitals;

/// Threads that read beside the writer.
const READERS: usize = 2;
/// Bytes of messages that one [`Store::backlog`] returns, give or take one message.
const BACKLOG_BYTES: usize = 256 * 1024;

/// A message for one registration, on its way into the store.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// What its regId says.
    pub to: Opened,
    /// It is not to be sent before this time.
    pub release_ms: Option<UnixMillis>,
    /// The message.
    pub push: Push,
}

/// What became of an [`Incoming`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It is on disk.
    Stored,
    /// The same was taken before.
    Repeated(Earlier),
    /// Its registration has ended.
    NotRegistered,
    /// Too many are delayed for its registration.
    TooMany,
    /// As much waits for its app, or in the database, as may.
    OverQuota,
}

/// A message that was taken before by the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Earlier {
    /// Its id.
    pub id: MessageId,
    /// The subscription of receipts that it names.
    pub link: Option<ReceiptsId>,
    /// When it was taken.
    pub accepted_ms: UnixMillis,
    /// From when on it is not delivered.
    pub expires_ms: UnixMillis,
}

/// A message and what became of it, for its sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// Its id.
    pub id: MessageId,
    /// Its app.
    pub app: AppId,
    /// Its recipient.
    pub reg_id: RegId,
    /// The sender's own id of it.
    pub request_id: Option<String>,
    /// Before this time it was not to be sent.
    pub release_ms: Option<UnixMillis>,
    /// From when on it is not delivered.
    pub expires_ms: UnixMillis,
    /// Whom it is for.
    pub device: DeviceId,
    /// What it waits with, if it does.
    pub waits: Option<Waits>,
    /// What happened to it, in this order.
    pub steps: Vec<Step>,
}

/// What a waiting message has to say for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waits {
    /// How urgent it is.
    pub urgency: Urgency,
    /// Until then it waits for a frame of an idle device.
    pub until_ms: UnixMillis,
}

/// A step of a message's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What happened.
    pub step: String,
    /// When.
    pub at_ms: UnixMillis,
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

/// An app, for an operator's list.
#[derive(Clone, Debug)]
pub struct AppRow {
    /// Its id.
    pub app: AppId,
    /// When it was added.
    pub created_ms: UnixMillis,
    /// Its devices.
    pub registrations: i64,
    /// Where its receipts go.
    pub callback: Option<String>,
    /// The key by which it sends Web Push messages: the bytes of the point.
    pub vapid_key: Option<Vec<u8>>,
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
    /// Reads what operators and senders ask for, which may take long: no device and no post waits for it.
    observer: Worker,
    vitals: Arc<Vitals>,
    receipts: Hint,
    turn: Arc<AtomicI64>,
    limits: Limits,
    quotas: Arc<Quotas>,
    last_seq: Arc<AtomicI64>,
    /// The last place of an earlier run that did not end in order.
    crashed_at: Option<Seq>,
}

impl Store {
    /// Opens or makes the store; the first start makes the keys.
    pub fn open(path: &Path, limits: Limits) -> Result<Self, DbError> {
        let mut connection = db::open(path, sql::MIGRATIONS)?;
        sql::make_missing_keys(&connection, world::now())?;
        let last_seq = sql::last_seq(&connection)?;
        let start = |name: &str, connection: Connection| {
            Worker::start(name, connection).map_err(|error| DbError::Failed(error.to_string()))
        };
        let readers = (0..READERS)
            .map(|number| start(&format!("store-reader-{number}"), db::open_reader(path)?))
            .collect::<Result<_, _>>()?;
        let vitals = Arc::new(Vitals::new());
        let receipts = Hint::of(&mut connection)?;
        confirmations::bound(&connection, limits.receipts_per_link)?;
        let (noting, hint) = (Arc::clone(&vitals), receipts.clone());
        let writer = Worker::start_watched("store-writer", connection, move |commit| {
            noting.note(commit);
            if matches!(commit, Commit::Ends { .. }) {
                hint.committed();
            }
        });
        Ok(Self {
            writer: writer.map_err(|error| DbError::Failed(error.to_string()))?,
            readers,
            observer: start("store-observer", db::open_reader(path)?)?,
            vitals,
            receipts,
            turn: Arc::default(),
            limits,
            quotas: Arc::new(Quotas::new(&limits)),
            last_seq: Arc::new(AtomicI64::new(last_seq)),
            crashed_at: None,
        })
    }

    /// Takes the store into service: only one server may.
    pub async fn begin(&mut self) -> Result<(), DbError> {
        let last_seq = self.last_seq();
        let orderly = self.writer.write(sql::begin_service).await?;
        self.crashed_at = (!orderly).then_some(last_seq);
        // Whether senders' messages can be stored is not known yet.
        self.vitals.forget_last();
        Ok(())
    }

    /// The server has ended in order: every session has noted what it sent.
    pub async fn end(&self) -> Result<(), DbError> {
        self.writer.write(sql::end_service).await
    }

    /// The last place that was given to a message.
    pub fn last_seq(&self) -> Seq {
        Seq(self.last_seq.load(Ordering::Relaxed))
    }

    /// Whether the message at this place is of an earlier run that did not end in order.
    pub fn crashed_after(&self, seq: Seq) -> bool {
        self.crashed_at.is_some_and(|last| seq <= last)
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

    /// Gives an app another secret; the present one works until `grace_until`. `false` if there is
    /// no such app.
    pub async fn set_app_secret(&self, app: AppId, secret: &str, grace_until: UnixMillis) -> Result<bool, DbError> {
        let hash = hash(secret.as_bytes());
        self.writer.write(move |db| sql::set_app_secret(db, &app, &hash, grace_until)).await
    }

    /// Removes an app and what waits for it, and ends its registrations; returns the devices that
    /// had one, or `None` if there is no such app.
    pub async fn remove_app(&self, app: AppId) -> Result<Option<Vec<DeviceId>>, DbError> {
        self.writer.write(move |db| sql::remove_app(db, &app, world::now())).await
    }

    /// The apps, by id.
    pub async fn list_apps(&self) -> Result<Vec<AppRow>, DbError> {
        self.observer.read(|db| sql::list_apps(db, world::now())).await
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

    /// Takes out what waits and has the topic of a push that does not wait; `false` if its registration has
    /// ended.
    pub async fn make_way(&self, to: Opened, push: Push) -> Result<bool, DbError> {
        self.writer.write(move |db| sql::make_way(db, &to, &push, world::now())).await
    }

    /// Stores messages; returns when they are on disk, with the fate of each in order.
    pub async fn accept(&self, incoming: Vec<Incoming>) -> Result<Vec<Accepted>, DbError> {
        let (last_seq, quotas) = (Arc::clone(&self.last_seq), Arc::clone(&self.quotas));
        let waiting = self.limits.waiting_per_registration;
        let (begun, count) = (Instant::now(), incoming.len());
        let fates = self
            .writer
            .write(move |db| {
                let room = !quotas.limits_store() || quotas.has_room(sql::used_bytes(db)?);
                let accept = |incoming: &Incoming| {
                    if !room || !quotas.may_wait(&incoming.push.app) {
                        return Ok((Accepted::OverQuota, Ends::default()));
                    }
                    let accepted = sql::accept(db, || next_seq(&last_seq), incoming, waiting)?;
                    if accepted.0 == Accepted::Stored {
                        quotas.add(&incoming.push.app);
                    }
                    Ok(accepted)
                };
                incoming.iter().map(accept).collect::<sql::Result<Vec<_>>>()
            })
            .await?;
        // Counted after the commit: what is undone did not happen.
        self.vitals.count(fates.iter().map(|(_, ends)| *ends));
        self.vitals.stored.observe_each(begun.elapsed(), count);
        Ok(fates.into_iter().map(|(fate, _)| fate).collect())
    }

    /// What is wanted of the messages that wait for the device.
    pub async fn backlog(&self, device: DeviceId, wanted: Wanted) -> Result<Backlog, DbError> {
        self.reader().read(move |db| sql::backlog(db, device, &wanted, BACKLOG_BYTES, world::now())).await
    }

    /// Removes messages that expired before they could be sent. Not waited for: if it is lost, they
    /// are found to be expired again.
    pub async fn expire(&self, seqs: Vec<Seq>) -> Result<(), DbError> {
        self.vitals.expired.add(seqs.len());
        self.writer.write_later(move |db| sql::expire(db, &seqs, world::now())).await
    }

    /// Removes messages that the device has. Not waited for: if it is lost, the device is sent them
    /// again and knows them.
    pub async fn settle(&self, all: Vec<Settled>) -> Result<(), DbError> {
        let count = |how| all.iter().filter(|settled| settled.how == how).count();
        self.vitals.acknowledged.add(count(Done::Stored));
        self.vitals.count([Ends { expired: count(Done::NotKept(NotKept::Expired)), ..Ends::default() }]);
        self.writer.write_later(move |db| sql::settle(db, &all, world::now())).await
    }

    /// Notes when messages were sent that the device has not acknowledged. Not waited for.
    pub async fn sent(&self, all: Vec<Sent>) -> Result<(), DbError> {
        let note = move |db: &Connection| {
            all.iter()
                .filter_map(|sent| Some((sent.id, sent.at_ms?)))
                .try_for_each(|(id, at)| history::sent(db, id, at))
        };
        self.writer.write_later(note).await
    }

    /// Notes what became of messages on their device; returns, when it is on disk, what was not known
    /// before.
    pub async fn outcomes(&self, device: DeviceId, list: Vec<Outcome>) -> Result<Vec<News>, DbError> {
        self.writer.write(move |db| history::outcomes(db, device, &list)).await
    }

    /// When the next message is to be released or expires.
    pub async fn next_due(&self) -> Result<Option<UnixMillis>, DbError> {
        self.reader().read(|db| Ok([delayed::next(db)?, sql::next_expiry(db)?].into_iter().flatten().min())).await
    }

    /// Removes expired messages, some at a time; returns whether these were all.
    pub async fn sweep(&self) -> Result<bool, DbError> {
        let removed = self.writer.write(|db| sql::sweep(db, world::now())).await?;
        self.vitals.expired.add(removed);
        Ok(removed < sql::SWEEP as usize)
    }

    /// Forgets the history of messages that ended long ago, some at a time; returns whether these
    /// were all.
    pub async fn trim_history(&self) -> Result<bool, DbError> {
        let (hours, most) = (self.limits.history_hours, self.limits.history_messages);
        let before = UnixMillis(world::now().0 - i64::from(hours) * 3_600_000);
        // Looked for beside the writer: it takes a while.
        let old = self.observer.read(move |db| history::old(db, before, most)).await?;
        let complete = old.len() < history::SWEEP as usize;
        if !old.is_empty() {
            self.writer.write(move |db| history::forget(db, &old)).await?;
        }
        Ok(complete)
    }

    /// Counts what waits for each app, and looks how large the database is, for the quotas. Nobody
    /// waits for it.
    pub async fn count_waiting(&self) -> Result<(), DbError> {
        if self.quotas.limits_store() {
            self.quotas.has_room(self.observer.read(sql::used_bytes).await?);
        }
        if self.quotas.limits_apps() {
            self.quotas.begin_count();
            self.quotas.end_count(self.observer.read(sql::count_by_app).await?);
        }
        Ok(())
    }

    /// The app of this id, if there is one.
    pub async fn app(&self, app: AppId) -> Result<Option<AppRow>, DbError> {
        self.observer.read(move |db| sql::app(db, &app, world::now())).await
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

fn next_seq(last: &AtomicI64) -> Seq {
    Seq(last.fetch_add(1, Ordering::Relaxed) + 1)
}

fn hash(secret: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, secret).as_ref());
    hash
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
