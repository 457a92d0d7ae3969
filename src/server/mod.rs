//! The server half: sender APIs in, a durable store between, devices out.
//!
//! * [`api`]: all of HTTP: routes, health, the admin API, the OpenAPI document.
//! * [`doors`]: the sender APIs, one file each.
//! * [`store`]: the only queue; SQL lives there.
//! * [`regid`]: issuing and opening regIds and endpoints; [`origin`]: what endpoints begin with.
//! * [`gateway`]: devices and their sessions, over sockets of their own or a `broker`; [`registry`]: which of
//!   them are here.
//! * [`rates`]: how fast apps may send and devices be sent to.
//! * [`timekeeper`]: what is due; [`withdraw`]: what senders take back; [`receipts`]: what they are told.
//! * [`waiters`]: who waits to be told by Web Push.
//! * [`regions`]: the other servers.
//! * [`upkeep`]: what is done from time to time; [`supervised`]: what systemd is told.
//! * [`reload`]: another configuration while it runs.
//! * [`manage`]: what an operator may do; [`admin`]: the command line; [`backup`]: copies of the store;
//!   [`check`]: whether it would start.
//! * [`metrics`]: what is counted.
//!
//! The order that loses nothing: a door commits to the store, then wakes the session; a session is
//! entered in the registry, then reads the store. Whichever comes first, one of them sees the other.

pub mod admin;
pub mod api;
pub mod backup;
#[cfg(feature = "mqtt")]
pub mod broker;
pub mod check;
pub mod config;
pub mod doors;
pub mod gateway;
pub mod manage;
pub mod metrics;
pub mod origin;
pub mod rates;
pub mod receipts;
pub mod regid;
pub mod regions;
pub mod registry;
pub mod reload;
#[cfg(test)]
mod samples;
pub mod store;
pub mod supervised;
pub mod timekeeper;
pub mod turns;
pub mod upkeep;
pub mod waiters;
pub mod withdraw;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use hyper_util::rt::TokioTimer;
use listenfd::ListenFd;
use subtle::ConstantTimeEq;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tracing::{error, info};

use crate::daemon::{Exit, Fatal, Reload, Stop};
use crate::db::DbError;
use crate::http::HttpClient;
use crate::proto::frame::Refusal;
use crate::proto::{AppId, Channel, DeviceId, RegId};
use crate::world::Clock;
use crate::{supervisor, tls};

use config::ServerConfig;
use doors::webpush::vapid::Verifier;
use gateway::Admission;
use metrics::Metrics;
use origin::Origin;
use rates::Rates;
use regid::KeyRing;
use regions::Regions;
use registry::Registry;
use reload::{Certificates, Settings};
use store::{Over, Registered, Store};
use turns::Turns;
use waiters::Waiters;

/// How long requests and sessions may take to end once the stop has come.
const DRAIN: Duration = Duration::from_secs(10);
/// How long a client may take to send a request's headers.
const HEADERS: Duration = Duration::from_secs(10);

/// What doors and gateway share.
pub struct Server {
    /// The configuration.
    pub config: ServerConfig,
    /// The store.
    pub store: Store,
    /// The connected devices.
    pub registry: Registry,
    /// The other regions.
    pub regions: Regions,
    /// How application servers are reached.
    pub callbacks: HttpClient,
    /// Messages have come that will be due at some time.
    pub accepted: Notify,
    /// How fast apps may send and devices be sent to.
    pub rates: Rates,
    /// How many requests of each app are at the store.
    pub turns: Turns,
    /// Who waits for receipts of Web Push.
    pub waiters: Arc<Waiters>,
    /// How many devices greet in a second.
    pub admission: Admission,
    /// The clock of the sessions.
    pub clock: Clock,
    /// Who has signed for Web Push messages.
    pub verifier: Verifier,
    /// What is counted.
    pub metrics: Metrics,
    keys: RwLock<Arc<KeyRing>>,
    stopping: AtomicBool,
}

impl Server {
    /// Takes the store of the configuration into service.
    pub async fn open(config: ServerConfig) -> Result<Self, Fatal> {
        let client = |ca: &Option<PathBuf>| {
            tls::client(ca.as_deref()).map(|trust| HttpClient::new(&trust)).map_err(Fatal::of(Exit::Config))
        };
        let mut store = Store::open(&config.database(), config.limits)?;
        store.begin().await?;
        let keys = store.key_ring(config.region).await?;
        Ok(Self {
            store,
            registry: Registry::new(),
            regions: Regions::new(client(&config.regions_ca)?, config.regions.clone()),
            callbacks: client(&config.callbacks_ca)?,
            accepted: Notify::new(),
            rates: Rates::new(&config.limits),
            turns: Turns::new(config.limits.app_requests),
            waiters: Arc::new(Waiters::new(config.limits.receipt_waiters)),
            admission: Admission::new(config.gateway.handshakes_per_second),
            clock: Clock::start(),
            verifier: Verifier::default(),
            metrics: Metrics::new(api::paths()),
            stopping: AtomicBool::new(false),
            keys: RwLock::new(Arc::new(keys)),
            config,
        })
    }

