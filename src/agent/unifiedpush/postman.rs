//! Tells and hands one app what there is for one of its registrations, in order, one call at a time.
//!
//! It lives as long as there is something, and waits as [`patience`](super::patience) says. The
//! messages are the store's, on the way of all others: through the app's lane, and settled once.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tracing::{debug, error, info};

use super::connector::Connector;
use super::owner::{Called, Watch};
use super::patience::{Answer, LONGEST, Patience, Step};
use crate::agent::apps::Head;
use crate::agent::bus::Shared;
use crate::agent::connection::Command;
use crate::agent::effects::STORE_RETRY;
use crate::agent::store::Unread;
use crate::agent::store::channels::{News, Registration, Token};
use crate::db::DbError;
use crate::world;

/// Serves one registration.
pub struct Postman {
    shared: Arc<Shared>,
    bus: zbus::Connection,
    token: Token,
    /// The app has called about it, or there is nothing for it any more.
    ring: Arc<Notify>,
    patience: Patience,
    /// What is known of the app's name, once it was not to be had.
    watch: Option<Watch>,
    /// The last call.
    called: Called,
}

impl Postman {
    /// One for this registration.
    pub fn new(shared: Arc<Shared>, bus: zbus::Connection, token: Token, ring: Arc<Notify>) -> Self {
        let (patience, called) = (Patience::default(), Called::default());
        Self { shared, bus, token, ring, patience, watch: None, called }
    }

    /// Runs as long as there is something for the app.
    pub async fn run(mut self) -> Token {
        loop {
            let step = match self.serve().await {
                Ok(Some(step)) => step,
                Ok(None) => return self.token,
                Err(error) => {
                    error!("the store failed: {error}");
                    Step::Again(STORE_RETRY)
                }
            };
            self.wait(step).await;
        }
    }

    /// Tells and hands until there is nothing left, or the app is to be waited for.
    async fn serve(&mut self) -> Result<Option<Step>, DbError> {
        while let Some(registration) = self.shared.store.registration(self.token.clone()).await? {
            // The daemon does not end between an answer and the note of it.
            let lane = self.shared.apps.lane(&registration.app);
            let mut head = lane.head.lock().await;
            let step = match &registration.news {
                Some(news) => Some(self.tell(&registration, news).await?),
                None if registration.enabled => self.hand_next(&registration, &mut head).await?,
                None => None,
            };
            match step {
                Some(Step::Done | Step::GiveUp | Step::Revoke) => {
                    drop(head);
                    drop(lane);
                    if step == Some(Step::Revoke) || matches!(registration.news, Some(News::Unregistered(_))) {
                        self.shared.apps.forget_lane(&registration.app);
                    }
                }
                Some(Step::Again(_) | Step::WhenItComes) => {
                    self.watch_for(&registration).await;
                    return Ok(step);
                }
                None => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Tells the app the news; what it does not want to hear is not told again.
    async fn tell(&mut self, registration: &Registration, news: &News) -> Result<Step, DbError> {
        let connector = self.connector(registration);
        let answer = match (self.reach(&connector).await, news) {
            (Answer::Taken, News::NewEndpoint(endpoint)) => connector.new_endpoint(endpoint).await,
            (Answer::Taken, News::Unregistered(farewell)) => connector.unregistered(*farewell).await,
            (other, _) => other,
        };
        let step = self.patience.after(&answer, world::luck());
        debug!(app = %registration.app, service = %registration.service, ?step, "news: {answer}");
        match (step, news) {
            (Step::Again(_) | Step::WhenItComes, _) => {}
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
    async fn hand_next(&mut self, registration: &Registration, head: &mut Head) -> Result<Option<Step>, DbError> {
        let (courier, connector) = (self.shared.courier(&self.bus), self.connector(registration));
        let Some((unread, _)) = courier.next(&registration.app, head).await? else { return Ok(None) };
        let reached = self.reach(&connector).await;
        // To start an app takes its time: what has expired meanwhile is settled in the next round.
        if unread.expired(world::now()) {
            return Ok(Some(Step::Done));
        }
        *head = Head::Offered(unread.push.id);
        let answer = if reached == Answer::Taken { connector.message(&unread).await } else { reached };
        let step = self.patience.after(&answer, world::luck());
        debug!(app = %registration.app, service = %registration.service, id = %unread.push.id, ?step, "{answer}");
        match step {
            Step::Done => courier.settle(&unread, head).await?,
            Step::Revoke => self.revoke(registration).await?,
            Step::GiveUp => self.give_up(&unread, &answer).await?,
            Step::Again(_) | Step::WhenItComes => {
                self.shared.store.refused(unread.push.id, answer.to_string()).await?;
            }
        }
        Ok(Some(step))
    }

    fn connector<'a>(&self, registration: &'a Registration) -> Connector<'a> {
        let answer = Duration::from_secs(self.shared.config.limits.answer_s.into());
        Connector { bus: self.bus.clone(), registration, answer }
    }

    /// Sees to it that the app runs, and notes who it is.
    async fn reach(&mut self, connector: &Connector<'_>) -> Answer {
        let losses = self.watch.as_ref().map(Watch::losses).unwrap_or_default();
        let (owner, answer) = match connector.reach().await {
            Ok(owner) => (Some(owner), Answer::Taken),
            Err(answer) => (None, answer),
        };
        self.called = Called { owner, losses };
        answer
    }

    /// The app does not want the message.
    async fn give_up(&self, unread: &Unread, answer: &Answer) -> Result<(), DbError> {
        self.shared.store.given_up(unread, answer.to_string()).await?;
        // A full queue of commands has a report in it, or will have one with the next session.
        let _ = self.shared.commands.try_send(Command::Report);
        Ok(())
    }

    /// Ends a registration of which the app knows nothing.
    async fn revoke(&self, registration: &Registration) -> Result<(), DbError> {
        info!(service = %registration.service, "the app knows nothing of a registration, which ends");
        super::dismiss(&self.shared, &registration.app).await
    }

    /// From now on the arrival of the app is noticed.
    async fn watch_for(&mut self, registration: &Registration) {
        if self.watch.is_none() {
            match Watch::begin(&self.bus, &registration.service).await {
                Ok(watch) => self.watch = Some(watch),
                Err(error) => debug!("the arrival of {} is not noticed: {error}", registration.service),
            }
        }
    }

    /// Waits until the app is to be called again.
    async fn wait(&mut self, step: Step) {
        let pause = match (step, &self.watch) {
            (Step::Again(pause), _) => Some(pause),
            // Without news of who comes, looking is all there is.
            (_, None) => Some(LONGEST),
            (_, Some(_)) => None,
        };
        let until = pause.map(|pause| self.shared.clock.now().after(pause));
        let comes = async {
            match &self.watch {
                Some(watch) => watch.comes(&self.called).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.ring.notified() => self.patience.called(),
            () = comes => self.patience.came(),
            () = self.shared.clock.sleep_until(until) => {}
        }
    }
}
