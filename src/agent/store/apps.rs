//! Apps as the device remembers them: whose they are, their registration, badge and switches.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::channels::{self, CLIENT, Client, Farewell};
use super::schema::{Result, parse, text};
use super::{Store, effects, messages, schema};
use crate::agent::plan::Settings;
use crate::db::DbError;
use crate::proto::field::BADGE_MAX;
use crate::proto::frame::Refusal;
use crate::proto::wishes::Wish;
use crate::proto::{AppId, MessageId, RegId};
use crate::world;

/// Most apps that have gone and of which the server has still to hear; beyond it the oldest is forgotten.
const GONE_MAX: u32 = 128;

/// Who an app belongs to, where no manifest says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The sandboxed app, if it is one.
    pub flatpak: Option<String>,
}

/// What the user has switched on for an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switches {
    /// It may be registered.
    pub enabled: bool,
    /// Its alerts are shown.
    pub alerts: bool,
    /// Messages may start it.
    pub launch: bool,
    /// It has a badge.
    pub badge: bool,
}

impl Switches {
    /// As the decision about a message takes them.
    pub fn settings(self, do_not_disturb: bool) -> Settings {
        Settings { alerts: self.alerts, launch: self.launch, badge: self.badge, do_not_disturb }
    }
}

/// Switches that are to be changed; those left out stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwitchTo {
    /// As in [`Switches`].
    pub enabled: Option<bool>,
    /// As in [`Switches`].
    pub alerts: Option<bool>,
    /// As in [`Switches`].
    pub launch: Option<bool>,
    /// As in [`Switches`].
    pub badge: Option<bool>,
}

impl SwitchTo {
    fn applied(self, to: Switches) -> Switches {
        Switches {
            enabled: self.enabled.unwrap_or(to.enabled),
            alerts: self.alerts.unwrap_or(to.alerts),
            launch: self.launch.unwrap_or(to.launch),
            badge: self.badge.unwrap_or(to.badge),
        }
    }
}

/// An app as the device knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct AppRow {
    /// Its id.
    pub app: AppId,
    /// Who claimed it first, or was given it by a manifest.
    pub owner: Owner,
    /// Its regId while it is registered.
    pub reg_id: Option<RegId>,
    /// Where application servers send to it, if it is a Web Push channel that has been registered.
    pub endpoint: Option<String>,
    /// What the server has still to be asked for.
    pub wish: Option<Wish>,
    /// Messages that wait for it.
    pub unread: u32,
    /// Its badge, 0 to 999.
    pub badge: u16,
    /// What the user allows it.
    pub switches: Switches,
    /// A file of it that was seen on this device, empty if only the bus knew it: if it goes, the app
    /// was uninstalled.
    pub installed: Option<String>,
    /// Why the daemon started it last, until it disconnects.
    pub launch: Option<Launch>,
    /// The app that it is for, if it is a Web Push channel.
    pub client: Option<Client>,
}

/// Why the daemon started an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launch {
    /// A message asked for it, or the user clicked on its alert.
    Notification(MessageId),
    /// Its registration ended without its doing.
    RegistrationChange,
}

impl Launch {
    /// As apps are told it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Notification(_) => "notification",
            Self::RegistrationChange => "registration_change",
        }
    }

    /// The message that caused it.
    pub fn message(self) -> Option<MessageId> {
        match self {
            Self::Notification(id) => Some(id),
            Self::RegistrationChange => None,
        }
    }
}

/// Who asks for an app.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The app.
    pub app: AppId,
    /// The caller.
    pub owner: Owner,
    /// A manifest gives the app to the caller, whoever had it before.
    pub by_manifest: bool,
    /// A file of the app on this device, empty if only the bus knows it.
    pub installed: Option<String>,
}

impl Store {
    /// The app, if it was ever claimed.
    pub async fn app(&self, app: AppId) -> Result<Option<AppRow>, DbError> {
        self.worker.read(move |db| find(db, &app)).await
    }