    /// The keys known now.
    pub fn keys(&self) -> Arc<KeyRing> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the stop has come.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Registers an app or a Web Push channel on a device, or finds it registered.
    pub async fn register(
        &self,
        device: DeviceId,
        app: &AppId,
        over: Over,
    ) -> Result<Result<Issued, Refusal>, DbError> {
        let channel = Channel::of(app);
        let origin = self.config.web_push.origin.as_ref();
        if channel.is_some() && origin.is_none() {
            return Ok(Err(Refusal::NoWebPush));
        }
        let (generation, newest_key) = match self.store.register(device, app.clone(), over).await? {
            Registered::As { generation, newest_key } => (generation, newest_key),
            Registered::UnknownApp => return Ok(Err(Refusal::UnknownApp)),
            Registered::TooMany => return Ok(Err(Refusal::TooMany)),
        };
        if self.keys().newest() != newest_key {
            let ring = Arc::new(self.store.key_ring(self.config.region).await?);
            *self.keys.write().unwrap_or_else(PoisonError::into_inner) = ring;
        }
        let keys = self.keys();
        let endpoint = channel.zip(origin).map(|(channel, origin)| {
            format!("{origin}{}{}", doors::webpush::ENDPOINTS, keys.issue_endpoint(device, &channel, generation))
        });
        Ok(Ok(Issued { reg_id: keys.issue(device, app, generation), endpoint }))
    }
}

/// What a registration is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// Its regId, sealed with the newest key of the store.
    pub reg_id: RegId,
    /// Where application servers send to it, if it is a Web Push channel.
    pub endpoint: Option<String>,
}

/// Sockets on which a server is to listen.
pub struct Listeners {
    /// For the API.
    pub api: TcpListener,
    /// For devices.
    pub gateway: TcpListener,
    /// For operators, if they have one of their own.
    pub admin: Option<TcpListener>,
}

impl Listeners {
    /// Those that a supervisor has opened for the addresses of the configuration, and the others
    /// bound. One that it has opened for another address is a mistake in one of the two.
    pub fn bind(config: &ServerConfig) -> Result<Self, Fatal> {
        let mut passed = Passed::take()?;
        let admin = config.admin.listen.map(|address| passed.or_bind("the admin API", address)).transpose()?;
        let all = Self {
            api: passed.or_bind("the API", config.api.listen)?,
            gateway: passed.or_bind("the gateway", config.gateway.listen)?,
            admin,
        };
        match passed.0.keys().next() {
            Some(address) => Err(Fatal::new(
                Exit::Config,
                format!(
                    "the socket unit listens on {address}, which is no `listen` of the configuration: the API is on \
                     {}, the gateway on {}",
                    config.api.listen, config.gateway.listen
                ),
            )),
            None => Ok(all),
        }
    }
}

/// The sockets that a supervisor has opened: sd_listen_fds(3).
struct Passed(BTreeMap<SocketAddr, TcpListener>);

impl Passed {
    fn take() -> Result<Self, Fatal> {
        let mut sockets = ListenFd::from_env();
        let listeners = (0..sockets.len()).filter_map(|place| sockets.take_tcp_listener(place).transpose());
        let with_address = |listener: TcpListener| Ok((listener.local_addr()?, listener));
        let all: std::io::Result<_> = listeners.map(|listener| listener.and_then(with_address)).collect();
        let cannot = |error| Fatal::new(Exit::Config, format!("a socket of the socket unit cannot be used: {error}"));
        all.map(Self).map_err(cannot)
    }

    fn or_bind(&mut self, what: &str, address: SocketAddr) -> Result<TcpListener, Fatal> {
        let cannot = |error| Fatal::new(Exit::Unavailable, format!("{what} cannot listen on {address}: {error}"));
        let listener = self.0.remove(&address).map_or_else(|| TcpListener::bind(address), Ok).map_err(cannot)?;
        listener.set_nonblocking(true).map_err(cannot)?;
        Ok(listener)
    }
}

