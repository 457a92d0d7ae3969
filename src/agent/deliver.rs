//! Hands unread messages to connected apps, in order, one at a time for each app.
//!
//! The app's reply to `App1.Message` is the delivery. An error, a silence or a vanished app leaves
//! the message unread; it is tried again when the app asks, connects anew, or something new comes.
//!
//! Between the app's reply and the note of it on disk lie a few milliseconds. A message that an
//! earlier run may have handed over in them, or that this run has handed over without success, is
//! marked `again`: the app compares its id.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{debug, error};
use zbus::names::UniqueName;

use super::apps::{Apps, Head, Line};
use super::bus::message::dictionary;
use super::connection::Command;
use super::effects::{Hints, STORE_RETRY};
use super::store::{Store, Unread};
use crate::daemon::fault_point;
use crate::db::DbError;
use crate::proto::AppId;

/// The interface that apps export.
pub const APP_INTERFACE: &str = "org.bellwire.App1";

/// What a courier needs.
#[derive(Clone)]
pub struct Courier {
    /// The bus.
    pub bus: zbus::Connection,
    /// The device's store.
    pub store: Store,
    /// The connected apps.
    pub apps: Arc<Apps>,
    /// The connection to the server.
    pub commands: mpsc::Sender<Command>,
    /// Who takes alerts of read messages off the screen.
    pub hints: Arc<Hints>,
    /// How long an app may take to answer.
    pub answer: Duration,
}

/// Why a message stays unread.
#[derive(Debug, thiserror::Error)]
enum Undelivered {
    #[error("the app answered with an error: {0}")]
    Refused(zbus::Error),
    #[error("the app did not answer in time")]
    Silent,
}

impl Courier {
    /// Serves one line until it closes.
    pub async fn serve(self, line: Arc<Line>) {
        if !line.hold_unread {
            line.ring();
        }
        loop {
            line.attention().await;
            // A store that failed may work again a while later, with nobody to tell us.
            while !line.is_closed() && self.deliver_all(&line).await.is_err() {
                let _ = tokio::time::timeout(STORE_RETRY, line.attention()).await;
            }
            if line.is_closed() {
                return;
            }
        }
    }

    /// Delivers until nothing is unread or the app does not take it. An error is one of the store,
    /// and has been logged.
    async fn deliver_all(&self, line: &Line) -> Result<(), DbError> {
        let lane = self.apps.lane(&line.app);
        let mut head = lane.head.lock().await;
        while !line.is_closed() {
            let Some((unread, again)) = self.next(&line.app, &mut head).await? else { break };
            *head = Head::Offered(unread.push.id);
            lane.handing.send_replace(true);
            fault_point("handing");
            let handed = self.hand_over(line, &unread, again).await;
            lane.handing.send_replace(false);
            fault_point("handed");
            if let Err(why) = handed {
                debug!(app = %line.app, id = %unread.push.id, "a message stays unread: {why}");
                self.store.refused(unread.push.id, why.to_string()).await?;
                break;
            }
            self.settle(&unread, &mut head).await?;
        }
        Ok(())
    }

    /// The app's oldest unread message, and whether it may have been handed over before. One that
    /// the app is known to have is only settled. An error has been logged.
    pub async fn next(&self, app: &AppId, head: &mut Head) -> Result<Option<(Unread, bool)>, DbError> {
        loop {
            let unread = match self.store.next_unread(app.clone()).await {
                Ok(Some(unread)) => unread,
                Ok(None) => return Ok(None),
                Err(error) => {
                    error!("unread messages cannot be read: {error}");
                    return Err(error);
                }
            };
            let again = match *head {
                Head::Taken(id) if id == unread.push.id => {
                    self.settle(&unread, head).await?;
                    continue;
                }
                Head::Offered(id) => id == unread.push.id,
                Head::Unknown => self.store.is_from_earlier_run(&unread),
                Head::Fresh | Head::Taken(_) => false,
            };
            return Ok(Some((unread, again)));
        }
    }

    async fn hand_over(&self, line: &Line, unread: &Unread, again: bool) -> Result<(), Undelivered> {
        let arguments = (line.app.as_str(), unread.push.id.to_string(), dictionary(unread, again));
        let name: UniqueName<'_> = line.name.as_ref();
        let call = self.bus.call_method(Some(name), &line.path, Some(APP_INTERFACE), "Message", &arguments);
        match tokio::time::timeout(self.answer, call).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(Undelivered::Refused(error)),
            Err(_) => Err(Undelivered::Silent),
        }
    }

    /// Removes a message that the app has taken. If that fails it is tried again, without handing
    /// the message over once more, as long as this daemon runs; the error has been logged.
    pub async fn settle(&self, unread: &Unread, head: &mut Head) -> Result<(), DbError> {
        *head = Head::Taken(unread.push.id);
        match self.store.delivered(unread).await {
            Ok(true) => self.hints.effects.notify_one(),
            Ok(false) => {}
            Err(error) => {
                error!("a delivery could not be noted: {error}");
                return Err(error);
            }
        }
        fault_point("delivered");
        *head = Head::Fresh;
        // A full queue of commands has a report in it, or will have one with the next session.
        let _ = self.commands.try_send(Command::Report);
        Ok(())
    }
}
