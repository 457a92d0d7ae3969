//! How long a connection may be silent: what is known of a network, and the search for it.
//!
//! Somewhere on the path a table forgets connections that say nothing, after a time that nobody
//! tells. The search finds it from pongs that came after real silence and from losses that fit. It
//! must never take a loss for evidence that has another cause; whoever calls decides that. Source of
//! all constants: the keepalive study, section D2.
//!
//! ```text
//!             2 losses                    gap is small
//!  Up ----------------------> Bisect ----------------------> Steady
//!   | 2 pongs: x 1.5           | 2 pongs: longest proven       | after a day to a week -> Probe
//!   | at the ceiling -> Steady | 2 losses: shortest refuted    | 2 of 6 pings lost -> Up from 0.6 of it
//!   v 2 losses at the floor
//!  Floor (an hour, then Up)
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::timers::Moment;

/// What powers the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// A battery: long silences.
    #[default]
    Battery,
    /// The mains: a television, an appliance. Losses are noticed sooner.
    Mains,
}

/// What carries the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkKind {
    /// A cable.
    Ethernet,
    /// A wireless LAN.
    Wifi,
    /// A mobile network.
    Cellular,
    /// A tunnel over one of them.
    Vpn,
    /// Nobody has said.
    #[default]
    Unknown,
}

impl NetworkKind {
    /// Its word, wherever it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ethernet => "ethernet",
            Self::Wifi => "wifi",
            Self::Cellular => "cellular",
            Self::Vpn => "vpn",
            Self::Unknown => "unknown",
        }
    }
}

/// Every constant that depends on what powers the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Constants {
    /// The silence that is tried first on an unknown network.
    pub start: Duration,
    /// The shortest.
    pub floor: Duration,
    /// The longest on Ethernet, wireless LAN and what is unknown: it bounds how late a message can be.
    pub ceiling: Duration,
    /// The longest on a mobile network.
    pub ceiling_cellular: Duration,
    /// After this time a settled silence is probed for a longer one; doubled with each refutation.
    pub probe_first: Duration,
    /// The least that a pong is waited for.
    pub pong_least: Duration,
    /// The most.
    pub pong_most: Duration,
    /// The longest delay between attempts to connect.
    pub backoff_longest: Duration,
    /// However long the network seems to be gone, an attempt is made after this time.
    pub offline_poll: Duration,
    /// Networks that are remembered.
    pub networks: usize,
}

impl Constants {
    /// The longest silence on any network.
    pub fn longest_silence(&self) -> Duration {
        self.ceiling.max(self.ceiling_cellular)
    }
}

const DAY: Duration = Duration::from_secs(24 * 3600);
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

impl Profile {
    /// Its constants.
    pub const fn constants(self) -> Constants {
        const fn s(seconds: u64) -> Duration {
            Duration::from_secs(seconds)
        }
        match self {
            Self::Battery => Constants {
                start: s(240),
                floor: s(60),
                ceiling: s(900),
                ceiling_cellular: s(1680),
                probe_first: DAY,
                pong_least: s(15),
                pong_most: s(60),
                backoff_longest: s(600),
                offline_poll: s(900),
                networks: 32,
            },
            Self::Mains => Constants {
                start: s(240),
                floor: s(30),
                ceiling: s(300),
                ceiling_cellular: s(300),
                probe_first: WEEK,
                pong_least: s(10),
                pong_most: s(10),
                backoff_longest: s(120),
                offline_poll: s(120),
                networks: 8,
            },
        }
    }
}

/// Pongs that prove a silence, and losses that refute one.
const EVIDENCE: u8 = 2;
/// A settled silence is given up when so many of the last [`WATCHED`] pings were lost.
const LOST: u32 = 2;
/// Pings that are watched once the search has settled.
const WATCHED: u32 = 6;
/// How much longer the next silence is, as long as none is refuted.
const GROWTH: f64 = 1.5;
/// The gap between proven and refuted that is worth no further trial: this, or [`GAP_SHARE`] of what is
/// proven if that is more. The study has 30 s and a tenth, which at 1200 s leaves an eighth unused.
const GAP: Duration = Duration::from_secs(15);
/// See [`GAP`].
const GAP_SHARE: f64 = 0.04;
/// What is kept off a proven silence: this, or [`MARGIN_SHARE`] of it if that is more. The study has
/// 10 s and a twentieth.
const MARGIN: Duration = Duration::from_secs(8);
/// See [`MARGIN`].
const MARGIN_SHARE: f64 = 0.04;
/// How long the floor is kept before longer silences are tried again.
const FLOOR_TIME: Duration = Duration::from_secs(3600);
/// A silence that was longer than asked for by more than this says nothing about the asked one.
const OVERSHOT: Duration = Duration::from_secs(20);
/// The longest time between probes.
const PROBE_LONGEST: Duration = WEEK;

