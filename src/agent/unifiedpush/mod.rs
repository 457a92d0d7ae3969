//! The daemon as a UnifiedPush distributor on the session's bus: apps that know nothing of Bellwire
//! register here and get their messages by the specification of unifiedpush.org.
//!
//! * `distributor`: the objects on the bus; `registrations`: who may have one and how it ends.
//! * [`patience`], pure: when an app is called again; `connector`: the calls; `postman`: one app at a
//!   time; `owner`: who has its name; `bell`: hints between them.
//!
//! A registration is a Web Push channel, which the store has as an app. It has no queue, no settling
//! and no settings of its own. Nothing here keeps a timer while no app has something to wait for.

mod bell;
mod connector;
mod distributor;
mod owner;
pub mod patience;
mod postman;
mod registrations;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::broadcast;
use tokio::task::{JoinError, JoinSet};
use tracing::{error, info, warn};
use zbus::connection::Builder;
use zbus::fdo::RequestNameFlags;
use zbus::names::OwnedBusName;

use super::bus::{End, Shared};
use super::config::Bus;
use super::effects::STORE_RETRY;
use super::store::Store;
use super::store::channels::{Guest, Registration, Token};
use crate::db::DbError;
use crate::proto::AppId;
use bell::{Bell, Ring};
use distributor::{Distributor1, Distributor2};
use owner::Watch;
use postman::Postman;
use registrations::Registrar;

/// The distributor's name on the bus.
pub const NAME: &str = "org.unifiedpush.Distributor.bellwire";
/// The name of KDE's distributor, which some apps look for and no other.
pub const KDE_NAME: &str = "org.unifiedpush.Distributor.kde";
/// The object.
pub const PATH: &str = "/org/unifiedpush/Distributor";

/// The distributor of this daemon, on its way to the bus.
pub struct Distributor {
    shared: Arc<Shared>,
    bell: Arc<Bell>,
}

impl Distributor {
    /// The distributor, if there is to be one: apps that speak UnifiedPush are on a session's bus.
    pub fn new(shared: &Arc<Shared>) -> Option<Self> {
        let wanted = shared.config.unifiedpush.enabled && shared.config.bus == Bus::Session;
        wanted.then(|| Self { shared: Arc::clone(shared), bell: Arc::default() })
    }

    /// Ends the registrations that apps have from when there was one. They hear of it when there is one again.
    pub async fn end(store: &Store) {
        match store.end_channels().await {
            Ok(0) => {}
            Ok(ended) => info!(ended, "UnifiedPush is switched off, and the registrations of its apps end"),
            Err(error) => error!("the store failed: {error}"),
        }
    }

    /// Puts its objects on the bus that is being connected.
    pub fn export<'a>(&self, builder: Builder<'a>) -> Builder<'a> {
        let registrar = Arc::new(Registrar::new(Arc::clone(&self.shared), Arc::clone(&self.bell)));
        builder.serve_at(PATH, Distributor1(Arc::clone(&registrar))).serve_at(PATH, Distributor2(registrar))
    }

    /// Takes its names and begins to serve. Apps look at what the name offers as soon as it is there,
    /// so that the objects are exported by now. A name that somebody else has is not fatal: the
    /// daemon's own apps need none of this.
    pub async fn open(self, bus: &zbus::Connection) {
        let kde = self.shared.config.unifiedpush.own_kde_name.then_some(KDE_NAME);
        for name in [NAME].into_iter().chain(kde) {
            if let Err(error) = bus.request_name_with_flags(name, RequestNameFlags::DO_NOT_QUEUE).await {
                warn!("the name {name} cannot be had, and apps that look for it are not served: {error}");
            }
        }
        tokio::spawn(watch_guests(Arc::clone(&self.shared), bus.clone(), Arc::clone(&self.bell)));
        tokio::spawn(Desk::new(self, bus.clone()).run());
    }
}

/// The task that has a postman for each registration whose app has something to be told or handed.
struct Desk {
    shared: Arc<Shared>,
    bus: zbus::Connection,
    bell: Arc<Bell>,
    /// The postmen, each by its registration, and how to ring at it.
    busy: HashMap<Token, Busy>,
    postmen: JoinSet<Token>,
}

/// A postman at work.
struct Busy {
    /// The channel of its registration.
    app: AppId,
    ring: Arc<Ring>,
}

impl Desk {
    fn new(distributor: Distributor, bus: zbus::Connection) -> Self {
        let Distributor { shared, bell } = distributor;
        Self { shared, bus, bell, busy: HashMap::new(), postmen: JoinSet::new() }
    }

