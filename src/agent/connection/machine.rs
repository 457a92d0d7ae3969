//! What the connection does with what the machine says: the network it is on, its power, its sleep.

use std::net::IpAddr;
use std::time::Duration;

use tracing::debug;

use super::Connection;
use crate::agent::system::network::Way;
use crate::agent::system::{Signal, Source};
use crate::db::DbError;
use crate::proto::pulse::{Memory, Network};
use crate::proto::surroundings::Surroundings;
use crate::world;

/// How long the link may take for what was said last before a sleep.
const LAST_WORDS: Duration = Duration::from_millis(50);

/// Returns when what was said last has been sent, as far as can be known. Safe to cancel.
pub(super) async fn last_words() {
    tokio::time::sleep(LAST_WORDS).await;
}

impl Connection {
    /// What was learned by an earlier run. Its error is one of the store at the start.
    pub(super) async fn load_network(&mut self) -> Result<(), DbError> {
        let now = self.parts.clock.now();
        let network = match self.parts.system.look(&[]) {
            Some(None) => {
                self.device.handle_network(now, None);
                return Ok(());
            }
            Some(Some(way)) => way.network,
            None => self.device.pulse().network,
        };
        let memory = self.parts.store.memory(network.key).await?;
        self.device.handle_network(now, Some((network, memory)));
        Ok(())
    }

    pub(super) async fn handle_signal(&mut self, signal: Signal) {
        let now = self.parts.clock.now();
        let before = self.device.surroundings();
        match signal {
            Signal::Network(gateway) => {
                self.look(&gateway).await;
                if self.link.is_some() && self.parts.system.address_is_gone() {
                    self.device.handle_address_gone(now, world::luck());
                }
            }
            Signal::Power(power) => self.device.handle_surroundings(now, Surroundings { power, ..before }),
            Signal::Metered(metered) => self.device.handle_surroundings(now, Surroundings { metered, ..before }),
            Signal::Asleep(ready) => {
                debug!("the device is about to sleep");
                self.device.handle_asleep(now);
                // Until what has come is acknowledged.
                self.ready = Some(ready);
            }
            Signal::Awake => {
                debug!("the device is awake");
                self.device.handle_awake(now);
            }
            Signal::Source(source, there) => self.note_source(source, there),
        }
    }

    /// Looks which network there is.
    async fn look(&mut self, gateway: &[IpAddr]) {
        match self.parts.system.look(gateway) {
            Some(Some(way)) => self.note_way(way).await,
            Some(None) => {
                self.address = None;
                self.device.handle_network(self.parts.clock.now(), None);
            }
            None => {}
        }
    }

    /// Looks which network a link goes over that has just been opened: there is one.
    pub(super) async fn look_again(&mut self) {
        if let Some(Some(way)) = self.parts.system.look(&[]) {
            self.note_way(way).await;
        }
    }

    /// The network is this one, of which what is remembered counts.
    async fn note_way(&mut self, Way { network, source }: Way) {
        let now = self.parts.clock.now();
        let other = self.device.pulse().network != network;
        let memory = if other { self.recall(network).await } else { None };
        self.device.handle_network(now, Some((network, memory)));
        let moved = std::mem::replace(&mut self.address, source).is_some_and(|address| source != Some(address));
        if moved && !other {
            self.device.handle_moved(now);
        }
    }

    async fn recall(&mut self, network: Network) -> Option<Memory> {
        let memory = self.parts.store.memory(network.key).await;
        self.or_log(memory, None)
    }

    fn note_source(&mut self, source: Source, there: bool) {
        self.sources.retain(|known| *known != source);
        if there {
            self.sources.push(source);
            self.sources.sort_unstable();
        }
    }
}
