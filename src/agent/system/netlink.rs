//! The kernel's news of the network, and what it answers about a way: rtnetlink(7).
//!
//! Of the news nothing is kept but that there were some: what is true is asked anew. The kernel's bytes
//! are read as any peer's: what is too short or unknown is left out, and nothing panics.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType};
use nix::sys::socket::{bind, recv, send, socket};
use tokio::net::unix::pipe::Receiver;

/// Links, and addresses and routes of both families: `RTMGRP_*` of linux/rtnetlink.h.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
/// The silence after the last news: an address that comes brings routes with it.
pub const SETTLED: Duration = Duration::from_millis(200);
/// How long that is waited for, whatever goes on changing.
pub const LONGEST: Duration = Duration::from_secs(2);
/// Bytes of one answer, of which the longest is an interface with all its counters.
const ANSWER: usize = 16 * 1024;

// linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/neighbour.h.
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const RTM_GETLINK: u16 = 18;
const RTM_GETROUTE: u16 = 26;
const RTM_GETNEIGH: u16 = 30;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_VIA: u16 = 18;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFF_RUNNING: u32 = 0x40;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

const HEADER: usize = 16;
const ROUTE: usize = 12;
const LINK: usize = 16;
const NEIGHBOUR: usize = 12;

/// The way that packets to some address take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The number of the interface.
    pub interface: u32,
    /// The next router, if there is one.
    pub router: Option<IpAddr>,
    /// The address that they come from.
    pub source: Option<IpAddr>,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Whether it can carry anything now.
    pub runs: bool,
    /// Its hardware, as in linux/if_arp.h.
    pub hardware: u16,
    /// What a virtual one is.
    pub kind: Option<String>,
}

/// A socket on which the kernel tells that the network has changed.
#[derive(Debug)]
pub struct News {
    socket: Receiver,
}

impl News {
    /// Listens from now on.
    pub fn listen() -> io::Result<Self> {
        // For tokio it is like a pipe: there is something in it, or not.
        Ok(Self { socket: Receiver::from_owned_fd_unchecked(open(GROUPS)?)? })
    }

    /// Waits for news, and then until there have been none for a while.
    pub async fn settled(&self) -> io::Result<()> {
        self.next().await?;
        let quiet = async {
            while let Ok(more) = tokio::time::timeout(SETTLED, self.next()).await {
                more?;
            }
            Ok(())
        };
        // A network that changes all the time is looked at all the same.
        tokio::time::timeout(LONGEST, quiet).await.unwrap_or(Ok(()))
    }

