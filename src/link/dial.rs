//! How a device opens a link to its gateway: address, TCP, TLS where the URL says so, and what carries
//! frames over it.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::TcpUserTimeout;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::TlsConnector;

#[cfg(feature = "mqtt")]
use super::mqtt;
use super::proxy::{self, Proxies, Proxy, TunnelError};
use super::url::{Carrier, Gateway};
use super::{Link, LinkError, Socket, Traffic};
use crate::daemon::lock;
use crate::proto::frame::{Frame, TO_DEVICE_MAX};
use crate::proto::keepalive::Profile;
use crate::proto::{DeviceId, Secret};
use crate::tls;

/// How long opening a link may take altogether.
const DIAL: Duration = Duration::from_secs(20);

/// How long the peer's system may leave unacknowledged what was sent to it; the kernel's own limit is a
/// quarter of an hour.
const UNANSWERED_MS: u32 = 30_000;

/// A byte stream of either kind.
pub trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for S {}

/// How a device opens links.
#[derive(Clone, Debug)]
pub struct Dialling {
    /// Trust for `wss://` and `mqtts://`.
    pub tls: Arc<ClientConfig>,
    /// Whether `ws://` and `mqtt://` to another machine is allowed.
    pub plain_text: bool,
    /// The address to dial from, where it matters (a bench with more sockets than one address
    /// has ports).
    pub from: Option<IpAddr>,
    /// What is between the device and its gateway.
    pub proxies: Proxies,
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
    /// Those of the newest connection are of no interest any more.
    pub fn forget(&self) {
        *lock(&self.newest) = None;
    }

    /// Those of the newest connection, if there was one.
    pub fn get(&self) -> Option<Between> {
        *lock(&self.newest)
    }

    fn note(&self, stream: &TcpStream) {
        // A connection that is gone already has no ends.
        if let (Ok(here), Ok(there)) = (stream.local_addr(), stream.peer_addr()) {
            *lock(&self.newest) = Some(Between { here, there });
        }
    }
}

/// Who opens a link.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The device.
    pub device: DeviceId,
    /// What proves it to a broker, which lets nobody in who does not.
    pub secret: Secret,
    /// The longest silence that it may ever use.
    pub longest_silence: Duration,
}

impl Caller {
    /// A device and what powers it.
    pub fn new(device: DeviceId, secret: Secret, profile: Profile) -> Self {
        Self { device, secret, longest_silence: profile.constants().longest_silence() }
    }
}

/// A link that a device has opened.
pub enum DeviceLink {
    /// To a gateway.
    WebSocket(Box<Socket<Box<dyn Stream>>>),
    /// Through a broker.
    #[cfg(feature = "mqtt")]
    Mqtt(Box<mqtt::Socket>),
}

impl DeviceLink {
    /// The longest silence that who is in between allows, if it says.
    pub fn longest_silence(&self) -> Option<Duration> {
        match self {
            Self::WebSocket(_) => None,
            #[cfg(feature = "mqtt")]
            Self::Mqtt(socket) => socket.longest_silence(),
        }
    }
}

impl Link for DeviceLink {
    fn queue(&mut self, frame: &impl Frame) -> Result<(), LinkError> {
        match self {
            Self::WebSocket(socket) => socket.queue(frame),
            #[cfg(feature = "mqtt")]
            Self::Mqtt(socket) => socket.queue(frame),
        }
    }

    async fn next<F: Frame>(&mut self) -> Result<F, LinkError> {
        match self {
            Self::WebSocket(socket) => socket.next().await,
            #[cfg(feature = "mqtt")]
            Self::Mqtt(socket) => socket.next().await,
        }
    }

    async fn close(self) -> Result<(), LinkError> {
        match self {
            Self::WebSocket(socket) => socket.close().await,
            #[cfg(feature = "mqtt")]
            Self::Mqtt(socket) => socket.close().await,
        }
    }

    fn traffic(&self) -> Traffic {
        match self {
            Self::WebSocket(socket) => socket.traffic(),
            #[cfg(feature = "mqtt")]
            Self::Mqtt(socket) => socket.traffic(),
        }
    }
}

/// Opens a link. The error says which step failed.
pub async fn dial(gateway: &Gateway, how: &Dialling, caller: &Caller) -> Result<DeviceLink, LinkError> {
    match tokio::time::timeout(DIAL, open(gateway, how, caller)).await {
        Ok(result) => result,
        Err(_) => {
            let who = match how.proxies.of(gateway) {
                Some(proxy) => format!("{gateway}, by way of the proxy {proxy},"),
                None => gateway.to_string(),
            };
            Err(LinkError::Unreachable(format!("{who} did not answer within {} s", DIAL.as_secs())))
        }
    }
}

