//! Frames over a real broker: messages travel, links are switched, rights hold, nothing is lost when the broker
//! is killed, and stock clients agree.

#![cfg(all(feature = "agent", feature = "server", feature = "mqtt"))]

#[path = "common/broker.rs"]
mod broker;
mod common;
#[path = "common/device.rs"]
mod device;

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Child, Stdio};
use std::sync::Arc;

use broker::{Broker, PREFER};
use common::{App, Server, so, until};
use device::{Device, codes, post, request};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const APP: &str = "org.example.Chat";

/// A server with a broker, and a device that has been over both kinds of links.
struct Stage {
    broker: Broker,
    server: Server,
    app: App,
    device: Device,
}

impl Stage {
    /// With these further settings of the server and of the device.
    async fn new(server: &str, device: &str) -> Self {
        let mut broker = Broker::new();
        let server = Server::start("00", &format!("{}{server}", broker.settings()));
        let app = server.app_add(APP);
        assert_eq!(broker.sync(&server)["changed"], true);
        broker.start();
        until_connected(&server).await;
        let device = Device::start(&server.gateway, &format!("{PREFER}\n{device}"));
        device.until_online().await;
        let this = Self { broker, server, app, device };
        assert!(this.device.gateway().starts_with("ws://"), "its first link is the one that it knows");
        // The broker learns of it; then its next link goes there.
        assert_eq!(this.broker.sync(&this.server)["devices"], 1);
        this.until_over("mqtt://").await;
        this
    }

    async fn until_over(&self, scheme: &str) {
        self.device.until_over(scheme, || format!("{}\n{}", self.server.log(), self.broker.log())).await;
    }

    fn send(&self, reg_id: &str, text: &str) {
        let answer = post(&self.server, &self.app, &request(reg_id, text, text));
        assert_eq!(codes(&answer), [1000]);
    }
}

/// Waits until the server is at its broker.
async fn until_connected(server: &Server) {
    until(async || so(server.log().contains("connected to the broker broker="), || server.log())).await;
}

#[tokio::test]
async fn messages_travel_over_a_broker_and_a_device_switches_links() {
    let mut stage = Stage::new("", "").await;
    let mut app = stage.device.app(APP).await;
    stage.send(&app.reg_id, "over the broker");
    assert_eq!(app.next().await.data(), "over the broker");

    // Without a broker the device comes over the other link, with the same registration.
    stage.broker.kill();
    stage.send(&app.reg_id, "meanwhile");
    assert_eq!(app.next().await.data(), "meanwhile");
    assert!(stage.device.gateway().starts_with("ws://"), "{}", stage.device.gateway());
    stage.broker.start();
    stage.until_over("mqtt://").await;
    stage.send(&app.reg_id, "over the broker again");
    assert_eq!(app.next().await.data(), "over the broker again");
}

/// The name and the password of a device at the broker.
fn credentials(device: &Device) -> (String, String) {
    let path = device.folder.path().join("state/agent.db");
    let database = rusqlite::Connection::open(path).expect("a database");
    let fact = |name: &str| {
        let found = database.query_row("SELECT value FROM facts WHERE name = ?1", [name], |row| row.get(0));
        found.expect("every device has it")
    };
    (fact("device"), fact("secret"))
}

