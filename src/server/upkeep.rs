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
use crate::db::DbError;

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
            in_steps("history is forgotten", || server.store.trim_history()).await;
            in_steps("receipts that nobody asks for are forgotten", || server.store.trim_confirmations()).await;
            in_steps("channels that ended are forgotten", || server.store.forget_ended_channels()).await;
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

/// Forgets in bounded steps until a step says that it was the last.
async fn in_steps<F: Future<Output = Result<bool, DbError>>>(what: &str, step: impl Fn() -> F) {
    loop {
        match step().await {
            Ok(true) => return,
            Ok(false) => tokio::time::sleep(PAUSE).await,
            // The writer has said what is wrong; the next pass tries again.
            Err(error) => return debug!("{what} later: {error}"),
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
