//! What happens because its time has come: delayed messages are released, and expired ones removed.
//!
//! The wall clock says when, and may be set at any moment: as long as something waits for its time,
//! the clock is read every second. Sessions look at the expiry themselves; they never wait for this.

use std::sync::Arc;
use std::time::Duration;

use tracing::debug;

use super::Server;
use crate::db::DbError;
use crate::world;

/// How often the clock is read while something waits for its time.
const TICK: Duration = Duration::from_secs(1);
/// The pause after the store failed.
const STORE_RETRY: Duration = Duration::from_secs(5);

/// Runs as long as the server.
pub async fn run(server: Arc<Server>) {
    loop {
        match keep(&server).await {
            Ok(true) => tokio::time::sleep(TICK).await,
            // A message that comes says so.
            Ok(false) => server.accepted.notified().await,
            Err(error) => {
                // The writer has said what is wrong.
                debug!("what is due could not be done: {error}");
                tokio::time::sleep(STORE_RETRY).await;
            }
        }
    }
}

/// Does what is due; returns whether something waits for its time.
async fn keep(server: &Server) -> Result<bool, DbError> {
    let due = server.store.next_due().await?;
    if due.is_some_and(|due| due <= world::now()) {
        release(server).await?;
        while !server.store.sweep().await? {}
    }
    Ok(due.is_some())
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
