//! What waits for a device at the server, as its session asks for it, and which of it may go.
//!
//! A registration's messages go in their order, so those that may not go yet are the last of it, unless
//! a later one may: that one takes them with it. What a session has passed is therefore known by one
//! place for all registrations, and one for each registration of which something was held back. Nothing
//! that was held back may be taken for sent, and nothing may be passed over for good.
//!
//! Web Push messages of one channel keep their order only among those of the same urgency: a device is not
//! sent what is below its least whatever else it is sent (RFC 8030, section 5.3).

use std::collections::BTreeMap;

use super::channel::Channel;
use super::ids::{AppId, MessageId, UnixMillis};
use super::message::Push;
use super::urgency::Urgency;

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

/// Which messages may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    /// None below this.
    pub least: Urgency,
    /// Those that wait for a frame of the device only when their time has come.
    pub quiet: bool,
}

impl Gate {
    /// The gate that stops nothing.
    pub const OPEN: Self = Self { least: Urgency::VeryLow, quiet: false };

    /// Whether what is as urgent and waits until then may go at `now`.
    fn lets(self, urgency: Urgency, until: UnixMillis, now: UnixMillis) -> bool {
        urgency >= self.least && (!self.quiet || until <= now)
    }
}

/// Messages that go in their order: those of an app, or of a Web Push channel those of one urgency.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sequence {
    app: AppId,
    urgency: Option<Urgency>,
}

impl Sequence {
    /// The one of this app's messages that are as urgent.
    pub fn of(app: &AppId, urgency: Urgency) -> Self {
        Self { app: app.clone(), urgency: Channel::is_reserved(app).then_some(urgency) }
    }
}

/// For each sequence of which something was held back, the first place that was.
pub type HeldBack = Vec<(Sequence, Seq)>;

/// What a session asks its store for.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// What is after this place, and
    pub after: Seq,
    /// for these sequences, what is from theirs on as well.
    pub held: HeldBack,
    /// What of it may go.
    pub gate: Gate,
    /// So many at most.
    pub limit: usize,
}

impl Wanted {
    /// Whatever is after this place.
    pub fn all(after: Seq, limit: usize) -> Self {
        Self { after, held: HeldBack::new(), gate: Gate::OPEN, limit }
    }

    /// Whether nothing has to be held back, nor was.
    pub fn is_plain(&self) -> bool {
        self.held.is_empty() && self.gate == Gate::OPEN
    }

    /// The place after which everything is that could be meant.
    pub fn from(&self) -> Seq {
        let first = self.held.iter().map(|(_, seq)| Seq(seq.0 - 1)).min();
        first.map_or(self.after, |first| first.min(self.after))
    }
}

/// The answer to what is [`Wanted`].
#[derive(Clone, Debug, PartialEq)]
pub struct Backlog {
    /// Pushes that may go, in order.
    pub rows: Vec<Queued>,
    /// No more of them may go.
    pub complete: bool,
    /// The first of each sequence that is not among them, as far as something was held back.
    pub held: HeldBack,
    /// Some more may go then, if the device is not heard before.
    pub until: Option<UnixMillis>,
}

/// Notes that nothing of the sequence from this place on was sent.
pub fn hold_back(held: &mut HeldBack, sequence: Sequence, seq: Seq) {
    match held.iter_mut().find(|(name, _)| *name == sequence) {
        Some((_, first)) => *first = seq.min(*first),
        None => held.push((sequence, seq)),
    }
}

/// Looks through what waits for a device and chooses what may go.
#[derive(Debug)]
pub struct Choosing<'a> {
    wanted: &'a Wanted,
    /// As wanted: there may be many, and each message asks.
    held: BTreeMap<&'a Sequence, Seq>,
    now: UnixMillis,
    lanes: BTreeMap<Sequence, Lane>,
}

/// What is meant of one sequence, in order.
#[derive(Debug, Default)]
struct Lane {
    places: Vec<Seq>,
    /// So many of the first may go.
    free: usize,
    /// When one of the others may go.
    until: Option<UnixMillis>,
}

/// What was chosen.
#[derive(Debug, PartialEq)]
pub struct Chosen {
    /// These may go, in order.
    pub go: Vec<(Seq, Sequence)>,
    /// As in [`Backlog`].
    pub complete: bool,
    /// As in [`Backlog`].
    pub held: HeldBack,
    /// As in [`Backlog`].
    pub until: Option<UnixMillis>,
}

