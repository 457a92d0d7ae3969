//! How much one app may ask of the user: which of its pending effects are due now. PURE.
//!
//! An app may alert and be started so many times a minute. What comes faster waits on disk and is
//! then carried out as one: one alert that speaks for several messages, one start after which the
//! app gets all of them.

#![deny(clippy::disallowed_methods)]

use std::collections::VecDeque;
use std::time::Duration;

use super::store::{Pending, Task};
use crate::proto::Moment;

/// The time over which is counted.
pub const MINUTE: Duration = Duration::from_secs(60);

/// How often something has happened lately.
#[derive(Debug, Default)]
pub struct Pace {
    lately: VecDeque<Moment>,
}

impl Pace {
    /// How many more times it may happen now.
    fn room(&mut self, now: Moment, limit: u32) -> usize {
        while self.lately.front().is_some_and(|at| now.since(*at) >= MINUTE) {
            self.lately.pop_front();
        }
        (limit as usize).saturating_sub(self.lately.len())
    }

    /// When it may happen again, if it may not now.
    fn next(&self) -> Option<Moment> {
        self.lately.front().map(|at| at.after(MINUTE))
    }

    fn note(&mut self, now: Moment) {
        self.lately.push_back(now);
    }
}

/// The paces of one app.
#[derive(Debug, Default)]
pub struct Paces {
    alerts: Pace,
    launches: Pace,
}

/// Most alerts and launches of an app a minute.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Alerts.
    pub alerts: u32,
    /// Launches that the user did not ask for.
    pub launches: u32,
}

/// What is to be done for an app now, in this order.
#[derive(Debug, Default, PartialEq)]
pub struct Due {
    /// Starts of the app, each for these effects.
    pub starts: Vec<Vec<Pending>>,
    /// Alerts, each for these effects; the newest is shown, and speaks for the others.
    pub alerts: Vec<Vec<Pending>>,
    /// When to look again, if something has to wait.
    pub again: Option<Moment>,
}

/// Divides the pending effects of one app, oldest first, into what is due now and what waits.
/// `hold_alerts`: the user wants to be left alone, or nobody can show them just now.
pub fn due(pending: Vec<Pending>, paces: &mut Paces, rates: Rates, hold_alerts: bool, now: Moment) -> Due {
    let mut due = Due::default();
    let (mut alerts, mut launches) = (Vec::new(), Vec::new());
    for effect in pending {
        match effect.task {
            Task::Alert(_) => alerts.push(effect),
            // The user waits for it.
            Task::Open { .. } => due.starts.push(vec![effect]),
            Task::Launch(..) | Task::RegistrationChange => launches.push(effect),
        }
    }
    if !launches.is_empty() {
        if paces.launches.room(now, rates.launches) > 0 {
            paces.launches.note(now);
            due.starts.push(launches);
        } else {
            due.again = paces.launches.next();
        }
    }
    if !alerts.is_empty() && !hold_alerts {
        let room = paces.alerts.room(now, rates.alerts);
        let single = if alerts.len() <= room { alerts.len() } else { room.saturating_sub(1) };
        let together = alerts.split_off(single);
        due.alerts.extend(alerts.into_iter().map(|alert| vec![alert]));
        if room > single && !together.is_empty() {
            due.alerts.push(together);
        } else if !together.is_empty() {
            due.again = due.again.into_iter().chain(paces.alerts.next()).min();
        }
        due.alerts.iter().for_each(|_| paces.alerts.note(now));
    }
    due
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::plan::Manner;
    use crate::proto::samples;

    const RATES: Rates = Rates { alerts: 3, launches: 1 };

    fn pending(place: i64, task: Task) -> Pending {
        Pending { place, app: samples::app("chat"), task, process: None }
    }

    fn alerts(places: std::ops::Range<i64>) -> Vec<Pending> {
        let push = |place: i64| samples::push(samples::message_id(place.unsigned_abs()));
        places.map(|place| pending(place, Task::Alert(Box::new(push(place))))).collect()
    }

    fn launch(place: i64) -> Pending {
        pending(place, Task::Launch(Manner::Background, samples::message_id(place.unsigned_abs())))
    }

    fn places(jobs: &[Vec<Pending>]) -> Vec<Vec<i64>> {
        jobs.iter().map(|job| job.iter().map(|pending| pending.place).collect()).collect()
    }

    #[test]
    fn a_burst_of_alerts_ends_in_one_that_speaks_for_the_rest() {
        let mut paces = Paces::default();
        let due = due(alerts(0..6), &mut paces, RATES, false, Moment(0));
        assert_eq!(places(&due.alerts), [vec![0], vec![1], vec![2, 3, 4, 5]]);
        assert_eq!(due.again, None);
    }

    #[test]
    fn what_comes_too_fast_waits_for_the_minute_and_comes_as_one() {
        let mut paces = Paces::default();
        for second in 0..3 {
            let now = Moment(second * 1000);
            assert_eq!(due(alerts(0..1), &mut paces, RATES, false, now).alerts.len(), 1);
        }
        let waiting = due(alerts(0..2), &mut paces, RATES, false, Moment(3000));
        assert_eq!((waiting.alerts.len(), waiting.again), (0, Some(Moment(60_000))));
        let later = due(alerts(0..2), &mut paces, RATES, false, Moment(60_000));
        assert_eq!(places(&later.alerts), [[0, 1]]);
    }

    #[test]
    fn launches_are_one_start_and_a_click_never_waits() {
        let mut paces = Paces::default();
        let first = due(vec![launch(1), launch(2)], &mut paces, RATES, false, Moment(0));
        assert_eq!(places(&first.starts), [[1, 2]]);
        let click = pending(4, Task::Open { id: samples::message_id(4), token: None });
        let second = due(vec![launch(3), click], &mut paces, RATES, false, Moment(1));
        assert_eq!((places(&second.starts), second.again), (vec![vec![4]], Some(Moment(60_000))));
    }

    #[test]
    fn alerts_that_are_held_hold_nothing_else() {
        let mut paces = Paces::default();
        let mut both = alerts(0..1);
        both.push(launch(1));
        let due = due(both, &mut paces, RATES, true, Moment(0));
        assert_eq!((due.alerts.len(), due.starts.len(), due.again), (0, 1, None));
    }
}
