//! `org.bellwire.Manager1`: what status and settings programs call, and a device's own shell.
//! `dbus/org.bellwire.Manager1.xml` is the contract.

use std::collections::HashMap;
use std::sync::Arc;

use zbus::fdo::DBusProxy;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, OwnedVariant, Variant, interface};

use super::error::Error;
use super::push::{link_state, registration};
use super::{PATH, Shared, caller, identity, polkit};
use crate::agent::connection::{Change, Command};
use crate::agent::effects::screen;
use crate::agent::status::Status;
use crate::agent::store::{AppRow, Life, SwitchTo, Switches};
use crate::proto::channel;
use crate::proto::device::LinkState;
use crate::proto::pulse::Reading;
use crate::proto::wishes::Wish;
use crate::proto::{AppId, MessageId, Moment};

type Dictionary = HashMap<&'static str, Variant<'static>>;

/// The object.
pub struct Manager {
    shared: Arc<Shared>,
}

impl Manager {
    /// The object over what all objects share.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Only the daemon's own user, root, and whom polkit lets may look at all apps.
    async fn check(&self, bus: &Connection, header: &Header<'_>) -> Result<(), Error> {
        let name = caller(header)?;
        let uid = identity(bus, &name).await?.uid;
        if uid == 0 || uid == nix::unistd::geteuid().as_raw() || polkit::allows(bus, &name, may_ask(header)).await {
            return Ok(());
        }
        Err(Error::PermissionDenied("only the daemon's user, root and whom polkit lets may do this".into()))
    }

    async fn app(&self, app: &str) -> Result<AppRow, Error> {
        let id: AppId =
            app.parse().map_err(|error: crate::proto::ids::IdError| Error::InvalidAppId(error.to_string()))?;
        let row = self.shared.store.app(id).await?;
        row.ok_or_else(|| Error::UnknownApp(format!("no app {app} has ever connected")))
    }

    /// The message of an alert that the device's own shell shows.
    async fn shell_alert(&self, id: &str) -> Result<MessageId, Error> {
        let message: MessageId = id.parse().map_err(|_| no_alert(id))?;
        let alert = self.shared.store.alert_at(screen::SHELL, message).await?;
        alert.map(|alert| alert.id).ok_or_else(|| no_alert(id))
    }

    /// What follows once an app has been switched off or on.
    async fn after_switch(&self, row: &AppRow, from: Switches, to: Switches) {
        let wish = match (from.enabled, to.enabled) {
            (true, false) => Some(Wish::Deregister),
            // An app registers itself; a channel has nobody to do so.
            (false, true) if row.client.is_some() => Some(Wish::Register),
            _ => None,
        };
        if let Some(wish) = wish {
            // The wish is on disk: if the daemon is stopping, the next start has it.
            let _ = self.shared.commands.send(Command::Wish(row.app.clone(), wish)).await;
        }
        if from.enabled != to.enabled {
            // Nobody listens when the bus is gone.
            let _ = self.shared.changes.send(Change::Unregistered(row.app.clone()));
        }
        self.shared.hints.effects.notify_one();
        self.shared.hints.badges.notify_one();
        if row.client.is_some() {
            self.shared.hints.switch(row.app.clone());
        }
    }
}

#[interface(name = "org.bellwire.Manager1", introspection_docs = false)]
impl Manager {
    #[zbus(out_args("status"))]
    async fn get_status(
        &self,
        #[zbus(connection)] bus: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<Dictionary, Error> {
        self.check(bus, &header).await?;
        let status = self.shared.status.borrow().clone();
        let now = self.shared.clock.now();
        let mut members: Dictionary = HashMap::from([
            ("state", Variant::from(link_state(&status))),
            ("gateway", Variant::from(status.gateway.clone())),
            ("encrypted", Variant::from(status.gateway.starts_with("wss://"))),
            ("device", Variant::from(self.shared.device.to_string())),
            ("version", Variant::from(env!("CARGO_PKG_VERSION"))),
            ("failures", Variant::from(status.failures)),
            ("out_of_reach", Variant::from(status.out_of_reach)),
            ("wakes_device", Variant::from(status.wakes)),
            ("pings_today", Variant::from(status.today.pings)),
            ("losses_today", Variant::from(status.today.losses)),
            ("connects_today", Variant::from(status.today.connects)),
            ("bytes_sent_today", Variant::from(status.today.sent)),
            ("bytes_received_today", Variant::from(status.today.received)),
            ("do_not_disturb", Variant::from(self.shared.store.do_not_disturb().await?)),
            ("alerts", Variant::from(screen::describe(bus).await)),
        ]);
        if let Some(proxy) = &status.proxy {
            members.insert("proxy", Variant::from(proxy.clone()));
        }
        if let Some(offline) = &status.offline {
            members.insert("offline_s", Variant::from(now.since(offline.since).as_secs()));
        }
        describe_machine(&mut members, &status);
        match status.state {
            LinkState::Waiting { until, why } => {
                members.insert("why", Variant::from(why));
                members.insert("retry_in_s", Variant::from(until.since(now).as_secs()));
            }
            LinkState::Online { since, region } => {
                members.insert("next_ping_in_s", Variant::from(status.pulse.due.since(now).as_secs()));
                members.insert("region", Variant::from(region.to_string()));
                members.insert("online_s", Variant::from(now.since(since).as_secs()));
            }
            LinkState::Stopped | LinkState::Dialling | LinkState::Greeting => {}
        }
        describe_pulse(&mut members, &status.pulse, now);
        Ok(members)
    }