    /// All apps that were ever claimed and are still installed.
    pub async fn apps(&self) -> Result<Vec<AppRow>, DbError> {
        self.worker.read(all).await
    }

    /// Gives the app to the caller if it is nobody's or a manifest says so; returns the app, whose
    /// owner may be another, or `None` if there are too many. Before that an app goes that has
    /// nothing here and is not `connected`.
    pub async fn claim(
        &self,
        claim: Claim,
        connected: impl Fn(&AppId) -> bool + Send + 'static,
    ) -> Result<Option<AppRow>, DbError> {
        let limit = self.limits.apps;
        self.worker.write(move |db| give(db, &claim, limit, &connected)).await
    }

    /// The app has connected.
    pub async fn came(&self, app: AppId) -> Result<(), DbError> {
        self.worker.write(move |db| set_connected(db, &app, true)).await
    }

    /// The apps that were connected when the daemon ended.
    pub async fn connected_before(&self) -> Result<Vec<AppId>, DbError> {
        self.worker
            .read(|db| {
                db.prepare_cached("SELECT app FROM apps WHERE connected")?.query_map([], |row| text(row, 0))?.collect()
            })
            .await
    }

    /// What the server has still to be asked for.
    pub async fn wishes(&self) -> Result<Vec<(AppId, Wish)>, DbError> {
        self.worker.read(wishes).await
    }

    /// Notes what the server is to be asked for.
    pub async fn wish(&self, app: AppId, wish: Option<Wish>) -> Result<(), DbError> {
        self.worker.write(move |db| set_wish(db, &app, wish)).await
    }

    /// The app has this regId and endpoint; a wish for it is fulfilled, a newer one stands.
    pub async fn registered(&self, app: AppId, reg_id: RegId, endpoint: Option<String>) -> Result<(), DbError> {
        self.worker
            .write(move |db| {
                set_reg_id(db, &app, Some(reg_id), Wish::Register)?;
                channels::set_refused(db, &app, None)?;
                db.execute("UPDATE apps SET endpoint = ?2 WHERE app = ?1", params![app.as_str(), endpoint]).map(drop)
            })
            .await
    }

    /// The server gives the app no regId: it has none, and asks for none; a newer wish stands. A channel
    /// that is wanted goes on asking, as its app has been told that it is registered.
    pub async fn registration_refused(&self, app: AppId, refusal: Refusal) -> Result<(), DbError> {
        self.worker
            .write(move |db| {
                set_reg_id(db, &app, None, Wish::Register)?;
                if channels::set_refused(db, &app, Some(refusal))? {
                    db.execute(
                        "UPDATE apps SET wish = 'register' WHERE app = ?1 AND wish IS NULL AND enabled AND NOT gone",
                        [app.as_str()],
                    )?;
                }
                forget_if_gone(db, &app)
            })
            .await
    }

    /// The app's registration has ended; a wish for that is fulfilled, a newer one stands. An app
    /// that was uninstalled is forgotten.
    pub async fn deregistered(&self, app: AppId) -> Result<(), DbError> {
        self.worker
            .write(move |db| {
                set_reg_id(db, &app, None, Wish::Deregister)?;
                forget_if_gone(db, &app)
            })
            .await
    }

    /// The server has ended the app's registration. The server is to be told that the device
    /// knows, and the app to be started so that it registers anew. A channel is gone with it.
    pub async fn registration_lost(&self, app: AppId) -> Result<(), DbError> {
        self.worker
            .write(move |db| {
                let enabled = find(db, &app)?.is_some_and(|row| row.switches.enabled);
                if enabled && channels::is_one(db, &app)? {
                    return uninstall(db, &app);
                }
                set_reg_id(db, &app, None, Wish::Deregister)?;
                set_wish(db, &app, Some(Wish::Deregister))?;
                if channels::is_one(db, &app)? { Ok(()) } else { effects::add_registration_change(db, &app) }
            })
            .await
    }

