//! Which link is dialled next. Pure.
//!
//! A server may be reached over several links, and the device uses the kind that its configuration prefers.
//! One that does not lead to a session is followed by the next, so that a broker that does not know the device
//! yet, or a port that somebody blocks, costs one attempt. After a session it begins with the first again.

use crate::link::Gateway;
use crate::link::url::LinkKind;

/// The ways to the server, in the order in which they are tried.
#[derive(Clone, Debug)]
pub struct Routes {
    preferred: LinkKind,
    /// The gateway that is configured, or that the server named instead.
    gateway: Gateway,
    order: Vec<Gateway>,
    /// The one that was dialled last, if it has not led to a session.
    tried: Option<usize>,
    current: Gateway,
}

impl Routes {
    /// The way to this gateway.
    pub fn new(gateway: Gateway, preferred: LinkKind) -> Self {
        let order = vec![gateway.clone()];
        Self { preferred, current: gateway.clone(), gateway, order, tried: None }
    }

    /// The one to dial now.
    pub fn take_next(&mut self) -> Gateway {
        let place = self.tried.map_or(0, |tried| (tried + 1) % self.order.len());
        self.tried = Some(place);
        self.current = self.order[place].clone();
        self.current.clone()
    }

    /// The one that was dialled last.
    pub fn current(&self) -> &Gateway {
        &self.current
    }

    /// Whether there is one that is preferred to the one that was dialled last.
    pub fn better(&self) -> bool {
        self.order.first() != Some(&self.current)
    }

    /// It has led to a session.
    pub fn arrived(&mut self) {
        self.tried = None;
    }

    /// Another gateway is to be used, of which no other links are known. One that is not encrypted is
    /// refused where the present one is.
    pub fn use_gateway(&mut self, gateway: Gateway) -> bool {
        let safe = gateway.encrypted() || !self.gateway.encrypted();
        if safe {
            *self = Self::new(gateway, self.preferred);
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
        let news = order != self.order;
        if news {
            (self.order, self.tried) = (order, None);
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(preferred: LinkKind, offered: &[&str]) -> Routes {
        let mut routes = Routes::new("wss://a".parse().unwrap(), preferred);
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
        let mut plain = Routes::new("ws://localhost".parse().unwrap(), LinkKind::Mqtt);
        assert!(plain.offer(&["mqtt://localhost".into()]));
        assert!(!plain.offer(&["mqtt://localhost".into()]), "that is no news");
    }
}
