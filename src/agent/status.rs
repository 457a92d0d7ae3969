//! How the connection is, for people: written by its task, read by whoever is asked.

use crate::link::Gateway;
use crate::proto::device::{Device, LinkState};
use crate::proto::pulse::Reading;

/// Where the connection stands, for people.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// The state machine's state.
    pub state: LinkState,
    /// The gateway it uses.
    pub gateway: String,
    /// The proxy in between.
    pub proxy: Option<String>,
    /// Attempts that failed since a session last lasted.
    pub failures: u32,
    /// How its silences are.
    pub pulse: Reading,
    /// Whether its alarm wakes a device that sleeps.
    pub wakes: bool,
    /// What it did today.
    pub today: Tally,
}

impl Status {
    /// That of a connection that has not begun.
    pub fn of(gateway: &Gateway, device: &Device, wakes: bool) -> Self {
        Self {
            state: device.state().clone(),
            gateway: gateway.to_string(),
            proxy: None,
            failures: device.failures(),
            pulse: device.pulse(),
            wakes,
            today: Tally::default(),
        }
    }
}

/// What the connection did within some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Pings.
    pub pings: u32,
    /// Sessions that were lost without a word.
    pub losses: u32,
    /// Sessions that were opened.
    pub connects: u32,
    /// Bytes of frames to the server.
    pub sent: u64,
    /// Bytes of frames from it.
    pub received: u64,
}

impl Tally {
    /// What of it was done since then.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            pings: self.pings.wrapping_sub(earlier.pings),
            losses: self.losses.saturating_sub(earlier.losses),
            connects: self.connects.saturating_sub(earlier.connects),
            sent: self.sent.saturating_sub(earlier.sent),
            received: self.received.saturating_sub(earlier.received),
        }
    }
}
