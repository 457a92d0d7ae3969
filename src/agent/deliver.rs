//! Hands unread messages to connected apps, in order, one at a time for each app.
//!
//! The app's reply to `App1.Message` is the delivery. An error, a silence or a vanished app leaves
//! the message unread; it is tried again when the app asks, connects anew, or something new comes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{debug, error};
use zbus::names::UniqueName;

use super::apps::{Apps, Line};
use super::bus::message::dictionary;
use super::connection::Command;
use super::store::{Store, Unread};

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
            if line.is_closed() {
                return;
            }
            self.deliver_all(&line).await;
        }
    }

    async fn deliver_all(&self, line: &Line) {
        let lane = self.apps.lane(&line.app);
        let _turn = lane.lock().await;
        while !line.is_closed() {
            let unread = match self.store.next_unread(line.app.clone()).await {
                Ok(Some(unread)) => unread,
                Ok(None) => return,
                Err(error) => return error!("unread messages cannot be read: {error}"),
            };
            if let Err(why) = self.hand_over(line, &unread).await {
                return debug!(app = %line.app, id = %unread.push.id, "a message stays unread: {why}");
            }
            if !self.settle(&unread).await {
                return;
            }
        }
    }

    async fn hand_over(&self, line: &Line, unread: &Unread) -> Result<(), Undelivered> {
        let arguments = (line.app.as_str(), unread.push.id.to_string(), dictionary(unread));
        let name: UniqueName<'_> = line.name.as_ref();
        let call = self.bus.call_method(Some(name), &line.path, Some(APP_INTERFACE), "Message", &arguments);
        match tokio::time::timeout(self.answer, call).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(Undelivered::Refused(error)),
            Err(_) => Err(Undelivered::Silent),
        }
    }

    /// Removes a message that the app has taken; `false` if that failed, so that it will come again.
    pub async fn settle(&self, unread: &Unread) -> bool {
        if let Err(error) = self.store.delivered(unread).await {
            error!("a delivery could not be noted, the app will get the message again: {error}");
            return false;
        }
        // A full queue of commands has a report in it, or will have one with the next session.
        let _ = self.commands.try_send(Command::Report);
        true
    }
}
