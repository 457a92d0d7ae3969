//! What the server does from time to time beside its work: it counts what waits, and forgets who is
//! idle, devices that stay away, and what became of messages long ago.
//!
//! Everything here goes in bounded steps with pauses between them, and nothing waits for it: a
//! message or a device never finds the store's writer busy with more than one step.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info};

use crate::daemon::Stop;

use super::Server;

/// How often it is looked whether there is something to do.
const EVERY: Duration = Duration::from_secs(60);
/// The pause between two steps.
const PAUSE: Duration = Duration::from_millis(100);

/// Keeps the server tidy until the stop comes.
pub async fn run(server: Arc<Server>, mut stop: Stop) {
    loop {
        let pass = async {
            server.rates.forget_idle();
            server.turns.forget_idle();
            count(&server).await;
            forget_devices(&server).await;
            forget_history(&server).await;
            forget_confirmations(&server).await;
            forget_channels(&server).await;
            tokio::time::sleep(EVERY).await;
        };
        tokio::select! {
            () = stop.wait() => return,
            () = pass => {}
        }
    }
}

async fn count(server: &Server) {
    if let Err(error) = server.store.count_waiting().await {
        debug!("what waits is counted later: {error}");
    }
}

async fn forget_history(server: &Server) {
    loop {
        match server.store.trim_history().await {
            Ok(true) => return,
            Ok(false) => tokio::time::sleep(PAUSE).await,
            Err(error) => return debug!("history is forgotten later: {error}"),
        }
    }
}

async fn forget_confirmations(server: &Server) {
    loop {
        match server.store.trim_confirmations().await {
            Ok(true) => return,
            Ok(false) => tokio::time::sleep(PAUSE).await,
            Err(error) => return debug!("receipts that nobody asks for are forgotten later: {error}"),
        }
    }
}

async fn forget_channels(server: &Server) {
    loop {
        match server.store.forget_ended_channels().await {
            Ok(true) => return,
            Ok(false) => tokio::time::sleep(PAUSE).await,
            Err(error) => return debug!("channels that ended are forgotten later: {error}"),
        }
    }
}

async fn forget_devices(server: &Server) {
    let mut forgotten = 0;
    loop {
        match server.store.forget_devices().await {
            Ok((step, done)) => {
                forgotten += step;
                if done {
                    break;
                }
            }
            // The writer has said what is wrong; the next pass tries again.
            Err(error) => {
                debug!("devices that stay away are forgotten later: {error}");
                break;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    if forgotten > 0 {
        info!(devices = forgotten, "forgot devices that stayed away for too long");
    }
}
