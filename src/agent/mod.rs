//! The device half: one connection to the server for every app, and D-Bus towards the apps.
//!
//! * [`connection`]: the link and its state machine, in one task; [`alarm`]: its clock; [`status`];
//!   [`routes`]: which link is dialled next; [`attempt`].
//! * [`store`]: what is on disk; [`plan`], pure, says what becomes of a message.
//! * [`system`]: what the machine says of its network, power and sleep.
//! * [`bus`]: D-Bus; [`apps`]: who is connected there; [`deliver`]: messages on their way to them.
//! * [`unifiedpush`]: the same for apps that speak UnifiedPush.
//! * [`effects`]: alerts, starts of apps and badges, at the [`pace`] that one app may have.
//! * [`reload`]: another configuration while it runs.
//! * [`identity`]: who is calling; [`installed`]: manifests and desktop files; [`uninstall`].

pub mod alarm;
pub mod apps;
pub mod attempt;
pub mod bus;
pub mod config;
pub mod connection;
pub mod deliver;
pub mod effects;
pub mod identity;
pub mod installed;
pub mod pace;
pub mod plan;
pub mod reload;
pub mod routes;
pub mod status;
pub mod store;
pub mod system;
#[cfg(feature = "unifiedpush")]
pub mod unifiedpush;
pub mod uninstall;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use rustls::ClientConfig;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::daemon::{self, Exit, Fatal, Reload, Stop};
use crate::db::DbError;
use crate::link::dial::{Caller, Dialling};
use crate::link::proxy::Proxies;
use crate::proto::device::{Device, Identity};
use crate::supervisor;
use crate::tls;
use crate::world::Clock;

use alarm::Alarm;
use apps::Apps;
use bus::Shared;
use config::{AgentConfig, Bus};
use connection::Parts;
use effects::Hints;
use installed::Installed;
use routes::Routes;
use status::Status;
use store::{Credentials, Store};
use system::System;

/// Commands that may wait for the connection.
const COMMANDS: usize = 64;
/// How long apps may take to answer when the daemon stops.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// Changes that a slow listener may lag behind: more than there may be apps.
const CHANGES: usize = 256;

/// The push daemon of a device: one connection to the push server for every app.
#[derive(Debug, Parser)]
#[command(
    name = "bellwired",
    version,
    after_help = "\
It serves org.bellwire.Push on D-Bus until SIGTERM, and reads its configuration again on SIGHUP.

Exit status: 0 stopped, 64 wrong usage, 65 the store is of a newer version, 69 no bus or the name is taken,
74 the store cannot be used, 78 wrong configuration.

See also bellwired.toml(5), bellwire-integration(7), bellwire-apps.d(5), org.bellwire.Push(7),
bellwire-protocol(7)."
)]
pub struct Args {
    /// Configuration file [default: agent.toml of $CREDENTIALS_DIRECTORY, ~/.config/bellwire or /etc/bellwire, the
    /// first that there is]
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The bus that apps are on, whatever the configuration says
    #[arg(long, value_name = "BUS")]
    bus: Option<Bus>,
    /// Check the configuration and exit
    #[arg(long)]
    check: bool,
}

/// The program.
pub fn main() -> ExitCode {
    match daemon::arguments::<Args>() {
        Ok(args) => daemon::finish("bellwired", start(args)),
        Err(code) => code,
    }
}

fn start(args: Args) -> Result<(), Fatal> {
    // What was found once has to be there again: without it a reload would go back to the defaults.
    let mut file = args.config;
    let mut read = move || {
        file = file.take().or_else(AgentConfig::usual);
        Settings::read(file.as_deref(), args.bus)
    };
    let settings = read()?;
    let config = &settings.config;
    if args.check {
        println!("the configuration is good: gateway {}, state in {}", config.gateway, config.state_folder.display());
        return Ok(());
    }
    daemon::start_logging(config.log, config.log_format);
    daemon::private_folder(&config.state_folder)?;
    let _mine = daemon::lock_folder(&config.state_folder, "bellwired")?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Fatal::of(Exit::Software))?;
    runtime.block_on(async {
        let stop = Stop::on_signals().map_err(Fatal::of(Exit::Software))?;
        let reload = Reload::on_signals(read).map_err(Fatal::of(Exit::Software))?;
        run(settings, stop, reload).await
    })
}

