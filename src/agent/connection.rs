//! The task that owns the connection to the server: it carries out what the device's state machine
//! decides, and is the only one who talks to it.
//!
//! Pushes that arrive while the store is writing are written together as the next batch; they are
//! acknowledged when their batch is on disk.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{debug, error, info, warn};

use crate::daemon::{Stop, fault_point};
use crate::db::DbError;
use crate::link::dial::{Caller, Dialling};
use crate::link::{DeviceLink, Gateway, Link, LinkError};
use crate::proto::device::{Device, DeviceAction, LinkState, Online};
use crate::proto::frame::{Delivery, Outcome, ToDevice, WINDOW};
use crate::proto::wishes::Wish;
use crate::proto::{AppId, Channel};
use crate::supervisor::{self, Watchdog};
use crate::world::{self, Clock};

use super::alarm::Alarm;
use super::apps::Apps;
use super::attempt::{Failed, Opened, attempt};
use super::effects::Hints;
use super::routes::Routes;
use super::status::{Status, Tally};
use super::store::{AppRow, Received, Store};
use super::system::{Ready, Signal, Source, System};

mod machine;
mod publish;
mod talk;

pub use talk::{Change, Command, Reach};

/// What the task is made of.
pub struct Parts {
    /// The gateway of the configuration.
    pub configured: Gateway,
    /// The links to dial.
    pub routes: Routes,
    /// How to dial it.
    pub dialling: Dialling,
    /// As whom.
    pub caller: Caller,
    /// The device's store.
    pub store: Store,
    /// The connected apps.
    pub apps: Arc<Apps>,
    /// Who shows alerts and badges and starts apps.
    pub hints: Arc<Hints>,
    /// The clock of the state machine.
    pub clock: Clock,
    /// Its alarm.
    pub alarm: Alarm,
    /// What the machine says of itself.
    pub system: System,
    /// What others ask.
    pub commands: mpsc::Receiver<Command>,
    /// Who listens to registrations.
    pub changes: broadcast::Sender<Change>,
    /// Who looks at the status.
    pub status: watch::Sender<Status>,
}

type Later<T> = Option<Pin<Box<dyn Future<Output = T> + Send>>>;

struct Connection {
    parts: Parts,
    device: Device,
    link: Option<DeviceLink>,
    dialled: Later<Result<Opened, Failed>>,
    stored: Later<Result<Received, DbError>>,
    /// Pushes for the next batch; at most a window of them.
    waiting: Vec<Delivery>,
    /// Who tells about the machine, in order.
    sources: Vec<Source>,
    /// The address that the device had when the network was last looked at.
    address: Option<IpAddr>,
    /// The machine waits for this before it sleeps.
    ready: Option<Ready>,
    /// Who tells the supervisor that the task lives.
    watchdog: Watchdog,
    /// The last link, on its way out.
    farewell: Option<JoinHandle<()>>,
    /// What it did since the start, over the links that are gone.
    total: Tally,
    /// The day, in UTC, and what had been done when it began.
    day: (i64, Tally),
}

/// A session over another link than the preferred one is left after this time, when the device is awake anyway.
const PREFER_AFTER: Duration = Duration::from_secs(3600);
/// How long a goodbye may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// What woke the task.
enum Event {
    Frame(Result<ToDevice, LinkError>),
    Dialled(Result<Opened, Failed>),
    Stored(Result<Received, DbError>),
    Command(Option<Command>),
    Machine(Signal),
    MaySleep,
    Timer,
    SignOfLife,
    Stop,
}

/// Keeps the device connected until the stop comes. An error is one of the store at the start.
pub async fn run(device: Device, parts: Parts, mut stop: Stop) -> Result<(), DbError> {
    let mut this = Connection {
        parts,
        device,
        link: None,
        dialled: None,
        stored: None,
        waiting: Vec::new(),
        sources: Vec::new(),
        address: None,
        ready: None,
        watchdog: Watchdog::wanted(),
        farewell: None,
        total: Tally::default(),
        day: (0, Tally::default()),
    };
    this.load_wishes().await?;
    this.load_network().await?;
    this.device.start();
    loop {
        this.act().await;
        let event = this.next_event(&mut stop).await;
        if matches!(event, Event::Stop | Event::Command(None)) {
            break;
        }
        this.handle(event).await;
    }
    this.device.stop();
    this.act().await;
    if let Some(farewell) = this.farewell.take() {
        // It ends by itself; a panic in it changes nothing any more.
        let _ = farewell.await;
    }
    Ok(())
}

