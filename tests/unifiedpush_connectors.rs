//! Apps of other hands get their messages by UnifiedPush: one in Python that speaks its first version, and
//! one on UnifiedPush's own connector for Rust. Both register, are started by a message when they do not
//! run, keep their endpoint over restarts of daemon and server, and unregister.

#![cfg(all(feature = "agent", feature = "server", feature = "unifiedpush"))]

mod common;
#[path = "common/device.rs"]
mod device;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use common::{Server, curl, so};
use device::Device;
use serde_json::Value;

const APP: &str = "org.example.Mail";
const TOKEN: &str = "{first}";

/// An app as a program of its own, which writes down what it is called with.
struct Program {
    command: Vec<String>,
    log: PathBuf,
    address: String,
    home: PathBuf,
    running: Option<Child>,
}

impl Program {
    /// The app in Python.
    fn first_version(device: &Device) -> Self {
        let log = device.folder.path().join("connector.log");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/unifiedpush/v1_connector.py");
        let command = [common::python().as_str(), script, APP, &log.to_string_lossy()].map(str::to_owned).to_vec();
        Self { command, log, address: device.address.clone(), home: device.folder.path().to_owned(), running: None }
    }

    /// The app in Rust, which is built at the first run.
    fn of_rust(device: &Device) -> Self {
        let log = device.folder.path().join("connector.log");
        let command = [rust_app().as_str(), APP, &log.to_string_lossy()].map(str::to_owned).to_vec();
        Self { command, log, address: device.address.clone(), home: device.folder.path().to_owned(), running: None }
    }

    /// Lets the bus start it, with these further arguments.
    async fn install(&self, device: &Device, more: &str) {
        let service = format!("[D-BUS Service]\nName={APP}\nExec={} {more}\n", self.command.join(" "));
        device.install(&format!("dbus-1/services/{APP}.service"), &service);
        let bus = device.connect().await;
        zbus::fdo::DBusProxy::new(&bus).await.expect("a bus").reload_config().await.expect("it reads");
    }

