//! What happens because its time has come: delayed messages are released, expired ones removed, and
//! old history is forgotten.
//!
//! The wall clock says when, and may be set at any moment: as long as something waits for its time,
//! the clock is read every second. Sessions look at the expiry themselves; they never wait for this.

use std::sync::Arc;
use std::time::Duration;

use tracing::error;

use super::Server;
use crate::db::DbError;
use crate::proto::Moment;
use crate::world;

/// How often the clock is read while something waits for its time.
const TICK: Duration = Duration::from_secs(1);
/// How often old history is looked for.
const HOUSEKEEPING: Duration = Duration::from_secs(60);
/// The pause after the store failed.
const STORE_RETRY: Duration = Duration::from_secs(30);

/// Runs as long as the server.
pub async fn run(server: Arc<Server>) {
    let mut housekeeping = server.clock.now();
    loop {
        let wait = match keep(&server, &mut housekeeping).await {
            Ok(Some(wait)) => wait,
            // A message that comes says so; history can wait for one.
            Ok(None) => {
                server.accepted.notified().await;
                continue;
            }
            Err(error) => {
                error!("what is due could not be done: {error}");
                STORE_RETRY
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// Does what is due; returns when to look again, or `None` if nothing waits for its time.
async fn keep(server: &Server, housekeeping: &mut Moment) -> Result<Option<Duration>, DbError> {
    let due = server.store.next_due().await?;
    if due.is_some_and(|due| due <= world::now()) {
        release(server).await?;
        while !server.store.sweep().await? {}
        server.receipts.notify_one();
    }
    if server.clock.now() >= *housekeeping {
        while !server.store.trim_history().await? {}
        *housekeeping = server.clock.now().after(HOUSEKEEPING);
    }
    Ok(due.map(|_| TICK))
}

async fn release(server: &Server) -> Result<(), DbError> {
    loop {
        let (devices, complete) = server.store.release().await?;
        devices.into_iter().for_each(|device| server.registry.wake(device));
        if complete {
            return Ok(());
        }
    }
}
