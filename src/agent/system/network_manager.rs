//! NetworkManager: whether the network is paid for by the byte.

use futures_util::StreamExt;
use tracing::debug;
use zbus::Connection;

use super::bus::{Object, ask};
use super::{Out, Signal};

/// Its name.
pub const NAME: &str = "org.freedesktop.NetworkManager";

const MANAGER: Object = Object { name: NAME, path: "/org/freedesktop/NetworkManager", interface: NAME };

/// Tells what the network costs, and again whenever something about it has changed.
pub async fn hear(bus: &Connection, out: &Out) -> zbus::Result<()> {
    let mut changes = MANAGER.changes(bus).await?;
    loop {
        let (answer, news) = ask(&mut changes, MANAGER.get(bus, "Metered")).await;
        match answer {
            Ok(metered) if out.send(Signal::Metered(is_metered(metered))).await.is_err() => return Ok(()),
            Ok(_) => {}
            // It is asked again at the next change.
            Err(error) => debug!("NetworkManager does not say what the network costs: {error}"),
        }
        if !news && changes.next().await.is_none() {
            return Ok(());
        }
    }
}

/// `NMMetered`: 1 is yes, 3 is a guess that it is.
fn is_metered(metered: u32) -> bool {
    matches!(metered, 1 | 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guess_counts() {
        let metered: Vec<u32> = (0..6).filter(|value| is_metered(*value)).collect();
        assert_eq!(metered, [1, 3]);
    }
}