impl Connection {
    async fn load_wishes(&mut self) -> Result<(), DbError> {
        let now = self.parts.clock.now();
        for (app, wish) in self.parts.store.wishes().await? {
            self.device.wish(now, app, wish);
        }
        Ok(())
    }

    async fn next_event(&mut self, stop: &mut Stop) -> Event {
        // A server that sends more than the window allows is not read until that much is stored.
        let room = self.waiting.len() < WINDOW;
        tokio::select! {
            frame = next_frame(&mut self.link), if room => Event::Frame(frame),
            dialled = when_done(&mut self.dialled) => Event::Dialled(dialled),
            stored = when_done(&mut self.stored) => Event::Stored(stored),
            command = self.parts.commands.recv() => Event::Command(command),
            signal = self.parts.system.next() => Event::Machine(signal),
            () = machine::last_words(), if self.ready.is_some() && self.stored.is_none() => Event::MaySleep,
            () = self.parts.alarm.ring(self.device.poll_timeout()) => Event::Timer,
            () = self.watchdog.due() => Event::SignOfLife,
            () = stop.wait() => Event::Stop,
        }
    }

    async fn handle(&mut self, event: Event) {
        let (now, luck) = (self.parts.clock.now(), world::luck());
        if let Some(slept) = self.parts.alarm.slept() {
            debug!("the device has slept for {} s", slept.as_secs());
            self.device.handle_awake(now);
        }
        match event {
            Event::Frame(Ok(frame)) => self.device.handle_frame(now, frame, luck),
            Event::Frame(Err(LinkError::Frame(error))) => {
                debug!("the server sent no frame: {error}");
                self.device.handle_garbage(now, luck);
            }
            Event::Frame(Err(error @ (LinkError::Broken(_) | LinkError::Unreachable(_)))) => {
                drop(self.take_link());
                self.device.handle_link_broken(now, &error.to_string(), luck);
            }
            Event::Frame(Err(error @ (LinkError::Closed | LinkError::NotAGateway(_)))) => {
                drop(self.take_link());
                self.device.handle_link_down(now, &error.to_string(), luck);
            }
            Event::Dialled(Ok((link, resume))) => {
                let longest_silence = link.longest_silence();
                self.link = Some(link);
                // By now the kernel knows the router.
                self.look_again().await;
                self.device.handle_link_up(now, resume, longest_silence);
            }
            Event::Dialled(Err(failed)) => {
                if failed.unreachable {
                    self.parts.routes.unreachable();
                }
                self.device.handle_link_down(now, &failed.why, luck);
            }
            Event::Stored(Ok(received)) => self.handle_received(&received).await,
            Event::Stored(Err(error)) => {
                error!("messages could not be stored and stay at the server: {error}");
                self.waiting.clear();
                self.device.handle_store_failed(now, luck);
            }
            Event::Command(Some(command)) => self.handle_command(command).await,
            Event::Machine(signal) => self.handle_signal(signal).await,
            Event::MaySleep => self.ready = None,
            Event::Timer => {
                self.device.handle_timer(now, luck);
                self.parts.system.woke();
                self.prefer(PREFER_AFTER);
            }
            Event::SignOfLife => supervisor::alive(),
            // Both end the loop before they come here.
            Event::Command(None) | Event::Stop => {}
        }
    }

    async fn handle_command(&mut self, command: Command) {
        let now = self.parts.clock.now();
        match command {
            Command::Wish(app, wish) => self.device.wish(now, app, wish),
            Command::Report => self.report().await,
            Command::TryNow => {
                self.device.try_now();
                self.prefer(Duration::ZERO);
            }
            Command::Reach(reach) => {
                let Reach { configured, routes, dialling, enrolment_key } = *reach;
                (self.parts.configured, self.parts.routes, self.parts.dialling) = (configured, routes, dialling);
                self.parts.system.use_gateway(self.parts.routes.current().clone());
                self.device.start_over(now, enrolment_key);
            }
        }
    }

