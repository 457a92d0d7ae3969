//! What the machine says of itself, by the services of a real system bus: NetworkManager, ConnMan,
//! systemd-logind and UPower are played by python-dbusmock, which has their interfaces from somebody else.

#![cfg(all(feature = "agent", feature = "server", feature = "fault-points"))]

mod common;
#[path = "common/device.rs"]
mod device;

use std::collections::HashMap;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Server, so, until, until_within};
use device::{Device, MANAGER, codes, next_signal, post, request, within};
use futures_util::{FutureExt, StreamExt};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use zbus::fdo::DBusProxy;
use zbus::{Connection, OwnedVariant, Variant};

const APP: &str = "org.example.Chat";
/// The interface by which a service is told what to play.
const MOCK: &str = "org.freedesktop.DBus.Mock";

/// A service of the system bus. Dropping it stops it.
struct Service {
    child: Child,
    bus: Connection,
    name: &'static str,
    path: &'static str,
    interface: &'static str,
}

impl Service {
    /// One that has these interfaces by a template.
    async fn template(device: &Device, template: &str, name: &'static str, path: &'static str) -> Self {
        Self::start(device, &["--template", template], name, path, name).await
    }

    /// One that has nothing yet.
    async fn empty(device: &Device, name: &'static str, path: &'static str, interface: &'static str) -> Self {
        Self::start(device, &["--system", name, path, interface], name, path, interface).await
    }

    async fn start(
        device: &Device,
        arguments: &[&str],
        name: &'static str,
        path: &'static str,
        interface: &'static str,
    ) -> Self {
        // Debian's own: the bindings that it needs are of the system.
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-m", "dbusmock"]).args(arguments).env("DBUS_SYSTEM_BUS_ADDRESS", &device.address);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        let mut child = command.spawn().expect("python3 is missing: apt-get install python3");
        let bus = device.connect().await;
        until(async || {
            let ended = child.try_wait().expect("it is ours").is_some();
            assert!(!ended, "it has said why; if there is no dbusmock: apt-get install python3-dbusmock");
            so(has_owner(&bus, name).await, || format!("{name} is not on the bus"))
        })
        .await;
        Self { child, bus, name, path, interface }
    }

    async fn call(
        &self,
        path: &str,
        interface: &str,
        method: &str,
        body: &(impl serde::Serialize + zbus::DynamicType),
    ) {
        let call = self.bus.call_method(Some(self.name), path, Some(interface), method, body);
        within(method, call).await.unwrap_or_else(|error| panic!("{method}: {error}"));
    }

    async fn add_property(&self, name: &str, value: Variant<'_>) {
        self.call(self.path, MOCK, "AddProperty", &(self.interface, name, value)).await;
    }

    /// Sets a property, and signals that.
    async fn set(&self, path: &str, interface: &str, name: &str, value: Variant<'_>) {
        self.call(path, "org.freedesktop.DBus.Properties", "Set", &(interface, name, value)).await;
    }

    async fn emit(&self, interface: &str, name: &str, signature: &str, values: Vec<Variant<'_>>) {
        self.call(self.path, MOCK, "EmitSignal", &(interface, name, signature, values)).await;
    }

    /// Stops it for a while, or lets it go on.
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).expect("a process id")), signal).expect("it is ours");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn has_owner(bus: &Connection, name: &'static str) -> bool {
    let name = zbus::names::WellKnownName::from_static_str(name).expect("a name");
    DBusProxy::new(bus).await.expect("the bus runs").name_has_owner(name.into()).await.expect("the bus runs")
}

