//! The agent's configuration: `agent.toml`, all defaults in one place.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::config::{self, ConfigError, LogFormat, LogLevel, TlsFiles};
use crate::link::Gateway;
use crate::link::proxy::Setting;
use crate::link::url::LinkKind;
use crate::proto::keepalive::Profile;
use crate::tls::Pin;

use super::system::Source;

/// Everything an integrator may set. Keys in the file are written with `-` instead of `_`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct AgentConfig {
    /// The gateway of the push server: `wss://HOST[:PORT]`, or `ws://` on this machine; or a broker that carries
    /// frames to it, `mqtts://HOST[:PORT][/ROOT]`.
    #[serde(deserialize_with = "gateway")]
    pub gateway: Gateway,
    /// The kind of link that is used where the server offers several.
    pub link: LinkKind,
    /// Allows `ws://` and `mqtt://` to another machine.
    pub allow_plain_text: bool,
    /// Certificates that authenticate the gateway; the system's if absent.
    pub ca: Option<PathBuf>,
    /// Keys of which the gateway's chain must hold one; none if there are none.
    pub pins: Vec<Pin>,
    /// What the device shows to a gateway that asks for a certificate.
    pub client_certificate: Option<TlsFiles>,
    /// What is between the device and its gateway: `http://[USER:PASSWORD@]HOST[:PORT]`, `none`, or what the
    /// environment says if absent.
    pub proxy: Setting,
    /// What is tried where nobody is reached at port 5223 of an encrypted gateway; 0 is none.
    pub fallback_port: u16,
    /// What the server wants to hear from a new device.
    pub enrolment_key: Option<String>,
    /// What powers the device: how long its connection may be silent.
    pub profile: Profile,
    /// On a battery, in networks that forget connections too soon, to come back every so many minutes instead
    /// of staying connected; 0 is never.
    pub interval_mode_minutes: u32,
    /// Who is asked about the machine's network, power and sleep.
    pub watch: Vec<Source>,
    /// Which bus the apps are on.
    pub bus: Bus,
    /// The folder of the database.
    pub state_folder: PathBuf,
    /// How much is logged.
    pub log: LogLevel,
    /// What a line of the log looks like.
    pub log_format: LogFormat,
    /// Whether apps that speak UnifiedPush are served.
    pub unifiedpush: UnifiedPush,
    /// What is too much.
    pub limits: Limits,
}

/// What the daemon is to apps that speak UnifiedPush, on a session's bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct UnifiedPush {
    /// It is a distributor.
    pub enabled: bool,
    /// It goes by the name of KDE's distributor as well.
    pub own_kde_name: bool,
}

impl Default for UnifiedPush {
    fn default() -> Self {
        Self { enabled: true, own_kde_name: false }
    }
}

/// The two buses of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Bus {
    /// The bus of a user's session.
    Session,
    /// The bus of the machine.
    System,
}

/// Named limits of everything that could grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Limits {
    /// Unread messages of one app; beyond it the oldest goes.
    pub unread_messages: u32,
    /// Bytes of unread messages of one app; beyond it the oldest goes.
    pub unread_bytes: u64,
    /// Unread messages of all apps; beyond it the oldest of the app with the most bytes goes.
    pub total_messages: u32,
    /// Bytes of unread messages of all apps, with the same effect.
    pub total_bytes: u64,
    /// Hours that a message waits for its app at most, whatever its own expiry.
    pub unread_hours: u32,
    /// Apps that may be registered.
    pub apps: u32,
    /// Registrations that one app may have by UnifiedPush; each is one of the `apps`.
    pub channels_per_app: u32,
    /// Seconds that an app may take to answer a message.
    pub answer_s: u32,
    /// Alerts of one app a minute; what comes faster is shown together.
    pub alerts_per_minute: u32,
    /// Starts of one app a minute that the user did not ask for; what comes faster waits.
    pub launches_per_minute: u32,
    /// Seconds after the daemon's start in which apps that were connected are expected again.
    pub reconnect_s: u32,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            // Invariant: the text is a gateway's; the test of the sample parses the same.
            gateway: "ws://127.0.0.1:5223".parse().expect("the default gateway is one"),
            link: LinkKind::default(),
            allow_plain_text: false,
            ca: None,
            pins: Vec::new(),
            client_certificate: None,
            proxy: Setting::default(),
            fallback_port: 443,
            enrolment_key: None,
            profile: Profile::default(),
            interval_mode_minutes: 0,
            watch: Source::ALL.to_vec(),
            bus: Bus::Session,
            state_folder: config::state_folder(),
            log: LogLevel::default(),
            log_format: LogFormat::default(),
            unifiedpush: UnifiedPush::default(),
            limits: Limits::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            unread_messages: 100,
            unread_bytes: 1024 * 1024,
            total_messages: 1000,
            total_bytes: 8 * 1024 * 1024,
            unread_hours: 168,
            apps: 128,
            channels_per_app: 32,
            answer_s: 30,
            alerts_per_minute: 10,
            launches_per_minute: 6,
            reconnect_s: 5,
        }
    }
}

impl AgentConfig {
    /// The usual file, if there is one.
    pub fn usual() -> Option<PathBuf> {
        config::usual("agent.toml", true)
    }

    /// Reads the file, or else uses the defaults.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let loaded: Self = config::load(file)?;
        loaded.check()?;
        Ok(loaded)
    }

    /// Refuses what the file may say but should not mean.
    pub fn check(&self) -> Result<(), ConfigError> {
        let limits = self.limits;
        let counts = [
            limits.unread_messages,
            limits.total_messages,
            limits.unread_hours,
            limits.apps,
            limits.channels_per_app,
            limits.answer_s,
            limits.alerts_per_minute,
            limits.launches_per_minute,
            limits.reconnect_s,
        ];
        if counts.contains(&0) || [limits.unread_bytes, limits.total_bytes].contains(&0) {
            return Err(ConfigError::Unwise("every key of `[limits]` is at least 1".into()));
        }
        Ok(())
    }

    /// The database file.
    pub fn database(&self) -> PathBuf {
        self.state_folder.join("agent.db")
    }
}

fn gateway<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Gateway, D::Error> {
    String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_says_what_the_defaults_are() {
        let text = include_str!("../../examples/agent.toml");
        let sample: AgentConfig = config::parse(Path::new("examples/agent.toml"), text).unwrap();
        sample.check().unwrap();
        assert_eq!(format!("{sample:?}"), format!("{:?}", AgentConfig::default()));
    }

    #[test]
    fn a_gateway_that_is_none_is_refused_with_its_line() {
        let parsed = config::parse::<AgentConfig>(Path::new("a.toml"), "bus = \"system\"\ngateway = \"http://x\"");
        let error = parsed.unwrap_err().to_string();
        assert!(error.starts_with("a.toml:2: a gateway is"), "{error}");
    }
}
