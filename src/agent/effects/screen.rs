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

use super::launch::{error_name, has_no_answer};
use crate::agent::bus::manager::Manager;
use crate::agent::bus::{PATH, Shared, activatable_names};
use crate::agent::installed::Profile;
use crate::agent::store::{Pending, Shown, Task, history};
use crate::daemon::{fault_point, lock};
use crate::db::DbError;
use crate::proto::message::Door;
use crate::proto::urgency::Urgency;
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
pub const SHELL: &str = "shell";
/// How long a notification server may take to answer.
const ANSWER: Duration = Duration::from_secs(20);
/// How long a server that did not answer is left alone.
const REST: Duration = Duration::from_secs(30);

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
    /// The right to show something, and to hear what became of it.
    turn: Mutex<()>,
    /// The server did not answer: until then it is left alone.
    resting: std::sync::Mutex<Option<Moment>>,
}

/// Why an alert is not on the screen.
enum NotShown {
    /// Nor will it be if it is tried again.
    Refused(zbus::Error),
    /// The server is not itself just now.
    Later(String),
}

impl Screen {
    /// The screen of the session that this bus is of.
    pub fn new(shared: Arc<Shared>, bus: zbus::Connection) -> Self {
        Self { shared, bus, server: Mutex::new(None), turn: Mutex::new(()), resting: std::sync::Mutex::default() }
    }

    /// Shows one alert for these effects: the newest of them, which speaks for the others.
    pub async fn alert(&self, app: &AppId, effects: Vec<Pending>) -> Result<(), DbError> {
        let done: Vec<(i64, MessageId)> =
            effects.iter().filter_map(|effect| Some((effect.place, alert_of(effect)?.id))).collect();
        let Some(newest) = effects.last().and_then(alert_of) else { return Ok(()) };
        let _turn = self.turn.lock().await;
        let server = match self.server().await {
            Ok(server) => server,
            Err(why) => return self.rest(&why),
        };
        let more = u32::try_from(effects.len() - 1).unwrap_or(u32::MAX);
        let (alert, replaced) = self.on_record(app, newest, more, server.key()).await?;
        fault_point("alerting");
        self.shared.store.showing(alert.clone()).await?;
        fault_point("alert-noted");
        match self.show(&server, &alert, newest, false).await {
            Ok(notification) => {
                fault_point("alerted");
                self.shared.store.alerted(Shown { notification, ..alert }, done).await
            }
            Err(NotShown::Later(why)) => self.rest(&why),
            Err(NotShown::Refused(error)) => {
                let why = format!("the notification server refused it: {error}");
                let why = history::brief(&why).to_owned();
                debug!(%app, "an alert was not shown: {why}");
                self.shared.store.not_alerted(newest.id, replaced, done, why).await
            }
        }
    }

    /// Until when the server is left alone, because it did not answer.
    pub fn resting(&self) -> Option<Moment> {
        let until = *lock(&self.resting);
        until.filter(|until| *until > self.shared.clock.now())
    }

    /// Leaves the server alone for a while: what is to be shown stays to be shown.
    fn rest(&self, why: &str) -> Result<(), DbError> {
        debug!("the notification server is left alone for a while: {why}");
        *lock(&self.resting) = Some(self.shared.clock.now().after(REST));
        Ok(())
    }

    /// The alert with its number, and the alert that it replaces, whose number it takes over.
    async fn on_record(
        &self,
        app: &AppId,
        push: &Push,
        more: u32,
        server: &str,
    ) -> Result<(Shown, Option<Shown>), DbError> {
        let topic = push.collapse_key.as_ref().map(|key| key.as_str().to_owned()).or_else(|| push.request_id.clone());
        let here = self.shared.store.alerts_of(app.clone(), server).await?;
        let replaced = here.into_iter().find(|alert| {
            alert.id == push.id || (alert.topic.is_some() && alert.topic == topic) || (more > 0 && alert.more > 0)
        });
        let notification = replaced.as_ref().map_or_else(new_number, |alert| alert.notification);
        let replaced = replaced.filter(|alert| alert.id != push.id);
        // An alert that speaks for several goes on speaking for those of the one it replaces.
        let older = replaced.as_ref().filter(|alert| more > 0 && alert.more > 0);
        let more = older.map_or(more, |alert| more + alert.more + 1);
        let alert = Shown { id: push.id, app: app.clone(), notification, server: server.to_owned(), topic, more };
        Ok((alert, replaced))
    }

