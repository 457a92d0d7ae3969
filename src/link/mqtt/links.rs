//! The links that a server has over one connection to a broker: what comes in goes to the link it is for.
//!
//! A link whose reader does not keep up ends; it must never keep what is for others waiting.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;

use super::client::{Arrived, Event, Outgoing};
use super::topics::{LinkName, LinkTopics, Tag};
use super::{INBOX, Socket};
use crate::daemon::lock;
use crate::link::LinkError;
use crate::link::url::Root;
use crate::proto::frame::{Bye, Frame, Reason, ToDevice};

type Reader = mpsc::Sender<Result<Event, LinkError>>;

/// The open links.
pub struct Links {
    root: Root,
    server: Tag,
    outbox: mpsc::Sender<Outgoing>,
    open: Mutex<HashMap<LinkName, Reader>>,
    /// Those whose greetings wait for their turn.
    expected: Mutex<HashSet<LinkName>>,
}

impl Links {
    /// None yet. `outbox` is that of the connection.
    pub fn new(root: Root, server: Tag, outbox: mpsc::Sender<Outgoing>) -> Self {
        Self { root, server, outbox, open: Mutex::default(), expected: Mutex::default() }
    }

    /// The greeting of this link waits for its turn.
    pub fn expect(&self, name: LinkName) {
        lock(&self.expected).insert(name);
    }

    /// Its turn has come; whether its device is still there.
    pub fn is_expected(&self, name: &LinkName) -> bool {
        lock(&self.expected).remove(name)
    }

    /// Opens the link with this name; what came first is read first.
    pub fn open(self: &Arc<Self>, name: LinkName, first: Arrived) -> Socket {
        let (reader, inbox) = mpsc::channel(INBOX);
        // There is room: it is new.
        let _ = reader.try_send(Ok(Event::Arrived(first)));
        let entry = Entry { links: Arc::clone(self), name: name.clone(), reader: reader.downgrade() };
        lock(&self.open).insert(name.clone(), reader);
        Socket::accepted(self.outbox.clone(), inbox, &self.topics(name), &self.server, entry)
    }

    /// Passes on what has come for a link. A device whose link is not open is told.
    pub fn pass(&self, name: LinkName, arrived: Arrived) {
        let mut open = lock(&self.open);
        match open.get(&name) {
            Some(reader) if reader.try_send(Ok(Event::Arrived(arrived))).is_ok() => {}
            Some(_) => drop(open.remove(&name)),
            None => {
                drop(open);
                self.refuse(name, Bye::because(Reason::Silent));
            }
        }
    }

    /// Ends a link whose device is lost.
    pub fn lose(&self, name: &LinkName) {
        lock(&self.expected).remove(name);
        lock(&self.open).remove(name);
    }

    /// Ends all links: the connection is lost.
    pub fn clear(&self) {
        lock(&self.open).clear();
    }

    /// Says goodbye to a device that has no link. Where much waits for the broker, not even that: those who
    /// have one come first.
    pub fn refuse(&self, name: LinkName, bye: Bye) {
        if self.outbox.capacity() < self.outbox.max_capacity() / 2 {
            return;
        }
        let outgoing = Outgoing {
            topic: self.topics(name).down(),
            answer_to: None,
            text: ToDevice::Bye(bye).encode(),
            pulse: false,
            expires: None,
        };
        let _ = self.outbox.try_send(outgoing);
    }

    fn topics(&self, name: LinkName) -> LinkTopics {
        LinkTopics::new(self.root.clone(), name)
    }
}

/// A link's place among the open ones, for as long as it lives.
pub(super) struct Entry {
    links: Arc<Links>,
    name: LinkName,
    /// Weak: the link ends when it is no longer among the open ones.
    reader: mpsc::WeakSender<Result<Event, LinkError>>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut open = lock(&self.links.open);
        // A device may have used the name again. One that is gone already has been removed.
        let Some(own) = self.reader.upgrade() else { return };
        if open.get(&self.name).is_some_and(|reader| reader.same_channel(&own)) {
            open.remove(&self.name);
        }
    }
}
