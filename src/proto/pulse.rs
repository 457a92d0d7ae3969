//! The pulse of a session: when it pings, how long it waits for the pong, and what both say of the
//! network.
//!
//! A silence counts from the last frame in either direction. It is proven by a pong, and refuted by a
//! loss that nothing else explains: the network is the same as before it, and nobody has said goodbye.

use std::time::Duration;

use super::keepalive::{Bounds, Learned, NetworkKind, Profile, Search};
use super::timers::Moment;

/// How long the first pong is waited for, before anything is known of the round trip.
const FIRST_PONG: Duration = Duration::from_secs(20);
/// How many round trips a pong may take.
const ROUND_TRIPS: u32 = 6;
/// The shortest silence, whatever a server says.
const LEAST: Duration = Duration::from_secs(10);

/// What identifies a network, hashed with the device's own salt. It never leaves the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkKey(pub [u8; 16]);

/// The network that the connection goes over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Which one.
    pub key: NetworkKey,
    /// What it is.
    pub kind: NetworkKind,
}

/// What was learned of a network, and how long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What.
    pub learned: Learned,
    /// Since the search reached this stage.
    pub age: Duration,
}

/// A loss, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// When it was noticed.
    pub at: Moment,
    /// The silence before the first frame that was not answered.
    pub silence: Duration,
    /// Whether it counts against that silence.
    pub counts: bool,
}

/// How the pulse is, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The network.
    pub network: Network,
    /// What is known of it.
    pub learned: Learned,
    /// The silence that is used now.
    pub interval: Duration,
    /// When the next ping is due, if a session is open.
    pub due: Moment,
    /// The last loss.
    pub last_loss: Option<Loss>,
    /// Pings since the start.
    pub pings: u32,
    /// Losses since the start.
    pub losses: u32,
}

/// The pulse of one device, through all its sessions.
#[derive(Clone, Debug)]
pub struct Pulse {
    profile: Profile,
    network: Network,
    search: Search,
    /// What of the search is remembered already.
    remembered: Learned,
    /// The longest silence that the server allows.
    most: Option<Duration>,
    /// The last frame in either direction.
    last: Moment,
    /// The longest silence before a frame of ours, of those sent since the server was heard.
    tested: Option<Duration>,
    /// The network was another one, or away, since the server was heard.
    disturbed: bool,
    pings: u32,
    pinged: Moment,
    /// The smoothed round trip.
    round_trip: Option<Duration>,
    last_loss: Option<Loss>,
    losses: u32,
    /// The longest silence that the server knows of.
    announced: Duration,
    /// When the next ping is due.
    due: Moment,
    /// How late alarms come: the latest of late, slowly forgotten.
    lateness: Duration,
}

impl Pulse {
    /// The pulse of a device that knows nothing of its network.
    pub fn new(profile: Profile) -> Self {
        let search = Search::new(Bounds::of(profile, NetworkKind::default(), None));
        Self {
            profile,
            network: Network::default(),
            remembered: search.learned(),
            search,
            most: None,
            last: Moment(0),
            tested: None,
            disturbed: false,
            pings: 0,
            pinged: Moment(0),
            round_trip: None,
            last_loss: None,
            losses: 0,
            announced: Duration::ZERO,
            due: Moment(0),
            lateness: Duration::ZERO,
        }
    }

    /// The network is this one, of which this is remembered. Returns whether it was another.
    pub fn set_network(&mut self, now: Moment, network: Network, memory: Option<Memory>) -> bool {
        if self.network == network && memory.is_none() {
            return false;
        }
        let other = self.network != network;
        self.disturbed |= other;
        self.network = network;
        self.round_trip = self.round_trip.filter(|_| !other);
        let bounds = Bounds::of(self.profile, network.kind, self.most);
        self.search = match memory {
            Some(Memory { learned, age }) => Search::resume(bounds, learned, age, now),
            None => Search::new(bounds),
        };
        self.remembered = self.search.learned();
        other
    }

