//! Alerts: `org.freedesktop.Notifications` where there is a notification server, else a signal of
//! `org.bellwire.Manager1` for the device's own shell.
//!
//! The number of a notification is chosen and on disk before the server is asked for it. Asked once
//! more after a power cut, a server that takes such numbers replaces the notification by itself. An
//! alert goes when its message has been read or has expired, and comes again, without a sound, when
//! the daemon or the server was started anew: either forgets whom a click is for.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::{Mutex, Notify, mpsc};
use tracing::{debug, error, warn};
use zbus::fdo::DBusProxy;
use zbus::names::{OwnedUniqueName, UniqueName};
use zbus::object_server::SignalEmitter;
use zbus::{MatchRule, MessageStream, Variant, proxy};

use super::moment_of;
use crate::agent::bus::manager::Manager;
use crate::agent::bus::{PATH, Shared, activatable_names};
use crate::agent::installed::Profile;
use crate::agent::store::{Pending, Shown, Task, history};
use crate::daemon::fault_point;
use crate::db::DbError;
use crate::proto::message::Urgency;
use crate::proto::{AppId, MessageId, Moment, Push};
use crate::world;

/// The notification server of the desktop.
#[proxy(
    interface = "org.freedesktop.Notifications",
    default_service = "org.freedesktop.Notifications",
    default_path = "/org/freedesktop/Notifications"
)]
trait Notifications {
    #[allow(clippy::too_many_arguments)]
    fn notify(
        &self,
        app_name: &str,
        replaces_id: u32,
        app_icon: &str,
        summary: &str,
        body: &str,
        actions: &[&str],
        hints: HashMap<&str, Variant<'_>>,
        expire_timeout: i32,
    ) -> zbus::Result<u32>;
    fn close_notification(&self, id: u32) -> zbus::Result<()>;
    fn get_capabilities(&self) -> zbus::Result<Vec<String>>;
    fn get_server_information(&self) -> zbus::Result<(String, String, String, String)>;
}

const NAME: &str = "org.freedesktop.Notifications";
/// In place of a server: the device's own shell listens to a signal.
const SHELL: &str = "shell";
/// How long a notification server may take to answer.
const ANSWER: Duration = Duration::from_secs(20);

/// Who shows alerts.
#[derive(Clone, Debug)]
enum Server {
    /// A notification server.
    Desktop {
        /// Who it is, for as long as it runs.
        key: String,
        /// What it can do.
        capabilities: Vec<String>,
    },
    /// Whoever listens to the signal.
    Shell,
}

impl Server {
    fn key(&self) -> &str {
        match self {
            Self::Desktop { key, .. } => key,
            Self::Shell => SHELL,
        }
    }
}

/// Where alerts are shown.
pub struct Screen {
    shared: Arc<Shared>,
    bus: zbus::Connection,
    /// The server as it was last asked about itself.
    server: Mutex<Option<(OwnedUniqueName, Server)>>,
    /// The right to show something.
    turn: Mutex<()>,
}

impl Screen {
    /// The screen of the session that this bus is of.
    pub fn new(shared: Arc<Shared>, bus: zbus::Connection) -> Self {
        Self { shared, bus, server: Mutex::new(None), turn: Mutex::new(()) }
    }

    /// Shows one alert for these effects: the newest of them, which speaks for the others.
    pub async fn alert(&self, app: &AppId, effects: Vec<Pending>) -> Result<(), DbError> {
        let done: Vec<(i64, MessageId)> =
            effects.iter().filter_map(|effect| Some((effect.place, alert_of(effect)?.id))).collect();
        let Some(newest) = effects.last().and_then(alert_of) else { return Ok(()) };
        let _turn = self.turn.lock().await;
        let server = self.server().await;
        let more = u32::try_from(effects.len() - 1).unwrap_or(u32::MAX);
        let alert = self.on_record(app, newest, more, server.key()).await?;
        fault_point("alerting");
        self.shared.store.showing(alert.clone()).await?;
        fault_point("alert-noted");
        match self.show(&server, &alert, newest, false).await {
            Ok(notification) => {
                fault_point("alerted");
                self.shared.store.alerted(Shown { notification, ..alert }, done).await
            }
            Err(error) => {
                let why = format!("the notification server failed: {error}");
                let why = history::brief(&why).to_owned();
                warn!(%app, "an alert was not shown: {why}");
                self.shared.store.not_alerted(newest.id, done, why).await
            }
        }
    }

