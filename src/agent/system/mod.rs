//! What the machine says of itself: its network, its power, what its network costs, and when it sleeps.
//!
//! Each [`Source`] is heard where it is and missed nowhere: one that is absent, dies or stalls makes the
//! connection notice things later, by its pings, its clocks and its attempts, and never keeps it from
//! anything. Nothing here has a timer while nothing happens.
//!
//! * [`netlink`], [`network`]: the kernel's news of the network, and which one it is.
//! * [`bus`]: the services of the system bus, as they come and go; `network_manager`, `connman`, `logind`
//!   and `upower`: what each of them has to say.

pub mod bus;
mod connman;
mod logind;
pub mod netlink;
pub mod network;
mod network_manager;
mod upower;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::net::lookup_host;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tracing::debug;

use crate::link::Gateway;
use crate::link::dial::Ends;
use crate::proto::surroundings::Power;
use netlink::News;
use network::{Lookout, Way};

/// Signals that may wait for the connection.
const SIGNALS: usize = 16;
/// How long a name may take to be resolved.
const LOOKUP: Duration = Duration::from_secs(5);

/// Who says something about the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The kernel: which network there is.
    Netlink,
    /// NetworkManager: what the network costs.
    NetworkManager,
    /// ConnMan: the same.
    Connman,
    /// systemd-logind or elogind: when the machine sleeps.
    Logind,
    /// UPower: what powers the machine.
    Upower,
}

impl Source {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Netlink, Self::NetworkManager, Self::Connman, Self::Logind, Self::Upower];

    /// Its word, in the configuration and wherever it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::Netlink => "netlink",
            Self::NetworkManager => "network-manager",
            Self::Connman => "connman",
            Self::Logind => "logind",
            Self::Upower => "upower",
        }
    }

    /// Its name on the system bus, if that is where it is.
    fn bus_name(self) -> Option<&'static str> {
        match self {
            Self::Netlink => None,
            Self::NetworkManager => Some(network_manager::NAME),
            Self::Connman => Some(connman::NAME),
            Self::Logind => Some(logind::NAME),
            Self::Upower => Some(upower::NAME),
        }
    }

    /// What holds when it has nothing to say any more.
    fn silence(self) -> Option<Signal> {
        match self {
            Self::Netlink | Self::Logind => None,
            Self::NetworkManager | Self::Connman => Some(Signal::Metered(false)),
            Self::Upower => Some(Signal::Power(Power::default())),
        }
    }
}

/// What the connection is told.
#[derive(Debug)]
pub enum Signal {
    /// The network may have changed: [`System::look`] at it. These addresses of the gateway are known.
    Network(Vec<IpAddr>),
    /// Where the power comes from.
    Power(Power),
    /// Whether the network is paid for by the byte.
    Metered(bool),
    /// The machine is about to sleep, and waits until this is dropped, but not for long.
    Asleep(Ready),
    /// The machine was asleep.
    Awake,
    /// This source is there, or is not any more.
    Source(Source, bool),
}

