//! Carries out what messages are to bring about: alerts on the screen, starts of apps, badges.
//!
//! The store has what is to be done; a wake-up is only a hint to look. What is carried out here
//! can be carried out again after a power cut and is then the same once: a notification has its
//! number, and what is started its name, on disk before it is asked for.
//!
//! * [`screen`]: alerts; [`launch`], [`systemd`], [`process`]: starting apps; [`badges`].

pub mod badges;
pub mod launch;
pub mod process;
pub mod screen;
pub mod systemd;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::{error, warn};
use zbus::object_server::SignalEmitter;
use zbus::{MatchRule, MessageStream};

use super::bus::manager::Manager;
use super::bus::{PATH, Shared};
use super::connection::Command;
use super::pace::{self, Due, Paces, Rates};
use super::plan::Manner;
use super::store::{Changes, Hop, Launch, Pending, Task, history};
use crate::daemon::{fault_point, lock};
use crate::db::DbError;
use crate::proto::{AppId, MessageId, Moment};
use crate::world;
use launch::{Launcher, Reason};
use screen::Screen;

/// Hints that there is something new in the store.
#[derive(Debug, Default)]
pub struct Hints {
    /// Something is to be shown or started, or no longer.
    pub effects: Notify,
    /// A badge has changed.
    pub badges: Notify,
    /// An app that speaks UnifiedPush has something to be told or to be handed.
    pub channels: Notify,
    /// Those of them that the user has switched since they were last asked for.
    switched: Mutex<HashSet<AppId>>,
}

impl Hints {
    /// The user has changed what an app that speaks UnifiedPush may do.
    pub fn switch(&self, app: AppId) {
        lock(&self.switched).insert(app);
        self.channels.notify_one();
    }

    /// The apps of which the user has done so since this was last asked.
    pub fn switched(&self) -> HashSet<AppId> {
        std::mem::take(&mut *lock(&self.switched))
    }

    /// Wakes whoever these changes are for.
    pub fn of(&self, changes: &Changes) {
        if changes.effects {
            self.effects.notify_one();
        }
        if changes.badges {
            self.badges.notify_one();
        }
    }
}

/// How long to wait before the store is tried again after it failed.
pub const STORE_RETRY: Duration = Duration::from_secs(30);

/// How long a start of an app may take. A bus gives up earlier.
pub(super) const START: Duration = Duration::from_secs(120);

/// Tells, once for any number of times, that somebody has taken this name on the bus.
async fn arrivals(bus: &zbus::Connection, name: &'static str) -> Arc<Notify> {
    let came = Arc::new(Notify::new());
    match owners(bus, name).await {
        Ok(owners) => drop(tokio::spawn(note_arrivals(owners, Arc::clone(&came)))),
        Err(error) => warn!("the arrival of {name} is not noticed: {error}"),
    }
    came
}

async fn owners(bus: &zbus::Connection, name: &'static str) -> zbus::Result<MessageStream> {
    let rule = MatchRule::builder().sender("org.freedesktop.DBus").member("NameOwnerChanged").arg(0, name).build()?;
    MessageStream::for_match_rule(rule, bus, None).await
}

/// It only reads: a stream that is not read holds up everything on the bus.
async fn note_arrivals(mut owners: MessageStream, came: Arc<Notify>) {
    while let Some(Ok(change)) = owners.next().await {
        if change.body().deserialize().is_ok_and(|(_, _, new): (String, String, String)| !new.is_empty()) {
            came.notify_one();
        }
    }
}

/// The task that carries effects out.
pub struct Performer {
    shared: Arc<Shared>,
    bus: zbus::Connection,
    screen: Arc<Screen>,
    paces: HashMap<AppId, Paces>,
    /// Apps for which something is being done: what comes for them waits until it is.
    busy: HashSet<AppId>,
    /// Alerts are being taken off the screen.
    tidying: bool,
    jobs: JoinSet<Done>,
}

/// What a job was for.
enum Done {
    App(AppId),
    Tidying,
}

impl Performer {
    /// Over the bus that the apps are on.
    pub fn new(shared: Arc<Shared>, bus: zbus::Connection) -> Self {
        let screen = Arc::new(Screen::new(Arc::clone(&shared), bus.clone()));
        Self { shared, bus, screen, paces: HashMap::new(), busy: HashSet::new(), tidying: false, jobs: JoinSet::new() }
    }