    /// The network is away for some time: what is lost meanwhile says nothing.
    pub fn disturb(&mut self) {
        self.disturbed = true;
    }

    /// A session has begun whose server allows silences up to this.
    pub fn open(&mut self, now: Moment, most: Duration) {
        self.most = Some(most.max(LEAST));
        self.search.bound(Bounds::of(self.profile, self.network.kind, self.most), now);
        self.heard(now);
    }

    /// The silence after which to ping.
    pub fn interval(&mut self, now: Moment) -> Duration {
        self.search.interval(now)
    }

    /// When to ping, counted from now: as much before the end of the silence as alarms come late.
    pub fn due(&mut self, now: Moment) -> Moment {
        let interval = self.interval(now).min(self.announced);
        self.due = now.after(interval - self.lateness.min(interval / 2));
        self.due
    }

    /// What is announced with a ping: how long the next silence may be, the wait for its end included. It
    /// has room for what the pong may prove; whatever is longer has to be announced first.
    pub fn announce(&mut self, now: Moment) -> Duration {
        self.announced = self.search.growth(now);
        self.announced + self.profile.constants().pong_most
    }

    /// The alarm for the ping has come. Not to be told of one that the device has slept through.
    pub fn alarm(&mut self, now: Moment) {
        let late = now.since(self.due);
        // What is later than that has another cause.
        if late <= self.announced / 2 {
            self.lateness = late.max(self.lateness - self.lateness / 64);
        }
    }

    /// How long to wait for a pong.
    pub fn pong_wait(&self) -> Duration {
        let constants = self.profile.constants();
        let wait = self.round_trip.map_or(FIRST_PONG, |round_trip| round_trip * ROUND_TRIPS);
        wait.clamp(constants.pong_least, constants.pong_most)
    }

    /// The device said something.
    pub fn said(&mut self, now: Moment) {
        let silence = now.since(self.last);
        self.tested = self.tested.max(Some(silence));
        self.last = now;
    }

    /// The device pings; returns the number of the ping.
    pub fn ping(&mut self, now: Moment) -> u32 {
        self.said(now);
        self.pings = self.pings.wrapping_add(1);
        self.pinged = now;
        self.pings
    }

    /// The server said something.
    pub fn heard(&mut self, now: Moment) {
        self.last = now;
        self.tested = None;
        self.disturbed = false;
    }

    /// The server has answered the ping of this number.
    pub fn pong(&mut self, now: Moment, seq: u32) {
        if seq == self.pings
            && let Some(silence) = self.tested
        {
            let sample = now.since(self.pinged);
            self.round_trip = Some(self.round_trip.map_or(sample, |smooth| (smooth * 7 + sample) / 8));
            if !self.disturbed {
                self.search.proven(now, silence);
            }
        }
        self.heard(now);
    }

    /// The connection was lost without a word, in the middle of a session.
    pub fn lost(&mut self, now: Moment) {
        let Some(silence) = self.tested.take() else { return };
        let counts = !self.disturbed && self.search.lost(now, silence);
        self.last_loss = Some(Loss { at: now, silence, counts });
        self.losses = self.losses.saturating_add(1);
    }

    /// What is to be remembered of the network, if that has changed.
    pub fn news(&mut self) -> Option<(NetworkKey, Learned)> {
        let learned = self.search.learned();
        let changed = learned != self.remembered;
        self.remembered = learned;
        changed.then_some((self.network.key, learned))
    }

