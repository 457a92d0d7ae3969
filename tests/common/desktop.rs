//! A desktop for tests: a screen nobody sees (Xvfb), a real notification server (dunst) on a
//! device's bus, an app that can be started, and the stage on which all of it meets.

// Each test file is a program of its own and uses a part of this.
#![allow(dead_code)]

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use zbus::{Connection, OwnedVariant, Variant};

use crate::common::{self, App, Server, so};
use crate::device::{Device, DeviceApp, codes, post, within};

/// The middle of a notification, on the screen: dunst shows the newest on top, at a place that its
/// configuration names.
const NOTIFICATION: (&str, &str) = ("400", "40");

/// A screen with a notification server. Dropping it stops both.
pub struct Desktop {
    screen: Child,
    dunst: Child,
    display: String,
    address: String,
    folder: PathBuf,
}

impl Desktop {
    /// A desktop on the device's bus.
    pub async fn start(device: &Device) -> Self {
        let mut screen = Command::new("Xvfb");
        screen.args(["-displayfd", "1", "-screen", "0", "800x480x24", "-nolisten", "tcp"]);
        screen.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut screen = screen.spawn().expect("Xvfb is missing: apt-get install xvfb");
        let number = common::first_line(screen.stdout.take().expect("it is piped"));
        let (display, folder) = (format!(":{number}"), device.folder.path().to_owned());
        let dunst = launch_dunst(&folder, &display, &device.address);
        let desktop = Self { screen, dunst, display, address: device.address.clone(), folder };
        desktop.until_ready(&device.connect().await).await;
        desktop
    }

    /// Ends the notification server and starts it anew: what it showed is gone.
    pub async fn restart_server(&mut self, bus: &Connection) {
        common::stop(&mut self.dunst);
        self.dunst = launch_dunst(&self.folder, &self.display, &self.address);
        self.until_ready(bus).await;
    }

    async fn until_ready(&self, bus: &Connection) {
        let (name, path) = ("org.freedesktop.Notifications", "/org/freedesktop/Notifications");
        common::until(async || {
            let answer = bus.call_method(Some(name), path, Some(name), "GetServerInformation", &()).await;
            answer.map(drop).map_err(|error| format!("dunst does not answer: {error}"))
        })
        .await;
    }

    /// How many notifications are on the screen.
    pub async fn displayed(&self, bus: &Connection) -> u32 {
        let properties = Some("org.freedesktop.DBus.Properties");
        let arguments = ("org.dunstproject.cmd0", "displayedLength");
        let path = "/org/freedesktop/Notifications";
        let call = bus.call_method(Some("org.freedesktop.Notifications"), path, properties, "Get", &arguments);
        let value: OwnedVariant =
            within("dunst", call).await.expect("dunst runs").body().deserialize().expect("a value");
        u32::try_from(value).expect("a number")
    }

    /// Waits until so many notifications are on the screen.
    pub async fn until_displayed(&self, bus: &Connection, count: u32) {
        common::until(async || {
            let now = self.displayed(bus).await;
            so(now == count, || format!("{now} notifications are shown, not {count}"))
        })
        .await;
    }

    /// Closes everything on the screen and returns it, as (app, body), the newest first.
    pub async fn close_all(&self, bus: &Connection) -> Vec<(String, String)> {
        let shown = self.displayed(bus).await as usize;
        self.dunst(bus, "NotificationCloseAll").await;
        let history: Vec<HashMap<String, OwnedVariant>> =
            self.dunst(bus, "NotificationListHistory").await.body().deserialize().expect("a list");
        let text = |entry: &HashMap<String, OwnedVariant>, name: &str| {
            String::try_from(entry[name].clone()).expect("the member is text")
        };
        history.iter().take(shown).map(|entry| (text(entry, "appname"), text(entry, "body"))).collect()
    }

    async fn dunst(&self, bus: &Connection, method: &str) -> zbus::Message {
        let (name, path) = ("org.freedesktop.Notifications", "/org/freedesktop/Notifications");
        let call = bus.call_method(Some(name), path, Some("org.dunstproject.cmd0"), method, &());
        within(method, call).await.expect("dunst runs")
    }

    /// Clicks on the topmost notification, as a hand with a mouse does.
    pub fn click(&self) {
        let (x, y) = NOTIFICATION;
        let mut command = Command::new("xdotool");
        command.env("DISPLAY", &self.display);
        // dunst maps its window a moment after it has answered.
        command.args(["search", "--sync", "--onlyvisible", "--class", "Dunst", "mousemove", x, y, "click", "1"]);
        let done = command.status().expect("xdotool is missing: apt-get install xdotool");
        assert!(done.success());
    }

    /// A picture of the screen, in this file.
    pub fn picture(&self, path: &str) {
        let mut command = Command::new("import");
        command.env("DISPLAY", &self.display).args(["-window", "root", path]);
        let done = command.status().expect("import is missing: apt-get install imagemagick");
        assert!(done.success());
    }
}

impl Drop for Desktop {
    fn drop(&mut self) {
        common::stop(&mut self.dunst);
        common::stop(&mut self.screen);
    }
}

fn launch_dunst(folder: &std::path::Path, display: &str, address: &str) -> Child {
    let config = folder.join("dunstrc");
    std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/launched/dunstrc"), &config).expect("a file");
    let mut command = Command::new("dunst");
    command.arg("-conf").arg(config).env("DISPLAY", display).env("DBUS_SESSION_BUS_ADDRESS", address);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("dunst is missing: apt-get install dunst")
}