/// Serves until the stop comes, then ends requests and sessions in order.
pub async fn run(
    settings: Settings,
    listeners: Listeners,
    mut stop: Stop,
    reload: Reload<Settings>,
) -> Result<(), Fatal> {
    let io = |error: std::io::Error| Fatal::new(Exit::IoErr, error);
    let Settings { mut config, certificates } = settings;
    let started = Arc::new(config.clone());
    let Certificates { api: api_tls, gateway: gateway_tls, admin: admin_tls } = certificates.clone();
    let api_address = listeners.api.local_addr().map_err(io)?;
    config.web_push.origin = config.web_push.origin.or_else(|| Origin::of_listener(api_address, api_tls.is_some()));
    let server = Arc::new(Server::open(config).await?);
    info!(
        region = %server.config.region,
        api = %url("http", api_tls.is_some(), &listeners.api),
        gateway = %url("ws", gateway_tls.is_some(), &listeners.gateway),
        admin = listeners.admin.as_ref().map(|listener| display(url("http", admin_tls.is_some(), listener))),
        "ready"
    );
    let gateway = tokio::net::TcpListener::from_std(listeners.gateway).map_err(io)?;
    let (public, operators) = api::routers(&server);
    let mut api = Web::start(public, listeners.api, api_tls);
    // Kept to the end: who asks during the drain is told so.
    let _admin = operators.zip(listeners.admin).map(|(router, listener)| Web::start(router, listener, admin_tls));
    let mut devices = tokio::spawn(gateway::serve(Arc::clone(&server), gateway, gateway_tls, stop.clone()));
    #[cfg(feature = "mqtt")]
    let broker = broker::Broker::start(&server)?;
    #[cfg(not(feature = "mqtt"))]
    if let Some(broker) = &server.config.mqtt.broker {
        return Err(Fatal::new(
            Exit::Config,
            format!("`[mqtt] broker` is {broker}, but this program was built without MQTT"),
        ));
    }
    tokio::spawn(timekeeper::run(Arc::clone(&server)));
    tokio::spawn(receipts::run(Arc::clone(&server), stop.clone()));
    tokio::spawn(waiters::run(Arc::clone(&server), stop.clone()));
    tokio::spawn(upkeep::run(Arc::clone(&server), stop.clone()));
    supervisor::ready();
    tokio::spawn(supervised::run(Arc::clone(&server), stop.clone()));
    tokio::spawn(reload::run(reload, started, certificates));
    let early = tokio::select! {
        biased;
        () = stop.wait() => None,
        ended = &mut api.task => Some(format!("the API ended: {ended:?}")),
        // The gateway ends with the stop, which may have come since it was looked at: that is not early.
        ended = &mut devices => (!stop.has_come()).then(|| format!("the gateway ended: {ended:?}")),
    };
    if let Some(why) = early {
        error!("{why}");
        return Err(Fatal::new(Exit::Software, why));
    }
    supervisor::stopping();
    let orderly = drain(&server, api).await;
    #[cfg(feature = "mqtt")]
    if let Some(broker) = broker {
        broker.end().await;
    }
    if orderly {
        server.store.end().await?;
    }
    Ok(())
}

/// A listener for HTTP and the task that serves it.
struct Web {
    task: JoinHandle<std::io::Result<()>>,
    handle: Handle<SocketAddr>,
}

impl Web {
    fn start(router: Router, listener: TcpListener, tls: Option<RustlsConfig>) -> Self {
        let handle = Handle::new();
        Self { task: tokio::spawn(serve_http(router, listener, tls, handle.clone())), handle }
    }
}

async fn serve_http(
    router: Router,
    listener: TcpListener,
    tls: Option<RustlsConfig>,
    handle: Handle<SocketAddr>,
) -> std::io::Result<()> {
    let service = router.into_make_service();
    match tls {
        Some(tls) => {
            let mut api = axum_server::from_tcp_rustls(listener, tls)?.handle(handle);
            api.http_builder().http1().timer(TokioTimer::new()).header_read_timeout(HEADERS);
            api.serve(service).await
        }
        None => {
            let mut api = axum_server::from_tcp(listener)?.handle(handle);
            api.http_builder().http1().timer(TokioTimer::new()).header_read_timeout(HEADERS);
            api.serve(service).await
        }
    }
}

/// Ends requests first, so that what they stored still wakes its devices, then sessions. Returns
/// whether all have ended.
async fn drain(server: &Server, api: Web) -> bool {
    server.stopping.store(true, Ordering::Relaxed);
    let connected = server.registry.count();
    server.waiters.end();
    api.handle.graceful_shutdown(Some(DRAIN));
    let requests = tokio::time::timeout(DRAIN + Duration::from_secs(1), api.task).await.is_ok();
    server.registry.drain(server.config.gateway.reconnect_window(connected));
    let sessions = tokio::time::timeout(DRAIN, async {
        while server.registry.count() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let orderly = sessions.await.is_ok() && requests;
    info!(connected, orderly, "stopped");
    orderly
}

fn url(scheme: &str, encrypted: bool, listener: &TcpListener) -> String {
    let address = listener.local_addr().map_or_else(|_| "?".to_owned(), |address| address.to_string());
    format!("{scheme}{}://{address}", if encrypted { "s" } else { "" })
}

/// Compares secrets in constant time.
fn same_secret(one: &str, two: &str) -> bool {
    one.as_bytes().ct_eq(two.as_bytes()).into()
}