async fn open(gateway: &Gateway, how: &Dialling, caller: &Caller) -> Result<DeviceLink, LinkError> {
    match gateway.carrier() {
        Carrier::WebSocket => {
            let stream = stream(gateway, how).await?;
            let socket = Socket::connect(stream, &gateway.to_string(), TO_DEVICE_MAX).await?;
            Ok(DeviceLink::WebSocket(Box::new(socket)))
        }
        #[cfg(feature = "mqtt")]
        Carrier::Mqtt(root) => {
            let stream = stream(gateway, how).await?;
            Ok(DeviceLink::Mqtt(Box::new(mqtt::Socket::connect(stream, gateway, root, caller).await?)))
        }
        #[cfg(not(feature = "mqtt"))]
        Carrier::Mqtt(_) => {
            let _ = caller;
            Err(LinkError::NotAGateway(format!("{gateway}: this program was built without MQTT")))
        }
    }
}

/// Opens a byte stream to where the URL leads, encrypted if it says so.
pub async fn stream(gateway: &Gateway, how: &Dialling) -> Result<Box<dyn Stream>, LinkError> {
    let stream = match how.proxies.of(gateway) {
        Some(proxy) => connect_through(proxy, gateway, how).await?,
        None => connect(gateway, how).await?,
    };
    Ok(match gateway.encrypted() {
        true => Box::new(encrypt(gateway, how, stream).await?),
        false => Box::new(stream),
    })
}

async fn connect(gateway: &Gateway, how: &Dialling) -> Result<TcpStream, LinkError> {
    let allowed = |address: IpAddr| gateway.encrypted() || how.plain_text || address.is_loopback();
    reach(gateway, (gateway.host(), gateway.port()), how, allowed).await
}

/// A tunnel through the proxy, which resolves the gateway's name.
async fn connect_through(proxy: &Proxy, gateway: &Gateway, how: &Dialling) -> Result<TcpStream, LinkError> {
    // Which of the gateway's ports is meant does not matter if nobody is reached there.
    let unreached = |error: LinkError| match error {
        LinkError::Unreachable(why) => LinkError::Broken(why),
        other @ (LinkError::Closed | LinkError::Frame(_) | LinkError::Broken(_) | LinkError::NotAGateway(_)) => other,
    };
    let shown = format!("the proxy {proxy}");
    let mut stream = reach(shown, proxy.address(), how, |_| true).await.map_err(unreached)?;
    match proxy::tunnel(&mut stream, proxy, gateway).await {
        Ok(()) => Ok(stream),
        // Proxies say no to ports that are not usual.
        Err(error @ TunnelError::Refused { .. }) => Err(LinkError::Unreachable(error.to_string())),
        Err(error @ (TunnelError::Unauthorized(..) | TunnelError::NoProxy(_) | TunnelError::Broken(..))) => {
            Err(LinkError::Broken(error.to_string()))
        }
    }
}

/// Connects to the first address of a name that answers; none is tried that is not allowed.
async fn reach(
    shown: impl std::fmt::Display,
    name: (&str, u16),
    how: &Dialling,
    allowed: impl Fn(IpAddr) -> bool,
) -> Result<TcpStream, LinkError> {
    let broken = |error: std::io::Error| LinkError::Broken(format!("{shown}: {error}"));
    let mut last = LinkError::Broken(format!("{shown}: the name has no address"));
    for address in lookup_host(name).await.map_err(broken)? {
        if !allowed(address.ip()) {
            return Err(LinkError::NotAGateway(format!(
                "{shown} is unencrypted and not on this machine; use encryption, or set `allow-plain-text = true`"
            )));
        }
        match connect_to(address, how.from).await {
            Ok(stream) => {
                how.ends.note(&stream);
                return Ok(stream);
            }
            Err(error) => last = LinkError::Unreachable(format!("{shown}: {error}")),
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
    let name = ServerName::try_from(gateway.host().to_owned())
        .map_err(|_| LinkError::NotAGateway(format!("{} is no name that a certificate can hold", gateway.host())))?;
    let connector = TlsConnector::from(Arc::clone(&how.tls));
    let broken = |error: std::io::Error| LinkError::Broken(format!("{gateway}: {}", tls::explain(&error)));
    connector.connect(name, stream).await.map_err(broken)
}
