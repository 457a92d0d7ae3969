//! Which link is dialled next. Pure.
//!
//! A server may be reached over several links, and the device uses the kind that its configuration prefers.
//! One that does not lead to a session is followed by the next, so that a broker that does not know the device
//! yet, or a port that somebody blocks, costs one attempt. After a session it begins with the first again.
//!
//! Many networks let nothing out but to the port of the web. Where nobody is reached at a gateway's usual port,
//! that one is tried next, and whichever of the two led to a session comes first from then on.

use crate::link::Gateway;
use crate::link::url::{GATEWAY_PORT, LinkKind};

/// The ways to the server, in the order in which they are tried.
#[derive(Clone, Debug)]
pub struct Routes {
    preferred: LinkKind,
    /// Of a gateway at its usual port, if there is one.
    fallback_port: Option<u16>,
    /// The gateway that is configured, or that the server named instead.
    gateway: Gateway,
    order: Vec<Way>,
    /// The one that was dialled last, if it has not led to a session.
    tried: Option<Try>,
    /// Nobody was reached there.
    unreachable: bool,
    current: Gateway,
}

/// A link, and its other port.
#[derive(Clone, Debug)]
struct Way {
    /// As it was configured or offered.
    named: Gateway,
    first: Gateway,
    second: Option<Gateway>,
}

#[derive(Clone, Copy, Debug)]
struct Try {
    place: usize,
    second: bool,
}

impl Way {
    fn new(named: Gateway, fallback_port: Option<u16>) -> Self {
        let usual = named.encrypted() && named.kind() == LinkKind::WebSocket && named.port() == GATEWAY_PORT;
        let second = fallback_port.filter(|_| usual).map(|port| named.at(port));
        Self { first: named.clone(), named, second }
    }
}

impl Routes {
    /// The way to this gateway.
    pub fn new(gateway: Gateway, preferred: LinkKind, fallback_port: Option<u16>) -> Self {
        let order = vec![Way::new(gateway.clone(), fallback_port)];
        let current = gateway.clone();
        Self { preferred, fallback_port, gateway, order, tried: None, unreachable: false, current }
    }

    /// The one to dial now.
    pub fn take_next(&mut self) -> Gateway {
        let next = match self.tried {
            None => Try { place: 0, second: false },
            Some(Try { place, second: false }) if self.unreachable && self.order[place].second.is_some() => {
                Try { place, second: true }
            }
            Some(Try { place, .. }) => Try { place: (place + 1) % self.order.len(), second: false },
        };
        let way = &self.order[next.place];
        self.current = way.second.as_ref().filter(|_| next.second).unwrap_or(&way.first).clone();
        (self.tried, self.unreachable) = (Some(next), false);
        self.current.clone()
    }

    /// The one that was dialled last.
    pub fn current(&self) -> &Gateway {
        &self.current
    }

    /// Whether there is one that is preferred to the one that was dialled last.
    pub fn better(&self) -> bool {
        self.order.first().is_some_and(|way| way.first != self.current && way.second.as_ref() != Some(&self.current))
    }

    /// Nobody was reached there.
    pub fn unreachable(&mut self) {
        self.unreachable = true;
    }

    /// It has led to a session.
    pub fn arrived(&mut self) {
        if let Some(Try { place, second: true }) = self.tried.take() {
            let way = &mut self.order[place];
            way.second = way.second.take().map(|second| std::mem::replace(&mut way.first, second));
        }
    }

    /// Another gateway is to be used, of which no other links are known. One that is not encrypted is
    /// refused where the present one is.
    pub fn use_gateway(&mut self, gateway: Gateway) -> bool {
        let safe = gateway.encrypted() || !self.gateway.encrypted();
        if safe {
            *self = Self::new(gateway, self.preferred, self.fallback_port);
        }
        safe
    }

