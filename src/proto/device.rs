//! The device's half of a session, as a pure state machine.
//!
//! It is told what happened and when, and answers what to do. The caller's loop:
//!
//! * `handle_*`: what the world did (link up, frame, link down, timer, stored);
//! * plain verbs: what the device wants (`register`, `deregister`, `report`, `stop`);
//! * [`Device::poll_action`] after each of these until it returns `None`;
//! * [`Device::poll_timeout`]: when to call [`Device::handle_timer`] at the latest.
//!
//! Spurious calls do nothing. It must never acknowledge a push before
//! [`Device::handle_stored`] has said that the push is on disk.

mod ends;
mod machine;
mod pinging;
mod polling;
mod terms;

use std::collections::VecDeque;
use std::time::Duration;

use super::backoff::{Backoff, Luck};
use super::frame::{
    Bye, Delivery, Hello, LIST_MAX, NotKept, Outcome, Reason, ToDevice, ToServer, VERSION, WINDOW, Welcome,
};
use super::ids::{AppId, MessageId};
use super::keepalive::Profile;
use super::pulse::{Pulse, Reading};
use super::surroundings::Surroundings;
use super::timers::{Moment, TimerName, Timers};
use super::urgency::Taking;
use super::wishes::{Wish, Wishes};

pub use machine::{OUT_OF_REACH, Offline};
pub use terms::{DeviceAction, Identity, LinkState, Online};

/// How long the server may take to answer the greeting.
pub const GREETING: Duration = Duration::from_secs(30);
/// How long the server may take to answer a registration.
pub const ANSWER: Duration = Duration::from_secs(30);
/// How long a network must have been up before it is tried.
pub const QUIET: Duration = Duration::from_secs(2);
/// The least time between two attempts that a network's coming causes.
pub const CANARY_GAP: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Timer {
    Retry,
    Greeting,
    Answer,
    Keepalive,
    /// The ping has not been answered: half of the wait is over.
    Repeat,
    Pong,
    /// A network that has come is tried.
    Canary,
    /// A sync is over.
    Quiet,
    /// The device is offline for so long that people are told. It outlives attempts.
    OutOfReach,
}

impl TimerName for Timer {
    const ALL: &'static [Self] = &[
        Timer::Retry,
        Timer::Greeting,
        Timer::Answer,
        Timer::Keepalive,
        Timer::Repeat,
        Timer::Pong,
        Timer::Canary,
        Timer::Quiet,
        Timer::OutOfReach,
    ];

    fn slot(self) -> usize {
        self as usize
    }
}

/// The counters of an open session. It exists only while one is open.
#[derive(Debug)]
struct Session {
    since: Moment,
    proven: bool,
    last_push: u64,
    /// Pushes that the disk has still to answer for.
    storing: usize,
}

/// The state machine.
#[derive(Debug)]
pub struct Device {
    identity: Identity,
    state: LinkState,
    session: Option<Session>,
    timers: Timers<Timer, 9>,
    backoff: Backoff,
    wishes: Wishes,
    pulse: Pulse,
    profile: Profile,
    surroundings: Surroundings,
    /// What the server was last told that the device takes.
    told: Taking,
    /// What carries the link allows no longer silence.
    longest_silence: Option<Duration>,
    /// How often to sync where the device does not stay connected.
    sync_every: Option<Duration>,
    /// It waits for the next sync.
    between_syncs: bool,
    /// There is no network.
    away: bool,
    /// When a network's coming last caused an attempt.
    canary: Option<Moment>,
    /// When the device was last said to have been asleep.
    woken: Option<Moment>,
    /// Set while there is no session, once there was a failure.
    offline: Option<Offline>,
    /// It has been offline for long although there is a network.
    out_of_reach: bool,
    /// What a server or a dying link last said about the end, until the wait begins.
    farewell: Option<Bye>,
    actions: VecDeque<DeviceAction>,
}

impl Device {
    /// A device that does nothing until `start`.
    pub fn new(identity: Identity, profile: Profile) -> Self {
        Self {
            identity,
            state: LinkState::Stopped,
            session: None,
            timers: Timers::new(),
            backoff: Backoff::up_to(profile.constants().backoff_longest),
            wishes: Wishes::default(),
            pulse: Pulse::new(profile),
            profile,
            surroundings: Surroundings::default(),
            told: Taking::default(),
            longest_silence: None,
            sync_every: None,
            between_syncs: false,
            away: false,
            canary: None,
            woken: None,
            offline: None,
            out_of_reach: false,
            farewell: None,
            actions: VecDeque::new(),
        }
    }

