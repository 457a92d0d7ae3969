//! The server's half of a session, as a pure state machine.
//!
//! A connection starts as a [`Greeting`], which can do one thing: turn the first frame into a
//! [`Claim`]. When the store has proven the claim, [`Session::open`] makes the session. Before
//! that there is no object on which a stranger could register or acknowledge.
//!
//! The store is the queue. A session holds no more than [`WINDOW`] numbers of pushes that are on
//! their way and asks the store for the next ones when there is room; a wake-up only says that
//! asking is worth while. It must never send a push after its expiry, nor more than the window.

use std::collections::VecDeque;
use std::time::Duration;

use super::frame::{
    Bye, Delivery, Hello, LIST_MAX, NotKept, Outcome, Reason, Refusal, ToDevice, ToServer, VERSION, WINDOW, Welcome,
};
use super::ids::{AppId, MessageId, RegId, Region, UnixMillis};
use super::message::Push;
use super::timers::{Moment, TimerName, Timers};

/// How long a device may take to say hello.
pub const HELLO: Duration = Duration::from_secs(10);
/// How long the oldest push on its way may go without an acknowledgement. A slow device has this
/// long for each push, as long as it works its way through them.
pub const ACK: Duration = Duration::from_secs(20);
/// What is added to the silence a device announced before it counts as gone.
pub const GRACE: Duration = Duration::from_secs(60);
/// The longest silence a device may announce, in seconds.
pub const SILENCE_MAX_S: u32 = 7200;

/// The place of a waiting push in the store's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub i64);

/// A push as the store hands it to a session.
#[derive(Clone, Debug, PartialEq)]
pub struct Queued {
    /// Its place.
    pub seq: Seq,
    /// Older messages of the same registration that were dropped before it.
    pub dropped: u32,
    /// Pushes whose place it takes.
    pub replaces: Vec<MessageId>,
    /// The notification.
    pub push: Push,
}

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
    /// Read at most `limit` waiting pushes after `after`, answer with `handle_backlog`.
    Fetch {
        /// The last push that was sent.
        after: Seq,
        /// How many fit into the window.
        limit: usize,
    },
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
}

impl TimerName for Timer {
    const ALL: &'static [Self] = &[Timer::Silence, Timer::Ack];

    fn slot(self) -> usize {
        self as usize
    }
}

/// A push that was sent, or that the device had at the beginning; they are in the store's order.
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

