//! Receipts: what an application server is told of its messages, kept until it was told.
//!
//! A receipt is written in the transaction that ends the message's life on this server, so that
//! neither is without the other. Receipts of one app keep their order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::hooks::Action;
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::sql::{Result, app_in};
use super::{Store, confirmations, senders};
use crate::db::DbError;
use crate::proto::channel;
use crate::proto::message::ReceiptsTo;
use crate::proto::{AppId, MessageId, RegId, UnixMillis};

/// Most receipts that are told together.
pub const BATCH: u32 = 100;

/// What became of a message, as its sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The push service on the device has it.
    Stored,
    /// It will not get there.
    Failed,
    /// It has expired.
    Expired,
}

impl Verdict {
    fn number(self) -> u16 {
        match self {
            Self::Stored => 1000,
            Self::Failed => 1001,
            Self::Expired => 1002,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Stored => "Success",
            Self::Failed => "Failed",
            Self::Expired => "Expired",
        }
    }
}

/// A receipt as it is told. Names are those of the door's answers.
#[derive(Clone, Debug, Serialize)]
struct Receipt<'a> {
    #[serde(rename = "messageID")]
    id: MessageId,
    /// Not for senders of Web Push, who know the endpoint alone.
    #[serde(rename = "regID", skip_serializing_if = "Option::is_none")]
    reg_id: Option<RegId>,
    #[serde(rename = "requestID")]
    request_id: &'a str,
    #[serde(rename = "statusCode")]
    status_code: u16,
    #[serde(rename = "statusMsg")]
    status_msg: &'a str,
    time: i64,
    /// What senders of Web Push know the message by.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    /// The status code that RFC 8030 has for this.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
}

/// Receipts that wait to be told to an app's server, oldest first.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Where to.
    pub callback: Callback,
    /// Each a JSON object.
    pub receipts: Vec<String>,
    /// When the oldest was made.
    pub oldest_ms: UnixMillis,
    /// The last one's place.
    pub last: i64,
}

/// Where an app's receipts go, and what signs them.
#[derive(Clone, Debug)]
pub struct Callback {
    /// The URL.
    pub url: String,
    /// The key of the signature.
    pub key: Vec<u8>,
}

/// Says that receipts were made: those of callbacks, and the confirmations of Web Push.
#[derive(Clone, Debug, Default)]
pub(super) struct Hint {
    receipts: Arc<Flag>,
    confirmations: Arc<Flag>,
}

/// Rows were written into a table.
#[derive(Debug, Default)]
struct Flag {
    made: AtomicBool,
    told: Notify,
}

impl Flag {
    /// A batch has ended: what it made can be read.
    fn committed(&self) {
        if self.made.swap(false, Ordering::Relaxed) {
            self.told.notify_one();
        }
    }
}

impl Hint {
    /// A hint of what is written over this connection.
    pub fn of(connection: &mut Connection) -> Result<Self> {
        let hint = Self::default();
        let (receipts, confirmations) = (Arc::clone(&hint.receipts), Arc::clone(&hint.confirmations));
        connection.update_hook(Some(move |action, _: &str, table: &str, _| match (action, table) {
            (Action::SQLITE_INSERT, "receipts") => receipts.made.store(true, Ordering::Relaxed),
            (Action::SQLITE_INSERT, "confirmations") => confirmations.made.store(true, Ordering::Relaxed),
            _ => {}
        }))?;
        Ok(hint)
    }

    /// A batch has ended: what it made can be read.
    pub fn committed(&self) {
        self.receipts.committed();
        self.confirmations.committed();
    }

    /// Waits until confirmations have been made since this was last waited for.
    pub async fn confirmed(&self) {
        self.confirmations.told.notified().await;
    }
}

impl Store {
    /// Waits until receipts have been made since this was last waited for.
    pub async fn receipts_made(&self) {
        self.receipts.receipts.told.notified().await;
    }

    /// Sets or removes where the app's receipts go; `false` if there is no such app.
    pub async fn set_callback(&self, app: AppId, callback: Option<Callback>) -> Result<bool, DbError> {
        self.writer.write(move |db| set_callback(db, &app, callback.as_ref())).await
    }

    /// The apps that have receipts to be told.
    pub async fn apps_with_receipts(&self) -> Result<Vec<AppId>, DbError> {
        self.reader().read(apps).await
    }

    /// The oldest receipts of the app, at most [`BATCH`]; `None` if there is none or nowhere to
    /// tell them.
    pub async fn receipts(&self, app: AppId) -> Result<Option<Batch>, DbError> {
        self.reader().read(move |db| batch(db, &app)).await
    }

    /// The app's receipts that were made before this time are not told any more.
    pub async fn give_up_receipts(&self, app: AppId, before: UnixMillis) -> Result<(), DbError> {
        self.writer
            .write(move |db| {
                db.execute("DELETE FROM receipts WHERE app = ?1 AND made_ms < ?2", params![app.as_str(), before.0])
                    .map(drop)
            })
            .await
    }

    /// The app's receipts up to this place have been told.
    pub async fn told(&self, app: AppId, last: i64) -> Result<(), DbError> {
        self.writer.write(move |db| forget(db, &app, last)).await
    }
}