/// What the daemon starts with, and again with each SIGHUP.
pub struct Settings {
    /// The configuration, which makes sense.
    pub config: AgentConfig,
    /// Its certificates.
    pub tls: Arc<ClientConfig>,
}

impl Settings {
    /// Reads the configuration and the certificates that it names.
    fn read(file: Option<&Path>, bus: Option<Bus>) -> Result<Self, Fatal> {
        let mut config = AgentConfig::load(file).map_err(Fatal::of(Exit::Config))?;
        config.bus = bus.unwrap_or(config.bus);
        let tls = tls::device(config.ca.as_deref(), &config.pins, config.client_certificate.as_ref());
        Ok(Self { tls: tls.map_err(Fatal::of(Exit::Config))?, config })
    }

    /// How links are opened.
    fn dialling(&self) -> Dialling {
        Dialling {
            tls: Arc::clone(&self.tls),
            plain_text: self.config.allow_plain_text,
            from: None,
            ends: Arc::default(),
            proxies: proxies(&self.config),
        }
    }
}

/// Serves until the stop comes.
pub async fn run(settings: Settings, stop: Stop, reload: Reload<Settings>) -> Result<(), Fatal> {
    let (dialling, config) = (settings.dialling(), settings.config);
    let (store, credentials) = Store::open(&config.database(), config.limits)?;
    let routes = routes(&store, &config).await?;
    let gateway = routes.current().clone();
    let returning = store.connected_before().await?;
    let (salt, sources) = (store.salt().await?, config.watch.clone());
    let (apps, clock) = (Arc::new(Apps::expecting(returning)), Clock::start());
    let (commands, inbox) = mpsc::channel(COMMANDS);
    let (changes, _) = broadcast::channel(CHANGES);
    let device_id = credentials.device;
    let caller = Caller::new(device_id, credentials.secret.clone(), config.profile);
    let (configured, device) = (config.gateway.clone(), device(credentials, &config));
    let alarm = Alarm::new(clock).map_err(Fatal::of(Exit::Software))?;
    let (status_out, status) = watch::channel(Status::of(&gateway, &device, alarm.wakes()));
    let (installed, hints) = (Arc::new(Installed::read(config.bus)), Arc::new(Hints::default()));
    let shared = Arc::new(Shared {
        config,
        device: device_id,
        store: store.clone(),
        apps: Arc::clone(&apps),
        installed,
        hints: Arc::clone(&hints),
        clock,
        commands,
        changes: changes.clone(),
        status,
    });
    // The name is on the bus before the network is touched: apps may call while we are offline.
    let bus = bus::serve(Arc::clone(&shared)).await.map_err(no_bus)?;
    info!(device = %shared.device, gateway = %gateway, "ready");
    supervisor::ready();
    if supervisor::listens() {
        tokio::spawn(tell_supervisor(shared.status.clone()));
    }
    tokio::spawn(reload::run(reload, Arc::clone(&shared), dialling.clone()));
    let system = System::start(&sources, gateway.clone(), Arc::clone(&dialling.ends), &salt);
    let parts = Parts {
        configured,
        routes,
        dialling,
        system,
        caller,
        store,
        apps: Arc::clone(&apps),
        hints,
        clock,
        alarm,
        commands: inbox,
        changes,
        status: status_out,
    };
    end_in_order(tokio::spawn(connection::run(device, parts, stop.clone())), &bus, stop).await?;
    // An app that has just been handed a message is not handed it again by the next run.
    let _quiet = tokio::time::timeout(LAST_ANSWERS, apps.quiet()).await;
    info!("stopped");
    Ok(())
}

