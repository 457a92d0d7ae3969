//! The server's half of a session, as a pure state machine.
//!
//! A connection starts as a [`Greeting`], which can do one thing: turn the first frame into a
//! [`Claim`]. When the store has proven the claim, [`Session::open`] makes the session. Before
//! that there is no object on which a stranger could register or acknowledge.
//!
//! The store is the queue. A session holds no more than [`WINDOW`] numbers of pushes that are on
//! their way and asks the store for the next ones when there is room; a wake-up only says that
//! asking is worth while. It must never send a push after its expiry, nor more than the window, nor one
//! for which the device does not want to be woken.

use std::collections::VecDeque;
use std::time::Duration;

use super::backlog::{Gate, HeldBack, Sequence, hold_back};
use super::flight::Flight;
use super::frame::{
    Bye, Delivery, Hello, LIST_MAX, Outcome, Reason, Refusal, ToDevice, ToServer, VERSION, WINDOW, Welcome,
};
use super::ids::{AppId, MessageId, RegId, Region, UnixMillis};
use super::message::Push;
use super::timers::{Moment, TimerName, Timers};
use super::urgency::Taking;

pub use super::backlog::{Backlog, Queued, Seq, Wanted};
pub use super::flight::{Done, Sent, Settled};

/// How long a device may take to say hello.
pub const HELLO: Duration = Duration::from_secs(10);
/// How long the oldest push on its way may go without an acknowledgement. A slow device has this
/// long for each push, as long as it works its way through them.
pub const ACK: Duration = Duration::from_secs(20);
/// What is added to the silence a device announced before it counts as gone.
pub const GRACE: Duration = Duration::from_secs(60);
/// The longest silence a device may announce, in seconds.
pub const SILENCE_MAX_S: u32 = 7200;

/// A connection on which nothing has been said yet.
#[derive(Debug)]
pub struct Greeting;

/// What a device says of itself; unproven.
#[derive(Debug)]
pub struct Claim {
    /// Its greeting.
    pub hello: Hello,
}

impl Greeting {
    /// Takes the first frame: a hello of a version we speak, or the reason to hang up.
    pub fn handle_frame(self, frame: ToServer) -> Result<Claim, Bye> {
        let ToServer::Hello(hello) = frame else {
            return Err(Bye::because(Reason::Protocol));
        };
        if hello.version < VERSION {
            return Err(Bye::because(Reason::Version));
        }
        if hello.resume.len() > WINDOW {
            return Err(Bye::because(Reason::Protocol));
        }
        Ok(Claim { hello })
    }
}

/// What the server tells every device.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The region of the regIds issued here.
    pub region: Region,
    /// The longest silence that the path to this server survives.
    pub ka_max_s: u32,
    /// The URLs of the links that it may use.
    pub links: Vec<String>,
}

/// What the caller is to do, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum GatewayAction {
    /// Send this frame.
    Send(ToDevice),
    /// Read this of the waiting pushes, answer with `handle_backlog`.
    Fetch(Wanted),
    /// The device is done with these: delete them.
    Settled(Vec<Settled>),
    /// So long the device took to acknowledge each of some pushes: count it.
    Answered(Vec<Duration>),
    /// These expired before they could be sent: delete them.
    Expired(Vec<Seq>),
    /// Register the app, answer with `registered`.
    Register {
        /// For the answer.
        req: u32,
        /// The app.
        app: AppId,
    },
    /// End the app's registration, answer with `deregistered`.
    Deregister {
        /// For the answer.
        req: u32,
        /// The app.
        app: AppId,
    },
    /// Note these outcomes, answer with `noted`.
    Outcomes(Vec<Outcome>),
    /// Send what is queued and close the link.
    Close,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Timer {
    Silence,
    Ack,
    /// A push has waited long enough for a frame of the device.
    Patience,
}

impl TimerName for Timer {
    const ALL: &'static [Self] = &[Timer::Silence, Timer::Ack, Timer::Patience];

    fn slot(self) -> usize {
        self as usize
    }
}

