//! The server's configuration: `server.toml`, all defaults in one place.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use hyper::Uri;
use serde::Deserialize;
use tokio::sync::Semaphore;

use crate::config::{self, ConfigError, LogFormat, LogLevel, TlsFiles, check_plain_text, loopback};
use crate::link;
use crate::link::url::{Carrier, Root};
use crate::proto::Region;

use super::origin::Origin;

/// The highest rate that is told from none.
const RATE_MAX: u32 = 1_000_000;

/// Everything an operator may set. Keys in the file are written with `-` instead of `_`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ServerConfig {
    /// The region of the regIds issued here: two hex digits.
    pub region: Region,
    /// The folder of the database.
    pub state_folder: PathBuf,
    /// How much is logged.
    pub log: LogLevel,
    /// What a line of the log looks like.
    pub log_format: LogFormat,
    /// Where application servers post.
    pub api: Api,
    /// What Web Push senders are told and held to.
    pub web_push: WebPush,
    /// Where devices connect.
    pub gateway: Gateway,
    /// The broker that carries frames, if there is one.
    pub mqtt: Mqtt,
    /// What is for operators and their programs.
    pub admin: Admin,
    /// The base URL of the API of each other region.
    pub regions: BTreeMap<Region, String>,
    /// Certificates that authenticate other regions; the system's if absent.
    pub regions_ca: Option<PathBuf>,
    /// Certificates that authenticate the servers that are told receipts; the system's if absent.
    pub callbacks_ca: Option<PathBuf>,
    /// What is too much.
    pub limits: Limits,
}

/// The HTTP listener.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Api {
    /// Address and port.
    pub listen: SocketAddr,
    /// Certificate and key; plain HTTP if absent.
    pub tls: Option<TlsFiles>,
    /// Allows plain HTTP on an address that others can reach, and to other regions.
    pub allow_plain_text: bool,
    /// Allows requests that name several recipients.
    pub multiple: bool,
}

/// The Web Push door.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct WebPush {
    /// How the listener of the API is reached from outside: endpoints begin with it. Its address if absent;
    /// without one that others can tell, no endpoints are given out.
    pub origin: Option<Origin>,
    /// Bytes of a body.
    pub body_bytes: usize,
    /// Seconds for which a message is kept of which the sender does not say it; such a one is refused if
    /// absent, as RFC 8030 has it.
    pub default_ttl: Option<u32>,
    /// Takes the encoding `aesgcm` of drafts, with its headers.
    pub aesgcm: bool,
    /// Answers 404 where an endpoint has ended, as RFC 8030 has it, and not 410.
    pub strict_rfc8030: bool,
    /// Takes messages whose signature is not good for endpoints that anybody may send to.
    pub ignore_bad_vapid: bool,
}

impl Default for WebPush {
    fn default() -> Self {
        Self {
            origin: None,
            body_bytes: 4096,
            default_ttl: None,
            aesgcm: true,
            strict_rfc8030: false,
            ignore_bad_vapid: false,
        }
    }
}

/// The listener for devices.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Gateway {
    /// Address and port.
    pub listen: SocketAddr,
    /// Certificate and key; plain WebSocket if absent.
    pub tls: Option<TlsFiles>,
    /// Authorities of which one must have signed the certificate of every device; none is asked for if absent.
    pub client_ca: Option<PathBuf>,
    /// Allows plain WebSocket on an address that others can reach.
    pub allow_plain_text: bool,
    /// What a new device must know to enrol; anybody may enrol if absent.
    pub enrolment_key: Option<String>,
    /// The longest silence that everything between devices and this server survives, in seconds.
    pub ka_max_s: u32,
    /// The URLs of all links that devices may use, which they are told; none if there is only the gateway.
    #[serde(deserialize_with = "links")]
    pub links: Vec<link::Gateway>,
    /// The URL of the gateway that every device is sent to from here on; none is served here then.
    pub move_to: Option<String>,
    /// Most connections that may be in their handshake at a time.
    pub handshakes: usize,
    /// Handshakes that begin in a second; 0 for no limit.
    pub handshakes_per_second: u32,
    /// The least seconds over which devices are to spread when they come back after this server has ended.
    pub reconnect_window_s: u32,
}

