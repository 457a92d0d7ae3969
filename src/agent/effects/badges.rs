//! Badges: told to whoever listens, on our own interface and as desktops know them.
//!
//! `com.canonical.Unity.LauncherEntry` is a signal that nobody stores: a desktop forgets the badge
//! when the sender leaves the bus, and knows none before the sender says it again. So all badges
//! are said again when the daemon starts and when a desktop does.

use std::collections::HashMap;
use std::sync::Arc;

use tracing::{debug, error};
use zbus::Variant;
use zbus::object_server::SignalEmitter;

use crate::agent::bus::push::Push;
use crate::agent::bus::{PATH, Shared};
use crate::agent::store::AppRow;
use crate::proto::AppId;

/// The name that desktops with badges take.
const DESKTOP: &str = "com.canonical.Unity";
const LAUNCHER_ENTRY: &str = "com.canonical.Unity.LauncherEntry";

/// Runs as long as the daemon.
pub async fn run(shared: Arc<Shared>, bus: zbus::Connection) {
    let mut said: HashMap<AppId, u16> = HashMap::new();
    let came = super::arrivals(&bus, DESKTOP).await;
    loop {
        match shared.store.apps().await {
            Ok(apps) => say_changed(&shared, &bus, &apps, &mut said).await,
            Err(error) => error!("the store failed: {error}"),
        }
        tokio::select! {
            () = shared.hints.badges.notified() => {}
            () = came.notified() => said.clear(),
        }
    }
}

async fn say_changed(shared: &Shared, bus: &zbus::Connection, apps: &[AppRow], said: &mut HashMap<AppId, u16>) {
    // An app that is gone has no badge.
    let gone = said.keys().filter(|app| !apps.iter().any(|row| row.app == **app)).cloned().map(|app| (app, 0));
    let now = apps.iter().map(|row| (row.app.clone(), row.badge));
    for (app, badge) in gone.chain(now).collect::<Vec<_>>() {
        if said.get(&app).copied().unwrap_or(0) == badge {
            continue;
        }
        match say(shared, bus, &app, badge).await {
            Ok(()) => drop(said.insert(app, badge)),
            Err(error) => debug!(%app, "a badge was not said: {error}"),
        }
    }
    said.retain(|app, _| apps.iter().any(|row| row.app == *app));
}

async fn say(shared: &Shared, bus: &zbus::Connection, app: &AppId, badge: u16) -> zbus::Result<()> {
    let emitter = SignalEmitter::new(bus, PATH)?;
    Push::badge_changed(&emitter, app.as_str(), badge.into()).await?;
    let profile = shared.profile(bus, app).await;
    let Some(desktop) = profile.desktop else { return Ok(()) };
    let uri = format!("application://{}.desktop", desktop.id());
    let path = format!("/com/canonical/unity/launcherentry/{}", djb(&uri));
    let members =
        HashMap::from([("count", Variant::from(i64::from(badge))), ("count-visible", Variant::from(badge > 0))]);
    bus.emit_signal(None::<&str>, path.as_str(), LAUNCHER_ENTRY, "Update", &(uri, members)).await
}

/// The hash that names the object, as libunity and all who followed it compute it.
fn djb(text: &str) -> u32 {
    text.bytes().fold(5381, |hash: u32, byte| hash.wrapping_mul(33).wrapping_add(byte.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_djb_s() {
        assert_eq!((djb(""), djb("a"), djb("ab")), (5381, 177_670, 5_863_208));
    }
}