    /// The alert with its number: that of the alert it replaces, else one of its own.
    async fn on_record(&self, app: &AppId, push: &Push, more: u32, server: &str) -> Result<Shown, DbError> {
        let topic = push.collapse_key.as_ref().map(|key| key.as_str().to_owned()).or_else(|| push.request_id.clone());
        let here: Vec<Shown> = self.shared.store.shown().await?.into_iter().map(|(alert, _)| alert).collect();
        let replaced = here.into_iter().filter(|alert| alert.app == *app && alert.server == server).find(|alert| {
            alert.id == push.id || (alert.topic.is_some() && alert.topic == topic) || (more > 0 && alert.more > 0)
        });
        let notification = replaced.as_ref().map_or_else(new_number, |alert| alert.notification);
        // An alert that speaks for several goes on speaking for those of the one it replaces.
        let older = replaced.filter(|alert| more > 0 && alert.more > 0 && alert.id != push.id);
        let more = older.map_or(more, |alert| more + alert.more + 1);
        Ok(Shown { id: push.id, app: app.clone(), notification, server: server.to_owned(), topic, more })
    }

    /// Asks the server to show an alert; returns its number there.
    async fn show(&self, server: &Server, alert: &Shown, push: &Push, again: bool) -> zbus::Result<u32> {
        let profile = self.shared.profile(&self.bus, &alert.app).await;
        let text = text(push, alert.more);
        match server {
            Server::Shell => {
                let emitter = SignalEmitter::new(&self.bus, PATH)?;
                let members = HashMap::from([
                    ("title", Variant::from(profile.name)),
                    ("text", Variant::from(text)),
                    ("icon", Variant::from(profile.icon.unwrap_or_default())),
                    ("urgency", Variant::from(urgency(push))),
                    ("again", Variant::from(again)),
                ]);
                Manager::alert(&emitter, alert.app.as_str(), &alert.id.to_string(), members).await?;
                Ok(alert.notification)
            }
            Server::Desktop { capabilities, .. } => {
                let can = |name: &str| capabilities.iter().any(|capability| capability == name);
                let (summary, body) = match can("body") {
                    true if can("body-markup") => (profile.name.clone(), escape(&text)),
                    true => (profile.name.clone(), text),
                    false => (format!("{}: {text}", profile.name), String::new()),
                };
                let actions: &[&str] = if can("actions") { &["default", "Open"] } else { &[] };
                let (icon, hints) = (profile.icon.clone().unwrap_or_default(), hints(&profile, push, again));
                let proxy = NotificationsProxy::new(&self.bus).await?;
                let call = proxy.notify(&profile.name, alert.notification, &icon, &summary, &body, actions, hints, -1);
                tokio::time::timeout(ANSWER, call).await.map_err(|_| silent())?
            }
        }
    }

    /// Takes off the screen whatever has been read, has expired or may not alert any more. Returns
    /// when the next alert expires.
    pub async fn tidy(&self) -> Result<Option<Moment>, DbError> {
        let mut next = None;
        for (alert, push) in self.shared.store.shown().await? {
            match push {
                Some((_, expires)) => next = next.into_iter().chain([moment_of(expires, &self.shared)]).min(),
                None => {
                    self.close(&alert).await;
                    self.shared.store.alert_closed(alert.id).await?;
                }
            }
        }
        Ok(next)
    }

    async fn close(&self, alert: &Shown) {
        let server = self.server_if_running().await;
        let closed = match server.filter(|server| server.key() == alert.server) {
            Some(Server::Desktop { .. }) => match NotificationsProxy::new(&self.bus).await {
                Ok(proxy) => tokio::time::timeout(ANSWER, proxy.close_notification(alert.notification)).await.is_ok(),
                Err(_) => false,
            },
            Some(Server::Shell) => match SignalEmitter::new(&self.bus, PATH) {
                Ok(emitter) => Manager::alert_closed(&emitter, &alert.id.to_string()).await.is_ok(),
                Err(_) => false,
            },
            None => false,
        };
        debug!(app = %alert.app, closed, "an alert is over");
    }

    /// Shows every alert on record again, at the server that runs now.
    async fn show_again(&self) -> Result<(), DbError> {
        let _turn = self.turn.lock().await;
        let pending = self.shared.store.pending().await?;
        let is_pending = |id| pending.iter().filter_map(alert_of).any(|push| push.id == id);
        for (alert, push) in self.shared.store.shown().await? {
            let Some((push, _)) = push.filter(|_| !is_pending(alert.id)) else { continue };
            let server = self.server().await;
            let same = alert.server == server.key();
            let notification = if same { alert.notification } else { new_number() };
            let moved = Shown { notification, server: server.key().to_owned(), ..alert };
            match self.show(&server, &moved, &push, true).await {
                Ok(notification) => self.shared.store.showing(Shown { notification, ..moved }).await?,
                Err(error) => debug!(app = %moved.app, "an alert was not shown again: {error}"),
            }
        }
        Ok(())
    }

