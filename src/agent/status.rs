//! How the connection is, for people: written by its task, read by whoever is asked.

use crate::link::Gateway;
use crate::proto::device::{Device, LinkState, Offline};
use crate::proto::pulse::Reading;
use crate::proto::surroundings::Surroundings;

use super::system::Source;

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
    /// The time that it is offline, if an attempt has failed.
    pub offline: Option<Offline>,
    /// It is offline for long although there is a network.
    pub out_of_reach: bool,
    /// There is no network.
    pub away: bool,
    /// How its silences are.
    pub pulse: Reading,
    /// Power and price.
    pub surroundings: Surroundings,
    /// Who tells about the machine, in order.
    pub sources: Vec<Source>,
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
            offline: None,
            out_of_reach: false,
            away: false,
            pulse: device.pulse(),
            surroundings: device.surroundings(),
            sources: Vec::new(),
            wakes,
            today: Tally::default(),
        }
    }

    /// In one line, for a supervisor.
    pub fn line(&self) -> String {
        match &self.state {
            LinkState::Online { region, .. } => format!("online at {}, region {region}", self.gateway),
            LinkState::Waiting { why, .. } if self.away => format!("offline, there is no network: {why}"),
            LinkState::Waiting { why, .. } => format!("offline, not connected to {}: {why}", self.gateway),
            LinkState::Dialling | LinkState::Greeting => format!("connecting to {}", self.gateway),
            LinkState::Stopped => "stopped".to_owned(),
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