    /// The server may be reached over these links too. What is no link, or less safe than the gateway, is left
    /// out. Returns whether that is news.
    pub fn offer(&mut self, links: &[String]) -> bool {
        let offered = links.iter().filter_map(|link| link.parse().ok());
        let safe = offered.filter(|link: &Gateway| link.encrypted() || !self.gateway.encrypted());
        let mut order = vec![self.gateway.clone()];
        for link in safe {
            if !order.contains(&link) {
                order.push(link);
            }
        }
        order.sort_by_key(|link| link.kind() != self.preferred);
        let news = !order.iter().eq(self.order.iter().map(|way| &way.named));
        if news {
            self.order = order.into_iter().map(|link| Way::new(link, self.fallback_port)).collect();
            self.tried = None;
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(preferred: LinkKind, offered: &[&str]) -> Routes {
        let mut routes = Routes::new("wss://a".parse().unwrap(), preferred, Some(443));
        let offered: Vec<String> = offered.iter().map(|link| (*link).to_owned()).collect();
        routes.offer(&offered);
        routes
    }

    fn dialled(routes: &mut Routes, times: usize) -> Vec<String> {
        (0..times).map(|_| routes.take_next().to_string()).collect()
    }

    const A: &str = "wss://a:5223";
    const B: &str = "mqtts://b:8883/bellwire";

    #[test]
    fn what_is_preferred_comes_first_and_what_fails_is_followed_by_the_next() {
        let mut routes = routes(LinkKind::Mqtt, &["mqtts://b"]);
        assert_eq!(dialled(&mut routes, 3), [B, A, B]);
        routes.arrived();
        assert_eq!(routes.current().to_string(), B);
        assert!(!routes.better());
        assert_eq!(dialled(&mut routes, 2), [B, A]);
        routes.arrived();
        assert!(routes.better());
        assert_eq!(dialled(&mut routes, 1), [B], "it begins anew");
    }

    #[test]
    fn a_gateway_alone_is_dialled_for_ever() {
        assert_eq!(dialled(&mut routes(LinkKind::Mqtt, &[]), 3), [A, A, A]);
        assert_eq!(dialled(&mut routes(LinkKind::WebSocket, &["mqtts://b", A, "nonsense"]), 3), [A, B, A]);
    }

    #[test]
    fn nothing_less_safe_than_the_gateway_is_dialled() {
        let mut encrypted = routes(LinkKind::Mqtt, &["mqtt://b", "ws://c"]);
        assert_eq!(dialled(&mut encrypted, 2), [A, A]);
        assert!(!encrypted.use_gateway("ws://c".parse().unwrap()));
        assert!(encrypted.use_gateway("wss://c".parse().unwrap()));
        assert_eq!(dialled(&mut encrypted, 2), ["wss://c:5223", "wss://c:5223"]);
        let mut plain = Routes::new("ws://localhost".parse().unwrap(), LinkKind::Mqtt, Some(443));
        assert!(plain.offer(&["mqtt://localhost".into()]));
        assert!(!plain.offer(&["mqtt://localhost".into()]), "that is no news");
    }

    /// As [`dialled`], where nobody is reached.
    fn unreached(routes: &mut Routes, times: usize) -> Vec<String> {
        let next = |_| {
            let next = routes.take_next().to_string();
            routes.unreachable();
            next
        };
        (0..times).map(next).collect()
    }

    const WEB: &str = "wss://a:443";

    #[test]
    fn where_nobody_is_reached_the_port_of_the_web_is_next() {
        let mut routes = routes(LinkKind::Mqtt, &["mqtts://b"]);
        assert_eq!(unreached(&mut routes, 5), [B, A, WEB, B, A]);
        // What answers, whatever it says, is no blocked port.
        routes.tried = None;
        assert_eq!(dialled(&mut routes, 4), [B, A, B, A]);
    }

    #[test]
    fn the_port_that_led_to_a_session_comes_first_from_then_on() {
        let mut routes = routes(LinkKind::WebSocket, &[]);
        assert_eq!(unreached(&mut routes, 4), [A, WEB, A, WEB]);
        routes.arrived();
        assert_eq!(unreached(&mut routes, 3), [WEB, A, WEB]);
        assert_eq!(dialled(&mut routes, 2), [A, WEB], "the other one stays possible");
        routes.arrived();
        assert_eq!(dialled(&mut routes, 1), [WEB]);
        routes.offer(&["mqtts://b".into()]);
        assert_eq!(dialled(&mut routes, 1), [A], "what is news begins anew");
    }

    #[test]
    fn only_an_encrypted_gateway_at_its_usual_port_has_another() {
        for alone in ["wss://a:8443", "ws://a", "mqtts://a", "mqtts://a:5223"] {
            let mut routes = Routes::new(alone.parse().unwrap(), LinkKind::WebSocket, Some(443));
            let dialled = unreached(&mut routes, 2);
            assert_eq!(dialled[0], dialled[1]);
        }
        let mut routes = Routes::new("wss://a".parse().unwrap(), LinkKind::WebSocket, None);
        assert_eq!(unreached(&mut routes, 2), [A, A]);
    }
}