    /// Sets the app's badge, at most 999, as the app itself wants it. `false` if the user has
    /// switched off its badge.
    pub async fn set_badge(&self, app: AppId, count: u32) -> Result<bool, DbError> {
        let count = u16::try_from(count).unwrap_or(BADGE_MAX).min(BADGE_MAX);
        self.worker
            .write(move |db| {
                let changed = db
                    .prepare_cached("UPDATE apps SET badge = ?2 WHERE app = ?1 AND show_badge")?
                    .execute(params![app.as_str(), count])?;
                Ok(changed > 0)
            })
            .await
    }

    /// Changes what the user allows an app. An app that is disabled is deregistered; one that is
    /// enabled again is to be told to register. Returns what it was and what it is, if there is such
    /// an app.
    pub async fn switch(&self, app: AppId, to: SwitchTo) -> Result<Option<(Switches, Switches)>, DbError> {
        self.worker.write(move |db| switch(db, &app, to)).await
    }

    /// The app was uninstalled, or is to be forgotten: its messages go, and it is deregistered.
    pub async fn uninstalled(&self, app: AppId) -> Result<(), DbError> {
        self.worker.write(move |db| uninstall(db, &app)).await
    }

    /// The daemon is about to start the app for this reason, or did not start it.
    pub async fn launching(&self, app: AppId, launch: Option<Launch>) -> Result<(), DbError> {
        self.worker.write(move |db| set_launch(db, &app, launch)).await
    }
}

const COLUMNS: &str = "app, uid, flatpak, reg_id, wish, (SELECT count(*) FROM unread u WHERE u.app = apps.app),
    badge, enabled, alerts, launch, show_badge, installed, launch_type, launch_id, endpoint";
/// The number of columns above.
const CLIENT_AT: usize = 15;

pub(super) fn find(db: &Connection, app: &AppId) -> Result<Option<AppRow>> {
    db.prepare_cached(&format!("SELECT {COLUMNS}, {CLIENT} FROM apps WHERE app = ?1 AND NOT gone"))?
        .query_row([app.as_str()], from_row)
        .optional()
}

fn all(db: &Connection) -> Result<Vec<AppRow>> {
    db.prepare_cached(&format!("SELECT {COLUMNS}, {CLIENT} FROM apps WHERE NOT gone ORDER BY app"))?
        .query_map([], from_row)?
        .collect()
}

/// Apps that were uninstalled are among them: the server has still to hear of it.
fn wishes(db: &Connection) -> Result<Vec<(AppId, Wish)>> {
    let wish = |row: &Row<'_>| Ok((text(row, 0)?, wish_named(row.get_ref(1)?.as_str()?)));
    db.prepare_cached("SELECT app, wish FROM apps WHERE wish IS NOT NULL")?.query_map([], wish)?.collect()
}

fn from_row(row: &Row<'_>) -> Result<AppRow> {
    let reg_id: Option<String> = row.get(3)?;
    let wish: Option<String> = row.get(4)?;
    Ok(AppRow {
        app: text(row, 0)?,
        owner: Owner { uid: row.get(1)?, flatpak: row.get(2)? },
        reg_id: reg_id.as_deref().map(parse).transpose()?,
        wish: wish.as_deref().map(wish_named),
        unread: row.get(5)?,
        badge: row.get(6)?,
        switches: Switches { enabled: row.get(7)?, alerts: row.get(8)?, launch: row.get(9)?, badge: row.get(10)? },
        installed: row.get(11)?,
        launch: launch_of(row)?,
        endpoint: row.get(14)?,
        client: channels::client(row, CLIENT_AT)?,
    })
}

fn launch_of(row: &Row<'_>) -> Result<Option<Launch>> {
    let (kind, id): (Option<String>, _) = (row.get(12)?, schema::id_or_none(row, 13)?);
    Ok(kind.map(|_| id.map_or(Launch::RegistrationChange, Launch::Notification)))
}

