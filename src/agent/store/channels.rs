//! Registrations of apps that speak UnifiedPush: each is a Web Push channel, which is an app as the
//! others are, and knows beside it who is to be told what.
//!
//! What a connector has still to be told is on disk until it has answered, so that no end of the
//! daemon loses it: an endpoint that it was not told since it last registered, or the end of its
//! registration. A token belongs to the service that registered it first, as long as it lives.

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};
use zbus::names::OwnedBusName;

use super::apps::{self, Claim, Owner};
use super::schema::{Result, text};
pub use super::token::{NoToken, Token};
use super::{Hop, Store, Unread, history, messages};
use crate::agent::config::Limits;
use crate::db::DbError;
use crate::proto::channel::SenderHash;
use crate::proto::frame::Refusal;
use crate::proto::wishes::Wish;
use crate::proto::{AppId, Channel};
use crate::world;

/// Most ended registrations of which the app has not been told yet; beyond it the oldest is forgotten.
const FAREWELLS_MAX: u32 = 128;

/// The version of the interfaces that an app registered with, in which it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// `Distributor1` and `Connector1`.
    V1,
    /// `Distributor2` and `Connector2`.
    V2,
}

/// Whose doing the end of a registration was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Farewell {
    /// The app asked for it.
    Asked,
    /// The user's or the server's.
    Revoked,
}

/// What an app has still to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Where application servers send to it.
    NewEndpoint(String),
    /// Its registration has ended.
    Unregistered(Farewell),
}

/// A registration, as who tells and delivers needs it.
#[derive(Clone, Debug, PartialEq)]
pub struct Registration {
    /// What the app calls it.
    pub token: Token,
    /// Its channel.
    pub app: AppId,
    /// The app's name on the bus.
    pub service: OwnedBusName,
    /// How the app is called.
    pub version: Version,
    /// How often it was registered.
    pub asked: i64,
    /// Whether the app may be started for what there is.
    pub launch: bool,
    /// Whether the user has switched it on.
    pub enabled: bool,
    /// What comes before its messages.
    pub news: Option<News>,
}

/// The app that a Web Push channel is for, as people are told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its name on the bus.
    pub service: OwnedBusName,
    /// What the channel is for, in the app's words.
    pub description: String,
    /// Why the server gives it no endpoint for now.
    pub refused: Option<String>,
}

/// Who asks for a registration.
#[derive(Clone, Debug)]
pub struct Enter {
    /// What the app calls it.
    pub token: Token,
    /// The app's name on the bus.
    pub service: OwnedBusName,
    /// The version that it speaks.
    pub version: Version,
    /// What it is for.
    pub description: String,
    /// The only application server that may send to it.
    pub sender: Option<SenderHash>,
    /// The caller.
    pub owner: Owner,
    /// A file of the app on this device, empty if only the bus knows it.
    pub installed: Option<String>,
    /// The bus, if the service lives no longer than a connection to it.
    pub bus: Option<String>,
}

/// What becomes of who asks for a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entered {
    /// It has this channel.
    Accepted {
        /// The channel.
        app: AppId,
        /// The server has to be asked for it.
        register: bool,
        /// The channel that it had until now, which ends.
        replaced: Option<AppId>,
    },
    /// The token is another service's.
    OfAnother,
    /// The user has switched it off.
    Disabled,
    /// There are too many registrations.
    TooMany,
}

/// A registration of an app without a name of its own: it ends with the app's connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// What the app calls it.
    pub token: Token,
    /// The name of the connection.
    pub service: OwnedBusName,
    /// The bus that gave the name.
    pub bus: Option<String>,
}

impl Store {
    /// Enters a registration, or one that is known already once more. Before that an app goes that has
    /// nothing here and is not `connected`, if there are too many.
    pub async fn enter(
        &self,
        enter: Enter,
        connected: impl Fn(&AppId) -> bool + Send + 'static,
    ) -> Result<Entered, DbError> {
        let limits = self.limits;
        self.worker.write(move |db| enter_one(db, &enter, limits, &connected)).await
    }

    /// The registration of this token.
    pub async fn registration(&self, token: Token) -> Result<Option<Registration>, DbError> {
        self.worker.read(move |db| find(db, &token)).await
    }

    /// The registrations whose app has something to be told or to be handed, each with its channel.
    pub async fn waiting_registrations(&self) -> Result<Vec<(Token, AppId)>, DbError> {
        self.worker.read(waiting).await
    }

    /// The registrations that end with a connection to the bus.
    pub async fn guests(&self) -> Result<Vec<Guest>, DbError> {
        self.worker.read(guests).await
    }