    /// Runs as long as the daemon.
    pub async fn run(mut self) {
        screen::begin(Arc::clone(&self.screen)).await;
        loop {
            let again = match self.begin_due().await {
                Ok(again) => again,
                Err(error) => {
                    error!("the store failed: {error}");
                    Some(self.shared.clock.now().after(STORE_RETRY))
                }
            };
            tokio::select! {
                () = self.shared.hints.effects.notified() => {}
                Some(done) = self.jobs.join_next() => self.finish(done),
                () = self.shared.clock.sleep_until(again) => {}
            }
        }
    }

    fn finish(&mut self, done: Result<Done, tokio::task::JoinError>) {
        match done {
            Ok(Done::App(app)) => drop(self.busy.remove(&app)),
            Ok(Done::Tidying) => self.tidying = false,
            // Its app stays busy: what broke would break again.
            Err(error) => error!("an effect was not carried out: {error}"),
        }
    }

    /// Begins what is due; returns when to look again.
    async fn begin_due(&mut self) -> Result<Option<Moment>, DbError> {
        self.begin_tidying().await?;
        let expiry = self.shared.store.next_alert_end().await?.map(|end| moment_of(end, &self.shared));
        let pending = self.shared.store.pending().await?;
        if pending.is_empty() {
            return Ok(expiry);
        }
        let resting = self.screen.resting();
        let hold_alerts = resting.is_some() || self.shared.store.do_not_disturb().await?;
        let limits = self.shared.config.limits;
        let rates = Rates { alerts: limits.alerts_per_minute, launches: limits.launches_per_minute };
        let now = self.shared.clock.now();
        let mut again = expiry.into_iter().chain(resting).min();
        for (app, pending) in by_app(pending) {
            if self.busy.contains(&app) {
                continue;
            }
            let due = pace::due(pending, self.paces.entry(app.clone()).or_default(), rates, hold_alerts, now);
            again = again.into_iter().chain(due.again).min();
            if !due.starts.is_empty() || !due.alerts.is_empty() {
                self.busy.insert(app.clone());
                let job =
                    Job { shared: Arc::clone(&self.shared), bus: self.bus.clone(), screen: Arc::clone(&self.screen) };
                self.jobs.spawn(async move {
                    job.carry_out(&app, due).await;
                    Done::App(app)
                });
            }
        }
        Ok(again)
    }
}

impl Performer {
    /// Takes alerts that are over off the screen, in a job of its own: nobody waits for a server that
    /// hangs.
    async fn begin_tidying(&mut self) -> Result<(), DbError> {
        if self.tidying {
            return Ok(());
        }
        let over = self.shared.store.alerts_over().await?;
        if !over.is_empty() {
            self.tidying = true;
            let screen = Arc::clone(&self.screen);
            self.jobs.spawn(async move {
                if let Err(error) = screen.take_off(over).await {
                    error!("the store failed: {error}");
                    tokio::time::sleep(STORE_RETRY).await;
                }
                Done::Tidying
            });
        }
        Ok(())
    }
}

fn by_app(pending: Vec<Pending>) -> HashMap<AppId, Vec<Pending>> {
    let mut apps: HashMap<AppId, Vec<Pending>> = HashMap::new();
    for effect in pending {
        apps.entry(effect.app.clone()).or_default().push(effect);
    }
    apps
}

/// The effects of one app that are due together.
struct Job {
    shared: Arc<Shared>,
    bus: zbus::Connection,
    screen: Arc<Screen>,
}

impl Job {
    async fn carry_out(&self, app: &AppId, due: Due) {
        let done = async {
            for start in due.starts {
                self.start(app, start).await?;
            }
            for alert in due.alerts {
                self.screen.alert(app, alert).await?;
            }
            // A full queue of commands has a report in it, or will have one with the next session.
            let _ = self.shared.commands.try_send(Command::Report);
            Ok::<_, DbError>(())
        };
        if let Err(error) = done.await {
            error!(%app, "what was done for the app could not be noted, and will be tried again: {error}");
            // What is not noted is still due: without a rest it would be done again at once, for ever.
            tokio::time::sleep(STORE_RETRY).await;
        }
    }

