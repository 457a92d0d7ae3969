//! Tells and hands one app what there is for one of its registrations, in order, one call at a time.
//!
//! It lives as long as there is something, and waits as [`patience`](super::patience) says. The
//! messages are the store's, on the way of all others: through the app's lane, and settled once.

use std::sync::Arc;

use futures_util::{FutureExt, StreamExt};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tracing::{debug, error, info};
use zbus::fdo::DBusProxy;
use zbus::names::OwnedBusName;
use zbus::{MatchRule, MessageStream};

use super::connector::Connector;
use super::patience::{Answer, LONGEST, Patience, Step};
use crate::agent::bus::Shared;
use crate::agent::connection::Command;
use crate::agent::deliver::Courier;
use crate::agent::effects::STORE_RETRY;
use crate::agent::store::channels::{News, Registration, Token};
use crate::db::DbError;
use crate::world;

/// Serves one registration.
pub struct Postman {
    /// What all objects share.
    pub shared: Arc<Shared>,
    /// The bus.
    pub bus: zbus::Connection,
    /// The registration.
    pub token: Token,
    /// The app has called about it, or there is nothing for it any more.
    pub ring: Arc<Notify>,
}

impl Postman {
    /// Runs as long as there is something for the app.
    pub async fn run(self) -> Token {
        let (mut patience, mut arrivals) = (Patience::default(), None);
        loop {
            match self.serve(&mut patience).await {
                Ok(None) => return self.token,
                Ok(Some((service, step))) => {
                    if arrivals.is_none() {
                        arrivals = Arrivals::watch(&self.bus, service).await;
                    }
                    self.wait(step, arrivals.as_ref(), &mut patience).await;
                }
                Err(error) => {
                    error!("the store failed: {error}");
                    self.wait(Step::Again(STORE_RETRY), None, &mut patience).await;
                }
            }
        }
    }