    /// The app knows this endpoint, unless it has registered again since it was `asked` so often.
    pub async fn endpoint_told(&self, token: Token, asked: i64, endpoint: String) -> Result<(), DbError> {
        self.worker
            .write(move |db| {
                db.prepare_cached("UPDATE channels SET told = ?3 WHERE token = ?1 AND asked = ?2")?
                    .execute(params![token.as_str(), asked, endpoint])
                    .map(drop)
            })
            .await
    }

    /// The app knows that its registration with this channel has ended.
    pub async fn farewell_said(&self, token: Token, app: AppId) -> Result<(), DbError> {
        self.worker.write(move |db| said_farewell(db, &token, &app)).await
    }

    /// The app ends its registration. What the user has switched off stays so.
    pub async fn leave(&self, app: AppId) -> Result<(), DbError> {
        self.worker
            .write(move |db| {
                end(db, &app, Farewell::Asked)?;
                if apps::find(db, &app)?.is_some_and(|row| row.switches.enabled) {
                    apps::uninstall(db, &app)?;
                }
                Ok(())
            })
            .await
    }

    /// Ends the registration of a channel without a word, as nobody knows it; not if it was registered
    /// again since it was `asked` so often, if that matters. Whether it was ended.
    pub async fn dismiss(&self, app: AppId, asked: Option<i64>) -> Result<bool, DbError> {
        self.worker
            .write(move |db| {
                let ended = "DELETE FROM channels WHERE app = ?1 AND asked = coalesce(?2, asked)";
                if db.execute(ended, params![app.as_str(), asked])? == 0 {
                    return Ok(false);
                }
                apps::uninstall(db, &app)?;
                Ok(true)
            })
            .await
    }

    /// Ends the registrations of all channels that the user has not switched off, as nobody serves
    /// their apps any more; returns how many.
    pub async fn end_channels(&self) -> Result<usize, DbError> {
        self.worker
            .write(|db| {
                let served: Vec<AppId> = db
                    .prepare_cached(
                        "SELECT c.app FROM channels c JOIN apps a ON a.app = c.app WHERE NOT gone AND enabled",
                    )?
                    .query_map([], |row| text(row, 0))?
                    .collect::<Result<_>>()?;
                served.iter().try_for_each(|app| apps::uninstall(db, app))?;
                Ok(served.len())
            })
            .await
    }

    /// The app does not take this message, for this reason, and is not asked again.
    pub async fn given_up(&self, unread: &Unread, why: String) -> Result<(), DbError> {
        let (place, id) = (unread.place, unread.push.id);
        self.worker
            .write(move |db| {
                messages::unqueue(db, place, id)?;
                history::add(db, id, Hop::Dropped, Some(&why), world::now())
            })
            .await
    }

    /// The channels that the server refused to register: a later session may have it otherwise.
    pub async fn refused_channels(&self) -> Result<Vec<AppId>, DbError> {
        self.worker
            .read(|db| {
                db.prepare_cached(
                    "SELECT c.app FROM channels c JOIN apps a ON a.app = c.app AND NOT gone AND enabled
                     WHERE refused IS NOT NULL AND farewell IS NULL",
                )?
                .query_map([], |row| text(row, 0))?
                .collect()
            })
            .await
    }
}

/// The app of this channel is to be told that its registration has ended, if there is such an app and
/// it is not to be told already.
pub(super) fn end(db: &Connection, app: &AppId, farewell: Farewell) -> Result<()> {
    let name = match farewell {
        Farewell::Asked => "asked",
        Farewell::Revoked => "revoked",
    };
    db.execute(
        "UPDATE channels SET farewell = ?2, told = NULL, refused = NULL,
             launch = coalesce((SELECT launch FROM apps a WHERE a.app = ?1), launch)
         WHERE app = ?1 AND farewell IS NULL",
        params![app.as_str(), name],
    )?;
    db.execute(
        "DELETE FROM channels WHERE place IN (
             SELECT place FROM channels WHERE farewell IS NOT NULL ORDER BY place DESC LIMIT -1 OFFSET ?1)",
        [FAREWELLS_MAX],
    )?;
    Ok(())
}

/// The user allows this channel again; `false` if it is none.
pub(super) fn revive(db: &Connection, app: &AppId) -> Result<bool> {
    let revived = db.execute("UPDATE channels SET farewell = NULL, told = NULL WHERE app = ?1", [app.as_str()])?;
    Ok(revived > 0)
}

/// The server has refused, or given, what this channel asks for; `false` if it is none.
pub(super) fn set_refused(db: &Connection, app: &AppId, refusal: Option<Refusal>) -> Result<bool> {
    let why = refusal.map(|refusal| refusal.to_string());
    let noted =
        db.execute("UPDATE channels SET refused = ?2 WHERE app = ?1 AND farewell IS NULL", params![app.as_str(), why])?;
    Ok(noted > 0)
}

