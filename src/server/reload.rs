//! SIGHUP: the configuration is read again. Certificates, and how much is logged, are taken into use at once;
//! what else has changed is named, and waits for the next start.
//!
//! It must not end a connection: devices and requests keep the certificate that they began with.

use std::path::Path;
use std::sync::Arc;

use axum_server::tls_rustls::RustlsConfig;
use tracing::info;

use super::config::{Admin, Api, Gateway, ServerConfig};
use crate::config::TlsFiles;
use crate::daemon::{self, Exit, Fatal, Reload};
use crate::{supervisor, tls};

/// What the server starts with, and again with each SIGHUP.
pub struct Settings {
    /// The configuration, which makes sense.
    pub config: ServerConfig,
    /// Its certificates.
    pub certificates: Certificates,
}

/// The certificates of the listeners that have one. Clones share them.
#[derive(Clone)]
pub struct Certificates {
    /// The API's.
    pub api: Option<RustlsConfig>,
    /// The gateway's, which may ask devices for theirs.
    pub gateway: Option<RustlsConfig>,
    /// The admin API's.
    pub admin: Option<RustlsConfig>,
}

impl Settings {
    /// Reads the configuration and the certificates that it names.
    pub fn read(file: Option<&Path>) -> Result<Self, Fatal> {
        let config = ServerConfig::load(file).map_err(Fatal::of(Exit::Config))?;
        Ok(Self { certificates: Certificates::read(&config)?, config })
    }
}

impl Certificates {
    /// Reads those that the configuration names, and looks at whom the server trusts: all has to be good.
    pub fn read(config: &ServerConfig) -> Result<Self, Fatal> {
        for authorities in [&config.regions_ca, &config.callbacks_ca, &config.mqtt.ca] {
            tls::client(authorities.as_deref()).map_err(Fatal::of(Exit::Config))?;
        }
        let read = |files: &Option<TlsFiles>, clients: Option<&Path>| {
            let settings = files.as_ref().map(|files| tls::server(files, clients)).transpose();
            settings.map(|settings| settings.map(RustlsConfig::from_config)).map_err(Fatal::of(Exit::Config))
        };
        Ok(Self {
            api: read(&config.api.tls, None)?,
            gateway: read(&config.gateway.tls, config.gateway.client_ca.as_deref())?,
            admin: read(&config.admin.tls, None)?,
        })
    }

    fn renew(&self, new: &Self) {
        for (now, new) in [(&self.api, &new.api), (&self.gateway, &new.gateway), (&self.admin, &new.admin)] {
            if let (Some(now), Some(new)) = (now, new) {
                now.reload_from_config(new.get_inner());
            }
        }
    }
}

/// Serves the signal for as long as the server runs. `started` is the configuration of its start.
pub async fn run(mut reload: Reload<Settings>, started: Arc<ServerConfig>, certificates: Certificates) {
    loop {
        let new = reload.next().await;
        certificates.renew(&new.certificates);
        daemon::log_at(new.config.log);
        daemon::name_later(&later(&started, &new.config));
        info!("the configuration and the certificates of its listeners were read again");
        supervisor::ready();
    }
}

/// The keys that differ and are looked at only at the start. PURE.
fn later(now: &ServerConfig, new: &ServerConfig) -> Vec<&'static str> {
    // Named one by one, so that a new key has to be thought of here.
    let ServerConfig {
        region,
        state_folder,
        log: _,
        log_format,
        api,
        web_push,
        gateway,
        mqtt,
        admin,
        regions,
        regions_ca,
        callbacks_ca,
        limits,
    } = new;
    // Other files are read, but a listener does not begin or cease to encrypt.
    let files =
        |new: &Option<TlsFiles>, now: &Option<TlsFiles>| new.as_ref().and(now.as_ref()).or(new.as_ref()).cloned();
    let api = Api { tls: files(&api.tls, &now.api.tls), ..api.clone() };
    let admin = Admin { tls: files(&admin.tls, &now.admin.tls), ..admin.clone() };
    let gateway = Gateway {
        tls: files(&gateway.tls, &now.gateway.tls),
        client_ca: now.gateway.client_ca.clone(),
        ..gateway.clone()
    };
    let keys = [
        ("region", *region == now.region),
        ("state-folder", *state_folder == now.state_folder),
        ("log-format", *log_format == now.log_format),
        ("[api]", api == now.api),
        ("[web-push]", *web_push == now.web_push),
        ("[gateway]", gateway == now.gateway),
        ("[mqtt]", *mqtt == now.mqtt),
        ("[admin]", admin == now.admin),
        ("[regions]", *regions == now.regions),
        ("regions-ca", *regions_ca == now.regions_ca),
        ("callbacks-ca", *callbacks_ca == now.callbacks_ca),
        ("[limits]", *limits == now.limits),
    ];
    keys.into_iter().filter(|(_, same)| !same).map(|(key, _)| key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LogLevel;

    fn files(certificate: &str) -> Option<TlsFiles> {
        Some(TlsFiles { certificate: certificate.into(), key: "key.pem".into() })
    }

    #[test]
    fn only_what_waits_for_the_next_start_is_named() {
        let mut now = ServerConfig::default();
        now.api.tls = files("old.pem");
        let mut new = now.clone();
        (new.log, new.api.tls, new.gateway.client_ca) = (LogLevel::Debug, files("new.pem"), Some("ca.pem".into()));
        assert!(later(&now, &new).is_empty());
        new.limits.app_requests += 1;
        new.gateway.tls = files("new.pem");
        assert_eq!(later(&now, &new), ["[gateway]", "[limits]"]);
        new.api.tls = None;
        assert_eq!(later(&now, &new), ["[api]", "[gateway]", "[limits]"]);
    }
}