/// The bounds of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Tried first.
    pub start: Duration,
    /// The shortest.
    pub floor: Duration,
    /// The longest.
    pub ceiling: Duration,
    /// The time to the first probe.
    pub probe_first: Duration,
}

impl Bounds {
    /// Those of a network; `most` is what the server allows, which always wins.
    pub fn of(profile: Profile, kind: NetworkKind, most: Option<Duration>) -> Self {
        let constants = profile.constants();
        let ceiling = match kind {
            NetworkKind::Cellular => constants.ceiling_cellular,
            NetworkKind::Ethernet | NetworkKind::Wifi | NetworkKind::Vpn | NetworkKind::Unknown => constants.ceiling,
        };
        let ceiling = ceiling.min(most.unwrap_or(ceiling)).max(Duration::from_secs(1));
        Self {
            start: constants.start.min(ceiling),
            floor: constants.floor.min(ceiling),
            ceiling,
            probe_first: constants.probe_first,
        }
    }
}

/// Where a search stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Longer and longer silences are tried.
    #[default]
    Up,
    /// One between the longest proven and the shortest refuted is tried.
    Bisect,
    /// The search is done.
    Steady,
    /// A silence that was refuted is tried once more.
    Probe,
    /// Not even the shortest works reliably.
    Floor,
}

impl Stage {
    /// Its word, wherever it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Bisect => "bisect",
            Self::Steady => "steady",
            Self::Probe => "probe",
            Self::Floor => "floor",
        }
    }
}

/// What is known of a network: all that is worth keeping when the daemon ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learned {
    /// Where the search stands.
    pub stage: Stage,
    /// Seconds of the longest silence that is proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub good_s: Option<u32>,
    /// Seconds of the shortest silence that is refuted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bad_s: Option<u32>,
    /// Seconds from the end of the search to the next probe.
    #[serde(default)]
    pub probe_s: u32,
}

/// The search on one network.
#[derive(Clone, Debug)]
pub struct Search {
    bounds: Bounds,
    stage: Stage,
    good: Option<Duration>,
    bad: Option<Duration>,
    trial: Duration,
    proofs: u8,
    refutations: u8,
    /// The last pings of a settled search, newest lowest; a set bit is a loss.
    watched: u32,
    probe_after: Duration,
    /// When the stage is left for a longer silence.
    again: Option<Moment>,
}

