//! How a device opens a link to its gateway: address, TCP, TLS where the URL says so, WebSocket.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::TcpUserTimeout;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::TlsConnector;

use super::ws::{LinkError, Socket};
use crate::proto::frame::TO_DEVICE_MAX;
use crate::tls;

/// How long opening a link may take altogether.
const DIAL: Duration = Duration::from_secs(20);

/// How long the peer's system may leave unacknowledged what was sent to it; the kernel's own limit is a
/// quarter of an hour.
const UNANSWERED_MS: u32 = 30_000;

/// The port of a gateway whose URL names none.
pub const DEFAULT_PORT: u16 = 5223;

/// The URL of a gateway: `ws://host[:port]` or `wss://host[:port]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    encrypted: bool,
    host: String,
    port: u16,
}

impl Gateway {
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
}

impl FromStr for Gateway {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "a gateway is ws://HOST[:PORT] or wss://HOST[:PORT]";
        let (scheme, rest) = text.split_once("://").ok_or(FORM)?;
        let encrypted = match scheme {
            "ws" => false,
            "wss" => true,
            _ => return Err(FORM),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        // A colon inside the brackets of an IPv6 address starts no port.
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| FORM)?),
            _ => (authority, DEFAULT_PORT),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-:_".contains(&byte);
        if host.is_empty() || !host.bytes().all(allowed) {
            return Err(FORM);
        }
        Ok(Self { encrypted, host: host.to_owned(), port })
    }
}

impl fmt::Display for Gateway {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.encrypted { "wss" } else { "ws" };
        match self.host.contains(':') {
            true => write!(out, "{scheme}://[{}]:{}", self.host, self.port),
            false => write!(out, "{scheme}://{}:{}", self.host, self.port),
        }
    }
}

/// A byte stream of either kind.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// How a device opens links.
#[derive(Clone, Debug)]
pub struct Dialling {
    /// Trust for `wss://`.
    pub tls: Arc<ClientConfig>,
    /// Whether `ws://` to another machine is allowed.
    pub plain_text: bool,
    /// The address to dial from, where it matters (a bench with more sockets than one address
    /// has ports).
    pub from: Option<IpAddr>,
    /// Where the newest connection is noted.
    pub ends: Arc<Ends>,
}

/// The two ends of the newest connection, for whoever watches the network.
#[derive(Debug, Default)]
pub struct Ends {
    newest: Mutex<Option<Between>>,
}

/// The two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Between {
    /// The device's.
    pub here: SocketAddr,
    /// The gateway's, or that of what stands before it.
    pub there: SocketAddr,
}

impl Ends {
    /// Those of the newest connection, if there was one.
    pub fn get(&self) -> Option<Between> {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, stream: &TcpStream) {
        // A connection that is gone already has no ends.
        if let (Ok(here), Ok(there)) = (stream.local_addr(), stream.peer_addr()) {
            *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(Between { here, there });
        }
    }
}

/// Opens a link. The error says which step failed.
pub async fn dial(gateway: &Gateway, how: &Dialling) -> Result<Socket<Box<dyn Stream>>, LinkError> {
    match tokio::time::timeout(DIAL, open(gateway, how)).await {
        Ok(result) => result,
        Err(_) => Err(LinkError::Broken(format!("{gateway} did not answer within {} s", DIAL.as_secs()))),
    }
}

async fn open(gateway: &Gateway, how: &Dialling) -> Result<Socket<Box<dyn Stream>>, LinkError> {
    let stream = connect(gateway, how).await?;
    let stream: Box<dyn Stream> = match gateway.encrypted {
        true => Box::new(encrypt(gateway, how, stream).await?),
        false => Box::new(stream),
    };
    Socket::connect(stream, &gateway.to_string(), TO_DEVICE_MAX).await
}

async fn connect(gateway: &Gateway, how: &Dialling) -> Result<TcpStream, LinkError> {
    let broken = |error: std::io::Error| LinkError::Broken(format!("{gateway}: {error}"));
    let mut last = LinkError::Broken(format!("{gateway}: the name has no address"));
    for address in lookup_host((gateway.host.as_str(), gateway.port)).await.map_err(broken)? {
        if !gateway.encrypted && !how.plain_text && !address.ip().is_loopback() {
            return Err(LinkError::NotAGateway(format!(
                "{gateway} is unencrypted and not on this machine; use wss://, or set `allow-plain-text = true`"
            )));
        }
        match connect_to(address, how.from).await {
            Ok(stream) => {
                how.ends.note(&stream);
                return Ok(stream);
            }
            Err(error) => last = broken(error),
        }
    }
    Err(last)
}

async fn connect_to(address: std::net::SocketAddr, from: Option<IpAddr>) -> std::io::Result<TcpStream> {
    let socket = match address.is_ipv4() {
        true => tokio::net::TcpSocket::new_v4()?,
        false => tokio::net::TcpSocket::new_v6()?,
    };
    if let Some(from) = from {
        socket.bind((from, 0).into())?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    setsockopt(&stream, TcpUserTimeout, &UNANSWERED_MS)?;
    Ok(stream)
}

async fn encrypt(
    gateway: &Gateway,
    how: &Dialling,
    stream: TcpStream,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, LinkError> {
    let name = ServerName::try_from(gateway.host.clone())
        .map_err(|_| LinkError::NotAGateway(format!("{} is no name that a certificate can hold", gateway.host)))?;
    let connector = TlsConnector::from(Arc::clone(&how.tls));
    let broken = |error: std::io::Error| LinkError::Broken(format!("{gateway}: {}", tls::explain(&error)));
    connector.connect(name, stream).await.map_err(broken)
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
        ] {
            assert_eq!(text.parse::<Gateway>().unwrap().to_string(), full);
        }
        for bad in ["localhost", "http://x", "ws://", "ws://a:b", "ws://a b", "ws://a/path"] {
            assert!(bad.parse::<Gateway>().is_err(), "{bad}");
        }
    }
}