    /// Who shows alerts now; a notification server that can be started is.
    async fn server(&self) -> Server {
        if let Some(server) = self.server_if_running().await.filter(|server| matches!(server, Server::Desktop { .. })) {
            return server;
        }
        if !is_activatable(&self.bus).await {
            return Server::Shell;
        }
        // Any call starts it.
        let started = match NotificationsProxy::new(&self.bus).await {
            Ok(proxy) => tokio::time::timeout(ANSWER, proxy.get_server_information()).await,
            Err(_) => return Server::Shell,
        };
        if !matches!(started, Ok(Ok(_))) {
            warn!("the notification server does not start: alerts go out as a signal of org.bellwire.Manager1");
        }
        self.server_if_running().await.unwrap_or(Server::Shell)
    }

    async fn server_if_running(&self) -> Option<Server> {
        let dbus = DBusProxy::new(&self.bus).await.ok()?;
        let name = zbus::names::BusName::try_from(NAME).ok()?;
        let Ok(owner) = dbus.get_name_owner(name).await else { return Some(Server::Shell) };
        let mut known = self.server.lock().await;
        if let Some((of, server)) = known.as_ref()
            && *of == owner
        {
            return Some(server.clone());
        }
        let proxy = NotificationsProxy::new(&self.bus).await.ok()?;
        let capabilities = tokio::time::timeout(ANSWER, proxy.get_capabilities()).await.ok()?.ok()?;
        let bus = dbus.get_id().await.ok()?;
        let key = format!("{} {}", bus.as_str(), owner.as_str());
        let server = Server::Desktop { key, capabilities };
        *known = Some((owner, server.clone()));
        Some(server)
    }