    /// Runs as long as the daemon.
    async fn run(mut self) {
        let mut changes = self.shared.changes.subscribe();
        loop {
            let again = match self.look().await {
                Ok(()) => None,
                Err(error) => {
                    error!("the store failed: {error}");
                    Some(self.shared.clock.now().after(STORE_RETRY))
                }
            };
            tokio::select! {
                () = self.shared.hints.channels.notified() => {}
                change = changes.recv() => match change {
                    Ok(change) => self.ring_at(|app| app == change.app()),
                    // Which changes were missed nobody knows.
                    Err(broadcast::error::RecvError::Lagged(_)) => self.ring_at(|_| true),
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                Some(done) = self.postmen.join_next() => self.finish(done),
                () = self.shared.clock.sleep_until(again) => {}
            }
        }
    }

    fn finish(&mut self, done: Result<Token, JoinError>) {
        match done {
            Ok(token) => drop(self.busy.remove(&token)),
            // Its registration stays busy: what broke would break again.
            Err(error) => error!("an app was not served to the end: {error}"),
        }
    }

    /// Tells the postmen of these apps that something has changed.
    fn ring_at(&self, of: impl Fn(&AppId) -> bool) {
        for busy in self.busy.values().filter(|busy| of(&busy.app)) {
            busy.ring.changed.notify_one();
        }
    }

    /// Sends a postman wherever there is something and none is, and rings at those who need not wait.
    async fn look(&mut self) -> Result<(), DbError> {
        let (called, switched) = (self.bell.take(), self.shared.hints.switched());
        self.ring_at(|app| switched.contains(app));
        for token in called {
            if let Some(busy) = self.busy.get(&token) {
                busy.ring.called.notify_one();
            }
        }
        let waiting: HashMap<Token, AppId> = self.shared.store.waiting_registrations().await?.into_iter().collect();
        for (token, busy) in &mut self.busy {
            match waiting.get(token) {
                Some(app) => busy.app = app.clone(),
                None => busy.ring.changed.notify_one(),
            }
        }
        for (token, app) in waiting {
            if self.busy.contains_key(&token) {
                continue;
            }
            let ring = Arc::<Ring>::default();
            self.busy.insert(token.clone(), Busy { app, ring: Arc::clone(&ring) });
            let postman = Postman::new(Arc::clone(&self.shared), self.bus.clone(), token, ring);
            self.postmen.spawn(postman.run());
        }
        Ok(())
    }
}

/// Ends a registration without a word to anybody but the server, unless it was made anew meanwhile.
async fn dismiss(shared: &Shared, registration: &Registration) -> Result<(), DbError> {
    if shared.store.dismiss(registration.app.clone(), Some(registration.asked)).await? {
        shared.forgotten(registration.app.clone(), End::AtServer).await;
    }
    Ok(())
}

/// Ends the registrations of apps without a name of their own when their connections end, and those
/// of earlier connections at once.
async fn watch_guests(shared: Arc<Shared>, bus: zbus::Connection, bell: Arc<Bell>) {
    // A token may be another guest's by the time that the one before is gone.
    let mut watched: HashSet<(Token, OwnedBusName)> = HashSet::new();
    let mut watchers: JoinSet<Guest> = JoinSet::new();
    loop {
        let again = match shared.store.guests().await {
            Ok(guests) => {
                for guest in guests {
                    if watched.insert((guest.token.clone(), guest.service.clone())) {
                        watchers.spawn(see_off(Arc::clone(&shared), bus.clone(), guest));
                    }
                }
                None
            }
            Err(error) => {
                error!("the store failed: {error}");
                Some(shared.clock.now().after(STORE_RETRY))
            }
        };
        tokio::select! {
            () = bell.guest_came() => {}
            Some(Ok(guest)) = watchers.join_next() => drop(watched.remove(&(guest.token, guest.service))),
            () = shared.clock.sleep_until(again) => {}
        }
    }
}

/// Waits until the connection is gone, and ends its registration.
async fn see_off(shared: Arc<Shared>, bus: zbus::Connection, guest: Guest) -> Guest {
    while let Err(error) = try_see_off(&shared, &bus, &guest).await {
        error!("the registration of {} does not end yet: {error}", guest.service);
        shared.clock.sleep_until(Some(shared.clock.now().after(STORE_RETRY))).await;
    }
    guest
}

/// Why a guest could not be seen off yet.
#[derive(Debug, thiserror::Error)]
enum StillHere {
    #[error("the bus does not tell when it goes: {0}")]
    Bus(#[from] zbus::Error),
    #[error("the store failed: {0}")]
    Store(#[from] DbError),
}

async fn try_see_off(shared: &Shared, bus: &zbus::Connection, guest: &Guest) -> Result<(), StillHere> {
    if guest.bus.as_deref() == Some(bus.server_guid().as_str()) {
        Watch::begin(bus, &guest.service).await?.goes().await;
    }
    match shared.store.registration(guest.token.clone()).await? {
        // It may have been registered anew by somebody else.
        Some(registration) if registration.service == guest.service => Ok(dismiss(shared, &registration).await?),
        _ => Ok(()),
    }
}
