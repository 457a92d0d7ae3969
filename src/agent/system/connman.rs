//! ConnMan: whether the network is paid for by the byte. It has no word for that: a mobile network, or one
//! that roams, is taken to be.

use std::collections::HashMap;

use futures_util::StreamExt;
use tracing::debug;
use zbus::{Connection, OwnedObjectPath, OwnedVariant, Variant};

use super::bus::{Object, ask};
use super::{Out, Signal};

/// Its name.
pub const NAME: &str = "net.connman";

const MANAGER: Object = Object { name: NAME, path: "/", interface: "net.connman.Manager" };

/// A service is a network: its path and its properties.
type Service = (OwnedObjectPath, HashMap<String, OwnedVariant>);

/// Tells what the network costs, and again whenever networks have come, gone or changed places.
pub async fn hear(bus: &Connection, out: &Out) -> zbus::Result<()> {
    let mut changes = MANAGER.signals(bus).await?;
    loop {
        let (answer, news) = ask(&mut changes, MANAGER.call::<Vec<Service>>(bus, "GetServices", &())).await;
        match answer {
            Ok(services) if out.send(Signal::Metered(is_metered(&services))).await.is_err() => return Ok(()),
            Ok(_) => {}
            // It is asked again at the next change.
            Err(error) => debug!("ConnMan does not say which networks there are: {error}"),
        }
        if !news && changes.next().await.is_none() {
            return Ok(());
        }
    }
}

/// Whether the first of the networks that are connected costs; ConnMan lists them as it prefers them.
fn is_metered(services: &[Service]) -> bool {
    let is = |properties: &HashMap<String, OwnedVariant>, name: &str, value: Variant<'_>| {
        properties.get(name).is_some_and(|known| **known == value)
    };
    let connected = |(_, properties): &&Service| {
        ["ready", "online"].into_iter().any(|state| is(properties, "State", Variant::from(state)))
    };
    services.iter().find(connected).is_some_and(|(_, properties)| {
        is(properties, "Type", Variant::from("cellular")) || is(properties, "Roaming", Variant::from(true))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(properties: &[(&str, Variant<'static>)]) -> Service {
        let owned = |(name, value): &(&str, Variant<'static>)| {
            ((*name).to_owned(), OwnedVariant::try_from(value.clone()).unwrap())
        };
        ("/net/connman/service/x".try_into().unwrap(), properties.iter().map(owned).collect())
    }

    #[test]
    fn the_network_in_use_costs_if_it_is_mobile_or_roams() {
        let text = Variant::from;
        let wifi = service(&[("State", text("online")), ("Type", text("wifi"))]);
        let idle = service(&[("State", text("idle")), ("Type", text("wifi"))]);
        let mobile = service(&[("State", text("ready")), ("Type", text("cellular"))]);
        let roaming = service(&[("State", text("online")), ("Type", text("wifi")), ("Roaming", Variant::from(true))]);
        for (services, metered) in [
            (vec![], false),
            (vec![idle.clone()], false),
            (vec![wifi.clone(), mobile.clone()], false),
            (vec![idle, mobile, wifi], true),
            (vec![roaming], true),
        ] {
            assert_eq!(is_metered(&services), metered, "{services:?}");
        }
    }
}
