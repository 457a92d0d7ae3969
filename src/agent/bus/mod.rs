//! The agent on D-Bus: name, objects, and who is calling.
//!
//! * [`push`]: `org.bellwire.Push1`, for apps.
//! * [`manager`]: `org.bellwire.Manager1`, for status and settings.
//! * [`message`], [`mod@error`]: what both say; `polkit`: who else may manage.
//!
//! Who calls is taken from the bus, never from an argument. An app id belongs to whom its manifest
//! names or, on a session's bus, to who claimed it first; and, while it is connected, to the
//! connection that has it.

pub mod error;
pub mod manager;
pub mod message;
mod polkit;
pub mod push;

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, watch};
use tracing::{debug, error};
use zbus::fdo::{DBusProxy, RequestNameFlags};
use zbus::message::Header;
use zbus::names::{BusName, OwnedUniqueName, UniqueName};

use super::apps::Apps;
use super::config::{AgentConfig, Bus};
use super::connection::{Change, Command};
use super::deliver::Courier;
use super::effects::{self, Hints, Performer, badges};
use super::identity::{self, Identity};
use super::installed::{Installed, Profile};
use super::status::Status;
use super::store::{AppRow, Changes, Owner, Store};
#[cfg(feature = "unifiedpush")]
use super::unifiedpush::Distributor;
use super::uninstall;
use crate::db::DbError;
use crate::proto::wishes::Wish;
use crate::proto::{AppId, DeviceId};
use crate::world::Clock;
use error::Error;

/// The name on the bus.
pub const NAME: &str = "org.bellwire.Push";
/// The object.
pub const PATH: &str = "/org/bellwire/Push";
/// How long the bus may take to greet, and to give the name.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the objects share.
pub struct Shared {
    /// The configuration.
    pub config: AgentConfig,
    /// Who the device is.
    pub device: DeviceId,
    /// The device's store.
    pub store: Store,
    /// The connected apps.
    pub apps: Arc<Apps>,
    /// What is installed on the device.
    pub installed: Arc<Installed>,
    /// Who shows alerts and badges and starts apps.
    pub hints: Arc<Hints>,
    /// The clock of the status.
    pub clock: Clock,
    /// The connection to the server.
    pub commands: mpsc::Sender<Command>,
    /// Registrations as they change.
    pub changes: broadcast::Sender<Change>,
    /// Where the connection stands.
    pub status: watch::Receiver<Status>,
}

/// Where the registration of an app that is forgotten has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The server may know of it, and is told.
    AtServer,
    /// Nobody else knows of it.
    Here,
}

/// Exports the objects, takes the name, and starts the tasks that live with the bus.
pub async fn serve(shared: Arc<Shared>) -> zbus::Result<zbus::Connection> {
    let builder = match shared.config.bus {
        Bus::Session => zbus::connection::Builder::session(),
        Bus::System => zbus::connection::Builder::system(),
    };
    let builder = builder
        .serve_at(PATH, push::Push::new(Arc::clone(&shared)))
        .serve_at(PATH, manager::Manager::new(Arc::clone(&shared)));
    #[cfg(feature = "unifiedpush")]
    let distributor = Distributor::new(&shared);
    #[cfg(feature = "unifiedpush")]
    let builder = match &distributor {
        Some(distributor) => distributor.export(builder),
        None => {
            Distributor::end(&shared.store).await;
            builder
        }
    };
    let bus = in_time(builder.build()).await?;
    in_time(bus.request_name_with_flags(NAME, RequestNameFlags::DO_NOT_QUEUE)).await?;
    #[cfg(feature = "unifiedpush")]
    if let Some(distributor) = distributor {
        distributor.open(&bus).await;
    }
    tokio::spawn(push::announce_changes(bus.clone(), Arc::clone(&shared)));
    tokio::spawn(push::announce_link(bus.clone(), shared.status.clone()));
    tokio::spawn(manager::announce_reach(bus.clone(), Arc::clone(&shared)));
    tokio::spawn(Performer::new(Arc::clone(&shared), bus.clone()).run());
    tokio::spawn(badges::run(Arc::clone(&shared), bus.clone()));
    tokio::spawn(uninstall::run(Arc::clone(&shared), bus.clone()));
    tokio::spawn(effects::end_earlier_run(shared));
    Ok(bus)
}

/// What the bus answers, unless it says nothing: a start that waits for ever is one that nobody tries again.
async fn in_time<T>(asked: impl Future<Output = zbus::Result<T>>) -> zbus::Result<T> {
    let answer = tokio::time::timeout(PATIENCE, asked).await;
    answer.unwrap_or_else(|_| Err(std::io::Error::new(ErrorKind::TimedOut, "it does not answer").into()))
}

