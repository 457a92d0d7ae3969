//! What the device remembers: who it is, its apps and their regIds, unread messages, the ids it has
//! seen, and outcomes that the server has not noted yet.
//!
//! Duplicates end here, by message id. [`Store::receive`] returns when the pushes are on disk; only
//! then may they be acknowledged. Every queue has a limit; what goes over it is counted.

mod sql;

use std::path::Path;

use crate::db::{self, DbError, Worker};
use crate::proto::frame::{Delivery, Outcome};
use crate::proto::wishes::Wish;
use crate::proto::{AppId, DeviceId, MessageId, Push, RegId, Secret, UnixMillis};
use crate::world;

use super::config::Limits;

/// An app as the device knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct AppRow {
    /// Its id.
    pub app: AppId,
    /// The user who claimed it first.
    pub uid: u32,
    /// Its regId while it is registered.
    pub reg_id: Option<RegId>,
    /// What the server has still to be asked for.
    pub wish: Option<Wish>,
    /// Messages that wait for it.
    pub unread: u32,
}

/// A message that waits for its app.
#[derive(Clone, Debug, PartialEq)]
pub struct Unread {
    /// Its place in the order of arrival.
    pub place: i64,
    /// When the device stored it.
    pub received_ms: UnixMillis,
    /// Older messages of the app that had to go before this one.
    pub dropped: u32,
    /// The notification.
    pub push: Push,
}

/// The result of [`Store::receive`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Received {
    /// Every push of the batch: they are on disk now, or were before, or need not be.
    pub ids: Vec<MessageId>,
    /// Apps that have something new.
    pub apps: Vec<AppId>,
    /// Some outcomes are settled already.
    pub outcomes: bool,
}

/// Who the device is.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Its id.
    pub device: DeviceId,
    /// Its proof.
    pub secret: Secret,
}

/// The device's store: one thread for everything.
#[derive(Clone, Debug)]
pub struct Store {
    worker: Worker,
    limits: Limits,
    /// The last place that an earlier run of the daemon gave to a message.
    last_place: i64,
}

impl Store {
    /// Opens or makes the store; the first start makes the device's identity, which is on disk
    /// before anybody hears of it.
    pub fn open(path: &Path, limits: Limits) -> Result<(Self, Credentials), DbError> {
        let connection = db::open(path, sql::MIGRATIONS)?;
        let credentials = sql::credentials(&connection)?;
        let last_place = sql::last_place(&connection)?;
        let worker = Worker::start("store", connection).map_err(|error| DbError::Failed(error.to_string()))?;
        Ok((Self { worker, limits, last_place }, credentials))
    }

    /// The gateway that the server at the `configured` one told the device to use.
    pub async fn gateway(&self, configured: &str) -> Result<Option<String>, DbError> {
        let name = format!("gateway instead of {configured}");
        self.worker.read(move |db| sql::fact(db, &name)).await
    }

    /// Remembers the gateway to use instead of the `configured` one.
    pub async fn set_gateway(&self, configured: &str, gateway: String) -> Result<(), DbError> {
        let name = format!("gateway instead of {configured}");
        self.worker.write(move |db| sql::set_fact(db, &name, &gateway)).await
    }

    /// The app, if it was ever claimed.
    pub async fn app(&self, app: AppId) -> Result<Option<AppRow>, DbError> {
        self.worker.read(move |db| sql::find_app(db, &app)).await
    }

    /// All apps that were ever claimed.
    pub async fn apps(&self) -> Result<Vec<AppRow>, DbError> {
        self.worker.read(sql::all_apps).await
    }

    /// Makes `uid` the app's user if it has none; returns the app, or `None` if there are too many.
    pub async fn claim(&self, app: AppId, uid: u32) -> Result<Option<AppRow>, DbError> {
        let limit = self.limits.apps;
        self.worker.write(move |db| sql::claim(db, &app, uid, limit)).await
    }

    /// Notes what the server is to be asked for.
    pub async fn wish(&self, app: AppId, wish: Option<Wish>) -> Result<(), DbError> {
        self.worker.write(move |db| sql::set_wish(db, &app, wish)).await
    }

    /// The app has this regId; a wish for it is fulfilled, a newer one stands.
    pub async fn registered(&self, app: AppId, reg_id: RegId) -> Result<(), DbError> {
        self.worker.write(move |db| sql::set_reg_id(db, &app, Some(reg_id), Wish::Register)).await
    }

    /// The app's registration has ended; a wish for that is fulfilled, a newer one stands.
    pub async fn deregistered(&self, app: AppId) -> Result<(), DbError> {
        self.worker.write(move |db| sql::set_reg_id(db, &app, None, Wish::Deregister)).await
    }

    /// The server knows none of the registrations: all are wished for anew. Returns their apps.
    pub async fn renew_all(&self) -> Result<Vec<AppId>, DbError> {
        self.worker.write(sql::renew_all).await
    }

    /// Puts pushes on disk, each id once, for apps that are registered with that regId.
    pub async fn receive(&self, batch: Vec<Delivery>) -> Result<Received, DbError> {
        let limits = self.limits;
        self.worker.write(move |db| sql::receive(db, batch, limits, world::now())).await
    }

    /// The ids of the last pushes that were put on disk, as many as the window is wide.
    pub async fn resume_point(&self) -> Result<Vec<MessageId>, DbError> {
        self.worker.read(sql::resume_point).await
    }

    /// The app's oldest unread message that has not expired. Those that have are settled.
    pub async fn next_unread(&self, app: AppId) -> Result<Option<Unread>, DbError> {
        let wanted = app.clone();
        match self.worker.read(move |db| sql::oldest(db, &wanted)).await? {
            Some(unread) if unread.push.expired(world::now()) => {
                self.worker.write(move |db| sql::skip_expired(db, &app, world::now())).await
            }
            unread => Ok(unread),
        }
    }

    /// Whether the message was there when the daemon started.
    pub fn is_from_earlier_run(&self, unread: &Unread) -> bool {
        unread.place <= self.last_place
    }

    /// How many unread messages the app has.
    pub async fn count_unread(&self, app: AppId) -> Result<u32, DbError> {
        self.worker.read(move |db| sql::count(db, &app)).await
    }

    /// The app has taken this message.
    pub async fn delivered(&self, unread: &Unread) -> Result<(), DbError> {
        let (place, id) = (unread.place, unread.push.id);
        self.worker.write(move |db| sql::take(db, place, id, world::now())).await
    }

    /// Outcomes that the server has not noted yet, at most [`LIST_MAX`](crate::proto::frame::LIST_MAX).
    pub async fn outcomes(&self) -> Result<Vec<Outcome>, DbError> {
        self.worker.read(sql::outcomes).await
    }

    /// The server has noted these.
    pub async fn noted(&self, ids: Vec<MessageId>) -> Result<(), DbError> {
        self.worker.write(move |db| sql::forget_outcomes(db, &ids)).await
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
