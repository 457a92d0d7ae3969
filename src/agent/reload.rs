//! SIGHUP: the configuration is read again. How the server is reached is taken into use at once, by a new
//! connection, and how much is logged; what else has changed is named, and waits for the next start.
//!
//! It must not disturb apps: the name on the bus, the store and what is being delivered stay.

use std::sync::Arc;

use tokio::sync::mpsc;
use tracing::{error, info};

use super::config::AgentConfig;
use super::connection::{Command, Reach};
use super::{Settings, bus::Shared};
use crate::daemon::{self, Reload};
use crate::link::dial::Dialling;
use crate::supervisor;

/// Serves the signal for as long as the daemon runs.
pub async fn run(mut reload: Reload<Settings>, shared: Arc<Shared>, dialling: Dialling) {
    loop {
        let settings = reload.next().await;
        take(settings, &shared, &dialling, &shared.commands).await;
        supervisor::ready();
    }
}

async fn take(settings: Settings, shared: &Shared, dialling: &Dialling, commands: &mpsc::Sender<Command>) {
    daemon::log_at(settings.config.log);
    daemon::name_later(&later(&shared.config, &settings.config));
    let dialling = Dialling { ends: Arc::clone(&dialling.ends), ..settings.dialling() };
    let routes = match super::routes(&shared.store, &settings.config).await {
        Ok(routes) => routes,
        Err(error) => return error!("the connection stays as it was, as the store failed: {error}"),
    };
    info!("the configuration was read again; connecting to {}", routes.current());
    let AgentConfig { gateway: configured, enrolment_key, .. } = settings.config;
    let reach = Reach { configured, routes, dialling, enrolment_key };
    // It is gone only when the daemon ends.
    let _ = commands.send(Command::Reach(Box::new(reach))).await;
}

/// The keys that differ and are looked at only at the start. PURE.
fn later(now: &AgentConfig, new: &AgentConfig) -> Vec<&'static str> {
    // Named one by one, so that a new key has to be thought of here.
    let AgentConfig {
        gateway: _,
        link: _,
        allow_plain_text: _,
        ca: _,
        pins: _,
        client_certificate: _,
        proxy: _,
        fallback_port: _,
        enrolment_key: _,
        log: _,
        profile,
        interval_mode_minutes,
        watch,
        bus,
        state_folder,
        log_format,
        unifiedpush,
        limits,
    } = new;
    let keys = [
        ("profile", *profile == now.profile),
        ("interval-mode-minutes", *interval_mode_minutes == now.interval_mode_minutes),
        ("watch", *watch == now.watch),
        ("bus", *bus == now.bus),
        ("state-folder", *state_folder == now.state_folder),
        ("log-format", *log_format == now.log_format),
        ("[unifiedpush]", *unifiedpush == now.unifiedpush),
        ("[limits]", *limits == now.limits),
    ];
    keys.into_iter().filter(|(_, same)| !same).map(|(key, _)| key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_waits_for_the_next_start_is_named() {
        let now = AgentConfig::default();
        let mut new = now.clone();
        (new.gateway, new.fallback_port) = ("wss://push.example.org".parse().unwrap(), 0);
        new.enrolment_key = Some("another".into());
        assert!(later(&now, &new).is_empty());
        new.limits.apps += 1;
        new.interval_mode_minutes = 15;
        assert_eq!(later(&now, &new), ["interval-mode-minutes", "[limits]"]);
    }
}
