//! Where this server is reached by those who send to Web Push endpoints: scheme, host and port.
//!
//! Endpoints begin with it, and senders sign it (`aud`, RFC 8292 section 2). Two ways of writing the
//! same origin are one: letters of the host are small, and the default port is left out.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use hyper::Uri;
use serde::Deserialize;

/// The longest origin: endpoints have at most 1000 bytes, and DNS names at most 253.
const LONGEST: usize = 300;

/// Scheme, host and port.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Origin(String);

/// A text that is no origin of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an origin is https://HOST[:PORT], with a name or an IPv4 address for HOST and nothing after it")]
pub struct NoOrigin;

impl Origin {
    /// That of a listener, if others can tell it: not of all addresses together, and not of an IPv6
    /// address, which senders refuse.
    pub fn of_listener(address: SocketAddr, encrypted: bool) -> Option<Self> {
        let IpAddr::V4(ip) = address.ip() else { return None };
        let scheme = if encrypted { "https" } else { "http" };
        (!ip.is_unspecified()).then(|| format!("{scheme}://{ip}:{}", address.port()).parse().ok())?
    }

    /// The origin of a URL, if it has one.
    pub fn of_url(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let (scheme, host) = (uri.scheme_str()?.to_ascii_lowercase(), uri.host()?.to_ascii_lowercase());
        let usual = match scheme.as_str() {
            "https" => 443,
            "http" => 80,
            _ => return None,
        };
        let names_user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
        if host.is_empty() || host.starts_with('[') || names_user || url.len() > LONGEST {
            return None;
        }
        let port = uri.port_u16().filter(|port| *port != usual);
        Some(Self(match port {
            Some(port) => format!("{scheme}://{host}:{port}"),
            None => format!("{scheme}://{host}"),
        }))
    }
}

impl FromStr for Origin {
    type Err = NoOrigin;

    fn from_str(text: &str) -> Result<Self, NoOrigin> {
        let after_scheme = text.split_once("://").ok_or(NoOrigin)?.1;
        let host_only = !after_scheme.trim_end_matches('/').contains(['/', '?', '#']);
        Self::of_url(text).filter(|_| host_only).ok_or(NoOrigin)
    }
}

impl TryFrom<String> for Origin {
    type Error = NoOrigin;

    fn try_from(text: String) -> Result<Self, NoOrigin> {
        text.parse()
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_origin_is_written_in_many_ways() {
        for (text, origin) in [
            ("https://Push.Example.ORG:443/", "https://push.example.org"),
            ("HTTPS://push.example.org", "https://push.example.org"),
            ("http://push.example.org:80", "http://push.example.org"),
            ("https://push.example.org:8443", "https://push.example.org:8443"),
            ("http://127.0.0.1:8090", "http://127.0.0.1:8090"),
        ] {
            assert_eq!(text.parse::<Origin>().unwrap().to_string(), origin);
        }
        for bad in [
            "",
            "push.example.org",
            "ftp://push.example.org",
            "https://",
            "https://a@push.example.org",
            "https://[::1]",
            "https://push.example.org/wp",
            "https://push.example.org?a",
            "https://a b",
        ] {
            assert_eq!(bad.parse::<Origin>(), Err(NoOrigin), "{bad}");
        }
        let of_url = |url: &str| Origin::of_url(url).map(|origin| origin.to_string());
        assert_eq!(of_url("https://push.example.org:443/wp/x?y=z").as_deref(), Some("https://push.example.org"));
    }

    #[test]
    fn a_listener_has_an_origin_if_others_can_tell_it() {
        let of = |address: &str| Origin::of_listener(address.parse().unwrap(), true).map(|origin| origin.to_string());
        assert_eq!(of("127.0.0.1:8090").as_deref(), Some("https://127.0.0.1:8090"));
        assert_eq!(of("192.0.2.1:443").as_deref(), Some("https://192.0.2.1"));
        assert_eq!((of("0.0.0.0:8090"), of("[::1]:8090")), (None, None));
    }
}