fn tells_of(link: &Value, source: &str) -> bool {
    link["sources"].as_array().is_some_and(|sources| sources.contains(&json!(source)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleep_is_held_up_for_a_moment_and_followed_by_a_ping() {
    let server = Server::start("00", "");
    let device = Device::start(&server.gateway, "");
    device.until_online().await;
    // It comes when the agent is there already.
    let logind = Service::template(&device, "logind", "org.freedesktop.login1", "/org/freedesktop/login1").await;
    let manager = "org.freedesktop.login1.Manager";
    let locks = async || {
        let call = logind.bus.call_method(Some(logind.name), logind.path, Some(manager), "ListInhibitors", &());
        let locks: Vec<(String, String, String, String, u32, u32)> =
            within("locks", call).await.expect("logind runs").body().deserialize().expect("a list");
        locks.into_iter().map(|(what, who, _, mode, ..)| format!("{what} {who} {mode}")).collect::<Vec<_>>()
    };
    let until_locks = async |wanted: &[&str]| {
        until(async || {
            let held = locks().await;
            so(held == wanted, || format!("{held:?}, not {wanted:?}\n{}", device.log()))
        })
        .await;
    };
    for sleep in 1..=2 {
        until_locks(&["sleep bellwired delay"]).await;
        logind.emit(manager, "PrepareForSleep", "b", vec![true.into()]).await;
        until_locks(&[]).await;
        logind.emit(manager, "PrepareForSleep", "b", vec![false.into()]).await;
        if sleep == 1 {
            device.until_told(|link| link["pings_today"] == 1).await;
        }
    }
    until_locks(&["sleep bellwired delay"]).await;
    let link = device.link();
    assert_eq!((&link["state"], tells_of(&link, "logind")), (&json!("online"), true), "{link}");
    drop(logind);
    device.until_told(|link| !tells_of(link, "logind") && link["state"] == "online").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn power_is_what_upower_says_and_external_when_it_says_nothing() {
    // A device that pings every half second: it looks at the battery then.
    let speed = ("BELLWIRE_SPEED".to_owned(), "20".to_owned());
    let server = Server::start_with("00", "[gateway]\nka-max-s = 10", vec![speed]);
    let device = Device::start_inside(Vec::new(), &server.gateway, "", &[("BELLWIRE_SPEED", "20")]);
    device.until_online().await;
    assert_eq!(device.link()["power"], "external");
    let name = "org.freedesktop.UPower";
    let upower = Service::template(&device, "upower", name, "/org/freedesktop/UPower").await;
    let battery = ("/org/freedesktop/UPower/devices/DisplayDevice", "org.freedesktop.UPower.Device");
    let until_power = async |wanted: &str| drop(device.until_told(|link| link["power"] == wanted).await);
    upower.set(battery.0, battery.1, "Percentage", 60.0.into()).await;
    upower.set(battery.0, battery.1, "State", 2_u32.into()).await;
    device.until_told(|link| tells_of(link, "upower") && link["power"] == "external").await;
    upower.set(upower.path, name, "OnBattery", true.into()).await;
    until_power("battery").await;
    upower.set(battery.0, battery.1, "Percentage", 14.0.into()).await;
    until_power("low-battery").await;
    let told = device.tool(&["status"]);
    let told = String::from_utf8_lossy(&told.stdout);
    assert!(told.contains("\nmachine  on a low battery (told by netlink, upower)\n"), "{told}");
    upower.set(battery.0, battery.1, "State", 1_u32.into()).await;
    until_power("battery").await;
    upower.set(upower.path, name, "OnBattery", false.into()).await;
    until_power("external").await;
    upower.set(upower.path, name, "OnBattery", true.into()).await;
    until_power("battery").await;
    drop(upower);
    until_power("external").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_network_costs_is_what_its_manager_says() {
    let server = Server::start("00", "");
    let device = Device::start(&server.gateway, "");
    device.until_online().await;
    let until_metered = async |wanted: bool| drop(device.until_told(|link| link["metered"] == wanted).await);
    until_metered(false).await;

    let name = "org.freedesktop.NetworkManager";
    let manager = Service::empty(&device, name, "/org/freedesktop/NetworkManager", name).await;
    // It is there before it knows what the network costs.
    device.until_told(|link| tells_of(link, "network-manager")).await;
    manager.add_property("Metered", 4_u32.into()).await;
    for (value, metered) in [(1_u32, true), (2, false), (3, true)] {
        manager.set(manager.path, name, "Metered", value.into()).await;
        until_metered(metered).await;
    }
    drop(manager);
    until_metered(false).await;

    let interface = "net.connman.Manager";
    let connman = Service::empty(&device, "net.connman", "/", interface).await;
    device.until_told(|link| tells_of(link, "connman") && !tells_of(link, "network-manager")).await;
    for (kind, metered) in [("cellular", true), ("wifi", false)] {
        let code = format!(
            "ret = [('/net/connman/service/a', {{'Type': 'wifi', 'State': 'idle'}}),
                    ('/net/connman/service/b', {{'Type': '{kind}', 'State': 'online'}})]"
        );
        connman.call("/", MOCK, "AddMethod", &(interface, "GetServices", "", "a(oa{sv})", code)).await;
        let state = vec!["State".into(), Variant::new(Variant::from("online"))];
        connman.emit(interface, "PropertyChanged", "sv", state).await;
        until_metered(metered).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn services_that_stall_keep_nobody_from_anything() {
    let server = Server::start("00", "");
    let app = server.app_add(APP);
    let mut device = Device::start(&server.gateway, "");
    device.stop_agent();
    let name = "org.freedesktop.NetworkManager";
    let manager = Service::empty(&device, name, "/org/freedesktop/NetworkManager", name).await;
    manager.add_property("Metered", 1_u32.into()).await;
    let logind = Service::template(&device, "logind", "org.freedesktop.login1", "/org/freedesktop/login1").await;
    let upower = Service::template(&device, "upower", "org.freedesktop.UPower", "/org/freedesktop/UPower").await;
    for service in [&manager, &logind, &upower] {
        service.signal(Signal::SIGSTOP);
    }
    device.restart_agent();
    device.until_online().await;
    let mut here = device.app(APP).await;
    assert_eq!(codes(&post(&server, &app, &request(here.reg_id.as_str(), "1", "hello"))), [1000]);
    assert_eq!(here.next().await.data(), "hello");
    assert_eq!(device.link()["metered"], false);
    for service in [&manager, &logind, &upower] {
        service.signal(Signal::SIGCONT);
    }
    // It answers now, or is asked again when it has news.
    manager.set(manager.path, name, "Metered", 3_u32.into()).await;
    device.until_told(|link| link["metered"] == true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_anybody_who_tells_the_device_comes_back_all_the_same() {
    const SPEED: u32 = 120;
    /// However long the network seems to be gone, an attempt is made after this time.
    const SAFETY_POLL: Duration = Duration::from_secs(900);
    let speed = SPEED.to_string();
    let mut server = Server::start_with("00", "", vec![("BELLWIRE_SPEED".to_owned(), speed.clone())]);
    let nowhere = [("BELLWIRE_SPEED", speed.as_str()), ("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nowhere/bus")];
    let device =
        Device::start_inside(Vec::new(), &server.gateway, "watch = [\"network-manager\", \"logind\"]", &nowhere);
    device.until_online().await;
    assert!(device.log().contains("told by nobody"), "{}", device.log());
    server.kill();
    // It has tried for so long that it waits long between its attempts.
    device.until_told(|link| link["failures"].as_u64().is_some_and(|failures| failures >= 8)).await;
    server.restart();
    until_within(SAFETY_POLL / SPEED + common::DEADLINE / 4, async || {
        let link = device.link();
        so(link["state"] == "online", || format!("{link}\n{}", device.log()))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_offline_for_five_minutes_with_a_network_says_so_once() {
    let speed = ("BELLWIRE_SPEED", "300");
    let mut server = Server::start("00", "");
    let device = Device::start_inside(Vec::new(), &server.gateway, "", &[speed]);
    device.until_online().await;
    let bus = device.connect().await;
    let mut signals = device.signals(&bus, MANAGER).await;
    server.kill();
    let (offline_s, why): (u64, String) = next_signal(&mut signals, "OutOfReach").await;
    assert!(offline_s >= 300 && why.contains(&server.gateway), "{offline_s} s: {why}");
    let link = device.until_told(|link| link["state"] == "waiting").await;
    assert_eq!(link["out_of_reach"], true, "{link}");
    assert!(link["offline_s"].as_u64().is_some_and(|seconds| seconds >= 300), "{link}");
    let told = device.tool(&["status"]);
    let told = String::from_utf8_lossy(&told.stdout);
    assert!(told.contains(" s although there is a network"), "{told}");
    // A further attempt fails, and is no news.
    let failures = link["failures"].as_u64().expect("a number");
    device.until_told(|link| link["failures"].as_u64() > Some(failures)).await;
    server.restart();
    device.until_online().await;
    let link = device.link();
    assert_eq!((&link["out_of_reach"], &link["offline_s"]), (&json!(false), &Value::Null), "{link}");
    // What the agent sent before this answer has come before it.
    let _: HashMap<String, OwnedVariant> = device.manage(&bus, "GetStatus", &()).await;
    assert!(signals.next().now_or_never().is_none(), "it was told twice");
    server.kill();
    let (again_s, _): (u64, String) = next_signal(&mut signals, "OutOfReach").await;
    assert!(again_s >= 300, "{again_s}");
}