/// Whether this is the channel of an app.
pub(super) fn is_one(db: &Connection, app: &AppId) -> Result<bool> {
    db.prepare_cached("SELECT count(*) > 0 FROM channels WHERE app = ?1")?.query_row([app.as_str()], |row| row.get(0))
}

/// The columns of a [`Client`], for a row of `apps`.
pub(super) const CLIENT: &str = "(SELECT service FROM channels c WHERE c.app = apps.app),
    (SELECT description FROM channels c WHERE c.app = apps.app),
    (SELECT refused FROM channels c WHERE c.app = apps.app)";

/// The client in the columns that begin with this one.
pub(super) fn client(row: &Row<'_>, first: usize) -> Result<Option<Client>> {
    if row.get::<_, Option<String>>(first)?.is_none() {
        return Ok(None);
    }
    Ok(Some(Client { service: bus_name(row, first)?, description: row.get(first + 1)?, refused: row.get(first + 2)? }))
}

/// What is known of a token that is asked for again.
struct Known {
    app: AppId,
    service: OwnedBusName,
    ended: bool,
    /// Whether the user has switched it on, as long as there is the channel.
    enabled: Option<bool>,
}

/// Which apps may not make room for others.
type Connected<'a> = &'a dyn Fn(&AppId) -> bool;

fn enter_one(db: &Connection, enter: &Enter, limits: Limits, connected: Connected<'_>) -> Result<Entered> {
    match known(db, &enter.token)? {
        Some(known) if known.service != enter.service => Ok(Entered::OfAnother),
        Some(Known { enabled: Some(false), .. }) => Ok(Entered::Disabled),
        Some(Known { ended: true, .. } | Known { enabled: None, .. }) | None => begin(db, enter, limits, connected),
        Some(known) if Channel::of(&known.app).and_then(|channel| channel.sender) == enter.sender => {
            again(db, enter, known.app)
        }
        Some(known) => exchange(db, enter, known.app, limits, connected),
    }
}

fn known(db: &Connection, token: &Token) -> Result<Option<Known>> {
    db.prepare_cached(
        "SELECT c.app, service, farewell IS NOT NULL, enabled
         FROM channels c LEFT JOIN apps a ON a.app = c.app AND NOT gone WHERE token = ?1",
    )?
    .query_row([token.as_str()], |row| {
        Ok(Known { app: text(row, 0)?, service: bus_name(row, 1)?, ended: row.get(2)?, enabled: row.get(3)? })
    })
    .optional()
}