impl<'a> Choosing<'a> {
    /// Begins.
    pub fn new(wanted: &'a Wanted, now: UnixMillis) -> Self {
        let held = wanted.held.iter().map(|(sequence, first)| (sequence, *first)).collect();
        Self { wanted, held, now, lanes: BTreeMap::new() }
    }

    /// The next message that waits, in order of places from [`Wanted::from`] on; `until` is when it
    /// stops to wait for a frame.
    pub fn see(&mut self, seq: Seq, app: &AppId, urgency: Urgency, until: UnixMillis) {
        let sequence = Sequence::of(app, urgency);
        // Also where the session has gone back to before what it held back of the sequence.
        let meant = seq > self.wanted.after || self.held.get(&sequence).is_some_and(|first| seq >= *first);
        if !meant {
            return;
        }
        let gate = self.wanted.gate;
        let lane = self.lanes.entry(sequence).or_default();
        lane.places.push(seq);
        if gate.lets(urgency, until, self.now) {
            (lane.free, lane.until) = (lane.places.len(), None);
        } else if urgency >= gate.least {
            lane.until = Some(lane.until.map_or(until, |earlier| earlier.min(until)));
        }
    }

    /// That was all.
    pub fn choose(self) -> Chosen {
        let of_lane = |(sequence, lane): (&Sequence, &Lane)| {
            lane.places[..lane.free].iter().map(|seq| (*seq, sequence.clone())).collect::<Vec<_>>()
        };
        let mut go: Vec<(Seq, Sequence)> = self.lanes.iter().flat_map(of_lane).collect();
        go.sort_unstable_by_key(|(seq, _)| *seq);
        let complete = go.len() <= self.wanted.limit;
        go.truncate(self.wanted.limit);
        let last = go.last().map_or(Seq(0), |(seq, _)| *seq);
        let first_left = |(sequence, lane): (&Sequence, &Lane)| {
            let left = |place: &usize| *place >= lane.free || lane.places[*place] > last;
            let place = (0..lane.places.len()).find(left)?;
            Some((sequence.clone(), lane.places[place]))
        };
        let held = self.lanes.iter().filter_map(first_left).collect();
        let until = self.lanes.values().filter_map(|lane| lane.until).min();
        Chosen { go, complete, held, until }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::samples::app;
    use proptest::prelude::*;

    const NOW: UnixMillis = UnixMillis(1000);
    const NORMAL: Gate = Gate { least: Urgency::Normal, quiet: false };
    const QUIET: Gate = Gate { least: Urgency::VeryLow, quiet: true };

    type Row = (i64, &'static str, Urgency, i64);

    fn choose(wanted: &Wanted, rows: &[Row]) -> Chosen {
        let mut choosing = Choosing::new(wanted, NOW);
        for (seq, name, urgency, until) in rows {
            choosing.see(Seq(*seq), &app(name), *urgency, UnixMillis(*until));
        }
        choosing.choose()
    }

    /// The sequence of an app that is no channel.
    fn of(name: &str) -> Sequence {
        Sequence::of(&app(name), Urgency::Normal)
    }

    fn places(chosen: &Chosen) -> Vec<i64> {
        chosen.go.iter().map(|(seq, _)| seq.0).collect()
    }

    fn through(gate: Gate) -> Wanted {
        Wanted { gate, ..Wanted::all(Seq(0), 32) }
    }

    const ROWS: [Row; 5] = [
        (1, "a", Urgency::Low, 0),
        (2, "b", Urgency::High, 0),
        (3, "a", Urgency::Normal, 0),
        (4, "a", Urgency::Low, 0),
        (5, "b", Urgency::VeryLow, 0),
    ];

    #[test]
    fn what_may_go_takes_the_earlier_ones_of_its_registration_with_it() {
        let chosen = choose(&through(NORMAL), &ROWS);
        assert_eq!(places(&chosen), [1, 2, 3]);
        assert!(chosen.complete);
        assert_eq!(chosen.held, [(of("a"), Seq(4)), (of("b"), Seq(5))]);
        assert_eq!(chosen.until, None, "what is below the least waits for no time");
        assert_eq!(places(&choose(&through(Gate::OPEN), &ROWS)), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn what_was_held_back_is_looked_at_again_and_what_was_sent_is_not() {
        let wanted = Wanted { after: Seq(4), held: vec![(of("a"), Seq(3))], ..through(NORMAL) };
        assert_eq!(wanted.from(), Seq(2));
        assert_eq!(places(&choose(&wanted, &ROWS)), [3]);
        let wanted = Wanted { gate: Gate::OPEN, ..wanted };
        assert_eq!(places(&choose(&wanted, &ROWS)), [3, 4, 5]);
    }

    #[test]
    fn what_may_go_to_a_channel_takes_only_what_is_as_urgent_with_it() {
        let rows = [
            (1, "webpush:a", Urgency::Low, 0),
            (2, "webpush:a", Urgency::High, 0),
            (3, "webpush:a", Urgency::Normal, 0),
            (4, "webpush:a", Urgency::High, 0),
        ];
        let chosen = choose(&through(NORMAL), &rows);
        assert_eq!(places(&chosen), [2, 3, 4]);
        assert_eq!(chosen.held, [(Sequence::of(&app("webpush:a"), Urgency::Low), Seq(1))]);
        let wanted = Wanted { after: Seq(4), held: chosen.held, ..through(Gate::OPEN) };
        assert_eq!(places(&choose(&wanted, &rows)), [1]);
    }

    #[test]
    fn over_the_limit_the_rest_is_as_if_it_were_held_back() {
        let wanted = Wanted { limit: 2, ..through(Gate::OPEN) };
        let chosen = choose(&wanted, &ROWS);
        assert_eq!((places(&chosen), chosen.complete), (vec![1, 2], false));
        assert_eq!(chosen.held, [(of("a"), Seq(3)), (of("b"), Seq(5))]);
    }

    #[test]
    fn what_waits_for_a_frame_goes_when_its_time_has_come() {
        let rows = [(1, "a", Urgency::Low, 1500), (2, "b", Urgency::Low, 1000), (3, "a", Urgency::Low, 1400)];
        let chosen = choose(&through(QUIET), &rows);
        assert_eq!((places(&chosen), chosen.until), (vec![2], Some(UnixMillis(1400))));
        // Below the least no time helps.
        let chosen = choose(&through(Gate { least: Urgency::Normal, quiet: true }), &rows);
        assert_eq!((places(&chosen), chosen.until), (vec![], None));
    }

    proptest! {
        /// Whatever the gate does from one look to the next, and however few are taken at a time: each
        /// goes once, in order for its sequence, none that may not, and in the end all.
        #[test]
        fn every_message_goes_once_and_in_its_order(
            rows in prop::collection::vec((0..3_usize, 0..4_usize), 0..40),
            looks in prop::collection::vec((0..5_usize, 0..4_usize, 1..6_usize), 0..30),
        ) {
            let apps = ["a", "b", "webpush:c"].map(app);
            let sequence = |of: usize, urgency: usize| Sequence::of(&apps[of], Urgency::ALL[urgency]);
            let (mut cursor, mut held, mut sent, mut known) = (Seq(0), HeldBack::new(), Vec::new(), 0);
            let last = looks.len();
            for look in 0..last + rows.len() + 1 {
                let (more, least, limit) = looks.get(look).copied().unwrap_or((rows.len(), 0, 5));
                known = rows.len().min(known + more);
                let gate = Gate { least: Urgency::ALL[least], quiet: false };
                let wanted = Wanted { after: cursor, held: held.clone(), gate, limit };
                let mut choosing = Choosing::new(&wanted, NOW);
                for (place, (name, urgency)) in (1..).zip(&rows[..known]) {
                    choosing.see(Seq(place), &apps[*name], Urgency::ALL[*urgency], UnixMillis(0));
                }
                let chosen = choosing.choose();
                for (seq, name) in &chosen.go {
                    let later = &rows[..known][seq.0 as usize - 1..];
                    let urgent = |(of, urgency): &(usize, usize)| sequence(*of, *urgency) == *name && *urgency >= least;
                    prop_assert!(later.iter().any(urgent), "{seq:?} may not go");
                    let before = sent.iter().filter(|(_, of)| of == name).map(|(seq, _)| *seq).max();
                    prop_assert!(before < Some(*seq), "out of order or twice");
                    cursor = cursor.max(*seq);
                }
                sent.extend(chosen.go);
                held = chosen.held.into_iter().filter(|(_, seq)| *seq <= cursor).collect();
            }
            prop_assert_eq!(sent.len(), rows.len());
        }
    }

    #[test]
    fn what_comes_back_before_what_was_held_of_its_app_is_seen() {
        // Place 6 was held back; place 5, which was hidden then, is shown again.
        let wanted = Wanted { held: vec![(of("a"), Seq(6))], ..Wanted::all(Seq(4), 10) };
        let mut choosing = Choosing::new(&wanted, NOW);
        for place in [3, 5, 6] {
            choosing.see(Seq(place), &app("a"), Urgency::Normal, UnixMillis(0));
        }
        assert_eq!(choosing.choose().go, [(Seq(5), of("a")), (Seq(6), of("a"))]);
    }
}
