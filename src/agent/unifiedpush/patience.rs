//! What becomes of a call to an app, by how it was answered: when it is called again, if at all. PURE.
//!
//! | what is said | what it means | what is done |
//! |---|---|---|
//! | the app: a reply, whatever is in it | it has it | done |
//! | the bus: `NoReply`, `ServiceUnknown`, `NameHasNoOwner` | it ended or was replaced | again soon, [`DIED_TRIES`] times; then with growing pauses |
//! | nothing in time | it hangs | again, with growing pauses, when it comes or when it leaves |
//! | the app: `UnknownObject`, `UnknownInterface`, `UnknownMethod` | it has its name and nothing else yet | again after a moment, [`READY_TRIES`] times; then when it comes or leaves |
//! | the app: `InvalidArgs` | it does not know the token | the registration ends |
//! | the bus: `AccessDenied`, `LimitsExceeded`, `NoMemory` | the call did not get to it | again, with growing pauses, or when it comes |
//! | any other error | it does not want it | again, [`REFUSED_TRIES`] times in all; then not any more |
//! | a start: `ServiceUnknown`, `NameHasNoOwner` | it does not run, and nothing starts it | again when it comes |
//! | a start: any other error | it could not be started | again, with growing pauses, or when it comes |
//!
//! What the bus says of a start is never taken for a word of the app. An app that ends each time it is
//! called has its pauses even if it comes back by itself at once; one that leaves may be started anew.
//! Between two calls is [`SOON`] at least.

#![deny(clippy::disallowed_methods)]

use std::time::Duration;

use crate::proto::Luck;
use crate::proto::backoff::Backoff;

/// The pause after an app ended instead of answering; no app is called again earlier than that.
pub const SOON: Duration = Duration::from_millis(500);
/// How often that pause is so short.
pub const DIED_TRIES: u32 = 3;
/// The pause after an app was there without its object.
pub const READY_AFTER: Duration = Duration::from_secs(1);
/// How often that is waited for.
pub const READY_TRIES: u32 = 3;
/// The pause after an app refused.
pub const REFUSED_AFTER: Duration = Duration::from_secs(1);
/// How often a message is refused before it is given up.
pub const REFUSED_TRIES: u32 = 3;
/// The longest of the growing pauses.
pub const LONGEST: Duration = Duration::from_secs(600);

/// How a call to an app was answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Answer {
    /// It replied.
    #[error("the app has it")]
    Taken,
    /// It left the bus meanwhile.
    #[error("the app ended before it answered")]
    Died,
    /// It said nothing in time.
    #[error("the app did not answer in time")]
    Silent,
    /// It does not run, and nothing starts it.
    #[error("the app does not run, and the bus cannot start it")]
    Absent,
    /// It does not run, and the user does not let messages start it.
    #[error("the app does not run, and the user does not let messages start it")]
    Kept,
    /// It could not be started.
    #[error("the app could not be started: {0}")]
    NotStarted(String),
    /// The bus did not let the call through.
    #[error("the bus does not let the call through: {0}")]
    Barred(String),
    /// It has its name, and no object that could be called.
    #[error("the app is not ready: {0}")]
    NotReady(String),
    /// It does not know the token.
    #[error("the app does not know this registration")]
    UnknownToken,
    /// It answered with another error.
    #[error("the app answered with an error: {0}")]
    Refused(String),
}

impl Answer {
    /// What an error of this name in place of the app's reply says.
    pub fn of_error(name: &str, text: &str) -> Self {
        let said = said(name, text);
        let Some(known) = name.strip_prefix(BUS) else { return Self::Refused(said) };
        match known {
            // Who is called was there a moment ago.
            "NoReply" | "Disconnected" | "ServiceUnknown" | "NameHasNoOwner" => Self::Died,
            "Timeout" | "TimedOut" => Self::Silent,
            "AccessDenied" | "LimitsExceeded" | "NoMemory" => Self::Barred(said),
            "UnknownObject" | "UnknownInterface" | "UnknownMethod" => Self::NotReady(said),
            "InvalidArgs" => Self::UnknownToken,
            _ => Self::Refused(said),
        }
    }

