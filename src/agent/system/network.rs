//! Which network the gateway is reached over: the kernel is asked for its way there, and what tells the
//! network from others is hashed.
//!
//! The name of a network never leaves this file but as a hash with the device's own salt. A router says
//! which network it is by its own address and that of its hardware; a mobile network and a tunnel are
//! known by their interface. It must not take a router whose hardware the kernel has just forgotten for
//! another.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;

use ring::hmac;

use super::netlink::{Interface, Questions, Route};
use crate::proto::keepalive::NetworkKind;
use crate::proto::pulse::{Network, NetworkKey};

/// Addresses for documentation, which no network should have: the way to them is the default one. Source: RFC
/// 3849, RFC 5737.
const ANYWHERE: [IpAddr; 2] =
    [IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), IpAddr::V4(Ipv4Addr::new(203, 0, 113, 254))];

/// The way to the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The network that it begins with.
    pub network: Network,
    /// The address that the device has on it.
    pub source: Option<IpAddr>,
}

/// What a network is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Identity {
    /// The next router, or the gateway itself where there is none between.
    Router { kind: NetworkKind, address: IpAddr, hardware: Option<Vec<u8>> },
    /// The interface, where routers have no names that last.
    Interface { kind: NetworkKind, name: String, ipv4: bool },
}

/// Looks at the network.
#[derive(Debug)]
pub struct Lookout {
    salt: hmac::Key,
    last: Option<Identity>,
}

impl Lookout {
    /// One with the device's salt.
    pub fn new(salt: &[u8; 32]) -> Self {
        Self { salt: hmac::Key::new(hmac::HMAC_SHA256, salt), last: None }
    }

    /// The way to the gateway, of which these addresses are known; `None` if there is none.
    pub fn look(&mut self, gateway: &[IpAddr]) -> io::Result<Option<Way>> {
        let questions = Questions::new()?;
        for to in gateway.iter().chain(&ANYWHERE) {
            if let Some((route, interface)) = way(&questions, *to)? {
                let next = route.router.unwrap_or(*to);
                let hardware = questions.neighbour(route.interface, next)?;
                let identity = identify(&interface, kind(&interface), next, hardware);
                return Ok(Some(self.recognize(identity, route.source)));
            }
        }
        Ok(None)
    }

    fn recognize(&mut self, found: Identity, source: Option<IpAddr>) -> Way {
        let identity = found.or_remembered(self.last.as_ref());
        let network = Network { key: identity.key(&self.salt), kind: identity.kind() };
        self.last = Some(identity);
        Way { network, source }
    }
}

/// A way that can be gone now.
fn way(questions: &Questions, to: IpAddr) -> io::Result<Option<(Route, Interface)>> {
    let Some(route) = questions.route(to)? else { return Ok(None) };
    let interface = questions.interface(route.interface)?;
    // The kernel keeps routes over a cable that is not plugged in.
    Ok(interface.filter(|interface| interface.runs).map(|interface| (route, interface)))
}

fn identify(interface: &Interface, kind: NetworkKind, next: IpAddr, hardware: Option<Vec<u8>>) -> Identity {
    match kind {
        NetworkKind::Ethernet | NetworkKind::Wifi => Identity::Router { kind, address: next, hardware },
        NetworkKind::Cellular | NetworkKind::Vpn | NetworkKind::Unknown => {
            Identity::Interface { kind, name: interface.name.clone(), ipv4: next.is_ipv4() }
        }
    }
}

impl Identity {
    /// The same with what was known of it before: the kernel may have forgotten who the router is.
    fn or_remembered(self, last: Option<&Self>) -> Self {
        match (self, last) {
            (
                Self::Router { kind, address, hardware: None },
                Some(Self::Router { kind: of, address: at, hardware }),
            ) if kind == *of && address == *at => Self::Router { kind, address, hardware: hardware.clone() },
            (found, _) => found,
        }
    }

    fn kind(&self) -> NetworkKind {
        match self {
            Self::Router { kind, .. } | Self::Interface { kind, .. } => *kind,
        }
    }

    fn key(&self, salt: &hmac::Key) -> NetworkKey {
        let text = match self {
            Self::Router { kind, address, hardware } => {
                format!("{} {address} {}", kind.name(), hex::encode(hardware.as_deref().unwrap_or_default()))
            }
            Self::Interface { kind, name, ipv4 } => format!("{} {name} {ipv4}", kind.name()),
        };
        let mut key = [0; 16];
        // Invariant: the tag has 32 bytes.
        key.copy_from_slice(&hmac::sign(salt, text.as_bytes()).as_ref()[..16]);
        NetworkKey(key)
    }
}

/// Hardware of linux/if_arp.h.
const ARPHRD_ETHER: u16 = 1;
const ARPHRD_PPP: u16 = 512;
const ARPHRD_RAWIP: u16 = 519;
const ARPHRD_LOOPBACK: u16 = 772;

fn kind(interface: &Interface) -> NetworkKind {
    let of = Path::new("/sys/class/net").join(&interface.name);
    let wireless = of.join("wireless").exists() || of.join("phy80211").exists();
    // What udev goes by as well.
    let mobile = std::fs::read_to_string(of.join("uevent")).is_ok_and(|text| text.contains("DEVTYPE=wwan"));
    kind_of(interface, wireless, mobile)
}

