//! What the server's supervisor is told: how many devices are here, what is wrong with the store, and that the
//! server lives, which it does as long as its tasks run and its store answers.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};

use super::Server;
use super::store::vitals::LastWrite;
use crate::daemon::Stop;
use crate::supervisor::{self, Watchdog};

/// How old the line may be.
const EVERY: Duration = Duration::from_secs(30);
/// How long the store may take for a short answer; twice as long is less than half of the unit's patience.
const ANSWER: Duration = Duration::from_secs(10);

/// Tells it until the stop comes.
pub async fn run(server: Arc<Server>, mut stop: Stop) {
    if !supervisor::listens() {
        return;
    }
    let (mut watchdog, mut ticks, mut told) = (Watchdog::wanted(), interval(EVERY), String::new());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.wait() => return,
            // One answer that is late is not the end.
            () = watchdog.due() => if answers(&server).await || answers(&server).await {
                supervisor::alive();
            },
            _ = ticks.tick() => {
                let line = line(server.registry.count(), server.store.vitals().last_write());
                if line != told {
                    supervisor::tell(&line);
                    told = line;
                }
            }
        }
    }
}

/// An error is an answer as well: a new start would get the same.
async fn answers(server: &Server) -> bool {
    timeout(ANSWER, server.store.key_ring(server.config.region)).await.is_ok()
}

/// PURE.
fn line(devices: usize, last_write: LastWrite) -> String {
    let store = match last_write {
        LastWrite::None | LastWrite::Good => "",
        LastWrite::Failed => "; the store could not write",
        LastWrite::Stuck => "; the store waits for the disk",
    };
    match devices {
        1 => format!("one device is connected{store}"),
        _ => format!("{devices} devices are connected{store}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_names_devices_and_what_is_wrong() {
        assert_eq!(line(0, LastWrite::None), "0 devices are connected");
        assert_eq!(line(1, LastWrite::Failed), "one device is connected; the store could not write");
    }
}