impl Shared {
    /// A courier for one line.
    pub fn courier(&self, bus: &zbus::Connection) -> Courier {
        Courier {
            bus: bus.clone(),
            store: self.store.clone(),
            apps: Arc::clone(&self.apps),
            commands: self.commands.clone(),
            hints: Arc::clone(&self.hints),
            answer: std::time::Duration::from_secs(self.config.limits.answer_s.into()),
        }
    }

    /// How the app looks and starts, from what is installed of it now.
    pub async fn profile(&self, bus: &zbus::Connection, app: &AppId) -> Profile {
        let owner = self.store.app(app.clone()).await.ok().flatten().map(|row| row.owner);
        self.installed_as(bus, app, owner.as_ref()).await
    }

    /// The same of an app that has this name on the bus, if its name may be an app's id.
    pub async fn profile_of_service(&self, bus: &zbus::Connection, service: &str, owner: &Owner) -> Option<Profile> {
        let app = service.parse().ok()?;
        Some(self.installed_as(bus, &app, Some(owner)).await)
    }

    async fn installed_as(&self, bus: &zbus::Connection, app: &AppId, owner: Option<&Owner>) -> Profile {
        let names = activatable_names(bus).await.unwrap_or_default();
        self.installed.profile(app, owner, |name| names.iter().any(|known| known == name))
    }

    /// Decides about the messages that the app had not taken when it went.
    pub async fn app_left(&self, app: &AppId) {
        let apps = Arc::clone(&self.apps);
        match self.store.left(app.clone(), move |app| apps.presence(app)).await {
            Ok(changes) => self.tell(&changes),
            Err(error) => error!("the store failed: {error}"),
        }
    }

    /// Forgets an app that is gone: its messages go, and its registration ends.
    pub async fn forget(&self, row: AppRow) -> Result<(), DbError> {
        self.store.uninstalled(row.app.clone()).await?;
        let registered = row.reg_id.is_some() || row.wish.is_some();
        self.forgotten(row.app, if registered { End::AtServer } else { End::Here }).await;
        Ok(())
    }

    /// Tells everybody that an app has been forgotten.
    pub async fn forgotten(&self, app: AppId, end: End) {
        if end == End::AtServer {
            // The wish is on disk: if the daemon is stopping, the next start has it.
            let _ = self.commands.send(Command::Wish(app.clone(), Wish::Deregister)).await;
        }
        self.apps.forget_lane(&app);
        // Nobody may be listening.
        let _ = self.changes.send(Change::Unregistered(app));
        self.hints.effects.notify_one();
        self.hints.badges.notify_one();
        let _ = self.commands.try_send(Command::Report);
    }

    /// Tells everybody what has changed in the store.
    fn tell(&self, changes: &Changes) {
        self.hints.of(changes);
        if changes.outcomes {
            // A full queue of commands has a report in it, or will have one with the next session.
            let _ = self.commands.try_send(Command::Report);
        }
    }
}

/// The names that the bus can start.
pub async fn activatable_names(bus: &zbus::Connection) -> zbus::Result<Vec<String>> {
    let names = DBusProxy::new(bus).await?.list_activatable_names().await?;
    Ok(names.iter().map(|name| name.as_str().to_owned()).collect())
}

/// The caller's name, which lives as long as its connection.
pub fn caller(header: &Header<'_>) -> Result<OwnedUniqueName, Error> {
    let name = header.sender().ok_or_else(nobody)?;
    Ok(name.to_owned().into())
}

/// Asks the bus and the kernel who has this name.
pub async fn identity(bus: &zbus::Connection, name: &UniqueName<'_>) -> Result<Identity, Error> {
    match identity::identify(bus, name).await {
        Ok(Some(identity)) => Ok(identity),
        Ok(None) => Err(nobody()),
        Err(error) => {
            debug!("the bus does not know {name}: {error}");
            Err(nobody())
        }
    }
}

fn nobody() -> Error {
    Error::PermissionDenied("the bus does not say who is calling".into())
}

/// Whether the connection of this name is still on the bus.
pub async fn is_there(bus: &zbus::Connection, name: &UniqueName<'_>) -> bool {
    match DBusProxy::new(bus).await {
        Ok(dbus) => dbus.name_has_owner(BusName::from(name.to_owned())).await.unwrap_or(false),
        Err(_) => false,
    }
}