/// What a receipt needs of a stored push.
#[derive(Deserialize)]
struct Stub<'a> {
    id: MessageId,
    reg_id: RegId,
    #[serde(borrow, default)]
    request_id: Option<std::borrow::Cow<'a, str>>,
    #[serde(default)]
    receipt: bool,
    #[serde(default)]
    receipts_to: Option<ReceiptsTo>,
}

/// Notes what the sender of the push in `body` is to be told, if it wants to be told and has said where.
pub(super) fn add(db: &Connection, app: &str, body: &str, verdict: Verdict, now: UnixMillis) -> Result<()> {
    let by_callback = has_callback(db, app)?;
    // Most messages have nobody to tell: they are not read for it.
    if !by_callback && !channel::is_reserved(app) {
        return Ok(());
    }
    let stub: Stub<'_> = serde_json::from_str(body).map_err(super::sql::bad_body)?;
    if let Some(to) = &stub.receipts_to {
        return add_confirmation(db, &stub, to, verdict, now);
    }
    if !by_callback || !stub.receipt {
        return Ok(());
    }
    insert(db, app, &Receipt { reg_id: Some(stub.reg_id), ..Receipt::of(&stub, verdict, now) })
}

/// To the subscription, and to the callback of the app that goes by the sender's key.
fn add_confirmation(
    db: &Connection,
    stub: &Stub<'_>,
    to: &ReceiptsTo,
    verdict: Verdict,
    now: UnixMillis,
) -> Result<()> {
    confirmations::add(db, to, verdict, now)?;
    // Whose the key is now counts, not whose it was.
    let app = to.sender.map_or(Ok(None), |sender| senders::find(db, &sender))?;
    let Some(app) = app else { return Ok(()) };
    if !has_callback(db, app.as_str())? {
        return Ok(());
    }
    let (message, status) = (Some(&*to.message), Some(verdict.http_status()));
    insert(db, app.as_str(), &Receipt { message, status, ..Receipt::of(stub, verdict, now) })
}

impl<'a> Receipt<'a> {
    /// What every sender is told.
    fn of(stub: &'a Stub<'_>, verdict: Verdict, now: UnixMillis) -> Self {
        Self {
            id: stub.id,
            reg_id: None,
            request_id: stub.request_id.as_deref().map(|name| own_name(stub, name)).unwrap_or_default(),
            status_code: verdict.number(),
            status_msg: verdict.text(),
            time: now.0,
            message: None,
            status: None,
        }
    }
}

/// What the sender itself calls the message.
fn own_name<'a>(stub: &Stub<'_>, name: &'a str) -> &'a str {
    match (&stub.receipts_to, name.split_once('/')) {
        (Some(_), Some((_, own))) => own,
        _ => name,
    }
}

fn has_callback(db: &Connection, app: &str) -> Result<bool> {
    db.prepare_cached("SELECT EXISTS (SELECT 1 FROM apps WHERE app = ?1 AND callback_url IS NOT NULL)")?
        .query_row([app], |row| row.get(0))
}

fn insert(db: &Connection, app: &str, receipt: &Receipt<'_>) -> Result<()> {
    let text = serde_json::to_string(receipt).map_err(super::sql::bad_body)?;
    db.prepare_cached("INSERT INTO receipts (app, made_ms, body) VALUES (?1, ?2, ?3)")?.execute(params![
        app,
        receipt.time,
        text
    ])?;
    Ok(())
}

fn set_callback(db: &Connection, app: &AppId, callback: Option<&Callback>) -> Result<bool> {
    if callback.is_none() {
        db.execute("DELETE FROM receipts WHERE app = ?1", [app.as_str()])?;
    }
    let changed = db.execute(
        "UPDATE apps SET callback_url = ?2, callback_key = ?3 WHERE app = ?1",
        params![app.as_str(), callback.map(|callback| &callback.url), callback.map(|callback| &callback.key)],
    )?;
    Ok(changed > 0)
}

fn apps(db: &Connection) -> Result<Vec<AppId>> {
    // One look into the index for each app, however many receipts there are.
    db.prepare_cached(
        "SELECT app FROM apps WHERE callback_url IS NOT NULL
         AND EXISTS (SELECT 1 FROM receipts r WHERE r.app = apps.app)",
    )?
    .query_map([], |row| app_in(row, 0))?
    .collect()
}

fn batch(db: &Connection, app: &AppId) -> Result<Option<Batch>> {
    let callback = db
        .prepare_cached("SELECT callback_url, callback_key FROM apps WHERE app = ?1 AND callback_url IS NOT NULL")?
        .query_row([app.as_str()], |row| Ok(Callback { url: row.get(0)?, key: row.get(1)? }))
        .optional()?;
    let Some(callback) = callback else { return Ok(None) };
    let rows: Vec<(i64, i64, String)> = db
        .prepare_cached("SELECT place, made_ms, body FROM receipts WHERE app = ?1 ORDER BY place LIMIT ?2")?
        .query_map(params![app.as_str(), BATCH], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<Result<_>>()?;
    let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return Ok(None) };
    let (oldest_ms, last) = (UnixMillis(first.1), last.0);
    let receipts = rows.into_iter().map(|(_, _, body)| body).collect();
    Ok(Some(Batch { callback, receipts, oldest_ms, last }))
}

fn forget(db: &Connection, app: &AppId, last: i64) -> Result<()> {
    db.prepare_cached("DELETE FROM receipts WHERE app = ?1 AND place <= ?2")?.execute(params![app.as_str(), last])?;
    Ok(())
}
