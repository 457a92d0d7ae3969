//! `org.bellwire.Push1`: what apps call. `dbus/org.bellwire.Push1.xml` is the contract.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::{broadcast, watch};
use tracing::{debug, warn};
use zbus::message::Header;
use zbus::names::OwnedUniqueName;
use zbus::object_server::{ResponseDispatchNotifier, SignalEmitter};
use zbus::{Connection, ObjectPath, OwnedObjectPath, OwnedVariant, Variant, interface};

use super::error::Error;
use super::message::dictionary;
use super::{PATH, Shared, caller, identity, is_there};
use crate::agent::apps::{Head, Line};
use crate::agent::connection::{Change, Command};
use crate::agent::identity::{Right, right};
use crate::agent::status::Status;
use crate::agent::store::{AppRow, Claim, Owner};
use crate::proto::device::LinkState;
use crate::proto::wishes::Wish;
use crate::proto::{AppId, Channel};

/// How long `Register` waits for the server; less than the 25 s after which callers give up.
const ANSWER: Duration = Duration::from_secs(20);

/// The object.
pub struct Push {
    shared: Arc<Shared>,
}

impl Push {
    /// The object over what all objects share.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The app's line, if the caller has it.
    fn line(&self, header: &Header<'_>, app: &str) -> Result<Arc<Line>, Error> {
        let app = parse(app)?;
        let caller = caller(header)?;
        match self.shared.apps.line(&app) {
            Some(line) if line.name == caller => Ok(line),
            Some(_) => Err(Error::PermissionDenied(format!("the app {app} is connected by somebody else"))),
            None => Err(Error::NotConnected(format!("connect the app {app} first"))),
        }
    }

    /// The app, if it is the caller's or nobody's yet.
    async fn claim(&self, bus: &Connection, app: &AppId, caller: &OwnedUniqueName) -> Result<AppRow, Error> {
        let (owner, right) = self.right(bus, app, caller).await?;
        let installed = self.shared.profile(bus, app).await.file;
        let claim = Claim { app: app.clone(), owner: owner.clone(), by_manifest: right == Right::Manifest, installed };
        let apps = Arc::clone(&self.shared.apps);
        let row = self.shared.store.claim(claim, move |app| apps.is_in_use(app)).await?;
        let row = row.ok_or_else(|| Error::TooMany("this device has as many apps as it may have".into()))?;
        if row.owner == owner { Ok(row) } else { Err(not_yours(app, "another user or sandboxed app had it first")) }
    }

    /// The app that the caller wants to look at or change, which need not be connected.
    async fn own(&self, bus: &Connection, header: &Header<'_>, app: &str) -> Result<AppRow, Error> {
        let app = parse(app)?;
        let (owner, right) = self.right(bus, &app, &caller(header)?).await?;
        let row = self.shared.store.app(app.clone()).await?;
        let row = row.ok_or_else(|| Error::UnknownApp(format!("no app {app} has ever connected")))?;
        if right == Right::Manifest || row.owner == owner {
            return Ok(row);
        }
        Err(not_yours(&app, "another user or sandboxed app had it first"))
    }

    /// Who the caller is, and what its right to the app rests on, if it is not another's already.
    async fn right(&self, bus: &Connection, app: &AppId, caller: &OwnedUniqueName) -> Result<(Owner, Right), Error> {
        let identity = identity(bus, caller).await?;
        let manifest = self.shared.installed.manifest(app);
        let right = right(self.shared.config.bus, manifest.as_deref(), &identity);
        Ok((identity.owner(), right.map_err(|why| not_yours(app, &why.to_string()))?))
    }

    /// Opens the app's line for the caller, unless another connection that is still there has it.
    async fn open_line(
        &self,
        bus: &Connection,
        app: &AppId,
        caller: OwnedUniqueName,
        path: ObjectPath<'_>,
        hold: bool,
    ) -> Result<Arc<Line>, Error> {
        let (apps, path) = (&self.shared.apps, OwnedObjectPath::from(path.to_owned()));
        // An app that was started anew may be quicker than the news that its old connection has gone.
        if let Some(older) = apps.line(app)
            && older.name != caller
            && !is_there(bus, &older.name).await
        {
            apps.disconnect(&older);
        }
        let line = apps
            .connect(app.clone(), caller, path, hold)
            .map_err(|taken| Error::PermissionDenied(format!("the app {app} is connected by {}", taken.by.as_str())))?;
        // A daemon that is started anew waits a while for the apps that were here.
        if let Err(error) = self.shared.store.came(app.clone()).await {
            apps.disconnect(&line);
            return Err(error.into());
        }
        Ok(line)
    }