impl Gateway {
    /// Seconds over which so many devices are to spread: what is set, and no less than their handshakes
    /// take.
    pub fn reconnect_window(&self, devices: usize) -> u32 {
        let devices = u32::try_from(devices).unwrap_or(u32::MAX);
        let least = devices.checked_div(self.handshakes_per_second).unwrap_or(0);
        // A little more, as they do not come evenly.
        self.reconnect_window_s.max(least.saturating_add(least / 4))
    }
}

/// A broker that carries frames between this server and devices.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Mqtt {
    /// Where this server reaches it; none is used if absent.
    #[serde(deserialize_with = "broker")]
    pub broker: Option<link::Gateway>,
    /// The name by which this server is let in.
    pub user: String,
    /// The password that goes with it.
    pub password: Option<String>,
    /// Certificates that authenticate the broker; the system's if absent.
    pub ca: Option<PathBuf>,
    /// Allows an unencrypted broker on another machine.
    pub allow_plain_text: bool,
}

impl Default for Mqtt {
    fn default() -> Self {
        Self { broker: None, user: "bellwire-server".into(), password: None, ca: None, allow_plain_text: false }
    }
}

impl Mqtt {
    /// What all topics begin with.
    pub fn root(&self) -> Root {
        match self.broker.as_ref().map(link::Gateway::carrier) {
            Some(Carrier::Mqtt(root)) => root.clone(),
            Some(Carrier::WebSocket) | None => Root::default(),
        }
    }
}

fn links<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<link::Gateway>, D::Error> {
    let all = Vec::<String>::deserialize(from)?;
    all.iter().map(|url| url.parse().map_err(serde::de::Error::custom)).collect()
}

fn broker<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<link::Gateway>, D::Error> {
    let url: link::Gateway = String::deserialize(from)?.parse().map_err(serde::de::Error::custom)?;
    match url.carrier() {
        Carrier::Mqtt(_) => Ok(Some(url)),
        Carrier::WebSocket => Err(serde::de::Error::custom("a broker is mqtt://HOST[:PORT][/ROOT] or mqtts://...")),
    }
}

/// Metrics and the admin API.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Admin {
    /// A listener of their own; they are on that of the API if absent.
    pub listen: Option<SocketAddr>,
    /// Certificate and key of that listener; plain HTTP if absent.
    pub tls: Option<TlsFiles>,
    /// Allows plain HTTP there on an address that others can reach.
    pub allow_plain_text: bool,
    /// Who may read the metrics.
    pub metrics: Access,
}

/// Who may ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Whoever has a token.
    #[default]
    Token,
    /// Everybody who reaches the listener.
    Open,
}

/// Named limits of everything that could grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Limits {
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Bytes of one message's `appData`.
    pub app_data_bytes: usize,
    /// Messages that wait for one registration; beyond it the oldest goes.
    pub waiting_per_registration: u32,
    /// Registrations of one device.
    pub registrations_per_device: u32,
    /// Minutes for which a message is kept at the most.
    pub expiry_minutes: u32,
    /// Hours for which it is remembered what became of a message.
    pub history_hours: u32,
    /// Messages of which it is remembered; beyond it the oldest go.
    pub history_messages: u64,
    /// Hours for which a receipt is tried to be told.
    pub receipt_hours: u32,
    /// Receipts that wait for one subscription of Web Push; beyond it the oldest goes.
    pub receipts_per_link: u32,
    /// Requests that wait for receipts of Web Push at a time.
    pub receipt_waiters: u32,
    /// Messages for one device in a minute; 0 for no limit.
    pub device_messages_per_minute: u32,
    /// Messages for one device in an hour; 0 for no limit.
    pub device_messages_per_hour: u32,
    /// Messages of one app in a second, ten seconds' worth of them at once; 0 for no limit.
    pub app_messages_per_second: u32,
    /// Requests of one app that are at the store at a time while other apps send too; 0 for no limit.
    pub app_requests: u32,
    /// Messages that wait for all devices of one app, and receipts for its server; 0 for no limit.
    pub waiting_per_app: u64,
    /// Megabytes of the database in use; 0 for no limit.
    pub store_megabytes: u64,
    /// Days after which a device that did not greet is forgotten; 0 for never.
    pub device_days: u32,
    /// Hours for which an app's secret goes on working after it was rotated.
    pub secret_grace_hours: u32,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            region: Region(0),
            state_folder: default_state_folder(),
            log: LogLevel::default(),
            log_format: LogFormat::default(),
            api: Api::default(),
            web_push: WebPush::default(),
            gateway: Gateway::default(),
            mqtt: Mqtt::default(),
            admin: Admin::default(),
            regions: BTreeMap::new(),
            regions_ca: None,
            callbacks_ca: None,
            limits: Limits::default(),
        }
    }
}

