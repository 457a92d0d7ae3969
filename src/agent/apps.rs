//! Which apps are connected, by the bus name that each of them connected with.
//!
//! An app is connected as long as that name lives. Messages of one app go one at a time through
//! its lane, whoever delivers them; no app waits for another.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use tokio::sync::{Mutex as AsyncMutex, Notify, OwnedMutexGuard, watch};
use zbus::OwnedObjectPath;
use zbus::names::OwnedUniqueName;

use super::store::Presence;
use crate::daemon::lock;
use crate::proto::{AppId, MessageId};

/// One app's connection.
#[derive(Debug)]
pub struct Line {
    /// The app.
    pub app: AppId,
    /// The name it connected with.
    pub name: OwnedUniqueName,
    /// Where it exports `org.bellwire.App1`.
    pub path: OwnedObjectPath,
    /// It wants its unread messages only when it asks.
    pub hold_unread: bool,
    attention: Notify,
    closed: watch::Sender<bool>,
}

impl Line {
    /// There may be something to deliver, or the line is closed.
    pub async fn attention(&self) {
        self.attention.notified().await;
    }

    /// Asks for attention.
    pub fn ring(&self) {
        self.attention.notify_one();
    }

    /// Whether the app has disconnected.
    pub fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// Waits until it has.
    pub async fn closed(&self) {
        // The sender is this line's own: it cannot be gone.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }

    fn close(&self) {
        self.closed.send_replace(true);
        self.ring();
    }
}

/// What this run of the daemon knows about the app's oldest unread message.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum Head {
    /// Nothing: an earlier run may have handed it over and ended before it could note that.
    #[default]
    Unknown,
    /// It was not handed over.
    Fresh,
    /// It was handed over, and the app did not say that it has it.
    Offered(MessageId),
    /// The app has it; only the note of that is missing.
    Taken(MessageId),
}

/// The way to one app.
#[derive(Debug, Default)]
pub struct Lane {
    /// The right to deliver to it.
    pub head: Arc<AsyncMutex<Head>>,
    /// A message is being handed over: the app has it, or is about to, and has not answered.
    pub handing: watch::Sender<bool>,
}

/// The connected apps.
#[derive(Debug, Default)]
pub struct Apps {
    lines: Mutex<HashMap<AppId, Arc<Line>>>,
    /// One for each app that has connected in this run.
    lanes: Mutex<HashMap<AppId, Arc<Lane>>>,
    /// Apps that were connected in an earlier run and may come back.
    returning: Mutex<HashSet<AppId>>,
    /// Apps that this run has started and that have not connected yet.
    awaited: Mutex<HashSet<AppId>>,
}

/// Another connection has the app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The name of the connection that has it.
    pub by: OwnedUniqueName,
}

impl Apps {
    /// None is connected; these may come back.
    pub fn expecting(returning: impl IntoIterator<Item = AppId>) -> Self {
        Self { returning: Mutex::new(returning.into_iter().collect()), ..Self::default() }
    }

    /// Connects an app. The same name may connect again, with another path or wish.
    pub fn connect(
        &self,
        app: AppId,
        name: OwnedUniqueName,
        path: OwnedObjectPath,
        hold_unread: bool,
    ) -> Result<Arc<Line>, Taken> {
        let mut lines = lock(&self.lines);
        if let Some(current) = lines.get(&app)
            && current.name != name
        {
            return Err(Taken { by: current.name.clone() });
        }
        let line = Arc::new(Line {
            app: app.clone(),
            name,
            path,
            hold_unread,
            attention: Notify::new(),
            closed: watch::Sender::new(false),
        });
        lock(&self.returning).remove(&app);
        lock(&self.awaited).remove(&app);
        if let Some(older) = lines.insert(app, Arc::clone(&line)) {
            older.close();
        }
        Ok(line)
    }

    /// Removes this line, and no newer one of the same app.
    pub fn disconnect(&self, line: &Arc<Line>) {
        let mut lines = lock(&self.lines);
        if lines.get(&line.app).is_some_and(|current| Arc::ptr_eq(current, line)) {
            lines.remove(&line.app);
        }
        line.close();
    }

    /// The app's line, if it is connected.
    pub fn line(&self, app: &AppId) -> Option<Arc<Line>> {
        lock(&self.lines).get(app).cloned()
    }

    /// Whether messages are for the app as it runs: it is connected, or about to be so again.
    pub fn is_in_use(&self, app: &AppId) -> bool {
        self.line(app).is_some() || lock(&self.returning).contains(app)
    }

    /// Those that did not come back, from now on away.
    pub fn end_return(&self) -> HashSet<AppId> {
        std::mem::take(&mut *lock(&self.returning))
    }

    /// The app is being started: it will connect.
    pub fn expect(&self, app: &AppId) {
        lock(&self.awaited).insert(app.clone());
    }

    /// The app was not started after all.
    pub fn give_up(&self, app: &AppId) {
        lock(&self.awaited).remove(app);
    }

    /// Whether the app is there.
    pub fn presence(&self, app: &AppId) -> Presence {
        if self.line(app).is_some() {
            return Presence::Connected;
        }
        if lock(&self.awaited).contains(app) { Presence::Awaited } else { Presence::Away }
    }

    /// Rings at the app, if it is connected.
    pub fn ring(&self, app: &AppId) {
        if let Some(line) = self.line(app) {
            line.ring();
        }
    }

    /// Waits until no message is being handed over; none is as long as the result lives.
    pub async fn quiet(&self) -> Vec<OwnedMutexGuard<Head>> {
        let heads: Vec<_> = lock(&self.lanes).values().map(|lane| Arc::clone(&lane.head)).collect();
        let mut held = Vec::new();
        for head in heads {
            held.push(head.lock_owned().await);
        }
        held
    }

    /// There will be no message for this app again, unless somebody has its lane.
    pub fn forget_lane(&self, app: &AppId) {
        let mut lanes = lock(&self.lanes);
        if lanes.get(app).is_some_and(|lane| Arc::strong_count(lane) == 1 && Arc::strong_count(&lane.head) == 1) {
            lanes.remove(app);
        }
    }

    /// The app's lane.
    pub fn lane(&self, app: &AppId) -> Arc<Lane> {
        Arc::clone(lock(&self.lanes).entry(app.clone()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(apps: &Apps, name: &str) -> Result<Arc<Line>, Taken> {
        let path = OwnedObjectPath::try_from("/app").unwrap();
        apps.connect("chat".parse().unwrap(), OwnedUniqueName::try_from(name).unwrap(), path, false)
    }

    #[test]
    fn only_one_name_has_an_app_and_a_late_goodbye_removes_no_newer_line() {
        let apps = Apps::default();
        let first = connect(&apps, ":1.1").unwrap();
        assert_eq!(connect(&apps, ":1.2").unwrap_err().by.as_str(), ":1.1");
        let again = connect(&apps, ":1.1").unwrap();
        assert!(first.is_closed() && !again.is_closed());
        apps.disconnect(&first);
        assert!(apps.line(&again.app).is_some());
        apps.disconnect(&again);
        assert!(apps.line(&again.app).is_none());
        assert!(connect(&apps, ":1.2").is_ok());
    }
}