    async fn handle(&self, message: &zbus::Message, tokens: &mut HashMap<u32, String>) -> zbus::Result<()> {
        let header = message.header();
        let (Some(member), Some(sender)) = (header.member(), header.sender()) else { return Ok(()) };
        // A signal that is sent to us alone passes every rule of the bus, whoever sends it.
        if !self.is_server(sender).await {
            return Ok(());
        }
        let body = message.body();
        match member.as_str() {
            "ActivationToken" => {
                let (number, token): (u32, String) = body.deserialize()?;
                // A token is used by the click that follows it at once.
                tokens.clear();
                tokens.insert(number, token);
            }
            "ActionInvoked" => {
                let (number, action): (u32, String) = body.deserialize()?;
                if action == "default" {
                    let token = tokens.remove(&number);
                    self.clicked(number, token).await;
                }
            }
            "NotificationClosed" => {
                let (number, _reason): (u32, u32) = body.deserialize()?;
                self.gone(number).await;
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether this is the connection of the notification server that runs now.
    async fn is_server(&self, sender: &UniqueName<'_>) -> bool {
        // Makes the server known, if it is not yet.
        let server = self.server_if_running().await;
        let known = self.server.lock().await;
        matches!(server, Some(Server::Desktop { .. }))
            && known.as_ref().is_some_and(|(owner, _)| owner.as_str() == sender.as_str())
    }

    async fn clicked(&self, number: u32, token: Option<String>) {
        let Some(alert) = self.with_number(number).await else { return };
        fault_point("clicked");
        self.or_log(self.shared.store.alert_clicked(alert.id, token).await.map(drop));
        self.shared.hints.effects.notify_one();
    }

    async fn gone(&self, number: u32) {
        if let Some(alert) = self.with_number(number).await {
            self.or_log(self.shared.store.alert_closed(alert.id).await);
        }
    }

    async fn with_number(&self, number: u32) -> Option<Shown> {
        let server = self.server_if_running().await?;
        let shown = self.shared.store.shown().await.ok()?;
        let mut here = shown.into_iter().map(|(alert, _)| alert).filter(|alert| alert.server == server.key());
        here.find(|alert| alert.notification == number)
    }

    fn or_log(&self, done: Result<(), DbError>) {
        if let Err(error) = done {
            error!("the store failed: {error}");
        }
    }
}

/// Who shows alerts, for people.
pub async fn describe(bus: &zbus::Connection) -> String {
    let running = async {
        DBusProxy::new(bus).await?.get_name_owner(zbus::names::BusName::try_from(NAME)?).await?;
        NotificationsProxy::new(bus).await?.get_server_information().await
    };
    match tokio::time::timeout(ANSWER, running).await {
        Ok(Ok((title, _, version, _))) => format!("shown by the notification server {title} {version}"),
        _ if is_activatable(bus).await => "shown by a notification server, which starts with the first".to_owned(),
        _ => "there is no notification server: alerts are signals of org.bellwire.Manager1".to_owned(),
    }
}

async fn is_activatable(bus: &zbus::Connection) -> bool {
    activatable_names(bus).await.iter().any(|name| name == NAME)
}

fn alert_of(effect: &Pending) -> Option<&Push> {
    match &effect.task {
        Task::Alert(push) => Some(push),
        Task::Launch(..) | Task::Open { .. } | Task::RegistrationChange => None,
    }
}

/// A number that no server gives out by itself: they count from one.
fn new_number() -> u32 {
    u32::from_ne_bytes(world::random_bytes()) >> 2 | 1 << 30
}

fn text(push: &Push, more: u32) -> String {
    let text = push.message.as_ref().and_then(|message| message.fields().alert.clone()).unwrap_or_default();
    match more {
        0 => text,
        more => format!("{text} (and {more} more)").trim_start().to_owned(),
    }
}

/// The urgency of the notification specification: 0 low, 1 normal, 2 critical, which stays until
/// it is dismissed.
fn urgency(push: &Push) -> u8 {
    match push.urgency {
        Urgency::VeryLow | Urgency::Low => 0,
        Urgency::Normal => 1,
        Urgency::High => 2,
    }
}

fn hints(profile: &Profile, push: &Push, again: bool) -> HashMap<&'static str, Variant<'static>> {
    let mut hints = HashMap::from([("urgency", Variant::from(urgency(push)))]);
    if let Some(desktop) = &profile.desktop {
        hints.insert("desktop-entry", Variant::from(desktop.id().to_owned()));
    }
    if again {
        hints.insert("suppress-sound", Variant::from(true));
    }
    hints
}

/// Text in a body that may have markup.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn silent() -> zbus::Error {
    zbus::Error::Failure("it does not answer".into())
}

/// Most signals of the notification server that wait to be looked at; what comes on top is lost.
const SIGNALS: usize = 64;

/// Listens to the notification server, and shows again what was on the screen before.
pub async fn begin(screen: Arc<Screen>) {
    let (inbox, signals) = mpsc::channel(SIGNALS);
    let came = Arc::new(Notify::new());
    // What an earlier run has shown is shown again.
    came.notify_one();
    match streams(&screen.bus).await {
        Ok((server, owners)) => {
            tokio::spawn(hear(server, inbox));
            tokio::spawn(watch(owners, Arc::clone(&came)));
        }
        Err(error) => warn!("clicks on alerts are not heard: {error}"),
    }
    tokio::spawn(listen(screen, signals, came));
}

/// The signals of the notification server, and news of its end and start.
async fn streams(bus: &zbus::Connection) -> zbus::Result<(MessageStream, MessageStream)> {
    let server = MatchRule::builder().sender(NAME).interface(NAME).build()?;
    let owner = MatchRule::builder().sender("org.freedesktop.DBus").member("NameOwnerChanged").arg(0, NAME).build()?;
    Ok((
        MessageStream::for_match_rule(server, bus, None).await?,
        MessageStream::for_match_rule(owner, bus, None).await?,
    ))
}

/// Takes signals as fast as they come: a stream that is not read holds up everything on the bus, and
/// with it the answers that its reader waits for.
async fn hear(mut signals: MessageStream, inbox: mpsc::Sender<zbus::Message>) {
    while let Some(Ok(message)) = signals.next().await {
        if inbox.try_send(message).is_err() {
            debug!("a signal of the notification server is lost: there are too many");
        }
    }
}

/// Tells, once for any number of times, that a notification server has come.
async fn watch(mut owners: MessageStream, came: Arc<Notify>) {
    while let Some(Ok(change)) = owners.next().await {
        if change.body().deserialize().is_ok_and(|(_, _, new): (String, String, String)| !new.is_empty()) {
            came.notify_one();
        }
    }
}

async fn listen(screen: Arc<Screen>, mut signals: mpsc::Receiver<zbus::Message>, came: Arc<Notify>) {
    let mut tokens = HashMap::new();
    loop {
        tokio::select! {
            () = came.notified() => screen.or_log(screen.show_again().await),
            Some(message) = signals.recv() => {
                if let Err(error) = screen.handle(&message, &mut tokens).await {
                    debug!("the notification server said something odd: {error}");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::samples;

    #[test]
    fn an_alert_says_how_many_it_speaks_for() {
        let message = Some("action=ALERT&alertMessage=Hi".to_owned().into());
        let push = Push { message, ..samples::push(samples::message_id(1)) };
        assert_eq!(text(&push, 0), "Hi");
        assert_eq!(text(&push, 2), "Hi (and 2 more)");
        assert_eq!(text(&samples::push(samples::message_id(1)), 2), "(and 2 more)");
    }

    #[test]
    fn markup_is_text() {
        assert_eq!(escape("<b>1 & 2</b>"), "&lt;b&gt;1 &amp; 2&lt;/b&gt;");
    }

    #[test]
    fn numbers_are_far_from_those_of_servers() {
        assert!((0..100).all(|_| new_number() >= 1 << 30 && new_number() < 1 << 31));
    }
}