    /// Where the connection stands.
    pub fn state(&self) -> &LinkState {
        &self.state
    }

    /// What powers the device.
    pub fn profile(&self) -> Profile {
        self.profile
    }

    /// What the connection's silences are like.
    pub fn pulse(&self) -> Reading {
        self.pulse.reading()
    }

    /// Attempts that failed since a session last lasted.
    pub fn failures(&self) -> u32 {
        self.backoff.failures()
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<DeviceAction> {
        self.actions.pop_front()
    }

    /// When `handle_timer` must be called at the latest. Poll again after every other call.
    pub fn poll_timeout(&self) -> Option<Moment> {
        self.timers.next()
    }

    /// Starts to connect.
    pub fn start(&mut self) {
        if self.state == LinkState::Stopped {
            self.dial();
        }
    }

    /// Skips the wait before the next attempt, if there is one: the network has changed, or
    /// somebody asked.
    pub fn try_now(&mut self) {
        if matches!(self.state, LinkState::Waiting { .. }) {
            self.dial();
        }
    }

    /// Ends the session, if one is open, and opens a link at once: there is a better one.
    pub fn redial(&mut self, now: Moment) {
        if self.session.is_some() {
            self.move_on(now);
        }
    }

    /// Ends whatever is open and opens a link at once: how the server is reached has changed, or what it
    /// wants to hear from a new device.
    pub fn start_over(&mut self, now: Moment, enrolment_key: Option<String>) {
        self.identity.enrolment_key = enrolment_key;
        match self.state {
            LinkState::Stopped => {}
            LinkState::Waiting { .. } | LinkState::Dialling => self.dial(),
            LinkState::Greeting | LinkState::Online { .. } => self.move_on(now),
        }
    }

    /// Ends the session in order and stays away.
    pub fn stop(&mut self) {
        if self.session.is_some() {
            self.send(ToServer::Bye(Bye::because(Reason::Shutdown)));
        }
        self.hangup();
        self.forget_session();
        self.end_offline();
        self.state = LinkState::Stopped;
    }

    /// Asks for what is wanted for `app`, now or as soon as there is a session.
    pub fn wish(&mut self, now: Moment, app: AppId, wish: Wish) {
        let new = self.wishes.add(app, wish);
        if new && self.session.is_some() {
            self.ask(now);
        } else if new && self.between_syncs {
            self.try_now();
        }
    }

    /// Asks for a regId for `app`, now or as soon as there is a session.
    pub fn register(&mut self, now: Moment, app: AppId) {
        self.wish(now, app, Wish::Register);
    }

    /// Ends the registration of `app`, now or as soon as there is a session.
    pub fn deregister(&mut self, now: Moment, app: AppId) {
        self.wish(now, app, Wish::Deregister);
    }

    /// The device's power or the price of its network is this now. The server is told at once if that
    /// changes what the device takes.
    pub fn handle_surroundings(&mut self, now: Moment, surroundings: Surroundings) {
        self.surroundings = surroundings;
        self.tell_taking(now);
    }

    /// What is known of power and price.
    pub fn surroundings(&self) -> Surroundings {
        self.surroundings
    }

    /// Reports outcomes if a session is open; otherwise `Online` will ask for them.
    pub fn report(&mut self, now: Moment, outcomes: &[Outcome]) {
        if self.session.is_none() {
            return;
        }
        for list in outcomes.chunks(LIST_MAX) {
            self.say(now, ToServer::Outcomes { list: list.to_vec() });
        }
    }

    /// The link that was asked for is open. `resume` are the ids of the last [`WINDOW`] pushes on
    /// disk, `longest_silence` what carries the link allows, if it says.
    pub fn handle_link_up(&mut self, now: Moment, mut resume: Vec<MessageId>, longest_silence: Option<Duration>) {
        if self.state != LinkState::Dialling {
            return;
        }
        resume.truncate(WINDOW);
        self.longest_silence = longest_silence;
        self.state = LinkState::Greeting;
        self.timers.set(Timer::Greeting, now.after(GREETING));
        let identity = self.identity.clone();
        let next_s = self.next_s(now);
        self.told = self.taking();
        self.send(ToServer::Hello(Hello {
            version: VERSION,
            device: identity.device,
            secret: identity.secret,
            agent: identity.agent,
            enrolment_key: identity.enrolment_key,
            resume,
            next_s,
            taking: self.told,
        }));
    }

    /// The link broke without a word from the server; `why` is for people.
    pub fn handle_link_broken(&mut self, now: Moment, why: &str, luck: Luck) {
        if self.session.is_some() {
            self.pulse.lost(now);
        }
        self.handle_link_down(now, why, luck);
    }

    /// The link could not be opened, or was closed; `why` is for people.
    pub fn handle_link_down(&mut self, now: Moment, why: &str, luck: Luck) {
        match self.state {
            LinkState::Stopped | LinkState::Waiting { .. } => {}
            LinkState::Dialling | LinkState::Greeting | LinkState::Online { .. } => self.wait(now, why, luck),
        }
    }

    /// A frame came in. One that breaks the protocol ends the session.
    pub fn handle_frame(&mut self, now: Moment, frame: ToDevice, luck: Luck) {
        match self.state {
            LinkState::Greeting => self.handle_greeting(now, frame, luck),
            LinkState::Online { .. } => self.handle_online(now, frame, luck),
            LinkState::Stopped | LinkState::Waiting { .. } | LinkState::Dialling => {}
        }
    }

    /// A text came in that is no frame.
    pub fn handle_garbage(&mut self, now: Moment, luck: Luck) {
        self.fail(now, Bye::because(Reason::Protocol), luck);
    }

    /// These pushes are on disk: now they may be acknowledged.
    pub fn handle_stored(&mut self, now: Moment, ids: &[MessageId]) {
        let Some(session) = &mut self.session else { return };
        session.storing = session.storing.saturating_sub(ids.len());
        for ids in ids.chunks(LIST_MAX) {
            self.say(now, ToServer::Ack { ids: ids.to_vec() });
        }
    }

    /// These pushes are not kept, and the device will say the same of them again.
    pub fn handle_not_kept(&mut self, now: Moment, all: &[(MessageId, NotKept)]) {
        let Some(session) = &mut self.session else { return };
        session.storing = session.storing.saturating_sub(all.len());
        for why in NotKept::ALL {
            let ids: Vec<MessageId> = all.iter().filter(|(_, reason)| *reason == why).map(|(id, _)| *id).collect();
            for ids in ids.chunks(LIST_MAX) {
                self.say(now, ToServer::NotKept { ids: ids.to_vec(), why });
            }
        }
    }

    /// The device cannot store: it gives the session up, so that the server keeps what it sends.
    /// Nothing may overtake the push that failed: the caller forgets whatever else it was to store.
    pub fn handle_store_failed(&mut self, now: Moment, luck: Luck) {
        self.actions.retain(|action| !matches!(action, DeviceAction::Store(_)));
        self.fail(now, Bye::because(Reason::Busy), luck);
    }

    /// Time has passed.
    pub fn handle_timer(&mut self, now: Moment, luck: Luck) {
        while let Some(timer) = self.timers.expired(now) {
            match timer {
                Timer::Retry => self.dial(),
                Timer::Greeting | Timer::Answer => self.fail(now, Bye::because(Reason::Silent), luck),
                Timer::Keepalive => {
                    self.pulse.alarm(now);
                    self.ping(now);
                }
                Timer::Repeat => self.repeat_ping(now),
                Timer::Pong => self.lose(now, luck),
                Timer::Canary => self.try_canary(now),
                Timer::Quiet => self.end_sync(now),
                Timer::OutOfReach => self.out_of_reach = true,
            }
        }
    }

    fn handle_greeting(&mut self, now: Moment, frame: ToDevice, luck: Luck) {
        match frame {
            ToDevice::Welcome(welcome) if welcome.version == VERSION => self.open(now, &welcome),
            ToDevice::Welcome(_) => self.fail(now, Bye::because(Reason::Version), luck),
            ToDevice::Redirect { gateway } => self.redirect(now, gateway, luck),
            ToDevice::Bye(bye) => self.end(now, bye, luck),
            ToDevice::Push(_)
            | ToDevice::Registered { .. }
            | ToDevice::Refused { .. }
            | ToDevice::Deregistered { .. }
            | ToDevice::Unregistered { .. }
            | ToDevice::Noted { .. }
            | ToDevice::Pong { .. } => self.fail(now, Bye::because(Reason::Protocol), luck),
        }
    }

    fn open(&mut self, now: Moment, welcome: &Welcome) {
        let allowed = Duration::from_secs(welcome.ka_max_s.into());
        self.pulse.open(now, self.longest_silence.map_or(allowed, |longest| longest.min(allowed)));
        self.session = Some(Session { since: now, proven: false, last_push: 0, storing: 0 });
        self.state = LinkState::Online { since: now, region: welcome.region };
        self.timers.clear(Timer::Greeting);
        self.end_offline();
        self.heard(now);
        self.actions.push_back(DeviceAction::Online(Online {
            region: welcome.region,
            enrolled: welcome.enrolled,
            links: welcome.links.clone(),
        }));
        self.tell_taking(now);
        self.ask(now);
    }

    fn handle_online(&mut self, now: Moment, frame: ToDevice, luck: Luck) {
        if let ToDevice::Pong { seq } = frame {
            self.pulse.pong(now, seq);
        }
        self.heard(now);
        match frame {
            ToDevice::Push(delivery) => self.receive(now, delivery, luck),
            ToDevice::Registered { req, app, reg_id, endpoint } => {
                if self.answered(&app, req) {
                    self.actions.push_back(DeviceAction::Registered(app, reg_id, endpoint));
                }
            }
            ToDevice::Refused { req, app, refusal } => {
                if self.answered(&app, req) {
                    self.actions.push_back(DeviceAction::Refused(app, refusal));
                }
            }
            ToDevice::Deregistered { req, app } => {
                if self.answered(&app, req) {
                    self.actions.push_back(DeviceAction::Deregistered(app));
                }
            }
            ToDevice::Unregistered { app } => self.actions.push_back(DeviceAction::Unregistered(app)),
            ToDevice::Noted { ids } => self.actions.push_back(DeviceAction::Noted(ids)),
            ToDevice::Pong { .. } => self.prove(),
            ToDevice::Redirect { gateway } => self.redirect(now, gateway, luck),
            ToDevice::Bye(bye) => self.end(now, bye, luck),
            // A repeated welcome is harmless: a link may deliver a frame twice.
            ToDevice::Welcome(_) => {}
        }
    }

    /// Takes the next push of the session. A repeated one is acknowledged again once it is stored;
    /// a gap means that one is lost, and the server sends it again in the next session.
    fn receive(&mut self, now: Moment, delivery: Box<Delivery>, luck: Luck) {
        let Some(session) = &mut self.session else { return };
        if delivery.n > session.last_push + 1 {
            return self.fail(now, Bye::because(Reason::Protocol), luck);
        }
        session.last_push = session.last_push.max(delivery.n);
        session.proven = true;
        session.storing += 1;
        self.actions.push_back(DeviceAction::Store(delivery));
    }

    /// Sends what has not been asked for in this session.
    fn ask(&mut self, now: Moment) {
        for request in self.wishes.requests(now) {
            self.say(now, request);
        }
        self.watch_answers();
    }

    /// Waits for the answer to the oldest of the requests that are under way.
    fn watch_answers(&mut self) {
        match self.wishes.oldest_sent() {
            Some(asked) => self.timers.set(Timer::Answer, asked.after(ANSWER)),
            None => self.timers.clear(Timer::Answer),
        }
    }

    /// Whether this answers the app's latest request; if so, the wish is fulfilled.
    fn answered(&mut self, app: &AppId, req: u32) -> bool {
        let current = self.wishes.answered(app, req);
        if current {
            self.watch_answers();
        }
        self.prove();
        current
    }

    /// The server has answered or sent something: this session has had an exchange.
    fn prove(&mut self) {
        if let Some(session) = &mut self.session {
            session.proven = true;
        }
    }

    /// Sends a frame in the middle of a session.
    fn say(&mut self, now: Moment, frame: ToServer) {
        self.pulse.said(now);
        self.send(frame);
        self.watch_quiet(now);
    }

    fn send(&mut self, frame: ToServer) {
        self.actions.push_back(DeviceAction::Send(frame));
    }
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