impl Default for Api {
    fn default() -> Self {
        Self { listen: loopback(8090), tls: None, allow_plain_text: false, multiple: true }
    }
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            listen: loopback(5223),
            tls: None,
            client_ca: None,
            allow_plain_text: false,
            enrolment_key: None,
            ka_max_s: 1650,
            links: Vec::new(),
            move_to: None,
            handshakes: 256,
            handshakes_per_second: 1000,
            reconnect_window_s: 0,
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: None, tls: None, allow_plain_text: false, metrics: Access::Token }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 200 * 1024,
            app_data_bytes: 16 * 1024,
            waiting_per_registration: 100,
            registrations_per_device: 256,
            expiry_minutes: 2880,
            history_hours: 72,
            history_messages: 1_000_000,
            receipt_hours: 24,
            receipts_per_link: 1000,
            receipt_waiters: 1000,
            device_messages_per_minute: 240,
            device_messages_per_hour: 5000,
            app_messages_per_second: 5000,
            app_requests: 3,
            waiting_per_app: 1_000_000,
            store_megabytes: 0,
            device_days: 270,
            secret_grace_hours: 24,
        }
    }
}

impl ServerConfig {
    /// The usual file, if there is one.
    pub fn usual() -> Option<PathBuf> {
        config::usual("server.toml", false)
    }