/// A proven device's session.
#[derive(Debug)]
pub struct Session {
    flight: Flight,
    /// What the device said it stored before; emptied once a backlog holds none of it.
    resume: Vec<MessageId>,
    actions: VecDeque<GatewayAction>,
    timers: Timers<Timer, 3>,
    silence: Duration,
    taking: Taking,
    /// The device is awake: what waited for that goes, until no more of it does.
    awake: bool,
    cursor: Seq,
    /// What the cursor has passed without sending it.
    held: HeldBack,
    /// The cursor goes back to before this place.
    again: Option<Seq>,
    sent: u64,
    /// The store may hold more than the cursor has passed.
    more: bool,
    fetching: bool,
    closed: bool,
}

impl Session {
    /// Opens the session of a device that has proven itself. `enrolled` says that it was unknown
    /// until now.
    pub fn open(claim: Claim, terms: Terms, enrolled: bool, now: Moment) -> Self {
        let mut session = Self {
            flight: Flight::default(),
            resume: claim.hello.resume,
            actions: VecDeque::new(),
            timers: Timers::new(),
            silence: Duration::ZERO,
            taking: claim.hello.taking,
            awake: true,
            cursor: Seq(0),
            held: HeldBack::new(),
            again: None,
            sent: 0,
            more: true,
            fetching: false,
            closed: false,
        };
        session.expect_within(now, claim.hello.next_s);
        session.send(ToDevice::Welcome(Welcome {
            version: VERSION,
            region: terms.region,
            enrolled,
            ka_max_s: terms.ka_max_s,
            links: terms.links,
        }));
        session.fetch();
        session
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<GatewayAction> {
        let action = self.actions.pop_front();
        if action.is_none() {
            // An idle session is one of very many: it keeps no buffers.
            self.actions = VecDeque::new();
        }
        action
    }

    /// When `handle_timer` must be called at the latest.
    pub fn poll_timeout(&self) -> Option<Moment> {
        self.timers.next()
    }

    /// Whether the session is over; nothing more comes out of it then.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// A frame came in.
    pub fn handle_frame(&mut self, now: Moment, frame: ToServer) {
        if self.closed {
            return;
        }
        self.timers.set(Timer::Silence, now.after(self.silence));
        // What waits for a frame, or may do so and has not been asked for.
        if self.timers.is_set(Timer::Patience) || self.more {
            (self.awake, self.more) = (true, true);
        }
        match frame {
            ToServer::Ack { ids } if ids.len() <= LIST_MAX => self.done(now, &ids, Done::Stored),
            ToServer::NotKept { ids, why } if ids.len() <= LIST_MAX => self.done(now, &ids, Done::NotKept(why)),
            ToServer::Register { req, app } => self.actions.push_back(GatewayAction::Register { req, app }),
            ToServer::Deregister { req, app } => self.actions.push_back(GatewayAction::Deregister { req, app }),
            ToServer::Outcomes { list } if list.len() <= LIST_MAX => {
                self.actions.push_back(GatewayAction::Outcomes(list))
            }
            ToServer::Ping { seq, next_s, taking } => {
                self.expect_within(now, next_s);
                self.send(ToDevice::Pong { seq });
                self.take(taking);
            }
            ToServer::Bye(_) => self.close_quietly(),
            // A repeated hello is harmless: a link may deliver a frame twice.
            ToServer::Hello(_) => {}
            ToServer::Ack { .. } | ToServer::NotKept { .. } | ToServer::Outcomes { .. } => {
                self.close(Bye::because(Reason::Protocol))
            }
        }
        self.fetch();
    }

    /// What the device takes from now on.
    fn take(&mut self, taking: Taking) {
        let more = taking.is_more_than(std::mem::replace(&mut self.taking, taking));
        if more {
            // It is awake to say so.
            self.awake = true;
            self.handle_wake();
        }
    }

    /// What the device takes.
    pub fn taking(&self) -> Taking {
        self.taking
    }

    /// The store may hold something for this device.
    pub fn handle_wake(&mut self) {
        self.more = true;
        self.fetch();
    }

    /// The answer to `Fetch`. What does not fit, because an offer took the room meanwhile, is asked for
    /// again later.
    pub fn handle_backlog(&mut self, now: Moment, wall: UnixMillis, backlog: Backlog) {
        self.fetching = false;
        if self.closed {
            return;
        }
        let Backlog { rows, complete, mut held, until } = backlog;
        self.more |= !complete;
        let (mut had, mut left_over, mut expired) = (false, false, Vec::new());
        let resume = std::mem::take(&mut self.resume);
        for row in rows {
            let (seq, id) = (row.seq, row.push.id);
            if left_over {
                hold_back(&mut held, Sequence::of(&row.push.app, row.push.urgency), seq);
                continue;
            }
            if resume.contains(&id) {
                had = true;
                self.flight.had(now, seq, id);
            } else if self.flight.holds(seq) {
                // Seen again after `look_again`.
            } else if row.push.expired(wall) {
                expired.push(seq);
            } else if self.flight.count() < WINDOW {
                self.push(now, wall, row);
            } else {
                hold_back(&mut held, Sequence::of(&row.push.app, row.push.urgency), seq);
                left_over = true;
                continue;
            }
            self.cursor = self.cursor.max(seq);
        }
        self.more |= left_over;
        let later = had || left_over || !held.is_empty();
        // What is after the cursor is asked for anyway.
        held.retain(|(_, seq)| *seq <= self.cursor);
        self.held = held;
        self.watch_patience(now, wall, until);
        // Rows the device had take no room in the window: those after them may be on its list too, and
        // those that are held back.
        if later {
            self.resume = resume;
        }
        self.settle();
        if !expired.is_empty() {
            self.actions.push_back(GatewayAction::Expired(expired));
        }
        self.fetch();
    }

    /// What waits for a frame of the device waits so long at the most.
    fn watch_patience(&mut self, now: Moment, wall: UnixMillis, until: Option<UnixMillis>) {
        // Whoever is awake has been sent all of it, or is asked for the rest.
        self.awake &= self.more;
        let wait = |until: UnixMillis| u64::try_from(until.0.saturating_sub(wall.0)).unwrap_or(0);
        match until {
            Some(until) => self.timers.set(Timer::Patience, now.after(Duration::from_millis(wait(until)))),
            None => self.timers.clear(Timer::Patience),
        }
    }

    /// Sends a push that is not in the store, if the device takes it and there is room for it in the
    /// window: it is now or never.
    pub fn offer(&mut self, now: Moment, wall: UnixMillis, push: Push) -> bool {
        let room = !self.closed && self.flight.count() < WINDOW && push.urgency >= self.taking.least;
        if room {
            self.send_push(now, wall, None, Delivery { n: 0, dropped: 0, replaces: Vec::new(), push });
        }
        room
    }

    /// Whether the push at this place may be on its way or with the device: the session has sent
    /// it, or the device said at its beginning that it has it. Of what the device is done with, the store
    /// has been told.
    pub fn may_have_sent(&self, seq: Seq, id: MessageId) -> bool {
        // What was held back of one app may be before what was sent of another.
        let passed = seq <= self.passed() && self.held.iter().all(|(_, first)| seq < *first);
        passed || self.flight.holds(seq) || self.resume.contains(&id)
    }

    /// The store holds something at this place that it has not shown before.
    pub fn look_again(&mut self, seq: Seq) {
        self.again = Some(self.again.map_or(seq, |other| other.min(seq)));
        self.handle_wake();
    }

    /// What was sent and has not been acknowledged, of what is in the store.
    pub fn on_their_way(&self) -> Vec<Sent> {
        self.flight.in_store()
    }

    /// The answer to `Register`: the app's regId and, if it is a Web Push channel, its endpoint.
    pub fn registered(&mut self, req: u32, app: AppId, result: Result<(RegId, Option<String>), Refusal>) {
        self.send(match result {
            Ok((reg_id, endpoint)) => ToDevice::Registered { req, app, reg_id, endpoint },
            Err(refusal) => ToDevice::Refused { req, app, refusal },
        });
    }

    /// The answer to `Deregister`.
    pub fn deregistered(&mut self, req: u32, app: AppId) {
        self.send(ToDevice::Deregistered { req, app });
    }

    /// The server has ended the app's registration.
    pub fn unregistered(&mut self, app: AppId) {
        self.send(ToDevice::Unregistered { app });
    }

    /// The answer to `Outcomes`.
    pub fn noted(&mut self, ids: Vec<MessageId>) {
        self.send(ToDevice::Noted { ids });
    }

    /// Time has passed.
    pub fn handle_timer(&mut self, now: Moment) {
        while let Some(timer) = self.timers.expired(now) {
            match timer {
                Timer::Silence => self.close(Bye::because(Reason::Silent)),
                Timer::Ack => self.close(Bye::because(Reason::Unacknowledged)),
                Timer::Patience => self.handle_wake(),
            }
        }
    }

    /// Ends the session with a goodbye.
    pub fn close(&mut self, bye: Bye) {
        if !self.closed {
            self.send(ToDevice::Bye(bye));
            self.close_quietly();
        }
    }

    fn close_quietly(&mut self) {
        if !self.closed {
            self.actions.push_back(GatewayAction::Close);
            self.closed = true;
            self.timers.clear_all();
        }
    }

    fn done(&mut self, now: Moment, ids: &[MessageId], how: Done) {
        let oldest = self.flight.oldest();
        let waits = self.flight.done(now, ids, how);
        self.settle();
        if !waits.is_empty() {
            self.actions.push_back(GatewayAction::Answered(waits));
        }
        if self.flight.oldest() != oldest {
            self.watch_acks(now);
        }
        self.fetch();
    }

    fn settle(&mut self) {
        let settled = self.flight.settle();
        if !settled.is_empty() {
            self.actions.push_back(GatewayAction::Settled(settled));
        }
    }

    fn push(&mut self, now: Moment, wall: UnixMillis, row: Queued) {
        let Queued { seq, dropped, replaces, push } = row;
        self.send_push(now, wall, Some(seq), Delivery { n: 0, dropped, replaces, push });
    }

    /// Sends a push as the next of this session.
    fn send_push(&mut self, now: Moment, wall: UnixMillis, seq: Option<Seq>, delivery: Delivery) {
        self.sent += 1;
        self.flight.send(now, wall, seq, delivery.push.id);
        self.send(ToDevice::Push(Box::new(Delivery { n: self.sent, ..delivery })));
        if self.flight.count() == 1 {
            self.watch_acks(now);
        }
    }

    /// Gives the push that is now the oldest its time.
    fn watch_acks(&mut self, now: Moment) {
        match self.flight.oldest() {
            Some(_) => self.timers.set(Timer::Ack, now.after(ACK)),
            None => self.timers.clear(Timer::Ack),
        }
    }

    fn fetch(&mut self) {
        let limit = WINDOW.saturating_sub(self.flight.count());
        if self.more && !self.fetching && !self.closed && limit > 0 {
            self.fetching = true;
            // A wake-up that comes while the store is reading sets it again.
            self.more = false;
            self.cursor = self.passed();
            self.again = None;
            let gate = Gate { least: self.taking.least, quiet: self.taking.idle && !self.awake };
            let wanted = Wanted { after: self.cursor, held: self.held.clone(), gate, limit };
            self.actions.push_back(GatewayAction::Fetch(wanted));
        }
    }

    /// The last place that need not be looked at again, but for what was held back.
    fn passed(&self) -> Seq {
        self.again.map_or(self.cursor, |again| self.cursor.min(Seq(again.0 - 1)))
    }

    fn expect_within(&mut self, now: Moment, next_s: u32) {
        self.silence = Duration::from_secs(next_s.min(SILENCE_MAX_S).into()) + GRACE;
        self.timers.set(Timer::Silence, now.after(self.silence));
    }

    fn send(&mut self, frame: ToDevice) {
        if !self.closed {
            self.actions.push_back(GatewayAction::Send(frame));
        }
    }
}

#[cfg(test)]
#[path = "gateway_tests.rs"]
mod tests;