    /// Puts a wish on disk and waits for what becomes of it.
    async fn wish(&self, app: &AppId, wish: Wish) -> Result<Change, Error> {
        let mut changes = self.shared.changes.subscribe();
        self.shared.store.wish(app.clone(), Some(wish)).await?;
        let stopping = |_| Error::Timeout("the daemon is stopping; the request stands".into());
        self.shared.commands.send(Command::Wish(app.clone(), wish)).await.map_err(stopping)?;
        match tokio::time::timeout(ANSWER, next_change(&mut changes, app)).await {
            Ok(Some(change)) => Ok(change),
            Ok(None) | Err(_) => Err(Error::Timeout(format!(
                "the push server has not answered ({}); the request stands, and RegistrationChanged will tell",
                link_state(&self.shared.status.borrow())
            ))),
        }
    }
}

#[interface(name = "org.bellwire.Push1", introspection_docs = false)]
impl Push {
    #[zbus(out_args("state", "reg_id"))]
    async fn connect(
        &self,
        app: &str,
        path: ObjectPath<'_>,
        options: HashMap<String, OwnedVariant>,
        #[zbus(connection)] bus: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(String, ResponseDispatchNotifier<String>), Error> {
        let app = parse(app)?;
        let caller = caller(&header)?;
        let row = self.claim(bus, &app, &caller).await?;
        let hold = options.get("hold-unread").and_then(|hold| bool::try_from(&**hold).ok()).unwrap_or(false);
        let line = self.open_line(bus, &app, caller, path, hold).await?;
        debug!(%app, name = line.name.as_str(), "an app connected");
        // A notifier around both would be introspected as one structure.
        let (state, reg_id) = registration(&row);
        let (reg_id, sent) = ResponseDispatchNotifier::new(reg_id);
        let (shared, bus) = (Arc::clone(&self.shared), bus.clone());
        tokio::spawn(async move {
            // The app learns its state before its first message.
            sent.await;
            attend(&shared, &bus, line).await;
        });
        Ok((state, reg_id))
    }

    async fn disconnect(&self, app: &str, #[zbus(header)] header: Header<'_>) -> Result<(), Error> {
        let line = self.line(&header, app)?;
        self.shared.apps.disconnect(&line);
        Ok(())
    }

    #[zbus(out_args("reg_id"))]
    async fn register(&self, app: &str, #[zbus(header)] header: Header<'_>) -> Result<String, Error> {
        let line = self.line(&header, app)?;
        let row = self.shared.store.app(line.app.clone()).await?;
        if row.as_ref().is_some_and(|row| !row.switches.enabled) {
            return Err(Error::Disabled(format!("the user has switched off the app {}", line.app)));
        }
        if let Some(AppRow { reg_id: Some(reg_id), wish: None, .. }) = row {
            return Ok(reg_id.to_string());
        }
        match self.wish(&line.app, Wish::Register).await? {
            Change::Registered(_, reg_id) => Ok(reg_id.to_string()),
            Change::Refused(_, refusal) => Err(Error::Refused(refusal.to_string())),
            Change::Unregistered(app) => Err(Error::NotRegistered(format!("the app {app} was deregistered meanwhile"))),
        }
    }

    async fn deregister(&self, app: &str, #[zbus(header)] header: Header<'_>) -> Result<(), Error> {
        let line = self.line(&header, app)?;
        match self.shared.store.app(line.app.clone()).await? {
            Some(AppRow { reg_id: None, wish: None, .. }) | None => Ok(()),
            Some(_) => self.wish(&line.app, Wish::Deregister).await.map(drop),
        }
    }

    #[zbus(out_args("reg_id"))]
    async fn get_registration_id(&self, app: &str, #[zbus(header)] header: Header<'_>) -> Result<String, Error> {
        let line = self.line(&header, app)?;
        let row = self.shared.store.app(line.app.clone()).await?;
        // While the server is asked for another one, the one before may be dead.
        let reg_id = row.filter(|row| row.wish != Some(Wish::Register)).and_then(|row| row.reg_id);
        reg_id
            .map(|reg_id| reg_id.to_string())
            .ok_or_else(|| Error::NotRegistered(format!("the app {} has no regId; call Register", line.app)))
    }

