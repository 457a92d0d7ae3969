//! systemd-logind, or elogind: when the machine goes to sleep and when it is awake again.
//!
//! A lock delays the sleep until what came is acknowledged. It must never be held for longer than
//! [`LOCK`], and is taken anew after each sleep.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::oneshot;
use tracing::debug;
use zbus::{Connection, OwnedFd};

use super::bus::Object;
use super::{Out, Ready, Signal};

/// Its name.
pub const NAME: &str = "org.freedesktop.login1";

const MANAGER: Object =
    Object { name: NAME, path: "/org/freedesktop/login1", interface: "org.freedesktop.login1.Manager" };

/// How long the sleep is delayed at most.
const LOCK: Duration = Duration::from_secs(2);

/// Tells of each sleep, before and after.
pub async fn hear(bus: &Connection, out: &Out) -> zbus::Result<()> {
    let mut sleeps = MANAGER.signal(bus, "PrepareForSleep").await?;
    let mut lock = delay(bus).await;
    while let Some(signal) = sleeps.next().await {
        if signal?.body().deserialize()? {
            let (ready, done) = oneshot::channel();
            if out.send(Signal::Asleep(Ready(ready))).await.is_err() {
                return Ok(());
            }
            // Dropped, or late: both let the machine sleep.
            let _ = tokio::time::timeout(LOCK, done).await;
            drop(lock.take());
        } else {
            if out.send(Signal::Awake).await.is_err() {
                return Ok(());
            }
            lock = delay(bus).await;
        }
    }
    Ok(())
}

/// Takes a lock that delays the next sleep, as long as it is held.
async fn delay(bus: &Connection) -> Option<OwnedFd> {
    let arguments = ("sleep", "bellwired", "Messages that have come are put on disk", "delay");
    let lock = MANAGER.call(bus, "Inhibit", &arguments).await;
    // The sleep comes undelayed then.
    lock.inspect_err(|error| debug!("logind grants no delay of a sleep: {error}")).ok()
}
