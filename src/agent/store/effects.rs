//! What messages have still to bring about, and the alerts that are on the screen.
//!
//! An effect is entered in the transaction that keeps its message, and removed in the one that
//! notes how it went. What is on record about it in between (the number of its notification, the
//! process that was started) makes carrying it out a second time the same as the first.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::Store;
use super::history::{self, Hop};
use super::schema::{Result, id, id_or_none, json, text};
use crate::agent::plan::{Effect, Manner};
use crate::db::DbError;
use crate::proto::{AppId, MessageId, Push, UnixMillis};
use crate::world;

/// Something that is still to be done for an app.
#[derive(Clone, Debug, PartialEq)]
pub struct Pending {
    /// Its place in the order of arrival.
    pub place: i64,
    /// The app.
    pub app: AppId,
    /// What is to be done.
    pub task: Task,
    /// The process that was started for it already, if one was.
    pub process: Option<String>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Task {
    /// Show this message's alert.
    Alert(Box<Push>),
    /// Start the app for this message.
    Launch(Manner, MessageId),
    /// The user clicked on this message's alert.
    Open {
        /// The newest message of the alert.
        id: MessageId,
        /// What lets the app put its window in front.
        token: Option<String>,
    },
    /// Start the app: its registration has ended.
    RegistrationChange,
}

/// An alert on the screen.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    /// The newest message it shows.
    pub id: MessageId,
    /// The app.
    pub app: AppId,
    /// Its number at the server that shows it.
    pub notification: u32,
    /// Who shows it.
    pub server: String,
    /// What a newer alert of the app replaces it by.
    pub topic: Option<String>,
    /// How many older messages it stands for.
    pub more: u32,
}

impl Store {
    /// Everything that is still to be done, oldest first. There is no more of it than unread
    /// messages and apps.
    pub async fn pending(&self) -> Result<Vec<Pending>, DbError> {
        self.worker.read(|db| pending(db, world::now())).await
    }

    /// The alerts on the screen whose messages are unread and may alert.
    pub async fn current_alerts(&self) -> Result<Vec<(Shown, Push)>, DbError> {
        self.worker.read(current_alerts).await
    }

    /// The alerts on the screen whose messages were read or have expired, or may not alert any more.
    pub async fn alerts_over(&self) -> Result<Vec<Shown>, DbError> {
        self.worker.read(alerts_over).await
    }

    /// When the next alert on the screen expires of those that have not.
    pub async fn next_alert_end(&self) -> Result<Option<UnixMillis>, DbError> {
        self.worker.read(next_alert_end).await
    }

    /// The alerts of an app at this server.
    pub async fn alerts_of(&self, app: AppId, server: &str) -> Result<Vec<Shown>, DbError> {
        let server = server.to_owned();
        self.worker.read(move |db| alerts_of(db, &app, &server)).await
    }

    /// The alert that has this number at this server.
    pub async fn alert_numbered(&self, server: &str, number: u32) -> Result<Option<Shown>, DbError> {
        let server = server.to_owned();
        self.worker.read(move |db| alert_numbered(db, &server, number)).await
    }

    /// The alert of this message, if this server shows it.
    pub async fn alert_at(&self, server: &str, id: MessageId) -> Result<Option<Shown>, DbError> {
        let server = server.to_owned();
        self.worker.read(move |db| alert_at(db, &server, id)).await
    }

    /// An alert is about to be shown. One of the same number is replaced.
    pub async fn showing(&self, alert: Shown) -> Result<(), DbError> {
        self.worker.write(move |db| put_shown(db, &alert)).await
    }

    /// The alert is on the screen: its effects at these places, each of a message, are done.
    pub async fn alerted(&self, alert: Shown, done: Vec<(i64, MessageId)>) -> Result<(), DbError> {
        self.worker
            .write(move |db| {
                put_shown(db, &alert)?;
                done.iter().try_for_each(|(place, id)| finish(db, *place, Some(*id), Hop::Alerted, None))
            })
            .await
    }

    /// The alert of this message could not be shown; the one that it was to replace still is.
    pub async fn not_alerted(
        &self,
        id: MessageId,
        replaced: Option<Shown>,
        done: Vec<(i64, MessageId)>,
        why: String,
    ) -> Result<(), DbError> {
        self.worker
            .write(move |db| {
                take_shown(db, id)?;
                replaced.iter().try_for_each(|alert| put_shown(db, alert))?;
                done.iter().try_for_each(|(place, id)| finish(db, *place, Some(*id), Hop::Failed, Some(&why)))
            })
            .await
    }

