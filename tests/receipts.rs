//! Receipts: a foreign application server is told what became of its messages, whoever is killed
//! meanwhile.

#![cfg(all(feature = "agent", feature = "server"))]

mod common;
#[path = "common/device.rs"]
mod device;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{App, Server, WallClock, first_line, so, until};
use device::{Device, DeviceApp, codes, post};
use serde_json::{Value, json};
use tempfile::TempDir;

const KEY: &str = "the-key-of-the-receipts";
const ROOMY: &str = "[limits]\nwaiting-per-registration = 100000";
const RECEIVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/foreign/receiver.py");

/// A receiver in Python, and what it has kept.
struct Receiver {
    child: Child,
    port: String,
    file: PathBuf,
    manner: Option<&'static str>,
}

impl Receiver {
    fn start(folder: &TempDir, name: &str, manner: Option<&'static str>) -> Self {
        let file = folder.path().join(name);
        let (child, port) = Self::launch("0", &file, manner);
        Self { child, port, file, manner }
    }

    fn launch(port: &str, file: &PathBuf, manner: Option<&str>) -> (Child, String) {
        let mut command = Command::new("python3");
        command.arg(RECEIVER).arg(port).arg(file).arg(KEY).args(manner).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3 is missing: apt-get install python3");
        let port = first_line(child.stdout.take().expect("it is piped"));
        assert!(!port.is_empty(), "the receiver did not start");
        (child, port)
    }

    fn kill(&mut self) {
        self.child.kill().expect("the receiver is ours");
        self.child.wait().expect("the receiver is ours");
    }

    fn restart(&mut self) {
        self.kill();
        (self.child, self.port) = Self::launch(&self.port, &self.file, self.manner);
    }

