//! Tells and hands one app what there is for one of its registrations, in order, one call at a time.
//!
//! It lives as long as there is something, and waits as [`patience`](super::patience) says. The
//! messages are the store's, on the way of all others: through the app's lane, and settled once.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, error, info};

use super::bell::Ring;
use super::connector::{Connector, Reached};
use super::owner::{Called, Watch};
use super::patience::{Answer, LONGEST, Patience, SOON, Sign, Step};
use crate::agent::apps::Head;
use crate::agent::bus::Shared;
use crate::agent::connection::Command;
use crate::agent::effects::STORE_RETRY;
use crate::agent::store::Unread;
use crate::agent::store::channels::{Farewell, News, Registration, Token};
use crate::db::DbError;
use crate::proto::MessageId;
use crate::world;

/// Serves one registration.
pub struct Postman {
    shared: Arc<Shared>,
    bus: zbus::Connection,
    token: Token,
    ring: Arc<Ring>,
    patience: Patience,
    /// What is known of the app's name, once it was not to be had.
    watch: Option<Watch>,
    /// The last call.
    called: Called,
    /// A call that was not answered in time.
    open: Option<Open>,
    /// What the app has, as it said late.
    taken: Option<About>,
}

/// What an app is called about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum About {
    /// The news of a registration that was asked for so often.
    News(i64, News),
    Message(MessageId),
}

type Reply = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// A call that may be answered yet.
struct Open {
    about: About,
    reply: Reply,
}

impl Postman {
    /// One for this registration.
    pub fn new(shared: Arc<Shared>, bus: zbus::Connection, token: Token, ring: Arc<Ring>) -> Self {
        let (patience, called) = (Patience::default(), Called::default());
        Self { shared, bus, token, ring, patience, watch: None, called, open: None, taken: None }
    }

    /// Runs as long as there is something for the app.
    pub async fn run(mut self) -> Token {
        loop {
            let step = match self.serve().await {
                Ok(Some(step)) => step,
                Ok(None) => return self.token,
                Err(error) => {
                    error!("the store failed: {error}");
                    Step::Again(STORE_RETRY, Sign::None)
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
                Some(Step::Again(..) | Step::At(_)) => {
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
        let about = About::News(registration.asked, news.clone());
        let answer = if self.has_taken(&about) {
            Answer::Taken
        } else {
            match (self.reach(registration).await, news.clone()) {
                (Ok(app), News::NewEndpoint(endpoint)) => self.call(about, Box::pin(app.new_endpoint(endpoint))).await,
                (Ok(app), News::Unregistered(farewell)) => self.call(about, Box::pin(app.unregistered(farewell))).await,
                (Err(answer), _) => answer,
            }
        };
        let step = match (&answer, news) {
            // An app that ended what it had is not waited for to hear of it.
            (Answer::Kept | Answer::Absent, News::Unregistered(Farewell::Asked)) => Step::GiveUp,
            _ => self.patience.after(&answer, world::luck()),
        };
        debug!(app = %registration.app, service = %registration.service, ?step, "news: {answer}");
        match (step, news) {
            (Step::Again(..) | Step::At(_), _) => {}
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
        let courier = self.shared.courier(&self.bus);
        let Some((unread, _)) = courier.next(&registration.app, head).await? else { return Ok(None) };
        let about = About::Message(unread.push.id);
        let answer = if self.has_taken(&about) {
            Answer::Taken
        } else {
            let reached = self.reach(registration).await;
            // To start an app takes its time: what has expired meanwhile is settled in the next round.
            if unread.expired(world::now()) {
                return Ok(Some(Step::Done));
            }
            match reached {
                Ok(app) => {
                    *head = Head::Offered(unread.push.id);
                    self.call(about, Box::pin(app.message(unread.clone()))).await
                }
                Err(answer) => answer,
            }
        };
        let step = self.patience.after(&answer, world::luck());
        debug!(app = %registration.app, service = %registration.service, id = %unread.push.id, ?step, "{answer}");
        match step {
            Step::Done => courier.settle(&unread, head).await?,
            Step::Revoke => self.revoke(registration).await?,
            Step::GiveUp => self.give_up(&unread, &answer).await?,
            Step::Again(..) | Step::At(_) => {
                self.shared.store.refused(unread.push.id, answer.to_string()).await?;
            }
        }
        Ok(Some(step))
    }

    /// Sees to it that the app runs, and notes who it is.
    async fn reach(&mut self, registration: &Registration) -> Result<Reached, Answer> {
        let losses = self.watch.as_ref().map(Watch::losses).unwrap_or_default();
        let reached = Connector { bus: &self.bus, registration }.reach().await;
        self.called = Called { owner: reached.as_ref().ok().map(|app| app.owner.clone()), losses };
        reached
    }

    /// How the app answers in time to this call, or to an earlier one about the same.
    async fn call(&mut self, about: About, mut reply: Reply) -> Answer {
        let mut earlier = self.open.take_if(|open| open.about == about);
        let answered = async {
            tokio::select! {
                answer = &mut reply => answer,
                () = taken(&mut earlier) => Answer::Taken,
            }
        };
        match tokio::time::timeout(self.answer(), answered).await {
            Ok(answer) => answer,
            Err(_) => {
                // Apps answer in order.
                self.open = Some(earlier.unwrap_or(Open { about, reply }));
                Answer::Silent
            }
        }
    }

    /// Whether the app has said late that it has this.
    fn has_taken(&mut self, about: &About) -> bool {
        self.taken.take_if(|taken| taken == about).is_some()
    }

    /// How long the app may take to answer.
    fn answer(&self) -> Duration {
        Duration::from_secs(self.shared.config.limits.answer_s.into())
    }

    /// The app does not want the message.
    async fn give_up(&mut self, unread: &Unread, answer: &Answer) -> Result<(), DbError> {
        self.shared.store.given_up(unread, answer.to_string()).await?;
        // A full queue of commands has a report in it, or will have one with the next session.
        let _ = self.shared.commands.try_send(Command::Report);
        Ok(())
    }

    /// Ends a registration of which the app knows nothing.
    async fn revoke(&mut self, registration: &Registration) -> Result<(), DbError> {
        info!(service = %registration.service, "the app knows nothing of a registration, which ends");
        super::dismiss(&self.shared, registration).await
    }

    /// From now on it is noticed when the app comes and leaves.
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
        let (pause, sign) = match step {
            Step::Again(pause, sign) => (Some(pause), sign),
            // Without news of who comes, looking is all there is.
            Step::At(sign) => (self.watch.is_none().then_some(LONGEST), sign),
            Step::Done | Step::GiveUp | Step::Revoke => return,
        };
        // A slow app is given as long once more before it gets the same twice.
        let least = if self.open.is_some() { self.answer() } else { Duration::ZERO };
        let now = self.shared.clock.now();
        let until = pause.map(|pause| now.after(pause.max(least)));
        let shows = async {
            match &self.watch {
                Some(watch) => watch.shows(sign, &self.called).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.ring.called.notified() => self.patience.called(),
            () = self.ring.changed.notified() => {}
            () = shows => self.patience.came(),
            () = taken(&mut self.open) => self.taken = self.open.take().map(|open| open.about),
            () = self.shared.clock.sleep_until(until) => {}
        }
        self.shared.clock.sleep_until(Some(now.after(SOON))).await;
    }
}

/// Waits until the app says that it has what it was called with; for ever if it says anything else.
async fn taken(open: &mut Option<Open>) {
    if let Some(call) = open {
        if call.reply.as_mut().await == Answer::Taken {
            return;
        }
        *open = None;
    }
    std::future::pending().await
}