    /// The alert of this message is off the screen.
    pub async fn alert_closed(&self, id: MessageId) -> Result<(), DbError> {
        self.worker.write(move |db| take_shown(db, id).map(drop)).await
    }

    /// The user clicked on the alert of this message: its app is to be opened. `false` if there is
    /// no such alert.
    pub async fn alert_clicked(&self, id: MessageId, token: Option<String>) -> Result<bool, DbError> {
        self.worker
            .write(move |db| {
                let Some(app) = take_shown(db, id)? else { return Ok(false) };
                history::add(db, id, Hop::Opened, None, world::now())?;
                insert(db, &app, OPEN, Some(id), token.as_deref())?;
                Ok(true)
            })
            .await
    }

    /// This process is about to be started for the effect.
    pub async fn starting(&self, place: i64, process: String) -> Result<(), DbError> {
        self.worker
            .write(move |db| {
                db.execute("UPDATE effects SET process = ?2 WHERE place = ?1", params![place, process])?;
                Ok(())
            })
            .await
    }

    /// This became of starting an app, for all effects at these places: [`Hop::Launched`] or
    /// [`Hop::Failed`], and how or why.
    pub async fn started(&self, done: Vec<(i64, Option<MessageId>)>, hop: Hop, how: String) -> Result<(), DbError> {
        self.worker
            .write(move |db| done.iter().try_for_each(|(place, id)| finish(db, *place, *id, hop, Some(&how))))
            .await
    }
}

const ALERT: &str = "alert";
const LAUNCH: &str = "launch";
const BACKGROUND_LAUNCH: &str = "background-launch";
const OPEN: &str = "open";
const REGISTRATION_CHANGE: &str = "registration-change";

/// Enters what a message is to bring about.
pub(super) fn add(db: &Connection, push: &Push, effect: Effect) -> Result<()> {
    let kind = match effect {
        Effect::Alert => ALERT,
        Effect::Launch(Manner::Foreground) => LAUNCH,
        Effect::Launch(Manner::Background) => BACKGROUND_LAUNCH,
    };
    insert(db, &push.app, kind, Some(push.id), None)
}

/// The app is to be started because its registration has ended.
pub(super) fn add_registration_change(db: &Connection, app: &AppId) -> Result<()> {
    db.execute("DELETE FROM effects WHERE app = ?1 AND kind = ?2", [app.as_str(), REGISTRATION_CHANGE])?;
    insert(db, app, REGISTRATION_CHANGE, None, None)
}

fn insert(db: &Connection, app: &AppId, kind: &str, id: Option<MessageId>, token: Option<&str>) -> Result<()> {
    db.prepare_cached("INSERT INTO effects (app, kind, id, token) VALUES (?1, ?2, ?3, ?4)")?.execute(params![
        app.as_str(),
        kind,
        id.as_ref().map(MessageId::as_bytes),
        token
    ])?;
    Ok(())
}

/// The message is unread no longer: nothing is done for it any more but to open its app.
pub(super) fn remove(db: &Connection, id: MessageId) -> Result<()> {
    db.prepare_cached("DELETE FROM effects WHERE id = ?1 AND kind != ?2")?.execute(params![id.as_bytes(), OPEN])?;
    Ok(())
}

/// Nothing is done for the app any more.
pub(super) fn remove_all(db: &Connection, app: &AppId) -> Result<()> {
    db.execute("DELETE FROM effects WHERE app = ?1", [app.as_str()])?;
    Ok(())
}

/// Whether an alert of this message is on the screen.
pub(super) fn is_shown(db: &Connection, id: MessageId) -> Result<bool> {
    db.prepare_cached("SELECT EXISTS (SELECT 1 FROM alerts WHERE id = ?1)")?
        .query_row([id.as_bytes()], |row| row.get(0))
}

/// The effect is done. The message may have been read meanwhile, and the effect gone with it.
fn finish(db: &Connection, place: i64, id: Option<MessageId>, hop: Hop, why: Option<&str>) -> Result<()> {
    db.prepare_cached("DELETE FROM effects WHERE place = ?1")?.execute([place])?;
    match id {
        Some(id) => history::add(db, id, hop, why, world::now()),
        None => Ok(()),
    }
}