    /// Reads the file, or else uses the defaults.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let loaded: Self = config::load(file)?;
        loaded.check()?;
        Ok(loaded)
    }

    /// Refuses what the file may say but should not mean.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.api.tls.is_none() {
            check_plain_text("the API (`[api] listen`)", self.api.listen.ip(), self.api.allow_plain_text)?;
        }
        if self.gateway.tls.is_none() {
            check_plain_text(
                "the gateway (`[gateway] listen`)",
                self.gateway.listen.ip(),
                self.gateway.allow_plain_text,
            )?;
        }
        self.check_admin()?;
        if self.regions.contains_key(&self.region) {
            return Err(ConfigError::Unwise(format!(
                "`[regions]` names {}, which is this server's own region",
                self.region
            )));
        }
        if let Some(Err(why)) = self.gateway.move_to.as_deref().map(str::parse::<link::Gateway>) {
            return Err(ConfigError::Unwise(format!("`[gateway] move-to`: {why}")));
        }
        for (region, url) in &self.regions {
            self.check_url(&format!("`[regions] {region}`"), "the secrets of apps", url)?;
        }
        self.limits.check()?;
        // RFC 8030, section 7.2: 4096 bytes are never too many.
        if !(4096..=16 * 1024).contains(&self.web_push.body_bytes) {
            return Err(ConfigError::Unwise("`[web-push] body-bytes` is 4096 to 16384".into()));
        }
        if !(1..=Semaphore::MAX_PERMITS).contains(&self.gateway.handshakes) {
            return Err(ConfigError::Unwise(format!("`handshakes` is 1 to {}", Semaphore::MAX_PERMITS)));
        }
        if self.gateway.client_ca.is_some() && self.gateway.tls.is_none() {
            return Err(ConfigError::Unwise("`[gateway] client-ca` needs `tls`".into()));
        }
        if self.gateway.enrolment_key.as_ref().is_some_and(String::is_empty) {
            return Err(ConfigError::Unwise(
                "`[gateway] enrolment-key` is empty; leave it out to let anybody enrol".into(),
            ));
        }
        Ok(())
    }

    /// Tokens travel in every request, and metrics say how the service is doing.
    fn check_admin(&self) -> Result<(), ConfigError> {
        let unwise = |why: &str| Err(ConfigError::Unwise(why.into()));
        match self.admin.listen {
            Some(address) if self.admin.tls.is_none() => {
                check_plain_text("the admin API (`[admin] listen`)", address.ip(), self.admin.allow_plain_text)
            }
            Some(_) => Ok(()),
            None if self.admin.tls.is_some() => {
                unwise("`[admin] tls` is for a listener of its own: set `[admin] listen`, or leave it out")
            }
            None if self.admin.metrics == Access::Open && !self.api.listen.ip().is_loopback() => unwise(
                "`[admin] metrics = \"open\"` would show the metrics to everybody who reaches the API: give them a \
                 listener of their own by `[admin] listen`, or leave it out and let the scraper send a token",
            ),
            None => Ok(()),
        }
    }

    /// What is sent to a URL is for its server alone: in plain text only on this machine, or where
    /// the configuration allows it. `what` names the URL, `load` what would be sent.
    pub fn check_url(&self, what: &str, load: &str, url: &str) -> Result<(), ConfigError> {
        let parsed: Option<Uri> = url.parse().ok();
        let (Some(scheme), Some(host)) =
            (parsed.as_ref().and_then(Uri::scheme_str), parsed.as_ref().and_then(Uri::host))
        else {
            return Err(ConfigError::Unwise(format!("{what} is no http:// or https:// URL: {url}")));
        };
        let address: Option<IpAddr> = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
        let here = host == "localhost" || address.is_some_and(|address| address.is_loopback());
        match scheme {
            "https" => Ok(()),
            "http" if here || self.api.allow_plain_text => Ok(()),
            "http" => Err(ConfigError::Unwise(format!(
                "{what} would be sent {load} unencrypted: use https://, or set `allow-plain-text = true` in \
                 `[api]` if something in between encrypts: {url}"
            ))),
            _ => Err(ConfigError::Unwise(format!("{what} is no http:// or https:// URL: {url}"))),
        }
    }

    /// The database file.
    pub fn database(&self) -> PathBuf {
        self.state_folder.join("server.db")
    }
}

impl Limits {
    fn check(&self) -> Result<(), ConfigError> {
        let unwise = |why: String| Err(ConfigError::Unwise(why));
        // A frame must hold the largest message: see `proto::frame::TO_DEVICE_MAX`.
        if self.app_data_bytes > 16 * 1024 {
            return unwise("`[limits] app-data-bytes` is at most 16384".into());
        }
        if [self.waiting_per_registration, self.receipts_per_link].contains(&0) {
            return unwise("`waiting-per-registration` and `receipts-per-link` in `[limits]` are at least 1".into());
        }
        if [self.expiry_minutes, self.history_hours, self.receipt_hours].contains(&0) {
            return unwise("`expiry-minutes`, `history-hours` and `receipt-hours` in `[limits]` are at least 1".into());
        }
        let rates = [self.device_messages_per_minute, self.device_messages_per_hour, self.app_messages_per_second];
        if rates.iter().any(|rate| *rate > RATE_MAX) {
            return unwise(format!("rates in `[limits]` are at most {RATE_MAX}, or 0 for no limit"));
        }
        // When a device was seen is known to two days.
        if (1..3).contains(&self.device_days) {
            return unwise("`[limits] device-days` is at least 3, or 0 for never".into());
        }
        Ok(())
    }
}

