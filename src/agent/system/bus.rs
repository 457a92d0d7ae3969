//! The services of the system bus that say something about the machine, as they come and go.
//!
//! Only signals are heard and properties read; nothing is started and nothing is set. A service is looked
//! for again when the bus says that its name has an owner. A bus that is gone is looked for when the device
//! is awake for another reason.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use tokio::sync::Notify;
use tracing::{debug, info};
use zbus::fdo::DBusProxy;
use zbus::names::WellKnownName;
use zbus::{Connection, MatchRule, MessageStream, OwnedVariant};

use super::netlink::{LONGEST, SETTLED};
use super::{Out, Signal, Source, connman, logind, network_manager, upower};

/// How long the bus may take to let us in.
const GREETING: Duration = Duration::from_secs(10);
/// How long a service may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Listens to these sources as long as the daemon runs; says at the start which ones are there, the kernel's
/// news among them.
pub async fn run(sources: Vec<Source>, netlink: bool, out: Out, woke: Arc<Notify>) {
    let mut first = true;
    loop {
        let bus = match sources.is_empty() {
            true => None,
            false => connect().await,
        };
        if std::mem::take(&mut first) {
            say(netlink, bus.as_ref(), &sources).await;
        }
        if sources.is_empty() {
            return;
        }
        if let Some(bus) = bus {
            let attended = join_all(sources.iter().map(|source| attend(&bus, *source, &out, &woke)));
            tokio::select! {
                _ = attended => {}
                () = bus.closed() => {}
            }
            debug!("the system bus is gone");
            for source in &sources {
                lost(*source, &out).await;
            }
        }
        woke.notified().await;
    }
}

async fn connect() -> Option<Connection> {
    let building = zbus::connection::Builder::system().method_timeout(ANSWER).build();
    match tokio::time::timeout(GREETING, building).await {
        Ok(Ok(bus)) => {
            // Whoever calls is told that there is nothing here; else it would wait.
            bus.object_server();
            Some(bus)
        }
        Ok(Err(error)) => {
            debug!("there is no system bus: {error}");
            None
        }
        Err(_) => {
            debug!("the system bus does not answer");
            None
        }
    }
}

/// One line for people.
async fn say(netlink: bool, bus: Option<&Connection>, sources: &[Source]) {
    let mut there: Vec<&str> = netlink.then(|| Source::Netlink.name()).into_iter().collect();
    for source in sources {
        if let (Some(bus), Some(name)) = (bus, source.bus_name())
            && has_owner(bus, name).await.unwrap_or(false)
        {
            there.push(source.name());
        }
    }
    let there = if there.is_empty() { "nobody".to_owned() } else { there.join(", ") };
    info!("the machine's network, power and sleep are told by {there}");
}

async fn has_owner(bus: &Connection, name: &'static str) -> zbus::Result<bool> {
    let name = WellKnownName::from_static_str(name)?;
    Ok(DBusProxy::new(bus).await?.name_has_owner(name.into()).await?)
}

/// Listens to a source whenever it is there.
async fn attend(bus: &Connection, source: Source, out: &Out, woke: &Notify) {
    if let Err(error) = attend_owners(bus, source, out, woke).await {
        debug!("{} is not watched: {error}", source.name());
    }
    // The others go on.
    std::future::pending().await
}

async fn attend_owners(bus: &Connection, source: Source, out: &Out, woke: &Notify) -> zbus::Result<()> {
    let Some(name) = source.bus_name() else { return Ok(()) };
    let dbus = DBusProxy::new(bus).await?;
    let mut owners = dbus.receive_name_owner_changed_with_args(&[(0, name)]).await?;
    let mut there = has_owner(bus, name).await?;
    loop {
        let next = if there {
            tokio::select! {
                next = owners.next() => next,
                () = hear(bus, source, out, woke) => owners.next().await,
            }
        } else {
            owners.next().await
        };
        if std::mem::take(&mut there) {
            lost(source, out).await;
        }
        let Some(next) = next else { return Ok(()) };
        there = next.args()?.new_owner().is_some();
    }
}

