//! The agent on D-Bus: name, objects, and who is calling.
//!
//! * [`push`]: `org.bellwire.Push1`, for apps.
//! * [`manager`]: `org.bellwire.Manager1`, for status and settings.
//! * [`message`], [`error`]: what both say.
//!
//! Who calls is taken from the bus, never from an argument. An app id belongs to the user who
//! claimed it first, and, while it is connected, to the connection that has it.

pub mod error;
pub mod manager;
pub mod message;
pub mod push;

use std::sync::Arc;

use tokio::sync::{broadcast, mpsc, watch};
use tracing::debug;
use zbus::fdo::{DBusProxy, RequestNameFlags};
use zbus::message::Header;
use zbus::names::{BusName, OwnedUniqueName, UniqueName};

use super::apps::Apps;
use super::config::{AgentConfig, Bus};
use super::connection::{Change, Command, Status};
use super::deliver::Courier;
use super::store::Store;
use crate::proto::DeviceId;
use crate::world::Clock;
use error::Error;

/// The name on the bus.
pub const NAME: &str = "org.bellwire.Push";
/// The object.
pub const PATH: &str = "/org/bellwire/Push";

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
    /// The clock of the status.
    pub clock: Clock,
    /// The connection to the server.
    pub commands: mpsc::Sender<Command>,
    /// Registrations as they change.
    pub changes: broadcast::Sender<Change>,
    /// Where the connection stands.
    pub status: watch::Receiver<Status>,
}

/// Exports the objects and takes the name. Returns the connection and the tasks that live with it.
pub async fn serve(shared: Arc<Shared>) -> zbus::Result<zbus::Connection> {
    let builder = match shared.config.bus {
        Bus::Session => zbus::connection::Builder::session(),
        Bus::System => zbus::connection::Builder::system(),
    };
    let bus = builder
        .serve_at(PATH, push::Push::new(Arc::clone(&shared)))
        .serve_at(PATH, manager::Manager::new(Arc::clone(&shared)))
        .build()
        .await?;
    bus.request_name_with_flags(NAME, RequestNameFlags::DO_NOT_QUEUE).await?;
    tokio::spawn(push::announce_changes(bus.clone(), Arc::clone(&shared)));
    tokio::spawn(push::announce_link(bus.clone(), shared.status.clone()));
    Ok(bus)
}

impl Shared {
    /// A courier for one line.
    pub fn courier(&self, bus: &zbus::Connection) -> Courier {
        Courier {
            bus: bus.clone(),
            store: self.store.clone(),
            apps: Arc::clone(&self.apps),
            commands: self.commands.clone(),
            answer: std::time::Duration::from_secs(self.config.limits.answer_s.into()),
        }
    }
}

/// The caller's unique name and user.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Its name, which lives as long as its connection.
    pub name: OwnedUniqueName,
    /// Its user.
    pub uid: u32,
}

/// Asks the bus who is calling.
pub async fn caller(bus: &zbus::Connection, header: &Header<'_>) -> Result<Caller, Error> {
    let unknown = || Error::PermissionDenied("the bus does not say who is calling".into());
    let name = header.sender().ok_or_else(unknown)?.to_owned();
    let uid = DBusProxy::new(bus).await?.get_connection_unix_user(BusName::from(name.clone())).await;
    let uid = uid.map_err(|error| {
        debug!("the bus does not know {name}: {error}");
        unknown()
    })?;
    Ok(Caller { name: name.into(), uid })
}

/// Whether the connection of this name is still on the bus.
pub async fn is_there(bus: &zbus::Connection, name: &UniqueName<'_>) -> bool {
    match DBusProxy::new(bus).await {
        Ok(dbus) => dbus.name_has_owner(BusName::from(name.to_owned())).await.unwrap_or(false),
        Err(_) => false,
    }
}