    async fn next(&self) -> io::Result<()> {
        loop {
            self.socket.readable().await?;
            match self.socket.try_read(&mut [0; 64]) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // News were lost, and are news.
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

/// A socket for questions, each of which the kernel answers at once.
#[derive(Debug)]
pub struct Questions {
    socket: OwnedFd,
}

impl Questions {
    /// A new one.
    pub fn new() -> io::Result<Self> {
        Ok(Self { socket: open(0)? })
    }

    /// The way to this address; `None` if there is none.
    pub fn route(&self, to: IpAddr) -> io::Result<Option<Route>> {
        let mut body = vec![0; ROUTE];
        (body[0], body[1]) = (family(to), if to.is_ipv4() { 32 } else { 128 });
        push_attribute(&mut body, RTA_DST, &octets(to));
        Ok(self.ask(RTM_GETROUTE, &body)?.as_deref().and_then(parse_route))
    }

    /// The interface of this number, if there is one.
    pub fn interface(&self, number: u32) -> io::Result<Option<Interface>> {
        let mut body = vec![0; LINK];
        body[4..8].copy_from_slice(&number.to_ne_bytes());
        Ok(self.ask(RTM_GETLINK, &body)?.as_deref().and_then(parse_interface))
    }

    /// The hardware address of a neighbour, if the kernel knows it and tells (since Linux 5.0).
    pub fn neighbour(&self, interface: u32, at: IpAddr) -> io::Result<Option<Vec<u8>>> {
        let mut body = vec![0; NEIGHBOUR];
        body[0] = family(at);
        body[4..8].copy_from_slice(&interface.to_ne_bytes());
        push_attribute(&mut body, NDA_DST, &octets(at));
        Ok(self.ask(RTM_GETNEIGH, &body)?.as_deref().and_then(parse_neighbour))
    }

    /// Asks; `None` if the kernel answers with an error.
    fn ask(&self, kind: u16, body: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(NLM_F_REQUEST.to_ne_bytes());
        // Neither a number nor a port: answers come in order, and the kernel knows whose the socket is.
        message.extend([0; 8]);
        message.extend(body);
        send(self.socket.as_raw_fd(), &message, MsgFlags::empty())?;
        let mut answer = vec![0; ANSWER];
        let length = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?;
        answer.truncate(length);
        Ok(parse_message(&answer).filter(|(kind, _)| *kind != NLMSG_ERROR).map(|(_, body)| body.to_vec()))
    }
}

fn open(groups: u32) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let opened = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    bind(opened.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(opened)
}

/// The kind and the body of the first message.
fn parse_message(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
    Some((u16_at(bytes, 4)?, bytes.get(HEADER..length)?))
}

fn parse_route(body: &[u8]) -> Option<Route> {
    let (family, kind) = (*body.first()?, *body.get(7)?);
    // Others lead to an error, by a rule of this machine.
    if !matches!(kind, RTN_UNICAST | RTN_LOCAL) {
        return None;
    }
    let mut route = Route { interface: 0, router: None, source: None };
    for (kind, value) in attributes(body.get(ROUTE..)?) {
        match kind {
            RTA_OIF => route.interface = u32_at(value, 0)?,
            RTA_GATEWAY => route.router = address(family, value),
            RTA_PREFSRC => route.source = address(family, value),
            // A router of the other family: its family, and its address.
            RTA_VIA => route.router = address(u8::try_from(u16_at(value, 0)?).ok()?, value.get(2..)?),
            _ => {}
        }
    }
    (route.interface != 0).then_some(route)
}

fn parse_interface(body: &[u8]) -> Option<Interface> {
    let (mut name, mut kind) = (None, None);
    for (attribute, value) in attributes(body.get(LINK..)?) {
        match attribute {
            IFLA_IFNAME => name = Some(text(value)),
            IFLA_LINKINFO => {
                kind = attributes(value).find(|(inner, _)| *inner == IFLA_INFO_KIND).map(|(_, kind)| text(kind));
            }
            _ => {}
        }
    }
    Some(Interface { name: name?, runs: u32_at(body, 8)? & IFF_RUNNING != 0, hardware: u16_at(body, 2)?, kind })
}

fn parse_neighbour(body: &[u8]) -> Option<Vec<u8>> {
    let known = attributes(body.get(NEIGHBOUR..)?).find(|(kind, _)| *kind == NDA_LLADDR);
    known.map(|(_, address)| address.to_vec()).filter(|address| address.iter().any(|byte| *byte != 0))
}

/// The attributes of a message: number and value. It ends at the first that is none.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        // The upper two bits are flags.
        let attribute = (u16_at(rest, 2)? & 0x3fff, rest.get(4..length)?);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(attribute)
    })
}

fn push_attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

fn address(family: u8, value: &[u8]) -> Option<IpAddr> {
    match family {
        AF_INET => Some(<[u8; 4]>::try_from(value).ok()?.into()),
        AF_INET6 => Some(<[u8; 16]>::try_from(value).ok()?.into()),
        _ => None,
    }
}