/// Waits for the stop, and for the goodbye to the server. Whatever ends before the stop is an error.
async fn end_in_order(
    mut connection: JoinHandle<Result<(), DbError>>,
    bus: &zbus::Connection,
    mut stop: Stop,
) -> Result<(), Fatal> {
    let ended = tokio::select! {
        biased;
        () = stop.wait() => None,
        ended = &mut connection => Some(ended),
        () = bus_lost(bus) => return Err(Fatal::new(Exit::Unavailable, "the connection to the bus is lost")),
    };
    supervisor::stopping();
    let ended = match ended {
        // The connection ends with the stop, which may have come since it was looked at: that is not early.
        Some(ended) if !stop.has_come() => return Err(ended_early(ended)),
        Some(ended) => ended,
        // The state machine says goodbye to the server.
        None => connection.await,
    };
    if ended.is_err() {
        warn!("the connection did not end in order");
    }
    Ok(())
}

/// Keeps the supervisor's line about the daemon true.
async fn tell_supervisor(mut status: watch::Receiver<Status>) {
    loop {
        let line = status.borrow_and_update().line();
        supervisor::tell(&line);
        if status.changed().await.is_err() {
            return;
        }
    }
}

/// What is between this device and its gateway.
fn proxies(config: &AgentConfig) -> Proxies {
    Proxies::new(&config.proxy, |name| std::env::var(name).ok()).unwrap_or_else(|variable| {
        warn!("{variable} in the environment names no proxy of the form http://HOST:PORT, and is not used");
        Proxies::none()
    })
}

/// The state machine of this device.
fn device(credentials: Credentials, config: &AgentConfig) -> Device {
    let identity = Identity {
        device: credentials.device,
        secret: credentials.secret,
        agent: concat!("bellwired/", env!("CARGO_PKG_VERSION")).to_owned(),
        enrolment_key: config.enrolment_key.clone(),
    };
    let mut device = Device::new(identity, config.profile);
    if config.interval_mode_minutes > 0 {
        device.sync_every(Duration::from_secs(u64::from(config.interval_mode_minutes) * 60));
    }
    device
}

// The enum is another crate's: all but one of its variants are one case to us.
#[allow(clippy::wildcard_enum_match_arm)]
fn no_bus(error: zbus::Error) -> Fatal {
    if matches!(error, zbus::Error::NameTaken) {
        return Fatal::new(Exit::Unavailable, format!("another bellwired has the name {} on this bus", bus::NAME));
    }
    Fatal::new(Exit::Unavailable, format!("the bus cannot be used: {}", daemon::chain(&error)))
}

fn ended_early(ended: Result<Result<(), DbError>, tokio::task::JoinError>) -> Fatal {
    match ended {
        Ok(Ok(())) => Fatal::new(Exit::Software, "the connection task ended"),
        Ok(Err(error)) => error.into(),
        Err(error) => Fatal::new(Exit::Software, error),
    }
}

/// The links to the gateway that the server named, else to the configured one.
async fn routes(store: &Store, config: &AgentConfig) -> Result<Routes, DbError> {
    let configured = config.gateway.to_string();
    let named = store.gateway(&configured).await?.and_then(|gateway| gateway.parse().ok());
    let gateway = named.unwrap_or_else(|| config.gateway.clone());
    let fallback_port = (config.fallback_port != 0).then_some(config.fallback_port);
    let mut routes = Routes::new(gateway, config.link, fallback_port);
    routes.offer(&store.links(&configured).await?);
    Ok(routes)
}

/// Returns when the bus has closed the connection.
async fn bus_lost(bus: &zbus::Connection) {
    use futures_util::StreamExt;
    let mut messages = zbus::MessageStream::from(bus);
    while messages.next().await.is_some_and(|message| message.is_ok()) {}
}