    #[zbus(out_args("message"))]
    async fn take_unread(
        &self,
        app: &str,
        #[zbus(connection)] bus: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<ResponseDispatchNotifier<HashMap<&'static str, Variant<'static>>>, Error> {
        let line = self.line(&header, app)?;
        let lane = self.shared.apps.lane(&line.app);
        let mut handing = lane.handing.subscribe();
        // An app of one thread answers no message while it waits for us.
        let mut head = tokio::select! {
            biased;
            head = Arc::clone(&lane.head).lock_owned() => head,
            _ = handing.wait_for(|handing| *handing) => return Ok(ResponseDispatchNotifier::new(HashMap::new()).0),
        };
        let courier = self.shared.courier(bus);
        let next = courier.next(&line.app, &mut head).await?;
        let members = next.as_ref().map(|(unread, again)| dictionary(unread, *again)).unwrap_or_default();
        let (response, sent) = ResponseDispatchNotifier::new(members);
        if let Some((unread, _)) = next {
            let bus = bus.clone();
            *head = Head::Offered(unread.push.id);
            tokio::spawn(async move {
                sent.await;
                // The bus handles our messages in order: a caller that is there after the answer
                // has been given the answer.
                if is_there(&bus, &line.name).await {
                    // What cannot be noted now is noted with the next message.
                    let _ = courier.settle(&unread, &mut head).await;
                }
            });
        }
        Ok(response)
    }

    #[zbus(out_args("count"))]
    async fn request_unread(&self, app: &str, #[zbus(header)] header: Header<'_>) -> Result<u32, Error> {
        let line = self.line(&header, app)?;
        let count = self.shared.store.count_unread(line.app.clone()).await?;
        line.ring();
        Ok(count)
    }

    #[zbus(out_args("launch_type", "id"))]
    async fn get_launch(&self, app: &str, #[zbus(header)] header: Header<'_>) -> Result<(String, String), Error> {
        let line = self.line(&header, app)?;
        let launch = self.shared.store.app(line.app.clone()).await?.and_then(|row| row.launch);
        let id = launch.and_then(|launch| launch.message()).map(|id| id.to_string());
        Ok((launch.map(|launch| launch.name().to_owned()).unwrap_or_default(), id.unwrap_or_default()))
    }

    #[zbus(out_args("count"))]
    async fn get_badge(
        &self,
        app: &str,
        #[zbus(connection)] bus: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<u32, Error> {
        Ok(self.own(bus, &header, app).await?.badge.into())
    }

    async fn set_badge(
        &self,
        app: &str,
        count: u32,
        #[zbus(connection)] bus: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(), Error> {
        let row = self.own(bus, &header, app).await?;
        if !self.shared.store.set_badge(row.app, count).await? {
            return Err(Error::Disabled(format!("the user has switched off the badge of the app {app}")));
        }
        self.shared.hints.badges.notify_one();
        Ok(())
    }

    /// A badge has changed.
    #[zbus(signal)]
    pub async fn badge_changed(emitter: &SignalEmitter<'_>, app: &str, count: u32) -> zbus::Result<()>;

    #[zbus(property)]
    fn link_state(&self) -> String {
        link_state(&self.shared.status.borrow()).to_owned()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").to_owned()
    }

    #[zbus(signal)]
    async fn registration_changed(
        emitter: &SignalEmitter<'_>,
        app: &str,
        state: &str,
        reg_id: &str,
        reason: &str,
    ) -> zbus::Result<()>;
}

fn not_yours(app: &AppId, why: &str) -> Error {
    Error::PermissionDenied(format!("the app {app} is not yours: {why}"))
}

fn parse(app: &str) -> Result<AppId, Error> {
    let app: AppId = app.parse().map_err(|error: crate::proto::ids::IdError| Error::InvalidAppId(error.to_string()))?;
    if Channel::is_reserved(&app) {
        return Err(Error::InvalidAppId(format!("{app} is reserved for apps that speak UnifiedPush")));
    }
    Ok(app)
}

/// The word for where the connection stands.
pub fn link_state(status: &Status) -> &'static str {
    match status.state {
        LinkState::Stopped => "stopped",
        LinkState::Waiting { .. } => "waiting",
        LinkState::Dialling | LinkState::Greeting => "connecting",
        LinkState::Online { .. } => "online",
    }
}