fn family(of: IpAddr) -> u8 {
    if of.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn octets(of: IpAddr) -> Vec<u8> {
    match of {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A body with these attributes.
    fn body(head: &[u8], length: usize, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = head.to_vec();
        body.resize(length, 0);
        for (kind, value) in attributes {
            push_attribute(&mut body, *kind, value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        body
    }

    #[test]
    fn a_route_is_an_interface_and_perhaps_a_router() {
        let (oif, source) = (7_u32.to_ne_bytes(), [192, 168, 1, 20]);
        let head = [AF_INET, 32, 0, 0, 254, 0, 0, RTN_UNICAST];
        let router = (RTA_GATEWAY, [192, 168, 1, 1].as_slice());
        let full = body(&head, ROUTE, &[(RTA_DST, &[203, 0, 113, 1]), router, (RTA_OIF, &oif), (RTA_PREFSRC, &source)]);
        let ip = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        let route = Route { interface: 7, router: ip("192.168.1.1"), source: ip("192.168.1.20") };
        assert_eq!(parse_route(&full), Some(route));
        let link = body(&head, ROUTE, &[(RTA_OIF, &oif)]);
        assert_eq!(parse_route(&link), Some(Route { interface: 7, router: None, source: None }));
        let mut via = u16::from(AF_INET6).to_ne_bytes().to_vec();
        via.extend("fe80::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
        let other = parse_route(&body(&head, ROUTE, &[(RTA_VIA, &via), (RTA_OIF, &oif)])).unwrap();
        assert_eq!(other.router, ip("fe80::1"));
        let prohibited = [AF_INET, 32, 0, 0, 254, 0, 0, 8];
        assert_eq!(parse_route(&body(&prohibited, ROUTE, &[(RTA_OIF, &oif)])), None);
        assert_eq!(parse_route(&body(&head, ROUTE, &[])), None, "it leads nowhere");
    }

    #[test]
    fn an_interface_has_a_name_and_may_be_virtual() {
        let kind = body(&[], 0, &[(IFLA_INFO_KIND, b"wireguard\0")]);
        // Family and padding, hardware, number, flags.
        let mut head = vec![0, 0];
        head.extend(65534_u16.to_ne_bytes());
        head.extend(3_u32.to_ne_bytes());
        head.extend(0x41_u32.to_ne_bytes());
        let full = body(&head, LINK, &[(IFLA_IFNAME, b"wg0\0"), (IFLA_LINKINFO | 0x8000, &kind)]);
        let expected = Interface { name: "wg0".into(), runs: true, hardware: 65534, kind: Some("wireguard".into()) };
        assert_eq!(parse_interface(&full), Some(expected));
        head[8] = 1;
        assert!(!parse_interface(&body(&head, LINK, &[(IFLA_IFNAME, b"wg0\0")])).unwrap().runs);
        assert_eq!(parse_interface(&body(&head, LINK, &[])), None);
    }

    #[test]
    fn a_neighbour_that_has_not_answered_has_no_address() {
        let mac = [2, 0, 0, 0, 0, 9];
        assert_eq!(parse_neighbour(&body(&[], NEIGHBOUR, &[(NDA_LLADDR, &mac)])), Some(mac.to_vec()));
        assert_eq!(parse_neighbour(&body(&[], NEIGHBOUR, &[(NDA_LLADDR, &[0; 6])])), None);
        assert_eq!(parse_neighbour(&body(&[], NEIGHBOUR, &[])), None);
    }

    #[test]
    fn the_kernel_knows_the_way_to_this_machine() {
        let questions = Questions::new().unwrap();
        let route = questions.route([127, 0, 0, 1].into()).unwrap().unwrap();
        assert_eq!((route.router, route.source), (None, Some([127, 0, 0, 1].into())));
        let interface = questions.interface(route.interface).unwrap().unwrap();
        assert_eq!((interface.name.as_str(), interface.runs, interface.hardware), ("lo", true, 772));
        assert_eq!(questions.neighbour(route.interface, [127, 0, 0, 1].into()).unwrap(), None);
        assert_eq!(questions.interface(u32::MAX / 2).unwrap(), None);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_wrong(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_message(&bytes);
            let _ = (parse_route(&bytes), parse_interface(&bytes), parse_neighbour(&bytes));
        }

        #[test]
        fn what_is_cut_short_is_read_as_far_as_it_goes(cut in 0_usize..64) {
            let oif = 7_u32.to_ne_bytes();
            let head = [AF_INET, 32, 0, 0, 254, 0, 0, RTN_UNICAST];
            let full = body(&head, ROUTE, &[(RTA_OIF, &oif), (RTA_GATEWAY, &[10, 0, 0, 1])]);
            let short = parse_route(&full[..cut.min(full.len())]);
            prop_assert!(short.is_none_or(|route| route.interface == 7));
        }
    }
}
