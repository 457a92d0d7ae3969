//! How a device's sessions and attempts end, and when the next attempt is made.

use std::time::Duration;

use super::super::backoff::{self, Luck};
use super::super::frame::{Bye, Reason, ToServer};
use super::super::timers::Moment;
use super::{CANARY_GAP, Device, DeviceAction, LinkState, Session, Timer};

impl Device {
    /// The server has not answered a ping.
    pub(super) fn lose(&mut self, now: Moment, luck: Luck) {
        self.pulse.lost(now);
        self.remember();
        let why = self.leave(Bye::because(Reason::Silent));
        self.come_back(now, &why, luck);
    }

    /// Ends the session and opens a link at once.
    pub(super) fn move_on(&mut self, now: Moment) {
        self.credit(now);
        self.leave(Bye::because(Reason::Shutdown));
        self.forget_session();
        self.dial();
    }

    /// Waits after the path has forgotten the session, which the server cannot know: if the session had
    /// lasted, there is nothing to wait for.
    pub(super) fn come_back(&mut self, now: Moment, why: &str, luck: Luck) {
        match self.credit(now) {
            true => self.rest(now, why, Duration::ZERO),
            false => self.wait(now, why, luck),
        }
    }

    /// All but the one that outlives attempts.
    pub(super) fn clear_timers(&mut self) {
        self.timers.clear_all_but(Timer::OutOfReach);
    }

    /// Tries a network that has come, once in a while; the back-off neither waits for it nor ends by it.
    pub(super) fn try_canary(&mut self, now: Moment) {
        let rested = self.canary.is_none_or(|last| now.since(last) >= CANARY_GAP);
        if matches!(self.state, LinkState::Waiting { .. }) && rested {
            self.canary = Some(now);
            self.dial();
        }
    }

    pub(super) fn redirect(&mut self, now: Moment, gateway: String, luck: Luck) {
        self.actions.push_back(DeviceAction::UseGateway(gateway));
        self.hangup();
        self.wait(now, "the server named another gateway", luck);
    }

    /// The server said goodbye.
    pub(super) fn end(&mut self, now: Moment, bye: Bye, luck: Luck) {
        let why = format!("the server ended the session: {}", bye.reason);
        self.farewell = Some(bye);
        self.hangup();
        self.wait(now, &why, luck);
    }

    /// The device ends the session, with a reason for the server.
    pub(super) fn fail(&mut self, now: Moment, bye: Bye, luck: Luck) {
        if matches!(self.state, LinkState::Greeting | LinkState::Online { .. }) {
            let why = self.leave(bye);
            self.wait(now, &why, luck);
        }
    }

    /// Says goodbye; returns what people are told of it.
    pub(super) fn leave(&mut self, bye: Bye) -> String {
        let why = format!("the device ended the session: {}", bye.reason);
        self.send(ToServer::Bye(bye));
        self.hangup();
        why
    }

    pub(super) fn hangup(&mut self) {
        self.clear_timers();
        if matches!(self.state, LinkState::Dialling | LinkState::Greeting | LinkState::Online { .. }) {
            self.actions.push_back(DeviceAction::Hangup);
        }
    }

    /// A session that lasted, with an exchange in it, ends a series of failures. Returns whether it is
    /// one.
    pub(super) fn credit(&mut self, now: Moment) -> bool {
        let lasted = |session: &Session| session.proven && now.since(session.since) >= backoff::PROVEN_AFTER;
        let lasted = self.session.as_ref().is_some_and(lasted);
        if lasted {
            self.backoff.reset();
        }
        lasted
    }

    pub(super) fn forget_session(&mut self) {
        self.session = None;
        self.wishes.forget_requests();
    }

    pub(super) fn wait(&mut self, now: Moment, why: &str, luck: Luck) {
        self.credit(now);
        let own = self.backoff.next(luck);
        let delay = match self.farewell.take() {
            Some(bye) => backoff::after_goodbye(&bye, own, luck),
            // Nobody says that a network has come? Then it is looked for.
            None if self.away => own.max(self.profile.constants().offline_poll),
            None => own,
        };
        self.rest(now, why, delay);
    }

    /// Makes the next attempt so much later, and not at once.
    pub(super) fn rest(&mut self, now: Moment, why: &str, delay: Duration) {
        self.forget_session();
        self.clear_timers();
        let until = now.after(delay.max(backoff::SHORTEST_GAP));
        self.timers.set(Timer::Retry, until);
        self.state = LinkState::Waiting { until, why: why.to_owned() };
        self.note_offline(now, why);
    }

    pub(super) fn dial(&mut self) {
        self.clear_timers();
        self.between_syncs = false;
        self.state = LinkState::Dialling;
        self.actions.push_back(DeviceAction::Dial);
    }
}
