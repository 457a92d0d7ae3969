//! One table for all deadlines of a state machine, and the clock they are read on.
//!
//! A machine names its timers in an enum; [`Timers`] holds at most one deadline for each and
//! answers which comes next, so that a single wake-up serves them all.

use std::time::Duration;

/// A reading of a clock that only moves forward, in milliseconds from an arbitrary start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u64);

impl Moment {
    /// This moment, later by `delay`.
    pub fn after(self, delay: Duration) -> Self {
        let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(millis))
    }

    /// How long ago `earlier` was; zero if it is still to come.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// A machine's set of timers: an enum whose variants number the slots of a table.
pub trait TimerName: Copy + 'static {
    /// Every timer, in slot order.
    const ALL: &'static [Self];

    /// The timer's slot in the table.
    fn slot(self) -> usize;
}

/// The deadlines of one machine. `N` is the number of timers named by `T`.
#[derive(Debug)]
pub struct Timers<T, const N: usize> {
    deadlines: [Option<Moment>; N],
    names: std::marker::PhantomData<T>,
}

impl<T: TimerName, const N: usize> Timers<T, N> {
    /// A table with no deadline set.
    pub fn new() -> Self {
        const { assert!(T::ALL.len() == N, "the table has a slot for every timer") };
        Self { deadlines: [None; N], names: std::marker::PhantomData }
    }

    /// Sets or moves the deadline of `timer`.
    pub fn set(&mut self, timer: T, at: Moment) {
        self.deadlines[timer.slot()] = Some(at);
    }

    /// Forgets the deadline of `timer`.
    pub fn clear(&mut self, timer: T) {
        self.deadlines[timer.slot()] = None;
    }

    /// Forgets every deadline.
    pub fn clear_all(&mut self) {
        self.deadlines = [None; N];
    }

    /// Forgets every deadline but that of `timer`.
    pub fn clear_all_but(&mut self, timer: T) {
        let kept = self.deadlines[timer.slot()];
        self.deadlines = [None; N];
        self.deadlines[timer.slot()] = kept;
    }

    /// Whether `timer` has a deadline.
    pub fn is_set(&self, timer: T) -> bool {
        self.deadlines[timer.slot()].is_some()
    }

    /// The earliest deadline, if any is set.
    pub fn next(&self) -> Option<Moment> {
        self.deadlines.iter().flatten().min().copied()
    }

    /// Takes one timer whose deadline has come. Call until it returns `None`.
    pub fn expired(&mut self, now: Moment) -> Option<T> {
        let due = |timer: &&T| self.deadlines[timer.slot()].is_some_and(|at| at <= now);
        let timer = *T::ALL.iter().find(due)?;
        self.clear(timer);
        Some(timer)
    }
}

impl<T: TimerName, const N: usize> Default for Timers<T, N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Name {
        First,
        Second,
    }

    impl TimerName for Name {
        const ALL: &'static [Self] = &[Name::First, Name::Second];
        fn slot(self) -> usize {
            self as usize
        }
    }

    #[test]
    fn the_earliest_deadline_is_next_and_each_fires_once() {
        let mut timers = Timers::<Name, 2>::new();
        assert_eq!(timers.next(), None);
        timers.set(Name::First, Moment(20));
        timers.set(Name::Second, Moment(10));
        assert_eq!(timers.next(), Some(Moment(10)));
        assert_eq!(timers.expired(Moment(9)), None);
        assert_eq!(timers.expired(Moment(25)), Some(Name::First));
        assert_eq!(timers.expired(Moment(25)), Some(Name::Second));
        assert_eq!(timers.expired(Moment(25)), None);
    }
}