    /// How it is.
    pub fn reading(&self) -> Reading {
        Reading {
            network: self.network,
            learned: self.search.learned(),
            interval: self.search.silence(),
            due: self.due,
            last_loss: self.last_loss,
            pings: self.pings,
            losses: self.losses,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::keepalive::Stage;
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment(seconds * 1000)
    }

    /// A pulse in a session that began at zero.
    fn pulse() -> Pulse {
        let mut pulse = Pulse::new(Profile::Battery);
        pulse.open(at(0), Duration::from_secs(1650));
        pulse
    }

    #[test]
    fn a_pong_proves_the_silence_before_its_ping() {
        let mut pulse = pulse();
        for round in 1..=2 {
            let seq = pulse.ping(at(240 * round));
            pulse.pong(at(240 * round), seq);
        }
        assert_eq!(pulse.interval(at(480)), Duration::from_secs(360));
        let (_, learned) = pulse.news().unwrap();
        assert_eq!((learned.good_s, learned.bad_s), (Some(240), None));
        assert_eq!(pulse.news(), None);
    }

    #[test]
    fn what_is_said_in_between_makes_the_silence_shorter() {
        let mut pulse = pulse();
        for round in 0..4 {
            pulse.said(at(240 * round + 100));
            let seq = pulse.ping(at(240 * round + 240));
            pulse.pong(at(240 * round + 240), seq);
        }
        assert_eq!(pulse.interval(at(960)), Duration::from_secs(240), "a silence of 140 s was tested");
    }

    #[test]
    fn a_loss_counts_only_if_nothing_else_explains_it() {
        let lose = |disturb: fn(&mut Pulse)| {
            let mut pulse = pulse();
            for round in 1..=2 {
                pulse.open(at(1000 * round), Duration::from_secs(1650));
                disturb(&mut pulse);
                pulse.ping(at(1000 * round + 240));
                pulse.lost(at(1000 * round + 260));
            }
            (pulse.reading().last_loss.unwrap().counts, pulse.interval(at(3000)))
        };
        assert_eq!(lose(|_| {}), (true, Duration::from_secs(120)));
        assert_eq!(lose(Pulse::disturb), (false, Duration::from_secs(240)));
        let other = |pulse: &mut Pulse| {
            let key = NetworkKey([pulse.reading().network.key.0[0] + 1; 16]);
            assert!(pulse.set_network(at(1000), Network { key, kind: NetworkKind::Wifi }, None));
        };
        assert_eq!(lose(other), (false, Duration::from_secs(240)));
    }

    #[test]
    fn the_wait_for_a_pong_follows_the_round_trip() {
        let mut pulse = pulse();
        assert_eq!(pulse.pong_wait(), Duration::from_secs(20));
        let seq = pulse.ping(at(240));
        pulse.pong(at(245), seq);
        assert_eq!(pulse.pong_wait(), Duration::from_secs(30));
        let seq = pulse.ping(at(500));
        // A late pong of an earlier ping is no measure.
        pulse.pong(at(520), seq - 1);
        assert_eq!(pulse.pong_wait(), Duration::from_secs(30));
        for round in 1..50 {
            let seq = pulse.ping(at(1000 * round));
            pulse.pong(at(1000 * round), seq);
        }
        assert_eq!(pulse.pong_wait(), Duration::from_secs(15));
    }

    #[test]
    fn a_network_that_comes_again_is_known_again() {
        let mut pulse = pulse();
        let home = Network { key: NetworkKey([1; 16]), kind: NetworkKind::Wifi };
        let learned = Learned { stage: Stage::Steady, good_s: Some(500), bad_s: Some(520), probe_s: 86_400 };
        let memory = Memory { learned, age: Duration::from_secs(3600) };
        assert!(pulse.set_network(at(0), home, Some(memory)));
        assert_eq!(pulse.interval(at(0)), Duration::from_secs(480));
        assert!(pulse.set_network(at(10), Network::default(), None));
        assert_eq!(pulse.interval(at(10)), Duration::from_secs(240));
        assert!(!pulse.set_network(at(10), Network::default(), None));
        pulse.set_network(at(20), home, Some(memory));
        assert_eq!(pulse.interval(at(20)), Duration::from_secs(480));
        // A day after it was settled, of which an hour had passed.
        assert_eq!(pulse.interval(at(20 + 82_799)), Duration::from_secs(480));
        assert_eq!(pulse.interval(at(20 + 82_801)), Duration::from_secs(625));
    }
}
