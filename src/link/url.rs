//! Where a device's link leads: the URL of a gateway, or of a broker that carries its frames.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// The port of a gateway whose URL names none.
pub const GATEWAY_PORT: u16 = 5223;
/// The ports of a broker whose URL names none: plain and over TLS (IANA `mqtt`, `secure-mqtt`).
const BROKER_PORTS: (u16, u16) = (1883, 8883);
/// Where a broker's topics of Bellwire begin, if the URL does not say.
const ROOT: &str = "bellwire";
/// The longest beginning of topics, in bytes.
const ROOT_MAX: usize = 64;

/// How frames travel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// In a WebSocket, to the gateway itself.
    WebSocket,
    /// In MQTT, through a broker. All topics begin with this.
    Mqtt(Root),
}

/// The kinds of links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkKind {
    /// A WebSocket.
    #[default]
    WebSocket,
    /// MQTT.
    Mqtt,
}

/// The URL of a gateway: `ws://host[:port]`, `wss://host[:port]`, `mqtt://host[:port][/root]` or
/// `mqtts://host[:port][/root]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    carrier: Carrier,
    encrypted: bool,
    host: String,
    port: u16,
}

impl Gateway {
    /// How frames travel.
    pub fn carrier(&self) -> &Carrier {
        &self.carrier
    }

    /// The kind of its links.
    pub fn kind(&self) -> LinkKind {
        match self.carrier {
            Carrier::WebSocket => LinkKind::WebSocket,
            Carrier::Mqtt(_) => LinkKind::Mqtt,
        }
    }

    /// Whether the link is encrypted.
    pub fn encrypted(&self) -> bool {
        self.encrypted
    }

    /// Its name or address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    fn scheme(&self) -> &'static str {
        match (&self.carrier, self.encrypted) {
            (Carrier::WebSocket, false) => "ws",
            (Carrier::WebSocket, true) => "wss",
            (Carrier::Mqtt(_), false) => "mqtt",
            (Carrier::Mqtt(_), true) => "mqtts",
        }
    }
}

impl FromStr for Gateway {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "a gateway is ws://HOST[:PORT], wss://HOST[:PORT], mqtt://HOST[:PORT][/ROOT] or \
                            mqtts://HOST[:PORT][/ROOT]";
        let (scheme, rest) = text.split_once("://").ok_or(FORM)?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (carrier, encrypted, port) = match scheme {
            "ws" | "wss" if path.is_empty() => (Carrier::WebSocket, scheme == "wss", GATEWAY_PORT),
            "mqtt" | "mqtts" => {
                let root = if path.is_empty() { Root::default() } else { path.parse().map_err(|_| FORM)? };
                let encrypted = scheme == "mqtts";
                (Carrier::Mqtt(root), encrypted, if encrypted { BROKER_PORTS.1 } else { BROKER_PORTS.0 })
            }
            _ => return Err(FORM),
        };
        // A colon inside the brackets of an IPv6 address starts no port.
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| FORM)?),
            _ => (authority, port),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-:_".contains(&byte);
        if host.is_empty() || !host.bytes().all(allowed) {
            return Err(FORM);
        }
        Ok(Self { carrier, encrypted, host: host.to_owned(), port })
    }
}

impl fmt::Display for Gateway {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(out, "{}://[{}]:{}", self.scheme(), self.host, self.port)?,
            false => write!(out, "{}://{}:{}", self.scheme(), self.host, self.port)?,
        }
        match &self.carrier {
            Carrier::WebSocket => Ok(()),
            Carrier::Mqtt(root) => write!(out, "/{root}"),
        }
    }
}

/// What the topics of one server, or of several that share their work, begin with: levels of letters,
/// digits, `-`, `_` and `.`, at most 64 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root(String);

impl Default for Root {
    fn default() -> Self {
        Self(ROOT.to_owned())
    }
}

impl FromStr for Root {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let level = |level: &str| !level.is_empty() && level.bytes().all(plain);
        match text.len() <= ROOT_MAX && text.split('/').all(level) {
            true => Ok(Self(text.to_owned())),
            false => Err("topics begin with levels of letters, digits, `-`, `_` and `.`, at most 64 bytes"),
        }
    }
}

impl fmt::Display for Root {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_have_a_scheme_a_host_and_perhaps_a_port() {
        for (text, full) in [
            ("ws://localhost", "ws://localhost:5223"),
            ("wss://push.example.org:443/", "wss://push.example.org:443"),
            ("ws://[::1]:99", "ws://[::1]:99"),
            ("wss://[2001:db8::1]", "wss://[2001:db8::1]:5223"),
            ("mqtt://localhost", "mqtt://localhost:1883/bellwire"),
            ("mqtts://broker/", "mqtts://broker:8883/bellwire"),
            ("mqtts://[::1]:99/push/eu-1", "mqtts://[::1]:99/push/eu-1"),
        ] {
            assert_eq!(text.parse::<Gateway>().unwrap().to_string(), full);
            assert_eq!(full.parse::<Gateway>().unwrap().to_string(), full, "it reads what it writes");
        }
        for bad in
            ["localhost", "http://x", "ws://", "ws://a:b", "ws://a b", "ws://a/path", "mqtt://a/+", "mqtt://a//b"]
        {
            assert!(bad.parse::<Gateway>().is_err(), "{bad}");
        }
        let long = format!("mqtt://a/{}", "x".repeat(ROOT_MAX + 1));
        assert!(long.parse::<Gateway>().is_err());
    }
}