/// An app that is installed on a device and can be started: `launched/app.py`.
pub struct Installed {
    /// Its id, which is its desktop file's and its name on the bus as well.
    pub id: String,
    log: PathBuf,
}

impl Installed {
    /// Installs an app with a desktop file and, if it is to be activated, an activation file.
    pub async fn new(device: &Device, id: &str, name: &str, activatable: bool) -> Self {
        let log = device.folder.path().join(format!("{id}.log"));
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/launched/app.py");
        let exec = format!("{} {script} {id} {}", common::python(), log.display());
        let address = &device.address;
        if activatable {
            let service = format!("[D-BUS Service]\nName={id}\nExec={exec} {id}\n");
            device.install(&format!("dbus-1/services/{id}.service"), &service);
            let bus = device.connect().await;
            let dbus = zbus::fdo::DBusProxy::new(&bus).await.expect("the bus answers");
            dbus.reload_config().await.expect("the bus reads its folders anew");
        }
        // A program that is not activated has to be told where the bus is.
        let exec = format!("env DBUS_SESSION_BUS_ADDRESS={address} {exec}");
        let entry = format!(
            "[Desktop Entry]\nType=Application\nName={name}\nIcon=mail-unread\nExec={exec}\nDBusActivatable={activatable}\n"
        );
        device.install(&format!("applications/{id}.desktop"), &entry);
        Self { id: id.to_owned(), log }
    }

    /// What it wrote down, in order.
    pub fn events(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().map(|line| line.parse().expect("a line is JSON")).collect()
    }

    /// The events of this kind.
    pub fn events_of(&self, kind: &str) -> Vec<Value> {
        self.events().into_iter().filter(|event| event["event"] == kind).collect()
    }

    /// Waits until it wrote down so many events of this kind.
    pub async fn until(&self, kind: &str, count: usize) {
        let seen = || self.events_of(kind).len() >= count;
        common::until(async || so(seen(), || format!("no {count} events {kind} in {:?}", self.events()))).await;
    }

    /// Forgets what it wrote down.
    pub fn forget(&self) {
        let _ = std::fs::remove_file(&self.log);
    }
}

/// A server, a device with a desktop, and an app that is installed and registered there, and away.
pub struct Stage {
    pub server: Server,
    pub app: App,
    pub device: Device,
    pub desktop: Desktop,
    pub installed: Installed,
    /// The test's own connection to the bus.
    pub bus: Connection,
    /// The app as a process of the test.
    pub here: DeviceApp,
}

impl Stage {
    /// A stage for the app with this id, whose name is Chat, on an agent with these settings.
    pub async fn set(id: &str, settings: &str, activatable: bool) -> Self {
        let server = Server::start("00", "");
        let app = server.app_add(id);
        let device = Device::start(&server.gateway, settings);
        let installed = Installed::new(&device, id, "Chat", activatable).await;
        let desktop = Desktop::start(&device).await;
        let here = device.app(id).await;
        let bus = device.connect().await;
        let stage = Self { server, app, device, desktop, installed, bus, here };
        stage.leave().await;
        stage
    }

    /// Posts a message with this request id, which is its `appData` too; `extra` goes beside its
    /// other members.
    pub fn post(&self, request_id: &str, message: &str, extra: Value) {
        let mut request = json!({
            "regID": self.here.reg_id, "requestID": request_id, "appData": request_id, "message": message,
            "sessionInfo": "last",
        });
        request.as_object_mut().expect("an object").extend(extra.as_object().cloned().unwrap_or_default());
        assert_eq!(codes(&post(&self.server, &self.app, &request)), [1000], "{request_id}");
    }

    /// Changes what the user allows the app.
    pub async fn settings(&self, all: &[(&str, bool)]) {
        let settings: HashMap<&str, Variant<'_>> = all.iter().map(|(name, on)| (*name, Variant::from(*on))).collect();
        self.device.manage::<()>(&self.bus, "SetApp", &(self.here.id.as_str(), settings)).await;
    }

    pub async fn do_not_disturb(&self, on: bool) {
        self.device.manage::<()>(&self.bus, "SetDoNotDisturb", &on).await;
    }

    /// Waits until this has become of the message with this request id.
    pub async fn until_hop(&self, request_id: &str, hop: &str) {
        self.device.until_hop(&self.bus, request_id, hop).await;
    }

    pub async fn badge(&self) -> u32 {
        self.here.call("GetBadge", &self.here.id).await.expect("it is the app's own")
    }

    pub async fn unread(&self) -> u32 {
        u32::try_from(self.device.listed(&self.bus, &self.here.id).await["unread"].clone()).expect("a number")
    }

    /// Disconnects the app of the test.
    pub async fn leave(&self) {
        self.here.call::<()>("Disconnect", &self.here.id).await.expect("it is connected");
        self.until_away().await;
    }

    pub async fn until_away(&self) {
        common::until(async || {
            let row = self.device.listed(&self.bus, &self.here.id).await;
            so(row["connected"] == OwnedVariant::from(false), || "the app does not go".to_owned())
        })
        .await;
    }

    /// Takes whatever is unread, as the app: the `appData` of each.
    pub async fn take_all(&self) -> Vec<String> {
        self.here.connect(&[("hold-unread", true)]).await.expect("the app may connect");
        let mut taken = Vec::new();
        loop {
            let message: HashMap<String, OwnedVariant> =
                self.here.call("TakeUnread", &self.here.id).await.expect("it is connected");
            let Some(data) = message.get("app_data") else { break };
            taken.push(String::try_from(data.clone()).expect("text"));
        }
        self.leave().await;
        taken
    }
}