/// Listens to a source that is there, until it cannot be heard.
async fn hear(bus: &Connection, source: Source, out: &Out, woke: &Notify) {
    debug!("{} is there", source.name());
    // Whoever receives this may be gone.
    let _ = out.send(Signal::Source(source, true)).await;
    let ended = match source {
        Source::Netlink => Ok(()),
        Source::NetworkManager => network_manager::hear(bus, out).await,
        Source::Connman => connman::hear(bus, out).await,
        Source::Logind => logind::hear(bus, out).await,
        Source::Upower => upower::hear(bus, out, woke).await,
    };
    if let Err(error) = ended {
        debug!("{} cannot be heard: {error}", source.name());
        lost(source, out).await;
    }
}

async fn lost(source: Source, out: &Out) {
    for signal in [Some(Signal::Source(source, false)), source.silence()].into_iter().flatten() {
        // Whoever receives this may be gone.
        let _ = out.send(signal).await;
    }
}

/// Asks, and reads meanwhile what comes: a stream that nobody reads would keep the answer back. What came is
/// news, which are let settle; the flag says that there were some.
pub async fn ask<T>(changes: &mut MessageStream, question: impl Future<Output = T>) -> (T, bool) {
    let mut question = std::pin::pin!(question);
    let mut news = false;
    let answer = loop {
        tokio::select! {
            answer = &mut question => break answer,
            change = changes.next() => match change {
                Some(_) => news = true,
                None => break question.await,
            },
        }
    };
    if news {
        let quiet = async { while let Ok(Some(_)) = tokio::time::timeout(SETTLED, changes.next()).await {} };
        // Who changes all the time is asked all the same.
        let _ = tokio::time::timeout(LONGEST, quiet).await;
    }
    (answer, news)
}

/// An object with properties.
#[derive(Clone, Copy, Debug)]
pub struct Object {
    /// Whose it is.
    pub name: &'static str,
    /// Where it is.
    pub path: &'static str,
    /// Its interface.
    pub interface: &'static str,
}

const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

impl Object {
    /// The changes of its properties.
    pub async fn changes(&self, bus: &Connection) -> zbus::Result<MessageStream> {
        let rule = self.rule(PROPERTIES).member("PropertiesChanged").arg(0, self.interface).build()?;
        MessageStream::for_match_rule(rule, bus, None).await
    }

    /// The signals of its interface.
    pub async fn signals(&self, bus: &Connection) -> zbus::Result<MessageStream> {
        MessageStream::for_match_rule(self.rule(self.interface).build()?, bus, None).await
    }

    /// The signals of this name.
    pub async fn signal(&self, bus: &Connection, member: &'static str) -> zbus::Result<MessageStream> {
        let rule = self.rule(self.interface).member(member).build()?;
        MessageStream::for_match_rule(rule, bus, None).await
    }

    /// Calls a method.
    pub async fn call<R: serde::de::DeserializeOwned + zbus::Type>(
        &self,
        bus: &Connection,
        method: &'static str,
        arguments: &(impl serde::Serialize + zbus::DynamicType),
    ) -> zbus::Result<R> {
        let reply = bus.call_method(Some(self.name), self.path, Some(self.interface), method, arguments).await?;
        reply.body().deserialize()
    }

    /// A property.
    pub async fn get<T>(&self, bus: &Connection, property: &'static str) -> zbus::Result<T>
    where
        T: TryFrom<OwnedVariant>,
        T::Error: Into<zbus::Error>,
    {
        let of = (self.interface, property);
        let reply = bus.call_method(Some(self.name), self.path, Some(PROPERTIES), "Get", &of).await?;
        reply.body().deserialize::<OwnedVariant>()?.try_into().map_err(Into::into)
    }

    fn rule(&self, interface: &'static str) -> zbus::match_rule::Builder<'static> {
        let signal = MatchRule::builder().msg_type(zbus::message::Type::Signal);
        signal.sender(self.name).path(self.path).interface(interface)
    }
}