impl Search {
    /// A search on a network of which nothing is known.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            stage: Stage::Up,
            good: None,
            bad: None,
            trial: bounds.start,
            proofs: 0,
            refutations: 0,
            watched: 0,
            probe_after: bounds.probe_first,
            again: None,
        }
    }

    /// A search that goes on from what was learned so long ago.
    pub fn resume(bounds: Bounds, learned: Learned, age: Duration, now: Moment) -> Self {
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        let mut this = Self::new(bounds);
        // Bounds may have changed since; nothing outside them is used.
        this.good =
            learned.good_s.map(seconds).filter(|good| *good >= bounds.floor).map(|good| good.min(bounds.ceiling));
        this.bad = learned.bad_s.map(seconds).filter(|bad| this.good.is_none_or(|good| *bad > good));
        this.probe_after = seconds(learned.probe_s).clamp(bounds.probe_first, PROBE_LONGEST.max(bounds.probe_first));
        match (learned.stage, this.good) {
            (Stage::Floor, None) => this.sink(now),
            (_, Some(good)) => this.advance(good, now),
            (_, None) => this.descend(now),
        }
        if let Some(again) = &mut this.again {
            *again = Moment(again.0.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)));
        }
        this
    }

    /// What is worth keeping.
    pub fn learned(&self) -> Learned {
        let seconds = |duration: Duration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
        Learned {
            stage: self.stage,
            good_s: self.good.map(seconds),
            bad_s: self.bad.map(seconds),
            probe_s: seconds(self.probe_after),
        }
    }

    /// The silence after which a ping is due. Begins a probe if it is time for one.
    pub fn interval(&mut self, now: Moment) -> Duration {
        if self.again.is_some_and(|at| at <= now) {
            self.try_again();
        }
        self.silence()
    }

    /// The same, without a look at the time.
    pub fn silence(&self) -> Duration {
        match (self.stage, self.good) {
            (Stage::Up | Stage::Bisect | Stage::Probe, _) => self.trial,
            (Stage::Steady, Some(good)) => self.with_margin(good),
            (Stage::Steady | Stage::Floor, _) => self.bounds.floor,
        }
    }

    /// The silence after which a ping is due if the one before it is proven, or a little more.
    pub fn growth(&mut self, now: Moment) -> Duration {
        self.interval(now).mul_f64(GROWTH).min(self.bounds.ceiling)
    }

    /// The bounds are these from now on.
    pub fn bound(&mut self, bounds: Bounds, now: Moment) {
        if bounds != self.bounds {
            *self = Self::resume(bounds, self.learned(), Duration::ZERO, now);
        }
    }

    /// A pong came to a ping that was sent after so long a silence.
    pub fn proven(&mut self, now: Moment, silence: Duration) {
        if !self.is_silence(silence, now) {
            return;
        }
        match self.stage {
            Stage::Steady => self.watched <<= 1,
            Stage::Up | Stage::Bisect | Stage::Probe | Stage::Floor => {
                self.proofs += 1;
                if self.proofs >= EVIDENCE {
                    self.confirm(now);
                }
            }
        }
    }

    /// The connection was lost after so long a silence, and nothing else explains it. Returns whether
    /// that counts against the silence that was asked for.
    pub fn lost(&mut self, now: Moment, silence: Duration) -> bool {
        let asked = self.interval(now);
        if !self.is_silence(silence, now) || silence > asked + OVERSHOT {
            return false;
        }
        match self.stage {
            Stage::Steady => self.lost_while_steady(asked),
            // What a probe tries was refuted before: once more is enough.
            Stage::Probe => self.refute(now),
            Stage::Up | Stage::Bisect => {
                self.refutations += 1;
                if self.refutations >= EVIDENCE {
                    self.refute(now);
                }
            }
            // There is nothing shorter.
            Stage::Floor => return false,
        }
        true
    }

    /// Whether the silence was long enough to say something about the one that was asked for.
    fn is_silence(&mut self, silence: Duration, now: Moment) -> bool {
        silence >= self.interval(now).mul_f64(0.9)
    }

    fn lost_while_steady(&mut self, asked: Duration) {
        self.watched = (self.watched << 1 | 1) & ((1 << WATCHED) - 1);
        if self.watched.count_ones() >= LOST {
            self.bad = Some(asked);
            self.good = None;
            self.again = None;
            self.attempt(Stage::Up, asked.mul_f64(0.6));
        }
    }

    /// The trial is proven.
    fn confirm(&mut self, now: Moment) {
        let proven = if self.stage == Stage::Floor { self.bounds.floor } else { self.trial };
        if self.bad.is_some_and(|bad| bad <= proven) {
            self.bad = None;
        }
        if self.stage == Stage::Probe {
            self.probe_after = self.bounds.probe_first;
        }
        self.good = Some(proven);
        self.advance(proven, now);
    }

    /// The trial is refuted.
    fn refute(&mut self, now: Moment) {
        if self.stage == Stage::Probe {
            self.probe_after = (self.probe_after * 2).min(PROBE_LONGEST.max(self.bounds.probe_first));
            return self.settle(now);
        }
        self.bad = Some(self.trial);
        match self.good {
            Some(good) => self.advance(good, now),
            None => self.descend(now),
        }
    }

    /// Goes on from the longest proven silence.
    fn advance(&mut self, good: Duration, now: Moment) {
        let ceiling = self.bounds.ceiling;
        match self.bad.filter(|bad| *bad <= ceiling) {
            _ if good >= ceiling => self.settle(now),
            None => self.attempt(Stage::Up, good.mul_f64(GROWTH)),
            Some(bad) if bad - good <= GAP.max(good.mul_f64(GAP_SHARE)) => self.settle(now),
            Some(bad) => self.attempt(Stage::Bisect, (good + bad) / 2),
        }
    }

    /// Nothing is proven: tries half of what was refuted.
    fn descend(&mut self, now: Moment) {
        match self.bad {
            None => self.attempt(Stage::Up, self.bounds.start),
            Some(bad) if bad <= self.bounds.floor => self.sink(now),
            Some(bad) => self.attempt(Stage::Up, bad / 2),
        }
    }

    fn attempt(&mut self, stage: Stage, trial: Duration) {
        self.enter(stage);
        self.trial = trial.clamp(self.bounds.floor, self.bounds.ceiling);
        self.again = None;
    }

    fn settle(&mut self, now: Moment) {
        self.enter(Stage::Steady);
        let at_ceiling = self.good.is_some_and(|good| good >= self.bounds.ceiling);
        self.again = (!at_ceiling).then(|| now.after(self.probe_after));
    }

    fn sink(&mut self, now: Moment) {
        self.enter(Stage::Floor);
        self.again = Some(now.after(FLOOR_TIME));
    }

    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        (self.proofs, self.refutations, self.watched) = (0, 0, 0);
    }

    /// It is time for a longer silence.
    fn try_again(&mut self) {
        match self.good {
            Some(good) => self.attempt(Stage::Probe, good.mul_f64(1.25)),
            None => {
                self.bad = None;
                self.attempt(Stage::Up, self.bounds.start);
            }
        }
    }

    /// The silence that is used of a proven one. The ceiling is not the path's, and needs no margin.
    fn with_margin(&self, good: Duration) -> Duration {
        if good >= self.bounds.ceiling {
            return self.bounds.ceiling;
        }
        let margin = MARGIN.max(good.mul_f64(MARGIN_SHARE));
        good.saturating_sub(margin).max(self.bounds.floor)
    }
}

#[cfg(test)]
#[path = "keepalive_tests.rs"]
mod tests;