    /// Tells and hands until there is nothing left, or the app is to be waited for.
    async fn serve(&self, patience: &mut Patience) -> Result<Option<(OwnedBusName, Step)>, DbError> {
        let courier = self.shared.courier(&self.bus);
        while let Some(registration) = self.shared.store.registration(self.token.clone()).await? {
            let step = match &registration.news {
                Some(news) => Some(self.tell(&registration, news, patience).await?),
                None if registration.enabled => self.hand_next(&registration, &courier, patience).await?,
                None => None,
            };
            match step {
                Some(Step::Done | Step::GiveUp | Step::Revoke) => {}
                Some(step @ (Step::Again(_) | Step::WhenItComes | Step::WhenItComesAnew)) => {
                    return Ok(Some((registration.service, step)));
                }
                None => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Tells the app the news; what it does not want to hear is not told again.
    async fn tell(&self, registration: &Registration, news: &News, patience: &mut Patience) -> Result<Step, DbError> {
        let connector = self.connector(registration);
        let answer = match (connector.reach().await, news) {
            (Answer::Taken, News::NewEndpoint(endpoint)) => connector.new_endpoint(endpoint).await,
            (Answer::Taken, News::Unregistered(farewell)) => connector.unregistered(*farewell).await,
            (other, _) => other,
        };
        let step = patience.after(&answer, world::luck());
        debug!(app = %registration.app, service = %registration.service, ?step, "news: {answer}");
        match (step, news) {
            (Step::Again(_) | Step::WhenItComes | Step::WhenItComesAnew, _) => {}
            (Step::Revoke, News::NewEndpoint(_)) => self.revoke(registration).await?,
            (Step::Done | Step::GiveUp, News::NewEndpoint(endpoint)) => {
                let (token, asked) = (registration.token.clone(), registration.asked);
                self.shared.store.endpoint_told(token, asked, endpoint.clone()).await?;
            }
            (Step::Done | Step::GiveUp | Step::Revoke, News::Unregistered(_)) => {
                self.shared.store.farewell_said(registration.token.clone(), registration.app.clone()).await?;
            }
        }
        Ok(step)
    }

    /// Hands the app its oldest message, if there is one.
    async fn hand_next(
        &self,
        registration: &Registration,
        courier: &Courier,
        patience: &mut Patience,
    ) -> Result<Option<Step>, DbError> {
        let (lane, connector) = (self.shared.apps.lane(&registration.app), self.connector(registration));
        let mut head = lane.head.lock().await;
        let Some((unread, _)) = courier.next(&registration.app, &mut head).await? else { return Ok(None) };
        let reached = connector.reach().await;
        // To start an app takes its time: what has expired meanwhile is settled in the next round.
        if unread.expired(world::now()) {
            return Ok(Some(Step::Done));
        }
        let answer = if reached == Answer::Taken { connector.message(&unread).await } else { reached };
        let step = patience.after(&answer, world::luck());
        debug!(app = %registration.app, service = %registration.service, id = %unread.push.id, ?step, "{answer}");
        match step {
            Step::Done => courier.settle(&unread, &mut head).await?,
            Step::Revoke => self.revoke(registration).await?,
            Step::GiveUp => {
                self.shared.store.given_up(&unread, answer.to_string()).await?;
                // A full queue of commands has a report in it, or will have one with the next session.
                let _ = self.shared.commands.try_send(Command::Report);
            }
            Step::Again(_) | Step::WhenItComes | Step::WhenItComesAnew => {
                self.shared.store.refused(unread.push.id, answer.to_string()).await?;
            }
        }
        Ok(Some(step))
    }

    fn connector<'a>(&'a self, registration: &'a Registration) -> Connector<'a> {
        let answer = std::time::Duration::from_secs(self.shared.config.limits.answer_s.into());
        Connector { bus: &self.bus, registration, answer }
    }

    /// Ends a registration of which the app knows nothing.
    async fn revoke(&self, registration: &Registration) -> Result<(), DbError> {
        info!(service = %registration.service, "the app knows nothing of a registration, which ends");
        super::dismiss(&self.shared, &registration.app).await
    }

    /// Waits until the app is to be called again.
    async fn wait(&self, step: Step, arrivals: Option<&Arrivals>, patience: &mut Patience) {
        let pause = match (step, arrivals) {
            (Step::Again(pause), _) => Some(pause),
            // Without news of who comes, looking is all there is.
            (_, None) => Some(LONGEST),
            (_, Some(_)) => None,
        };
        if let Some(arrivals) = arrivals {
            // The arrival that the last call has brought about is no news.
            arrivals.forget();
            if step == Step::WhenItComes && arrivals.is_there(&self.bus).await {
                return;
            }
        }
        let until = pause.map(|pause| self.shared.clock.now().after(pause));
        let came = async {
            match arrivals {
                Some(arrivals) => arrivals.came.notified().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.ring.notified() => patience.called(),
            () = came => patience.came(),
            () = self.shared.clock.sleep_until(until) => {}
        }
    }
}

/// The news that somebody has taken a name on the bus.
struct Arrivals {
    service: OwnedBusName,
    came: Arc<Notify>,
    reader: JoinHandle<()>,
}

impl Arrivals {
    /// From now on; `None`, and a line in the log, if the bus does not tell.
    async fn watch(bus: &zbus::Connection, service: OwnedBusName) -> Option<Self> {
        let stream = match changes_of_owner(bus, &service).await {
            Ok(stream) => stream,
            Err(error) => {
                debug!("the arrival of {service} is not noticed: {error}");
                return None;
            }
        };
        let came = Arc::new(Notify::new());
        let reader = tokio::spawn(read(stream, Arc::clone(&came)));
        Some(Self { service, came, reader })
    }

    fn forget(&self) {
        let _ = self.came.notified().now_or_never();
    }

    async fn is_there(&self, bus: &zbus::Connection) -> bool {
        let Ok(dbus) = DBusProxy::new(bus).await else { return false };
        dbus.name_has_owner(self.service.clone().into_inner()).await.unwrap_or(false)
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Where the bus tells that this name changes hands.
pub(super) async fn changes_of_owner(bus: &zbus::Connection, service: &OwnedBusName) -> zbus::Result<MessageStream> {
    let rule = MatchRule::builder()
        .msg_type(zbus::message::Type::Signal)
        .sender("org.freedesktop.DBus")
        .interface("org.freedesktop.DBus")
        .member("NameOwnerChanged")
        .arg(0, service.as_str())
        .build()?;
    MessageStream::for_match_rule(rule, bus, None).await
}

/// The new owner of a name, if there is one, in the bus's words.
pub(super) fn new_owner(change: &zbus::Message) -> Option<String> {
    let (_, _, new): (String, String, String) = change.body().deserialize().ok()?;
    Some(new).filter(|new| !new.is_empty())
}

/// It only reads: a stream that is not read holds up everything on the bus.
async fn read(mut changes: MessageStream, came: Arc<Notify>) {
    while let Some(Ok(change)) = changes.next().await {
        if new_owner(&change).is_some() {
            came.notify_one();
        }
    }
}
