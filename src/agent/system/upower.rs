//! UPower: what powers the machine.
//!
//! It tells whenever the machine is plugged in or out. How full the battery is, which changes all the time,
//! is looked at then, and whenever the device is awake for a reason of its own.

use futures_util::StreamExt;
use tokio::sync::Notify;
use tracing::debug;
use zbus::Connection;

use super::bus::{Object, ask};
use super::{Out, Signal};
use crate::proto::surroundings::Power;

/// Its name.
pub const NAME: &str = "org.freedesktop.UPower";

const MACHINE: Object = Object { name: NAME, path: "/org/freedesktop/UPower", interface: NAME };
/// All batteries as one.
const BATTERY: Object = Object {
    name: NAME,
    path: "/org/freedesktop/UPower/devices/DisplayDevice",
    interface: "org.freedesktop.UPower.Device",
};

/// A battery with so many percent is low.
const LOW: f64 = 15.0;
/// `State` of a battery that charges.
const CHARGING: u32 = 1;

/// Tells what powers the machine, and again whenever that has changed.
pub async fn hear(bus: &Connection, out: &Out, woke: &Notify) -> zbus::Result<()> {
    let mut changes = MACHINE.changes(bus).await?;
    let mut last = None;
    loop {
        let (answer, news) = ask(&mut changes, power(bus)).await;
        match answer {
            Ok(power) if last != Some(power) => {
                last = Some(power);
                if out.send(Signal::Power(power)).await.is_err() {
                    return Ok(());
                }
            }
            Ok(_) => {}
            // It is asked again at the next change.
            Err(error) => debug!("UPower does not say what powers the machine: {error}"),
        }
        if news {
            continue;
        }
        let change = match last {
            Some(Power::Battery | Power::LowBattery) => tokio::select! {
                change = changes.next() => change,
                () = woke.notified() => continue,
            },
            Some(Power::External) | None => changes.next().await,
        };
        if change.is_none() {
            return Ok(());
        }
    }
}

async fn power(bus: &Connection) -> zbus::Result<Power> {
    if !MACHINE.get::<bool>(bus, "OnBattery").await? {
        return Ok(Power::External);
    }
    Ok(of_battery(BATTERY.get(bus, "Percentage").await?, BATTERY.get(bus, "State").await?))
}

fn of_battery(percentage: f64, state: u32) -> Power {
    if percentage <= LOW && state != CHARGING { Power::LowBattery } else { Power::Battery }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_battery_is_low_at_fifteen_percent_unless_it_charges() {
        const DISCHARGING: u32 = 2;
        for (percentage, state, expected) in [
            (80.0, DISCHARGING, Power::Battery),
            (15.1, DISCHARGING, Power::Battery),
            (15.0, DISCHARGING, Power::LowBattery),
            (0.0, 0, Power::LowBattery),
            (3.0, CHARGING, Power::Battery),
        ] {
            assert_eq!(of_battery(percentage, state), expected, "{percentage} {state}");
        }
    }
}
