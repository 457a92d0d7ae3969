//! Which app goes by which VAPID key: its callback is told of the messages that this key sends by Web Push.

use rusqlite::{Connection, OptionalExtension, params};

use super::Store;
use super::sql::{self, Result, app_in};
use crate::db::DbError;
use crate::proto::AppId;
use crate::proto::channel::{SenderHash, SenderKey};

/// What became of a key for an app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySet {
    /// The app goes by it, or by none, from now on.
    Done,
    /// There is no such app.
    NoApp,
    /// This one goes by it.
    Taken(AppId),
}

impl Store {
    /// Sets or removes the key that an app goes by.
    pub async fn set_vapid_key(&self, app: AppId, key: Option<SenderKey>) -> Result<KeySet, DbError> {
        self.writer.write(move |db| set(db, &app, key.as_ref())).await
    }
}

#[cfg(test)]
impl Store {
    /// The app that goes by this key.
    pub async fn app_of_sender(&self, sender: SenderHash) -> Result<Option<AppId>, DbError> {
        self.reader().read(move |db| find(db, &sender)).await
    }
}

fn set(db: &Connection, app: &AppId, key: Option<&SenderKey>) -> Result<KeySet> {
    if !sql::has_app(db, app)? {
        return Ok(KeySet::NoApp);
    }
    let hash = key.map(SenderKey::hash);
    let holder = hash.as_ref().map_or(Ok(None), |hash| find(db, hash))?;
    if let Some(other) = holder.filter(|holder| holder != app) {
        return Ok(KeySet::Taken(other));
    }
    db.execute(
        "UPDATE apps SET vapid_key = ?2, vapid_hash = ?3 WHERE app = ?1",
        params![app.as_str(), key.map(SenderKey::point), hash.map(|hash| hash.0)],
    )?;
    Ok(KeySet::Done)
}

/// The app that goes by this key.
pub(super) fn find(db: &Connection, sender: &SenderHash) -> Result<Option<AppId>> {
    db.prepare_cached("SELECT app FROM apps WHERE vapid_hash = ?1")?
        .query_row([sender.0], |row| app_in(row, 0))
        .optional()
}