    /// Asks the server to show an alert; returns its number there.
    async fn show(&self, server: &Server, alert: &Shown, push: &Push, again: bool) -> Result<u32, NotShown> {
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
                match tokio::time::timeout(ANSWER, call).await {
                    Ok(number) => Ok(number?),
                    Err(_) => Err(NotShown::Later("it does not answer".to_owned())),
                }
            }
        }
    }

    /// Takes off the screen what has been read, has expired or may not alert any more.
    pub async fn take_off(&self, over: Vec<Shown>) -> Result<(), DbError> {
        for alert in over {
            self.close(&alert).await;
            self.shared.store.alert_closed(alert.id).await?;
        }
        Ok(())
    }

    async fn close(&self, alert: &Shown) {
        let server = self.server_if_running().await.ok();
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
        *lock(&self.resting) = None;
        self.shared.hints.effects.notify_one();
        let _turn = self.turn.lock().await;
        let pending = self.shared.store.pending().await?;
        let is_pending = |id| pending.iter().filter_map(alert_of).any(|push| push.id == id);
        for (alert, push) in self.shared.store.current_alerts().await? {
            if is_pending(alert.id) {
                continue;
            }
            let server = match self.server().await {
                Ok(server) => server,
                Err(why) => return self.rest(&why),
            };
            let same = alert.server == server.key();
            let notification = if same { alert.notification } else { new_number() };
            let moved = Shown { notification, server: server.key().to_owned(), ..alert };
            match self.show(&server, &moved, &push, true).await {
                Ok(notification) => self.shared.store.showing(Shown { notification, ..moved }).await?,
                Err(NotShown::Later(why)) => return self.rest(&why),
                Err(NotShown::Refused(error)) => debug!(app = %moved.app, "an alert was not shown again: {error}"),
            }
        }
        Ok(())
    }

    /// Who shows alerts now; a notification server that can be started is. An error says why that is
    /// not known.
    async fn server(&self) -> Result<Server, String> {
        let running = self.server_if_running().await?;
        if matches!(running, Server::Desktop { .. }) || !is_activatable(&self.bus).await {
            return Ok(running);
        }
        // Any call starts it.
        let proxy = NotificationsProxy::new(&self.bus).await.map_err(|error| error.to_string())?;
        match tokio::time::timeout(ANSWER, proxy.get_server_information()).await {
            Err(_) => Err("it does not start in time".to_owned()),
            Ok(Ok(_)) => self.server_if_running().await,
            // It cannot be started: that is as if there were none.
            Ok(Err(error)) => {
                debug!("the notification server does not start: {error}");
                Ok(Server::Shell)
            }
        }
    }

    async fn server_if_running(&self) -> Result<Server, String> {
        let text = |error: zbus::Error| error.to_string();
        let dbus = DBusProxy::new(&self.bus).await.map_err(text)?;
        let name = zbus::names::BusName::from_static_str(NAME).map_err(|error| error.to_string())?;
        let Ok(owner) = dbus.get_name_owner(name).await else { return Ok(Server::Shell) };
        let mut known = self.server.lock().await;
        if let Some((of, server)) = known.as_ref()
            && *of == owner
        {
            return Ok(server.clone());
        }
        let proxy = NotificationsProxy::new(&self.bus).await.map_err(text)?;
        let capabilities = tokio::time::timeout(ANSWER, proxy.get_capabilities()).await;
        let capabilities = capabilities.map_err(|_| "it does not answer".to_owned())?.map_err(text)?;
        let bus = dbus.get_id().await.map_err(|error| error.to_string())?;
        let key = format!("{} {}", bus.as_str(), owner.as_str());
        let server = Server::Desktop { key, capabilities };
        *known = Some((owner, server.clone()));
        Ok(server)
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
        matches!(server, Ok(Server::Desktop { .. }))
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

    /// The alert with this number, once whatever is being shown is on record.
    async fn with_number(&self, number: u32) -> Option<Shown> {
        let _turn = self.turn.lock().await;
        let server = self.server_if_running().await.ok()?;
        let alert = self.shared.store.alert_numbered(server.key(), number).await;
        alert.unwrap_or_else(|error| {
            error!("the store failed: {error}");
            None
        })
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
    activatable_names(bus).await.is_ok_and(|names| names.iter().any(|name| name == NAME))
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
        // Its senders do not name one: whatever has something to alert with is urgent.
        Urgency::High if push.door == Door::Tizen => 1,
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

impl From<zbus::Error> for NotShown {
    fn from(error: zbus::Error) -> Self {
        let name = error_name(&error).unwrap_or_default();
        let is_absent = ["ServiceUnknown", "NameHasNoOwner"].iter().any(|absent| name.ends_with(absent));
        match is_absent || has_no_answer(&error) {
            true => Self::Later(error.to_string()),
            false => Self::Refused(error),
        }
    }
}

/// Most signals of the notification server that wait to be looked at; what comes on top is lost.
const SIGNALS: usize = 64;

/// Listens to the notification server, and shows again what was on the screen before.
pub async fn begin(screen: Arc<Screen>) {
    let (inbox, signals) = mpsc::channel(SIGNALS);
    let came = super::arrivals(&screen.bus, NAME).await;
    // What an earlier run has shown is shown again.
    came.notify_one();
    match signals_of_server(&screen.bus).await {
        Ok(stream) => drop(tokio::spawn(hear(stream, inbox))),
        Err(error) => warn!("clicks on alerts are not heard: {error}"),
    }
    tokio::spawn(listen(screen, signals, came));
}

async fn signals_of_server(bus: &zbus::Connection) -> zbus::Result<MessageStream> {
    let server = MatchRule::builder().sender(NAME).interface(NAME).build()?;
    MessageStream::for_match_rule(server, bus, None).await
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