    /// Starts it by hand.
    fn start(&mut self) {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).env("DBUS_SESSION_BUS_ADDRESS", &self.address).stdin(Stdio::piped());
        command.env("HOME", &self.home).env_remove("XDG_CONFIG_HOME").env_remove("UNIFIEDPUSH_DISTRIBUTOR");
        self.running = Some(command.spawn().expect("it can be started"));
    }

    /// Ends the one that was started by hand.
    fn stop(&mut self) {
        if let Some(mut child) = self.running.take() {
            common::stop(&mut child);
        }
    }

    /// Tells the one that was started by hand to do something.
    fn tell(&mut self, command: &str) {
        let stdin = self.running.as_mut().and_then(|child| child.stdin.as_mut()).expect("it was started by hand");
        writeln!(stdin, "{command}").expect("it runs");
    }

    /// What it wrote down.
    fn text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What it wrote down of this kind.
    fn events(&self, kind: &str) -> Vec<Value> {
        let text = self.text();
        let events = text.lines().map(|line| line.parse::<Value>().expect("a line is JSON"));
        events.filter(|event| event["event"] == kind).collect()
    }

    /// Waits until nobody has its name, after it ended by itself.
    async fn until_gone(&self, device: &Device) {
        let bus = device.connect().await;
        let dbus = zbus::fdo::DBusProxy::new(&bus).await.expect("a bus");
        let name = zbus::names::BusName::try_from(APP).expect("a name");
        common::until(async || {
            let there = dbus.name_has_owner(name.clone()).await.expect("the bus answers");
            so(!there, || "it does not end".to_owned())
        })
        .await;
    }

    /// Waits until it wrote down so many events of this kind.
    async fn until(&self, kind: &str, count: usize) -> Vec<Value> {
        common::until(async || {
            let events = self.events(kind);
            so(events.len() >= count, || format!("no {count} {kind} in {}", self.text())).map(|()| events)
        })
        .await
    }

    /// Registers it by hand; returns its endpoint.
    async fn register(&mut self) -> String {
        self.start();
        self.tell(&format!("register {TOKEN}"));
        let told = self.until("NewEndpoint", 1).await;
        assert_eq!(told[0]["token"], TOKEN);
        told[0]["endpoint"].as_str().expect("a text").to_owned()
    }

    /// The messages that it was handed, as they were sent.
    fn messages(&self) -> Vec<String> {
        let hex = |event: &Value| hex::decode(event["message"].as_str().expect("a text")).expect("bytes");
        let text = |event: &Value| String::from_utf8(hex(event)).expect("the test sends text");
        self.events("Message").iter().map(text).collect()
    }

    /// Forgets what it wrote down.
    fn forget(&self) {
        let _ = std::fs::remove_file(&self.log);
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The program of the app in Rust: a package of its own, so that only this test builds what it needs.
fn rust_app() -> String {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/unifiedpush/rust/Cargo.toml");
    let target = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("unifiedpush-app");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--manifest-path", manifest, "--target-dir"])
        .arg(&target)
        .status()
        .expect("cargo runs");
    assert!(built.success(), "cargo has said what is missing");
    target.join("debug/unifiedpush-app").to_string_lossy().into_owned()
}

fn send(endpoint: &str, text: &str) {
    let answer = curl(&["--data-binary", "@-", "-H", "TTL: 600", endpoint], text.as_bytes());
    assert_eq!(answer.status, 201, "{answer:?}");
}

/// Sends twenty messages to an app that does not run, and waits until it wrote down that it took them.
async fn send_twenty(program: &Program, endpoint: &str) -> Vec<String> {
    let texts: Vec<String> = (0..20).map(|number| format!("message {number}")).collect();
    texts.iter().for_each(|text| send(endpoint, text));
    program.until("Message", texts.len()).await;
    texts
}

/// An app registers, gets messages while it runs and while it does not, keeps its endpoint over restarts of
/// daemon and server, and unregisters.
async fn live(app: fn(&Device) -> Program, farewell: &str) {
    let mut server = Server::start("00", "");
    let mut device = Device::start(&server.gateway, "");
    let mut app = app(&device);
    let endpoint = app.register().await;
    send(&endpoint, "to the running app");
    app.until("Message", 1).await;
    app.stop();

    app.install(&device, "2").await;
    send(&endpoint, "to the stopped app");
    app.until("Message", 2).await;
    app.until_gone(&device).await;
    assert_eq!(app.messages(), ["to the running app", "to the stopped app"]);

    device.kill_agent();
    server.kill();
    server.restart();
    device.restart_agent();
    device.until_online().await;
    send(&endpoint, "after restarts");
    app.until("Message", 3).await;
    app.until_gone(&device).await;
    app.forget();
    assert_eq!(app.register().await, endpoint);

    app.tell(&format!("unregister {TOKEN}"));
    assert_eq!(app.until("Unregistered", 1).await[0]["token"], farewell);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_of_the_first_version_lives_its_life() {
    live(Program::first_version, "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_on_the_connector_for_rust_lives_its_life() {
    live(Program::of_rust, TOKEN).await;
}

/// A server, a device, and an app of the first version that has registered and does not run: the bus would start
/// it with these arguments. And its endpoint.
async fn stopped(arguments: &str) -> (Server, Device, Program, String) {
    let server = Server::start("00", "");
    let device = Device::start(&server.gateway, "");
    let mut app = Program::first_version(&device);
    let endpoint = app.register().await;
    app.stop();
    app.forget();
    app.install(&device, arguments).await;
    (server, device, app, endpoint)
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_messages_to_a_stopped_app_are_one_start() {
    let (_server, _device, app, endpoint) = stopped("3").await;
    assert_eq!(send_twenty(&app, &endpoint).await, app.messages());
    assert_eq!(app.events("started").len(), 1, "{}", app.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_dies_in_the_middle_is_started_again_and_misses_nothing() {
    let (_server, _device, app, endpoint) = stopped("3 10").await;
    // Each run takes nine and dies of the tenth.
    assert_eq!(send_twenty(&app, &endpoint).await, app.messages());
    assert_eq!((app.events("started").len(), app.events("died").len()), (3, 2), "{}", app.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_must_not_be_started_gets_its_messages_when_it_comes() {
    let (_server, device, mut app, endpoint) = stopped("").await;
    let listed: Value = serde_json::from_slice(&device.tool(&["--json", "app", "list"]).stdout).expect("JSON");
    let channel = listed["apps"][0]["app"].as_str().expect("a text").to_owned();
    assert!(device.tool(&["app", "set", &channel, "--launch", "off"]).status.success());
    send(&endpoint, "patience");
    common::until(async || {
        let shown = String::from_utf8(device.tool(&["message", "list"]).stdout).expect("text");
        so(shown.contains("refused"), || shown)
    })
    .await;
    assert!(app.events("started").is_empty());
    app.start();
    app.until("Message", 1).await;
    assert_eq!(app.messages(), ["patience"]);
}