    #[zbus(out_args("apps"))]
    async fn list_apps(
        &self,
        #[zbus(connection)] bus: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<Vec<Dictionary>, Error> {
        self.check(bus, &header).await?;
        let rows = self.shared.store.apps().await?;
        let here = match rows.iter().any(|row| row.client.is_some()) {
            true => names(bus).await.unwrap_or_default(),
            false => Vec::new(),
        };
        Ok(rows.iter().map(|row| self.describe_app(row, &here)).collect())
    }

    async fn set_app(
        &self,
        app: &str,
        settings: HashMap<String, OwnedVariant>,
        #[zbus(connection)] bus: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(), Error> {
        self.check(bus, &header).await?;
        let row = self.app(app).await?;
        if let Some((from, to)) = self.shared.store.switch(row.app.clone(), wanted(&settings)?).await? {
            self.after_switch(&row, from, to).await;
        }
        Ok(())
    }

    async fn forget_app(
        &self,
        app: &str,
        #[zbus(connection)] bus: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(), Error> {
        self.check(bus, &header).await?;
        let row = self.app(app).await?;
        if let Some(line) = self.shared.apps.line(&row.app) {
            self.shared.apps.disconnect(&line);
        }
        self.shared.forget(row).await?;
        Ok(())
    }

    async fn set_do_not_disturb(
        &self,
        on: bool,
        #[zbus(connection)] bus: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(), Error> {
        self.check(bus, &header).await?;
        self.shared.store.set_do_not_disturb(on).await?;
        self.shared.hints.effects.notify_one();
        Ok(())
    }

    #[zbus(out_args("messages"))]
    async fn list_messages(
        &self,
        most: u32,
        #[zbus(connection)] bus: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<Vec<Dictionary>, Error> {
        self.check(bus, &header).await?;
        Ok(self.shared.store.history(most).await?.iter().map(describe_life).collect())
    }

    async fn open_alert(
        &self,
        id: &str,
        token: &str,
        #[zbus(connection)] bus: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(), Error> {
        self.check(bus, &header).await?;
        let token = (!token.is_empty()).then(|| token.to_owned());
        let alert = self.shell_alert(id).await?;
        if !self.shared.store.alert_clicked(alert, token).await? {
            return Err(no_alert(id));
        }
        self.shared.hints.effects.notify_one();
        Ok(())
    }

    async fn dismiss_alert(
        &self,
        id: &str,
        #[zbus(connection)] bus: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(), Error> {
        self.check(bus, &header).await?;
        let alert = self.shell_alert(id).await?;
        Ok(self.shared.store.alert_closed(alert).await?)
    }

