//! When a device pings, and what it says with it.

use std::time::Duration;

use super::super::frame::ToServer;
use super::super::timers::Moment;
use super::super::urgency::Taking;
use super::{Device, DeviceAction, Timer};

impl Device {
    pub(super) fn heard(&mut self, now: Moment) {
        self.pulse.heard(now);
        self.timers.clear(Timer::Pong);
        self.timers.clear(Timer::Repeat);
        self.credit(now);
        self.remember();
        if self.session.is_some() {
            self.timers.set(Timer::Keepalive, self.pulse.due(now));
        }
        self.watch_quiet(now);
    }

    /// Asks whether the server still listens, unless it is being asked.
    pub(super) fn ping(&mut self, now: Moment) {
        if self.session.is_none() || self.timers.is_set(Timer::Pong) {
            return;
        }
        let wait = self.pulse.pong_wait();
        self.timers.clear(Timer::Keepalive);
        self.timers.set(Timer::Repeat, now.after(wait / 2));
        self.timers.set(Timer::Pong, now.after(wait));
        self.repeat_ping(now);
    }

    pub(super) fn repeat_ping(&mut self, now: Moment) {
        let next_s = self.next_s(now);
        let seq = self.pulse.ping(now);
        self.told = self.taking();
        self.send(ToServer::Ping { seq, next_s, taking: self.told });
    }

    /// What the device takes.
    pub(super) fn taking(&self) -> Taking {
        Taking::of(self.profile, self.surroundings)
    }

    /// Pings if the server knows what the device takes from another time.
    pub(super) fn tell_taking(&mut self, now: Moment) {
        if self.session.is_none() || self.taking() == self.told {
            return;
        }
        if self.timers.is_set(Timer::Pong) {
            // It is being asked whether it listens: what answers one ping answers both.
            return self.repeat_ping(now);
        }
        self.ping(now);
    }

    /// The seconds within which the server hears of the device again.
    pub(super) fn next_s(&mut self, now: Moment) -> u32 {
        seconds(self.pulse.announce(now))
    }

    pub(super) fn remember(&mut self) {
        if let Some((key, learned)) = self.pulse.news() {
            self.actions.push_back(DeviceAction::Learned(key, learned));
        }
    }
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}