/// Held as long as something has to be done before the machine sleeps.
#[derive(Debug)]
pub struct Ready(#[allow(dead_code, reason = "its end is what is waited for")] oneshot::Sender<()>);

/// Where the sources' signals go.
type Out = mpsc::Sender<Signal>;

/// The connection's end of this room.
#[derive(Debug)]
pub struct System {
    signals: mpsc::Receiver<Signal>,
    /// None if the network is not watched.
    lookout: Option<Lookout>,
    /// The gateway, for who resolves its name.
    gateway: watch::Sender<Gateway>,
    /// The same, if it is no name.
    address: Option<IpAddr>,
    ends: Arc<Ends>,
    woke: Arc<Notify>,
}

impl System {
    /// Starts to listen to these sources. The salt hides the names of networks.
    pub fn start(sources: &[Source], gateway: Gateway, ends: Arc<Ends>, salt: &[u8; 32]) -> Self {
        let (out, signals) = mpsc::channel(SIGNALS);
        let woke = Arc::new(Notify::new());
        let news = sources
            .contains(&Source::Netlink)
            .then(News::listen)
            .and_then(|news| news.inspect_err(|error| debug!("the kernel does not tell of the network: {error}")).ok());
        let lookout = news.is_some().then(|| Lookout::new(salt));
        let (watched, address) = (news.is_some(), gateway.host().parse().ok());
        let (gateway, used) = watch::channel(gateway);
        if let Some(news) = news {
            tokio::spawn(tell_of_network(news, used, Arc::clone(&ends), out.clone()));
        }
        let named = Source::ALL.into_iter().filter(|source| source.bus_name().is_some() && sources.contains(source));
        tokio::spawn(bus::run(named.collect(), watched, out, Arc::clone(&woke)));
        Self { signals, lookout, gateway, address, ends, woke }
    }

    /// From now on it is the way to this gateway that matters.
    pub fn use_gateway(&mut self, gateway: Gateway) {
        self.address = gateway.host().parse().ok();
        self.ends.forget();
        self.gateway.send_replace(gateway);
    }

    /// The next signal; never if nobody is left who could say something. Safe to cancel.
    pub async fn next(&mut self) -> Signal {
        match self.signals.recv().await {
            Some(signal) => signal,
            None => std::future::pending().await,
        }
    }

    /// The way to the gateway: `Some(None)` if there is none, `None` if that cannot be known. Its addresses
    /// beside that of the newest connection are those given.
    pub fn look(&mut self, gateway: &[IpAddr]) -> Option<Option<Way>> {
        let peer = self.ends.get().map(|ends| ends.there.ip());
        let addresses: Vec<IpAddr> = peer.into_iter().chain(self.address).chain(gateway.iter().copied()).collect();
        let looked = self.lookout.as_mut()?.look(&addresses);
        looked.inspect_err(|error| debug!("the kernel does not say which network there is: {error}")).ok()
    }

    /// Whether the address is gone from which the newest connection was made.
    pub fn address_is_gone(&self) -> bool {
        self.ends.get().is_some_and(|ends| !network::is_here(ends.here))
    }

    /// The device is awake for a reason of its own: what is not told may be looked at as well.
    pub fn woke(&self) {
        self.woke.notify_waiters();
    }
}

/// Tells that the network may have changed, and at first that it may be looked at.
async fn tell_of_network(news: News, gateway: watch::Receiver<Gateway>, ends: Arc<Ends>, out: Out) {
    if out.send(Signal::Source(Source::Netlink, true)).await.is_err() {
        return;
    }
    loop {
        let addresses = match ends.get() {
            // Nobody needs to be asked for a name that has been resolved.
            Some(_) => Vec::new(),
            None => {
                let used = gateway.borrow().clone();
                resolve(&used).await
            }
        };
        if out.send(Signal::Network(addresses)).await.is_err() {
            return;
        }
        if let Err(error) = news.settled().await {
            debug!("the kernel tells no more of the network: {error}");
            // Whoever receives this may be gone.
            let _ = out.send(Signal::Source(Source::Netlink, false)).await;
            return;
        }
    }
}

/// The gateway's addresses, as far as they can be known now.
async fn resolve(gateway: &Gateway) -> Vec<IpAddr> {
    match tokio::time::timeout(LOOKUP, lookup_host((gateway.host(), gateway.port()))).await {
        Ok(Ok(addresses)) => addresses.map(|address| address.ip()).collect(),
        // Without a network there are no names either.
        Ok(Err(_)) | Err(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_is_configured_by_the_word_it_is_shown_by() {
        for source in Source::ALL {
            let parsed = Source::deserialize(toml::Value::String(source.name().into())).unwrap();
            assert_eq!(parsed, source);
        }
    }

    #[tokio::test]
    async fn the_kernel_alone_tells_of_the_way_to_a_gateway_on_this_machine() {
        let gateway: Gateway = "ws://127.0.0.1:1".parse().unwrap();
        let mut system = System::start(&[Source::Netlink], gateway, Arc::default(), &[1; 32]);
        assert!(matches!(system.next().await, Signal::Source(Source::Netlink, true)));
        let Signal::Network(addresses) = system.next().await else { panic!("no look at the network") };
        assert_eq!(addresses, [IpAddr::from([127, 0, 0, 1])]);
        let way = system.look(&[]).unwrap().unwrap();
        assert_eq!(way.source, Some([127, 0, 0, 1].into()));
        assert!(!system.address_is_gone(), "there is no connection");
    }

    #[tokio::test]
    async fn a_network_that_nobody_watches_is_unknown_and_not_away() {
        let gateway: Gateway = "ws://127.0.0.1:1".parse().unwrap();
        let mut system = System::start(&[], gateway, Arc::default(), &[1; 32]);
        assert_eq!(system.look(&[[127, 0, 0, 1].into()]), None);
    }
}