    /// What an error of this name says, with which the bus answered who asked for the app or its start.
    /// The app itself has said nothing, whatever the name is.
    pub fn of_start(name: &str, text: &str) -> Self {
        match name.strip_prefix(BUS) {
            Some("ServiceUnknown" | "NameHasNoOwner") => Self::Absent,
            _ => Self::NotStarted(said(name, text)),
        }
    }
}

/// What the names of the bus's own errors begin with.
const BUS: &str = "org.freedesktop.DBus.Error.";

fn said(name: &str, text: &str) -> String {
    if text.is_empty() { name.to_owned() } else { format!("{name}: {text}") }
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The app has it: go on with the next.
    Done,
    /// Not again: go on with the next.
    GiveUp,
    /// The app knows nothing of the registration: it ends.
    Revoke,
    /// Call again after this time, or at this sign of the app.
    Again(Duration, Sign),
    /// Call again at this sign of the app.
    At(Sign),
}

/// What an app does on the bus that is a reason to call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// Nothing that it does.
    None,
    /// It comes.
    Arrival,
    /// It comes; or it leaves, and may be started anew.
    Change,
}

/// How one app has answered lately.
#[derive(Debug)]
pub struct Patience {
    backoff: Backoff,
    died: u32,
    not_ready: u32,
    refused: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self { backoff: Backoff::up_to(LONGEST), died: 0, not_ready: 0, refused: 0 }
    }
}

impl Patience {
    /// What follows from this answer.
    pub fn after(&mut self, answer: &Answer, luck: Luck) -> Step {
        match answer {
            Answer::Taken => {
                *self = Self::default();
                Step::Done
            }
            Answer::Died => {
                self.died += 1;
                Step::Again(if self.died <= DIED_TRIES { SOON } else { self.backoff.next(luck) }, Sign::None)
            }
            Answer::Silent => Step::Again(self.backoff.next(luck), Sign::Change),
            Answer::NotStarted(_) | Answer::Barred(_) => Step::Again(self.backoff.next(luck), Sign::Arrival),
            Answer::Absent | Answer::Kept => Step::At(Sign::Arrival),
            Answer::NotReady(_) => {
                self.not_ready += 1;
                let waits = self.not_ready <= READY_TRIES;
                if waits { Step::Again(READY_AFTER, Sign::Change) } else { Step::At(Sign::Change) }
            }
            Answer::UnknownToken => Step::Revoke,
            Answer::Refused(_) => {
                self.refused += 1;
                if self.refused < REFUSED_TRIES {
                    return Step::Again(REFUSED_AFTER, Sign::None);
                }
                self.refused = 0;
                Step::GiveUp
            }
        }
    }

    /// The app has come to the bus anew, or left it.
    pub fn came(&mut self) {
        self.not_ready = 0;
    }