/// An app's registration: its state and regId.
pub fn registration(row: &AppRow) -> (String, String) {
    match (row.reg_id, row.wish) {
        _ if !row.switches.enabled => ("disabled".into(), String::new()),
        (_, Some(Wish::Register)) => ("registering".into(), String::new()),
        (_, Some(Wish::Deregister)) | (None, None) => ("unregistered".into(), String::new()),
        (Some(reg_id), None) => ("registered".into(), reg_id.to_string()),
    }
}

/// Serves a line until the app disconnects or its name leaves the bus.
async fn attend(shared: &Arc<Shared>, bus: &Connection, line: Arc<Line>) {
    let serving = tokio::spawn(shared.courier(bus).serve(Arc::clone(&line)));
    tokio::select! {
        () = line.closed() => {}
        gone = wait_until_gone(bus, &line) => {
            if let Err(error) = gone {
                warn!(app = %line.app, "the bus does not tell when the app goes: {error}");
            }
        }
    }
    shared.apps.disconnect(&line);
    // What is being handed over just now ends in one way or the other.
    if let Err(error) = serving.await {
        warn!(app = %line.app, "an app was not served to the end: {error}");
    }
    debug!(app = %line.app, "an app disconnected");
    shared.app_left(&line.app).await;
}

async fn wait_until_gone(bus: &Connection, line: &Line) -> zbus::Result<()> {
    let dbus = zbus::fdo::DBusProxy::new(bus).await?;
    let mut owners = dbus.receive_name_owner_changed_with_args(&[(0, line.name.as_str())]).await?;
    // It may have gone before we listened.
    if !is_there(bus, &line.name).await {
        return Ok(());
    }
    while let Some(signal) = owners.next().await {
        if signal.args()?.new_owner().is_none() {
            break;
        }
    }
    Ok(())
}

async fn next_change(changes: &mut broadcast::Receiver<Change>, app: &AppId) -> Option<Change> {
    loop {
        match changes.recv().await {
            Ok(change) if change.app() == app => return Some(change),
            Ok(_) => {}
            // Far more changes at once than there may be apps; the caller may look again.
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return None,
        }
    }
}

/// Tells each app, and nobody else, what becomes of its registration.
pub async fn announce_changes(bus: Connection, shared: Arc<Shared>) {
    let mut changes = shared.changes.subscribe();
    loop {
        let change = match changes.recv().await {
            Ok(change) => change,
            Err(broadcast::error::RecvError::Lagged(_)) => continue,
            Err(broadcast::error::RecvError::Closed) => return,
        };
        let Some(line) = shared.apps.line(change.app()) else { continue };
        if let Err(error) = announce(&bus, &shared, &line, &change).await {
            debug!(app = %line.app, "the app was not told about its registration: {error}");
        }
    }
}

async fn announce(bus: &Connection, shared: &Shared, line: &Line, change: &Change) -> zbus::Result<()> {
    let emitter = SignalEmitter::new(bus, PATH)?.set_destination(line.name.as_ref().into());
    let (state, reg_id, reason) = match change {
        Change::Registered(_, reg_id) => ("registered", reg_id.to_string(), String::new()),
        Change::Refused(_, refusal) => ("unregistered", String::new(), refusal.to_string()),
        Change::Unregistered(app) => {
            let row = shared.store.app(app.clone()).await.ok().flatten();
            let disabled = row.is_some_and(|row| !row.switches.enabled);
            (if disabled { "disabled" } else { "unregistered" }, String::new(), String::new())
        }
    };
    Push::registration_changed(&emitter, line.app.as_str(), state, &reg_id, &reason).await
}

/// Emits the property's change signal when the word for the connection changes.
pub async fn announce_link(bus: Connection, mut status: watch::Receiver<Status>) {
    let Ok(object) = bus.object_server().interface::<_, Push>(PATH).await else { return };
    let mut last = link_state(&status.borrow_and_update());
    while status.changed().await.is_ok() {
        let word = link_state(&status.borrow_and_update());
        if word != last {
            last = word;
            // Nobody hears it if the bus is gone; the daemon is ending then.
            let _ = object.get().await.link_state_changed(object.signal_emitter()).await;
        }
    }
}
