//! The links that a server has over one connection to a broker: what comes in goes to the link it is for.
//!
//! A link whose reader does not keep up ends; it must never keep what is for others waiting.

use std::collections::HashMap;
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
}

impl Links {
    /// None yet. `outbox` is that of the connection.
    pub fn new(root: Root, server: Tag, outbox: mpsc::Sender<Outgoing>) -> Self {
        Self { root, server, outbox, open: Mutex::default() }
    }

    /// Opens the link with this name; what came first is read first.
    pub fn open(self: &Arc<Self>, name: LinkName, first: Arrived) -> Socket {
        let (reader, inbox) = mpsc::channel(INBOX);
        // There is room: it is new.
        let _ = reader.try_send(Ok(Event::Arrived(first)));
        lock(&self.open).insert(name.clone(), reader.clone());
        let entry = Entry { links: Arc::clone(self), name: name.clone(), reader };
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
        lock(&self.open).remove(name);
    }

    /// Ends all links: the connection is lost.
    pub fn clear(&self) {
        lock(&self.open).clear();
    }

    /// Says goodbye to a device that has no link; where the broker is too slow for it, not even that.
    pub fn refuse(&self, name: LinkName, bye: Bye) {
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
    reader: Reader,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut open = lock(&self.links.open);
        // A device may have used the name again.
        if open.get(&self.name).is_some_and(|reader| reader.same_channel(&self.reader)) {
            open.remove(&self.name);
        }
    }
}