    /// Leaves a link for a better one, if the session over it is as old as that.
    fn prefer(&mut self, age: Duration) {
        let LinkState::Online { since, .. } = *self.device.state() else { return };
        if self.parts.routes.better() && self.parts.clock.now().since(since) >= age {
            debug!("the device tries a link that it prefers");
            self.device.redial(self.parts.clock.now());
        }
    }

    async fn handle_received(&mut self, received: &Received) {
        fault_point("stored");
        let now = self.parts.clock.now();
        self.device.handle_stored(now, &received.ids);
        self.device.handle_not_kept(now, &received.not_kept);
        for app in &received.apps {
            self.parts.apps.ring(app);
        }
        if received.apps.iter().any(Channel::is_reserved) {
            self.parts.hints.channels.notify_one();
        }
        self.parts.hints.of(&received.changes);
        for app in &received.unwanted {
            self.end_unwanted(app).await;
        }
        if received.changes.outcomes {
            self.report().await;
        }
    }

    /// Tells the server what became of messages. What it has not noted is told again with the next
    /// report or session.
    async fn report(&mut self) {
        let outcomes = self.parts.store.outcomes().await;
        let outcomes = self.or_log(outcomes, Vec::<Outcome>::new());
        self.device.report(self.parts.clock.now(), &outcomes);
    }

    /// Carries out what the state machine has decided.
    async fn act(&mut self) {
        while let Some(action) = self.device.poll_action() {
            self.carry_out(action).await;
        }
        if self.stored.is_none() && !self.waiting.is_empty() {
            let (store, batch) = (self.parts.store.clone(), std::mem::take(&mut self.waiting));
            let apps = Arc::clone(&self.parts.apps);
            fault_point("arrived");
            self.stored = Some(Box::pin(async move { store.receive(batch, move |app| apps.is_in_use(app)).await }));
        }
        self.publish();
    }

    async fn carry_out(&mut self, action: DeviceAction) {
        match action {
            DeviceAction::Dial => self.dial(),
            DeviceAction::Send(frame) => {
                if let Some(link) = &mut self.link
                    && let Err(error) = link.queue(&frame)
                {
                    debug!("a frame could not be sent: {error}");
                }
            }
            DeviceAction::Store(delivery) => self.waiting.push(*delivery),
            DeviceAction::Hangup => self.hang_up(),
            DeviceAction::UseGateway(gateway) => self.use_gateway(&gateway),
            DeviceAction::Online(online) => {
                self.total.connects += 1;
                self.come_online(online).await;
            }
            DeviceAction::Registered(app, reg_id, endpoint) => {
                let done = self.parts.store.registered(app.clone(), reg_id, endpoint).await;
                self.settle(done, Change::Registered(app, reg_id));
            }
            DeviceAction::Refused(app, refusal) => {
                let done = self.parts.store.registration_refused(app.clone(), refusal).await;
                self.settle(done, Change::Refused(app, refusal));
            }
            DeviceAction::Deregistered(app) => {
                let done = self.parts.store.deregistered(app.clone()).await;
                self.settle(done, Change::Unregistered(app));
            }
            DeviceAction::Unregistered(app) => self.confirm_end(app).await,
            DeviceAction::Noted(ids) => {
                let more = ids.len() >= crate::proto::frame::LIST_MAX;
                let done = self.parts.store.noted(ids).await;
                self.or_log(done, ());
                if more {
                    self.report().await;
                }
            }
            DeviceAction::Learned(key, learned) => {
                let done = self.parts.store.learn(key, learned, self.device.profile().constants().networks).await;
                self.or_log(done, ());
            }
        }
    }

    fn dial(&mut self) {
        drop(self.take_link());
        let (gateway, dialling) = (self.parts.routes.take_next(), self.parts.dialling.clone());
        let (caller, store) = (self.parts.caller.clone(), self.parts.store.clone());
        self.dialled = Some(Box::pin(attempt(gateway, dialling, caller, store)));
    }

    /// Takes the link out of use, and counts what went over it.
    fn take_link(&mut self) -> Option<DeviceLink> {
        self.total = self.total();
        self.link.take()
    }