fn default_state_folder() -> PathBuf {
    match nix::unistd::geteuid().is_root() {
        true => config::system_state_folder(),
        false => config::state_folder(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_says_what_the_defaults_are() {
        let text = include_str!("../../examples/server.toml");
        let sample: ServerConfig = config::parse(Path::new("examples/server.toml"), text).unwrap();
        sample.check().unwrap();
        let default = ServerConfig { state_folder: sample.state_folder.clone(), ..ServerConfig::default() };
        assert_eq!(format!("{sample:?}"), format!("{default:?}"));
    }

    #[test]
    fn the_outside_is_never_served_in_plain_text_by_accident() {
        let parse = |text: &str| config::parse::<ServerConfig>(Path::new("t"), text).unwrap().check();
        assert!(parse("[api]\nlisten = \"0.0.0.0:8090\"").is_err());
        assert!(parse("[gateway]\nlisten = \"[::]:5223\"").is_err());
        assert!(parse("[gateway]\nlisten = \"[::]:5223\"\nallow-plain-text = true").is_ok());
    }

    #[test]
    fn what_is_for_operators_is_never_shown_to_the_world_by_accident() {
        let parse = |text: &str| config::parse::<ServerConfig>(Path::new("t"), text).unwrap().check();
        assert!(parse("[admin]\nlisten = \"0.0.0.0:8091\"").is_err());
        assert!(parse("[admin]\nlisten = \"0.0.0.0:8091\"\nallow-plain-text = true").is_ok());
        assert!(parse("[admin]\nlisten = \"127.0.0.1:8091\"\nmetrics = \"open\"").is_ok());
        assert!(parse("[admin]\nmetrics = \"open\"").is_ok(), "the API is on loopback");
        let public = "[api]\nlisten = \"0.0.0.0:8090\"\nallow-plain-text = true\n[admin]\n";
        assert!(parse(&format!("{public}metrics = \"token\"")).is_ok());
        assert!(parse(&format!("{public}metrics = \"open\"")).is_err());
        assert!(parse(&format!("{public}metrics = \"open\"\nlisten = \"127.0.0.1:8091\"")).is_ok());
        assert!(parse("[admin]\ntls = { certificate = \"c\", key = \"k\" }").is_err());
    }

    #[test]
    fn secrets_are_never_sent_to_a_region_in_plain_text_by_accident() {
        let parse = |url: &str, api: &str| {
            let text = format!("[api]\n{api}\n[regions]\n03 = \"{url}\"");
            config::parse::<ServerConfig>(Path::new("t"), &text).unwrap().check()
        };
        for url in ["https://eu.example.org:8090", "http://127.0.0.1:1/", "http://[::1]:1", "http://localhost:1"] {
            assert!(parse(url, "").is_ok(), "{url}");
        }
        for url in ["http://eu.example.org", "http://192.0.2.1:8090", "http://localhost.example.org"] {
            assert!(parse(url, "").is_err(), "{url}");
            assert!(parse(url, "allow-plain-text = true").is_ok(), "{url}");
        }
        for url in ["eu.example.org", "ftp://eu.example.org", "http://", "https://a b", ""] {
            assert!(parse(url, "allow-plain-text = true").is_err(), "{url}");
        }
    }

    #[test]
    fn settings_that_would_lose_or_stop_everything_are_refused() {
        for text in [
            "[limits]\nexpiry-minutes = 0",
            "[limits]\nwaiting-per-registration = 0",
            "[limits]\nreceipts-per-link = 0",
            "[limits]\ndevice-days = 2",
            "[limits]\napp-messages-per-second = 1000001",
            "[gateway]\nhandshakes = 0",
            "[gateway]\nhandshakes = 9223372036854775807",
            "[gateway]\nenrolment-key = \"\"",
        ] {
            let config: ServerConfig = config::parse(Path::new("t"), text).unwrap();
            assert!(config.check().is_err(), "{text}");
        }
    }
}
