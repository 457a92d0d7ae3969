//! What the device remembers: who it is, its apps and their regIds, unread messages, what they have
//! still to bring about, the ids it has seen, and outcomes that the server has not noted yet.
//!
//! * `schema`: tables, facts, columns; [`apps`], [`channels`], [`messages`], [`effects`], [`history`],
//!   [`outcomes`], [`networks`]: what the store does, each beside its SQL.
//!
//! Duplicates end here, by message id. [`Store::receive`] returns when the pushes are on disk; only
//! then may they be acknowledged. Every queue has a limit; what goes over it is counted.

pub mod apps;
pub mod channels;
pub mod effects;
pub mod history;
pub mod messages;
pub mod networks;
pub mod outcomes;
mod schema;
mod token;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use crate::db::{self, DbError, Worker};
use crate::proto::{AppId, DeviceId, Secret};

use super::config::Limits;

pub use apps::{AppRow, Claim, Launch, Owner, SwitchTo, Switches};
pub use effects::{Pending, Shown, Task};
pub use history::{Hop, Life};
pub use messages::{Changes, Presence, Received, Unread};

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
    /// The last outcome that the server may have been told.
    last_outcome: Arc<AtomicI64>,
}

/// The user wants to be left alone.
const DO_NOT_DISTURB: &str = "do not disturb";
/// The gateway whose server has the registrations.
const REGISTERED_AT: &str = "gateway of the registrations";

impl Store {
    /// Opens or makes the store; the first start makes the device's identity, which is on disk
    /// before anybody hears of it.
    pub fn open(path: &Path, limits: Limits) -> Result<(Self, Credentials), DbError> {
        let connection = db::open(path, schema::MIGRATIONS)?;
        let credentials = schema::credentials(&connection)?;
        let last_place = messages::last_place(&connection)?;
        let worker = Worker::start("store", connection).map_err(|error| DbError::Failed(error.to_string()))?;
        Ok((Self { worker, limits, last_place, last_outcome: Arc::default() }, credentials))
    }

    /// The gateway that the server at the `configured` one told the device to use.
    pub async fn gateway(&self, configured: &str) -> Result<Option<String>, DbError> {
        let name = format!("gateway instead of {configured}");
        self.worker.read(move |db| schema::fact(db, &name)).await
    }

    /// Remembers the gateway to use instead of the `configured` one.
    pub async fn set_gateway(&self, configured: &str, gateway: String) -> Result<(), DbError> {
        let name = format!("gateway instead of {configured}");
        self.worker.write(move |db| schema::set_fact(db, &name, &gateway)).await
    }

    /// The links that the server at the `configured` gateway offered.
    pub async fn links(&self, configured: &str) -> Result<Vec<String>, DbError> {
        let name = links_of(configured);
        let stored = self.worker.read(move |db| schema::fact(db, &name)).await?;
        // One that cannot be read is offered again with the next greeting.
        Ok(stored.and_then(|links| serde_json::from_str(&links).ok()).unwrap_or_default())
    }

    /// Remembers the links that the server at the `configured` gateway offers.
    pub async fn set_links(&self, configured: &str, links: &[String]) -> Result<(), DbError> {
        let (name, links) = (links_of(configured), serde_json::json!(links).to_string());
        self.worker.write(move |db| schema::set_fact(db, &name, &links)).await
    }

    /// A session with the server at this gateway has begun. If the device was `enrolled` in it, or
    /// was with the server of another gateway before, this one may know none of the registrations: all are
    /// wished for anew, and what comes for the old ones until then is not refused. Returns their apps.
    pub async fn renew(&self, gateway: &str, enrolled: bool) -> Result<Vec<AppId>, DbError> {
        let before = self.worker.read(|db| schema::fact(db, REGISTERED_AT)).await?;
        let moved = before.as_deref().is_some_and(|before| before != gateway);
        if before.is_some() && !moved && !enrolled {
            return Ok(Vec::new());
        }
        let gateway = gateway.to_owned();
        self.worker
            .write(move |db| {
                schema::set_fact(db, REGISTERED_AT, &gateway)?;
                if moved || enrolled { apps::renew_all(db) } else { Ok(Vec::new()) }
            })
            .await
    }

    /// Whether the user wants to be left alone.
    pub async fn do_not_disturb(&self) -> Result<bool, DbError> {
        self.worker.read(do_not_disturb).await
    }

    /// Remembers whether the user wants to be left alone.
    pub async fn set_do_not_disturb(&self, on: bool) -> Result<(), DbError> {
        self.worker.write(move |db| schema::set_fact(db, DO_NOT_DISTURB, if on { "yes" } else { "no" })).await
    }
}

fn links_of(configured: &str) -> String {
    format!("links of {configured}")
}

fn do_not_disturb(db: &rusqlite::Connection) -> schema::Result<bool> {
    Ok(schema::fact(db, DO_NOT_DISTURB)?.as_deref() == Some("yes"))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