    /// An alert for the device's own shell, where there is no notification server.
    #[zbus(signal)]
    pub async fn alert(emitter: &SignalEmitter<'_>, app: &str, id: &str, alert: Dictionary) -> zbus::Result<()>;

    /// An alert is over.
    #[zbus(signal)]
    pub async fn alert_closed(emitter: &SignalEmitter<'_>, id: &str) -> zbus::Result<()>;

    /// An app was not started.
    #[zbus(signal)]
    pub async fn launch_failed(emitter: &SignalEmitter<'_>, app: &str, id: &str, why: &str) -> zbus::Result<()>;

    /// The device is offline for long although there is a network.
    #[zbus(signal)]
    pub async fn out_of_reach(emitter: &SignalEmitter<'_>, offline_s: u64, why: &str) -> zbus::Result<()>;

    async fn try_now(
        &self,
        #[zbus(connection)] bus: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(), Error> {
        self.check(bus, &header).await?;
        // A full queue of commands keeps the connection busy anyway.
        let _ = self.shared.commands.try_send(Command::TryNow);
        Ok(())
    }
}

/// What the machine says of itself, and who says it.
fn describe_machine(members: &mut Dictionary, status: &Status) {
    let network = if status.away { "none" } else { status.pulse.network.kind.name() };
    let sources: Vec<String> = status.sources.iter().map(|source| source.name().to_owned()).collect();
    members.extend([
        ("network", Variant::from(network)),
        ("power", Variant::from(status.surroundings.power.name())),
        ("metered", Variant::from(status.surroundings.metered)),
        ("sources", Variant::from(sources)),
    ]);
}

/// How long the connection may be silent, and how that is known.
fn describe_pulse(members: &mut Dictionary, pulse: &Reading, now: Moment) {
    members.insert("silence_s", Variant::from(pulse.interval.as_secs()));
    members.insert("silence_stage", Variant::from(pulse.learned.stage.name()));
    for (name, seconds) in [("silence_proven_s", pulse.learned.good_s), ("silence_refuted_s", pulse.learned.bad_s)] {
        if let Some(seconds) = seconds {
            members.insert(name, Variant::from(u64::from(seconds)));
        }
    }
    if let Some(loss) = pulse.last_loss {
        members.insert("last_loss_s", Variant::from(now.since(loss.at).as_secs()));
        members.insert("last_loss_silence_s", Variant::from(loss.silence.as_secs()));
        members.insert("last_loss_counts", Variant::from(loss.counts));
    }
}

impl Manager {
    /// An app, while these names are on the bus.
    fn describe_app(&self, row: &AppRow, here: &[String]) -> Dictionary {
        let (state, _) = registration(row);
        let connected = match &row.client {
            Some(client) => here.iter().any(|name| name == client.service.as_str()),
            None => self.shared.apps.line(&row.app).is_some(),
        };
        let Switches { enabled, alerts, launch, badge } = row.switches;
        let mut members = HashMap::from([
            ("app", Variant::from(row.app.to_string())),
            ("state", Variant::from(state)),
            ("uid", Variant::from(row.owner.uid)),
            ("unread", Variant::from(row.unread)),
            ("connected", Variant::from(connected)),
            ("badge_count", Variant::from(u32::from(row.badge))),
            ("enabled", Variant::from(enabled)),
            ("alerts", Variant::from(alerts)),
            ("launch", Variant::from(launch)),
            ("badge", Variant::from(badge)),
            ("manifest", Variant::from(self.shared.installed.manifest(&row.app).is_some())),
        ]);
        if let Some(flatpak) = &row.owner.flatpak {
            members.insert("flatpak", Variant::from(flatpak.clone()));
        }
        if let Some(client) = &row.client {
            members.insert("service", Variant::from(client.service.to_string()));
            members.insert("description", Variant::from(client.description.clone()));
            if let Some(why) = &client.refused {
                members.insert("why", Variant::from(why.clone()));
            }
        }
        if let Some(origin) = row.endpoint.as_deref().and_then(channel::server_of) {
            members.insert("endpoint", Variant::from(origin.to_owned()));
        }
        members
    }
}

/// The names that are on the bus.
async fn names(bus: &Connection) -> zbus::Result<Vec<String>> {
    let names = DBusProxy::new(bus).await?.list_names().await?;
    Ok(names.iter().map(|name| name.as_str().to_owned()).collect())
}

/// The settings as the store takes them.
fn wanted(settings: &HashMap<String, OwnedVariant>) -> Result<SwitchTo, Error> {
    let mut to = SwitchTo::default();
    for (name, value) in settings {
        let switch = match name.as_str() {
            "enabled" => &mut to.enabled,
            "alerts" => &mut to.alerts,
            "launch" => &mut to.launch,
            "badge" => &mut to.badge,
            other => return Err(Error::InvalidSetting(format!("{other} is none of enabled, alerts, launch, badge"))),
        };
        let on = bool::try_from(&**value).map_err(|_| Error::InvalidSetting(format!("{name} is a boolean")))?;
        *switch = Some(on);
    }
    Ok(to)
}

fn describe_life(life: &Life) -> Dictionary {
    let hops: Vec<HashMap<String, Variant<'static>>> = life
        .hops
        .iter()
        .map(|hop| {
            let mut members = HashMap::from([
                ("at_ms".to_owned(), Variant::from(hop.at_ms.0)),
                ("hop".to_owned(), Variant::from(hop.hop.clone())),
            ]);
            if let Some(why) = &hop.why {
                members.insert("why".to_owned(), Variant::from(why.clone()));
            }
            members
        })
        .collect();
    let mut members = HashMap::from([
        ("id", Variant::from(life.id.to_string())),
        ("app", Variant::from(life.app.to_string())),
        ("accepted_ms", Variant::from(life.accepted_ms.0)),
        ("hops", Variant::from(hops)),
    ]);
    if let Some(request_id) = &life.request_id {
        members.insert("request_id", Variant::from(request_id.clone()));
    }
    members
}

/// Tells, once each time, that the device has been offline for long although there is a network.
pub async fn announce_reach(bus: Connection, shared: Arc<Shared>) {
    let Ok(object) = bus.object_server().interface::<_, Manager>(PATH).await else { return };
    let (mut status, mut told) = (shared.status.clone(), false);
    while status.changed().await.is_ok() {
        let (out_of_reach, offline) = {
            let status = status.borrow_and_update();
            (status.out_of_reach, status.offline.clone())
        };
        if out_of_reach
            && !told
            && let Some(offline) = offline
        {
            let seconds = shared.clock.now().since(offline.since).as_secs();
            // Nobody hears it if the bus is gone; the daemon is ending then.
            let _ = Manager::out_of_reach(object.signal_emitter(), seconds, &offline.why).await;
        }
        told = out_of_reach;
    }
}

/// Whether the caller waits while somebody is asked for a password.
fn may_ask(header: &Header<'_>) -> bool {
    header.primary().flags().contains(zbus::message::Flags::ALLOW_INTERACTIVE_AUTH)
}

fn no_alert(id: &str) -> Error {
    Error::NoAlert(format!("no alert of the message {id} is shown"))
}