fn kind_of(interface: &Interface, wireless: bool, mobile: bool) -> NetworkKind {
    let named = |prefix: &str| interface.name.starts_with(prefix);
    if mobile || named("wwan") || named("rmnet") || matches!(interface.hardware, ARPHRD_PPP | ARPHRD_RAWIP) {
        return NetworkKind::Cellular;
    }
    if wireless {
        return NetworkKind::Wifi;
    }
    match (interface.hardware, interface.kind.as_deref()) {
        (ARPHRD_LOOPBACK, _) => NetworkKind::Unknown,
        (_, Some("tun" | "wireguard")) => NetworkKind::Vpn,
        (ARPHRD_ETHER, _) => NetworkKind::Ethernet,
        // Without hardware it is some tunnel.
        (_, Some(_)) => NetworkKind::Vpn,
        (_, None) => NetworkKind::Unknown,
    }
}

/// Whether the device has this address, of whatever port.
pub fn is_here(mut address: SocketAddr) -> bool {
    address.set_port(0);
    // Nothing is sent. Any other failure says nothing about the address.
    let bound = UdpSocket::bind(address);
    !bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, hardware: u16, kind: Option<&str>) -> Interface {
        Interface { name: name.into(), runs: true, hardware, kind: kind.map(str::to_owned) }
    }

    #[test]
    fn an_interface_says_what_kind_of_network_it_leads_to() {
        for (interface, wireless, mobile, expected) in [
            (interface("eth0", ARPHRD_ETHER, None), false, false, NetworkKind::Ethernet),
            (interface("br0", ARPHRD_ETHER, Some("bridge")), false, false, NetworkKind::Ethernet),
            (interface("wlan0", ARPHRD_ETHER, None), true, false, NetworkKind::Wifi),
            (interface("enx1", ARPHRD_ETHER, None), false, true, NetworkKind::Cellular),
            (interface("wwan0", ARPHRD_ETHER, None), false, false, NetworkKind::Cellular),
            (interface("rmnet_data0", ARPHRD_RAWIP, None), false, false, NetworkKind::Cellular),
            (interface("ppp0", ARPHRD_PPP, Some("ppp")), false, false, NetworkKind::Cellular),
            (interface("tap0", ARPHRD_ETHER, Some("tun")), false, false, NetworkKind::Vpn),
            (interface("wg0", 65534, Some("wireguard")), false, false, NetworkKind::Vpn),
            (interface("gre0", 778, Some("gre")), false, false, NetworkKind::Vpn),
            (interface("lo", ARPHRD_LOOPBACK, None), false, false, NetworkKind::Unknown),
            (interface("odd0", 65534, None), false, false, NetworkKind::Unknown),
        ] {
            assert_eq!(kind_of(&interface, wireless, mobile), expected, "{interface:?}");
        }
    }

    /// The key under which a lookout knows a network.
    fn key(lookout: &mut Lookout, kind: NetworkKind, next: &str, hardware: Option<&[u8]>) -> NetworkKey {
        let of = interface("if0", ARPHRD_ETHER, None);
        let identity = identify(&of, kind, next.parse().unwrap(), hardware.map(<[u8]>::to_vec));
        lookout.recognize(identity, None).network.key
    }

    #[test]
    fn a_network_is_known_by_its_router_and_only_on_this_device() {
        let (wifi, ours) = (NetworkKind::Wifi, &mut Lookout::new(&[1; 32]));
        let home = key(ours, wifi, "192.168.1.1", Some(&[1; 6]));
        let others = [
            key(ours, wifi, "192.168.1.1", Some(&[2; 6])),
            key(ours, wifi, "192.168.2.1", Some(&[1; 6])),
            key(ours, NetworkKind::Ethernet, "192.168.1.1", Some(&[1; 6])),
            key(ours, wifi, "fe80::1", Some(&[1; 6])),
            key(&mut Lookout::new(&[2; 32]), wifi, "192.168.1.1", Some(&[1; 6])),
        ];
        assert!(!others.contains(&home));
        assert_eq!(key(ours, wifi, "192.168.1.1", Some(&[1; 6])), home);
    }

    #[test]
    fn a_router_whose_hardware_is_forgotten_for_a_while_stays_the_same() {
        let (wifi, lookout) = (NetworkKind::Wifi, &mut Lookout::new(&[1; 32]));
        let home = key(lookout, wifi, "192.168.1.1", Some(&[1; 6]));
        assert_eq!(key(lookout, wifi, "192.168.1.1", None), home);
        assert_ne!(key(lookout, wifi, "192.168.2.1", None), home);
        assert_ne!(key(lookout, wifi, "192.168.1.1", None), home, "it is not known any more which one that is");
    }

    #[test]
    fn the_routers_of_a_mobile_network_change_and_say_nothing() {
        let (mobile, lookout) = (NetworkKind::Cellular, &mut Lookout::new(&[1; 32]));
        assert_eq!(key(lookout, mobile, "10.1.2.3", None), key(lookout, mobile, "10.9.8.7", None));
        assert_ne!(key(lookout, mobile, "10.1.2.3", None), key(lookout, mobile, "fe80::1", None));
    }

    #[test]
    fn a_gateway_on_this_machine_is_always_reached() {
        let mut lookout = Lookout::new(&[1; 32]);
        let way = lookout.look(&[[127, 0, 0, 1].into()]).unwrap().unwrap();
        assert_eq!((way.network.kind, way.source), (NetworkKind::Unknown, Some([127, 0, 0, 1].into())));
        assert_eq!(lookout.look(&[[127, 0, 0, 1].into()]).unwrap(), Some(way));
    }

    #[test]
    fn an_address_is_here_or_not() {
        assert!(is_here(([127, 0, 0, 1], 5223).into()));
        assert!(!is_here(([203, 0, 113, 254], 5223).into()));
    }
}