    /// The app has called: it is there and in order.
    pub fn called(&mut self) {
        *self = Self { refused: self.refused, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOW: Luck = Luck(0);
    const HIGH: Luck = Luck(u32::MAX);

    fn error(name: &str) -> Answer {
        Answer::of_error(&format!("org.freedesktop.DBus.Error.{name}"), "so it is")
    }

    /// When the app is called in these many seconds from now, if it always answers so.
    fn calls(answer: &Answer, within: Duration, luck: Luck) -> Vec<Duration> {
        let (mut patience, mut now, mut calls) = (Patience::default(), Duration::ZERO, Vec::new());
        while now <= within {
            calls.push(now);
            match patience.after(answer, luck) {
                Step::Again(pause, _) => now += pause,
                Step::Done | Step::GiveUp | Step::Revoke | Step::At(_) => break,
            }
        }
        calls
    }

    #[test]
    fn each_error_of_the_bus_has_its_meaning() {
        let said = |name: &str| format!("org.freedesktop.DBus.Error.{name}: so it is");
        for (name, answer) in [
            ("NoReply", Answer::Died),
            ("ServiceUnknown", Answer::Died),
            ("NameHasNoOwner", Answer::Died),
            ("TimedOut", Answer::Silent),
            ("AccessDenied", Answer::Barred(said("AccessDenied"))),
            ("LimitsExceeded", Answer::Barred(said("LimitsExceeded"))),
            ("NoMemory", Answer::Barred(said("NoMemory"))),
            ("UnknownObject", Answer::NotReady(said("UnknownObject"))),
            ("UnknownInterface", Answer::NotReady(said("UnknownInterface"))),
            ("UnknownMethod", Answer::NotReady(said("UnknownMethod"))),
            ("InvalidArgs", Answer::UnknownToken),
            ("Failed", Answer::Refused(said("Failed"))),
        ] {
            assert_eq!(error(name), answer, "{name}");
        }
        assert_eq!(Answer::of_error("org.example.InvalidArgs", ""), Answer::Refused("org.example.InvalidArgs".into()));
    }

    #[test]
    fn what_the_bus_says_of_a_start_is_no_word_of_the_app() {
        for name in ["ServiceUnknown", "NameHasNoOwner"] {
            assert_eq!(Answer::of_start(&format!("{BUS}{name}"), "so it is"), Answer::Absent);
        }
        let of_bus = ["InvalidArgs", "TimedOut", "Spawn.ChildExited", "Failed", "UnknownMethod", "AccessDenied"];
        let of_bus = of_bus.map(|name| format!("{BUS}{name}"));
        for name in of_bus.iter().map(String::as_str).chain(["org.freedesktop.systemd1.ShuttingDown"]) {
            let answer = Answer::of_start(name, "so it is");
            assert_eq!(answer, Answer::NotStarted(format!("{name}: so it is")));
            // It neither ends a registration nor costs a message.
            let mut patience = Patience::default();
            for _ in 0..20 {
                assert!(matches!(patience.after(&answer, LOW), Step::Again(_, Sign::Arrival)), "{name}");
            }
        }
    }

    #[test]
    fn an_app_that_ends_is_called_soon_and_then_ever_later() {
        let calls = calls(&Answer::Died, Duration::from_secs(20), HIGH);
        let ms: Vec<_> = calls.iter().map(Duration::as_millis).collect();
        assert_eq!(ms, [0, 500, 1000, 1500, 3500, 7500, 15_500]);
    }

    #[test]
    fn an_app_that_hangs_costs_few_calls_a_day() {
        let day = Duration::from_secs(24 * 3600);
        for luck in [LOW, HIGH] {
            let calls = calls(&Answer::Silent, day, luck);
            assert!((100..=400).contains(&calls.len()), "{}", calls.len());
            assert!(calls.windows(2).all(|pair| pair[1] - pair[0] <= LONGEST));
        }
    }

    #[test]
    fn an_app_that_is_not_ready_is_waited_for_a_moment_and_then_until_it_comes_anew() {
        let mut patience = Patience::default();
        let not_ready = error("UnknownObject");
        for _ in 0..READY_TRIES {
            assert_eq!(patience.after(&not_ready, LOW), Step::Again(READY_AFTER, Sign::Change));
        }
        assert_eq!(patience.after(&not_ready, LOW), Step::At(Sign::Change));
        patience.came();
        assert_eq!(patience.after(&not_ready, LOW), Step::Again(READY_AFTER, Sign::Change));
    }

    #[test]
    fn what_an_app_refuses_is_given_up_and_the_next_has_its_own_tries() {
        let mut patience = Patience::default();
        let refused = error("Failed");
        for _ in 0..2 {
            assert_eq!(patience.after(&refused, LOW), Step::Again(REFUSED_AFTER, Sign::None));
            assert_eq!(patience.after(&refused, LOW), Step::Again(REFUSED_AFTER, Sign::None));
            assert_eq!(patience.after(&refused, LOW), Step::GiveUp);
        }
    }

    #[test]
    fn an_app_that_comes_and_ends_each_time_still_gets_its_pauses() {
        let mut patience = Patience::default();
        let mut pauses = Vec::new();
        for _ in 0..6 {
            patience.came();
            pauses.push(patience.after(&Answer::Died, HIGH));
        }
        assert_eq!(pauses[3..], [2, 4, 8].map(|seconds| Step::Again(Duration::from_secs(seconds), Sign::None)));
        patience.called();
        assert_eq!(patience.after(&Answer::Died, HIGH), Step::Again(SOON, Sign::None));
    }

    #[test]
    fn who_is_absent_or_may_not_be_started_costs_no_timer() {
        for answer in [Answer::Absent, Answer::Kept] {
            assert_eq!(Patience::default().after(&answer, LOW), Step::At(Sign::Arrival));
        }
    }
}