/// A proven device's session.
#[derive(Debug)]
pub struct Session {
    unacked: VecDeque<Unacked>,
    /// What the device said it stored before; emptied once a backlog holds none of it.
    resume: Vec<MessageId>,
    actions: VecDeque<GatewayAction>,
    timers: Timers<Timer, 2>,
    silence: Duration,
    cursor: Seq,
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
            unacked: VecDeque::new(),
            resume: claim.hello.resume,
            actions: VecDeque::new(),
            timers: Timers::new(),
            silence: Duration::ZERO,
            cursor: Seq(0),
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
        match frame {
            ToServer::Ack { ids } if ids.len() <= LIST_MAX => self.done(now, &ids, Done::Stored),
            ToServer::NotKept { ids, why } if ids.len() <= LIST_MAX => self.done(now, &ids, Done::NotKept(why)),
            ToServer::Register { req, app } => self.actions.push_back(GatewayAction::Register { req, app }),
            ToServer::Deregister { req, app } => self.actions.push_back(GatewayAction::Deregister { req, app }),
            ToServer::Outcomes { list } if list.len() <= LIST_MAX => {
                self.actions.push_back(GatewayAction::Outcomes(list))
            }
            ToServer::Ping { seq, next_s } => {
                self.expect_within(now, next_s);
                self.send(ToDevice::Pong { seq });
            }
            ToServer::Bye(_) => self.close_quietly(),
            // A repeated hello is harmless: a link may deliver a frame twice.
            ToServer::Hello(_) => {}
            ToServer::Ack { .. } | ToServer::NotKept { .. } | ToServer::Outcomes { .. } => {
                self.close(Bye::because(Reason::Protocol))
            }
        }
    }

    /// The store may hold something for this device.
    pub fn handle_wake(&mut self) {
        self.more = true;
        self.fetch();
    }

    /// The answer to `Fetch`: pushes in order. `complete` says that nothing waits behind them. What
    /// does not fit, because an offer took the room meanwhile, is asked for again later.
    pub fn handle_backlog(&mut self, now: Moment, wall: UnixMillis, rows: Vec<Queued>, complete: bool) {
        self.fetching = false;
        if self.closed {
            return;
        }
        self.more |= !complete;
        let (mut had, mut left_over, mut expired) = (false, false, Vec::new());
        let resume = std::mem::take(&mut self.resume);
        for row in rows {
            let seq = row.seq;
            if resume.contains(&row.push.id) {
                had = true;
                let (id, sent) = (row.push.id, now);
                self.unacked.push_back(Unacked { seq: Some(seq), id, sent, sent_ms: None, done: Some(Done::Stored) });
            } else if self.is_on_its_way(seq) {
                // Seen again after `look_again`.
            } else if row.push.expired(wall) {
                expired.push(seq);
            } else if self.in_flight() < WINDOW {
                self.push(now, wall, row);
            } else {
                left_over = true;
                break;
            }
            self.cursor = self.cursor.max(seq);
        }
        self.more |= left_over;
        // Rows the device had take no room in the window: those after them may be on its list too.
        if had || left_over {
            self.resume = resume;
        }
        self.settle();
        if !expired.is_empty() {
            self.actions.push_back(GatewayAction::Expired(expired));
        }
        self.fetch();
    }

    /// Sends a push that is not in the store, if there is room for it in the window.
    pub fn offer(&mut self, now: Moment, wall: UnixMillis, push: Push) -> bool {
        let room = !self.closed && self.in_flight() < WINDOW;
        if room {
            self.send_push(now, wall, None, Delivery { n: 0, dropped: 0, replaces: Vec::new(), push });
        }
        room
    }

    /// Whether the push at this place may be on its way or with the device: the session has passed
    /// it, or the device said at its beginning that it has it.
    pub fn may_have_sent(&self, seq: Seq, id: MessageId) -> bool {
        // What is on its way may be behind the cursor, which `look_again` sets back.
        seq <= self.cursor || self.is_on_its_way(seq) || self.resume.contains(&id)
    }

    /// The store holds something at this place that it has not shown before.
    pub fn look_again(&mut self, seq: Seq) {
        self.cursor = self.cursor.min(Seq(seq.0 - 1));
        self.handle_wake();
    }

    /// What was sent and has not been acknowledged, of what is in the store.
    pub fn on_their_way(&self) -> Vec<Sent> {
        self.unacked.iter().filter_map(Unacked::in_store).collect()
    }

    /// The answer to `Register`.
    pub fn registered(&mut self, req: u32, app: AppId, result: Result<RegId, Refusal>) {
        self.send(match result {
            Ok(reg_id) => ToDevice::Registered { req, app, reg_id },
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
            self.close(Bye::because(match timer {
                Timer::Silence => Reason::Silent,
                Timer::Ack => Reason::Unacknowledged,
            }));
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
        let mut waits = Vec::new();
        let oldest = self.oldest_in_flight();
        for unacked in self.unacked.iter_mut().filter(|unacked| unacked.done.is_none() && ids.contains(&unacked.id)) {
            unacked.done = Some(how);
            // What was not kept took no fsync.
            waits.extend((how == Done::Stored).then(|| now.since(unacked.sent)));
        }
        self.settle();
        if !waits.is_empty() {
            self.actions.push_back(GatewayAction::Answered(waits));
        }
        if self.oldest_in_flight() != oldest {
            self.watch_acks(now);
        }
        self.fetch();
    }

    /// Lets go of what the device is done with, in the order in which it was sent: senders are told of their
    /// messages in that order.
    fn settle(&mut self) {
        let mut settled = Vec::new();
        while let Some(how) = self.unacked.front().and_then(|first| first.done) {
            let first = self.unacked.pop_front();
            settled.extend(first.and_then(|first| first.in_store()).map(|sent| Settled { sent, how }));
        }
        if self.unacked.is_empty() {
            self.unacked = VecDeque::new();
        }
        if !settled.is_empty() {
            self.actions.push_back(GatewayAction::Settled(settled));
        }
    }

    /// How many pushes the device has not acknowledged.
    fn in_flight(&self) -> usize {
        self.unacked.iter().filter(|unacked| unacked.done.is_none()).count()
    }

    fn oldest_in_flight(&self) -> Option<MessageId> {
        self.unacked.iter().find(|unacked| unacked.done.is_none()).map(|unacked| unacked.id)
    }

    fn is_on_its_way(&self, seq: Seq) -> bool {
        self.unacked.iter().any(|unacked| unacked.seq == Some(seq))
    }

    fn push(&mut self, now: Moment, wall: UnixMillis, row: Queued) {
        let Queued { seq, dropped, replaces, push } = row;
        self.send_push(now, wall, Some(seq), Delivery { n: 0, dropped, replaces, push });
    }

    /// Sends a push as the next of this session.
    fn send_push(&mut self, now: Moment, wall: UnixMillis, seq: Option<Seq>, delivery: Delivery) {
        self.sent += 1;
        self.unacked.push_back(Unacked { seq, id: delivery.push.id, sent: now, sent_ms: Some(wall), done: None });
        self.send(ToDevice::Push(Box::new(Delivery { n: self.sent, ..delivery })));
        if self.in_flight() == 1 {
            self.watch_acks(now);
        }
    }

    /// Gives the push that is now the oldest its time.
    fn watch_acks(&mut self, now: Moment) {
        match self.oldest_in_flight() {
            Some(_) => self.timers.set(Timer::Ack, now.after(ACK)),
            None => self.timers.clear(Timer::Ack),
        }
    }

    fn fetch(&mut self) {
        let room = WINDOW.saturating_sub(self.in_flight());
        if self.more && !self.fetching && !self.closed && room > 0 {
            self.fetching = true;
            // A wake-up that comes while the store is reading sets it again.
            self.more = false;
            self.actions.push_back(GatewayAction::Fetch { after: self.cursor, limit: room });
        }
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