    /// What it was told: request id and status of each receipt, in order.
    fn told(&self) -> Vec<(String, u64)> {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        let mut told = Vec::new();
        // The last line may be half written if it was killed.
        for line in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            assert_eq!(line["wrong"], Value::Null, "{line}");
            for receipt in line["batch"]["receipts"].as_array().expect("a list") {
                let request_id = receipt["requestID"].as_str().expect("a text").to_owned();
                told.push((request_id, receipt["statusCode"].as_u64().expect("a number")));
            }
        }
        told
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Has the server tell the app's receipts there.
fn tell(server: &Server, app: &App, receiver: &Receiver) {
    let key_file = server.folder.path().join("key");
    std::fs::write(&key_file, KEY).expect("the folder is ours");
    let url = format!("http://127.0.0.1:{}/receipts", receiver.port);
    let key_file = key_file.to_str().expect("a plain name");
    let set = server.admin(&["--json", "app", "callback", &app.id, &url, "--key-file", key_file]);
    assert!(set.status.success(), "{set:?}");
}

async fn registered(server: &Server, device: &Device, id: &str) -> (App, DeviceApp) {
    let app = server.app_add(id);
    (app, device.app(id).await)
}

fn message(to: &DeviceApp, request_id: &str) -> Value {
    json!({ "regID": to.reg_id, "requestID": request_id, "appData": request_id })
}

/// How many messages are sent to each app: as many as the environment says, for a longer run.
fn messages() -> u32 {
    std::env::var("BELLWIRE_MESSAGES").ok().and_then(|count| count.parse().ok()).unwrap_or(1000)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_message_is_told_in_order_whoever_is_killed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut server = Server::start("00", ROOMY);
    let device = Device::start(&server.gateway, "[limits]\nunread-messages = 100000\nunread-bytes = 100000000");
    let mut receivers = ["one", "two"].map(|name| Receiver::start(&folder, name, None));
    let mut apps = Vec::new();
    for (name, receiver) in ["org.example.One", "org.example.Two"].iter().zip(&receivers) {
        let (app, here) = registered(&server, &device, name).await;
        tell(&server, &app, receiver);
        apps.push((app, here.split()));
    }
    let all = messages();
    let mut dice = 7_u32;
    for first in (0..all).step_by(50) {
        for (app, (here, _)) in &apps {
            let batch: Vec<Value> = (first..all.min(first + 50)).map(|n| message(here, &format!("{n:06}"))).collect();
            let answer = post(&server, app, &json!({ "messages": batch }));
            assert!(codes(&answer).iter().all(|code| *code == 1000), "{answer:?}");
        }
        // An xorshift: now one, now the other goes, at no special moment.
        dice ^= dice << 13;
        dice ^= dice >> 17;
        dice ^= dice << 5;
        match dice % 8 {
            0 => {
                server.kill();
                server.restart();
                device.until_online().await;
            }
            1 => receivers[0].restart(),
            2 => receivers[1].restart(),
            _ => {}
        }
    }
    for ((_, (_, inbox)), receiver) in apps.iter_mut().zip(&receivers) {
        let mut had = BTreeSet::new();
        while had.len() < all as usize {
            let message = tokio::time::timeout(common::DEADLINE, inbox.recv()).await;
            had.insert(message.expect("a message in time").expect("the app lives").data());
        }
        common::until_within(Duration::from_secs(90), async || {
            let told: BTreeSet<String> = receiver.told().into_iter().map(|(request_id, _)| request_id).collect();
            so(told == had, || format!("{} of {} were told:\n{}", told.len(), had.len(), server.log()))
        })
        .await;
        let (mut last, mut seen) = (String::new(), BTreeSet::new());
        for (request_id, code) in receiver.told() {
            assert_eq!(code, 1000, "{request_id}");
            // What was told may be told again; what is new comes in order.
            if seen.insert(request_id.clone()) {
                assert!(request_id > last, "{request_id} after {last}");
                last = request_id;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_did_not_arrive_is_told_as_such_and_what_nobody_wants_to_know_is_not_told() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start("00", "[limits]\nwaiting-per-registration = 2\nexpiry-minutes = 1");
    let mut device = Device::start(&server.gateway, "");
    let receiver = Receiver::start(&folder, "receiver", None);
    let (app, here) = registered(&server, &device, "org.example.Chat").await;
    tell(&server, &app, &receiver);
    let with = |request_id: &str, members: Value| {
        let mut one = message(&here, request_id);
        one.as_object_mut().expect("an object").extend(members.as_object().expect("an object").clone());
        assert_eq!(codes(&post(&server, &app, &one)), [1000]);
    };
    with("not stored", json!({ "reliableOption": "NoReliable" }));
    with("arrives", json!({}));
    until(async || so(receiver.told().len() == 1, || format!("{:?}:\n{}", receiver.told(), server.log()))).await;
    device.stop_agent();
    for request_id in ["too many", "cancelled", "replaced", "replaced"] {
        with(request_id, json!({}));
    }
    assert_eq!(codes(&post(&server, &app, &json!({ "cancel": "cancelled" }))), [1000]);
    // The clock of a test cannot wait a minute, and the server's can be helped.
    let database = rusqlite::Connection::open(server.folder.path().join("state/server.db")).expect("a database");
    database.execute("UPDATE messages SET expires_ms = 1", []).expect("nobody else writes");
    let expected = [("arrives", 1000), ("too many", 1001), ("replaced", 1002)];
    let expected = expected.map(|(request_id, code)| (request_id.to_owned(), code));
    until(async || so(receiver.told() == expected, || format!("{:?}:\n{}", receiver.told(), server.log()))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_device_did_not_keep_is_never_told_as_stored() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start("00", "");
    let clock = WallClock::new();
    let environment = clock.environment();
    let environment: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let mut device = Device::start(&server.gateway, "");
    device.restart_agent_with(&environment);
    device.until_online().await;
    let receiver = Receiver::start(&folder, "receiver", None);
    let (app, here) = registered(&server, &device, "org.example.Chat").await;
    tell(&server, &app, &receiver);
    let send = |request_id: &str| assert_eq!(codes(&post(&server, &app, &message(&here, request_id))), [1000]);
    let told = async |expected: &[(&str, u64)]| {
        let expected: Vec<(String, u64)> = expected.iter().map(|(id, code)| ((*id).to_owned(), *code)).collect();
        until(async || so(receiver.told() == expected, || format!("{:?}:\n{}", receiver.told(), device.log()))).await;
    };
    send("in time");
    told(&[("in time", 1000)]).await;
    // Messages live for a day, and for the device that has passed.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("it is past 1970");
    clock.set(i64::try_from(now.as_millis()).expect("a time") + 25 * 3_600_000);
    send("late");
    told(&[("in time", 1000), ("late", 1002)]).await;
    clock.set(i64::try_from(now.as_millis()).expect("a time"));
    // A device that has lost what it knew of its apps.
    let state = device.folder.path().join("state/agent.db");
    let database = rusqlite::Connection::open(state).expect("a database");
    database.execute("DELETE FROM apps", []).expect("nobody else writes");
    send("unwanted");
    told(&[("in time", 1000), ("late", 1002), ("unwanted", 1001)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_that_hangs_or_refuses_holds_nobody_else_up() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start("00", ROOMY);
    let device = Device::start(&server.gateway, "");
    let manners = BTreeMap::from([("hangs", Some("--hang")), ("refuses", Some("--refuse")), ("takes", None)]);
    let mut all = Vec::new();
    for (name, manner) in manners {
        let receiver = Receiver::start(&folder, name, manner);
        let (app, here) = registered(&server, &device, &format!("org.example.{name}")).await;
        tell(&server, &app, &receiver);
        all.push((app, here, receiver));
    }
    for (app, here, _) in &all {
        for number in 0..20 {
            assert_eq!(codes(&post(&server, app, &message(here, &number.to_string()))), [1000]);
        }
    }
    let (_, _, takes) = &all[2];
    until(async || so(takes.told().len() == 20, || format!("{:?}:\n{}", takes.told(), server.log()))).await;
    let (_, _, refuses) = &all[1];
    // It is told the first again and again, and nothing that comes after.
    until(async || so(refuses.told().len() > 20, || format!("{:?}", refuses.told()))).await;
    assert!(server.log().contains("receipts cannot be told: its callback answers 500"), "{}", server.log());
}

#[test]
fn a_callback_is_checked_before_it_is_taken() {
    let server = Server::start("00", "");
    let app = server.app_add("org.example.Chat");
    let set = |arguments: &[&str]| server.admin(&[&["app", "callback"], arguments].concat());
    let said = |output: &std::process::Output| String::from_utf8_lossy(&output.stderr).into_owned();
    for url in ["http://example.org/", "ftp://example.org/", "example.org"] {
        let refused = set(&[&app.id, url]);
        assert_eq!(refused.status.code(), Some(65), "{url}: {}", said(&refused));
        assert!(said(&refused).contains(url), "{}", said(&refused));
    }
    assert_eq!(set(&["nobody", "https://example.org/"]).status.code(), Some(1));
    assert_eq!(set(&[&app.id]).status.code(), Some(64), "neither a URL nor --none");
    let taken = set(&[&app.id, "https://example.org/receipts"]);
    let shown = String::from_utf8_lossy(&taken.stdout).into_owned();
    assert!(taken.status.success() && shown.contains("https://example.org/receipts") && shown.contains("key:"));
    assert!(set(&[&app.id, "--none"]).status.success());
}