    fn hang_up(&mut self) {
        self.dialled = None;
        if let Some(link) = self.take_link() {
            self.farewell = Some(tokio::spawn(async move {
                // Whether the peer took it or not, the link is done with.
                let _ = tokio::time::timeout(FAREWELL, link.close()).await;
            }));
        }
    }

    fn use_gateway(&mut self, gateway: &str) {
        match gateway.parse::<Gateway>() {
            Ok(named) if !self.parts.routes.use_gateway(named.clone()) => {
                warn!("the server named an unencrypted gateway, which is not used: {named}");
            }
            Ok(_) => info!("the server named another gateway: {gateway}"),
            Err(why) => warn!("the server named a gateway that is none: {why}"),
        }
    }

    async fn come_online(&mut self, online: Online) {
        let configured = self.parts.configured.to_string();
        if let Some(named) = self.parts.routes.arrived().cloned() {
            let done = self.parts.store.set_gateway(&configured, named.to_string()).await;
            self.or_log(done, ());
            self.parts.system.use_gateway(named);
        }
        if self.parts.routes.offer(&online.links) {
            let done = self.parts.store.set_links(&configured, &online.links).await;
            self.or_log(done, ());
        }
        let renewed = self.parts.store.renew(&self.parts.routes.gateway().to_string(), online.enrolled).await;
        let renewed = self.or_log(renewed, Vec::new());
        if !renewed.is_empty() {
            warn!(apps = renewed.len(), "the server may know none of the registrations; they are made anew");
        }
        for app in renewed {
            self.device.register(self.parts.clock.now(), app);
        }
        self.ask_again().await;
        self.report().await;
    }

    /// Asks anew for what the server refused in an earlier session and apps still count on.
    async fn ask_again(&mut self) {
        let refused = self.parts.store.refused_channels().await;
        for app in self.or_log(refused, Vec::new()) {
            self.device.wish(self.parts.clock.now(), app, Wish::Register);
        }
    }

    /// The server ended a registration: the device agrees, and says so until it is heard. Where the
    /// app has asked for a new one meanwhile, asking says it as well.
    async fn confirm_end(&mut self, app: AppId) {
        let row = self.parts.store.app(app.clone()).await;
        if self.or_log(row, None).is_some_and(|row| row.wish == Some(Wish::Register)) {
            return;
        }
        let lost = self.parts.store.registration_lost(app.clone()).await;
        self.settle(lost, Change::Unregistered(app.clone()));
        self.parts.hints.effects.notify_one();
        self.device.deregister(self.parts.clock.now(), app);
    }

    /// The server has a registration that the device knows nothing of: it is ended, unless the app has
    /// asked for one meanwhile. Asking later replaces this wish. If it is lost, the next such message
    /// brings it back.
    async fn end_unwanted(&mut self, app: &AppId) {
        let row = self.parts.store.app(app.clone()).await;
        let wanted = |row: &AppRow| row.reg_id.is_some() || row.wish.is_some();
        match row {
            Ok(row) if row.as_ref().is_some_and(wanted) => {}
            Ok(_) => self.device.deregister(self.parts.clock.now(), app.clone()),
            Err(error) => error!("the store failed: {error}"),
        }
    }

    /// Tells everybody about a change that is on disk.
    fn settle(&self, done: Result<(), DbError>, change: Change) {
        match done {
            // Nobody listens when the bus is gone, and then nobody needs to.
            Ok(()) => drop(self.parts.changes.send(change)),
            Err(error) => error!("a registration could not be stored: {error}"),
        }
    }

    fn or_log<T>(&self, result: Result<T, DbError>, otherwise: T) -> T {
        result.unwrap_or_else(|error| {
            error!("the store failed: {error}");
            otherwise
        })
    }
}

async fn next_frame(link: &mut Option<DeviceLink>) -> Result<ToDevice, LinkError> {
    match link {
        Some(link) => link.next().await,
        None => std::future::pending().await,
    }
}

/// Waits for a future that may not be there; takes it away when it is done. Safe to cancel.
async fn when_done<T>(later: &mut Later<T>) -> T {
    let result = match later {
        Some(future) => future.as_mut().await,
        None => std::future::pending().await,
    };
    *later = None;
    result
}