fn wish_name(wish: Wish) -> &'static str {
    match wish {
        Wish::Register => "register",
        Wish::Deregister => "deregister",
    }
}

fn wish_named(name: &str) -> Wish {
    if name == "register" { Wish::Register } else { Wish::Deregister }
}

pub(super) fn give(
    db: &Connection,
    claim: &Claim,
    limit: u32,
    connected: &dyn Fn(&AppId) -> bool,
) -> Result<Option<AppRow>> {
    let Claim { app, owner, by_manifest, installed } = claim;
    let Some(row) = find(db, app)? else { return insert(db, claim, limit, connected) };
    let seen = installed.as_ref().or(row.installed.as_ref());
    if (*by_manifest && row.owner != *owner) || seen != row.installed.as_ref() {
        let owner = if *by_manifest { owner } else { &row.owner };
        db.execute(
            "UPDATE apps SET uid = ?2, flatpak = ?3, installed = ?4 WHERE app = ?1",
            params![app.as_str(), owner.uid, owner.flatpak, seen],
        )?;
    }
    find(db, app)
}

/// Enters an app that is nobody's: it is new, or was uninstalled and the server has still to hear
/// of that.
fn insert(db: &Connection, claim: &Claim, limit: u32, connected: &dyn Fn(&AppId) -> bool) -> Result<Option<AppRow>> {
    let Claim { app, owner, installed, .. } = claim;
    let others: u32 =
        db.query_row("SELECT count(*) FROM apps WHERE app != ?1 AND NOT gone", [app.as_str()], |row| row.get(0))?;
    if others >= limit && !make_room(db, connected)? {
        return Ok(None);
    }
    db.execute(
        "INSERT INTO apps (app, uid, flatpak, installed) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (app) DO UPDATE SET uid = ?2, flatpak = ?3, installed = ?4, gone = 0, enabled = 1, alerts = 1,
             launch = 1, show_badge = 1, badge = 0, launch_type = NULL, launch_id = NULL",
        params![app.as_str(), owner.uid, owner.flatpak, installed],
    )?;
    find(db, app)
}

/// Forgets an app that has nothing here; `false` if there is none.
fn make_room(db: &Connection, connected: &dyn Fn(&AppId) -> bool) -> Result<bool> {
    let idle: Vec<AppId> = db
        .prepare_cached(
            "SELECT app FROM apps WHERE reg_id IS NULL AND wish IS NULL AND badge = 0 AND enabled
             AND NOT gone AND app NOT IN (SELECT app FROM unread)",
        )?
        .query_map([], |row| text(row, 0))?
        .collect::<Result<_>>()?;
    let Some(app) = idle.iter().find(|app| !connected(app)) else { return Ok(false) };
    db.execute("DELETE FROM apps WHERE app = ?1", [app.as_str()])?;
    Ok(true)
}

pub(super) fn set_connected(db: &Connection, app: &AppId, connected: bool) -> Result<()> {
    db.prepare_cached("UPDATE apps SET connected = ?2 WHERE app = ?1 AND connected != ?2")?
        .execute(params![app.as_str(), connected])?;
    Ok(())
}

pub(super) fn set_wish(db: &Connection, app: &AppId, wish: Option<Wish>) -> Result<()> {
    db.execute("UPDATE apps SET wish = ?2 WHERE app = ?1", params![app.as_str(), wish.map(wish_name)])?;
    Ok(())
}

fn set_reg_id(db: &Connection, app: &AppId, reg_id: Option<RegId>, fulfilled: Wish) -> Result<()> {
    let reg_id = reg_id.map(|reg_id| reg_id.to_string());
    db.execute(
        "UPDATE apps SET reg_id = ?2, wish = nullif(wish, ?3) WHERE app = ?1",
        params![app.as_str(), reg_id, wish_name(fulfilled)],
    )?;
    Ok(())
}

