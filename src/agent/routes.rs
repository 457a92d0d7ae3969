//! Which link is dialled next. Pure.
//!
//! A server may be reached over several links, and the device uses the kind that its configuration prefers.
//! One that does not lead to a session is followed by the next, so that a broker that does not know the device
//! yet, or a port that somebody blocks, costs one attempt. After a session it begins with the first again.
//!
//! Many networks let nothing out but to the port of the web. Where nobody is reached at a gateway's usual port,
//! that one is tried next, and whichever of the two led to a session comes first from then on.
//!
//! A gateway that a server names has to prove itself: until it has led to a session, the one that named it is
//! tried in turn with it, so that a mistake of an operator can be taken back by the operator.

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
    /// The one that was used before the present one was named, which has not led to a session yet. It is the
    /// last way.
    earlier: Option<Gateway>,
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
        Self { preferred, fallback_port, gateway, earlier: None, order, tried: None, unreachable: false, current }
    }

    /// The gateway whose server the device is at: the configured one, or the one that it named.
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
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

    /// It has led to a session. Returns the gateway that is to be used from now on instead of the configured
    /// one, if that is news.
    pub fn arrived(&mut self) -> Option<&Gateway> {
        let tried = self.tried.take()?;
        let way = &mut self.order[tried.place];
        if tried.second {
            way.second = way.second.take().map(|second| std::mem::replace(&mut way.first, second));
        }
        let earlier = self.earlier.take()?;
        if way.named == earlier {
            // It names no other any more.
            self.order.drain(..tried.place);
            self.gateway = earlier;
            return None;
        }
        self.order.pop();
        Some(&self.gateway)
    }

    /// Another gateway is to be used, of which no other links are known. One that is not encrypted is
    /// refused where the one that was used before is.
    pub fn use_gateway(&mut self, gateway: Gateway) -> bool {
        let earlier = self.earlier.as_ref().unwrap_or(&self.gateway).clone();
        if earlier.encrypted() && !gateway.encrypted() {
            return false;
        }
        *self = Self::new(gateway, self.preferred, self.fallback_port);
        if earlier != self.gateway {
            self.order.push(Way::new(earlier.clone(), self.fallback_port));
            self.earlier = Some(earlier);
        }
        true
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
        assert_eq!(dialled(&mut encrypted, 2), [C, A]);
        let mut plain = Routes::new("ws://localhost".parse().unwrap(), LinkKind::Mqtt, Some(443));
        assert!(plain.offer(&["mqtt://localhost".into()]));
        assert!(!plain.offer(&["mqtt://localhost".into()]), "that is no news");
    }

    const C: &str = "wss://c:5223";

    #[test]
    fn who_named_a_gateway_is_tried_too_until_that_one_has_led_to_a_session() {
        let mut routes = routes(LinkKind::WebSocket, &["mqtts://b"]);
        assert!(routes.use_gateway("wss://c".parse().unwrap()));
        assert_eq!(dialled(&mut routes, 2), [C, A]);
        assert!(routes.use_gateway("wss://c".parse().unwrap()), "it still names it");
        assert_eq!(dialled(&mut routes, 1), [C]);
        assert_eq!(routes.arrived().map(Gateway::to_string).as_deref(), Some(C));
        assert_eq!(dialled(&mut routes, 3), [C, C, C]);
        assert!(routes.arrived().is_none(), "that is no news");
        assert_eq!(routes.gateway().to_string(), C);
    }

    #[test]
    fn a_gateway_that_was_named_by_mistake_is_left_when_it_is_named_no_more() {
        let mut routes = routes(LinkKind::WebSocket, &[]);
        for named in ["wss://b", "wss://c"] {
            assert!(routes.use_gateway(named.parse().unwrap()), "the second is named by the first");
        }
        assert_eq!(unreached(&mut routes, 3), [C, "wss://c:443", A]);
        assert!(routes.arrived().is_none());
        assert_eq!((dialled(&mut routes, 2), routes.gateway().to_string()), (vec![A.to_owned(); 2], A.to_owned()));
        assert!(routes.use_gateway("wss://c".parse().unwrap()) && routes.use_gateway("wss://a".parse().unwrap()));
        assert_eq!(dialled(&mut routes, 2), [A, A], "it names itself");
        let mut plain = Routes::new("ws://a".parse().unwrap(), LinkKind::WebSocket, None);
        assert!(plain.use_gateway("wss://b".parse().unwrap()) && plain.use_gateway("ws://c".parse().unwrap()));
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
