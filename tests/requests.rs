//! Notifications that are delayed, taken back, or sent again: through the built programs, with a clock
//! that is stepped where time matters.

#![cfg(all(feature = "agent", feature = "server"))]

mod common;
#[path = "common/device.rs"]
mod device;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use common::{Answer, App, Server, WallClock, curl, so, until};
use device::{Device, DeviceApp, codes, post, request};
use serde_json::{Value, json};

const APP: &str = "org.example.Chat";
const ROOMY: &str = "[limits]\nunread-messages = 2000";

/// A server, its app, a device and the app on it.
struct World {
    server: Server,
    app: App,
    device: Device,
    here: DeviceApp,
}

impl World {
    async fn start() -> Self {
        Self::with_clock(Vec::new()).await
    }

    /// Server and device have these variables in their environment.
    async fn with_clock(environment: Vec<(String, String)>) -> Self {
        let server = Server::start_with("00", "", environment.clone());
        let app = server.app_add(APP);
        let mut device = Device::start(&server.gateway, ROOMY);
        let environment: Vec<(&str, &str)> =
            environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        device.restart_agent_with(&environment);
        let here = device.app(APP).await;
        Self { server, app, device, here }
    }

    fn post(&self, request: &Value) -> Vec<u64> {
        codes(&post(&self.server, &self.app, request))
    }

    /// A message with these further members.
    fn message(&self, request_id: &str, members: &Value) -> Value {
        let mut message = request(self.here.reg_id.as_str(), request_id, request_id);
        let all = members.as_object().expect("an object").clone();
        message.as_object_mut().expect("an object").extend(all);
        message
    }

    fn ask(&self, method: &str, path: &str) -> Answer {
        let (id, secret) = (format!("appID: {}", self.app.id), format!("appSecret: {}", self.app.secret));
        let url = format!("{}/v1/messages{path}", self.server.api);
        curl(&["-X", method, "-H", &id, "-H", &secret, &url], b"")
    }

    /// The newest message of this request id, as the server tells it.
    fn history(&self, request_id: &str) -> Value {
        self.ask("GET", &format!("?requestID={request_id}")).json()["messages"][0].clone()
    }

    async fn until_state(&self, request_id: &str, state: &str) -> Value {
        until(async || {
            let history = self.history(request_id);
            let is = history["state"] == state;
            so(is, || format!("{request_id} is {history}, not {state}:\n{}", self.server.log())).map(|()| history)
        })
        .await
    }

    /// Whatever was sent before has come when this has.
    async fn expect(&mut self, data: &[&str]) {
        assert_eq!(self.post(&self.message("marker", &json!({}))), [1000]);
        let mut expected = data.to_vec();
        expected.push("marker");
        assert_eq!(self.here.next_data(expected.len()).await, expected);
        self.until_state("marker", "delivered").await;
    }
}

