//! The pushes of a session that are on their way: sent, or had by the device from the beginning, and not
//! let go of. What is let go of goes in the order in which it was sent, as senders are told of their
//! messages in that order.

use std::collections::VecDeque;
use std::time::Duration;

use super::backlog::Seq;
use super::frame::NotKept;
use super::ids::{MessageId, UnixMillis};
use super::timers::Moment;

/// A push that was sent to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Its place.
    pub seq: Seq,
    /// Its id.
    pub id: MessageId,
    /// When; unknown if an earlier session sent it.
    pub at_ms: Option<UnixMillis>,
}

/// A push with which its device is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The push.
    pub sent: Sent,
    /// What the device has done with it.
    pub how: Done,
}

/// How a device is done with a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It is on the device's disk.
    Stored,
    /// It is not, and need not be sent again.
    NotKept(NotKept),
}

/// One push on its way.
#[derive(Debug)]
struct Unacked {
    /// `None` for a push that is not in the store.
    seq: Option<Seq>,
    id: MessageId,
    sent: Moment,
    /// Unknown if an earlier session sent it.
    sent_ms: Option<UnixMillis>,
    /// The device is done with it; what was sent before has still to be acknowledged.
    done: Option<Done>,
}

impl Unacked {
    /// The push, if it is one of the store's.
    fn in_store(&self) -> Option<Sent> {
        Some(Sent { seq: self.seq?, id: self.id, at_ms: self.sent_ms })
    }
}

/// All of them, in the order in which they were sent.
#[derive(Debug, Default)]
pub struct Flight {
    unacked: VecDeque<Unacked>,
}

impl Flight {
    /// This push was sent; `seq` if it is one of the store's.
    pub fn send(&mut self, now: Moment, wall: UnixMillis, seq: Option<Seq>, id: MessageId) {
        self.unacked.push_back(Unacked { seq, id, sent: now, sent_ms: Some(wall), done: None });
    }

    /// The device has had this push from the beginning.
    pub fn had(&mut self, now: Moment, seq: Seq, id: MessageId) {
        let done = Some(Done::Stored);
        self.unacked.push_back(Unacked { seq: Some(seq), id, sent: now, sent_ms: None, done });
    }

    /// The device is done with these; returns how long it took to store each.
    pub fn done(&mut self, now: Moment, ids: &[MessageId], how: Done) -> Vec<Duration> {
        let mut waits = Vec::new();
        for unacked in self.unacked.iter_mut().filter(|unacked| unacked.done.is_none() && ids.contains(&unacked.id)) {
            unacked.done = Some(how);
            // What was not kept took no fsync.
            waits.extend((how == Done::Stored).then(|| now.since(unacked.sent)));
        }
        waits
    }

    /// Lets go of what the device is done with, and with all that was sent before.
    pub fn settle(&mut self) -> Vec<Settled> {
        let mut settled = Vec::new();
        while let Some(how) = self.unacked.front().and_then(|first| first.done) {
            let first = self.unacked.pop_front();
            settled.extend(first.and_then(|first| first.in_store()).map(|sent| Settled { sent, how }));
        }
        if self.unacked.is_empty() {
            // An idle session is one of very many: it keeps no buffers.
            self.unacked = VecDeque::new();
        }
        settled
    }

    /// How many the device has not acknowledged.
    pub fn count(&self) -> usize {
        self.unacked.iter().filter(|unacked| unacked.done.is_none()).count()
    }

    /// The one that has gone without an acknowledgement for the longest time.
    pub fn oldest(&self) -> Option<MessageId> {
        self.unacked.iter().find(|unacked| unacked.done.is_none()).map(|unacked| unacked.id)
    }

    /// Whether the push at this place is among them.
    pub fn holds(&self, seq: Seq) -> bool {
        self.unacked.iter().any(|unacked| unacked.seq == Some(seq))
    }

    /// Those of the store.
    pub fn in_store(&self) -> Vec<Sent> {
        self.unacked.iter().filter_map(Unacked::in_store).collect()
    }
}