    async fn start(&self, app: &AppId, effects: Vec<Pending>) -> Result<(), DbError> {
        let Some(reason) = reason(&effects) else { return Ok(()) };
        let done = effects.iter().map(|effect| (effect.place, message(&effect.task))).collect::<Vec<_>>();
        let (hop, how) = match self.launch(app, &reason, &effects).await? {
            Ok(how) => (Hop::Launched, how),
            Err(why) => {
                let why = history::brief(&why).to_owned();
                warn!(%app, "the app was not started: {why}");
                self.shared.apps.give_up(app);
                self.shared.store.launching(app.clone(), None).await?;
                self.report(app, &reason, &why).await;
                (Hop::Failed, why)
            }
        };
        fault_point("launched");
        self.shared.store.started(done, hop, how).await
    }

    /// How the app was started, or why not.
    async fn launch(
        &self,
        app: &AppId,
        reason: &Reason,
        effects: &[Pending],
    ) -> Result<Result<String, String>, DbError> {
        let Some(row) = self.shared.store.app(app.clone()).await? else {
            return Ok(Err("there is no such app any more".to_owned()));
        };
        let by_user = reason.token.is_some() || effects.iter().any(|effect| matches!(effect.task, Task::Open { .. }));
        if !by_user && !row.switches.launch {
            return Ok(Err("the user does not let messages start this app".to_owned()));
        }
        if !by_user && self.shared.apps.line(app).is_some() {
            return Ok(Ok("the app has connected meanwhile".to_owned()));
        }
        let in_front = reason.manner == Manner::Foreground;
        if !by_user && in_front && self.shared.store.do_not_disturb().await? {
            return Ok(Err("do-not-disturb: the app was not started".to_owned()));
        }
        self.shared.apps.expect(app);
        self.shared.store.launching(app.clone(), Some(reason.launch)).await?;
        fault_point("launching");
        let launcher = Launcher { shared: &self.shared, bus: &self.bus };
        launcher.start(&row, reason, effects).await
    }

    async fn report(&self, app: &AppId, reason: &Reason, why: &str) {
        let id = reason.launch.message().map(|id| id.to_string()).unwrap_or_default();
        let Ok(emitter) = SignalEmitter::new(&self.bus, PATH) else { return };
        // If the bus is gone the daemon is ending.
        let _ = Manager::launch_failed(&emitter, app.as_str(), &id, why).await;
    }
}

fn message(task: &Task) -> Option<MessageId> {
    match task {
        Task::Alert(push) => Some(push.id),
        Task::Launch(_, id) | Task::Open { id, .. } => Some(*id),
        Task::RegistrationChange => None,
    }
}

/// Why an app is started for these effects together: the newest message counts, and one that wants
/// the foreground has it.
fn reason(effects: &[Pending]) -> Option<Reason> {
    let mut reason: Option<Reason> = None;
    for effect in effects {
        let (manner, launch, token) = match &effect.task {
            Task::Launch(manner, id) => (*manner, Launch::Notification(*id), None),
            Task::Open { id, token } => (Manner::Foreground, Launch::Notification(*id), token.clone()),
            Task::RegistrationChange => (Manner::Background, Launch::RegistrationChange, None),
            Task::Alert(_) => continue,
        };
        let older = reason.take();
        let foreground = older.as_ref().is_some_and(|older| older.manner == Manner::Foreground);
        let launch = match (launch, older.as_ref().map(|older| older.launch)) {
            (Launch::RegistrationChange, Some(older)) => older,
            (launch, _) => launch,
        };
        let manner = if foreground { Manner::Foreground } else { manner };
        reason = Some(Reason { launch, manner, token: token.or(older.and_then(|older| older.token)) });
    }
    reason
}

/// Decides, a while after the start, about what an earlier run was doing with connected apps: an app
/// that is still there connects again within that time.
pub async fn end_earlier_run(shared: Arc<Shared>) {
    tokio::time::sleep(Duration::from_secs(shared.config.limits.reconnect_s.into())).await;
    let mut apps = shared.apps.end_return();
    match shared.store.left_over().await {
        Ok(others) => apps.extend(others),
        Err(error) => error!("the store failed: {error}"),
    }
    for app in apps {
        shared.app_left(&app).await;
    }
}

/// The wall clock's time as a moment of the daemon's clock, if it is to come.
fn moment_of(at: crate::proto::UnixMillis, shared: &Shared) -> Moment {
    let wait = at.0.saturating_sub(world::now().0).max(0);
    shared.clock.now().after(Duration::from_millis(wait.unsigned_abs()))
}