fn pending(db: &Connection, now: UnixMillis) -> Result<Vec<Pending>> {
    db.prepare_cached(
        "SELECT e.place, e.app, e.kind, e.id, e.token, e.process, u.body FROM effects e
         LEFT JOIN unread u ON u.id = e.id
         WHERE e.kind = ?1 OR e.id IS NULL OR u.expires_ms > ?2
         ORDER BY e.place",
    )?
    .query_map(params![OPEN, now.0], |row| {
        Ok(Pending { place: row.get(0)?, app: text(row, 1)?, task: task(row)?, process: row.get(5)? })
    })?
    .collect()
}

fn task(row: &Row<'_>) -> Result<Task> {
    let kind: String = row.get(2)?;
    Ok(match (kind.as_str(), id_or_none(row, 3)?) {
        (ALERT, Some(_)) => Task::Alert(Box::new(json(row, 6)?)),
        (LAUNCH, Some(id)) => Task::Launch(Manner::Foreground, id),
        (BACKGROUND_LAUNCH, Some(id)) => Task::Launch(Manner::Background, id),
        (OPEN, Some(id)) => Task::Open { id, token: row.get(4)? },
        // The only kind without a message.
        _ => Task::RegistrationChange,
    })
}

const COLUMNS: &str = "a.id, a.app, a.notification, a.server, a.topic, a.more";
/// The message `u` of an alert `a` is unread, and its app may alert.
const CURRENT: &str = "u.id = a.id AND u.expires_ms > ?1
    AND EXISTS (SELECT 1 FROM apps p WHERE p.app = a.app AND p.enabled AND p.alerts)";

fn current_alerts(db: &Connection) -> Result<Vec<(Shown, Push)>> {
    db.prepare_cached(&format!("SELECT {COLUMNS}, u.body FROM alerts a JOIN unread u ON {CURRENT} ORDER BY u.place"))?
        .query_map([world::now().0], |row| Ok((shown(row)?, json(row, 6)?)))?
        .collect()
}

fn alerts_over(db: &Connection) -> Result<Vec<Shown>> {
    db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM alerts a WHERE NOT EXISTS (SELECT 1 FROM unread u WHERE {CURRENT})"
    ))?
    .query_map([world::now().0], shown)?
    .collect()
}

fn next_alert_end(db: &Connection) -> Result<Option<UnixMillis>> {
    db.prepare_cached("SELECT min(u.expires_ms) FROM alerts a JOIN unread u ON u.id = a.id WHERE u.expires_ms > ?1")?
        .query_row([world::now().0], |row| Ok(row.get::<_, Option<i64>>(0)?.map(UnixMillis)))
}

fn alerts_of(db: &Connection, app: &AppId, server: &str) -> Result<Vec<Shown>> {
    db.prepare_cached(&format!("SELECT {COLUMNS} FROM alerts a WHERE a.app = ?1 AND a.server = ?2"))?
        .query_map([app.as_str(), server], shown)?
        .collect()
}

fn alert_numbered(db: &Connection, server: &str, number: u32) -> Result<Option<Shown>> {
    db.prepare_cached(&format!("SELECT {COLUMNS} FROM alerts a WHERE a.notification = ?1 AND a.server = ?2"))?
        .query_row(params![number, server], shown)
        .optional()
}

fn alert_at(db: &Connection, server: &str, id: MessageId) -> Result<Option<Shown>> {
    db.prepare_cached(&format!("SELECT {COLUMNS} FROM alerts a WHERE a.id = ?1 AND a.server = ?2"))?
        .query_row(params![id.as_bytes(), server], shown)
        .optional()
}

fn shown(row: &Row<'_>) -> Result<Shown> {
    Ok(Shown {
        id: id(row, 0)?,
        app: text(row, 1)?,
        notification: row.get(2)?,
        server: row.get(3)?,
        topic: row.get(4)?,
        more: row.get(5)?,
    })
}

fn put_shown(db: &Connection, alert: &Shown) -> Result<()> {
    let Shown { id, app, notification, server, topic, more } = alert;
    db.prepare_cached("DELETE FROM alerts WHERE notification = ?1 AND server = ?2")?
        .execute(params![notification, server])?;
    db.prepare_cached("INSERT OR REPLACE INTO alerts VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(params![
        id.as_bytes(),
        app.as_str(),
        notification,
        server,
        topic,
        more
    ])?;
    Ok(())
}

fn take_shown(db: &Connection, id: MessageId) -> Result<Option<AppId>> {
    db.prepare_cached("DELETE FROM alerts WHERE id = ?1 RETURNING app")?
        .query_row([id.as_bytes()], |row| text(row, 0))
        .optional()
}
