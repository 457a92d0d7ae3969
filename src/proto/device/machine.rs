//! What the machine says to the device's half of a session: its network, its sleep; and for how long the
//! device is offline with a network.
//!
//! None of it is needed: what nobody says is found out by pings and attempts, later.

use std::time::Duration;

use super::{Device, LinkState, QUIET, Timer};
use crate::proto::backoff::Luck;
use crate::proto::pulse::{Memory, Network};
use crate::proto::timers::Moment;

/// A device that is offline for so long, although there is a network, says so.
pub const OUT_OF_REACH: Duration = Duration::from_secs(300);
/// Who says that the device was asleep within this time after another means the same sleep.
const SAME_SLEEP: Duration = Duration::from_secs(10);

/// A time without a session, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offline {
    /// Since when.
    pub since: Moment,
    /// What ended the last attempt or session.
    pub why: String,
}

impl Device {
    /// Whether there is no network.
    pub fn away(&self) -> bool {
        self.away
    }

    /// The time without a session, if there is none now and an attempt has failed.
    pub fn offline(&self) -> Option<&Offline> {
        self.offline.as_ref()
    }

    /// Whether the device has been offline for [`OUT_OF_REACH`] although there is a network. It is true
    /// until a session opens or the network goes.
    pub fn out_of_reach(&self) -> bool {
        self.out_of_reach
    }

    /// The network is this one now, of which this is remembered; `None` if there is none.
    pub fn handle_network(&mut self, now: Moment, network: Option<(Network, Option<Memory>)>) {
        let Some((network, memory)) = network else {
            self.away = true;
            self.forget_reach();
            return self.pulse.disturb();
        };
        let came = std::mem::replace(&mut self.away, false);
        let other = self.pulse.set_network(now, network, memory);
        if !came && !other {
            return;
        }
        if came {
            self.watch_reach(now);
        }
        match self.state {
            LinkState::Waiting { .. } => self.timers.set(Timer::Canary, now.after(QUIET)),
            // The link may have been of the other network.
            LinkState::Online { .. } => self.ping(now),
            LinkState::Stopped | LinkState::Dialling | LinkState::Greeting => {}
        }
    }

    /// The device has another address on the same network: whether the path still knows the session is
    /// asked, and says nothing about silences.
    pub fn handle_moved(&mut self, now: Moment) {
        if matches!(self.state, LinkState::Online { .. }) {
            self.pulse.disturb();
            self.ping(now);
        }
    }

    /// The address that the link has on this side is gone, and the link with it.
    pub fn handle_address_gone(&mut self, now: Moment, luck: Luck) {
        if matches!(self.state, LinkState::Greeting | LinkState::Online { .. }) {
            self.hangup();
            self.come_back(now, "the device's address has changed", luck);
        }
    }

    /// The device is about to sleep: an answer that is awaited may come while nobody listens.
    pub fn handle_asleep(&mut self, now: Moment) {
        if self.timers.is_set(Timer::Pong) {
            self.give_up_pong();
            self.timers.set(Timer::Keepalive, self.pulse.due(now));
        }
    }

    /// The device was asleep: the server is asked whether it still listens, or tried anew. Several may
    /// say so of one sleep.
    pub fn handle_awake(&mut self, now: Moment) {
        if self.woken.is_some_and(|last| now.since(last) < SAME_SLEEP) {
            return;
        }
        self.woken = Some(now);
        // Nobody could be reached in a sleep.
        self.watch_reach(now);
        match self.state {
            LinkState::Waiting { .. } => self.try_canary(now),
            LinkState::Online { .. } => {
                if self.timers.is_set(Timer::Pong) {
                    self.give_up_pong();
                }
                self.ping(now);
            }
            LinkState::Stopped | LinkState::Dialling | LinkState::Greeting => {}
        }
    }

    /// What comes of a ping that is under way says nothing.
    fn give_up_pong(&mut self) {
        self.pulse.disturb();
        self.timers.clear(Timer::Repeat);
        self.timers.clear(Timer::Pong);
    }

    /// From now on it is to be counted for how long the device is offline with a network.
    fn watch_reach(&mut self, now: Moment) {
        if self.offline.is_some() && !self.away && !self.out_of_reach {
            self.timers.set(Timer::OutOfReach, now.after(OUT_OF_REACH));
        }
    }

    fn forget_reach(&mut self) {
        self.out_of_reach = false;
        self.timers.clear(Timer::OutOfReach);
    }

    /// There is no session, and this is why.
    pub(super) fn note_offline(&mut self, now: Moment, why: &str) {
        let began = self.offline.is_none();
        self.offline.get_or_insert(Offline { since: now, why: String::new() }).why = why.to_owned();
        if began {
            self.watch_reach(now);
        }
    }

    pub(super) fn end_offline(&mut self) {
        self.offline = None;
        self.forget_reach();
    }
}
