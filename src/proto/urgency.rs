//! How much a push is worth waking a device for, and what a device takes at the moment.
//!
//! A sender says the one, the device's surroundings the other. What is below the least that the device
//! takes is held at the server until that changes; what is not urgent waits, while the device is idle,
//! until it is heard anyway, or for a while. Sources: RFC 8030 section 5.3, whose four urgencies these
//! are, and the thresholds of KDE's distributor.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::UnixMillis;
use super::keepalive::Profile;
use super::message::Push;
use super::surroundings::{Power, Surroundings};

/// The longest that a push waits for a frame of an idle device.
pub const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// The urgency of RFC 8030, section 5.3, lowest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Urgency {
    /// On power and Wi-Fi.
    VeryLow,
    /// On either of them.
    Low,
    /// On neither, but not low on battery.
    #[default]
    Normal,
    /// Even low on battery.
    High,
}

impl Urgency {
    /// All of them, each in the place of its number.
    pub const ALL: [Self; 4] = [Self::VeryLow, Self::Low, Self::Normal, Self::High];

    /// Its number, by which stores keep it.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The one of this number; what is stored otherwise is as any other message.
    pub fn numbered(number: u8) -> Self {
        Self::ALL.get(usize::from(number)).copied().unwrap_or_default()
    }

    /// Whether it is worth waking an idle device for.
    pub fn wakes(self) -> bool {
        self >= Self::Normal
    }

    /// Its word, on the wire and wherever it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::VeryLow => "very-low",
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }
}

impl fmt::Display for Urgency {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// The least urgency for which a device wants to be woken in these surroundings.
pub fn least(surroundings: Surroundings) -> Urgency {
    match (surroundings.power, surroundings.metered) {
        (Power::LowBattery, _) => Urgency::High,
        (Power::Battery, true) => Urgency::Normal,
        (Power::Battery, false) | (Power::External, true) => Urgency::Low,
        (Power::External, false) => Urgency::VeryLow,
    }
}

/// What a device takes at the moment. It says so in its greeting and with each ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taking {
    /// Nothing below this.
    #[serde(default = "everything", skip_serializing_if = "is_everything")]
    pub least: Urgency,
    /// To be sent something wakes it: what is not urgent waits until it is awake anyway.
    #[serde(default, skip_serializing_if = "is_false")]
    pub idle: bool,
}

impl Default for Taking {
    fn default() -> Self {
        Self { least: everything(), idle: false }
    }
}

impl Taking {
    /// What a device of this profile takes in these surroundings.
    pub fn of(profile: Profile, surroundings: Surroundings) -> Self {
        Self { least: least(surroundings), idle: profile == Profile::Battery }
    }

    /// Whether something may go now that had to wait before.
    pub fn is_more_than(self, earlier: Self) -> bool {
        self.least < earlier.least || (earlier.idle && !self.idle)
    }
}

fn everything() -> Urgency {
    Urgency::VeryLow
}

fn is_everything(least: &Urgency) -> bool {
    *least == everything()
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Until when a push that is stored at `now` waits for a frame of an idle device: half its life at the
/// most, so that the wait never makes it expire. Zero for what does not wait.
pub fn waits_until(push: &Push, now: UnixMillis) -> UnixMillis {
    if push.urgency.wakes() {
        return UnixMillis(0);
    }
    let life = push.expires_ms.0.saturating_sub(now.0).max(0);
    let patience = i64::try_from(PATIENCE.as_millis()).unwrap_or(i64::MAX);
    UnixMillis(now.0.saturating_add(patience.min(life / 2)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::samples;

    #[test]
    fn urgencies_are_ordered_and_numbered() {
        assert!(Urgency::ALL.is_sorted());
        assert_eq!(Urgency::ALL.map(Urgency::number), [0, 1, 2, 3]);
        assert_eq!([0, 1, 2, 3].map(Urgency::numbered), Urgency::ALL);
        assert_eq!(Urgency::default(), Urgency::Normal);
        let words = Urgency::ALL.map(|urgency| serde_json::to_value(urgency).unwrap());
        assert_eq!(words.to_vec(), Urgency::ALL.map(Urgency::name));
    }

    #[test]
    fn power_and_price_decide_what_a_device_is_woken_for() {
        let table = [
            (Power::External, false, Urgency::VeryLow),
            (Power::External, true, Urgency::Low),
            (Power::Battery, false, Urgency::Low),
            (Power::Battery, true, Urgency::Normal),
            (Power::LowBattery, false, Urgency::High),
            (Power::LowBattery, true, Urgency::High),
        ];
        for (power, metered, urgency) in table {
            assert_eq!(least(Surroundings { power, metered }), urgency, "{power:?}, metered: {metered}");
        }
    }

    #[test]
    fn a_device_on_the_mains_is_never_idle_and_one_that_says_nothing_takes_everything() {
        let here = Surroundings { power: Power::Battery, metered: false };
        let battery = Taking { least: Urgency::Low, idle: true };
        assert_eq!(Taking::of(Profile::Battery, here), battery);
        assert_eq!(Taking::of(Profile::Mains, here), Taking { idle: false, ..battery });
        assert_eq!(serde_json::from_str::<Taking>("{}").unwrap(), Taking::default());
        assert_eq!(Taking::default(), Taking { least: Urgency::VeryLow, idle: false });
    }

    #[test]
    fn a_lower_least_and_the_end_of_idleness_are_more() {
        let some = Taking { least: Urgency::Normal, idle: true };
        for (other, more) in [
            (some, false),
            (Taking { least: Urgency::Low, ..some }, true),
            (Taking { least: Urgency::High, ..some }, false),
            (Taking { idle: false, ..some }, true),
            (Taking { least: Urgency::High, idle: false }, true),
        ] {
            assert_eq!(other.is_more_than(some), more, "{other:?}");
        }
    }

    #[test]
    fn what_waits_for_a_frame_waits_a_quarter_of_an_hour_or_half_its_life() {
        let now = samples::WALL;
        let waits = |urgency, minutes| {
            let push = Push { urgency, expires_ms: now.plus_minutes(minutes), ..samples::push(samples::message_id(1)) };
            waits_until(&push, now)
        };
        assert_eq!(waits(Urgency::Low, 600), now.plus_minutes(15));
        assert_eq!(waits(Urgency::VeryLow, 10), now.plus_minutes(5));
        assert_eq!(waits(Urgency::Low, 0), now);
        assert_eq!(waits(Urgency::Normal, 600), UnixMillis(0));
    }
}