fn at(history: &Value, step: &str) -> i64 {
    let steps = history["steps"].as_array().expect("a history has steps");
    let found = steps.iter().find(|one| one["step"] == step).unwrap_or_else(|| panic!("no {step} in {history}"));
    found["at_ms"].as_i64().expect("a time is a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_message_comes_when_its_time_has_come_and_not_before() {
    let clock = WallClock::new();
    let mut world = World::with_clock(clock.environment()).await;
    for (id, minutes) in [("later", json!("30")), ("never", json!(30)), ("much later", json!(2880))] {
        assert_eq!(world.post(&world.message(id, &json!({ "delayDate": minutes }))), [1000]);
    }
    assert_eq!(world.post(&json!({ "cancel": "never" })), [1000]);
    let release = world.history("later")["release_ms"].as_i64().expect("it is delayed");
    world.expect(&[]).await;
    clock.set(release - 30_000);
    world.expect(&[]).await;
    assert_eq!(world.history("later")["state"], "stored");
    // Also over a restart, and with what is released while the device is away.
    world.server.kill();
    world.server.restart();
    world.device.until_online().await;
    world.expect(&[]).await;
    clock.set(release);
    assert_eq!(world.here.next().await.data(), "later");
    let history = world.until_state("later", "delivered").await;
    assert!(at(&history, "sent") >= release && at(&history, "released") == release, "{history}");
    world.expect(&[]).await;
    assert_eq!(world.history("much%20later")["state"], "stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_delivered_until_its_last_second_and_never_after() {
    let clock = WallClock::new();
    let environment = clock.environment();
    let mut world = World::with_clock(environment.clone()).await;
    let environment: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let end = |history: &Value| history["expires_ms"].as_i64().expect("every message expires");
    for (id, in_time) in [("in time", true), ("late", false)] {
        // On the server, for a device that is away.
        world.device.stop_agent();
        assert_eq!(world.post(&world.message(id, &json!({ "expiryDate": 1 }))), [1000]);
        let expires = end(&world.history(&id.replace(' ', "%20")));
        clock.set(if in_time { expires - 20_000 } else { expires });
        world.device.restart_agent_with(&environment);
        world.device.until_online().await;
        world.here.connect(&[]).await.expect("the app may connect");
        world.expect(if in_time { &["in time"] } else { &[] }).await;
    }
    world.until_state("late", "expired").await;
    for (id, in_time) in [("unread in time", true), ("unread late", false)] {
        // On the device, for an app that is away.
        world.here.call::<()>("Disconnect", &APP).await.expect("it is connected");
        assert_eq!(world.post(&world.message(id, &json!({ "expiryDate": 1 }))), [1000]);
        let history = world.until_state(&id.replace(' ', "%20"), "acknowledged").await;
        clock.set(if in_time { end(&history) - 20_000 } else { end(&history) });
        world.here.connect(&[]).await.expect("the app may connect");
        world.expect(if in_time { &["unread in time"] } else { &[] }).await;
    }
    world.until_state("unread%20late", "expired").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_sent_can_be_taken_back_and_nothing_else() {
    let mut world = World::start().await;
    assert_eq!(world.post(&world.message("had", &json!({}))), [1000]);
    assert_eq!(world.here.next().await.data(), "had");
    world.until_state("had", "delivered").await;
    assert_eq!(world.post(&json!({ "cancel": "had" })), [3014]);
    assert_eq!(world.post(&json!({ "cancel": "never was" })), [3014]);

    world.device.stop_agent();
    for id in ["gone", "gone by id", "stays"] {
        assert_eq!(world.post(&world.message(id, &json!({}))), [1000]);
    }
    let other = "00".repeat(50);
    let answer = post(&world.server, &world.app, &json!({ "cancel": "gone", "regID": [world.here.reg_id, other] }));
    assert_eq!(codes(&answer), [1000, 3014]);
    assert_eq!(answer.json()["results"][0]["requestID"], "gone");
    assert_eq!(world.post(&json!({ "cancel": "gone" })), [3014], "once");
    let by_id = world.history("gone%20by%20id")["messageID"].as_str().expect("it has an id").to_owned();
    let stranger = world.server.app_add("org.example.Stranger");
    let headers = [format!("appID: {}", stranger.id), format!("appSecret: {}", stranger.secret)];
    let url = format!("{}/v1/messages/{by_id}", world.server.api);
    for method in ["GET", "DELETE"] {
        let answer = curl(&["-X", method, "-H", &headers[0], "-H", &headers[1], &url], b"");
        assert_eq!(answer.status, 404, "it is another app's: {answer:?}");
    }
    assert_eq!(world.ask("DELETE", &format!("/{by_id}")).status, 204);
    assert_eq!(world.ask("DELETE", &format!("/{by_id}")).status, 409);
    assert_eq!(world.ask("DELETE", "/0").status, 404);
    assert_eq!(world.ask("GET", &format!("/{by_id}")).json()["state"], "cancelled");
    for id in ["gone", "gone%20by%20id"] {
        assert_eq!(world.history(id)["state"], "cancelled");
    }
    world.device.restart_agent();
    world.device.until_online().await;
    world.here.connect(&[]).await.expect("the app may connect");
    world.expect(&["stays"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_comes_again_takes_the_place_of_what_nobody_has_had() {
    let mut world = World::start().await;
    world.device.stop_agent();
    for data in ["1:0", "1:1", "2:1"] {
        assert_eq!(world.post(&request(world.here.reg_id.as_str(), "score", data)), [1000]);
    }
    let found = world.ask("GET", "?requestID=score").json();
    let states: Vec<&Value> = found["messages"].as_array().expect("a list").iter().map(|one| &one["state"]).collect();
    assert_eq!(states, ["stored", "replaced", "replaced"]);
    world.device.restart_agent();
    world.device.until_online().await;
    // On the device now, but its app is away.
    world.until_state("score", "acknowledged").await;
    assert_eq!(world.post(&request(world.here.reg_id.as_str(), "score", "3:1")), [1000]);
    world.until_state("score", "acknowledged").await;
    world.here.connect(&[]).await.expect("the app may connect");
    world.expect(&["3:1"]).await;
}

/// Passes bytes on between a device and a gateway, each a little later: acknowledgements are on their
/// way for as long.
fn slow_line(gateway: &str, delay: Duration) -> String {
    let target = gateway.strip_prefix("ws://").expect("a plain gateway").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for device in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(&target) else { continue };
            let (to_server, to_device) = (server.try_clone(), device.try_clone());
            let (Ok(to_server), Ok(to_device)) = (to_server, to_device) else { continue };
            std::thread::spawn(move || pass_on(device, to_server, delay));
            std::thread::spawn(move || pass_on(server, to_device, delay));
        }
    });
    format!("ws://{address}")
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let (sender, later) = std::sync::mpsc::channel::<(std::time::Instant, Vec<u8>)>();
    std::thread::spawn(move || {
        for (at, bytes) in later {
            std::thread::sleep(at.saturating_duration_since(std::time::Instant::now()));
            if to.write_all(&bytes).is_err() {
                return;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if sender.send((std::time::Instant::now() + delay, buffer[..length].to_vec())).is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_message_and_one_that_replaces_it_on_its_way_exactly_one_is_delivered() {
    const ROUNDS: u32 = 60;
    let server = Server::start("00", "[limits]\nwaiting-per-registration = 1000");
    let app = server.app_add(APP);
    let device = Device::start(&slow_line(&server.gateway, Duration::from_millis(60)), ROOMY);
    let here = device.app(APP).await;
    let mut world = World { server, app, device, here };
    for round in 0..ROUNDS {
        let id = format!("round-{round}");
        assert_eq!(world.post(&request(world.here.reg_id.as_str(), &id, &format!("{round} first"))), [1000]);
        // At one moment after the other of the way there and back, which takes 120 ms and more.
        std::thread::sleep(Duration::from_millis(u64::from(round % 20) * 8));
        assert_eq!(world.post(&request(world.here.reg_id.as_str(), &id, &format!("{round} second"))), [1000]);
    }
    assert_eq!(world.post(&world.message("marker", &json!({}))), [1000]);
    let mut had = BTreeSet::new();
    loop {
        let data = world.here.next().await.data();
        if data == "marker" {
            break;
        }
        assert!(had.insert(data.clone()), "{data} came twice");
    }
    let mut met = 0;
    for round in 0..ROUNDS {
        let found = world.ask("GET", &format!("?requestID=round-{round}")).json();
        let (first, second) = (&found["messages"][1], &found["messages"][0]);
        let acked = first["steps"].as_array().expect("a list").iter().find(|one| one["step"] == "acknowledged");
        let known = acked.is_some_and(|step| step["at_ms"].as_i64() <= Some(at(second, "stored")));
        let had = [format!("{round} first"), format!("{round} second")].map(|data| had.contains(&data));
        match had {
            // The server knew that the device had the first: the second is another message.
            [true, true] => assert!(known, "{found}"),
            [true, false] | [false, true] => met += 1,
            [false, false] => panic!("neither was delivered: {found}"),
        }
    }
    assert!(met > 0, "no round met the moment that matters");
}