/// Wishes for all registrations anew. Returns their apps.
pub fn renew_all(db: &Connection) -> Result<Vec<AppId>> {
    db.prepare_cached(
        "UPDATE apps SET wish = 'register'
         WHERE reg_id IS NOT NULL AND wish IS NOT 'deregister' RETURNING app",
    )?
    .query_map([], |row| text(row, 0))?
    .collect()
}

/// Asks for the end of the app's registration, if there is or may be one.
fn end_registration(db: &Connection, app: &AppId) -> Result<()> {
    db.execute(
        "UPDATE apps SET wish = 'deregister' WHERE app = ?1 AND (reg_id IS NOT NULL OR wish IS NOT NULL)",
        [app.as_str()],
    )?;
    Ok(())
}

fn switch(db: &Connection, app: &AppId, to: SwitchTo) -> Result<Option<(Switches, Switches)>> {
    let Some(from) = find(db, app)?.map(|row| row.switches) else { return Ok(None) };
    let to = to.applied(from);
    db.execute(
        "UPDATE apps SET enabled = ?2, alerts = ?3, launch = ?4, show_badge = ?5, badge = iif(?5, badge, 0)
         WHERE app = ?1",
        params![app.as_str(), to.enabled, to.alerts, to.launch, to.badge],
    )?;
    match (from.enabled, to.enabled) {
        (true, false) => {
            end_registration(db, app)?;
            effects::remove_all(db, app)?;
            channels::end(db, app, Farewell::Revoked)?;
        }
        (false, true) if channels::revive(db, app)? => set_wish(db, app, Some(Wish::Register))?,
        (false, true) => effects::add_registration_change(db, app)?,
        (true, true) | (false, false) => {}
    }
    Ok(Some((from, to)))
}

pub(super) fn uninstall(db: &Connection, app: &AppId) -> Result<()> {
    messages::remove_all(db, app, world::now())?;
    effects::remove_all(db, app)?;
    end_registration(db, app)?;
    db.execute(
        "UPDATE apps SET gone = (SELECT 1 + max(gone) FROM apps), badge = 0 WHERE app = ?1 AND NOT gone",
        [app.as_str()],
    )?;
    channels::end(db, app, Farewell::Revoked)?;
    forget_if_gone(db, app)?;
    forget_oldest_gone(db)
}

/// What the server has of an app that is forgotten here ends when it next sends for it.
fn forget_oldest_gone(db: &Connection) -> Result<()> {
    db.execute(
        "DELETE FROM apps WHERE app IN (SELECT app FROM apps WHERE gone ORDER BY gone DESC LIMIT -1 OFFSET ?1)",
        [GONE_MAX],
    )?;
    Ok(())
}

fn forget_if_gone(db: &Connection, app: &AppId) -> Result<()> {
    db.execute("DELETE FROM apps WHERE app = ?1 AND gone AND reg_id IS NULL AND wish IS NULL", [app.as_str()])?;
    Ok(())
}

pub(super) fn set_launch(db: &Connection, app: &AppId, launch: Option<Launch>) -> Result<()> {
    let id = launch.and_then(Launch::message);
    // An app that comes and goes by itself writes nothing.
    db.prepare_cached(
        "UPDATE apps SET launch_type = ?2, launch_id = ?3 WHERE app = ?1 AND (launch_type IS NOT ?2 OR launch_id IS NOT ?3)",
    )?
    .execute(params![
        app.as_str(),
        launch.map(Launch::name),
        id.as_ref().map(MessageId::as_bytes)
    ])?;
    Ok(())
}

pub(super) fn set_badge(db: &Connection, app: &AppId, badge: u16) -> Result<()> {
    db.prepare_cached("UPDATE apps SET badge = ?2 WHERE app = ?1")?.execute(params![app.as_str(), badge])?;
    Ok(())
}