/// A registration that there was not.
fn begin(db: &Connection, enter: &Enter, limits: Limits, connected: Connected<'_>) -> Result<Entered> {
    let (all, on): (u32, u32) = db.query_row(
        "SELECT count(*), coalesce(sum(enabled), 0) FROM channels c JOIN apps a ON a.app = c.app AND NOT gone
         WHERE service = ?1",
        [enter.service.as_str()],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    // An app that the user has switched off does not come back under another token.
    if all > 0 && on == 0 {
        return Ok(Entered::Disabled);
    }
    if all >= limits.channels_per_app {
        return Ok(Entered::TooMany);
    }
    let Some(app) = new_channel(db, enter, limits, connected)? else { return Ok(Entered::TooMany) };
    write(db, enter, &app)?;
    Ok(Entered::Accepted { app, register: true, replaced: None })
}

/// A registration that is known already.
fn again(db: &Connection, enter: &Enter, app: AppId) -> Result<Entered> {
    write(db, enter, &app)?;
    db.execute("UPDATE apps SET wish = 'register' WHERE app = ?1 AND reg_id IS NULL", [app.as_str()])?;
    let register = apps::find(db, &app)?.is_some_and(|row| row.wish == Some(Wish::Register));
    Ok(Entered::Accepted { app, register, replaced: None })
}

/// A registration for another application server: its channel is another, which takes over what the
/// app has not read.
fn exchange(db: &Connection, enter: &Enter, old: AppId, limits: Limits, connected: Connected<'_>) -> Result<Entered> {
    let Some(app) = new_channel(db, enter, limits, connected)? else { return Ok(Entered::TooMany) };
    db.execute(
        "UPDATE apps SET (alerts, launch, show_badge) = (SELECT alerts, launch, show_badge FROM apps WHERE app = ?2)
         WHERE app = ?1",
        [app.as_str(), old.as_str()],
    )?;
    write(db, enter, &app)?;
    db.execute(
        "UPDATE unread SET app = ?2, body = json_set(body, '$.app', ?2) WHERE app = ?1",
        [old.as_str(), app.as_str()],
    )?;
    apps::uninstall(db, &old)?;
    Ok(Entered::Accepted { app, register: true, replaced: Some(old) })
}

/// A channel as an app that wishes to be registered; `None` if there are too many apps.
fn new_channel(db: &Connection, enter: &Enter, limits: Limits, connected: Connected<'_>) -> Result<Option<AppId>> {
    let app = Channel { id: world::random_bytes(), sender: enter.sender }.app();
    let claim =
        Claim { app: app.clone(), owner: enter.owner.clone(), by_manifest: false, installed: enter.installed.clone() };
    if apps::give(db, &claim, limits.apps, connected)?.is_none() {
        return Ok(None);
    }
    apps::set_wish(db, &app, Some(Wish::Register))?;
    Ok(Some(app))
}

fn write(db: &Connection, enter: &Enter, app: &AppId) -> Result<()> {
    let version = match enter.version {
        Version::V1 => 1,
        Version::V2 => 2,
    };
    db.execute(
        "INSERT INTO channels (token, app, service, version, description, bus) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (token) DO UPDATE SET app = ?2, service = ?3, version = ?4, description = ?5, bus = ?6,
             asked = asked + 1, told = NULL, farewell = NULL, refused = NULL",
        params![enter.token.as_str(), app.as_str(), enter.service.as_str(), version, enter.description, enter.bus],
    )?;
    Ok(())
}

/// Whether the endpoint of the channel `a` is good and the app `c` does not know it. While the server
/// is asked for another one, the one before may be dead.
const ENDPOINT_DUE: &str = "farewell IS NULL AND enabled AND reg_id IS NOT NULL AND wish IS NULL
    AND endpoint IS NOT NULL AND told IS NOT endpoint";

fn find(db: &Connection, token: &Token) -> Result<Option<Registration>> {
    db.prepare_cached(&format!(
        "SELECT token, c.app, service, version, asked, coalesce(a.launch, c.launch), coalesce(enabled, 0), farewell,
                iif({ENDPOINT_DUE}, endpoint, NULL)
         FROM channels c LEFT JOIN apps a ON a.app = c.app AND NOT gone WHERE token = ?1"
    ))?
    .query_row([token.as_str()], from_row)
    .optional()
}

fn from_row(row: &Row<'_>) -> Result<Registration> {
    let (farewell, endpoint): (Option<String>, Option<String>) = (row.get(7)?, row.get(8)?);
    let farewell = farewell.map(|name| if name == "asked" { Farewell::Asked } else { Farewell::Revoked });
    Ok(Registration {
        token: token(row, 0)?,
        app: text(row, 1)?,
        service: bus_name(row, 2)?,
        version: if row.get::<_, u8>(3)? == 1 { Version::V1 } else { Version::V2 },
        asked: row.get(4)?,
        // To hear only what it did itself no app is started.
        launch: row.get(5)? && farewell != Some(Farewell::Asked),
        enabled: row.get(6)?,
        news: farewell.map(News::Unregistered).or(endpoint.map(News::NewEndpoint)),
    })
}

fn waiting(db: &Connection) -> Result<Vec<(Token, AppId)>> {
    db.prepare_cached(&format!(
        "SELECT token, c.app FROM channels c LEFT JOIN apps a ON a.app = c.app AND NOT gone
         WHERE farewell IS NOT NULL OR ({ENDPOINT_DUE})
             OR (enabled AND EXISTS (SELECT 1 FROM unread u WHERE u.app = c.app)) ORDER BY place"
    ))?
    .query_map([], |row| Ok((token(row, 0)?, text(row, 1)?)))?
    .collect()
}

fn guests(db: &Connection) -> Result<Vec<Guest>> {
    db.prepare_cached("SELECT token, service, bus FROM channels WHERE service LIKE ':%'")?
        .query_map([], |row| Ok(Guest { token: token(row, 0)?, service: bus_name(row, 1)?, bus: row.get(2)? }))?
        .collect()
}

/// One that the user has switched off is remembered, so that it stays off.
fn said_farewell(db: &Connection, token: &Token, app: &AppId) -> Result<()> {
    db.execute(
        "DELETE FROM channels WHERE token = ?1 AND app = ?2 AND farewell IS NOT NULL
             AND app NOT IN (SELECT app FROM apps WHERE NOT gone)",
        [token.as_str(), app.as_str()],
    )?;
    db.execute("UPDATE channels SET farewell = NULL WHERE token = ?1 AND app = ?2", [token.as_str(), app.as_str()])?;
    Ok(())
}

fn token(row: &Row<'_>, column: usize) -> Result<Token> {
    let text = row.get_ref(column)?.as_str()?;
    text.parse().map_err(|error: NoToken| no_text(column, error))
}

fn bus_name(row: &Row<'_>, column: usize) -> Result<OwnedBusName> {
    OwnedBusName::try_from(row.get::<_, String>(column)?).map_err(|error| no_text(column, error))
}

fn no_text(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, error.into())
}

#[cfg(test)]
#[path = "channels_tests.rs"]
mod tests;
