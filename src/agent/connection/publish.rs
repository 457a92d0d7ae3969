//! What the connection tells people: its status, what it did, and a line in the log when it comes or goes.

use tracing::{debug, info};

use super::Connection;
use crate::agent::status::Tally;
use crate::link::Link;
use crate::proto::device::LinkState;
use crate::world;

/// Milliseconds of a day.
const DAY_MS: i64 = 24 * 3600 * 1000;

impl Connection {
    /// Writes the status, and wakes whoever waits for a change of it.
    pub(super) fn publish(&mut self) {
        let today = self.today();
        let (state, gateway) = (self.device.state(), self.parts.routes.current().to_string());
        self.parts.status.send_if_modified(|status| {
            (status.failures, status.pulse, status.today) = (self.device.failures(), self.device.pulse(), today);
            (status.offline, status.away) = (self.device.offline().cloned(), self.device.away());
            status.surroundings = self.device.surroundings();
            status.sources.clone_from(&self.sources);
            let out_of_reach = self.device.out_of_reach();
            // Whoever waits for a change waits for these alone.
            let changed = status.state != *state || status.gateway != gateway || status.out_of_reach != out_of_reach;
            if changed {
                status.out_of_reach = out_of_reach;
                log_change(state, &gateway);
                status.proxy = self.parts.dialling.proxies.of(self.parts.routes.current()).map(ToString::to_string);
                (status.state, status.gateway) = (state.clone(), gateway);
            }
            changed
        });
    }

    /// What it did on this day.
    fn today(&mut self) -> Tally {
        let total = self.total();
        let today = world::now().0.div_euclid(DAY_MS);
        if self.day.0 != today {
            self.day = (today, total);
        }
        total.since(self.day.1)
    }

    /// What it did since the start.
    pub(super) fn total(&self) -> Tally {
        let pulse = self.device.pulse();
        let traffic = self.link.as_ref().map(|link| link.traffic()).unwrap_or_default();
        Tally {
            pings: pulse.pings,
            losses: pulse.losses,
            connects: self.total.connects,
            sent: self.total.sent + traffic.sent,
            received: self.total.received + traffic.received,
        }
    }
}

/// One line when the device comes online or goes offline; retries in between are debug.
fn log_change(state: &LinkState, gateway: &str) {
    match state {
        LinkState::Online { region, .. } => info!(%region, "connected to {gateway}"),
        LinkState::Waiting { why, .. } => debug!("not connected to {gateway}: {why}"),
        LinkState::Stopped | LinkState::Dialling | LinkState::Greeting => debug!(?state, "{gateway}"),
    }
}