#[tokio::test]
async fn a_device_cannot_read_write_or_end_what_is_another_one_s() {
    let Stage { broker, server, app: sender, mut device } = Stage::new("", "").await;
    let (broker, server) = (&broker, &server);
    let other = Device::start(&server.gateway, PREFER);
    other.until_online().await;
    broker.sync(server);
    other.until_over("mqtt://", || broker.log()).await;
    let mut app = other.app(APP).await;
    let (ours, our_password) = credentials(&device);
    let (theirs, _) = credentials(&other);
    // Whoever is stopped has given its client id free.
    device.stop_agent();

    let refused = broker.run("mosquitto_sub", &ours, "a guess", &["-t", "#", "-W", "5"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.to_lowercase().contains("not authori"), "{refused:?}");

    // What the server and the other device say to each other, and what it says to ours.
    let patience = ["-W", "4", "-v", "-q", "1"];
    let filters = ["-t", "#", "-t", "bellwire/+/down/+", "-t", &format!("bellwire/{theirs}/#")];
    let spy = broker.client("mosquitto_sub", &ours, &our_password, &[&patience[..], &filters].concat()).spawn();
    let spy = spy.expect("mosquitto-clients is missing: apt-get install mosquitto-clients");
    until(async || so(broker.log().matches(&format!("Sending SUBACK to {ours}")).count() > 1, || broker.log())).await;
    let answer = post(server, &sender, &request(app.reg_id.as_str(), "1", "not for you"));
    assert_eq!(codes(&answer), [1000]);
    assert_eq!(app.next().await.data(), "not for you");
    let own = ["-q", "1", "-t", &format!("bellwire/{ours}/down/x"), "-m", "for us"];
    let port = broker.server_port.to_string();
    let mut as_server = std::process::Command::new("mosquitto_pub");
    as_server.args(["-V", "mqttv5", "-h", "127.0.0.1", "-p", &port, "-i", "test", "-u", "bellwire-server", "-P"]);
    assert!(as_server.arg(broker::PASSWORD).args(own).status().expect("it is there").success());
    let heard = spy.wait_with_output().expect("it is ours");
    let heard = String::from_utf8_lossy(&heard.stdout).into_owned();
    let own = format!("bellwire/{ours}/down/x for us");
    // Once for each filter that matches.
    assert!(!heard.is_empty() && heard.lines().all(|line| line == own), "its own and nothing else: {heard}");

    // What the other one would be believed to say, or would believe.
    let online = other.link()["online_s"].as_u64();
    for topic in ["hello/x", "up/x/y", "gone/x", "down/x"] {
        let topic = format!("bellwire/{theirs}/{topic}");
        let forged =
            broker.run("mosquitto_pub", &ours, &our_password, &["-q", "1", "-t", &topic, "-m", "{}", "-i", &theirs]);
        let said = String::from_utf8_lossy(&forged.stderr).into_owned();
        assert!(said.to_lowercase().contains("not authori"), "{topic}: {forged:?}");
    }
    for topic in ["bellwire/servers/x", "bellwire/x"] {
        let forged = broker.run("mosquitto_pub", &ours, &our_password, &["-q", "1", "-t", topic, "-m", "{}"]);
        assert!(String::from_utf8_lossy(&forged.stderr).to_lowercase().contains("not authori"), "{topic}: {forged:?}");
    }
    let allowed = format!("bellwire/{ours}/hello/x");
    let allowed = broker.run("mosquitto_pub", &ours, &our_password, &["-q", "1", "-t", &allowed, "-m", "{}"]);
    assert!(allowed.status.success() && allowed.stderr.is_empty(), "its own is let through: {allowed:?}");
    // Neither the forged goodbye nor the other's client id has thrown it out.
    assert!(other.link()["online_s"].as_u64() >= online, "{}", other.log());
    assert_eq!(other.log().matches("connected to mqtt://").count(), 1, "{}", other.log());
}

/// A program that ends with the test.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Devices of a fleet, and messages for each: as many as a window has, so that all of them are at the broker.
const FLEET: (usize, usize) = (64, 32);

#[tokio::test]
async fn what_a_broker_holds_when_it_is_killed_arrives_all_the_same() {
    let mut broker = Broker::new();
    let server = Server::start("00", &broker.settings());
    let app = server.app_add(APP);
    broker.sync(&server);
    broker.start();
    until_connected(&server).await;
    let (port, (devices, each)) = (broker.port.to_string(), FLEET);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mqtt/fleet.py");
    let mut command = std::process::Command::new(common::python_for("mqtt"));
    command.args([script, &server.gateway, &port, APP, &devices.to_string(), &each.to_string()]);
    let mut fleet = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("Python runs");
    let lines = common::follow(fleet.stdout.take().expect("it is piped"), Arc::default());
    let mut fleet = Guard(fleet);
    let log = broker.path("log");
    let next = || {
        lines.recv_timeout(common::DEADLINE).unwrap_or_else(|_| {
            panic!(
                "the fleet is silent:\n{}\n{}",
                server.log(),
                String::from_utf8_lossy(&std::fs::read(&log).unwrap_or_default())
            )
        })
    };
    let registered = next();
    let reg_ids: Vec<&str> = registered.split(' ').skip(1).collect();
    assert_eq!(reg_ids.len(), devices);
    assert_eq!(broker.sync(&server)["devices"], devices);
    fleet.0.stdin.take().expect("it is piped").write_all(b"go on\n").expect("it reads");
    for _ in 0..devices {
        assert!(next().starts_with("welcome "));
    }

    // They are connected and do not move: what is sent to them stays at the broker.
    let pid = Pid::from_raw(i32::try_from(fleet.0.id()).expect("small"));
    kill(pid, Signal::SIGSTOP).expect("it is ours");
    for number in 0..each {
        let text = number.to_string();
        let answer = post(&server, &app, &request(json!(reg_ids), &text, &text));
        assert_eq!(codes(&answer), vec![1000; devices]);
    }
    until(async || {
        let taken = broker.log().matches("Received PUBLISH from bellwire-server-").count();
        so(taken >= devices * (each + 1), || format!("{taken} frames are at the broker"))
    })
    .await;
    broker.kill();
    kill(pid, Signal::SIGCONT).expect("it is ours");
    broker.start();

    let mut arrived: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let repeated = loop {
        let line = next();
        match line.split(' ').collect::<Vec<_>>().as_slice() {
            ["has", reg_id, text] => arrived.entry((*reg_id).to_owned()).or_default().push((*text).to_owned()),
            ["done", repeated] => break (*repeated).to_owned(),
            _ => assert!(line.starts_with("welcome "), "{line}"),
        }
    };
    assert!(fleet.0.wait().expect("it is ours").success());
    assert_eq!(arrived.len(), devices);
    let all: Vec<String> = (0..each).map(|number| number.to_string()).collect();
    for (reg_id, texts) in &arrived {
        assert_eq!(*texts, all, "all, each once, in order: {reg_id}");
    }
    println!("{} arrived; {repeated} came again and were passed over", devices * each);
}

/// How many notifications wait when the broker is killed.
const WAITING: usize = 2000;

#[tokio::test]
async fn a_broker_that_is_killed_with_thousands_on_their_way_loses_none() {
    let waiting = format!("waiting-per-registration = {WAITING}");
    let unread = format!("[limits]\nunread-messages = {WAITING}\ntotal-messages = {WAITING}");
    let mut stage = Stage::new(&format!("[limits]\n{waiting}"), &unread).await;
    let mut app = stage.device.app(APP).await;
    // The device is there and does not move: the broker holds a window, the server the rest.
    let pid = Pid::from_raw(i32::try_from(stage.device.agent_id()).expect("small"));
    kill(pid, Signal::SIGSTOP).expect("it is ours");
    let sent: Vec<String> = (0..WAITING).map(|number| number.to_string()).collect();
    for texts in sent.chunks(100) {
        let messages: Value = texts.iter().map(|text| request(app.reg_id.as_str(), text, text)).collect();
        let answer = post(&stage.server, &stage.app, &json!({ "messages": messages }));
        assert_eq!(codes(&answer), vec![1000; texts.len()]);
    }
    stage.broker.kill();
    kill(pid, Signal::SIGCONT).expect("it is ours");
    stage.broker.start();
    // And again while they come.
    let mut arrived = app.next_data(WAITING / 2).await;
    stage.broker.kill();
    stage.broker.start();
    arrived.extend(app.next_data(WAITING - WAITING / 2).await);
    assert!(arrived == sent, "all, each once, in order: {arrived:?}");
    assert!(app.try_next().is_none(), "and nothing else");
    stage.until_over("mqtt://").await;
}

/// An example, with stock clients.
fn example(name: &str, arguments: &[&str]) -> Child {
    let script = format!("{}/examples/{name}", env!("CARGO_MANIFEST_DIR"));
    let mut command = std::process::Command::new(common::python_for("mqtt"));
    command.arg(script).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    command.spawn().expect("Python runs")
}

#[tokio::test]
async fn a_stock_client_that_follows_the_manual_has_a_notification_and_acknowledges_it() {
    let Stage { mut broker, mut server, app, device: _device } = Stage::new("", "").await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().display().to_string();
    // It enrols and registers over a WebSocket.
    let mut over_websocket = example("device.py", &[&server.gateway, APP, &path]);
    let lines = common::follow(over_websocket.stdout.take().expect("it is piped"), Arc::default());
    let line = |what: &str, lines: &std::sync::mpsc::Receiver<String>| {
        let line = lines.recv_timeout(common::DEADLINE).unwrap_or_else(|_| panic!("{what} does not come"));
        assert!(line.starts_with(what), "{line}");
        line
    };
    let registered = line("registered", &lines);
    let reg_id = registered.split('\'').find(|word| word.len() == 100).expect("a regId").to_owned();
    over_websocket.kill().expect("it is ours");
    over_websocket.wait().expect("it is ours");
    assert_eq!(broker.sync(&server)["devices"], 2);

    // And goes on over MQTT.
    let mut over_mqtt = example("device-mqtt.py", &[&format!("mqtt://127.0.0.1:{}", broker.port), &path]);
    let lines = common::follow(over_mqtt.stdout.take().expect("it is piped"), Arc::default());
    assert!(line("welcome", &lines).contains(&format!("'mqtt://127.0.0.1:{}/bellwire'", broker.port)));
    line("pong", &lines);
    let answer = post(&server, &app, &request(reg_id.as_str(), "one", "to a stranger"));
    assert_eq!(codes(&answer), [1000]);
    let arrived = lines.recv_timeout(common::DEADLINE).expect("the notification");
    assert!(arrived.contains("to a stranger"), "{arrived}");
    until(async || {
        let told = message(&server, &app, "one");
        so(told["messages"][0]["state"] == "acknowledged", || told.to_string())
    })
    .await;
    // What it said is on the server's disk: it does not come again, whoever is killed.
    server.kill();
    broker.kill();
    over_mqtt.kill().expect("it is ours");
    over_mqtt.wait().expect("it is ours");
}

/// What the server tells of a request.
fn message(server: &Server, app: &App, request_id: &str) -> Value {
    let (id, secret) = (format!("appID: {}", app.id), format!("appSecret: {}", app.secret));
    let url = format!("{}/v1/messages?requestID={request_id}", server.api);
    common::curl(&["-H", &id, "-H", &secret, &url], b"").json()
}

#[tokio::test]
async fn a_server_that_is_lost_is_known_to_its_devices_at_once() {
    let mut stage = Stage::new("", "").await;
    let mut app = stage.device.app(APP).await;
    stage.server.kill();
    until(async || {
        let link = stage.device.link();
        so(link["why"] == "the server ended the session: shutting down", || link.to_string())
    })
    .await;
    stage.server.restart();
    until_connected(&stage.server).await;
    stage.until_over("mqtt://").await;
    stage.send(&app.reg_id, "after that");
    assert_eq!(app.next().await.data(), "after that");
}

#[tokio::test]
async fn brokers_that_ask_are_told_who_may_do_what() {
    let Stage { server, device, .. } = Stage::new("", "").await;
    let (name, password) = credentials(&device);
    let other = "0".repeat(32);
    let ask_as = |user: &str, path: &str, header: &str, body: Value| {
        let url = format!("{}/v1/mqtt/{path}", server.api);
        let arguments = ["-u", user, "-H", "Content-Type: application/json", "-H", header, "--data-binary", "@-", &url];
        common::curl(&arguments, body.to_string().as_bytes())
    };
    let broker = format!("bellwire-server:{}", broker::PASSWORD);
    let ask = |path: &str, header: &str, body: Value| {
        let answer = ask_as(&broker, path, header, body);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body
    };
    let visitor = |id: &str, user: &str, word: &str| json!({ "clientid": id, "username": user, "password": word });
    let own_id = format!("bellwire-server-{}", "a".repeat(16));
    for (id, user, word, welcome) in [
        (name.as_str(), name.as_str(), password.as_str(), true),
        (&name, &name, &"0".repeat(64), false),
        (&other, &name, &password, false),
        (&other, &other, &password, false),
        (&own_id, "bellwire-server", broker::PASSWORD, true),
        (&name, "bellwire-server", broker::PASSWORD, false),
        (&own_id, "bellwire-server", "a guess", false),
        ("", "", "", false),
    ] {
        let word_of = if welcome { "allow" } else { "deny" };
        let emqx = ask("emqx/authenticate", "X: y", visitor(id, user, word));
        assert_eq!(emqx, format!(r#"{{"result":"{word_of}"}}"#), "{id} {user}");
        assert_eq!(ask("rmqtt/authenticate", "X: y", visitor(id, user, word)), word_of, "{id} {user}");
        let hook =
            json!({ "client_id": id, "username": user, "password": word, "mountpoint": "", "clean_start": true });
        let verne = ask("vernemq", "vernemq-hook: auth_on_register_m5", hook);
        let verdict = if welcome { r#"{"result":"ok"}"# } else { r#"{"result":{"error":"not_allowed"}}"# };
        assert_eq!(verne, verdict, "{id} {user}");
    }
    let (own, down) = (format!("bellwire/{name}/up/x/y"), format!("bellwire/{name}/down/x"));
    let theirs = format!("bellwire/{other}/up/x/y");
    for (user, topic, action, welcome) in [
        (name.as_str(), own.as_str(), "publish", true),
        (&name, &own, "subscribe", false),
        (&name, &down, "subscribe", true),
        (&name, &down, "publish", false),
        (&name, &theirs, "publish", false),
        (&name, "bellwire/servers/+", "subscribe", true),
        (&name, "#", "subscribe", false),
        ("bellwire-server", "$share/bellwire/bellwire/+/hello/+", "subscribe", true),
        ("bellwire-server", &down, "publish", true),
        ("bellwire-server", "#", "subscribe", false),
        ("somebody", &own, "publish", false),
    ] {
        let word = if welcome { "allow" } else { "deny" };
        let wanted = json!({ "username": user, "topic": topic, "action": action });
        assert_eq!(ask("emqx/authorize", "X: y", wanted), format!(r#"{{"result":"{word}"}}"#), "{user} {topic}");
        let number = if action == "publish" { "2" } else { "1" };
        let wanted = json!({ "username": user, "topic": topic, "action": number });
        assert_eq!(ask("rmqtt/authorize", "X: y", wanted), word, "{user} {topic}");
        let (hook, body) = match action {
            "publish" => ("auth_on_publish_m5", json!({ "client_id": user, "username": user, "topic": topic })),
            _ => (
                "auth_on_subscribe",
                json!({ "client_id": user, "username": user, "topics": [{ "topic": topic, "qos": 1 }] }),
            ),
        };
        let verne = ask("vernemq", &format!("vernemq-hook: {hook}"), body);
        assert_eq!(verne.contains("not_allowed"), !welcome, "{user} {topic}: {verne}");
    }
    // Who is no broker is told nothing, and is told how to ask.
    for user in [format!("{name}:{password}"), "bellwire-server:a guess".into(), ":".into()] {
        let answer = ask_as(&user, "emqx/authenticate", "X: y", visitor(&name, &name, &password));
        assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some(r#"Basic realm="bellwire""#)));
    }
    let strange = ask_as(&broker, "vernemq", "vernemq-hook: on_client_gone", json!({ "client_id": "x" }));
    assert_eq!(strange.status, 400, "{strange:?}");
}

#[tokio::test]
async fn a_device_that_joins_those_who_share_the_greetings_keeps_none_from_them() {
    let Stage { broker, server, mut device, .. } = Stage::new("", "").await;
    let thief = Device::start(&server.gateway, "");
    thief.until_online().await;
    broker.sync(&server);
    let (name, password) = credentials(&thief);
    let shared = "$share/bellwire/bellwire/+/hello/+";
    let spy = broker.client("mosquitto_sub", &name, &password, &["-q", "1", "-v", "-t", shared]).spawn();
    let _spy = Guard(spy.expect("mosquitto-clients is missing: apt-get install mosquitto-clients"));
    until(async || so(broker.log().contains(&format!("Sending SUBACK to {name}")), || broker.log())).await;
    let before = device_log_count(&device, "connected to ws://");
    for _ in 0..6 {
        device.restart_agent();
        device.until_over("mqtt://", || broker.log()).await;
    }
    assert_eq!(device_log_count(&device, "connected to ws://"), before, "a greeting was not heard: {}", device.log());
    assert!(!broker.log().contains(&format!("Sending PUBLISH to {name}")), "the thief has none");
}

fn device_log_count(device: &Device, what: &str) -> usize {
    device.log().matches(what).count()
}

#[tokio::test]
async fn a_device_that_is_lost_has_no_session_at_once() {
    let Stage { server, broker, mut device, .. } = Stage::new("", "").await;
    let made = server.admin(&["--json", "token", "add"]);
    let token: Value = serde_json::from_slice(&made.stdout).expect("--json prints JSON");
    let header = format!("Authorization: Bearer {}", token["token"].as_str().expect("a token"));
    let connected = || {
        let told = common::curl(&["-H", &header, &format!("{}/v1/admin/status", server.api)], b"").json();
        told["devices_connected"].as_u64()
    };
    assert_eq!(connected(), Some(1));
    device.kill_agent();
    until(async || so(connected() == Some(0), || format!("{}\n{}", server.log(), broker.log()))).await;
}
